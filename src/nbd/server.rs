//! The NBD server: listeners, handshake, transmission, orderly end.
//!
//! Accepting and haggling is done by tokio tasks under a deadline, so that a thousand silent peers cost a task each
//! and no thread. A client that has chosen its export gets a few threads of its own, for what
//! follows is copying and ciphering, which a hand-off between tasks only slows down.
//!
//! The server knows nothing of keys and ciphers: an [`Export`] is any [`BlockDevice`].

mod connection;
mod handshake;
mod listen;
mod request;
mod socket;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

pub use listen::{Address, ListenError, Listener, SocketFile, bind_unix, is_abandoned};

use self::connection::Connection;
use self::socket::Stream;
use crate::block::BlockDevice;

/// What a client may choose.
pub struct Export {
    /// Its name; at most 4096 bytes.
    pub name: String,
    /// A text for people; at most 4096 bytes.
    pub description: String,
    /// What is served.
    pub device: Arc<dyn BlockDevice>,
}

/// How much clients may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, haggling ones included; more wait in the listener's queue.
    pub connections: usize,
    /// For the whole handshake.
    pub handshake: Duration,
    /// For requests in flight when the server ends; then connections are cut.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 128, handshake: Duration::from_secs(10), drain: Duration::from_secs(10) }
    }
}

/// How serving ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections that reached transmission.
    pub connections: u64,
    /// Connections that were still busy when the time for draining was over.
    pub cut_off: usize,
}

/// Serves `export` (under its name, and as the default export) on all listeners until `stop` says so; then takes
/// no more connections, lets requests in flight finish, and returns with no thread or task left.
pub async fn serve(
    listeners: Vec<Listener>,
    export: Export,
    limits: Limits,
    stop: watch::Receiver<bool>,
) -> Served {
    let (done, mut all_done) = mpsc::channel(1);
    let shared = Arc::new(Shared {
        export: Arc::new(export),
        limits,
        permits: Arc::new(Semaphore::new(limits.connections)),
        live: Mutex::default(),
        done,
    });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, shared.clone(), stop.clone()));
    }
    // Accept loops end when `stop` is set, and take their listeners and haggling clients with them.
    while accepting.join_next().await.is_some() {}
    let (served, live) = {
        let table = shared.table();
        (Served { connections: table.count, cut_off: 0 }, table.live.values().cloned().collect::<Vec<_>>())
    };
    live.iter().for_each(|connection| connection.begin_drain());
    drop(shared);
    // Every connection holds a sender: the channel closes when the last one is gone.
    if tokio::time::timeout(limits.drain, all_done.recv()).await.is_ok() {
        return served;
    }
    // Those that ended meanwhile are held by nobody but this list.
    let busy: Vec<_> = live.iter().filter(|connection| Arc::strong_count(connection) > 1).collect();
    busy.iter().for_each(|connection| connection.abort());
    all_done.recv().await;
    Served { cut_off: busy.len(), ..served }
}

struct Shared {
    export: Arc<Export>,
    limits: Limits,
    permits: Arc<Semaphore>,
    live: Mutex<Table>,
    done: mpsc::Sender<()>,
}

#[derive(Default)]
struct Table {
    live: HashMap<u64, Arc<Connection>>,
    count: u64,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut haggling = JoinSet::new();
    let stopping = stop.clone();
    loop {
        let accepted = async {
            // The permit first: a client that finds no room waits in the listener's queue.
            let permit = shared.permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(_) = haggling.join_next() => {}
            (permit, stream) = accepted => match (permit, stream) {
                (Ok(permit), Ok(stream)) => {
                    haggling.spawn(attend(stream, shared.clone(), permit, stopping.clone()));
                }
                (_, Err(error)) => {
                    // Out of descriptors, mostly: wait for some to come back rather than spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                (Err(_), _) => break,
            },
        }
    }
    haggling.shutdown().await;
}

/// Returns once `stop` says so, or nobody is left to say it.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// One client, from its first byte to its last.
async fn attend(
    mut stream: Stream,
    shared: Arc<Shared>,
    permit: OwnedSemaphorePermit,
    stop: watch::Receiver<bool>,
) {
    let haggled =
        tokio::time::timeout(shared.limits.handshake, handshake::haggle(&mut stream, &shared.export)).await;
    match haggled {
        Ok(Ok(handshake::Outcome::Transmit)) => {}
        Ok(Ok(handshake::Outcome::Over)) => return,
        Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
        Err(_) => return tracing::debug!("handshake took too long"),
    }
    if *stop.borrow() {
        return;
    }
    if let Err(error) = transmit(stream, &shared, permit) {
        tracing::warn!(%error, "cannot serve a connection");
    }
}

/// Hands the client over to threads of its own, which outlive this task.
fn transmit(stream: Stream, shared: &Arc<Shared>, permit: OwnedSemaphorePermit) -> io::Result<()> {
    let connection = Arc::new(Connection::new(stream.into_blocking()?, shared.export.device.clone()));
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
        _permit: permit,
        _done: shared.done.clone(),
    };
    connection::start(&connection, registration)
}

/// What the server keeps of a connection; dropped when its last thread ends.
struct Registration {
    number: u64,
    connection: Weak<Connection>,
    shared: Weak<Shared>,
    _permit: OwnedSemaphorePermit,
    _done: mpsc::Sender<()>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Whoever still lists the connection must not keep its client waiting for the end.
        if let Some(connection) = self.connection.upgrade() {
            connection.cut();
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.table().live.remove(&self.number);
        }
        tracing::debug!(connection = self.number, "connection closed");
    }
}
