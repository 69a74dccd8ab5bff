//! The NBD server: listeners, handshake, transmission, orderly end.
//!
//! Accepting and haggling is done by tokio tasks under a deadline, so that a thousand silent peers cost a task each
//! and no thread. A client that has chosen its export gets a few threads of its own, for what
//! follows is copying and ciphering, which a hand-off between tasks only slows down.
//!
//! The server knows nothing of keys and ciphers: an [`Export`] is any [`BlockDevice`](crate::block::BlockDevice).
//!
//! It ends in one of two ways. [`Signal::End`] answers what is in flight and closes everything.
//! [`Signal::HandOver`] stops every connection between two requests and returns the sockets, still open, as
//! [`Handed`]; a successor that is given them goes on where this server stopped, and no client notices.

mod admission;
mod batch;
mod buffers;
mod connection;
mod crew;
mod exports;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handover;
mod handshake;
mod incoming;
mod inline;
mod link;
mod listen;
mod overseer;
mod patience;
mod processors;
mod read;
mod receiver;
mod reply;
mod request;
mod seldom;
mod socket;
mod tls;
mod traffic;
mod worker;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::Instrument as _;

pub use admission::Users;
pub use exports::{Agreed, Export, Exports, Replies};
pub use handover::{
    ConnectionDescription, Handed, HandedConnection, ListenerDescription, ResumeError, Resumed,
};
pub use handshake::{Answer, Fault, Session, Then, Upgrade};
pub use listen::{Address, ListenError, Listener, Ownership, SocketFile, Terms, bind_unix, is_abandoned};
pub use tls::{Role, Tls, TlsError, TlsMode, TlsSettings};

use self::admission::{Admission, Admitted, Peer};
use self::connection::Connection;
use self::incoming::Pause;
use self::link::Link;
use self::overseer::Overseer;
use self::socket::Stream;

/// At a hand-over, for clients that have not chosen their export yet; then they are cut.
const LAST_HANDSHAKES: Duration = Duration::from_secs(5);

/// How much clients may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, haggling ones included; more wait in the listener's queue.
    pub connections: usize,
    /// Connections of one peer at once. For a new one, the oldest that is in its handshake is closed; if there is
    /// none, the new one is. A peer is a user on a Unix socket, an IPv4 address or IPv6
    /// network (/64) on TCP, a context id on vsock.
    pub connections_per_peer: usize,
    /// For the whole handshake.
    pub handshake: Duration,
    /// For requests in flight when the server ends or hands over; then connections are cut.
    pub drain: Duration,
    /// Clients can be handed over while they are idle. It costs one system call wherever a request is waited for;
    /// without it, [`Signal::HandOver`] waits for idle clients as for busy ones, and then cuts them.
    pub restartable: bool,
}

impl Default for Limits {
    fn default() -> Self {
        let ten = Duration::from_secs(10);
        Self { connections: 1024, connections_per_peer: 256, handshake: ten, drain: ten, restartable: false }
    }
}

/// What a server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Serve.
    Run,
    /// Take no more requests, answer those in flight, and close every connection.
    End,
    /// Take no more requests, answer those in flight, and return listeners and connections for a successor.
    HandOver,
}

/// How serving ended.
#[derive(Default)]
pub struct Served {
    /// Connections that reached transmission, those of earlier servers included.
    pub connections: u64,
    /// Connections that were still busy when the time for draining was over.
    pub cut_off: usize,
    /// What a successor goes on with, after [`Signal::HandOver`].
    pub handed: Option<Handed>,
}

/// Serves `exports` on all listeners, and to the clients that a predecessor left, until `stop` says so; then takes
/// no more connections, lets requests in flight finish, and returns with no thread or task left, and none that uses
/// an export's device.
///
/// [`Signal::End`] is also what counts once nobody is left to send a signal, and [`Signal::HandOver`] can be taken
/// back by it for as long as handshakes go on.
pub async fn serve(
    listeners: Vec<Listener>,
    exports: Exports,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    resumed: Resumed,
    mut stop: watch::Receiver<Signal>,
) -> Served {
    let (done, all_done) = mpsc::channel(1);
    let overseer = Arc::new(Overseer::default());
    // It ends with this set, and holds on to nothing.
    let mut overseeing = JoinSet::new();
    overseeing.spawn({
        let overseer = overseer.clone();
        async move { overseer.run().await }
    });
    let shared = Arc::new(Shared {
        exports,
        tls,
        limits,
        admission: Admission::new(&limits),
        pause: if limits.restartable { pause() } else { None },
        overseer,
        live: Mutex::new(Table { live: HashMap::new(), count: resumed.earlier() }),
        done,
    });
    resumed.connections.into_iter().for_each(|client| resume(client, &shared));
    let mut accepting = JoinSet::new();
    for (place, listener) in listeners.into_iter().enumerate() {
        let (shared, stop) = (shared.clone(), stop.clone());
        accepting.spawn(async move { (place, accept(listener, shared, stop).await) });
    }
    stopped(&mut stop).await;
    // Accept loops end now too, and take their haggling clients with them.
    let mut listeners = Vec::new();
    while let Some(ended) = accepting.join_next().await {
        listeners.extend(ended);
    }
    let (connections, live) = {
        let table = shared.table();
        (table.count, table.live.values().cloned().collect::<Vec<_>>())
    };
    if *stop.borrow() != Signal::HandOver {
        drop(listeners);
        return Served { connections, cut_off: end(live, shared, all_done).await, handed: None };
    }
    listeners.sort_by_key(|(place, _)| *place);
    let listeners = listeners.into_iter().map(|(_, listener)| listener).collect();
    let (clients, cut_off) = hand_over(live, shared, all_done).await;
    Served { connections, cut_off, handed: Some(Handed { listeners, connections: clients }) }
}

fn pause() -> Option<Arc<Pause>> {
    Pause::new()
        .inspect_err(
            |error| tracing::warn!(%error, "no eventfd: clients that are idle cannot be handed over"),
        )
        .ok()
        .map(Arc::new)
}

/// Closes every connection once it has answered what it has received; returns how many had to be cut.
async fn end(live: Vec<Arc<Connection>>, shared: Arc<Shared>, mut all_done: mpsc::Receiver<()>) -> usize {
    live.iter().for_each(|connection| connection.begin_drain());
    let drain = shared.limits.drain;
    drop(shared);
    // Every connection holds a sender: the channel closes when the last one is gone.
    if tokio::time::timeout(drain, all_done.recv()).await.is_ok() {
        return 0;
    }
    // Those that ended meanwhile are held by nobody but this list.
    let busy: Vec<_> = live.iter().filter(|connection| Arc::strong_count(connection) > 1).collect();
    busy.iter().for_each(|connection| connection.abort());
    all_done.recv().await;
    busy.len()
}

/// Stops every connection between two requests, and drains those that cannot be handed over; returns those that are
/// there to go on, and how many had to be cut.
async fn hand_over(
    live: Vec<Arc<Connection>>,
    shared: Arc<Shared>,
    mut all_done: mpsc::Receiver<()>,
) -> (Vec<HandedConnection>, usize) {
    if let Some(Err(error)) = shared.pause.as_ref().map(|pause| pause.ask()) {
        tracing::warn!(%error, "clients that are idle cannot be woken for the hand-over");
    }
    // Nothing waits for a pause that they cannot keep.
    live.iter().filter(|connection| !connection.can_be_handed_over()).for_each(|live| live.begin_drain());
    let drain = shared.limits.drain;
    drop(shared);
    let mut cut_off = 0;
    if tokio::time::timeout(drain, all_done.recv()).await.is_err() {
        let busy: Vec<_> = live.iter().filter(|connection| Arc::strong_count(connection) > 1).collect();
        // All of them before the device is stopped: no client that goes on may see a request fail for it.
        busy.iter().for_each(|connection| connection.cut());
        busy.iter().for_each(|connection| connection.abort());
        all_done.recv().await;
        cut_off = busy.len();
    }
    // Threads have let go of their connections before the channel closed.
    let connections = live.into_iter().filter_map(|connection| Arc::into_inner(connection)?.into_handed());
    (connections.collect(), cut_off)
}

struct Shared {
    exports: Exports,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    admission: Admission,
    pause: Option<Arc<Pause>>,
    overseer: Arc<Overseer>,
    live: Mutex<Table>,
    done: mpsc::Sender<()>,
}

struct Table {
    live: HashMap<u64, Arc<Connection>>,
    /// Connections so far, and the last one's number.
    count: u64,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes clients until it is time to stop, and gives the listener back.
async fn accept(listener: Listener, shared: Arc<Shared>, mut stop: watch::Receiver<Signal>) -> Listener {
    let mut haggling = JoinSet::new();
    let stopping = stop.clone();
    loop {
        let accepted = listener.accept(|| shared.admission.room());
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(_) = haggling.join_next() => {}
            accepted = accepted => match accepted {
                Ok((stream, room)) => {
                    if let Some(admitted) = shared.admission.admit(&listener, stream.as_fd(), room) {
                        haggling.spawn(attend(stream, shared.clone(), admitted, stopping.clone()));
                    }
                }
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to come back rather than spin.
                    shared.admission.failed(&error);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    let last = async { while haggling.join_next().await.is_some() {} };
    if *stop.borrow() == Signal::HandOver {
        // Whoever needs longer than this is cut below.
        let _ = tokio::time::timeout(LAST_HANDSHAKES, last).await;
    } else {
        // They know, and do not need long.
        last.await;
    }
    haggling.shutdown().await;
    listener
}

/// Returns once `stop` says so, or nobody is left to say it.
async fn stopped(stop: &mut watch::Receiver<Signal>) {
    drop(stop.wait_for(|signal| *signal != Signal::Run).await);
}

/// One client, from its first byte to its last.
async fn attend(stream: Stream, shared: Arc<Shared>, mut admitted: Admitted, stop: watch::Receiver<Signal>) {
    let peer = Peer::of(stream.as_fd()).map_or_else(|_| "unknown".into(), |peer| peer.to_string());
    let displaced = admitted.displaced();
    let settle = || admitted.settle();
    let haggle = handshake::haggle(stream, &shared.exports, shared.tls.as_ref(), stop.clone(), settle);
    // What is logged within says of whom.
    let haggle = haggle.instrument(tracing::warn_span!("client", peer));
    let haggled = tokio::select! {
        haggled = tokio::time::timeout(shared.limits.handshake, haggle) => haggled,
        () = displaced => return tracing::debug!("handshake gives way to a newer one's"),
    };
    let (channel, export, agreed) = match haggled {
        Ok(Ok(handshake::Outcome::Transmit(channel, export, agreed))) => (channel, export, agreed),
        Ok(Ok(handshake::Outcome::Over)) => return,
        Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
        Err(_) => return tracing::debug!("handshake took too long"),
    };
    if *stop.borrow() == Signal::End {
        return;
    }
    let told = ConnectionDescription::of(&export, agreed);
    let begun = channel.into_link().and_then(|link| transmit(link, told, export, &shared, admitted));
    if let Err(error) = begun {
        tracing::warn!(%error, "cannot serve a connection");
    }
}

/// Goes on with a predecessor's client.
fn resume(client: HandedConnection, shared: &Arc<Shared>) {
    let export = shared.exports.find(&client.told.export);
    let Some(export) = export.filter(|export| client.told.holds_for(export)).cloned() else {
        shared.table().count += 1;
        return tracing::warn!("a client was told of another export by the predecessor, and is cut");
    };
    let admitted = shared.admission.readmit(client.socket.as_fd());
    let HandedConnection { socket, told } = client;
    if let Err(error) = transmit(Link::Plain(socket), told, export, shared, admitted) {
        tracing::warn!(%error, "cannot go on with a predecessor's client");
    }
}

/// Hands the client over to threads of its own, which outlive this task.
fn transmit(
    link: Link,
    told: ConnectionDescription,
    export: Arc<Export>,
    shared: &Arc<Shared>,
    admitted: Admitted,
) -> io::Result<()> {
    let connection = Connection::new(link, told, export, shared.pause.clone(), shared.overseer.clone());
    let connection = Arc::new(connection);
    let number = {
        let mut table = shared.table();
        table.count += 1;
        let number = table.count;
        table.live.insert(number, connection.clone());
        number
    };
    tracing::debug!(connection = number, "transmission begins");
    let registration = Registration {
        number,
        connection: Arc::downgrade(&connection),
        shared: Arc::downgrade(shared),
        _admitted: admitted,
        _done: shared.done.clone(),
    };
    connection::start(&connection, Arc::new(registration))
}

/// What the server keeps of a connection; dropped when its last thread ends.
struct Registration {
    number: u64,
    connection: Weak<Connection>,
    shared: Weak<Shared>,
    _admitted: Admitted,
    _done: mpsc::Sender<()>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Whoever still lists the connection must not keep its client waiting for the end.
        if let Some(connection) = self.connection.upgrade() {
            connection.close();
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.table().live.remove(&self.number);
        }
        tracing::debug!(connection = self.number, "connection closed");
    }
}
