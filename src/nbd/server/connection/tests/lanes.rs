//! A device whose requests wait, several at once.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::batches::{ask_all, replies};
use super::*;
use crate::block::{BlockDevice, Direction, Event, Extents, Lane, Readiness, Transfer};

/// The read that begins here gets stuck on its way out of the lane, if the gate is closed.
const STUCK: u64 = 8 * BLOCK as u64;

/// What the lanes of a device have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Transfers that have begun are the device's now: so many, one at least.
    HandedOver(usize),
    /// The end of one with so many bytes was told.
    Told(usize),
    /// So many bytes, one at least, were prepared of a write that was not there yet.
    Prepared(usize),
}

/// Ends all that is under way at once, and not before nothing else is left to do.
pub(super) struct SlowLane<'a> {
    device: &'a Device,
    begun: Vec<Transfer>,
    handed_over: Vec<Transfer>,
    ended: VecDeque<Event>,
    watched: Vec<(OwnedFd, Readiness, usize)>,
}

impl<'a> SlowLane<'a> {
    pub(super) fn of(device: &'a Device) -> Self {
        let (begun, handed_over, watched) = (Vec::new(), Vec::new(), Vec::new());
        Self { device, begun, handed_over, ended: VecDeque::new(), watched }
    }

    fn look_at_watched(&mut self, at_most: Option<Duration>) {
        let at_most = at_most.map(|time| Timespec::try_from(time).unwrap());
        let mut polled: Vec<_> = self
            .watched
            .iter()
            .map(|(fd, readiness, _)| {
                PollFd::new(fd, if *readiness == Readiness::Input { PollFlags::IN } else { PollFlags::OUT })
            })
            .collect();
        rustix::io::retry_on_intr(|| poll(&mut polled, at_most.as_ref())).unwrap();
        let mut ready = polled.iter().map(|one| !one.revents().is_empty()).collect::<Vec<_>>().into_iter();
        let ended = &mut self.ended;
        self.watched.retain(|(.., token)| {
            let ready = ready.next().unwrap();
            if ready {
                ended.push_back(Event::Ready(*token));
            }
            !ready
        });
    }
}

/// Changes what is prepared, as enciphering does. Done twice, it is undone.
fn change(data: &mut [u8]) {
    data.iter_mut().for_each(|byte| *byte ^= 0x5A);
}

impl Lane for SlowLane<'_> {
    fn takes(&self, _: Direction, offset: u64, length: usize) -> bool {
        offset.is_multiple_of(BLOCK as u64) && length.is_multiple_of(BLOCK)
    }

    fn prepare(&self, offset: u64, data: &mut [u8]) -> usize {
        assert!(offset.is_multiple_of(BLOCK as u64), "it goes on after what was prepared");
        let whole = data.len() - data.len() % BLOCK;
        change(&mut data[..whole]);
        if whole > 0 {
            self.device.note(Step::Prepared(whole));
        }
        whole
    }

    fn begin(&mut self, mut transfer: Transfer) -> Result<(), Transfer> {
        let prepared = transfer.prepared;
        change(&mut transfer.data()[..prepared]);
        if transfer.direction == Direction::Write && self.device.refuses.load(Ordering::SeqCst) {
            return Err(transfer);
        }
        self.begun.push(transfer);
        Ok(())
    }

    fn under_way(&self) -> usize {
        let ended = self.ended.iter().filter(|event| matches!(event, Event::Done(..))).count();
        self.begun.len() + self.handed_over.len() + ended
    }

    fn watch(&mut self, descriptor: BorrowedFd<'_>, readiness: Readiness, token: usize) {
        self.watched.push((descriptor.try_clone_to_owned().unwrap(), readiness, token));
    }

    fn hand_over(&mut self) -> io::Result<()> {
        if !self.begun.is_empty() {
            self.device.note(Step::HandedOver(self.begun.len()));
            self.handed_over.append(&mut self.begun);
        }
        Ok(())
    }

    fn look(&mut self) -> io::Result<()> {
        self.look_at_watched(Some(Duration::ZERO));
        Ok(())
    }

    fn has_more(&self) -> bool {
        !self.ended.is_empty()
    }

    fn wait(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        if !self.ended.is_empty() {
            return Ok(());
        }
        self.hand_over()?;
        self.look_at_watched(if self.handed_over.is_empty() { at_most } else { Some(Duration::ZERO) });
        if self.ended.is_empty() && at_most != Some(Duration::ZERO) {
            self.ended.extend(self.handed_over.drain(..).map(|transfer| Event::Done(transfer, Ok(()))));
        }
        Ok(())
    }

    fn next(&mut self, extents: &mut Extents) -> Option<Event> {
        let mut event = self.ended.pop_front()?;
        if let Event::Done(transfer, result) = &mut event {
            let offset = transfer.offset;
            if (offset, transfer.direction) == (STUCK, Direction::Read) {
                self.device.pass_gate();
            }
            extents.clear();
            *result = match transfer.direction {
                Direction::Read => self.device.copy(offset, transfer.data(), extents),
                Direction::Write => self.device.write(offset, transfer.data(), false),
            };
            self.device.note(Step::Told(transfer.length));
        }
        Some(event)
    }
}

/// A client of a device with such lanes.
fn attach(form: Replies) -> (Server, Attached) {
    attach_to(Server::start(), form)
}

fn attach_to(server: Server, form: Replies) -> (Server, Attached) {
    server.device.is_slow.store(true, Ordering::SeqCst);
    let client = server.attach(form);
    (server, client)
}

#[test]
fn what_has_ended_is_answered_a_few_at_a_time() {
    for form in FORMS {
        let (server, mut client) = attach(form);
        let (peer, size) = (&mut client.peer, BLOCK as u64);
        server.device.close_gate();
        let reads: Vec<_> = (0..32).map(|at| (Command::READ, 0, at * size, size, &[][..])).collect();
        ask_all(peer, &reads);
        // The ninth is stuck on its way out of the lane. Of those before it, one and four have been answered.
        replies(peer, 5);
        ask_all(peer, &[(Command::READ, 0, SIZE - size, size, &[])]);
        server.device.open_gate();
        replies(peer, 28);
        let steps = server.device.steps();
        assert_eq!(steps[0], Step::HandedOver(32), "they have come together");
        let next = steps.iter().position(|step| *step == Step::HandedOver(1)).unwrap();
        assert!(next <= 10, "the device has it before the last 23 have been answered: {steps:?}");
        assert_eq!(steps.len(), 2 + 33);
    }
}

/// Of these requests, with their offsets and lengths, which come together, the last one is stuck on its way out of the lane
/// when all others have been answered.
fn all_but_the_last_are_answered(requests: &[(Command, u64, usize)]) {
    for form in FORMS {
        let (server, mut client) = attach(form);
        server.device.close_gate();
        let (data, payload) = ([7; BLOCK], if form == Replies::Extended { PAYLOAD_LEN } else { 0 });
        let asked = |&(command, offset, length): &(Command, u64, usize)| match command {
            Command::WRITE => (command, payload, offset, length as u64, &data[..length]),
            _ => (command, 0, offset, length as u64, &[][..]),
        };
        ask_all(&mut client.peer, &requests.iter().map(asked).collect::<Vec<_>>());
        replies(&mut client.peer, requests.len() - 1);
        server.device.open_gate();
        replies(&mut client.peer, 1);
        assert_eq!(server.device.steps()[0], Step::HandedOver(requests.len()), "they have come together");
    }
}

/// After so many of a block each, a read that gets stuck.
fn all_are_answered_before_another(command: Command, count: u64) {
    let others = (0..count).map(|at| (command, at * BLOCK as u64, BLOCK));
    all_but_the_last_are_answered(&others.chain([(Command::READ, STUCK, BLOCK)]).collect::<Vec<_>>());
}

#[test]
fn a_client_that_has_waited_is_woken_up_by_the_first_reply() {
    all_are_answered_before_another(Command::READ, 1);
    all_are_answered_before_another(Command::WRITE, 1);
}

#[test]
fn then_four_short_reads_or_eight_writes_are_answered_at_a_time() {
    all_are_answered_before_another(Command::READ, 1 + 4);
    all_are_answered_before_another(Command::WRITE, 1 + 8);
}

#[test]
fn a_long_read_is_answered_before_the_next_one_is_taken() {
    // The socket has room for it, and it is not short.
    let reads = [(0, BLOCK), (0, 128 << 10), (STUCK, BLOCK)];
    all_but_the_last_are_answered(&reads.map(|(offset, length)| (Command::READ, offset, length)));
}

#[test]
fn writes_of_whole_blocks_go_by_lanes_if_they_fit_a_buffer() {
    for form in FORMS {
        let (server, mut client) = attach(form);
        let peer = &mut client.peer;
        for (number, length) in
            [BLOCK, (64 << 10) + BLOCK, PIECE, PIECE + BLOCK, BLOCK + 1].into_iter().enumerate()
        {
            let data = pattern(length, number);
            assert_eq!(peer.write(0, 0, &data).error(), 0);
            let read = peer.done(Command::READ, 0, 0, length as u64);
            assert_eq!(read.data(0, length), data);
        }
        let fit = [BLOCK, (64 << 10) + BLOCK, PIECE];
        let steps = server.device.steps();
        let ends: Vec<_> = steps.iter().copied().filter(|step| matches!(step, Step::Told(_))).collect();
        assert_eq!(ends, fit.map(|length| [Step::Told(length); 2]).concat(), "a write and a read each");
    }
}

/// With and without pauses.
#[test]
fn the_data_of_a_long_write_is_prepared_as_it_comes_in() {
    for refuses in [false, true] {
        for form in FORMS {
            let (server, mut client) = attach(form);
            let peer = &mut client.peer;
            for (number, length) in [PIECE, 49 * BLOCK, 2 * BLOCK, PIECE].into_iter().enumerate() {
                server.device.refuses.store(refuses, Ordering::SeqCst);
                let data = pattern(length, number);
                let before = server.device.steps().len();
                let flags = if form == Replies::Extended { PAYLOAD_LEN } else { 0 };
                let (cookie, header) = peer.request(Command::WRITE, flags, 0, length as u64);
                let sent = [&header[..], &data].concat();
                // All but the last part are prepared before it comes.
                let (most, last) = sent.split_at(sent.len() - 1);
                for part in most.chunks(50_001) {
                    peer.stream.write_all(part).unwrap();
                    if number != 3 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                let whole = (length - 1) / BLOCK * BLOCK;
                let prepared = || {
                    let steps = server.device.steps();
                    let of = |step: &Step| if let Step::Prepared(bytes) = step { *bytes } else { 0 };
                    steps[before..].iter().map(of).sum::<usize>()
                };
                until(|| prepared() == whole, prepared);
                peer.stream.write_all(last).unwrap();
                let reply = peer.reply();
                assert_eq!((reply.cookie, reply.error()), (cookie, 0));
                let read = peer.done(Command::READ, 0, 0, length as u64);
                assert!(read.data(0, length) == data, "{refuses} {form:?} {number}");
                assert_eq!(prepared(), whole, "each byte once");
            }
        }
    }
}

#[test]
fn threads_that_wait_for_a_device_are_added_at_once() {
    // Nobody looks whether they are stuck.
    let (server, mut client) = attach_to(Server::without_overseer(), Replies::Simple);
    server.device.close_gate();
    // Past a piece, so that each is a thread's.
    let length = 2 * PIECE as u64;
    let reads: Vec<_> = (0..STEADY_WAITING as u64).map(|_| (Command::READ, 0, 0, length, &[][..])).collect();
    ask_all(&mut client.peer, &reads);
    client.await_threads(|threads| threads == STEADY_WAITING);
    server.device.open_gate();
    replies(&mut client.peer, STEADY_WAITING);
}

#[test]
fn what_has_ended_holds_no_sectors_for_a_client_that_does_not_read() {
    for end in [Shutdown::Write, Shutdown::Both] {
        let (server, mut client) = attach(Replies::Simple);
        let (peer, size) = (&mut client.peer, 64 << 10);
        let reads: Vec<_> = (0..64).map(|at| (Command::READ, 0, at * size, size, &[][..])).collect();
        ask_all(peer, &reads);
        peer.stream.shutdown(end).unwrap();
        let told = || server.device.steps().iter().filter(|step| matches!(step, Step::Told(_))).count();
        if end == Shutdown::Write {
            // 4 MiB, zeros and all, of which the socket holds a part.
            until(|| told() == 64, told);
            replies(peer, 64);
        }
        client.assert_ends();
    }
}
