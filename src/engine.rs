//! The sole owner of a volume: from what the user asked for to the record of its end.
//!
//! [`start`] goes through the steps in the order in which they can fail without leaving anything: addresses, KMS
//! key and dry runs, backing, journal; only then is anything made at the KMS. [`Running::teardown`] goes the way
//! back, whatever ended the volume: no more clients, requests in flight answered, keys wiped, grant retired,
//! backing removed. What a process leaves that dies on the way is [`sweep`]'s to clear away.

pub mod handover;
pub mod journal;
pub mod provision;
mod record;
mod running;
mod sockets;
mod start;
mod sweep;
mod teardown;

use std::path::PathBuf;
use std::sync::Arc;

pub use handover::{CLIENT, Handover, HandoverError, VERSION, resume};
pub use record::{Ended, GrantEnd, Record, Step};
pub use running::{Running, Status};
pub use start::start;
pub use sweep::{Deed, SweepError, Swept, sweep};

use serde::{Deserialize, Serialize};

use crate::audit::AuditLog;
use crate::descriptors::Named;
use crate::envelope::{Document, EnvelopeError, EnvelopeFile, KeyRequest, Layout, Life};
use crate::kms::{GrantToken, KmsError, Provider};
use crate::nbd::server::{Address, Limits, ListenError, Listener, Terms, Tls, TlsMode, Users};
use crate::secret::SecretError;
use crate::store::{Backing, StoreError};
use crate::volume::Options;
use crate::xts::Implementation;

/// What a user asked for; checked already as far as it can be without looking at the world.
pub struct Specification {
    /// Where the ciphertext lies.
    pub backing: Backing,
    /// Discards and writers.
    pub options: Options,
    /// Past the page cache, if the backing is not in memory.
    pub direct: bool,
    /// Which code enciphers.
    pub implementation: Implementation,
    /// The KMS.
    pub provider: Provider,
    /// Where clients connect; none, and none inherited either, for a private Unix socket.
    pub listen: Vec<Address>,
    /// How these addresses are bound, and what is taken of those inherited.
    pub terms: Terms,
    /// Sockets that whoever started this process left for it: where clients connect besides.
    pub inherited: Vec<Named>,
    /// Names that the volume is served under, one or more; the first is the default export.
    pub exports: Vec<ExportName>,
    /// How clients are served.
    pub serving: Serving,
    /// Keeps the data key in secret memory, so that the volume can go over to a successor process.
    pub restartable: bool,
    /// Where the volume will be reached by commands; for the journal only.
    pub control: Option<PathBuf>,
    /// Directory of journals.
    pub state: PathBuf,
    /// Where KMS calls and the volume's events are written down.
    pub audit: AuditLog,
    /// The program that unwraps the key in a process of its own ([`crate::kms::isolate`]).
    pub helper: PathBuf,
}

/// A name that the volume is served under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportName {
    /// The name; at most 4096 bytes, and no other export's.
    pub name: String,
    /// Refuses changes, whatever the volume takes.
    pub read_only: bool,
}

/// How clients are served. A successor has it from its own arguments.
#[derive(Clone, Default)]
pub struct Serving {
    /// Who may connect to Unix sockets, besides root, the process's own user and the sockets' owner.
    pub users: Users,
    /// How much they may ask for; whether the volume is restartable is not read from here.
    pub limits: Limits,
    /// TLS, if it is spoken.
    pub tls: Option<Arc<Tls>>,
    /// Where new clients are accepted by a successor; a volume that is started has its [`Terms`].
    pub newcomers: Newcomers,
}

/// Which of a predecessor's listeners accept clients. The others are kept for the next successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Newcomers {
    /// All.
    Everywhere,
    /// Those that nobody reaches from other hosts.
    #[default]
    Local,
    /// None.
    Refused,
}

impl Newcomers {
    /// Why `listener` is not to accept anybody, if it is not.
    fn refusal(self, listener: &Listener) -> Option<String> {
        match self {
            Self::Everywhere => None,
            Self::Local => listener.require_allowed(false).err().map(|error| error.to_string()),
            Self::Refused => Some("the successor cannot read what it needs for new clients".into()),
        }
    }
}

impl Serving {
    /// Whether clients get nowhere without TLS.
    fn is_secure(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode() == TlsMode::Require)
    }
}

/// Where a volume's key comes from.
pub enum Source {
    /// It is made here.
    New(NewKey),
    /// An envelope that somebody has made.
    Envelope(Box<Envelope>),
}

impl Source {
    /// True if the volume is to outlive the process.
    pub fn is_durable(&self) -> bool {
        match self {
            Self::New(key) => key.envelope.is_some(),
            Self::Envelope(envelope) => envelope.document.life == Life::Durable,
        }
    }
}

/// A key to be made.
pub struct NewKey {
    /// Size and sector size.
    pub layout: Layout,
    /// The KMS key and what the data key is bound to.
    pub request: KeyRequest,
    /// Where its envelope goes, for a volume that is to be opened again.
    pub envelope: Option<PathBuf>,
}

/// An envelope to be opened.
pub struct Envelope {
    /// Its file.
    pub file: EnvelopeFile,
    /// What the file holds.
    pub document: Document,
    /// The grant token that came with it.
    pub token: Option<GrantToken>,
    /// Writes the seal of the first unlock to the file.
    pub seal: bool,
}

/// Why a volume could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The KMS.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The envelope, or another file of the volume's state.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
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
    /// A successor process.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// A durable volume on what cannot last.
    #[error("a durable volume needs a backing that stays: give a file or a block device with --backing")]
    Fleeting,
}
