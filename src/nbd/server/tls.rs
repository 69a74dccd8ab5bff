//! TLS: when it is spoken, with which certificate, and with whom ("TLS support").
//!
//! Certificate, key and client CA are files. They are looked at for each client anew, so that whoever renews them
//! has nothing else to do; what cannot be used leaves in force what was there before.

mod files;
mod judge;
mod names;
mod refusal;
mod socket;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use files::{Role, TlsError};
pub(super) use socket::TlsSocket;

use self::files::{Stamps, read, stamps};
use self::refusal::Refusals;
use super::seldom::Seldom;

/// When TLS is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Never (NOTLS).
    #[default]
    Off,
    /// If the client asks for it (SELECTIVETLS, with no export that needs it).
    On,
    /// Before anything else (FORCEDTLS).
    Require,
}

/// How TLS is spoken. All files are PEM.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// When.
    pub mode: TlsMode,
    /// The server's certificate, and those between it and a CA that clients know, in this order.
    pub cert: PathBuf,
    /// The certificate's private key (PKCS #8, PKCS #1 or SEC 1), not encrypted.
    pub key: PathBuf,
    /// CAs, one of which must have signed a client's certificate; without, clients are asked for none.
    pub client_ca: Option<PathBuf>,
    /// Names, one of which a client's certificate must have: as a DNS name, URI or e-mail address among its
    /// alternative names or, if it has no alternative names at all, as its subject's common name. If there are none,
    /// any certificate will do.
    pub allow: Vec<String>,
}

/// TLS, ready to be spoken.
pub struct Tls {
    settings: TlsSettings,
    current: Mutex<Current>,
    unreadable: Seldom,
    refused: Refusals,
}

struct Current {
    /// Of the files when they were last read, whether they could be used or not.
    stamps: Stamps,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files, and warns of what clients will not like.
    ///
    /// # Errors
    /// [`TlsError`] for a file that cannot be used.
    pub fn load(settings: TlsSettings) -> Result<Self, TlsError> {
        // Before they are read: what changes meanwhile is read again.
        let stamps = stamps(&settings);
        let config = read(&settings)?;
        let current = Mutex::new(Current { stamps, config });
        Ok(Self { settings, current, unreadable: Seldom::default(), refused: Refusals::default() })
    }

    /// When it is spoken.
    pub fn mode(&self) -> TlsMode {
        self.settings.mode
    }

    /// The server's side of a TLS handshake, with what the files hold now.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        // The files may be on a disk that takes its time, or on a network.
        let tls = self.clone();
        let config = tokio::task::spawn_blocking(move || tls.config()).await.map_err(io::Error::other)?;
        let accepted = TlsAcceptor::from(config).accept(stream).await;
        accepted.inspect_err(|error| {
            if let Some((reason, why)) = refusal::reason(error)
                && let Some(unsaid) = self.refused.say(reason)
            {
                tracing::warn!(unsaid, "a client gets no further than the TLS handshake: {why}");
            }
        })
    }

    fn config(&self) -> Arc<ServerConfig> {
        let now = stamps(&self.settings);
        // Nothing panics between two changes that belong together.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now != current.stamps {
            match read(&self.settings) {
                Ok(config) => {
                    tracing::info!(certificate = %self.settings.cert.display(), "TLS files were read anew");
                    *current = Current { stamps: now, config };
                }
                // What stands in the way (rights, descriptors) may go without a trace in the stamps.
                Err(error @ TlsError::Read { .. }) => {
                    if let Some(unsaid) = self.unreadable.say() {
                        tracing::warn!(%error, unsaid, "TLS files have changed and cannot be used; what they held before stays in force, and each client's arrival tries again");
                    }
                }
                Err(error) => {
                    current.stamps = now;
                    tracing::warn!(%error, "TLS files have changed and cannot be used; what they held before stays in force");
                }
            }
        }
        current.config.clone()
    }
}

#[cfg(test)]
pub(super) mod tests;
