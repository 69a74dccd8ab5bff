//! Hand-over: a server's sockets as a successor takes them over, in this process or the next.
//!
//! A socket is handed over as its descriptor and a description: what the successor cannot ask the kernel about it.
//! A connection is handed over between two requests. All that its client sent before is answered, nothing that it
//! sent after is taken from the socket, so no data travels but what the kernel keeps, and the client sees no more
//! than a moment in which nobody answers. So it is with a client that connects meanwhile: it waits in the
//! listener's queue, which goes along with the descriptor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};

use super::socket::Socket;
use super::{Agreed, Export, Listener};
use crate::nbd::wire::TransmissionFlags;

/// What a server leaves to its successor. What is dropped instead ends as if the server had ended: connections
/// are closed, and a Unix socket's file is removed.
#[derive(Default)]
pub struct Handed {
    /// Its listeners, in their order. Clients may be waiting in their queues.
    pub listeners: Vec<Listener>,
    /// Its clients.
    pub connections: Vec<HandedConnection>,
}

/// What a server takes over from its predecessor, its listeners left out; nothing by default.
#[derive(Default)]
pub struct Resumed {
    /// The clients.
    pub connections: Vec<HandedConnection>,
    /// [`Served::connections`](super::Served::connections) until now, those above included.
    pub served: u64,
}

impl Resumed {
    /// Connections that have come and gone before.
    pub(super) fn earlier(&self) -> u64 {
        self.served.saturating_sub(self.connections.len() as u64)
    }
}

/// A connection in transmission, between two requests.
pub struct HandedConnection {
    pub(super) socket: Socket,
    pub(super) told: ConnectionDescription,
}

/// What a client was told in its handshake, which the successor has to keep to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionDescription {
    /// Name of the export.
    pub export: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
    /// What else was agreed on.
    pub agreed: Agreed,
}

/// What a listener is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ListenerDescription {
    /// A Unix socket.
    Unix {
        /// Its file; `None` for a socket without one.
        path: Option<PathBuf>,
        /// The file's device and inode number (stat(2)), if the successor is to remove it at its end.
        identity: Option<(u64, u64)>,
    },
    /// A TCP socket.
    Tcp {},
    /// A vsock socket.
    Vsock {},
}

/// Why a descriptor could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// Not the socket that the description is about.
    #[error(
        "descriptor {descriptor} is not the {expected} that was handed over: \
         descriptors and their descriptions are mixed up; start the volume anew"
    )]
    Kind {
        /// The descriptor's number.
        descriptor: RawFd,
        /// What it should be.
        expected: &'static str,
    },
    /// What the operating system answered.
    #[error("cannot take over descriptor {descriptor} as a {expected}: {source}; start the volume anew")]
    Io {
        /// The descriptor's number.
        descriptor: RawFd,
        /// What it should be.
        expected: &'static str,
        /// What came back.
        source: io::Error,
    },
}

impl HandedConnection {
    /// The socket, close-on-exec and in blocking mode, and what its client was told.
    pub fn into_parts(self) -> (OwnedFd, ConnectionDescription) {
        (self.socket.into(), self.told)
    }

    /// From the parts again.
    ///
    /// # Errors
    /// [`ResumeError`] for a descriptor that is no connection; it is closed.
    pub fn from_parts(descriptor: OwnedFd, told: ConnectionDescription) -> Result<Self, ResumeError> {
        let number = descriptor.as_raw_fd();
        let expected = "connection";
        let failed = |source| ResumeError::Io { descriptor: number, expected, source };
        let socket = match domain(&descriptor, false).map_err(|error| failed(error.into()))? {
            Some(AddressFamily::UNIX | AddressFamily::VSOCK) => Socket::Unix(descriptor.into()),
            Some(AddressFamily::INET | AddressFamily::INET6) => Socket::Tcp(descriptor.into()),
            _ => return Err(ResumeError::Kind { descriptor: number, expected }),
        };
        socket.set_blocking().map_err(failed)?;
        Ok(Self { socket, told })
    }
}

impl ConnectionDescription {
    pub(super) fn of(export: &Export, agreed: Agreed) -> Self {
        let TransmissionFlags(flags) = export.flags();
        Self { export: export.name.clone(), size: export.device.size(), flags, agreed }
    }

    /// Whether `export` is what the client was told. It may be able to do more.
    pub(super) fn holds_for(&self, export: &Export) -> bool {
        let now = Self::of(export, self.agreed);
        self.export == now.export && self.size == now.size && self.flags & !now.flags == 0
    }
}

/// The address family of a stream socket that listens, or does not; `None` for another descriptor.
pub(super) fn domain(descriptor: &OwnedFd, listens: bool) -> rustix::io::Result<Option<AddressFamily>> {
    let same = match sockopt::socket_type(descriptor) {
        Ok(kind) => kind == SocketType::STREAM && sockopt::socket_acceptconn(descriptor)? == listens,
        Err(rustix::io::Errno::NOTSOCK) => false,
        Err(error) => return Err(error),
    };
    same.then(|| sockopt::socket_domain(descriptor)).transpose()
}

#[cfg(test)]
mod tests;
