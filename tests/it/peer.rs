//! Servers that are no KMS, and one that stands between a KMS and its client.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::support::PATIENCE;

/// Listens until the test process ends: what comes after a test's end reaches nobody.
fn listen(mut attend: impl FnMut(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().flatten().for_each(&mut attend));
    address
}

/// An address where nobody listens.
pub(crate) fn nobody() -> String {
    // Other tests listen on other addresses, so the port stays as free as it is now.
    TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap().to_string()
}

/// Takes connections and requests, and never answers.
pub(crate) fn silent() -> String {
    let mut kept = Vec::new();
    listen(move |stream| kept.push(stream))
}

/// Answers every request with these bytes, and hangs up.
pub(crate) fn parrot(answer: Vec<u8>) -> String {
    listen(move |mut stream| {
        // A client may hang up at any point of this.
        let _ = message(&mut stream).map(|_| stream.write_all(&answer));
    })
}

/// Speaks first, and hangs up.
pub(crate) fn shouter(words: Vec<u8>) -> String {
    listen(move |mut stream| {
        let _ = stream.write_all(&words);
    })
}

/// An HTTP answer.
pub(crate) fn http(status: &str, kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Passes requests on to `server`, and its answers back through `change`, which sees the request too.
pub(crate) fn proxy(server: String, change: impl Fn(&[u8], &mut Vec<u8>) + Clone + Send + 'static) -> String {
    interrupter(server, move |request, answer| {
        change(request, answer);
        true
    })
}

/// As [`proxy`], and hangs up on the client after an answer for which `change` gives `false`.
pub(crate) fn interrupter(
    server: String,
    change: impl Fn(&[u8], &mut Vec<u8>) -> bool + Clone + Send + 'static,
) -> String {
    listen(move |mut client| {
        let mut server = TcpStream::connect(&server).unwrap();
        let change = change.clone();
        std::thread::spawn(move || {
            while let Some(request) = message(&mut client) {
                server.write_all(&request).unwrap();
                let Some(mut answer) = message(&mut server) else { break };
                let go_on = change(&request, &mut answer);
                if client.write_all(&answer).is_err() || !go_on {
                    break;
                }
            }
        });
    })
}

/// Reads one HTTP message with a body of known length; `None` when the other side has hung up.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    bytes.extend(body);
    Some(bytes)
}
