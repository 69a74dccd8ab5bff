//! Small requests that move much together.

use super::*;

const LENGTH: usize = 32 << 10;
/// Reads that need not wait, after which there may be batches.
const MANY: u64 = 40;

fn warm_up(peer: &mut Peer) {
    for _ in 0..MANY {
        assert_eq!(peer.done(Command::READ, 0, 0, 1).error(), 0);
    }
}

/// Sends requests in one go.
pub(super) fn ask_all(peer: &mut Peer, requests: &[(Command, u16, u64, u64, &[u8])]) -> Vec<u64> {
    let mut all = Vec::new();
    let mut cookies = Vec::new();
    for (command, flags, offset, length, data) in requests {
        let (cookie, bytes) = peer.request(*command, *flags, *offset, *length);
        all.extend([&bytes, *data].concat());
        cookies.push(cookie);
    }
    peer.stream.write_all(&all).unwrap();
    cookies
}

pub(super) fn replies(peer: &mut Peer, count: usize) -> std::collections::HashMap<u64, peer::Reply> {
    let replies: std::collections::HashMap<_, _> =
        (0..count).map(|_| peer.reply()).map(|reply| (reply.cookie, reply)).collect();
    assert_eq!(replies.len(), count, "each once");
    replies
}

#[test]
fn each_request_of_a_batch_is_answered_with_what_it_asked_for() {
    for form in FORMS {
        let server = Server::without_overseer();
        let mut client = server.attach(form);
        let peer = &mut client.peer;
        let (size, flags) = (LENGTH as u64, if form == Replies::Extended { PAYLOAD_LEN } else { 0 });
        warm_up(peer);
        assert_eq!(client.connection.crew.threads(), 1);
        for round in 0..20 {
            let once = round == 0;
            let data: Vec<_> = (0..4).map(|number| pattern(LENGTH, 10 * round + number)).collect();
            let writes: Vec<_> = (0..4)
                .map(|number| (Command::WRITE, flags, number as u64 * size, size, &data[number][..]))
                .collect();
            ask_all(peer, &writes);
            replies(peer, 4).values().for_each(|reply| assert_eq!(reply.error(), 0));
            // The fifth is a hole, the sixth one in part, the seventh past the end, the last one fails.
            server.device.bad.store(40 * size, Ordering::SeqCst);
            let offsets =
                [0, size, 2 * size, 3 * size, 30 * size, 4 * size - BLOCK as u64, SIZE - 1, 40 * size];
            let reads = offsets.map(|offset| (Command::READ, 0, offset, size, &[][..]));
            let cookies = ask_all(peer, &reads);
            let replies = replies(peer, reads.len());
            for (number, cookie) in cookies.iter().enumerate() {
                let (reply, offset) = (&replies[cookie], offsets[number]);
                match number {
                    0..4 => assert!(reply.data(offset, LENGTH) == data[number]),
                    4 if form != Replies::Simple => assert!(matches!(reply.parts[..], [Part::Hole(..)])),
                    4 => assert_eq!(reply.data(offset, LENGTH), vec![0; LENGTH]),
                    5 => {
                        let read = reply.data(offset, LENGTH);
                        assert!(read[..BLOCK] == data[3][LENGTH - BLOCK..]);
                        assert!(read[BLOCK..].iter().all(|byte| *byte == 0));
                    }
                    6 => assert_eq!(reply.error(), 22),
                    _ => assert_eq!(reply.error(), 5),
                }
            }
            // Later on, it may have been sent home between two rounds.
            assert!(!once || client.connection.crew.threads() > 1, "the turn was passed on");
        }
        assert_eq!(client.peer.outstanding(), 0);
    }
}

/// Where no processor is left for it, nobody is woken.
#[test]
fn one_thread_serves_much_by_itself_where_there_is_no_helper() {
    for form in FORMS {
        let server = Server { helpers: 0, ..Server::without_overseer() };
        let mut client = server.attach(form);
        warm_up(&mut client.peer);
        let flags = if form == Replies::Extended { PAYLOAD_LEN } else { 0 };
        // No more than a socket holds.
        let (size, data) = (LENGTH as u64, pattern(LENGTH, 3));
        for holds_writes in [false, true] {
            assert_eq!(client.connection.crew.threads(), 1);
            // By a batch then, while it cannot be told whether they wait. On a busy machine one may seem to have waited, and
            // what follows is left to others.
            server.device.holds_writes.store(holds_writes, Ordering::SeqCst);
            for _ in 0..20 {
                let writes: Vec<_> =
                    (0..4).map(|number| (Command::WRITE, flags, number * size, size, &data[..])).collect();
                ask_all(&mut client.peer, &writes);
                replies(&mut client.peer, 4).values().for_each(|reply| assert_eq!(reply.error(), 0));
                let reads: Vec<_> =
                    (0..4).map(|number| (Command::READ, 0, number * size, size, &[][..])).collect();
                let cookies = ask_all(&mut client.peer, &reads);
                let replies = replies(&mut client.peer, 4);
                for (cookie, (_, _, offset, ..)) in cookies.iter().zip(reads) {
                    assert!(replies[cookie].data(offset, LENGTH) == data);
                }
            }
        }
    }
}

/// As one does that sends all it has first.
#[test]
fn a_client_that_reads_no_replies_before_it_has_sent_all_is_received_from() {
    for form in FORMS {
        let server = Server { helpers: 0, ..Server::without_overseer() };
        let mut client = server.attach(form);
        warm_up(&mut client.peer);
        server.device.holds_writes.store(true, Ordering::SeqCst);
        let flags = if form == Replies::Extended { PAYLOAD_LEN } else { 0 };
        let (block, large) = (pattern(BLOCK, 3), pattern(PIECE, 5));
        // One batch, with more replies than a socket holds, and then more data than it does.
        let mut requests = vec![(Command::WRITE, flags, 0, BLOCK as u64, &block[..])];
        requests.extend([(Command::READ, 0, 0, LENGTH as u64, &[][..]); 7]);
        requests.push((Command::WRITE, flags, 0, PIECE as u64, &large[..]));
        let count = requests.len();
        client.peer.stream.set_write_timeout(Some(LONG)).unwrap();
        ask_all(&mut client.peer, &requests);
        replies(&mut client.peer, count).values().for_each(|reply| assert_eq!(reply.error(), 0));
    }
}

/// The turn is only laid down for it, and somebody has to take it up.
#[test]
fn a_write_that_waits_after_all_keeps_nobody_waiting_for_long() {
    for form in FORMS {
        let server = Server::start();
        let mut client = server.attach(form);
        warm_up(&mut client.peer);
        server.device.holds_writes.store(true, Ordering::SeqCst);
        server.device.close_gate();
        let flags = if form == Replies::Extended { PAYLOAD_LEN } else { 0 };
        let data = pattern(BLOCK, 3);
        ask_all(&mut client.peer, &[(Command::WRITE, flags, 0, BLOCK as u64, &data[..])]);
        server.device.await_stuck(1);
        for _ in 0..3 {
            assert_eq!(client.peer.done(Command::READ, 0, BLOCK as u64, 1).error(), 0);
        }
        server.device.open_gate();
        assert_eq!(client.peer.reply().error(), 0);
        assert!(client.peer.done(Command::READ, 0, 0, BLOCK as u64).data(0, BLOCK) == data);
    }
}

#[test]
fn requests_that_have_to_wait_are_no_batch_any_more() {
    for form in FORMS {
        let server = Server::start();
        let mut client = server.attach(form);
        warm_up(&mut client.peer);
        let reads =
            [0, 1, 2].map(|number| (Command::READ, 0, number * LENGTH as u64, 2 * LENGTH as u64, &[][..]));
        server.device.close_gate();
        ask_all(&mut client.peer, &reads);
        server.device.await_stuck(1);
        assert_eq!(
            server.device.fetched(),
            [1, 2].map(|number| number * LENGTH as u64),
            "what follows the first"
        );
        // Each of these by a thread of its own.
        ask_all(&mut client.peer, &reads);
        server.device.await_stuck(4);
        server.device.open_gate();
        replies(&mut client.peer, 6).values().for_each(|reply| assert_eq!(reply.error(), 0));
    }
}

#[test]
fn a_batch_that_panics_ends_its_own_connection() {
    let server = Server::start();
    let mut client = server.attach(Replies::Structured);
    warm_up(&mut client.peer);
    server.device.deadly.store(5 * LENGTH as u64, Ordering::SeqCst);
    let reads =
        [0, 2, 4].map(|number| (Command::READ, 0, number * LENGTH as u64, 2 * LENGTH as u64, &[][..]));
    ask_all(&mut client.peer, &reads);
    client.assert_ends();
    let mut other = server.attach(Replies::Structured);
    assert_eq!(other.peer.done(Command::READ, 0, 0, 1).error(), 0);
}
