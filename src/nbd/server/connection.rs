//! Transmission: one client's requests, served by a few threads that take turns.
//!
//! One thread at a time receives; having a request (and, for a write, its data) it passes the turn on, serves the
//! request itself, and sends the reply when it is its turn to send. So copying from the socket, ciphering and
//! copying to the socket overlap, and requests are answered in whatever order they finish.
//!
//! | Module | Knows |
//! |---|---|
//! | `incoming` | the stream's bytes, and where it may stop for a successor |
//! | `receiver` | one request after the other, with its payload |
//! | `request` | which requests are legal, and what they ask of the device |
//! | `read` | how what is read goes out |
//! | `reply` | how replies look, and that each request gets one |
//! | `inline` | small requests that need not wait, served and answered together |
//! | `batch` | small requests that are more work, or may wait, served and answered together |
//! | `patience` | how the next request is waited for |
//! | `processors` | how many there are, and for what |
//! | `traffic` | requests that a device has under way at once |
//! | `worker` | what a thread does |
//! | `crew` | which threads there are, and whose turn it is to receive |
//! | `buffers` | how much memory requests in flight may take |
//! | `overseer` | when a connection has too few threads, or too many |
//!
//! Requests up to [`PIECE`](super::buffers::PIECE) move through one buffer in one piece. Larger ones move through
//! it in pieces: a write's pieces are written as they come, a read's are sent as they are read.

use std::io;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::batch::Pace;
use super::buffers::Pool;
use super::crew::Crew;
use super::handover::{ConnectionDescription, HandedConnection};
use super::incoming::{Incoming, Pause};
use super::link::Link;
use super::overseer::Overseer;
use super::patience::Patience;
use super::processors::{Seats, helpers, processors};
use super::receiver::Receiver;
use super::reply::Outgoing;
use super::request::check;
use super::socket::Socket;
use super::worker::{End, Worker};
use super::{Export, Replies};
use crate::block::BlockDevice;
use crate::nbd::wire::{NbdError, Request};

/// Threads that a busy connection keeps at most. It keeps one more than there are processors, for the one with the turn
/// mostly waits; others stand in each other's way.
const STEADY: usize = 4;
/// Threads that it keeps where each request waits for a disk, for those that no lane takes: they need the processors less
/// than the disk needs them.
const STEADY_WAITING: usize = 8;
/// Stack of a thread: buffers are on the heap, and a sector or two on the stack.
const STACK: usize = 256 << 10;

pub(super) struct Connection {
    link: Arc<Link>,
    told: ConnectionDescription,
    export: Arc<Export>,
    crew: Arc<Crew<Receiver>>,
    outgoing: Outgoing,
    pool: Arc<Pool>,
    overseer: Arc<Overseer>,
    pace: Pace,
    /// For threads that serve while another one goes on.
    helpers: &'static Seats,
    draining: AtomicBool,
    cut: AtomicBool,
}

/// What whoever started a connection wants dropped when its last thread has ended.
pub(super) type Registration = dyn Send + Sync;

impl Connection {
    pub(super) fn new(
        link: Link,
        told: ConnectionDescription,
        export: Arc<Export>,
        pause: Option<Arc<Pause>>,
        overseer: Arc<Overseer>,
    ) -> Self {
        let link = Arc::new(link);
        let replies = told.agreed.replies;
        let receiver = Receiver::new(Incoming::new(link.clone(), pause), replies);
        let waits = export.device.features().always_waits;
        let steady = if waits { STEADY_WAITING } else { (processors() + 1).min(STEADY) };
        Self {
            outgoing: Outgoing::new(link.clone(), replies),
            link,
            told,
            export,
            crew: Arc::new(Crew::new(receiver, steady)),
            pool: Arc::new(Pool::new(overseer.allowance(), waits)),
            overseer,
            pace: Pace::default(),
            helpers: helpers(),
            draining: AtomicBool::new(false),
            cut: AtomicBool::new(false),
        }
    }

    /// No more requests are read from the socket; those already read ahead are refused, those being served finish.
    pub(super) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.link.shutdown(Shutdown::Read);
    }

    /// Whether a successor can go on with it once it is paused; if not, it is to be drained.
    pub(super) fn can_be_handed_over(&self) -> bool {
        self.link.can_be_handed_over()
    }

    /// Ends what is left of the connection.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.link.shutdown(Shutdown::Both);
    }

    /// Nobody receives what is sent from now on.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
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
        let Self { link, told, crew, outgoing, .. } = self;
        drop((crew.dismiss(), outgoing));
        let socket = Arc::into_inner(link).filter(|_| goes_on)?.into_socket()?;
        Some(HandedConnection { socket, told })
    }

    /// Every request that was received is answered, and the next one can be received.
    fn is_paused(&self) -> bool {
        self.crew.view(Receiver::is_paused) == Some(true) && !self.cut.load(Ordering::Acquire)
    }

    /// Whether a request may touch the device; if not, what to answer.
    pub(super) fn judge(&self, request: &Request) -> Result<(), NbdError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(NbdError::Shutdown);
        }
        check(request, &self.export, self.told.agreed)
    }

    pub(super) fn device(&self) -> &dyn BlockDevice {
        &*self.export.device
    }

    /// What its stream comes from and goes to as it is; `None` under TLS.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.link.plain().map(Socket::as_fd)
    }

    /// How the rest of a large request is waited for by a thread that nobody else works beside.
    pub(super) fn rest(&self) -> Patience {
        self.link.rest()
    }

    pub(super) fn crew(&self) -> &Arc<Crew<Receiver>> {
        &self.crew
    }

    /// How requests look, and their replies.
    pub(super) fn replies(&self) -> Replies {
        self.told.agreed.replies
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(super) fn helpers(&self) -> &'static Seats {
        self.helpers
    }

    pub(super) fn outgoing(&self) -> &Outgoing {
        &self.outgoing
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(super) fn overseer(&self) -> &Overseer {
        &self.overseer
    }
}

/// Starts a connection with its first thread. `registration` is dropped with the last one.
///
/// # Errors
/// What the operating system answers where it gives no thread.
pub(super) fn start(connection: &Arc<Connection>, registration: Arc<Registration>) -> io::Result<()> {
    connection.crew.join();
    spawn(connection, &registration)?;
    connection.overseer.enlist(connection, &registration);
    Ok(())
}

/// Adds a thread, if there may be more.
pub(super) fn recruit(connection: &Arc<Connection>, registration: &Arc<Registration>) {
    if connection.crew.join() {
        add(connection, registration);
    }
}

/// Adds a thread that has joined already. Where the operating system gives none, it goes without.
fn add(connection: &Arc<Connection>, registration: &Arc<Registration>) {
    if let Err(error) = spawn(connection, registration) {
        tracing::debug!(%error, threads = connection.crew.threads(), "no more threads for a connection");
    }
}

/// Starts a thread that has joined already; if it cannot be started, it leaves.
fn spawn(connection: &Arc<Connection>, registration: &Arc<Registration>) -> io::Result<()> {
    let mut member =
        Member { connection: connection.clone(), registration: registration.clone(), has_left: false };
    let run = move || {
        let Member { connection, registration, has_left } = &mut member;
        let end = Worker::new(connection).run(|| add(connection, registration));
        *has_left = end == End::Dismissed;
        drop(member);
    };
    thread::Builder::new().name("nbd".into()).stack_size(STACK).spawn(run).map(drop)
}

/// What a thread holds as long as it lives; let go of by a panic as well. First the connection, and with it the
/// device: whoever waits for the last registration relies on nobody using it any more.
struct Member {
    connection: Arc<Connection>,
    registration: Arc<Registration>,
    has_left: bool,
}

impl Drop for Member {
    fn drop(&mut self) {
        if !self.has_left {
            self.connection.crew.leave();
        }
    }
}

#[cfg(test)]
mod tests;
