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

/// Why what was left for this process cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// What a predecessor left.
    #[error("{VARIABLE} cannot be read: {0}; only sealblk itself sets it, for its own successor: unset it")]
    Predecessor(String),
    /// Not a number where sd_listen_fds(3) has one.
    #[error(
        "{variable}={value:?} is not a number, so this process cannot tell which sockets were passed to it; whoever \
         starts sealblk with sockets sets LISTEN_PID to its process id and LISTEN_FDS to how many there are, from \
         descriptor 3 on, and unsets both if there are none"
    )]
    Number {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// Not as many names as descriptors.
    #[error(
        "LISTEN_FDNAMES={names:?} does not have as many names, with colons between them, as LISTEN_FDS={count} says \
         that there are sockets; whoever starts sealblk with sockets names each of them, or unsets LISTEN_FDNAMES"
    )]
    Names {
        /// The names.
        names: String,
        /// How many they should be.
        count: u32,
    },
    /// There is none.
    #[error(
        "descriptor {number}, which LISTEN_FDS={count} says was passed to this process, cannot be used: {source}; \
         whoever starts sealblk passes open sockets from descriptor 3 on and sets LISTEN_FDS to how many they are"
    )]
    Missing {
        /// Its number.
        number: RawFd,
        /// How many there should be.
        count: u32,
        /// What came back.
        source: io::Error,
    },
}

/// Takes what was left for this process; nothing the second time.
///
/// # Errors
/// A [`DescriptorError`].
pub fn take() -> Result<Vec<Named>, DescriptorError> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    if let Some(list) = variable(VARIABLE).map(|list| read(&list)).transpose()?.flatten() {
        return take_predecessors(list);
    }
    let number = |name: &'static str| {
        let parse = |value: String| {
            value.parse::<u32>().map_err(|_| DescriptorError::Number { variable: name, value })
        };
        variable(name).map(parse).transpose()
    };
    if number("LISTEN_PID")? != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    take_passed(number("LISTEN_FDS")?.unwrap_or_default(), variable("LISTEN_FDNAMES"))
}

fn take_predecessors(list: Vec<(String, RawFd)>) -> Result<Vec<Named>, DescriptorError> {
    let mut seen = Vec::new();
    let mut named = Vec::new();
    for (name, number) in list {
        if number <= 2 || seen.contains(&number) {
            return Err(DescriptorError::Predecessor(format!("{name} has descriptor {number}")));
        }
        seen.push(number);
        let descriptor = own(number).map_err(|error| {
            DescriptorError::Predecessor(format!("{name} has descriptor {number}: {error}"))
        })?;
        named.push(Named { name, descriptor });
    }
    Ok(named)
}

/// Those of sd_listen_fds(3).
fn take_passed(count: u32, names: Option<String>) -> Result<Vec<Named>, DescriptorError> {
    let mut passed = Vec::new();
    // Whoever passes none has none to name.
    let names = names.filter(|_| count > 0);
    let mut left = names.as_deref().map(|names| names.split(':'));
    let misnamed = || DescriptorError::Names { names: names.clone().unwrap_or_default(), count };
    for number in (3..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let name = match &mut left {
            Some(left) => left.next().ok_or_else(misnamed)?,
            None => "unknown",
        };
        let descriptor = own(number).map_err(|source| DescriptorError::Missing { number, count, source })?;
        passed.push(Named { name: name.into(), descriptor });
    }
    if left.is_some_and(|mut left| left.next().is_some()) {
        return Err(misnamed());
    }
    Ok(passed)
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
fn read(list: &str) -> Result<Option<Vec<(String, RawFd)>>, DescriptorError> {
    let bad = || DescriptorError::Predecessor(format!("{list:?}"));
    let (process, pairs) = list.split_once(';').ok_or_else(bad)?;
    if process != std::process::id().to_string() {
        return Ok(None);
    }
    let pair = |pair: &str| {
        let (name, number) = pair.split_once('=').ok_or_else(bad)?;
        Ok((name.to_owned(), number.parse().map_err(|_| bad())?))
    };
    pairs.split(',').filter(|pair| !pair.is_empty()).map(pair).collect::<Result<_, _>>().map(Some)
}

/// The variable's value for `named`, which are kept open across an execve(2) of this process from now on.
///
/// # Errors
/// The operating system's.
pub fn keep<'a>(named: impl IntoIterator<Item = &'a Named>) -> io::Result<String> {
    let mut list = Vec::new();
    for Named { name, descriptor } in named {
        let flags = fcntl_getfd(descriptor)?;
        fcntl_setfd(descriptor, flags.difference(FdFlags::CLOEXEC))?;
        list.push(format!("{name}={}", descriptor.as_raw_fd()));
    }
    Ok(format!("{};{}", std::process::id(), list.join(",")))
}

/// Takes [`keep`] back: the execve(2) has failed.
pub fn keep_no_more<'a>(named: impl IntoIterator<Item = &'a Named>) {
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
