//! Nonsense where TLS should begin. What comes in the clear after NBD_OPT_STARTTLS, and a second one, are among the
//! tests of TLS.

use std::net::Shutdown;
use std::path::Path;

use super::beside_in;
use crate::certificates::Certificates;
use crate::raw::{ACK, Client, LIST, header};
use crate::support::Lab;

const STARTTLS: u32 = 5;

/// Beside a client that does without TLS, which may.
fn beside_with_tls(misbehave: impl FnOnce(&Path)) {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let file = |name: &str| certificates.good.join(name).to_str().unwrap().to_string();
    let (certificate, key) = (file("server-cert.pem"), file("server-key.pem"));
    beside_in(&lab, &["--tls", "on", "--tls-cert", &certificate, "--tls-key", &key], misbehave);
}

/// TLS is agreed on, and the client is to begin with it.
fn before_tls(socket: &Path) -> Client {
    let mut client = Client::haggling(socket);
    client.option(STARTTLS, b"");
    assert_eq!(client.option_reply(STARTTLS), (ACK, Vec::new()));
    client
}

/// Of a real one, as far as its first lines go; the server cannot know yet that nothing good will come.
const HELLO: &[u8] = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";

#[test]
fn garbage_instead_of_tls() {
    beside_with_tls(|socket| {
        let option = [&b"IHAVEOPT"[..], &LIST.to_be_bytes(), &[0; 4]].concat();
        for garbage in
            [&[0xff; 4096][..], b"GET / HTTP/1.1\r\n\r\n", &option, &header(0, 0, 1, 0, 512), &[0; 64], HELLO]
        {
            let mut client = before_tls(socket);
            client.send(garbage);
            client.stream.shutdown(Shutdown::Write).unwrap();
            // A TLS alert at most, and no answer in the clear.
            let mut rest = Vec::new();
            let ended = std::io::Read::read_to_end(&mut client.stream, &mut rest);
            assert!(ended.is_ok() || ended.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
            assert!(rest.is_empty() || rest[0] == 0x15, "{rest:?}");
        }
    });
}

#[test]
fn clients_that_go_before_tls_begins() {
    beside_with_tls(|socket| {
        for round in 0..200 {
            let mut client = before_tls(socket);
            client.send(&HELLO[..round % HELLO.len()]);
        }
    });
}

/// The time for the handshake is for that of TLS as well.
#[test]
fn silence_instead_of_tls() {
    beside_with_tls(|socket| {
        let mut silent: Vec<Client> = (0..50).map(|_| before_tls(socket)).collect();
        for client in silent.iter_mut().skip(25) {
            client.send(HELLO);
        }
        silent.iter_mut().for_each(Client::is_hung_up_on);
    });
}
