//! Descriptors that a predecessor left, by re-execution or through systemd's descriptor store, and sockets that
//! whoever started this process has bound for it (sd_listen_fds(3)).
//!
//! All say in the environment which descriptors are meant for which process. A process takes them once, at its
//! start, before anything else could use their numbers.

mod execute;

pub use execute::{execute, hold_signals, pass_on, release_signals};

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The variable by which a process tells itself, across execve(2), what it left: `PID;NAME=FD,NAME=FD`.
pub const VARIABLE: &str = "SEALBLK_INHERITED";

/// A descriptor with the name that it was left under.
pub struct Named {
    /// The name.
    pub name: String,
    /// The descriptor, close-on-exec.
    pub descriptor: OwnedFd,
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes what was left for this process; nothing the second time.
///
/// # Errors
/// The operating system's for a number that is no descriptor, [`io::ErrorKind::InvalidData`] for a list that cannot
/// be read.
pub fn take() -> io::Result<Vec<Named>> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let left = std::env::var(VARIABLE).ok().map(|list| read(&list)).transpose()?.flatten();
    let listed = match left {
        Some(list) => list,
        None => sd_notify::listen_fds_with_names()?.map(|(number, name)| (name, number)).collect(),
    };
    let mut seen = Vec::new();
    let mut named = Vec::new();
    for (name, number) in listed {
        if number <= 2 || seen.contains(&number) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{name} has descriptor {number}"),
            ));
        }
        seen.push(number);
        named.push(Named { name, descriptor: own(number)? });
    }
    Ok(named)
}

fn own(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: whoever started this process left the descriptor for it alone and said so in the environment. Numbers
    // are taken once, each of them once, and before this process opens anything that could have the same one.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    match fcntl_setfd(&descriptor, FdFlags::CLOEXEC) {
        Ok(()) => Ok(descriptor),
        Err(error) => {
            // It is no descriptor: there is nothing to close.
            std::mem::forget(descriptor);
            Err(error.into())
        }
    }
}

/// Reads the variable's value; another process's list is none of ours.
fn read(list: &str) -> io::Result<Option<Vec<(String, RawFd)>>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{VARIABLE} cannot be read"));
    let (process, list) = list.split_once(';').ok_or_else(bad)?;
    if process != std::process::id().to_string() {
        return Ok(None);
    }
    let pair = |pair: &str| {
        let (name, number) = pair.split_once('=').ok_or_else(bad)?;
        Ok((name.to_owned(), number.parse().map_err(|_| bad())?))
    };
    list.split(',').filter(|pair| !pair.is_empty()).map(pair).collect::<io::Result<_>>().map(Some)
}

/// The variable's value for `named`, which are kept open across an execve(2) of this process from now on.
///
/// # Errors
/// The operating system's.
pub fn keep(named: &[Named]) -> io::Result<String> {
    let mut list = Vec::new();
    for Named { name, descriptor } in named {
        let flags = fcntl_getfd(descriptor)?;
        fcntl_setfd(descriptor, flags.difference(FdFlags::CLOEXEC))?;
        list.push(format!("{name}={}", descriptor.as_raw_fd()));
    }
    Ok(format!("{};{}", std::process::id(), list.join(",")))
}

/// Takes [`keep`] back: the execve(2) has failed.
pub fn keep_no_more(named: &[Named]) {
    for Named { descriptor, .. } in named {
        // They are open; nothing else could fail.
        let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_by_its_process_only() {
        let own = std::process::id();
        let read_own = |list: &str| read(&format!("{own};{list}"));
        assert_eq!(read_own("a=3,b-1=4").unwrap().unwrap(), [("a".to_owned(), 3), ("b-1".to_owned(), 4)]);
        assert_eq!(read_own("").unwrap().unwrap(), []);
        assert_eq!(read(&format!("{};a=3", own + 1)).unwrap(), None);
        for bad in ["", "a=3", "x"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        for bad in ["a", "a=", "a=x", "=3,b"] {
            assert!(read_own(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kept_descriptors_are_listed_and_cross_an_execve() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let named = [Named { name: "x".into(), descriptor: file.into() }];
        let number = named[0].descriptor.as_raw_fd();
        assert_eq!(keep(&named).unwrap(), format!("{};x={number}", std::process::id()));
        assert!(!fcntl_getfd(&named[0].descriptor).unwrap().contains(FdFlags::CLOEXEC));
        keep_no_more(&named);
        assert!(fcntl_getfd(&named[0].descriptor).unwrap().contains(FdFlags::CLOEXEC));
    }
}
