use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use rustls::{ClientConnection, Stream};

use super::*;
use crate::nbd::server::tls::Tls;
use crate::nbd::server::tls::tests::Pair;

/// Both ends after the handshake: a server's, and a client's with its socket.
fn connected(
    version: &'static rustls::SupportedProtocolVersion,
) -> (TlsSocket, ClientConnection, UnixStream) {
    let pair = Pair::new();
    let tls = Tls::load(pair.settings()).unwrap();
    let mut client = pair.client(version);
    let mut server = ServerConnection::new(tls.config()).unwrap();
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let shaking = std::thread::spawn(move || {
        while server.is_handshaking() {
            server.complete_io(&mut ours).unwrap();
        }
        (ours, server)
    });
    while client.is_handshaking() {
        client.complete_io(&mut theirs).unwrap();
    }
    let (ours, server) = shaking.join().unwrap();
    (TlsSocket::new(Socket::Unix(ours), server), client, theirs)
}

const BOTH: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + at / 251) % 256).unwrap()).collect()
}

#[test]
fn both_directions_carry_megabytes_at_once() {
    for version in BOTH {
        let (server, mut client, mut stream) = connected(version);
        let data = pattern(5 << 20);
        std::thread::scope(|scope| {
            // An echo that reads and writes in threads of their own, through a pipe.
            let (pass, passed) = std::sync::mpsc::channel::<Vec<u8>>();
            let server = &server;
            scope.spawn(move || {
                let mut buffer = vec![0; 300_000];
                loop {
                    match { server }.read(&mut buffer).unwrap() {
                        0 => return,
                        count => pass.send(buffer[..count].to_vec()).unwrap(),
                    }
                }
            });
            scope.spawn(move || {
                for part in passed {
                    let (head, tail) = part.split_at(part.len() / 3);
                    let mut slices = &mut [IoSlice::new(head), IoSlice::new(tail)][..];
                    IoSlice::advance_slices(&mut slices, 0);
                    while !slices.is_empty() {
                        let count = { server }.write_vectored(slices).unwrap();
                        IoSlice::advance_slices(&mut slices, count);
                    }
                }
                server.shutdown(Shutdown::Both);
            });
            let mut echoed = Vec::new();
            for part in data.chunks(700_000) {
                Stream::new(&mut client, &mut stream).write_all(part).unwrap();
                let mut back = vec![0; part.len()];
                Stream::new(&mut client, &mut stream).read_exact(&mut back).unwrap();
                echoed.extend(back);
            }
            assert!(echoed == data, "{version:?}");
            client.send_close_notify();
            client.write_tls(&mut stream).unwrap();
            // The orderly end comes back.
            assert_eq!(Stream::new(&mut client, &mut stream).read(&mut [0]).unwrap(), 0);
        });
    }
}

#[test]
fn no_cipher_of_tls_1_2_wears_its_key_out() {
    let (server, ..) = connected(&rustls::version::TLS12);
    let suite = server.session.lock().unwrap().negotiated_cipher_suite().unwrap();
    let name = format!("{:?}", suite.suite());
    assert!(name.contains("CHACHA20_POLY1305"), "{name}, which the client would rather not have");
    // In TLS 1.3 keys are changed, and the client has what it likes best.
    let (server, ..) = connected(&rustls::version::TLS13);
    let suite = server.session.lock().unwrap().negotiated_cipher_suite().unwrap();
    assert!(format!("{:?}", suite.suite()).contains("AES_256_GCM"));
}

#[test]
fn what_came_with_the_handshake_is_not_lost() {
    let (server, mut client, mut stream) = connected(&rustls::version::TLS13);
    client.writer().write_all(b"early bird").unwrap();
    client.write_tls(&mut stream).unwrap();
    // As if the handshake's last read had taken it from the socket already, a part of it deciphered.
    {
        let mut session = server.session.lock().unwrap();
        while session.process_new_packets().unwrap().plaintext_bytes_to_read() == 0 {
            session.read_tls(&mut { &server.socket }).unwrap();
        }
    }
    let mut word = [0; 5];
    { &server }.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"early");
    { &server }.read_exact(&mut word).unwrap();
    assert_eq!(&word, b" bird");
}

#[test]
fn an_end_without_farewell_is_an_error() {
    for version in BOTH {
        let (server, mut client, mut stream) = connected(version);
        client.writer().write_all(b"hal").unwrap();
        client.write_tls(&mut stream).unwrap();
        drop(stream);
        let mut word = [0; 4];
        assert_eq!({ &server }.read(&mut word).unwrap(), 3);
        assert_eq!({ &server }.read(&mut word).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn who_has_ended_reading_meets_an_end_and_can_still_write() {
    let (server, mut client, mut stream) = connected(&rustls::version::TLS13);
    client.writer().write_all(b"last").unwrap();
    client.write_tls(&mut stream).unwrap();
    let mut word = [0; 4];
    { &server }.read_exact(&mut word).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| { &server }.read(&mut [0; 4]));
        std::thread::sleep(Duration::from_millis(50));
        server.shutdown(Shutdown::Read);
        assert_eq!(reader.join().unwrap().unwrap(), 0);
    });
    { &server }.write_all(b"reply").unwrap();
    let mut word = [0; 5];
    Stream::new(&mut client, &mut stream).read_exact(&mut word).unwrap();
    assert_eq!(&word, b"reply");
}

#[test]
fn a_record_that_somebody_changed_ends_the_stream_with_an_alert() {
    for version in BOTH {
        let (server, mut client, mut stream) = connected(version);
        let mut records = Vec::new();
        for message in [b"true", b"fake"] {
            client.writer().write_all(message).unwrap();
            client.write_tls(&mut records).unwrap();
        }
        *records.last_mut().unwrap() ^= 1;
        stream.write_all(&records).unwrap();
        let mut word = [0; 8];
        assert_eq!({ &server }.read(&mut word).unwrap(), 4);
        assert_eq!(word[..4], *b"true");
        assert_eq!({ &server }.read(&mut word).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let told = Stream::new(&mut client, &mut stream).read(&mut word).unwrap_err();
        assert!(told.to_string().contains("BadRecordMac"), "{told}");
    }
}

#[test]
fn keys_are_updated_on_the_way_in_both_directions() {
    let (server, mut client, mut stream) = connected(&rustls::version::TLS13);
    for round in 0..4_u8 {
        client.refresh_traffic_keys().unwrap();
        Stream::new(&mut client, &mut stream).write_all(&[round; 9]).unwrap();
        let mut word = [0; 9];
        { &server }.read_exact(&mut word).unwrap();
        assert_eq!(word, [round; 9]);
        // The client asks for the server's new keys too: they come before these bytes, or the client errs.
        { &server }.write_all(&word).unwrap();
        Stream::new(&mut client, &mut stream).read_exact(&mut word).unwrap();
        assert_eq!(word, [round; 9]);
    }
}

#[test]
fn a_farewell_waits_for_nobody() {
    let (server, _client, _stream) = connected(&rustls::version::TLS13);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // Until the socket takes no more, and then until it is shut down.
            while { &server }.write_all(&[0; 1 << 16]).is_ok() {}
        });
        while server.outgoing.try_lock().is_ok() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(100));
        server.shutdown(Shutdown::Both);
        writer.join().unwrap();
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// However the bytes are cut on their way.
    #[test]
    fn any_reads_meet_any_writes(
        writes in prop::collection::vec(1..40_000_usize, 1..20),
        reads in prop::collection::vec(1..50_000_usize, 1..10),
        packet in 1..5000_usize,
    ) {
        let (server, mut client, mut stream) = connected(&rustls::version::TLS13);
        let data = pattern(writes.iter().sum());
        let sent = data.clone();
        let sender = std::thread::spawn(move || {
            let mut rest = &sent[..];
            for length in writes {
                let (part, more) = rest.split_at(length);
                rest = more;
                client.writer().write_all(part).unwrap();
                let mut records = Vec::new();
                while client.wants_write() {
                    client.write_tls(&mut records).unwrap();
                }
                for packet in records.chunks(packet) {
                    stream.write_all(packet).unwrap();
                }
            }
            client.send_close_notify();
            client.write_tls(&mut stream).unwrap();
            stream
        });
        let mut received: Vec<u8> = Vec::new();
        for length in reads.iter().cycle() {
            let mut buffer = vec![0; *length];
            match { &server }.read(&mut buffer).unwrap() {
                0 => break,
                count => received.extend(&buffer[..count]),
            }
        }
        prop_assert!(received == data);
        sender.join().unwrap();
    }
}
