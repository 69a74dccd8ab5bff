//! tshark, whose dissector of NBD reads what client and server said to each other.
//!
//! Conversations are recorded by a proxy, not captured from an interface, so that this needs no privilege. tshark's
//! dissector, as of 4.6, knows neither extended headers nor their replies: conversations with these are not shown to it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{Served, Way, peer, run};
use crate::support::Lab;

/// The port of NBD, under which the dissector looks for it.
const PORT: u16 = 10809;

/// Severities of what the dissector has to say about a packet.
const ERROR: &str = "8388608";
const WARNING: &str = "6291456";

/// What one side said until the other did.
struct Turn {
    by_server: bool,
    bytes: Vec<u8>,
}

/// Passes one connection on to `server`; gives its own address, and the recording once both sides have hung up.
fn recorder(server: String) -> (String, JoinHandle<Vec<Turn>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let recording = std::thread::spawn(move || {
        let client = listener.accept().unwrap().0;
        let server = TcpStream::connect(server).unwrap();
        let turns = Arc::new(Mutex::new(Vec::new()));
        let other = {
            let (server, client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let turns = Arc::clone(&turns);
            std::thread::spawn(move || pass_on(server, client, true, &turns))
        };
        pass_on(client, server, false, &turns);
        other.join().unwrap();
        std::mem::take(&mut *turns.lock().unwrap())
    });
    (address, recording)
}

/// Notes each piece before it goes on, so that an answer stands after its request.
fn pass_on(mut from: TcpStream, mut to: TcpStream, by_server: bool, turns: &Mutex<Vec<Turn>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        let mut turns = turns.lock().unwrap();
        match turns.last_mut() {
            Some(turn) if turn.by_server == by_server => turn.bytes.extend(bytes),
            _ => turns.push(Turn { by_server, bytes: bytes.to_vec() }),
        }
        drop(turns);
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    // The other side may have gone already.
    let _ = to.shutdown(Shutdown::Write);
}

/// A capture file of a conversation: classic pcap, each packet beginning with its IPv4 header (LINKTYPE_RAW).
///
/// How TCP cuts what is said is nobody's promise, and here it is always the same. The dissector wants the client's
/// flags, its first four bytes, in a packet of their own.
fn write_capture(path: &Path, conversation: &[Turn]) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65535, 101_u32] {
        file.extend(word.to_le_bytes());
    }
    let ports = [40_000, PORT];
    // The next byte of client and server, as TCP counts.
    let mut next = [1_u32; 2];
    for turn in conversation {
        let side = usize::from(turn.by_server);
        let first = if !turn.by_server && next[side] == 1 { turn.bytes.len().min(4) } else { 0 };
        let (flags, rest) = turn.bytes.split_at(first);
        for payload in flags.chunks(4).chain(rest.chunks(32 << 10)) {
            let packet = packet(ports[side], ports[1 - side], next[side], next[1 - side], payload);
            next[side] += payload.len() as u32;
            let length = packet.len() as u32;
            for word in [0, 0, length, length] {
                file.extend(word.to_le_bytes());
            }
            file.extend(packet);
        }
    }
    std::fs::write(path, file).unwrap();
}

/// IPv4 from and to 127.0.0.1 (RFC 791) and TCP (RFC 9293), without options and checksums.
fn packet(from: u16, to: u16, sequence: u32, acknowledged: u32, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(40 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(acknowledged.to_be_bytes());
    packet.extend([0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}

/// For each packet of a capture the values of each of `fields`.
fn dissect(capture: &Path, fields: &[&str]) -> Vec<Vec<Vec<String>>> {
    let mut tshark = peer("tshark");
    // Nothing of what the user has configured.
    tshark.env("WIRESHARK_CONFIG_DIR", capture.parent().unwrap());
    let capture = capture.to_str().unwrap();
    let port = format!("tcp.port=={PORT},nbd");
    let fixed =
        ["-n", "-r", capture, "-d", &port, "-T", "fields", "-E", "separator=/t", "-E", "aggregator=;"];
    let said = run(tshark, fixed.into_iter().chain(fields.iter().flat_map(|field| ["-e", field])));
    let values = |cell: &str| cell.split(';').filter(|value| !value.is_empty()).map(str::to_owned).collect();
    said.lines().map(|line| line.split('\t').map(values).collect()).collect()
}

/// All values of one field, in order.
fn column(packets: &[Vec<Vec<String>>], number: usize) -> Vec<u64> {
    let values = packets.iter().flat_map(|packet| &packet[number]);
    values
        .map(|value| match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => value.parse().unwrap(),
        })
        .collect()
}

/// Panics if a packet is malformed or has an error; the dissector's warnings are only such as come of its own gaps.
fn assert_well_formed(capture: &Path) {
    let fields =
        ["_ws.malformed", "_ws.expert.severity", "_ws.expert.message", "nbd.hnd.reply", "nbd.reply.type"];
    for packet in dissect(capture, &fields) {
        assert!(packet[0].is_empty() && !packet[1].contains(&ERROR.to_owned()), "{packet:?}");
        // It takes neither the description behind a name in NBD_REP_SERVER nor the text in NBD_REPLY_ERROR for what
        // they are.
        let text_is_unexpected = packet[3].contains(&"0x00000002".to_owned()) || packet[4] == ["32769"];
        let warned = packet[1].contains(&WARNING.to_owned());
        assert!(
            !warned || text_is_unexpected && packet[2].contains(&"Unexpected data".to_owned()),
            "{packet:?}"
        );
    }
}

/// A conversation with structured replies, of every option but STARTTLS and EXTENDED_HEADERS, and every command.
fn structured(served: &Served) -> Vec<Turn> {
    let (address, recording) = recorder(format!("127.0.0.1:{}", served.port()));
    let mut nbdsh = peer("nbdsh");
    nbdsh.env("URI", format!("nbd://{address}/one"));
    run(nbdsh, ["--command", include_str!("../scripts/conversation.py")]);
    recording.join().unwrap()
}

/// The old way to choose an export, and simple replies.
fn simple(served: &Served) -> Vec<Turn> {
    let (address, recording) = recorder(format!("127.0.0.1:{}", served.port()));
    let stream = TcpStream::connect(address).unwrap();
    let export = nbd::client::handshake(&stream, b"one").unwrap();
    let mut client = nbd::client::NbdClient::new(&stream, &export);
    client.write_all(&[7; 5000]).unwrap();
    client.flush().unwrap();
    client.read_exact(&mut [0; 70_000]).unwrap();
    drop(stream);
    recording.join().unwrap()
}

#[test]
fn reads_every_command() {
    let served = Served::start(Way::Tcp, &["--size", "4M", "--export", "one", "--read-only-export", "two"]);
    let captures = [structured(&served), simple(&served)].map(|conversation| {
        let capture = served.lab.path(&format!("{}.pcap", conversation.len()));
        write_capture(&capture, &conversation);
        assert_well_formed(&capture);
        let fields = ["nbd.hnd.opt", "nbd.hnd.reply", "nbd.type", "nbd.reply.type", "nbd.reply.flags.done"];
        let done = |packets: &[Vec<Vec<String>>]| {
            packets.iter().flat_map(|packet| &packet[4]).filter(|done| *done == "True").count()
        };
        let packets = dissect(&capture, &fields);
        ([0, 1, 2, 3].map(|field| column(&packets, field)), done(&packets))
    });
    let [([options, replies, commands, chunks], done), ([old, _, both, none], _)] = captures;
    // Each option stands with the client's words and with each reply to it.
    let distinct = |values: &[u64]| values.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(distinct(&options), [3, 6, 7, 8, 9, 10].into(), "LIST to SET_META_CONTEXT");
    assert_eq!(distinct(&replies), [1, 2, 3, 4].into(), "ACK, SERVER, INFO and META_CONTEXT");
    // A simple reply is shown with its request's command, chunks are not: what the script says, twice but for block
    // status, reads and DISC.
    let said = [1, 1, 1, 1, 3, 3, 5, 5, 6, 6, 6, 6, 6, 6, 4, 4, 7, 7, 0, 0, 0, 0, 2];
    assert_eq!(commands, said, "WRITE to DISC");
    assert_eq!(done, 6, "a last chunk for each block status and read");
    assert_eq!(distinct(&chunks), [1, 2, 5, 32769].into(), "DATA, HOLE, BLOCK_STATUS and ERROR");
    // EXPORT_NAME has no reply of its own form.
    assert_eq!(old, [1, 1], "EXPORT_NAME and what answers it");
    assert_eq!(both, [1, 1, 3, 3, 0, 0], "commands and their replies");
    assert!(none.is_empty(), "{none:?}");
    served.stop();
}

/// A hole's chunk that ends within its length: the dissector does notice what is wrong.
#[test]
fn sees_what_is_malformed() {
    let lab = Lab::new();
    let capture = lab.path("capture.pcap");
    let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2];
    bytes.extend([0; 8]);
    bytes.extend(10_u32.to_be_bytes());
    bytes.extend([0; 10]);
    write_capture(&capture, &[Turn { by_server: true, bytes }]);
    let packets = dissect(&capture, &["_ws.malformed", "_ws.expert.severity", "nbd.reply.type"]);
    let [packet] = &packets[..] else { panic!("{packets:?}") };
    assert!(
        !packet[0].is_empty() && packet[1].contains(&ERROR.to_owned()) && packet[2] == ["2"],
        "{packet:?}"
    );
}
