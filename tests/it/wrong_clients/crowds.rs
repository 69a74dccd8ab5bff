//! Too many clients, and clients that come and go.

use super::beside;
use crate::raw::{Client, Mode, READ, header};

/// More clients than are served at once: the others wait, and are served when there is room again.
#[test]
fn a_crowd() {
    beside(|socket| {
        let crowd: Vec<Client> = (0..120).map(|_| Client::ready(socket)).collect();
        let waiting: Vec<Client> = (0..40).map(|_| Client::connect(socket)).collect();
        drop(crowd);
        for mut client in waiting {
            assert_eq!(&client.take::<18>().unwrap(), b"NBDMAGICIHAVEOPT\0\x03");
        }
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

/// A thousand that say nothing, and a thousand that go through the handshake as far as they get.
#[test]
fn a_thousand_at_once() {
    beside(|socket| {
        let silent: Vec<Client> = (0..1000).map(|_| Client::connect(socket)).collect();
        drop(silent);
        let hasty = (0..1000).map(|_| {
            let mut client = Client::connect(socket);
            client.send(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0");
            client
        });
        drop(hasty.collect::<Vec<Client>>());
        assert_eq!(Client::ready(socket).read(9 << 20, 1), [0]);
    });
}
