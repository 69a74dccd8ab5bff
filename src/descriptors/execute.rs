//! Execution of another program in this process's place, without losing a signal on the way.
//!
//! Caught signals have their default action again after execve(2), and would kill. So they are blocked from before
//! it until the successor catches them; what comes meanwhile waits.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The signals that a successor catches.
const CAUGHT: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// Blocks, in this thread, the signals that a successor will catch.
///
/// # Errors
/// The operating system's.
pub fn hold_signals() -> io::Result<()> {
    mask(libc::SIG_BLOCK)
}

/// Takes [`hold_signals`] back, in this thread; what waited arrives now.
///
/// # Errors
/// The operating system's.
pub fn release_signals() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK)
}

fn mask(how: i32) -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set whose address it is given.
    let mut set: libc::sigset_t = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for signal in CAUGHT {
        // SAFETY: the set was filled above; the signal's number is a valid one.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: the set lives; where the old one would go is null, which is allowed.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Sends `signal` to this thread: where it is held, it waits for the successor.
///
/// # Errors
/// The operating system's.
pub fn pass_on(signal: i32) -> io::Result<()> {
    // SAFETY: takes a number only.
    match unsafe { libc::raise(signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// execve(2): returns only if that failed, and then nothing about this process has changed. Unlike the standard
/// library's, which takes SIGPIPE's action back first, and gives to a shell what is no program.
pub fn execute(
    program: &Path,
    arguments: impl Iterator<Item = OsString>,
    variable: (&str, &str),
) -> io::Error {
    let (name, value) = variable;
    let others = std::env::vars_os().filter(|(other, _)| other != name);
    let set = [(name.into(), value.into())];
    let environment = others.chain(set).map(|(name, value)| {
        let mut pair = name.into_vec();
        pair.push(b'=');
        pair.extend(value.into_vec());
        pair
    });
    let strings = (
        CString::new(program.as_os_str().as_bytes()),
        arguments.map(|text| CString::new(text.into_vec())).collect::<Result<Vec<_>, _>>(),
        environment.map(CString::new).collect::<Result<Vec<_>, _>>(),
    );
    let (Ok(program), Ok(arguments), Ok(environment)) = strings else {
        return io::ErrorKind::InvalidInput.into();
    };
    let (arguments, environment) = (pointers(&arguments), pointers(&environment));
    // SAFETY: program, arguments and environment are zero-terminated strings that live until here, and both lists
    // end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told() {
        let failed =
            |program: &str| execute(Path::new(program), std::iter::empty(), ("A", "b")).raw_os_error();
        assert_eq!(failed("/nowhere"), Some(libc::ENOENT));
        assert_eq!(failed("/dev/null"), Some(libc::EACCES));
        assert_eq!(failed("a\0b"), None);
    }

    #[test]
    fn held_signals_wait() {
        std::thread::spawn(|| {
            hold_signals().unwrap();
            pass_on(libc::SIGUSR2).unwrap();
            let pending = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let pending = pending.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap();
            let pending = u64::from_str_radix(pending.trim(), 16).unwrap();
            assert_eq!(pending, 1 << (libc::SIGUSR2 - 1));
        })
        .join()
        .unwrap();
    }
}
