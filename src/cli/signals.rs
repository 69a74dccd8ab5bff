//! Signals that end a volume, or leave it to a successor.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{self, SignalKind};

use super::Failure;
use super::run::Successor;
use crate::descriptors;

/// SIGINT, SIGTERM and SIGHUP, from the moment this is made, and a process's end where that counts as one.
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
    /// Caught so that it kills nobody: a write past the limit on file sizes fails then (`EFBIG`, setrlimit(2)).
    _file_size: unix::Signal,
    /// A pidfd (pidfd_open(2)), until its process has ended.
    parent: Option<AsyncFd<OwnedFd>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Interrupt,
    Terminate,
    Hangup,
    /// None of the kernel's: the process has ended that this one is to end with.
    ParentEnded,
    Kill,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: unix::signal(SignalKind::hangup())?,
            _file_size: unix::signal(SignalKind::from_raw(libc::SIGXFSZ))?,
            parent: None,
        })
    }

    /// With the end of the process whose pidfd `parent` is.
    pub(super) fn with_parent(parent: Option<OwnedFd>) -> io::Result<Self> {
        #[allow(
            deprecated,
            reason = "sound for a descriptor that is owned and always the same; what replaces it is unsafe"
        )]
        let parent = parent.map(AsyncFd::new).transpose()?;
        Ok(Self { parent, ..Self::new()? })
    }

    /// The pidfd of the process whose end is waited for.
    pub(super) fn parent(&self) -> Option<&OwnedFd> {
        self.parent.as_ref().map(AsyncFd::get_ref)
    }

    pub(super) async fn next(&mut self) -> Signal {
        let parent = async {
            match &self.parent {
                // Readable once it has ended.
                Some(parent) => drop(parent.readable().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = parent => {
                // Once: what comes next would mean that the end takes too long.
                self.parent = None;
                Signal::ParentEnded
            }
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.hangup.recv() => Signal::Hangup,
        }
    }
}

impl Signals {
    /// Before this process executes a successor: what comes from now on, or has come and was not dealt with, is the
    /// successor's. A further restart is not.
    pub(super) async fn hold(&mut self, restarts: &mut RestartSignals) -> io::Result<()> {
        descriptors::hold_signals()?;
        // What was caught before is on its way from the handler to here.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let signal = tokio::select! {
            biased;
            signal = self.next() => signal.number().as_raw(),
            _ = restarts.managed.recv() => libc::SIGUSR1,
            () = std::future::ready(()) => return Ok(()),
        };
        descriptors::pass_on(signal)
    }
}

/// SIGUSR1 and SIGUSR2, from the moment this is made.
pub(super) struct RestartSignals {
    managed: unix::Signal,
    myself: unix::Signal,
}

impl RestartSignals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            managed: unix::signal(SignalKind::user_defined1())?,
            myself: unix::signal(SignalKind::user_defined2())?,
        })
    }

    pub(super) async fn next(&mut self) -> Successor {
        tokio::select! {
            _ = self.managed.recv() => Successor::Managed,
            _ = self.myself.recv() => Successor::Myself,
        }
    }
}

/// Why signals cannot be handled is the process's own matter.
pub(super) fn handle<T>(made: io::Result<T>) -> Result<T, Failure> {
    made.map_err(|source| Failure::Process { action: "handle signals", source })
}

impl Signal {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
            Self::ParentEnded => "parent process ended",
            Self::Kill => "SIGKILL",
        }
    }

    fn number(self) -> rustix::process::Signal {
        match self {
            Self::Interrupt => rustix::process::Signal::INT,
            Self::Terminate | Self::ParentEnded => rustix::process::Signal::TERM,
            Self::Hangup => rustix::process::Signal::HUP,
            Self::Kill => rustix::process::Signal::KILL,
        }
    }

    /// As shells have it.
    pub(super) fn exit_code(self) -> ExitCode {
        ExitCode::from(u8::try_from(128 + self.number().as_raw()).unwrap_or(u8::MAX))
    }

    /// Passes it on to a child; one that has ended needs none.
    pub(super) fn send(self, child: Option<u32>) {
        let pid = child.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, self.number())) {
            tracing::warn!(%error, "cannot pass {} on to the command", self.name());
        }
    }
}
