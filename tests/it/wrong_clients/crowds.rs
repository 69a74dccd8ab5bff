//! Too many clients, and clients that come and go.

use std::io::Read;

use super::{ELSEWHERE, beside, beside_with};
use crate::raw::{Client, GO, Mode, READ, encoded, header};

/// More clients than are served at once: the others wait, and are served when there is room again.
#[test]
fn a_crowd() {
    beside_with(&["--max-connections", "100"], |socket| {
        let crowd: Vec<Client> = (0..95).map(|_| Client::ready(socket)).collect();
        let waiting: Vec<Client> = (0..40).map(|_| Client::connect(socket)).collect();
        drop(crowd);
        for mut client in waiting {
            assert_eq!(&client.take::<18>().unwrap(), b"NBDMAGICIHAVEOPT\0\x03");
        }
    });
}

/// More clients than one peer may have: those that are served stay, and of those that have chosen nothing yet the
/// newest do.
#[test]
fn a_crowd_from_one_peer() {
    beside_with(&["--max-connections-per-peer", "50"], |socket| {
        let mut crowd: Vec<Client> = (0..45).map(|_| Client::ready(socket)).collect();
        let mut others: Vec<Client> = (0..40).map(|_| Client::haggling(socket)).collect();
        let chosen = others.split_off(36).into_iter().map(|mut client| client.choose(GO, ""));
        assert_eq!(
            chosen.filter(Result::is_ok).count(),
            4,
            "beyond 45 and the bystander, of which 50 may be"
        );
        for mut client in others {
            let _ = client.stream.read_to_end(&mut Vec::new());
        }
        assert!(crowd.iter_mut().all(|client| client.read(ELSEWHERE, 1) == [0]));
    });
}

/// A thousand that connect and say nothing, as many times over what one peer may have, keep nobody out.
#[test]
fn a_silent_crowd_from_one_peer() {
    beside(|socket| {
        let _silent: Vec<Client> = (0..1000).map(|_| Client::connect(socket)).collect();
        let mut honest = Client::ready(socket);
        assert_eq!(honest.read(ELSEWHERE, 1), [0]);
        honest.part();
    });
}

/// Whatever they have begun, nothing of it is left.
#[test]
fn clients_that_come_and_go() {
    beside(|socket| {
        for round in 0..500 {
            let mode = Mode::ALL[round % 3];
            drop(Client::connect(socket));
            drop(Client::haggling(socket));
            let mut client = Client::ready_in(socket, mode);
            match round % 4 {
                0 => {}
                1 => client.send(&header(0, READ, 1, 0, 512)[..13]),
                2 => drop(client.submit(0, READ, 0, 1 << 20, b"")),
                _ => drop((0..50).map(|_| client.submit(0, READ, 0, 1 << 18, b"")).collect::<Vec<_>>()),
            }
        }
    });
}

/// A thousand that say nothing, and a thousand that say all they have to say and go on at once to the next.
#[test]
fn a_thousand_at_once() {
    beside(|socket| {
        let silent: Vec<Client> = (0..1000).map(|_| Client::connect(socket)).collect();
        drop(silent);
        let hasty = (0..1000).map(|_| {
            let mut client = Client::connect(socket);
            // The server may have refused it already.
            let _ = std::io::Write::write_all(
                &mut client.stream,
                b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0",
            );
            client
        });
        drop(hasty.collect::<Vec<Client>>());
    });
}

/// As many as one peer may have go through the handshake, and each asks for all it can get without reading it: what
/// they cost is within the bound, and everybody else is served.
#[test]
fn a_crowd_that_asks_for_everything() {
    beside_with(&["--max-connections", "128"], |socket| {
        let crowd: Vec<Client> = (0..120).map(|_| Client::ready(socket)).collect();
        let reads = encoded(Mode::Simple, 0, READ, 1, 0, 16 << 20, b"").repeat(200);
        for client in &crowd {
            client.stream.set_nonblocking(true).unwrap();
            // As many as go into the socket.
            let _ = std::io::Write::write(&mut &client.stream, &reads).unwrap();
        }
        let mut honest = Client::ready(socket);
        assert_eq!(honest.read(ELSEWHERE, 1 << 20).len(), 1 << 20);
        honest.part();
    });
}
