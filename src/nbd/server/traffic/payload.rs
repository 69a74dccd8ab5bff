//! A request that is one for a lane, and whose memory there is: a read, or a write whose data is coming in.

use crate::block::Lane;
use crate::nbd::server::buffers::Buffer;
use crate::nbd::server::incoming::{LARGE, Now};
use crate::nbd::server::receiver::Receiver;
use crate::nbd::server::reply::Hangup;
use crate::nbd::wire::Request;

pub(super) struct Payload<'a> {
    pub(super) request: Request,
    pub(super) buffer: Buffer<'a>,
    /// Of the transfer that it becomes.
    pub(super) token: usize,
    /// Bytes that have come.
    filled: usize,
    /// Of these, how many the lane has prepared.
    pub(super) prepared: usize,
}

impl<'a> Payload<'a> {
    /// `buffer` is as long as the data.
    pub(super) fn new(request: Request, buffer: Buffer<'a>, token: usize) -> Self {
        Self { request, buffer, token, filled: 0, prepared: 0 }
    }

    /// Its rest comes bit by bit, as the client's socket has room for it.
    pub(super) fn is_large(&self) -> bool {
        self.buffer.len() > LARGE
    }

    /// Takes what is here of it; true if that was the last. Otherwise the lane prepares what there is, while the client
    /// sends more.
    pub(super) fn fill(&mut self, receiver: &mut Receiver, lane: &dyn Lane) -> bool {
        self.filled += receiver.take_here(&mut self.buffer[self.filled..]);
        let is_whole = self.filled == self.buffer.len();
        if !is_whole {
            let offset = self.request.offset + self.prepared as u64;
            self.prepared += lane.prepare(offset, &mut self.buffer[self.prepared..self.filled]);
        }
        is_whole
    }

    /// Reads what has come of it, of which nothing is here, and ahead what follows.
    ///
    /// # Errors
    /// A [`Hangup`] where the connection has to end.
    pub(super) fn read(&mut self, receiver: &mut Receiver) -> Result<Now, Hangup> {
        let now = receiver.read_now(&mut self.buffer, self.filled)?;
        if let Now::Came { asked, .. } = now {
            self.filled += asked;
        }
        Ok(now)
    }
}
