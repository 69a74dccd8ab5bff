//! Why nobody can connect, and what to do about it.

use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::Address;

/// Why a listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// None of the forms.
    #[error("address {0:?} is not of the form unix:PATH, tcp:HOST:PORT, vsock:PORT or vsock:CID:PORT")]
    Form(String),
    /// A form that it knows, with a number that there is not.
    #[error("address {address:?}: {what} {number} is out of range, which is 0 to {most}")]
    Range {
        /// The address.
        address: String,
        /// Port or CID.
        what: &'static str,
        /// The number, as it was given.
        number: String,
        /// The greatest that there is.
        most: u32,
    },
    /// Longer than `sockaddr_un` holds (unix(7)).
    #[error("socket path {path} has {length} bytes, and 107 is the most; choose a shorter one")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Somebody listens there.
    #[error("cannot listen on {0}: the address is in use; choose another, or stop what uses it")]
    InUse(String),
    /// A file that is no socket has the path; it is not sealblk's to replace.
    #[error("cannot listen on unix:{}: {}", .path.display(), occupied(*.is_directory))]
    Occupied {
        /// The path.
        path: PathBuf,
        /// Whether it is a directory.
        is_directory: bool,
    },
    /// The data would cross the network unencrypted.
    #[error(
        "{0} is not loopback, and NBD without TLS hides nothing and knows nobody; \
         require TLS with --tls require, --tls-cert and --tls-key, or allow it with --insecure"
    )]
    NotLoopback(String),
    /// The file could not be given to its owner.
    #[error(
        "cannot give unix:{path}{}{}: {source}; root may (CAP_CHOWN), another user only to a group that it is in",
        .user.map(|user| format!(" to user {user}")).unwrap_or_default(),
        .group.map(|group| format!(" to group {group}")).unwrap_or_default()
    )]
    Owner {
        /// The socket.
        path: PathBuf,
        /// The user, if it was to be another.
        user: Option<u32>,
        /// The group, if it was to be another.
        group: Option<u32>,
        /// What came back.
        source: io::Error,
    },
    /// Whoever started this process left something for it that is no listener.
    #[error(
        "inherited descriptor {descriptor} ({name:?}) is not a listening stream socket of Unix, TCP or vsock; \
         whoever sets LISTEN_FDS has to call listen(2) first, and with systemd, the socket unit needs ListenStream= \
         and Accept=no"
    )]
    Inherited {
        /// Its number.
        descriptor: RawFd,
        /// Its name (LISTEN_FDNAMES).
        name: String,
    },
    /// Anything else that the operating system answered.
    #[error("cannot listen on {address}: {source}{}", advice(.address, .source))]
    Io {
        /// The address.
        address: String,
        /// What came back.
        source: io::Error,
    },
}

fn occupied(is_directory: bool) -> &'static str {
    if is_directory {
        "a directory is there; choose another path, one in that directory for example"
    } else {
        "a file that is no socket is there; choose another path, or remove the file"
    }
}

/// What to do about it, where that can be told.
fn advice(address: &str, error: &io::Error) -> String {
    // The embedded KMS knows no other addresses than TCP's and writes them without saying so.
    let known = address.parse().or_else(|_| format!("tcp:{address}").parse());
    let advice = match known {
        Ok(Address::Unix(path)) => about_path(&path, error),
        Ok(Address::Tcp(_)) => about_tcp(error).map(Into::into),
        Ok(Address::Vsock { cid, port }) => about_vsock(cid, port, error),
        Err(_) => None,
    };
    advice.map(|advice| format!("; {advice}")).unwrap_or_default()
}

fn about_path(path: &Path, error: &io::Error) -> Option<String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.display();
    match error.kind() {
        ErrorKind::NotFound => {
            Some(format!("make the directory {parent}, with parents if need be, or choose another path"))
        }
        ErrorKind::PermissionDenied => Some(format!(
            "let sealblk's user make sockets in the directory {parent}, or choose a path where it may"
        )),
        ErrorKind::NotADirectory => {
            Some(format!("a part of {parent} is a file and no directory: choose another path"))
        }
        ErrorKind::ReadOnlyFilesystem => Some("choose a path on a file system that takes writes".into()),
        ErrorKind::StaleNetworkFileHandle => Some(
            "another file took its place meanwhile: choose a directory where nobody else may write".into(),
        ),
        _ => None,
    }
}

const PRIVILEGED: &str =
    "a port below 1024 is for root or CAP_NET_BIND_SERVICE: choose a greater one, or 0 for any that is free";

fn about_tcp(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        ErrorKind::PermissionDenied => Some(PRIVILEGED),
        ErrorKind::AddrNotAvailable => Some(
            "this machine has no such address: choose one that `ip address` shows, 127.0.0.1 for this machine's own \
             clients",
        ),
        // The resolver's errors are none of the operating system's.
        _ if error.raw_os_error().is_none() => Some(
            "the host has to be an address, or a name that this machine can look up: see how it is spelled",
        ),
        _ if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            Some("this machine's kernel has no such addresses: choose one of IPv4, or switch IPv6 on")
        }
        _ => None,
    }
}

fn about_vsock(cid: Option<u32>, port: u32, error: &io::Error) -> Option<String> {
    match (error.kind(), cid) {
        (ErrorKind::PermissionDenied, _) => Some(PRIVILEGED.into()),
        (ErrorKind::AddrNotAvailable, Some(cid)) => Some(format!(
            "CID {cid} is not this machine's own: leave it out (vsock:{port}) for each that this machine has"
        )),
        _ if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::ENODEV)) => Some(
            "the kernel has no vsock: load its module (modprobe vhost_vsock for virtual machines on this host, \
             vsock_loopback for this machine alone), or choose another kind of address"
                .into(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cannot be had on every machine; the rest is tested with the program.
    #[test]
    fn what_the_system_answers_comes_with_what_to_do() {
        let told = |address: &str, errno| {
            let source = io::Error::from_raw_os_error(errno);
            ListenError::Io { address: address.into(), source }.to_string()
        };
        for (address, errno, words) in [
            ("unix:/run/x/y", libc::EACCES, ["/run/x/y: Permission denied", "in the directory /run/x,"]),
            ("unix:s", libc::EACCES, ["unix:s: ", "in the directory .,"]),
            ("unix:/sys/x", libc::EROFS, ["unix:/sys/x: ", "takes writes"]),
            ("unix:/x/y", libc::ESTALE, ["unix:/x/y: ", "nobody else may write"]),
            ("tcp:127.0.0.1:80", libc::EACCES, ["tcp:127.0.0.1:80: ", "below 1024"]),
            ("127.0.0.1:80", libc::EACCES, ["127.0.0.1:80: ", "below 1024"]),
            ("tcp:[::1]:0", libc::EAFNOSUPPORT, ["tcp:[::1]:0: ", "IPv6"]),
            ("vsock:80", libc::EACCES, ["vsock:80: ", "below 1024"]),
            ("vsock:3:1080", libc::EADDRNOTAVAIL, ["vsock:3:1080: ", "(vsock:1080)"]),
            ("vsock:1080", libc::EAFNOSUPPORT, ["vsock:1080: ", "modprobe"]),
        ] {
            let text = told(address, errno);
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
        let other = told("inherited descriptor 3 (\"x\")", libc::EINVAL);
        assert!(other.ends_with("(os error 22)"), "{other}");
    }
}
