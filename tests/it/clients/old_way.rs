//! Clients that never leave the old way to choose an export, NBD_OPT_EXPORT_NAME.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use super::stops_in_order;
use crate::raw::{Client, EXPORT_NAME};
use crate::support::{Lab, Volume};

/// The only client here that is Rust.
#[test]
fn the_nbd_crate() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "4M", "--export", "old"]);
    let stream = UnixStream::connect(volume.socket()).unwrap();
    let export = nbd::client::handshake(&stream, b"old").unwrap();
    assert_eq!((export.size, export.readonly, export.send_flush), (4 << 20, false, true));
    let mut client = nbd::client::NbdClient::new(&stream, &export);
    let data: Vec<u8> = (0..100_000_u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    client.seek(SeekFrom::Start(12_345)).unwrap();
    client.write_all(&data).unwrap();
    client.flush().unwrap();
    client.seek(SeekFrom::Start(12_345)).unwrap();
    let mut back = vec![0; data.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == data);
    drop(stream);
    stops_in_order(volume);
}

/// A client that came by NBD_OPT_EXPORT_NAME was told no block size, so it may ask for any bytes.
#[test]
fn odd_bytes_by_the_old_way() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "4M", "--export", "old", "--sector-size", "4096"]);
    for no_zeroes in [true, false] {
        let mut client = Client::greeted(&volume.socket());
        client.send(&(1 + 2 * u32::from(no_zeroes)).to_be_bytes());
        client.option(EXPORT_NAME, b"old");
        assert_eq!(u64::from_be_bytes(client.take().unwrap()), 4 << 20);
        let flags = u16::from_be_bytes(client.take().unwrap());
        assert_eq!(flags & 0b1_0000_0000 | flags & 1, 0b1_0000_0001, "HAS_FLAGS and CAN_MULTI_CONN");
        if !no_zeroes {
            assert_eq!(client.take().unwrap(), [0; 124]);
        }
        let data: Vec<u8> = (0..(1_u32 << 20) + 14).map(|i| u8::try_from(i % 247).unwrap()).collect();
        client.write(1, &data);
        assert_eq!(client.read(0, 1), [0], "the byte before");
        assert!(client.read(1, data.len()) == data);
        assert_eq!(client.read(1 + data.len() as u64, 9), [0; 9], "the bytes after");
    }
    stops_in_order(volume);
}
