//! Where clients connect: Unix, TCP and vsock sockets, bound here or inherited, and the URIs that name them.

mod address;
mod error;
mod network;
mod unix;

use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags};
use tokio::io::unix::AsyncFd;

pub use error::ListenError;
pub use unix::{Ownership, SocketFile, bind_unix, is_abandoned};

use super::admission::Users;
use super::handover::{ListenerDescription, ResumeError, domain};
use super::socket::Stream;
use network::{ANY, bind_tcp, bind_vsock, require_loopback, require_open};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// An address as a user writes it: `unix:PATH`, `tcp:HOST:PORT`, `vsock:PORT` or `vsock:CID:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A host name or IP address and a port; port 0 lets the kernel choose one.
    Tcp(String),
    /// A port of virtual machines' sockets (vsock(7)).
    Vsock {
        /// Context id of this machine, by which others reach it; `None` for each that it has.
        cid: Option<u32>,
        /// 0 lets the kernel choose one.
        port: u32,
    },
}

/// How addresses are bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// Other machines may reach them: TCP addresses that are not loopback, and vsock.
    pub open: bool,
    /// Of Unix sockets' files.
    pub ownership: Ownership,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp:{host}"),
            Self::Vsock { cid: None, port } => write!(f, "vsock:{port}"),
            Self::Vsock { cid: Some(cid), port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

/// A bound socket. A Unix socket's file goes with it, unless the socket was inherited.
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    place: Place,
    users: Users,
    /// Who owned a Unix socket's file at first; later, somebody else's file may have the path.
    owner: Option<u32>,
}

enum Place {
    Unix {
        /// None for a socket without a name in the file system.
        path: Option<PathBuf>,
        /// None for a file that is somebody else's to remove.
        file: Option<SocketFile>,
    },
    Tcp(SocketAddr),
    Vsock {
        cid: u32,
        port: u32,
    },
}

impl Place {
    fn require_allowed(&self, open: bool) -> Result<(), ListenError> {
        match self {
            Self::Unix { .. } => Ok(()),
            Self::Tcp(address) => require_loopback(*address, open),
            Self::Vsock { cid, port } => require_open(*cid, *port, open),
        }
    }
}

impl Listener {
    /// Binds `address`; within a tokio runtime. A Unix socket that a dead server left is replaced.
    ///
    /// # Errors
    /// A [`ListenError`]; nothing is left behind.
    pub async fn bind(address: &Address, terms: Terms) -> Result<Self, ListenError> {
        let (socket, file) = match address {
            Address::Unix(path) => {
                let (socket, file) = unix::bind(path, terms.ownership)?;
                (socket, Some(file))
            }
            Address::Tcp(host) => (bind_tcp(host, terms.open).await?, None),
            Address::Vsock { cid, port } => (bind_vsock(cid.unwrap_or(ANY), *port, terms.open)?, None),
        };
        let made = place(&socket, file).and_then(|place| Self::new(socket, place));
        made.map_err(|source| ListenError::Io { address: address.to_string(), source })
    }

    /// Takes a socket that whoever started this process has left for it, under the name `name`; within a tokio
    /// runtime. The rules are those of [`Listener::bind`]; a Unix socket's file stays as it is.
    ///
    /// # Errors
    /// A [`ListenError`]; the descriptor is closed.
    pub fn inherit(socket: OwnedFd, name: &str, terms: Terms) -> Result<Self, ListenError> {
        let number = socket.as_raw_fd();
        let other = || ListenError::Inherited { descriptor: number, name: name.into() };
        let address = || format!("inherited descriptor {number} ({name:?})");
        let failed = |source| ListenError::Io { address: address(), source };
        match domain(&socket, true).map_err(|error| failed(error.into()))? {
            Some(AddressFamily::UNIX | AddressFamily::INET | AddressFamily::INET6 | AddressFamily::VSOCK) => {
            }
            _ => return Err(other()),
        }
        let place = place(&socket, None).map_err(failed)?;
        place.require_allowed(terms.open)?;
        Self::new(socket, place).map_err(failed)
    }

    /// That it may be listened at, by the rule of [`Listener::bind`] for `open` or not.
    ///
    /// # Errors
    /// [`ListenError::NotLoopback`].
    pub fn require_allowed(&self, open: bool) -> Result<(), ListenError> {
        self.place.require_allowed(open)
    }

    fn new(socket: OwnedFd, place: Place) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        #[allow(
            deprecated,
            reason = "sound for a descriptor that is owned and always the same; what replaces it is unsafe"
        )]
        let socket = AsyncFd::new(socket)?;
        let owner = match &place {
            Place::Unix { path, .. } => path.as_deref().and_then(unix::owner),
            Place::Tcp(_) | Place::Vsock { .. } => None,
        };
        Ok(Self { socket, place, users: Users::default(), owner })
    }

    /// Says who may connect, if it is a Unix socket, besides root, the process's own user and the file's owner.
    pub fn admit(&mut self, users: Users) {
        self.users = users;
    }

    /// The URI of `export` here (doc/uri.md), for clients with TLS if it is `secure`; `None` for a socket that no URI
    /// can name.
    pub fn uri(&self, export: &str, secure: bool) -> Option<String> {
        let (scheme, export) = (if secure { "nbds" } else { "nbd" }, percent(export, b"/"));
        Some(match &self.place {
            Place::Unix { path, .. } => {
                let path = percent(&path.as_ref()?.to_string_lossy(), b"/");
                format!("{scheme}+unix:///{export}?socket={path}")
            }
            Place::Tcp(address) => format!("{scheme}://{address}/{export}"),
            Place::Vsock { cid, port } => {
                format!("{scheme}+vsock://{}/{export}", network::vsock_authority(*cid, *port))
            }
        })
    }

    /// Path of the socket, for a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Unix { path, .. } => path.as_deref(),
            Place::Tcp(_) | Place::Vsock { .. } => None,
        }
    }

    /// The socket, close-on-exec and in non-blocking mode, and its description. A Unix socket's file stays.
    pub fn into_parts(self) -> (OwnedFd, ListenerDescription) {
        let description = self.description();
        if let Place::Unix { file: Some(file), .. } = self.place {
            file.leave();
        }
        (self.socket.into_inner(), description)
    }

    /// A second descriptor of the same socket, and what it is.
    ///
    /// # Errors
    /// The operating system's.
    pub fn duplicate(&self) -> io::Result<(OwnedFd, ListenerDescription)> {
        Ok((self.socket.get_ref().try_clone()?, self.description()))
    }

    fn description(&self) -> ListenerDescription {
        match &self.place {
            Place::Unix { path, file } => ListenerDescription::Unix {
                path: path.clone(),
                identity: file.as_ref().map(|file| file.identity),
            },
            Place::Tcp(_) => ListenerDescription::Tcp {},
            Place::Vsock { .. } => ListenerDescription::Vsock {},
        }
    }

    /// From the parts again; within a tokio runtime. A Unix socket's file goes with it from here on, if it is
    /// still the same one and was not inherited.
    ///
    /// # Errors
    /// [`ResumeError`] for a descriptor that is not what the description says; it is closed, and a file stays.
    pub fn from_parts(descriptor: OwnedFd, description: ListenerDescription) -> Result<Self, ResumeError> {
        let number = descriptor.as_raw_fd();
        let expected = match description {
            ListenerDescription::Unix { .. } => "listening Unix socket",
            ListenerDescription::Tcp {} => "listening TCP socket",
            ListenerDescription::Vsock {} => "listening vsock socket",
        };
        let failed = |source| ResumeError::Io { descriptor: number, expected, source };
        let family = domain(&descriptor, true).map_err(|error| failed(error.into()))?;
        let place = match (description, family) {
            (ListenerDescription::Unix { path, identity }, Some(AddressFamily::UNIX)) => {
                let own = path.clone().zip(identity);
                Place::Unix { path, file: own.map(|(path, identity)| SocketFile { path, identity }) }
            }
            (ListenerDescription::Tcp {}, Some(AddressFamily::INET | AddressFamily::INET6))
            | (ListenerDescription::Vsock {}, Some(AddressFamily::VSOCK)) => {
                place(&descriptor, None).map_err(failed)?
            }
            _ => return Err(ResumeError::Kind { descriptor: number, expected }),
        };
        Self::new(descriptor, place).map_err(failed)
    }

    /// The next client, and what `room` gave once there was one: so a client that finds no room waits in the queue, and
    /// a listener without clients takes no room from others.
    pub(super) async fn accept<R: Future>(&self, room: impl Fn() -> R) -> io::Result<(Stream, R::Output)> {
        loop {
            let mut ready = self.socket.readable().await?;
            // What made it ready may have been accepted already, and nobody waits for room.
            if !self.is_readable()? {
                ready.clear_ready();
                continue;
            }
            let room = room().await;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            if let Ok(accepted) = ready.try_io(|socket| Ok(rustix::net::accept_with(socket, flags)?)) {
                return Ok((self.stream(accepted?)?, room));
            }
        }
    }

    fn is_readable(&self) -> io::Result<bool> {
        let mut asked = [PollFd::new(self.socket.get_ref(), PollFlags::IN)];
        Ok(poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
    }

    fn stream(&self, socket: OwnedFd) -> io::Result<Stream> {
        Ok(match &self.place {
            Place::Unix { .. } | Place::Vsock { .. } => {
                Stream::Unix(tokio::net::UnixStream::from_std(socket.into())?)
            }
            Place::Tcp(_) => {
                let stream = tokio::net::TcpStream::from_std(socket.into())?;
                stream.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Stream::Tcp(stream)
            }
        })
    }

    /// Whether the user of a Unix socket's peer may be a client.
    pub(super) fn admits(&self, user: u32) -> bool {
        self.users.contain(user) || self.owner == Some(user)
    }
}

/// What a socket is bound to. `file` is that of a Unix socket that was bound here.
fn place(socket: &OwnedFd, file: Option<SocketFile>) -> io::Result<Place> {
    if let Some(file) = file {
        return Ok(Place::Unix { path: Some(absolute(&file.path)), file: Some(file) });
    }
    match rustix::net::sockopt::socket_domain(socket)? {
        AddressFamily::UNIX => {
            let bound = SocketAddrUnix::try_from(rustix::net::getsockname(socket)?)?;
            let path = bound.path_bytes().filter(|path| !path.is_empty());
            let path = path.map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path)));
            Ok(Place::Unix { path: path.as_deref().map(absolute), file: None })
        }
        AddressFamily::VSOCK => {
            let (cid, port) = network::vsock_address(socket)?;
            Ok(Place::Vsock { cid, port })
        }
        _ => Ok(Place::Tcp(network::tcp_address(socket)?)),
    }
}

/// Clients and successors start elsewhere. It is not bound by this path, which may be too long for that.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

/// Percent-encodes what RFC 3986 does not leave unreserved, except for `also`.
fn percent(text: &str, also: &[u8]) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_encoded() {
        assert_eq!(percent("a b/ü?&#", b"/"), "a%20b/%C3%BC%3F%26%23");
    }

    #[tokio::test]
    async fn uris_name_the_transport_and_say_whether_there_is_tls() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let unix = Listener::bind(&Address::Unix(path.clone()), Terms::default()).await.unwrap();
        let shown = path.display();
        assert_eq!(unix.uri("a b", false).unwrap(), format!("nbd+unix:///a%20b?socket={shown}"));
        assert_eq!(unix.uri("", true).unwrap(), format!("nbds+unix:///?socket={shown}"));
        let tcp = Listener::bind(&Address::Tcp("127.0.0.1:0".into()), Terms::default()).await.unwrap();
        assert!(tcp.uri("x", true).unwrap().starts_with("nbds://127.0.0.1:"));
        assert_eq!(network::vsock_authority(ANY, 7), "2:7");
        assert_eq!(network::vsock_authority(3, 7), "3:7");
    }

    #[tokio::test]
    async fn long_paths_and_open_networks_are_refused() {
        let long = Address::Unix(format!("/tmp/{}", "x".repeat(120)).into());
        assert!(matches!(Listener::bind(&long, Terms::default()).await, Err(ListenError::TooLong { .. })));
        let open = Address::Tcp("0.0.0.0:0".into());
        assert!(matches!(Listener::bind(&open, Terms::default()).await, Err(ListenError::NotLoopback(_))));
        assert!(Listener::bind(&open, Terms { open: true, ..Terms::default() }).await.is_ok());
        let vsock = Address::Vsock { cid: Some(1), port: 0 };
        assert!(matches!(Listener::bind(&vsock, Terms::default()).await, Err(ListenError::NotLoopback(_))));
    }

    #[tokio::test]
    async fn only_listening_stream_sockets_are_inherited() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let pair = std::os::unix::net::UnixStream::pair().unwrap().0;
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for wrong in [tempfile::tempfile().unwrap().into(), pair.into(), OwnedFd::from(datagrams)] {
            let refused = Listener::inherit(wrong, "x", Terms::default());
            assert!(matches!(refused, Err(ListenError::Inherited { .. })));
        }
        let open = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let refused = Listener::inherit(open.into(), "x", Terms::default());
        assert!(matches!(refused, Err(ListenError::NotLoopback(_))));
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let inherited = Listener::inherit(unix.into(), "x", Terms::default()).unwrap();
        assert_eq!(inherited.path(), Some(&*path));
        let (descriptor, description) = inherited.into_parts();
        drop(Listener::from_parts(descriptor, description).unwrap());
        assert!(path.exists(), "it is not ours to remove");
    }
}
