//! Where clients connect: Unix and TCP sockets, and the URIs that name them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, UnixListener, lookup_host};

use super::handover::{ListenerDescription, ResumeError, domain};
use super::socket::Stream;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// An address as a user writes it: `unix:PATH` or `tcp:HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A host name or IP address and a port; port 0 lets the kernel choose one.
    Tcp(String),
}

/// Why a listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Neither of the two forms.
    #[error("address {0:?} is not of the form unix:PATH or tcp:HOST:PORT")]
    Form(String),
    /// Longer than `sockaddr_un` holds (unix(7)).
    #[error("socket path {path} has {length} bytes, and 107 is the most; choose a shorter one")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Somebody listens there, or another file is there.
    #[error("address {0} is in use; choose another, or stop what uses it")]
    InUse(String),
    /// The data would cross the network unencrypted.
    #[error("tcp address {0} is not loopback, and NBD without TLS hides nothing; allow it with --insecure")]
    NotLoopback(SocketAddr),
    /// Anything else that the operating system answered.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// The address.
        address: String,
        /// What came back.
        source: io::Error,
    },
}

impl FromStr for Address {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", host))
                if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
            {
                Ok(Self::Tcp(host.into()))
            }
            _ => Err(ListenError::Form(text.into())),
        }
    }
}

/// A bound socket. A Unix socket's file goes with it.
pub struct Listener {
    socket: Bound,
}

enum Bound {
    Unix { listener: UnixListener, file: SocketFile },
    Tcp(TcpListener),
}

impl Listener {
    /// Binds `address`. A Unix socket is the owner's alone (mode 0600); one that a dead server left is replaced.
    ///
    /// # Errors
    /// A [`ListenError`]; nothing is left behind.
    pub async fn bind(address: &Address, insecure: bool) -> Result<Self, ListenError> {
        let socket = match address {
            Address::Unix(path) => {
                let (listener, file) = bind_unix(path)?;
                Bound::Unix { listener, file }
            }
            Address::Tcp(host) => Bound::Tcp(bind_tcp(host, insecure).await?),
        };
        Ok(Self { socket })
    }

    /// The URI of `export` here (doc/uri.md).
    pub fn uri(&self, export: &str) -> String {
        let export = percent(export, b"/");
        match &self.socket {
            Bound::Unix { file, .. } => {
                format!("nbd+unix:///{export}?socket={}", percent(&file.path.to_string_lossy(), b"/"))
            }
            Bound::Tcp(listener) => {
                let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
                format!("nbd://{address}/{export}")
            }
        }
    }

    /// Path of the socket, for a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match &self.socket {
            Bound::Unix { file, .. } => Some(&file.path),
            Bound::Tcp(_) => None,
        }
    }

    /// The socket, close-on-exec and in non-blocking mode, and its description. A Unix socket's file stays.
    ///
    /// # Errors
    /// What the operating system answered; the socket is closed then, and its file removed.
    pub fn into_parts(self) -> io::Result<(OwnedFd, ListenerDescription)> {
        Ok(match self.socket {
            Bound::Unix { listener, file } => {
                let listener = listener.into_std()?;
                let (path, (device, inode)) = file.leave();
                (listener.into(), ListenerDescription::Unix { path, device, inode })
            }
            Bound::Tcp(listener) => (listener.into_std()?.into(), ListenerDescription::Tcp {}),
        })
    }

    /// A second descriptor of the same socket, and what it is.
    ///
    /// # Errors
    /// The operating system's.
    pub fn duplicate(&self) -> io::Result<(OwnedFd, ListenerDescription)> {
        Ok(match &self.socket {
            Bound::Unix { listener, file } => {
                let (path, (device, inode)) = (file.path.clone(), file.identity);
                let description = ListenerDescription::Unix { path, device, inode };
                (listener.as_fd().try_clone_to_owned()?, description)
            }
            Bound::Tcp(listener) => (listener.as_fd().try_clone_to_owned()?, ListenerDescription::Tcp {}),
        })
    }

    /// From the parts again; within a tokio runtime. A Unix socket's file goes with it from here on, if it is
    /// still the same one.
    ///
    /// # Errors
    /// [`ResumeError`] for a descriptor that is not what the description says; it is closed, and a file stays.
    pub fn from_parts(descriptor: OwnedFd, description: ListenerDescription) -> Result<Self, ResumeError> {
        let number = descriptor.as_raw_fd();
        let expected = match description {
            ListenerDescription::Unix { .. } => "listening Unix socket",
            ListenerDescription::Tcp {} => "listening TCP socket",
        };
        let failed = |source| ResumeError::Io { descriptor: number, expected, source };
        let family = domain(&descriptor, true).map_err(|error| failed(error.into()))?;
        let socket = match (description, family) {
            (ListenerDescription::Unix { path, device, inode }, Some(AddressFamily::UNIX)) => {
                let listener = std::os::unix::net::UnixListener::from(descriptor);
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                Bound::Unix { listener, file: SocketFile { path, identity: (device, inode) } }
            }
            (ListenerDescription::Tcp {}, Some(AddressFamily::INET | AddressFamily::INET6)) => {
                let listener = std::net::TcpListener::from(descriptor);
                listener.set_nonblocking(true).map_err(failed)?;
                Bound::Tcp(TcpListener::from_std(listener).map_err(failed)?)
            }
            _ => return Err(ResumeError::Kind { descriptor: number, expected }),
        };
        Ok(Self { socket })
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Bound::Unix { listener, .. } => Ok(Stream::Unix(listener.accept().await?.0)),
            Bound::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

/// A Unix socket's file: removed on drop, if it is still the one that was made.
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Takes over the file of a socket that another process bound.
    ///
    /// # Errors
    /// The operating system's, if no file is there.
    pub fn adopt(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.into(), identity: identity(path)? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it to a successor, who goes on listening: its path and identity.
    pub fn leave(mut self) -> (PathBuf, (u64, u64)) {
        // An empty path names nothing, so nothing is removed.
        (std::mem::take(&mut self.path), self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).ok() == Some(self.identity) {
            // It may vanish in between; then it is gone, which is what was wanted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Binds a Unix socket that is the owner's alone (mode 0600); one that a dead server left is replaced. To be called
/// within a tokio runtime.
///
/// # Errors
/// A [`ListenError`]; nothing is left behind.
pub fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let name = || format!("unix:{}", path.display());
    let length = path.as_os_str().len();
    if length > 107 {
        return Err(ListenError::TooLong { path: path.into(), length });
    }
    let failed = |source: io::Error| ListenError::Io { address: name(), source };
    let listener = match try_bind_unix(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !is_abandoned(path) {
                return Err(ListenError::InUse(name()));
            }
            fs::remove_file(path).map_err(failed)?;
            try_bind_unix(path)
        }
        other => other,
    };
    let listener = listener.map_err(failed)?;
    let file = SocketFile::adopt(path).map_err(failed)?;
    Ok((UnixListener::from_std(listener).map_err(failed)?, file))
}

/// The mode is set on the socket before it has a name: bind(2) takes it over, and no moment is left in which
/// others could connect.
fn try_bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// True for a socket that nobody listens on any more.
pub fn is_abandoned(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    is_socket && refused
}

async fn bind_tcp(host: &str, insecure: bool) -> Result<TcpListener, ListenError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(format!("tcp:{host}")),
        _ => ListenError::Io { address: format!("tcp:{host}"), source },
    };
    let addresses: Vec<SocketAddr> = lookup_host(host).await.map_err(failed)?.collect();
    if let Some(open) = addresses.iter().find(|address| !insecure && !address.ip().is_loopback()) {
        return Err(ListenError::NotLoopback(*open));
    }
    TcpListener::bind(&addresses[..]).await.map_err(failed)
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("unix:/run/x".parse::<Address>().unwrap(), Address::Unix("/run/x".into()));
        assert_eq!("tcp:[::1]:10809".parse::<Address>().unwrap(), Address::Tcp("[::1]:10809".into()));
        for bad in ["", "unix:", "tcp:host", "tcp:host:99999", "vsock:1", "/run/x"] {
            assert!(matches!(bad.parse::<Address>(), Err(ListenError::Form(_))), "{bad}");
        }
    }

    #[test]
    fn uris_are_encoded() {
        assert_eq!(percent("a b/ü?&#", b"/"), "a%20b/%C3%BC%3F%26%23");
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address, false).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&address, false).await, Err(ListenError::InUse(_))));
        assert!(path.exists(), "a refused bind must not remove another's socket");
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_abandoned_socket_is_replaced_and_another_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(try_bind_unix(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&Address::Unix(path.clone()), false).await.unwrap();
        fs::write(&path, "precious").unwrap();
        let refused = Listener::bind(&Address::Unix(path.clone()), false).await;
        assert!(matches!(refused, Err(ListenError::InUse(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn long_paths_and_open_networks_are_refused() {
        let long = Address::Unix(format!("/tmp/{}", "x".repeat(120)).into());
        assert!(matches!(Listener::bind(&long, false).await, Err(ListenError::TooLong { .. })));
        let open = Address::Tcp("0.0.0.0:0".into());
        assert!(matches!(Listener::bind(&open, false).await, Err(ListenError::NotLoopback(_))));
        assert!(Listener::bind(&open, true).await.is_ok());
    }
}
