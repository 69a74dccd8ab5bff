//! The listening end: connections, their limits, and answers.

mod request;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use self::request::Asked;
use super::peer::{self, Peer};
use super::{Command, ControlError, Order, Refusal, RefusalKind};
use crate::nbd::server::{SocketFile, bind_unix};

/// Most connections at once; more wait in the socket's queue. A silent one costs a task and a descriptor.
const MAX_CONNECTIONS: usize = 256;
/// Most requests that are carried out at once; more wait.
const MAX_REQUESTS: usize = 32;
/// How long a client may take to send a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a header.
const MAX_HEADER: usize = 16 * 1024;
/// How long requests in flight may take to be answered after the end was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a peer that was refused is given to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause after a failed accept: the usual reason, too few file descriptors, does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound control socket. Its file goes with it.
pub struct Bound {
    listener: UnixListener,
    file: SocketFile,
}

impl Bound {
    pub(super) fn new(path: &Path) -> Result<Self, ControlError> {
        let (listener, file) = bind_unix(path)?;
        Ok(Self { listener, file })
    }

    /// Takes over a socket that another process bound and handed over; its path is the one it was bound to. To be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError::Descriptor`] for anything but a listening Unix socket whose file is still there.
    pub fn from_fd(socket: OwnedFd) -> Result<Self, ControlError> {
        Self::adopt(socket).map_err(ControlError::Descriptor)
    }

    fn adopt(socket: OwnedFd) -> io::Result<Self> {
        if !rustix::net::sockopt::socket_acceptconn(&socket)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
        }
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let path = address
            .as_pathname()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is bound to no path"))?;
        let file = SocketFile::adopt(path)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, file })
    }

    /// Gives the socket away, to a process that goes on listening: clients that connect meanwhile wait in its
    /// queue. The file stays.
    ///
    /// # Errors
    /// [`ControlError::Descriptor`]; the socket is closed then and its file removed.
    pub fn into_fd(self) -> Result<OwnedFd, ControlError> {
        let listener = self.listener.into_std().map_err(ControlError::Descriptor)?;
        self.file.leave();
        Ok(listener.into())
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Serves root, the user of this process and the users `others` until `shutdown` completes, and sends what they
    /// ask to `orders`. Then takes no more connections, gives requests in flight five seconds to be answered, and
    /// returns the socket, to be dropped or handed over.
    pub async fn serve(
        self,
        others: Vec<u32>,
        orders: mpsc::Sender<Order>,
        shutdown: impl Future<Output = ()>,
    ) -> Self {
        let shared = Arc::new(Shared { others, orders, requests: Semaphore::new(MAX_REQUESTS) });
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (stop, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = self.accept(&permits) => accepted,
            };
            while connections.try_join_next().is_some() {}
            let Some((stream, permit)) = accepted else { continue };
            let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
            connections.spawn(async move {
                attend(stream, shared, stopped).await;
                drop(permit);
            });
        }
        drop(stop);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("control requests that were still unanswered at the end are cut off");
            connections.shutdown().await;
        }
        self
    }

    async fn accept(&self, permits: &Arc<Semaphore>) -> Option<(UnixStream, OwnedSemaphorePermit)> {
        let permit = Arc::clone(permits).acquire_owned().await.ok()?;
        match self.listener.accept().await {
            Ok((stream, _)) => Some((stream, permit)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

struct Shared {
    others: Vec<u32>,
    orders: mpsc::Sender<Order>,
    requests: Semaphore,
}

/// One client and its one request: a client that wants more connects again, so none holds a connection idle.
async fn attend(stream: UnixStream, shared: Arc<Shared>, mut stopped: watch::Receiver<()>) {
    let peer = match peer::admit(&stream, &shared.others) {
        Ok(peer) => peer,
        Err(refusal) => {
            tracing::warn!("control connection refused: {}", refusal.message);
            // A peer that has gone needs no farewell.
            let _ = tokio::time::timeout(FAREWELL, turn_away(stream, &refusal)).await;
            return;
        }
    };
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.respond(request, peer).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        _ = stopped.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(uid = peer.uid, pid = peer.pid, %error, "control connection ended");
    }
}

/// Says why, without reading what the peer asks. What it sends is thrown away until it has closed: closing first
/// would make its sending fail before it has read the answer.
async fn turn_away(mut stream: UnixStream, refusal: &Refusal) -> io::Result<()> {
    let body = body_of(refusal);
    let head = format!(
        "HTTP/1.1 {} Forbidden\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        refusal.kind.status(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    let mut thrown_away = [0; 4096];
    while stream.read(&mut thrown_away).await? > 0 {}
    Ok(())
}

impl Shared {
    async fn respond(&self, request: Request<Incoming>, peer: Peer) -> Response<Full<Bytes>> {
        let what = format!("{} {}", request.method(), request.uri().path());
        let outcome = match request::read(request).await {
            Ok(Asked::Version) => Ok(version()),
            Ok(Asked::Volume(command)) => self.carry_out(command, peer).await,
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(value) => {
                tracing::debug!(uid = peer.uid, pid = peer.pid, "control: {what}");
                response(200, format!("{value}\n"))
            }
            Err(refusal) => {
                let message = &refusal.message;
                tracing::debug!(uid = peer.uid, pid = peer.pid, "control: {what} refused: {message}");
                let mut response = response(refusal.kind.status(), body_of(&refusal));
                if let RefusalKind::Method(allowed) = refusal.kind {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
                }
                response
            }
        }
    }

    /// Sends a command on, and waits for its answer however long it takes.
    async fn carry_out(&self, command: Command, peer: Peer) -> Result<Value, Refusal> {
        let ending = || {
            let message = "the volume is ending and takes no more commands";
            Refusal::new(RefusalKind::Ending, "ending", message, 1)
        };
        // The semaphore is never closed.
        let _permit = self.requests.acquire().await;
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order { command, peer, reply }).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }
}

fn version() -> Value {
    json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "api": ["v1"],
        "pid": std::process::id(),
    })
}

fn body_of(refusal: &Refusal) -> String {
    format!("{}\n", json!({ "error": refusal }))
}

fn response(status: u16, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
