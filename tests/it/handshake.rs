//! The handshake with a whole server: what clients agree on, and what they meet while the server ends.

use std::io::{self, Read, Write};
use std::time::Duration;

use crate::raw::{
    ACK, ALLOCATION, Client, ERR_INVALID, ERR_UNKNOWN, ERR_UNSUP, EXPORT_NAME, EXTENDED_HEADERS, GO, INFO,
    REP_INFO, REP_META_CONTEXT, SET_META_CONTEXT, STRUCTURED_REPLY, meta_context,
};
use crate::support::{Lab, Volume};

const LIST_META_CONTEXT: u32 = 9;
const ERR_SHUTDOWN: u32 = 1 << 31 | 7;
const ERR_EXT_HEADER_REQD: u32 = 1 << 31 | 10;
/// NBD_FLAG_SEND_DF.
const SEND_DF: u16 = 1 << 7;

fn served(lab: &Lab) -> Volume {
    Volume::start(lab, &["--size", "1M", "--backing", "memory", "--export", "disk"])
}

/// NBD_OPT_INFO's transmission flags.
fn flags(client: &mut Client) -> u16 {
    client.option(INFO, &[0; 6]);
    let mut flags = 0;
    loop {
        let (kind, data) = client.option_reply(INFO);
        match kind {
            REP_INFO if data[..2] == [0, 0] => flags = u16::from_be_bytes([data[10], data[11]]),
            REP_INFO => {}
            ACK => return flags,
            other => panic!("{other:#x}"),
        }
    }
}

#[test]
fn a_client_agrees_step_by_step() {
    let lab = Lab::new();
    let volume = served(&lab);
    let mut client = Client::haggling(&volume.socket());
    let verdict = |client: &mut Client, option: u32, data: &[u8]| {
        client.option(option, data);
        loop {
            let (kind, _) = client.option_reply(option);
            if kind == ACK || kind >> 31 == 1 {
                return kind;
            }
        }
    };
    let asked = meta_context("disk", &[ALLOCATION]);
    assert_eq!(
        verdict(&mut client, SET_META_CONTEXT, &asked),
        ERR_INVALID,
        "there are no chunks to tell it by"
    );
    assert_eq!(flags(&mut client) & SEND_DF, 0);
    assert_eq!(verdict(&mut client, STRUCTURED_REPLY, b""), ACK);
    assert_eq!(flags(&mut client) & SEND_DF, SEND_DF);
    assert_eq!(verdict(&mut client, STRUCTURED_REPLY, b""), ERR_INVALID);
    client.option(LIST_META_CONTEXT, &meta_context("disk", &[]));
    assert_eq!(
        client.option_reply(LIST_META_CONTEXT),
        (REP_META_CONTEXT, [&[0; 4], ALLOCATION.as_bytes()].concat())
    );
    assert_eq!(client.option_reply(LIST_META_CONTEXT), (ACK, Vec::new()));
    assert_eq!(verdict(&mut client, SET_META_CONTEXT, &meta_context("tape", &[ALLOCATION])), ERR_UNKNOWN);
    assert_eq!(verdict(&mut client, EXTENDED_HEADERS, b""), ACK);
    assert_eq!(verdict(&mut client, STRUCTURED_REPLY, b""), ERR_EXT_HEADER_REQD);
    assert_eq!(verdict(&mut client, 4, b"peek"), ERR_UNSUP);
    assert_eq!(verdict(&mut client, GO, &[0; 6]), ACK);
}

#[test]
fn export_name_has_no_reply_but_success() {
    let lab = Lab::new();
    let volume = served(&lab);
    for (first, name) in [(None, &b"tape"[..]), (None, &[b'x'; 5000]), (Some(EXTENDED_HEADERS), b"disk")] {
        let mut client = Client::haggling(&volume.socket());
        if let Some(option) = first {
            client.option(option, b"");
            assert_eq!(client.option_reply(option).0, ACK);
        }
        client.option(EXPORT_NAME, name);
        assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "answered");
    }
    let mut client = Client::haggling(&volume.socket());
    client.option(EXPORT_NAME, b"disk");
    let told: [u8; 10] = client.take().unwrap();
    assert_eq!(told[..8], (1_u64 << 20).to_be_bytes());
    assert_eq!(client.read(0, 3), [0; 3]);
}

#[test]
fn a_server_that_ends_tells_those_who_ask() {
    // One could be late on a busy machine: nobody is waited for longer than 200 ms.
    let told = (0..5).any(|_| {
        let lab = Lab::new();
        let volume = served(&lab);
        let mut client = Client::haggling(&volume.socket());
        assert_eq!(unknown_option(&mut client).unwrap(), ERR_UNSUP);
        volume.signal(15);
        let mut last = ERR_UNSUP;
        while let Ok(kind) = unknown_option(&mut client) {
            last = kind;
            std::thread::sleep(Duration::from_millis(5));
        }
        let (status, record) = volume.end();
        assert!(status.success(), "{record}");
        last == ERR_SHUTDOWN
    });
    assert!(told, "five clients asked, and none was told");
}

/// The type of the reply to an option that nobody knows, or what comes of a closed connection.
fn unknown_option(client: &mut Client) -> io::Result<u32> {
    client.stream.write_all(&[&b"IHAVEOPT"[..], &99_u32.to_be_bytes(), &[0; 4]].concat())?;
    let head: [u8; 20] = client.take()?;
    let word = |at: usize| u32::from_be_bytes(*head[at..].first_chunk().unwrap());
    let mut text = vec![0; word(16) as usize];
    client.fill(&mut text)?;
    Ok(word(12))
}
