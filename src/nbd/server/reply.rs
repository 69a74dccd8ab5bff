//! Replies: what a result becomes on the wire, and that each request gets one.
//!
//! Bytes to the client leave through [`Outgoing`], and nothing but a [`Pending`] request can send any. It cannot be
//! copied, and sending the last part of its reply consumes it, so a second reply does not compile. That returns an
//! [`Answered`], which can be had in no other way, and which whoever serves a request has to return: so no reply at
//! all does not compile either, except where the connection ends for it ([`Hangup`]). A pending request that is
//! dropped all the same, by a panic, ends its connection, so that its client does not wait for ever.

mod gathered;
mod queue;

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) use gathered::{Gathered, HEAD};
pub(super) use queue::{Queue, Sent};

use super::Replies;
use super::link::Link;
use crate::block::Extent;
use crate::nbd::wire::{
    Chunk, Command, Content, Head, NbdError, Request, STATE_HOLE_AND_ZERO, WireError, descriptor_32,
    descriptor_64, simple_reply,
};

/// Why a connection ends before its client says so.
#[derive(Debug, thiserror::Error)]
pub(super) enum Hangup {
    #[error("client: {0}")]
    Wire(#[from] WireError),
    #[error("client: a payload of {0} bytes is too long to be read")]
    Payload(u64),
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("the backing failed in the middle of a simple reply")]
    MidReply,
}

/// Most bytes that an extent takes in a reply to NBD_CMD_BLOCK_STATUS.
pub(super) const DESCRIPTOR: usize = 16;

/// The writing side of a connection. Whoever sends has the turn until all of a reply, or of a chunk, has left.
pub(super) struct Outgoing {
    link: Arc<Link>,
    turn: Mutex<()>,
    replies: Replies,
}

/// A request that awaits its one reply.
#[must_use = "every request is answered"]
pub(super) struct Pending<'a> {
    request: Request,
    outgoing: &'a Outgoing,
    /// A reply, or the rest of it, is still to come. Not so once sending has failed.
    due: bool,
}

/// A request has been answered. Only answering one makes it.
#[must_use = "it shows that the request is answered"]
#[derive(Debug)]
pub(super) struct Answered(());

/// A simple reply of which more data is to come. Nobody else sends meanwhile.
pub(super) struct Unfinished<'a> {
    pending: Pending<'a>,
    _turn: MutexGuard<'a, ()>,
}

impl Outgoing {
    pub(super) fn new(link: Arc<Link>, replies: Replies) -> Self {
        Self { link, turn: Mutex::new(()), replies }
    }

    /// True if replies come in chunks, so that holes and late errors can be told.
    pub(super) fn in_chunks(&self) -> bool {
        self.replies != Replies::Simple
    }

    /// True if somebody is sending just now, or waits for the client to read.
    pub(super) fn is_sending(&self) -> bool {
        self.turn.try_lock().is_err_and(|error| matches!(error, std::sync::TryLockError::WouldBlock))
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reply that says nothing but whether the request succeeded.
    fn outcome(&self, request: &Request, result: Result<(), NbdError>) -> Head {
        match (result, self.replies) {
            (_, Replies::Simple) => simple_reply(request.cookie, result),
            (Err(error), _) => self.chunk(request, Content::Error(error), true),
            // Simple replies are legal for all that returns no data, and shorter.
            (Ok(()), Replies::Structured) if request.command != Command::READ => {
                simple_reply(request.cookie, result)
            }
            (Ok(()), _) => self.chunk(request, Content::None, true),
        }
    }

    fn chunk(&self, request: &Request, content: Content, last: bool) -> Head {
        let chunk = Chunk { cookie: request.cookie, offset: request.offset, last, content };
        match self.replies {
            Replies::Extended => chunk.encode_extended(),
            Replies::Structured | Replies::Simple => chunk.encode(),
        }
    }

    /// Writes all of both; the caller has the turn.
    fn write(&self, head: &[u8], data: &[u8]) -> io::Result<()> {
        let mut slices = &mut [IoSlice::new(head), IoSlice::new(data)][..];
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match (&*self.link).write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl<'a> Pending<'a> {
    /// A request has been received, its payload included.
    pub(super) fn new(request: Request, outgoing: &'a Outgoing) -> Self {
        debug_assert!(request.command != Command::DISC, "it has no reply");
        Self { request, outgoing, due: true }
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    /// True if the reply comes in chunks.
    pub(super) fn in_chunks(&self) -> bool {
        self.outgoing.in_chunks()
    }

    /// Answers a request that returns nothing but whether it succeeded.
    pub(super) fn finish(mut self, result: Result<(), NbdError>) -> Result<Answered, Hangup> {
        let head = self.outgoing.outcome(&self.request, result);
        self.send(&head, &[])?;
        Ok(self.answered())
    }

    /// Answers NBD_CMD_BLOCK_STATUS with at least one extent; `room` is for [`DESCRIPTOR`] bytes of each.
    pub(super) fn finish_status(self, extents: &[Extent], room: &mut [u8]) -> Result<Answered, Hangup> {
        debug_assert!(!extents.is_empty() && self.in_chunks());
        let extended = self.outgoing.replies == Replies::Extended;
        let size = if extended { DESCRIPTOR } else { DESCRIPTOR / 2 };
        let mut count = 0;
        for (extent, place) in extents.iter().zip(room.chunks_exact_mut(size)) {
            let state = if extent.is_hole { STATE_HOLE_AND_ZERO } else { 0 };
            if extended {
                place.copy_from_slice(&descriptor_64(extent.length, state));
            } else {
                // Never longer than the request, whose length had 32 bits.
                let length = u32::try_from(extent.length).unwrap_or(u32::MAX);
                place.copy_from_slice(&descriptor_32(length, state));
            }
            count += 1;
        }
        self.finish_chunk(Content::Status { count }, &room[..size * count as usize])
    }

    /// Sends the only part of a simple reply.
    pub(super) fn finish_simple(
        mut self,
        result: Result<(), NbdError>,
        data: &[u8],
    ) -> Result<Answered, Hangup> {
        let head = simple_reply(self.request.cookie, result);
        self.send(&head, data)?;
        Ok(self.answered())
    }

    /// Begins a simple reply with the first of its data.
    pub(super) fn begin_simple(mut self, data: &[u8]) -> Result<Unfinished<'a>, Hangup> {
        let turn = self.outgoing.turn();
        let head = simple_reply(self.request.cookie, Ok(()));
        self.write(head.as_bytes(), data)?;
        Ok(Unfinished { pending: self, _turn: turn })
    }

    /// Sends a chunk that others follow. `data` is what its content announces.
    pub(super) fn chunk(&mut self, content: Content, data: &[u8]) -> Result<(), Hangup> {
        let head = self.outgoing.chunk(&self.request, content, false);
        self.send(&head, data)
    }

    /// Sends the last chunk.
    pub(super) fn finish_chunk(mut self, content: Content, data: &[u8]) -> Result<Answered, Hangup> {
        let head = self.outgoing.chunk(&self.request, content, true);
        self.send(&head, data)?;
        Ok(self.answered())
    }

    fn send(&mut self, head: &Head, data: &[u8]) -> Result<(), Hangup> {
        let _turn = self.outgoing.turn();
        self.write(head.as_bytes(), data)
    }

    /// The caller has the turn.
    fn write(&mut self, head: &[u8], data: &[u8]) -> Result<(), Hangup> {
        self.outgoing.write(head, data).map_err(|error| self.hang_up(error.into()))
    }

    fn answered(mut self) -> Answered {
        self.due = false;
        Answered(())
    }

    /// No reply will come: the connection ends, if it has not already.
    pub(super) fn forsake(mut self) {
        self.due = false;
        self.outgoing.link.shutdown(Shutdown::Both);
    }

    /// The connection ends, and with it the wait for a reply.
    fn hang_up(&mut self, hangup: Hangup) -> Hangup {
        self.due = false;
        self.outgoing.link.shutdown(Shutdown::Both);
        hangup
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.due {
            self.outgoing.link.shutdown(Shutdown::Both);
            debug_assert!(std::thread::panicking(), "a request was dropped unanswered");
        }
    }
}

impl Unfinished<'_> {
    /// Sends more of the data.
    pub(super) fn more(&mut self, data: &[u8]) -> Result<(), Hangup> {
        self.pending.write(&[], data)
    }

    /// All of the data has been sent.
    pub(super) fn finish(self) -> Answered {
        self.pending.answered()
    }

    /// The rest of the data cannot be had, which a simple reply that has begun cannot tell any more.
    pub(super) fn give_up(mut self) -> Hangup {
        self.pending.hang_up(Hangup::MidReply)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::socket::Socket;
    use super::*;
    use crate::nbd::wire::CommandFlags;

    fn outgoing(replies: Replies) -> (Outgoing, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Outgoing::new(Arc::new(Link::Plain(Socket::Unix(ours))), replies), theirs)
    }

    fn read(length: u64) -> Request {
        Request { flags: CommandFlags(0), command: Command::READ, cookie: 7, offset: 0, length }
    }

    /// Two implementations fit a type that can be cloned; then it is ambiguous and does not compile.
    trait NotClone<T> {
        const HOLDS: bool = true;
    }

    impl<T: ?Sized> NotClone<()> for T {}

    impl<T: Clone> NotClone<u8> for T {}

    #[test]
    fn neither_a_request_nor_the_proof_of_its_answer_can_be_copied() {
        const { assert!(<Pending<'_> as NotClone<_>>::HOLDS) }
        const { assert!(<Unfinished<'_> as NotClone<_>>::HOLDS) }
        const { assert!(<Answered as NotClone<_>>::HOLDS) }
    }

    #[test]
    fn a_request_that_is_dropped_unanswered_ends_its_connection() {
        let (outgoing, mut peer) = outgoing(Replies::Simple);
        let pending = Pending::new(read(1), &outgoing);
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(pending)));
        assert_eq!(dropped.is_err(), cfg!(debug_assertions), "while developing it is a failure as well");
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_simple_reply_that_cannot_be_finished_ends_its_connection() {
        let (outgoing, mut peer) = outgoing(Replies::Simple);
        let reply = Pending::new(read(4), &outgoing).begin_simple(b"ab").unwrap();
        assert!(outgoing.is_sending());
        assert!(matches!(reply.give_up(), Hangup::MidReply));
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x07ab");
    }

    #[test]
    fn a_client_that_is_gone_is_not_waited_for() {
        for replies in [Replies::Simple, Replies::Structured, Replies::Extended] {
            let (outgoing, peer) = outgoing(replies);
            drop(peer);
            let answered = Pending::new(read(1), &outgoing).finish(Err(NbdError::Io));
            assert!(matches!(answered, Err(Hangup::Io(_))));
        }
    }
}
