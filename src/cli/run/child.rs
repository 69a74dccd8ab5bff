//! The captive command.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::{ExitCode, ExitStatus};

use tokio::process::Child;
use tokio::time::{Duration, Instant, timeout_at};

use super::attend::Ended;
use crate::cli::open_files::OpenFiles;
use crate::cli::output;
use crate::cli::signals::Signal;
use crate::engine::Running;
use crate::secret::{Hardening, restore_core_limit};

/// For a command to end by itself once it is told to, where nobody is left to tell it again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Limits that are this process's alone.
pub(super) struct ProcessLimits {
    pub(super) hardening: Hardening,
    pub(super) open_files: OpenFiles,
}

impl ProcessLimits {
    /// Gives a child those from before.
    fn restore(&self, child: u32) -> rustix::io::Result<()> {
        restore_core_limit(&self.hardening, child)?;
        self.open_files.restore(child)
    }
}

/// A command that runs while the volume is served.
pub(super) struct Captive {
    child: Child,
    signalled: bool,
    /// When it is killed, since its parent's parent has ended.
    last: Option<Instant>,
}

/// Starts the command, if there is one.
pub(super) fn start(
    command: &[String],
    running: &Running,
    limits: &ProcessLimits,
) -> Result<Option<Captive>, Ended> {
    let Some((program, arguments)) = command.split_first() else { return Ok(None) };
    let uri = running.uris.first().map_or("", String::as_str);
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .env("uri", uri)
        .env("SEALBLK_URI", uri)
        .env("unixsocket", running.socket.as_deref().unwrap_or(Path::new("")))
        .env("exportname", running.exports().first().map_or("", |export| &export.name))
        // Sockets that were meant for this process.
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_FDNAMES")
        .spawn();
    match child {
        Ok(child) => {
            // A child that has ended already needs no limits.
            let _ = child.id().map(|pid| limits.restore(pid));
            Ok(Some(Captive { child, signalled: false, last: None }))
        }
        Err(error) => {
            output::note(format!("error: cannot run {program:?}: {error}"));
            // As shells have it: not found, or found and not to be run.
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            Err(Ended { reason: format!("command could not be run: {error}"), code: code.into() })
        }
    }
}

impl Captive {
    /// Waits for the command's end.
    pub(super) async fn end(&mut self) -> Ended {
        let status = match self.last {
            None => self.child.wait().await,
            Some(last) => match timeout_at(last, self.child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    Signal::Kill.send(self.child.id());
                    self.child.wait().await
                }
            },
        };
        let why =
            if self.last.is_some() { "parent process ended, then the command" } else { "command ended" };
        match status {
            Ok(status) => Ended { reason: format!("{why}: {status}"), code: code_of(status) },
            Err(error) => Ended { reason: format!("command lost: {error}"), code: ExitCode::FAILURE },
        }
    }

    /// Passes a signal on to the command, unless it is a terminal's, which reaches the command by itself; the
    /// second one kills it, and so does time after the parent's end.
    pub(super) fn signal(&mut self, signal: Signal) {
        let by_terminal = signal == Signal::Interrupt && io::stdin().is_terminal();
        // The parent's end may come of the same Ctrl-C that the command is just ending for.
        if self.signalled && signal != Signal::ParentEnded {
            Signal::Kill.send(self.child.id());
        } else if !by_terminal {
            signal.send(self.child.id());
        }
        self.signalled = true;
        if signal == Signal::ParentEnded {
            self.last.get_or_insert(Instant::now() + PATIENCE);
        }
    }
}

/// As shells have it: 128 and the signal's number for a command that a signal ended.
fn code_of(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
