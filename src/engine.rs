//! The sole owner of a volume: from what the user asked for to the record of its end.
//!
//! [`start`] goes through the steps in the order in which they can fail without leaving anything: addresses, KMS
//! key and dry runs, backing, journal; only then is anything made at the KMS. [`Running::teardown`] goes the way
//! back, whatever ended the volume: no more clients, requests in flight answered, keys wiped, grant retired,
//! backing removed.

pub mod journal;
mod record;
mod start;
mod teardown;

use std::path::PathBuf;
use std::sync::Arc;

pub use record::{Ended, GrantEnd, Record, Step};
pub use start::start;

use crate::audit::AuditLog;
use crate::envelope::{Layout, VolumeId};
use crate::kms::{EncryptionContext, GrantToken, KeyArn, KeyService, KmsError, Provider};
use crate::nbd::server::{Address, ListenError, Served};
use crate::secret::SecretError;
use crate::store::{Backing, Leftover, StoreError};
use crate::volume::{EncryptedVolume, Options};
use crate::xts::Implementation;

/// What a user asked for; checked already as far as it can be without looking at the world.
pub struct Specification {
    /// Size and sector size.
    pub layout: Layout,
    /// Where the ciphertext lies.
    pub backing: Backing,
    /// Discards and writers.
    pub options: Options,
    /// Which code enciphers.
    pub implementation: Implementation,
    /// The KMS.
    pub provider: Provider,
    /// The key.
    pub key: crate::envelope::KeyRequest,
    /// Where clients connect; none for a private Unix socket.
    pub listen: Vec<Address>,
    /// TCP addresses need not be loopback.
    pub insecure: bool,
    /// Name of the export.
    pub export: String,
    /// Directory of journals.
    pub state: PathBuf,
    /// Where KMS calls and the volume's events are written down.
    pub audit: AuditLog,
    /// The program that unwraps the key in a process of its own ([`crate::kms::isolate`]).
    pub helper: PathBuf,
}

/// Why a volume could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The KMS.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The backing.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The addresses.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The encryption context.
    #[error(transparent)]
    Context(#[from] crate::kms::ContextError),
    /// Memory for the key.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The journal, or another file of the volume's state.
    #[error("{action} {path}: {source}; check the directory's permissions and free space", path = path.display())]
    State {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
}

/// A volume that is being served.
pub struct Running {
    /// Its id.
    pub id: VolumeId,
    /// The KMS key.
    pub key: KeyArn,
    /// URIs of its listeners, in the order they were asked for.
    pub uris: Vec<String>,
    /// Path of its first Unix socket, if it has one.
    pub socket: Option<PathBuf>,
    provider: Provider,
    kms: Arc<dyn KeyService>,
    context: EncryptionContext,
    layout: Layout,
    grant_id: String,
    token: GrantToken,
    volume: Arc<EncryptedVolume>,
    backing: String,
    leftover: Leftover,
    journal: journal::Entry,
    private: Option<start::PrivateDirectory>,
    stop: tokio::sync::watch::Sender<bool>,
    server: tokio::task::JoinHandle<Served>,
    steps: Vec<Step>,
}
