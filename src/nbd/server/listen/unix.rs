//! Unix sockets: binding one so that nobody connects who may not, and the file that goes with it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::{BACKLOG, ListenError};

/// Mode of a socket that is its owner's alone.
const PRIVATE: u32 = 0o600;

/// Whose a Unix socket's file is, and who may open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Permission bits, whatever the umask. To connect takes the right to write (unix(7)).
    pub mode: u32,
    /// User that the file is given to; `None` for the process's own.
    pub user: Option<u32>,
    /// Group that the file is given to; `None` for the one that it gets by itself.
    pub group: Option<u32>,
}

impl Default for Ownership {
    fn default() -> Self {
        Self { mode: PRIVATE, user: None, group: None }
    }
}

/// A Unix socket's file: removed on drop, if it is still the one that was made.
pub struct SocketFile {
    pub(super) path: PathBuf,
    pub(super) identity: (u64, u64),
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
    let (socket, file) = bind(path, Ownership::default())?;
    let listener = UnixListener::from_std(socket.into());
    let failed = |source| ListenError::Io { address: name(path), source };
    Ok((listener.map_err(failed)?, file))
}

fn name(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// As [`bind_unix`], with the file owned as asked for.
pub(super) fn bind(path: &Path, ownership: Ownership) -> Result<(OwnedFd, SocketFile), ListenError> {
    let length = path.as_os_str().len();
    if length > 107 {
        return Err(ListenError::TooLong { path: path.into(), length });
    }
    let failed = |source: io::Error| ListenError::Io { address: name(path), source };
    let socket = match try_bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !is_abandoned(path) {
                return Err(taken(path));
            }
            fs::remove_file(path).map_err(failed)?;
            try_bind(path)
        }
        other => other,
    };
    let socket = socket.map_err(failed)?;
    let file = SocketFile::adopt(path).map_err(failed)?;
    own(path, ownership)?;
    Ok((socket, file))
}

/// Who has the path.
fn taken(path: &Path) -> ListenError {
    match fs::symlink_metadata(path).map(|metadata| metadata.file_type()) {
        Ok(file) if !file.is_socket() => {
            ListenError::Occupied { path: path.into(), is_directory: file.is_dir() }
        }
        _ => ListenError::InUse(name(path)),
    }
}

/// The mode is set on the socket before it has a name: bind(2) takes it over, and no moment is left in which
/// others could open the file. It listens at once, for a socket that does not is taken for abandoned by whoever else
/// wants the path.
fn try_bind(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(PRIVATE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Gives the file mode and owner. By a descriptor of it, so that in a directory of others nothing but a socket of
/// this process's user can be given away.
fn own(path: &Path, ownership: Ownership) -> Result<(), ListenError> {
    let Ownership { mode, user, group } = ownership;
    if ownership == Ownership::default() {
        return Ok(());
    }
    let failed = |error: rustix::io::Errno| ListenError::Io { address: name(path), source: error.into() };
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed)?;
    let found = rustix::fs::fstat(&file).map_err(failed)?;
    let is_own = rustix::fs::FileType::from_raw_mode(found.st_mode).is_socket()
        && found.st_uid == rustix::process::geteuid().as_raw();
    if !is_own {
        return Err(failed(rustix::io::Errno::STALE));
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(mode))
        .map_err(failed)?;
    let given = rustix::fs::chownat(
        file.as_fd(),
        "",
        user.map(Uid::from_raw),
        group.map(Gid::from_raw),
        AtFlags::EMPTY_PATH,
    );
    given.map_err(|error| ListenError::Owner { path: path.into(), user, group, source: error.into() })
}

/// Who owns the file at `path`.
pub(super) fn owner(path: &Path) -> Option<u32> {
    fs::symlink_metadata(path).ok().map(|metadata| metadata.uid())
}

/// True for a socket that nobody listens on any more.
pub fn is_abandoned(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    is_socket && refused
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let bound = bind_unix(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(matches!(bind_unix(&path), Err(ListenError::InUse(_))));
        assert!(path.exists(), "a refused bind must not remove another's socket");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn mode_and_group_are_as_asked_for_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let own = rustix::process::getegid().as_raw();
        let bound = bind(&path, Ownership { mode: 0o666, user: None, group: Some(own) }).unwrap();
        assert_eq!(mode(&path), 0o666);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_given_away_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        // No user has the number that chown(2) reads as "leave it": the kernel refuses those next to it for nobody,
        // so ask for what only root may and expect what this process is.
        let bound = bind(&path, Ownership { user: Some(12345), ..Ownership::default() });
        if rustix::process::geteuid().is_root() {
            assert_eq!(owner(&path), Some(12345));
            drop(bound);
        } else {
            assert!(matches!(bound, Err(ListenError::Owner { user: Some(12345), .. })));
        }
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_abandoned_socket_is_replaced_and_another_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(try_bind(&path).unwrap());
        assert!(path.exists());
        bind_unix(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind_unix(&path), Err(ListenError::Occupied { is_directory: false, .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
