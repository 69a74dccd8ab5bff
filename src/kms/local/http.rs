//! The embedded KMS over HTTP, in AWS's JSON 1.1 protocol, for any AWS client.
//!
//! Requests are signed (Signature Version 4) with the credentials of one of the principals. The connection is not
//! encrypted, so the server stays on loopback unless told otherwise.

mod control;
mod dispatch;
mod server;
mod sigv4;
mod sts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use self::control::Faults;
use self::server::Server;
use super::admin::Admin;
use crate::kms::{ErrorClass, KmsError};

/// Most connections at once; more wait. A client keeps a handful open.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send a request's header, also on a connection that was idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long running requests may take to end after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after a failed accept: the usual reason, too few file descriptors, does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServeOptions {
    /// Takes orders at `/_control/` to fail, slow down and throttle calls, unauthenticated: for tests. Loopback
    /// only.
    pub faults: bool,
    /// Serves on an address that others can reach, without encryption: plaintext data keys cross the network.
    pub insecure: bool,
}

impl ServeOptions {
    /// Checks that the listener's address may be served on.
    ///
    /// # Errors
    /// [`ErrorClass::Config`] for an address other than loopback that the options do not allow.
    pub fn check(self, listener: &TcpListener) -> Result<(), KmsError> {
        let refuse = |message: String| Err(KmsError::new("serve", ErrorClass::Config, message));
        let address = match listener.local_addr() {
            Ok(address) => address,
            Err(error) => return refuse(format!("the listener has no address: {error}")),
        };
        if address.ip().is_loopback() {
            return Ok(());
        }
        if self.faults {
            return refuse(format!(
                "{address} is not a loopback address, and fault injection is for those only"
            ));
        }
        if !self.insecure {
            return refuse(format!(
                "{address} is not a loopback address, and data keys would cross the network unencrypted"
            ));
        }
        tracing::warn!(%address, "the KMS serves data keys unencrypted to the network");
        Ok(())
    }
}

/// Serves `kms` on `listener` until `shutdown` completes; then running requests have five seconds to end.
///
/// # Errors
/// [`ErrorClass::Config`] for an address other than loopback that `options` does not allow.
pub async fn serve(
    kms: &Admin,
    listener: TcpListener,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), KmsError> {
    options.check(&listener)?;
    let server = Arc::new(Server::new(kms.engine(), options.faults.then(Faults::default)));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        while connections.try_join_next().is_some() {}
        let Some((stream, peer, permit)) = accepted else { continue };
        let (server, stopped) = (Arc::clone(&server), stopped.clone());
        connections.spawn(async move {
            connection(server, stream, peer, stopped).await;
            drop(permit);
        });
    }
    drop(stop);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("KMS requests still running at shutdown are cut off");
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a KMS connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    peer: SocketAddr,
    mut stopped: watch::Receiver<()>,
) {
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, std::convert::Infallible>(server.answer(request, peer).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
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
        tracing::debug!(%peer, %error, "KMS connection ended");
    }
}

#[cfg(test)]
mod tests;
