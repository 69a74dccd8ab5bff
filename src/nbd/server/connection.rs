//! Transmission: one client's requests, served by a few threads that take turns.
//!
//! One thread at a time receives; having a request (and, for a write, its data) it lets the next thread receive,
//! serves the request itself, and sends the reply when it is its turn to send. So copying from the socket,
//! ciphering and copying to the socket overlap, requests are answered in whatever order they finish, and each is
//! answered exactly once: what [`Worker::receive`] returns is consumed by sending its reply.
//!
//! Requests up to [`BUFFER`] move through the thread's own buffer in one piece. Larger ones move in pieces: a
//! write's pieces are written as they come; a read's reply begins once its first piece is there, and an error in a
//! later piece, which a simple reply cannot tell any more, ends the connection ("Simple reply message").
//! So a connection holds at most [`WORKERS`] buffers, whatever its client asks for or leaves unread.

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use zeroize::Zeroize;

use super::Export;
use super::handover::{ConnectionDescription, HandedConnection};
use super::incoming::{Incoming, Next, Pause};
use super::link::Link;
use super::request::{check, nbd_error, perform};
use crate::block::{BlockDevice, Extents};
use crate::nbd::wire::{
    Command, CommandFlags, MAX_PAYLOAD, NbdError, REQUEST_LENGTH, Request, WireError, simple_reply,
};

/// Threads that share a connection.
const WORKERS: usize = 4;
/// Bytes that move in one piece.
const BUFFER: usize = 1 << 20;
/// Stack of a worker: its buffers are on the heap, and a sector or two on the stack.
const STACK: usize = 256 << 10;

pub(super) struct Connection {
    link: Arc<Link>,
    told: ConnectionDescription,
    export: Arc<Export>,
    receiving: Mutex<Receiver>,
    sending: Mutex<()>,
    draining: AtomicBool,
    cut: AtomicBool,
}

struct Receiver {
    incoming: Incoming,
    state: State,
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

/// Why a connection ends before its client says so.
#[derive(Debug, thiserror::Error)]
enum Hangup {
    #[error("client: {0}")]
    Wire(#[from] WireError),
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("the backing failed in the middle of a reply")]
    MidReply,
}

impl Connection {
    pub(super) fn new(
        link: Link,
        told: ConnectionDescription,
        export: Arc<Export>,
        pause: Option<Arc<Pause>>,
    ) -> Self {
        let link = Arc::new(link);
        let incoming = Incoming::new(link.clone(), pause);
        let receiving = Mutex::new(Receiver { incoming, state: State::Open });
        let (draining, cut) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { link, told, export, receiving, sending: Mutex::new(()), draining, cut }
    }

    /// No more requests are read from the socket; those already read ahead are refused, those being served finish.
    pub(super) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.link.shutdown(Shutdown::Read);
    }

    /// Ends what is left of the connection.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.link.shutdown(Shutdown::Both);
    }

    /// Ends long requests, and then what is left of the connection.
    pub(super) fn abort(&self) {
        self.export.device.stop();
        self.cut();
    }

    /// Its last thread has ended: closes it for the client as well, unless a successor will go on.
    pub(super) fn close(&self) {
        if !self.is_paused() {
            self.cut();
        }
    }

    /// For a successor, once its threads have ended; `None` if there is nothing to go on with.
    pub(super) fn into_handed(self) -> Option<HandedConnection> {
        let goes_on = self.is_paused();
        let Self { link, told, receiving, .. } = self;
        drop(receiving);
        let socket = Arc::into_inner(link).filter(|_| goes_on)?.into_socket()?;
        Some(HandedConnection { socket, told })
    }

    /// Every request that was received is answered, and the next one can be received.
    fn is_paused(&self) -> bool {
        let state = self.receiving.lock().unwrap_or_else(PoisonError::into_inner).state;
        state == State::Paused && !self.cut.load(Ordering::Acquire)
    }
}

/// Starts the threads of a connection. `registration` is dropped with the last of them.
///
/// # Errors
/// What the operating system answers where it gives no thread at all; with fewer than wanted it goes on.
pub(super) fn start(
    connection: &Arc<Connection>,
    registration: impl Send + Sync + 'static,
) -> io::Result<()> {
    let registration = Arc::new(registration);
    for number in 0..WORKERS {
        let (connection, registration) = (connection.clone(), registration.clone());
        let spawned =
            thread::Builder::new().name(format!("nbd-{number}")).stack_size(STACK).spawn(move || {
                let device = &*connection.export.device;
                Worker { connection: &connection, device, buffer: Vec::new() }.run();
                // First the device: whoever waits for the last registration relies on nobody using it any more.
                drop(connection);
                drop(registration);
            });
        match spawned {
            Ok(_) => {}
            Err(error) if number == 0 => return Err(error),
            Err(error) => tracing::warn!(%error, "a connection has {number} threads instead of {WORKERS}"),
        }
    }
    Ok(())
}

struct Worker<'a> {
    connection: &'a Connection,
    device: &'a dyn BlockDevice,
    buffer: Vec<u8>,
}

/// A request that awaits its one reply. A write's data stands in the worker's buffer, unless `verdict` says that
/// it came in pieces, which are dealt with already.
#[must_use = "every request is answered"]
struct Pending {
    request: Request,
    verdict: Verdict,
}

enum Verdict {
    Serve,
    Answer(Result<(), NbdError>),
}

impl Worker<'_> {
    fn run(mut self) {
        loop {
            let pending = match self.receive() {
                Ok(Some(pending)) => pending,
                Ok(None) => return,
                // No more requests; those that others are serving are still to be answered.
                Err(hangup) => return tracing::debug!(reason = %hangup, "no more requests"),
            };
            if let Err(hangup) = self.serve(pending) {
                tracing::debug!(reason = %hangup, "connection ends");
                return self.connection.cut();
            }
        }
    }

    /// Waits for its turn and then for a request; `None` when there will be no more.
    fn receive(&mut self) -> Result<Option<Pending>, Hangup> {
        let connection = self.connection;
        let mut receiver = connection.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        if receiver.state != State::Open {
            return Ok(None);
        }
        // Whoever fails here, or is told of the end, has met it for all threads.
        receiver.state = State::Over;
        let Some(request) = receiver.header()? else { return Ok(None) };
        let verdict = match request.command {
            Command::WRITE => self.receive_data(&mut receiver.incoming, &request)?,
            _ => match self.judge(&request) {
                Ok(()) => Verdict::Serve,
                Err(error) => Verdict::Answer(Err(error)),
            },
        };
        receiver.state = State::Open;
        Ok(Some(Pending { request, verdict }))
    }

    fn judge(&self, request: &Request) -> Result<(), NbdError> {
        if self.connection.draining.load(Ordering::Acquire) {
            return Err(NbdError::Shutdown);
        }
        check(request, &self.connection.export)
    }

    /// Takes a write's data off the stream, whether it is wanted or not.
    fn receive_data(&mut self, incoming: &mut Incoming, request: &Request) -> Result<Verdict, Hangup> {
        if request.length > MAX_PAYLOAD {
            return Err(WireError::Length(request.length).into());
        }
        let mut outcome = self.judge(request);
        let length = request.length as usize;
        if outcome.is_ok() && length <= BUFFER {
            incoming.take(self.space(length))?;
            return Ok(Verdict::Serve);
        }
        for (offset, piece) in pieces(request) {
            incoming.take(self.space(piece))?;
            if outcome.is_ok() {
                let data = &mut self.buffer[..piece];
                outcome = self.device.write(offset, data, false).map_err(nbd_error);
            }
        }
        if outcome.is_ok() && request.flags.contains(CommandFlags::FUA) {
            outcome = self.device.flush().map_err(nbd_error);
        }
        Ok(Verdict::Answer(outcome))
    }

    fn serve(&mut self, pending: Pending) -> Result<(), Hangup> {
        let Pending { request, verdict } = pending;
        let result = match verdict {
            Verdict::Answer(result) => result,
            Verdict::Serve if request.command == Command::READ => return self.serve_read(&request),
            Verdict::Serve if request.command == Command::WRITE => {
                let durable = request.flags.contains(CommandFlags::FUA);
                let data = &mut self.buffer[..request.length as usize];
                self.device.write(request.offset, data, durable).map_err(nbd_error)
            }
            Verdict::Serve => perform(&request, self.device),
        };
        Ok(self.connection.send(&simple_reply(request.cookie, result), &[])?)
    }

    fn serve_read(&mut self, request: &Request) -> Result<(), Hangup> {
        let connection = self.connection;
        let mut pieces = pieces(request);
        let (offset, first) = pieces.next().unwrap_or((request.offset, 0));
        let result = self.device.read(offset, self.space(first), &mut Extents::default()).map_err(nbd_error);
        let header = simple_reply(request.cookie, result);
        if result.is_err() {
            return Ok(connection.send(&header, &[])?);
        }
        // Nobody else may send until all of the data has left.
        let turn = connection.sending.lock().unwrap_or_else(PoisonError::into_inner);
        connection.write(&header, &self.buffer[..first])?;
        for (offset, piece) in pieces {
            self.device
                .read(offset, self.space(piece), &mut Extents::default())
                .map_err(|_| Hangup::MidReply)?;
            connection.write(&[], &self.buffer[..piece])?;
        }
        drop(turn);
        Ok(())
    }

    /// The first `length` bytes of the buffer, which grows as needed up to [`BUFFER`] and then stays.
    fn space(&mut self, length: usize) -> &mut [u8] {
        if self.buffer.len() < length {
            // A vector that grows copies what it holds and leaves it behind unwiped.
            self.buffer.zeroize();
            self.buffer = vec![0; length.next_power_of_two()];
        }
        &mut self.buffer[..length]
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.buffer.zeroize();
        if thread::panicking() {
            // The request in hand will not be answered: its client must not wait for it.
            self.connection.cut();
        }
    }
}

impl Connection {
    fn send(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let _turn = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(header, data)
    }

    /// Writes all of both; the caller holds the turn to send.
    fn write(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let mut slices = &mut [IoSlice::new(header), IoSlice::new(data)][..];
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

impl Receiver {
    /// The next request's header; `None` at the stream's orderly end, after NBD_CMD_DISC, and in a pause.
    fn header(&mut self) -> Result<Option<Request>, Hangup> {
        match self.incoming.next()? {
            Next::Request => {}
            Next::End => return Ok(None),
            Next::Pause => {
                self.state = State::Paused;
                return Ok(None);
            }
        }
        let mut header = [0; REQUEST_LENGTH];
        self.incoming.take(&mut header)?;
        let request = Request::decode(&header)?;
        Ok((request.command != Command::DISC).then_some(request))
    }
}

/// Offsets and lengths of the pieces that a request's data moves in.
fn pieces(request: &Request) -> impl Iterator<Item = (u64, usize)> + use<> {
    let (offset, length) = (request.offset, request.length as usize);
    (0..length).step_by(BUFFER).map(move |start| (offset + start as u64, BUFFER.min(length - start)))
}
