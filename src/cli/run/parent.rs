//! The process that started this one, where the volume is to end with it.
//!
//! Watched by a descriptor of the process (pidfd_open(2)), which survives execve(2). A signal at its end
//! (PR_SET_PDEATHSIG) would come as soon as the thread ends that started this process, and libnbd starts its server
//! from whichever thread connects.

use std::io;
use std::os::fd::OwnedFd;

use nix::unistd::getsid;
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};

use crate::cli::Failure;
use crate::cli::options::Switch;

/// Name of its descriptor, for a successor.
pub(super) const PARENT: &str = "sealblk-parent";

/// What was asked for, or else whether the parent is a client that has `passed` its socket: one that is killed tells
/// nobody, and its server would stay for ever.
pub(super) fn watched(asked: Option<Switch>, passed: bool) -> Result<Option<OwnedFd>, Failure> {
    let is_client = passed && !is_service() && (getppid() != Some(Pid::INIT) || is_orphan());
    if !asked.map_or(is_client, |asked| asked == Switch::On) {
        return Ok(None);
    }
    let failed = |source| Failure::Process {
        action: "watch the process that started this one, to end with it (see --exit-with-parent)",
        source,
    };
    Ok(Some(open().map_err(failed)?))
}

/// Whether systemd itself has started this process. It says so to each; who inherits its environment has another
/// number than the variable.
fn is_service() -> bool {
    let told = std::env::var("SYSTEMD_EXEC_PID").ok();
    told.and_then(|pid| pid.parse().ok()) == Some(std::process::id())
}

/// Whether the first process is only the parent by inheritance, since the one before has ended. What the first
/// process has started itself is in its session, as in a container, or a service of systemd.
fn is_orphan() -> bool {
    let of_init = || getsid(Some(nix::unistd::Pid::from_raw(1)));
    getppid() == Some(Pid::INIT)
        && std::env::var_os("INVOCATION_ID").is_none()
        && of_init().is_ok_and(|session| getsid(None).is_ok_and(|own| own != session))
}

fn open() -> io::Result<OwnedFd> {
    let parent = getppid().ok_or_else(|| io::Error::other("it is in another PID namespace"))?;
    if is_orphan() {
        return Err(io::Error::other("it has ended already"));
    }
    let descriptor = pidfd_open(parent, PidfdFlags::empty())?;
    // Its number may have become another process's before that.
    if getppid() != Some(parent) {
        return Err(io::Error::other("it has ended already"));
    }
    Ok(descriptor)
}
