//! The receiving side of a connection: one request after the other off the stream, with its payload and a verdict.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use super::Replies;
use super::buffers::{Buffer, PIECE, SMALL};
use super::connection::Connection;
use super::incoming::{Incoming, Next, Now};
use super::read::pieces;
use super::reply::Hangup;
use super::request::nbd_error;
use crate::nbd::wire::{
    Command, CommandFlags, EXTENDED_REQUEST_LENGTH, MAX_PAYLOAD, NbdError, REQUEST_LENGTH, Request,
    StatusFilter,
};

/// What a thread with the turn to receive works on.
pub(super) struct Receiver {
    incoming: Incoming,
    replies: Replies,
    state: State,
    /// Nothing more is to be read, as far as is known.
    at_end: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Requests are received.
    Open,
    /// After NBD_CMD_DISC, the end of the stream or garbage: no more requests.
    Over,
    /// The next request is still in the socket, for a successor.
    Paused,
}

/// What is left to do for a request that has been received.
pub(super) enum Job<'a> {
    /// Answer it: it was refused, or was dealt with while its data came in.
    Answer(Result<(), NbdError>),
    /// Read into the buffer, a piece at a time, and send.
    Read(Buffer<'a>),
    /// Write what the buffer holds.
    Write(Buffer<'a>),
    /// Describe extents; the buffer is for the descriptors.
    Status(Buffer<'a>),
    /// Anything that moves no data.
    Perform,
}

impl Receiver {
    pub(super) fn new(incoming: Incoming, replies: Replies) -> Self {
        Self { incoming, replies, state: State::Open, at_end: false }
    }

    /// Every request that was received has been passed on, and the next one can be received by a successor.
    pub(super) fn is_paused(&self) -> bool {
        self.state == State::Paused
    }

    /// Waits for a request, or its first bytes; false when there will be no more.
    ///
    /// # Errors
    /// A [`Hangup`] if there will be no more for a reason that is not the client's wish.
    pub(super) fn wait(&mut self) -> Result<bool, Hangup> {
        if self.state != State::Open {
            return Ok(false);
        }
        self.state = State::Over;
        let next = self.incoming.next()?;
        self.state = match next {
            Next::Request => State::Open,
            Next::End => State::Over,
            Next::Pause => State::Paused,
        };
        Ok(self.state == State::Open)
    }

    /// Waits for more of a small request of which a part is here; false if there will be none, or not for now.
    ///
    /// # Errors
    /// A [`Hangup`] where the connection has to end.
    pub(super) fn more(&mut self) -> Result<bool, Hangup> {
        let open = std::mem::replace(&mut self.state, State::Over);
        let more = self.incoming.more()?;
        self.state = open;
        Ok(more)
    }

    /// True if some of a request is here, and less than its header.
    pub(super) fn has_half_a_header(&self) -> bool {
        (1..header_length(self.replies)).contains(&self.here().len())
    }

    /// The next request and how long its header is, if the header is here.
    pub(super) fn peek(&self) -> Option<(Request, usize)> {
        request_at(self.here(), self.replies)
    }

    /// What is here.
    pub(super) fn here(&self) -> &[u8] {
        self.incoming.here()
    }

    /// How requests look, and their replies.
    pub(super) fn replies(&self) -> Replies {
        self.replies
    }

    /// Takes the first `length` bytes of what is here, all of them whole requests, by exchange for `memory` of
    /// [`READ_AHEAD`](super::incoming::READ_AHEAD) bytes; returns where in it they are.
    pub(super) fn exchange(&mut self, memory: &mut Buffer<'_>, length: usize) -> Range<usize> {
        self.incoming.exchange(memory, length)
    }

    /// Calls `serve`, which may leave what is here half changed if it panics: then nobody else gets to see it.
    pub(super) fn during<R>(&mut self, serve: impl FnOnce(&mut Self) -> R) -> R {
        let open = std::mem::replace(&mut self.state, State::Over);
        let result = serve(self);
        self.state = open;
        result
    }

    /// The next `length` bytes, all of which are here.
    pub(super) fn at_here(&mut self, length: usize) -> &mut [u8] {
        self.incoming.at_here(length)
    }

    /// They have been used.
    pub(super) fn use_here(&mut self, length: usize) {
        self.incoming.use_here(length);
    }

    /// Takes as many of `bytes` as are here; returns how many.
    pub(super) fn take_here(&mut self, bytes: &mut [u8]) -> usize {
        let length = bytes.len().min(self.here().len());
        bytes[..length].copy_from_slice(self.incoming.at_here(length));
        self.incoming.use_here(length);
        length
    }

    /// Reads what has come: into `payload`, which is filled up to `filled` and of which nothing is here, and then ahead.
    ///
    /// # Errors
    /// A [`Hangup`] where the connection has to end.
    pub(super) fn read_now(&mut self, payload: &mut [u8], filled: usize) -> Result<Now, Hangup> {
        Ok(self.incoming.read_now(payload, filled)?)
    }

    /// Nobody else may receive before [`Receiver::resume`], even if the thread that has the turn panics.
    pub(super) fn suspend(&mut self) {
        self.state = State::Over;
    }

    /// The next byte that is here, or comes, is a request's first again.
    pub(super) fn resume(&mut self) {
        self.state = State::Open;
    }

    /// The client has ended the stream.
    pub(super) fn end_reading(&mut self) {
        self.at_end = true;
    }

    /// Nothing more is read ahead: the client has ended the stream, or a pause is asked for.
    pub(super) fn reads_no_more(&self) -> bool {
        self.at_end || self.incoming.is_pausing()
    }

    /// What becomes readable once a pause is asked for, if one ever may be.
    pub(super) fn pause_event(&self) -> Option<BorrowedFd<'_>> {
        self.incoming.pause_event()
    }

    /// Takes a request and waits for its payload; `None` when there will be no more.
    ///
    /// # Errors
    /// A [`Hangup`] if there will be no more for a reason that is not the client's wish.
    pub(super) fn receive<'a>(
        &mut self,
        connection: &'a Connection,
    ) -> Result<Option<(Request, Job<'a>)>, Hangup> {
        // Whoever fails here, or is told of the end, has met it for all threads.
        self.state = State::Over;
        let Some(mut request) = self.header()? else { return Ok(None) };
        let job = match request.command {
            Command::WRITE => self.receive_write(connection, &request)?,
            _ => {
                let payload = self.receive_payload(connection, &mut request)?;
                match payload.and_then(|()| connection.judge(&request)) {
                    Ok(()) => prepare(connection, &request),
                    Err(error) => Job::Answer(Err(error)),
                }
            }
        };
        self.state = State::Open;
        Ok(Some((request, job)))
    }

    /// The next request's header; `None` for NBD_CMD_DISC.
    fn header(&mut self) -> Result<Option<Request>, Hangup> {
        let request = if self.replies == Replies::Extended {
            let mut header = [0; EXTENDED_REQUEST_LENGTH];
            self.incoming.take(&mut header)?;
            Request::decode_extended(&header)?
        } else {
            let mut header = [0; REQUEST_LENGTH];
            self.incoming.take(&mut header)?;
            Request::decode(&header)?
        };
        Ok((request.command != Command::DISC).then_some(request))
    }

    /// Takes a write's data off the stream, whether it is wanted or not. What is longer than a piece is written
    /// as it comes. Extended writes without NBD_CMD_FLAG_PAYLOAD_LEN have a payload all the same.
    fn receive_write<'a>(
        &mut self,
        connection: &'a Connection,
        request: &Request,
    ) -> Result<Job<'a>, Hangup> {
        let payload = payload_length(request.length)?;
        let mut outcome = connection.judge(request);
        if outcome.is_err() {
            self.skip(connection, payload)?;
            return Ok(Job::Answer(outcome));
        }
        let mut buffer = connection.pool().borrow(payload.min(PIECE));
        if payload <= PIECE {
            self.incoming.take(&mut buffer)?;
            return Ok(Job::Write(buffer));
        }
        let device = connection.device();
        for (offset, length) in pieces(request) {
            let piece = &mut buffer[..length];
            self.incoming.take(piece)?;
            if outcome.is_ok() {
                outcome = device.write(offset, piece, false).map_err(nbd_error);
            }
        }
        if outcome.is_ok() && request.flags.contains(CommandFlags::FUA) {
            outcome = device.flush().map_err(nbd_error);
        }
        Ok(Job::Answer(outcome))
    }

    /// Takes the payload of an extended request that is no write off the stream ("NBD_CMD_FLAG_PAYLOAD_LEN").
    /// A filter's range becomes the request's; any other payload is passed over, and an error.
    fn receive_payload(
        &mut self,
        connection: &Connection,
        request: &mut Request,
    ) -> Result<Result<(), NbdError>, Hangup> {
        if self.replies != Replies::Extended || !request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            return Ok(Ok(()));
        }
        let payload = payload_length(request.length)?;
        if request.command != Command::BLOCK_STATUS || payload != StatusFilter::LENGTH {
            self.skip(connection, payload)?;
            return Ok(Err(NbdError::Invalid));
        }
        let mut bytes = [0; StatusFilter::LENGTH];
        self.incoming.take(&mut bytes)?;
        let filter = StatusFilter::decode(&bytes).map_err(|_| NbdError::Invalid);
        Ok(filter.map(|filter| request.length = filter.length))
    }

    fn skip(&mut self, connection: &Connection, mut length: usize) -> Result<(), Hangup> {
        let mut buffer = connection.pool().borrow(SMALL);
        while length > 0 {
            let piece = length.min(buffer.len());
            self.incoming.take(&mut buffer[..piece])?;
            length -= piece;
        }
        Ok(())
    }
}

fn header_length(replies: Replies) -> usize {
    if replies == Replies::Extended { EXTENDED_REQUEST_LENGTH } else { REQUEST_LENGTH }
}

/// The request that `bytes` begin with and how long its header is, if that is there.
pub(super) fn request_at(bytes: &[u8], replies: Replies) -> Option<(Request, usize)> {
    let request = if replies == Replies::Extended {
        Request::decode_extended(bytes.first_chunk()?)
    } else {
        Request::decode(bytes.first_chunk()?)
    };
    request.ok().map(|request| (request, header_length(replies)))
}

/// # Errors
/// [`Hangup::Payload`] for one that is too long even to be passed over.
fn payload_length(length: u64) -> Result<usize, Hangup> {
    let fits = usize::try_from(length).ok().filter(|length| *length <= MAX_PAYLOAD as usize);
    fits.ok_or(Hangup::Payload(length))
}

/// For a request that passed its check. Waits for the memory it needs, so that none is received without.
fn prepare<'a>(connection: &'a Connection, request: &Request) -> Job<'a> {
    let pool = connection.pool();
    match request.command {
        Command::READ => {
            Job::Read(pool.borrow(usize::try_from(request.length).map_or(PIECE, |length| length.min(PIECE))))
        }
        Command::BLOCK_STATUS => Job::Status(pool.borrow(SMALL)),
        _ => Job::Perform,
    }
}
