//! Replies with memory of their own, which leave in the order in which they were put in, as fast as the client reads.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::Range;
use std::sync::{MutexGuard, TryLockError};

use super::{Answered, Hangup, Outgoing, Pending};
use crate::block::Extents;
use crate::nbd::server::buffers::Buffer;
use crate::nbd::server::read::parts;
use crate::nbd::wire::{CommandFlags, Content, Head, NbdError, simple_reply};

/// Slices that one system call sends; it takes no more than 1024 (`UIO_MAXIOV`).
const SLICES: usize = 64;

/// Replies that are complete, and have to be sent: this is what has become of their [`Pending`] requests, and it
/// ends the connection as they do if it is dropped.
#[must_use = "every request is answered"]
pub(in crate::nbd::server) struct Queue<'a> {
    outgoing: &'a Outgoing,
    replies: VecDeque<Reply<'a>>,
    /// Bytes of the first one that have left.
    sent: usize,
    /// To send, from the first byte of a reply on until nothing is left.
    turn: Option<MutexGuard<'a, ()>>,
}

struct Reply<'a> {
    first: (Head, Range<usize>),
    /// Only where holes are told.
    others: Vec<(Head, Range<usize>)>,
    /// What the ranges are of.
    data: Option<Buffer<'a>>,
    length: usize,
}

/// How far sending has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nbd::server) enum Sent {
    /// Nothing is left.
    All,
    /// The client has to read first.
    NoRoom,
    /// Somebody else is sending.
    NotNow,
}

impl<'a> Queue<'a> {
    /// None yet.
    pub(in crate::nbd::server) fn new(outgoing: &'a Outgoing) -> Self {
        Self { outgoing, replies: VecDeque::new(), sent: 0, turn: None }
    }

    /// Replies that have not left whole.
    pub(in crate::nbd::server) fn len(&self) -> usize {
        self.replies.len()
    }

    /// Answers a request that returns nothing but whether it succeeded.
    pub(in crate::nbd::server) fn answer(&mut self, pending: Pending<'a>, result: Result<(), NbdError>) {
        let head = self.outgoing.outcome(pending.request(), result);
        self.put(pending, (head, 0..0), Vec::new(), None);
    }

    /// Answers a READ that has failed.
    pub(in crate::nbd::server) fn answer_failed_read(&mut self, pending: Pending<'a>, error: NbdError) {
        let request = *pending.request();
        if !self.outgoing.in_chunks() {
            return self.answer(pending, Err(error));
        }
        let head = self.outgoing.chunk(&request, Content::ErrorAt(error, request.offset), true);
        self.put(pending, (head, 0..0), Vec::new(), None);
    }

    /// Answers a READ whose data `data` holds; holes of at least `least` bytes are told, if the client understands it.
    pub(in crate::nbd::server) fn answer_read(
        &mut self,
        pending: Pending<'a>,
        data: Buffer<'a>,
        extents: &Extents,
        least: u64,
    ) {
        let request = *pending.request();
        if !self.outgoing.in_chunks() {
            let head = simple_reply(request.cookie, Ok(()));
            return self.put(pending, (head, 0..data.len()), Vec::new(), Some(data));
        }
        let least = if request.flags.contains(CommandFlags::DF) { u64::MAX } else { least };
        let mut chunks = parts(extents.as_slice(), data.len(), least).map(|(range, is_hole)| {
            let offset = request.offset + range.start as u64;
            // No longer than a buffer.
            let length = u32::try_from(range.len()).unwrap_or(u32::MAX);
            let last = range.end == data.len();
            if is_hole {
                (self.outgoing.chunk(&request, Content::Hole { offset, length }, last), 0..0)
            } else {
                (self.outgoing.chunk(&request, Content::Data { offset, length }, last), range)
            }
        });
        let Some(first) = chunks.next() else {
            return self.answer(pending, Ok(()));
        };
        let others = chunks.collect();
        self.put(pending, first, others, Some(data));
    }

    fn put(
        &mut self,
        pending: Pending<'a>,
        first: (Head, Range<usize>),
        others: Vec<(Head, Range<usize>)>,
        data: Option<Buffer<'a>>,
    ) {
        let chunks = others.iter().chain([&first]);
        let length = chunks.map(|(head, range)| head.as_bytes().len() + range.len()).sum();
        self.replies.push_back(Reply { first, others, data, length });
        let Answered { .. } = pending.answered();
    }

    /// Sends what can be sent without waiting.
    ///
    /// # Errors
    /// [`Hangup`] where the connection has to end.
    pub(in crate::nbd::server) fn send_now(&mut self) -> Result<Sent, Hangup> {
        if self.replies.is_empty() {
            return Ok(Sent::All);
        }
        if self.turn.is_none() {
            self.turn = Some(match self.outgoing.turn.try_lock() {
                Ok(turn) => turn,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Ok(Sent::NotNow),
            });
        }
        let outgoing = self.outgoing;
        self.send_or_give_up(|slices| match outgoing.link.send_now(slices) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => result.map(Some),
        })
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// [`Hangup`] where the connection has to end.
    pub(in crate::nbd::server) fn send(&mut self) -> Result<(), Hangup> {
        if !self.replies.is_empty() {
            let outgoing = self.outgoing;
            self.turn.get_or_insert_with(|| outgoing.turn());
            self.send_or_give_up(|slices| io::Write::write_vectored(&mut &*outgoing.link, slices).map(Some))?;
        }
        Ok(())
    }

    /// What cannot be sent will never be: others who wait to send, or for memory, do not wait for it.
    fn send_or_give_up(
        &mut self,
        write: impl Fn(&[IoSlice<'_>]) -> io::Result<Option<usize>>,
    ) -> Result<Sent, Hangup> {
        self.send_by(write).inspect_err(|_| {
            self.outgoing.link.shutdown(Shutdown::Both);
            self.replies.clear();
            self.turn = None;
        })
    }

    /// `write` returns how many bytes have left, and `None` for none now.
    fn send_by(
        &mut self,
        write: impl Fn(&[IoSlice<'_>]) -> io::Result<Option<usize>>,
    ) -> Result<Sent, Hangup> {
        while !self.replies.is_empty() {
            let mut room = [IoSlice::new(&[]); SLICES];
            let count = self.slices(&mut room);
            match write(&room[..count]) {
                Ok(Some(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(Some(sent)) => self.advance(sent),
                Ok(None) => return Ok(Sent::NoRoom),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.turn = None;
        Ok(Sent::All)
    }

    /// What is to be sent next; returns how many slices that is.
    fn slices<'b>(&'b self, room: &mut [IoSlice<'b>]) -> usize {
        let (mut count, mut skip) = (0, self.sent);
        for reply in &self.replies {
            for (head, range) in [&reply.first].into_iter().chain(&reply.others) {
                let data = reply.data.as_ref().map_or(&[][..], |data| &data[range.clone()]);
                for part in [head.as_bytes(), data] {
                    let skipped = skip.min(part.len());
                    skip -= skipped;
                    if skipped == part.len() {
                        continue;
                    }
                    if count == room.len() {
                        return count;
                    }
                    room[count] = IoSlice::new(&part[skipped..]);
                    count += 1;
                }
            }
        }
        count
    }

    fn advance(&mut self, sent: usize) {
        self.sent += sent;
        while let Some(first) = self.replies.front()
            && first.length <= self.sent
        {
            self.sent -= first.length;
            self.replies.pop_front();
        }
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        if !self.replies.is_empty() {
            self.outgoing.link.shutdown(Shutdown::Both);
        }
    }
}
