//! Clients that take their time.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use super::{ELSEWHERE, beside};
use crate::raw::{ALLOCATION, Client, LIST, Mode, READ, WRITE, encoded, meta_context};

const SECOND: Duration = Duration::from_secs(1);

/// Sends bytes, one a second, until the server has hung up.
fn drips(mut client: Client, bytes: &[u8]) {
    for byte in bytes {
        if client.stream.write_all(&[*byte]).is_err() {
            return client.is_hung_up_on();
        }
        std::thread::sleep(SECOND);
    }
    panic!("{} seconds are not too long for a handshake", bytes.len());
}

/// A request, one byte a second for as long as a handshake may take and longer, then at once; it is answered.
fn drips_a_request(socket: &Path, mode: Mode) {
    let data = *b"slowly";
    let mut client = Client::ready_in(socket, mode);
    let bytes = encoded(mode, 0, WRITE, 1, ELSEWHERE, data.len() as u64, &data);
    let (slow, rest) = bytes.split_at(12);
    for byte in slow {
        client.send(&[*byte]);
        std::thread::sleep(SECOND);
    }
    client.send(rest);
    let mut reply = vec![0; if mode == Mode::Extended { 32 } else { 16 }];
    client.fill(&mut reply).unwrap();
    assert_eq!(client.read(ELSEWHERE, data.len()), data);
}

/// Takes its replies, one byte a second for a while.
fn drips_replies(socket: &Path) {
    let mut client = Client::ready(socket);
    let cookies: Vec<u64> = (0..20).map(|_| client.submit(0, READ, 0, 1 << 20, b"")).collect();
    let mut first = [0; 12];
    for byte in &mut first {
        client.fill(std::slice::from_mut(byte)).unwrap();
        std::thread::sleep(SECOND);
    }
    assert_eq!(&first[..8], b"\x67\x44\x66\x98\0\0\0\0");
    client.puts_back(&first);
    for cookie in cookies {
        assert_eq!(client.reply_to(cookie).data.len(), 1 << 20);
    }
    client.part();
}

/// The limit is 10 s for the whole handshake, so saying something now and then does not stretch it. In transmission a
/// client may be as slow as it likes: it holds up nobody but itself.
#[test]
fn a_byte_a_second() {
    beside(|socket| {
        std::thread::scope(|scope| {
            let greeted = b"\0\0\0\x03IHAVEOPT\0\0\0\x03\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0";
            scope.spawn(|| drips(Client::greeted(socket), greeted));
            let long = [b"IHAVEOPT\0\0\0\x0a\0\0\0\x1b", &meta_context("", &[ALLOCATION])[..]].concat();
            scope.spawn(move || drips(Client::haggling(socket), &long));
            scope.spawn(|| Client::connect(socket).is_hung_up_on());
            scope.spawn(|| answers_now_and_then(socket));
            for mode in [Mode::Simple, Mode::Extended] {
                scope.spawn(move || drips_a_request(socket, mode));
            }
            scope.spawn(|| drips_replies(socket));
        });
    });
}

/// A whole option every second.
fn answers_now_and_then(socket: &Path) {
    let mut client = Client::haggling(socket);
    let list = [&b"IHAVEOPT"[..], &LIST.to_be_bytes(), &[0; 4]].concat();
    while client.stream.write_all(&list).is_ok() {
        std::thread::sleep(SECOND);
    }
    client.is_hung_up_on();
}
