//! A connection over a socket pair, in each form of replies.

mod batches;
mod device;
mod lanes;
mod peer;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use self::device::{BLOCK, Device, SIZE};
use self::peer::{DF, FUA, PAYLOAD_LEN, Part, Peer, REQ_ONE};
use super::super::buffers::PIECE;
use super::super::crew::MOST;
use super::super::processors::Seats;
use super::super::socket::Socket;
use super::super::{Agreed, Replies};
use super::*;
use crate::nbd::wire::Command;

const FORMS: [Replies; 3] = [Replies::Simple, Replies::Structured, Replies::Extended];
const LONG: Duration = Duration::from_secs(60);

struct Server {
    /// Runs the overseer.
    runtime: Runtime,
    overseer: Arc<Overseer>,
    device: Arc<Device>,
    /// As many threads have a processor to help.
    helpers: usize,
}

/// What a test sees of a connection.
struct Attached {
    peer: Peer,
    connection: Arc<Connection>,
    /// Closed once the connection's last thread has ended.
    ended: mpsc::Receiver<()>,
}

impl Server {
    fn start() -> Self {
        let server = Self::without_overseer();
        let overseer = server.overseer.clone();
        server.runtime.spawn(async move { overseer.run().await });
        server
    }

    /// It never adds a thread, and sends none home.
    fn without_overseer() -> Self {
        let runtime = Runtime::new().unwrap();
        Self { runtime, overseer: Arc::default(), device: Arc::default(), helpers: 8 }
    }

    fn attach(&self, replies: Replies) -> Attached {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(LONG)).unwrap();
        let device = self.device.clone();
        let export = Export { name: String::new(), description: String::new(), device, read_only: false };
        let agreed = Agreed { replies, allocation: replies != Replies::Simple };
        let told = ConnectionDescription::of(&export, agreed);
        let link = Link::Plain(Socket::Unix(ours));
        let connection = Connection::new(link, told, Arc::new(export), None, self.overseer.clone());
        let helpers = Box::leak(Box::new(Seats::new(self.helpers)));
        let connection = Arc::new(Connection { helpers, ..connection });
        let (registration, ended) = mpsc::channel();
        start(&connection, Arc::new(Closes(registration, Arc::downgrade(&connection)))).unwrap();
        Attached { peer: Peer::new(theirs, replies), connection, ended }
    }
}

/// As the server's own registration does.
struct Closes(
    #[expect(dead_code, reason = "closed when it is dropped")] mpsc::Sender<()>,
    std::sync::Weak<Connection>,
);

impl Drop for Closes {
    fn drop(&mut self) {
        if let Some(connection) = self.1.upgrade() {
            connection.close();
        }
    }
}

impl Attached {
    fn assert_ends(mut self) {
        self.peer.assert_closed();
        assert_eq!(self.ended.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
        assert_eq!(self.connection.crew.threads(), 0);
    }

    fn await_threads(&self, wanted: impl Fn(usize) -> bool) {
        until(|| wanted(self.connection.crew.threads()), || self.connection.crew.threads());
    }

    fn await_held(&self, wanted: impl Fn(usize) -> bool) {
        until(|| wanted(self.connection.pool.held()), || self.connection.pool.held());
    }
}

fn until(holds: impl Fn() -> bool, found: impl Fn() -> usize) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{}", found());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + seed + at / 251) % 255).unwrap() + 1).collect()
}

#[test]
fn every_command_is_served_in_every_form() {
    for form in FORMS {
        let server = Server::start();
        let mut client = server.attach(form);
        let peer = &mut client.peer;
        let data = pattern(3 * PIECE + 77, 1);
        assert_eq!(peer.write(0, 5, &data).error(), 0);
        let read = peer.done(Command::READ, 0, 5, data.len() as u64);
        assert!(read.data(5, data.len()) == data);
        assert_eq!(peer.write(FUA, 5, &data[..100]).error(), 0);
        assert_eq!(server.device.flushes.load(Ordering::SeqCst), 1);
        assert_eq!(peer.write(FUA, 5, &data).error(), 0, "one that comes in pieces");
        assert_eq!(server.device.flushes.load(Ordering::SeqCst), 2);
        assert_eq!(peer.done(Command::FLUSH, 0, 0, 0).error(), 0);
        assert_eq!(server.device.flushes.load(Ordering::SeqCst), 3);
        assert_eq!(peer.done(Command::CACHE, FUA, 0, SIZE).error(), 0);
        assert_eq!(peer.done(Command::TRIM, 0, 0, BLOCK as u64).error(), 0);
        assert_eq!(peer.done(Command::WRITE_ZEROES, 2, 7, 9).error(), 0);
        assert_eq!(peer.done(Command::WRITE_ZEROES, 16, 7, 9).error(), 95);
        let mut expected = data[BLOCK - 5..BLOCK + 5].to_vec();
        assert_eq!(peer.done(Command::WRITE_ZEROES, FUA, BLOCK as u64 + 2, 3).error(), 0);
        expected[2..5].fill(0);
        assert_eq!(peer.done(Command::READ, 0, BLOCK as u64, 10).data(BLOCK as u64, 10), expected);
        for nothing in [Command::READ, Command::TRIM, Command::CACHE, Command::WRITE_ZEROES] {
            assert_eq!(peer.done(nothing, 0, 3, 0).error(), 0, "a length of zero");
        }
        assert_eq!(peer.write(0, 3, &[]).error(), 0);
        assert_eq!(peer.done(Command(77), 0, 0, 1).error(), 22);
        assert_eq!(peer.done(Command::READ, 0, SIZE, 1).error(), 22);
        assert_eq!(peer.write(0, SIZE, &[1]).error(), 28);
        assert_eq!(peer.write(0, SIZE - 1, &data).error(), 28, "its data is passed over");
        assert_eq!(peer.done(Command::READ, FUA, SIZE - 1, 1).data(SIZE - 1, 1), [0]);
        let (_, disconnect) = peer.request(Command::DISC, 0, 0, 0);
        peer.stream.write_all(&disconnect).unwrap();
        client.assert_ends();
    }
}

#[test]
fn small_requests_that_come_together_are_served_by_one_thread_in_their_order() {
    for form in FORMS {
        // Which would take a processor that is not to be had for a thread that is stuck.
        let server = Server::without_overseer();
        let mut client = server.attach(form);
        let peer = &mut client.peer;
        let block = BLOCK as u64;
        let payload = if form == Replies::Extended { PAYLOAD_LEN } else { 0 };
        let (mut all, mut asked) = (Vec::new(), Vec::new());
        let mut ask = |peer: &mut Peer, command, flags, offset, length, data: &[u8]| {
            let (cookie, bytes) = peer.request(command, flags, offset, length);
            all.extend([&bytes, data].concat());
            asked.push(cookie);
        };
        // Less than makes a batch.
        for number in 0..15 {
            let data = pattern(BLOCK, number);
            ask(peer, Command::WRITE, payload, number as u64 * block, block, &data);
            ask(peer, Command::READ, 0, number as u64 * block, block, &[]);
        }
        ask(peer, Command::READ, 0, 50 * block, block, &[]);
        ask(peer, Command::READ, 0, 14 * block + 100, block, &[]);
        server.device.bad.store(60 * block, Ordering::SeqCst);
        ask(peer, Command::WRITE, payload, 60 * block, 1, &[7]);
        peer.stream.write_all(&all).unwrap();
        for (number, cookie) in asked.iter().enumerate() {
            let reply = peer.reply();
            assert_eq!(reply.cookie, *cookie, "{form:?}: answered in the order of the requests");
            match number {
                30 if form != Replies::Simple => assert!(matches!(reply.parts[..], [Part::Hole(..)])),
                30 => assert_eq!(reply.data(50 * block, BLOCK), vec![0; BLOCK]),
                31 => {
                    assert_eq!(reply.data(14 * block + 100, BLOCK)[..BLOCK - 100], pattern(BLOCK, 14)[100..]);
                }
                32 => assert_eq!(reply.error(), 5),
                _ if number % 2 == 0 => assert_eq!(reply.error(), 0),
                _ => {
                    let written = number / 2;
                    assert!(reply.data((written * BLOCK) as u64, BLOCK) == pattern(BLOCK, written));
                }
            }
        }
        assert_eq!(client.connection.crew.threads(), 1, "nobody else was woken");
    }
}

#[test]
fn holes_are_told_instead_of_sent() {
    for form in [Replies::Structured, Replies::Extended] {
        let server = Server::start();
        let mut client = server.attach(form);
        let peer = &mut client.peer;
        let (data, start) = (pattern(2 * BLOCK, 3), PIECE - BLOCK);
        assert_eq!(peer.write(0, start as u64, &data).error(), 0);
        // Its last piece ends in a part of a block that is a hole, and too short to be told.
        let length = 2 * PIECE + 100;
        let read = peer.done(Command::READ, 0, 0, length as u64);
        let (at, piece) = (start as u64, PIECE as u64);
        let expected = [
            Part::Hole(0, at),
            Part::Data(at, data[..BLOCK].to_vec()),
            Part::Data(piece, data[BLOCK..].to_vec()),
            Part::Hole(piece + BLOCK as u64, piece - BLOCK as u64),
            Part::Data(2 * piece, vec![0; 100]),
        ];
        assert!(read.parts == expected);
        let unfragmented = peer.done(Command::READ, DF, at - 1, piece);
        let [Part::Data(_, bytes)] = &unfragmented.parts[..] else { panic!("{unfragmented:?}") };
        assert!(
            bytes[0] == 0
                && bytes[1..=2 * BLOCK] == data
                && bytes[2 * BLOCK + 1..].iter().all(|byte| *byte == 0)
        );
        assert_eq!(peer.done(Command::READ, DF, 0, piece + 1).parts, [Part::Error(75)]);
    }
}

#[test]
fn extents_are_described() {
    for form in [Replies::Structured, Replies::Extended] {
        let server = Server::start();
        let mut client = server.attach(form);
        let peer = &mut client.peer;
        let block = BLOCK as u64;
        assert_eq!(peer.write(0, 2 * block, &[1]).error(), 0);
        let all = [(2 * block, 3), (block, 0), (SIZE - 3 * block, 3)];
        let status = |reply: peer::Reply| match reply.parts.into_iter().next() {
            Some(Part::Status(extents)) => extents,
            other => panic!("{other:?}"),
        };
        assert_eq!(status(peer.done(Command::BLOCK_STATUS, 0, 0, SIZE)), all);
        assert_eq!(status(peer.done(Command::BLOCK_STATUS, REQ_ONE, 5, SIZE - 5)), [(2 * block - 5, 3)]);
        assert_eq!(status(peer.done(Command::BLOCK_STATUS, 0, 2 * block, 5)), [(5, 0)]);
        assert_eq!(peer.done(Command::BLOCK_STATUS, 0, 0, 0).parts, [Part::Error(22)]);
        assert_eq!(peer.done(Command::BLOCK_STATUS, 0, 1, SIZE).parts, [Part::Error(22)]);
        // More extents than a reply has room for: it tells of the first ones.
        for at in (0..SIZE).step_by(2 * BLOCK) {
            assert_eq!(peer.write(0, at, &[1]).error(), 0);
        }
        let many = status(peer.done(Command::BLOCK_STATUS, 0, 0, SIZE));
        assert!(many.len() > 1000 && many.len() < 2048);
        assert!(many.iter().all(|(length, _)| *length == block));
    }
}

#[test]
fn a_filter_limits_a_status_to_the_context_it_names() {
    let server = Server::start();
    let mut client = server.attach(Replies::Extended);
    let peer = &mut client.peer;
    let ask = |peer: &mut Peer, effect: u64, contexts: &[u32]| {
        let mut payload = effect.to_be_bytes().to_vec();
        contexts.iter().for_each(|context| payload.extend(context.to_be_bytes()));
        let (cookie, header) = peer.request(Command::BLOCK_STATUS, PAYLOAD_LEN, 0, payload.len() as u64);
        peer.stream.write_all(&[header, payload].concat()).unwrap();
        let reply = peer.reply();
        assert_eq!(reply.cookie, cookie);
        reply.parts
    };
    assert_eq!(ask(peer, SIZE, &[1]), [Part::Status(vec![(SIZE, 3)])]);
    for (effect, contexts) in [(SIZE, &[2][..]), (SIZE, &[]), (SIZE, &[1, 1]), (SIZE + 1, &[1]), (0, &[1])] {
        assert_eq!(ask(peer, effect, contexts), [Part::Error(22)]);
    }
}

#[test]
fn a_payload_that_nobody_expects_is_passed_over() {
    let server = Server::start();
    let mut client = server.attach(Replies::Extended);
    let peer = &mut client.peer;
    for command in [Command::READ, Command::FLUSH, Command::TRIM, Command::BLOCK_STATUS, Command(99)] {
        for length in [0_usize, 1, 13, 100_000] {
            let (cookie, header) = peer.request(command, PAYLOAD_LEN, 0, length as u64);
            peer.stream.write_all(&[header, vec![0x25; length]].concat()).unwrap();
            let reply = peer.reply();
            assert_eq!((reply.cookie, reply.error()), (cookie, 22));
        }
    }
    let (cookie, header) = peer.request(Command::WRITE, 0, 0, 3);
    peer.stream.write_all(&[&header[..], b"abc"].concat()).unwrap();
    assert_eq!((peer.reply().error(), cookie > 0), (0, true), "a write has a payload even without the flag");
    assert_eq!(peer.done(Command::READ, 0, 0, 3).data(0, 3), b"abc");
}

#[test]
fn an_error_in_a_later_piece_is_told_in_chunks_and_ends_a_simple_reply() {
    for form in FORMS {
        let server = Server::start();
        let mut client = server.attach(form);
        let peer = &mut client.peer;
        let data = pattern(3 * PIECE, 9);
        assert_eq!(peer.write(0, 0, &data).error(), 0);
        let piece = PIECE as u64;
        server.device.bad.store(2 * piece + 5, Ordering::SeqCst);
        assert_eq!(peer.done(Command::READ, 0, 2 * piece, 10).error(), 5);
        assert_eq!(peer.write(0, 2 * piece, &data[..10]).error(), 5);
        assert_eq!(peer.write(0, 0, &data).error(), 5, "in its third piece");
        if form != Replies::Simple {
            let reply = peer.done(Command::READ, 0, 0, 3 * piece);
            assert_eq!(reply.parts.last(), Some(&Part::ErrorAt(5, 2 * piece)));
            let read = reply.data(0, 3 * PIECE);
            assert!(read[..2 * PIECE] == data[..2 * PIECE], "what came before is valid");
            continue;
        }
        peer.ask(Command::READ, 0, 0, 3 * piece);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut peer.stream, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 16 + 2 * PIECE);
        client.assert_ends();
    }
}

#[test]
fn as_many_as_128_requests_are_served_at_once_and_answered_in_any_order() {
    for form in FORMS {
        let server = Server::start();
        let mut client = server.attach(form);
        server.device.close_gate();
        // With 128 KiB each, as the kernel's client sends them.
        for number in 0..128_u64 {
            client.peer.ask(Command::READ, 0, number, 128 << 10);
        }
        server.device.await_stuck(128);
        // One more that does not read: it is not held up by those that are stuck.
        let flush = client.peer.ask(Command::FLUSH, 0, 0, 0);
        let first = client.peer.reply();
        assert_eq!((first.cookie, first.error()), (flush, 0));
        server.device.open_gate();
        for _ in 0..128 {
            assert_eq!(client.peer.reply().error(), 0);
        }
        assert_eq!(client.peer.outstanding(), 0);
    }
}

#[test]
fn threads_and_buffers_come_with_need_and_go_without() {
    let server = Server::start();
    let mut client = server.attach(Replies::Structured);
    assert_eq!(client.connection.crew.threads(), 1, "an idle connection");
    server.device.close_gate();
    for _ in 0..60 {
        client.peer.ask(Command::READ, 0, 0, 64 << 10);
    }
    server.device.await_stuck(60);
    assert!((60..=MOST).contains(&client.connection.crew.threads()));
    server.device.open_gate();
    for _ in 0..60 {
        client.peer.reply();
    }
    client.await_threads(|threads| threads == 1);
    // Threads may be gone before it is looked for buffers that nobody uses.
    client.await_held(|bytes| bytes <= PIECE);
    assert_eq!(client.peer.done(Command::READ, 0, 0, 1).error(), 0, "and it goes on");
    client.await_threads(|threads| threads == 1);
    // A connection that is kept busy by one request at a time needs few.
    for _ in 0..300 {
        assert_eq!(client.peer.done(Command::READ, 0, 0, 1).error(), 0);
        assert!(client.connection.crew.threads() <= STEADY);
    }
}

#[test]
fn a_client_that_does_not_read_costs_itself_only() {
    let server = Server::start();
    let flooding = server.attach(Replies::Simple);
    let mut peer = flooding.peer;
    let (mut sender, piece) = (peer.stream.try_clone().unwrap(), PIECE as u64);
    let requests: Vec<u8> = (0..2000).flat_map(|_| peer.request(Command::READ, 0, 0, piece).1).collect();
    let sending = std::thread::spawn(move || sender.write_all(&requests).is_ok());
    let mut other = server.attach(Replies::Extended);
    for _ in 0..100 {
        assert_eq!(other.peer.done(Command::READ, 0, 0, 2 * piece).error(), 0);
        assert!(flooding.connection.pool.held() <= 16 * PIECE);
        assert!(flooding.connection.crew.threads() <= 17, "more threads would only stand in line");
    }
    // It reads after all, and gets everything.
    for _ in 0..2000 {
        assert_eq!(peer.reply().error(), 0);
    }
    assert!(sending.join().unwrap());
}

#[test]
fn at_the_end_what_is_served_is_answered_and_what_was_read_ahead_is_refused() {
    for form in FORMS {
        let server = Server::start();
        let mut client = server.attach(form);
        server.device.close_gate();
        let requests: Vec<u8> =
            (0..300).flat_map(|_| client.peer.request(Command::READ, 0, 0, 1).1).collect();
        client.peer.stream.write_all(&requests).unwrap();
        server.device.await_stuck(MOST);
        client.connection.begin_drain();
        server.device.open_gate();
        let mut errors: Vec<u32> = (0..300).map(|_| client.peer.reply().error()).collect();
        errors.sort_unstable();
        let served = errors.iter().filter(|error| **error == 0).count();
        assert_eq!(served, MOST);
        assert!(errors[served..].iter().all(|error| *error == 108));
        client.assert_ends();
    }
}

#[test]
fn bytes_that_are_no_request_end_the_connection_after_earlier_replies() {
    let other_form: [(Replies, &[u8]); 4] = [
        (Replies::Simple, b"\x21\xe4\x1c\x71"),
        (Replies::Structured, b"\x21\xe4\x1c\x71"),
        (Replies::Extended, b"\x25\x60\x95\x13"),
        (Replies::Extended, b"\0\0\0\0"),
    ];
    for (form, magic) in other_form {
        let server = Server::start();
        let mut client = server.attach(form);
        server.device.close_gate();
        for _ in 0..10 {
            client.peer.ask(Command::READ, 0, 0, 100);
        }
        client.peer.stream.write_all(&[magic, &[0; 28]].concat()).unwrap();
        server.device.await_stuck(10);
        server.device.open_gate();
        for _ in 0..10 {
            assert_eq!(client.peer.reply().error(), 0);
        }
        client.assert_ends();
    }
}

#[test]
fn a_payload_that_is_too_long_ends_the_connection_unread() {
    for (form, command, flags) in [
        (Replies::Simple, Command::WRITE, 0),
        (Replies::Extended, Command::WRITE, PAYLOAD_LEN),
        (Replies::Extended, Command::TRIM, PAYLOAD_LEN),
    ] {
        let server = Server::start();
        let mut client = server.attach(form);
        client.peer.ask(command, flags, 0, (64 << 20) + 1);
        client.assert_ends();
    }
}

#[test]
fn a_request_that_panics_ends_its_own_connection() {
    let server = Server::start();
    let (mut client, mut other) = (server.attach(Replies::Structured), server.attach(Replies::Simple));
    server.device.deadly.store(1000, Ordering::SeqCst);
    client.peer.ask(Command::READ, 0, 1000, 1);
    client.assert_ends();
    // One that has threads to spare, by a request that is changed where it lies before it is done.
    let mut client = server.attach(Replies::Structured);
    server.device.deadly.store(1000, Ordering::SeqCst);
    server.device.close_gate();
    for _ in 0..4 {
        client.peer.ask(Command::READ, 0, 0, 1);
    }
    server.device.await_stuck(4);
    let (_, bytes) = client.peer.request(Command::WRITE, 0, 998, 4);
    client.peer.stream.write_all(&[&bytes[..], &[7; 4]].concat()).unwrap();
    server.device.open_gate();
    let _ = client.peer.stream.read_to_end(&mut Vec::new());
    assert_eq!(client.ended.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
    assert_eq!(other.peer.done(Command::READ, 0, 998, 4).data(998, 4), [0; 4], "it is not tried again");
    assert_eq!(other.peer.done(Command::READ, 0, 0, 1).error(), 0);
}
