//! Clients that send without end and read nothing.

use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::Duration;

use super::{ELSEWHERE, beside, beside_to_the_end};
use crate::raw::{BLOCK_STATUS, Client, LIST, Mode, READ, TRIM, WRITE, encoded};

#[test]
fn options_without_end() {
    beside(|socket| {
        let mut client = Client::haggling(socket);
        let option = [&b"IHAVEOPT"[..], &99_u32.to_be_bytes(), &[0; 4]].concat();
        let mut writer = client.stream.try_clone().unwrap();
        let flood = std::thread::spawn(move || {
            // Until nobody takes them any more.
            while writer.write_all(&option).is_ok() {}
        });
        client.is_hung_up_on();
        flood.join().unwrap();
    });
}

/// Options whose answers nobody reads: the time for a handshake ends them.
#[test]
fn options_without_reading() {
    beside(|socket| {
        let option = [&b"IHAVEOPT"[..], &LIST.to_be_bytes(), &[0; 4]].concat().repeat(1000);
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let mut client = Client::haggling(socket);
                let option = option.clone();
                std::thread::spawn(move || while client.stream.write_all(&option).is_ok() {})
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
}

/// Asks for as much as fits into the sockets and then some, and reads nothing of it.
fn ask_and_never_read(socket: &Path, mode: Mode, command: u16, length: u64) -> Client {
    let client = Client::ready_in(socket, mode);
    let data = if command == WRITE { vec![1; usize::try_from(length).unwrap()] } else { Vec::new() };
    let request = encoded(mode, 0, command, 1, ELSEWHERE, length, &data);
    let requests = request.repeat((2 << 20) / request.len());
    client.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    for _ in 0..1000 {
        if let Err(error) = (&client.stream).write_all(&requests) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            return client;
        }
    }
    panic!("the server takes 2 GB of requests whose replies nobody reads");
}

#[test]
fn requests_without_reading() {
    beside(|socket| {
        for mode in Mode::ALL {
            let mut kinds =
                vec![(READ, 1 << 20), (READ, 1), (READ, u32::MAX.into()), (TRIM, 1 << 20), (WRITE, 512)];
            if mode != Mode::Simple {
                kinds.push((BLOCK_STATUS, 1 << 20));
            }
            let clients: Vec<Client> = std::thread::scope(|scope| {
                let ask = |(command, length)| {
                    scope.spawn(move || ask_and_never_read(socket, mode, command, length))
                };
                let asking: Vec<_> = kinds.into_iter().map(ask).collect();
                asking.into_iter().map(|client| client.join().unwrap()).collect()
            });
            drop(clients);
        }
    });
}

/// It may hold up the end as long as others may to finish; then it is cut.
#[test]
fn requests_without_reading_until_the_end() {
    let record = beside_to_the_end(|socket| ask_and_never_read(socket, Mode::Simple, READ, 1 << 20));
    assert_eq!(record["connections_cut"], 1, "{record}");
}
