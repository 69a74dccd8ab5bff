//! A whole conversation, broken off at every byte, in two ways: the client says that it will send no more and waits
//! for what it is owed, or is gone.

use std::net::Shutdown;

use super::{ELSEWHERE, beside};
use crate::raw::{
    ALLOCATION, BLOCK_STATUS, CACHE, Client, EXTENDED_HEADERS, FLUSH, FUA, GO, LIST, Mode, NO_HOLE, READ,
    REQ_ONE, SET_META_CONTEXT, STRUCTURED_REPLY, TRIM, WRITE, WRITE_ZEROES, encoded, meta_context,
};

/// What a client says until it transmits.
fn handshake(mode: Mode) -> Vec<u8> {
    let option = |code: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        [&b"IHAVEOPT"[..], &code.to_be_bytes(), &length, data].concat()
    };
    let mut options = vec![3_u32.to_be_bytes().to_vec(), option(LIST, b"")];
    match mode {
        Mode::Simple => {}
        Mode::Structured => options.push(option(STRUCTURED_REPLY, b"")),
        Mode::Extended => options.push(option(EXTENDED_HEADERS, b"")),
    }
    if mode != Mode::Simple {
        options.push(option(SET_META_CONTEXT, &meta_context("", &[ALLOCATION])));
    }
    options.push(option(GO, &[0, 0, 0, 0, 0, 1, 0, 3]));
    options.concat()
}

/// Flags, command, offset, length and payload of every command.
fn requests(mode: Mode) -> Vec<(u16, u16, u64, u64, &'static [u8])> {
    let mut requests: Vec<(u16, u16, u64, u64, &[u8])> = vec![
        (0, WRITE, ELSEWHERE + 5, 11, b"some bytes."),
        (0, READ, ELSEWHERE, 70_000, b""),
        (0, FLUSH, 0, 0, b""),
        (0, TRIM, ELSEWHERE, 8192, b""),
        (0, CACHE, 0, 4096, b""),
        (NO_HOLE | FUA, WRITE_ZEROES, ELSEWHERE + 3, 100, b""),
        (FUA, WRITE, ELSEWHERE + 4095, 2, b"ab"),
        (0, 99, 0, 0, b""),
    ];
    if mode != Mode::Simple {
        requests.push((REQ_ONE, BLOCK_STATUS, 0, 1 << 20, b""));
        requests.push((0, BLOCK_STATUS, 0, 1 << 20, b""));
    }
    requests
}

#[test]
fn handshakes() {
    beside(|socket| {
        for mode in Mode::ALL {
            let all = handshake(mode);
            for cut in 0..=all.len() {
                let mut gone = Client::greeted(socket);
                gone.send(&all[..cut]);
                drop(gone);
                let mut client = Client::greeted(socket);
                client.send(&all[..cut]);
                client.stream.shutdown(Shutdown::Write).unwrap();
                client.is_hung_up_on();
            }
        }
    });
}

/// What was whole is answered, once; what was not is not.
#[test]
fn requests_of_every_kind() {
    beside(|socket| {
        for mode in Mode::ALL {
            let requests = requests(mode);
            for whole in 0..requests.len() {
                let (flags, command, offset, length, data) = requests[whole];
                let bytes = encoded(mode, flags, command, u64::MAX, offset, length, data);
                for cut in 0..bytes.len() {
                    let mut clients = [(); 2].map(|()| Client::ready_in(socket, mode));
                    for client in &mut clients {
                        for (flags, command, offset, length, data) in &requests[..whole] {
                            client.submit(*flags, *command, *offset, *length, data);
                        }
                        client.send(&bytes[..cut]);
                    }
                    let [gone, client] = clients;
                    drop(gone);
                    client.stream.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(client.hear_out().len(), whole, "{mode:?}, {cut} bytes of command {command}");
                }
            }
        }
    });
}
