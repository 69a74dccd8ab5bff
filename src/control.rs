//! Driving a running process from outside: HTTP/1.1 with JSON over a Unix socket. docs/control.md has the requests.
//!
//! The [server](Bound::serve) turns each request into a [`Command`] and sends it, as an [`Order`], to whoever owns
//! the volume; it touches no volume itself. [`Client`] is the other end, for commands that ask a running volume.
//!
//! The socket is its owner's alone (mode 0600), and the peer's user is checked besides: a mode can be changed, and
//! a directory opened. What comes through may end the volume, so no more than that is required and no less.

mod client;
mod peer;
mod server;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

pub use client::Client;
pub use peer::Peer;
pub use server::Bound;

use crate::kms::{KeyRef, Principal, Provider};
use crate::nbd::server::ListenError;

/// Binds `path`: mode 0600 before it has a name; a socket that a dead server left is replaced. To be called within
/// a tokio runtime.
///
/// # Errors
/// [`ControlError::Listen`]; nothing is left behind.
pub fn bind(path: &Path) -> Result<Bound, ControlError> {
    Bound::new(path)
}

/// What a client may ask of a running volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// What the volume is and how it does.
    Status,
    /// What is known about its KMS key.
    Key,
    /// Describe its KMS key now, then as [`Command::Key`].
    PollKey,
    /// Wrap its data key under another KMS key.
    Rewrap(Box<RewrapRequest>),
    /// End it.
    Stop(StopRequest),
    /// Hand it over to a new process of the same program.
    Restart,
}

/// The body of a rewrap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewrapRequest {
    /// The KMS key to wrap under; never empty when it comes from the server.
    pub to_key: KeyRef,
    /// The service that has it; without it, the volume's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Who may unwrap; without it, whom the volume's grant names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grantee: Option<Principal>,
    /// Who may end the grant; without it, whom the volume's grant names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retiring: Option<Principal>,
    /// The slots that are there stay beside the new one.
    #[serde(default)]
    pub keep_others: bool,
}

/// The body of a stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Why, for log and record: at most 256 characters, none of them a control character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A command on its way to the volume's owner. To be [answered](Order::answer) once; one that is dropped is
/// answered as refused, because the volume is ending.
pub struct Order {
    /// What is asked.
    pub command: Command,
    /// Who asks.
    pub peer: Peer,
    reply: oneshot::Sender<Result<Value, Refusal>>,
}

impl Order {
    /// Answers it. A command is carried out even if its client does not wait for the answer.
    pub fn answer(self, answer: Result<Value, Refusal>) {
        // The client may have gone.
        let _ = self.reply.send(answer);
    }
}

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What it means for the client; decides the HTTP status.
    #[serde(skip)]
    pub kind: RefusalKind,
    /// A short name that never changes, such as `bad-request`.
    pub code: String,
    /// For people.
    pub message: String,
    /// What the command line ends with (docs/cli.md, "Exit codes").
    pub exit_code: u8,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, code: &str, message: impl Into<String>, exit_code: u8) -> Self {
        Self { kind, code: code.into(), message: message.into(), exit_code }
    }
}

/// What a refusal means for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request can never work: 400.
    Invalid,
    /// This user may not: 403.
    Forbidden,
    /// There is no such path: 404.
    NotFound,
    /// The path has another method, which is named: 405.
    Method(&'static str),
    /// The request came too slowly: 408.
    Slow,
    /// Not in the volume's present state: 409.
    Conflict,
    /// The body is too long: 413.
    TooLarge,
    /// A failure of sealblk or of the machine: 500.
    Internal,
    /// The KMS refused, failed or was not reached: 502.
    Kms,
    /// The volume is ending and takes no more commands: 503.
    Ending,
}

impl RefusalKind {
    /// The HTTP status (RFC 9110, section 15).
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Method(_) => 405,
            Self::Slow => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Internal => 500,
            Self::Kms => 502,
            Self::Ending => 503,
        }
    }
}

/// What can go wrong with a control socket, at either end.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket cannot be made.
    #[error("control socket: {0}")]
    Listen(#[from] ListenError),
    /// A descriptor that was handed over is no bound, listening Unix socket.
    #[error("control socket: the descriptor that was handed over cannot be listened on: {0}")]
    Descriptor(#[source] io::Error),
    /// There is no file.
    #[error("no control socket {0}: check the path; a volume has one if it was started with --control")]
    Absent(PathBuf),
    /// The file is there, and nobody listens.
    #[error("nobody listens on control socket {0}: its process has ended, or the file is no socket")]
    NobodyListens(PathBuf),
    /// This user may not connect.
    #[error("no permission to use control socket {0}: run this as the volume's user, or as root")]
    Permission(PathBuf),
    /// Anything else that the operating system answered.
    #[error("cannot connect to control socket {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// Somebody else's socket.
    #[error("what listens on {path} is not the control socket of a sealblk: {what}; check the path")]
    NotSealblk {
        /// The socket.
        path: PathBuf,
        /// What came back.
        what: String,
    },
    /// No answer in time.
    #[error("no answer from control socket {path} within {} s; the command may still be carried out", within.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        within: Duration,
    },
    /// The connection ended before the answer.
    #[error("control socket {path} ended without an answer ({what}); the command may have been carried out")]
    Lost {
        /// The socket.
        path: PathBuf,
        /// What came back.
        what: String,
    },
    /// The process has refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The refusal's name, such as `bad-request`.
        code: String,
        /// Why, and what to do.
        message: String,
        /// What the command should end with: what the process itself would have ended with.
        exit_code: u8,
    },
}

#[cfg(test)]
mod tests;
