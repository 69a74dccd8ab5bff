//! Small replies that leave together, by one system call.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::{MutexGuard, TryLockError};

use super::{Answered, Hangup, Outgoing, Pending};
use crate::nbd::server::Replies;
use crate::nbd::server::buffers::Buffer;
use crate::nbd::wire::{Content, Head, NbdError, Request, simple_reply};

/// Bytes that suffice for all of a reply but the data that is read.
pub(in crate::nbd::server) const HEAD: usize = 128;

/// Replies that are complete, and have to be sent: this is what has become of their [`Pending`] requests, and it
/// ends the connection as they do if it is dropped.
#[must_use = "every request is answered"]
pub(in crate::nbd::server) struct Gathered<'a> {
    outgoing: &'a Outgoing,
    room: Buffer<'a>,
    /// Bytes of `room` that are replies.
    filled: usize,
    /// Those of them that have left.
    sent: usize,
    /// To send, from the first byte on until the last has left.
    turn: Option<MutexGuard<'a, ()>>,
}

impl<'a> Gathered<'a> {
    /// None yet; `room` is for them.
    pub(in crate::nbd::server) fn new(outgoing: &'a Outgoing, room: Buffer<'a>) -> Self {
        Self { outgoing, room, filled: 0, sent: 0, turn: None }
    }

    /// True if there is none.
    pub(in crate::nbd::server) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// True if a reply with `length` bytes of data fits as well.
    pub(in crate::nbd::server) fn fits(&self, length: usize) -> bool {
        self.filled + HEAD + length <= self.room.len()
    }

    /// Where the data of a READ goes that fits, for [`Gathered::answer_read`].
    pub(in crate::nbd::server) fn data(&mut self, request: &Request) -> &mut [u8] {
        let start = self.filled + self.data_head(request).as_bytes().len();
        // It fits.
        let length = usize::try_from(request.length).unwrap_or_default();
        &mut self.room[start..start + length]
    }

    /// Answers a READ whose data is in its place.
    pub(in crate::nbd::server) fn answer_read(&mut self, pending: Pending<'a>) {
        let head = self.data_head(pending.request());
        let length = usize::try_from(pending.request().length).unwrap_or_default();
        self.put(pending, &head);
        self.filled += length;
    }

    /// Answers a READ of a hole, in chunks.
    pub(in crate::nbd::server) fn answer_hole(&mut self, pending: Pending<'a>) {
        let Request { offset, length, .. } = *pending.request();
        let length = u32::try_from(length).unwrap_or_default();
        let head = self.outgoing.chunk(pending.request(), Content::Hole { offset, length }, true);
        self.put(pending, &head);
    }

    /// Answers a request that returns nothing but whether it succeeded; it fits.
    pub(in crate::nbd::server) fn answer(&mut self, pending: Pending<'a>, result: Result<(), NbdError>) {
        let head = self.outgoing.outcome(pending.request(), result);
        self.put(pending, &head);
    }

    fn data_head(&self, request: &Request) -> Head {
        match self.outgoing.replies {
            Replies::Simple => simple_reply(request.cookie, Ok(())),
            Replies::Structured | Replies::Extended => {
                let length = u32::try_from(request.length).unwrap_or_default();
                self.outgoing.chunk(request, Content::Data { offset: request.offset, length }, true)
            }
        }
    }

    fn put(&mut self, pending: Pending<'a>, head: &Head) {
        let head = head.as_bytes();
        self.room[self.filled..self.filled + head.len()].copy_from_slice(head);
        self.filled += head.len();
        let Answered { .. } = pending.answered();
    }

    /// Sends as much as can be without waiting; if that is not all, the rest is left.
    ///
    /// # Errors
    /// [`Hangup`] where the connection has to end.
    pub(in crate::nbd::server) fn send_now(mut self) -> Result<Result<Answered, Self>, Hangup> {
        let turn = match self.outgoing.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(Err(self)),
        };
        self.turn = Some(turn);
        while self.sent < self.filled {
            match self.outgoing.link.send_now(&[IoSlice::new(&self.room[self.sent..self.filled])]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Err(self)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Ok(Answered(())))
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// [`Hangup`] where the connection has to end.
    pub(in crate::nbd::server) fn send(mut self) -> Result<Answered, Hangup> {
        let _turn = self.turn.take().unwrap_or_else(|| self.outgoing.turn());
        self.outgoing.write(&[], &self.room[self.sent..self.filled])?;
        self.sent = self.filled;
        Ok(Answered(()))
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        if self.sent < self.filled {
            self.outgoing.link.shutdown(Shutdown::Both);
        }
    }
}
