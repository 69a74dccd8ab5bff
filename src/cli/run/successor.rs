//! Leaving a volume to a successor: this process re-executed, or one that systemd starts.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::process::Command;

use super::attend::CONTROL;
use crate::cli::output;
use crate::control::Bound;
use crate::descriptors::{self, Named, VARIABLE};
use crate::engine::{CLIENT, Handover, HandoverError, Running, VERSION};

/// Name of the hidden command that tells whether a program can be a successor.
pub(in crate::cli) const PROBE: &str = "takes-over";
/// What it says besides if addresses that are not loopback may be served.
const OPEN: &str = "open";
/// How long it may take to answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Who goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Successor {
    /// The same process, with the program's file as it is by now.
    Myself,
    /// A process that the service manager starts.
    Managed,
}

/// Tells systemd that clients are served, and gives it what a successor needs if this process dies.
pub(super) async fn announce(running: &Running, control: Option<&Named>) {
    let told =
        sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&format!("serving {}", running.id))]);
    if let Err(error) = told {
        tracing::warn!(%error, "cannot tell the service manager that the volume is served");
    }
    refresh(running, control).await;
}

/// True if there is a service manager to leave a volume to.
pub(super) fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Gives systemd a restartable volume's descriptors as they are now: a rewrap changes some. Not to be called while one
/// is under way, for it waits for that.
pub(super) async fn refresh(running: &Running, control: Option<&Named>) {
    if !is_managed() || !running.is_restartable() {
        return;
    }
    match running.snapshot().await {
        Ok(snapshot) => {
            if let Err(error) = store(snapshot.descriptors().iter().chain(control)) {
                tracing::warn!(%error, "the service manager does not keep all that a successor needs");
            }
        }
        Err(error) => tracing::warn!(%error, "the service manager keeps nothing for a successor"),
    }
}

/// The volume ends: the service manager forgets it, so that nobody waits for a listener that is served no more, and
/// no later process takes a dead volume over.
pub(super) fn withdraw(running: &Running) {
    if !is_managed() {
        return;
    }
    let mut told = sd_notify::notify(&[NotifyState::Stopping]);
    if running.is_restartable() {
        let names = running.descriptor_names();
        told = told.and_then(|()| names.iter().map(String::as_str).chain([CONTROL]).try_for_each(forget));
    }
    if let Err(error) = told {
        tracing::warn!(%error, "cannot tell the service manager that the volume ends");
    }
}

/// A name is stored once: what was there under it goes first.
fn store<'a>(named: impl Iterator<Item = &'a Named>) -> std::io::Result<()> {
    for Named { name, descriptor } in named {
        forget(name)?;
        let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        sd_notify::notify_with_fds(&state, &[descriptor.as_fd()])?;
    }
    Ok(())
}

fn forget(name: &str) -> std::io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}

/// A successor has them now: clients' sockets would stay open as long as the manager holds them too.
pub(super) fn forget_clients(taken: &[String]) {
    for name in taken.iter().filter(|name| name.starts_with(CLIENT)) {
        if let Err(error) = forget(name) {
            tracing::warn!(%error, name, "the service manager still holds a client's socket");
        }
    }
}

/// Leaves everything to the service manager, whose next process of this service gets it. Clients come last: they are
/// what there may be no room for.
pub(super) fn leave_to_manager(handover: &Handover, control: Option<&Named>) -> std::io::Result<()> {
    let (clients, own): (Vec<_>, Vec<_>) =
        handover.descriptors().iter().chain(control).partition(|one| one.name.starts_with(CLIENT));
    store(own.into_iter().chain(clients))
}

/// Whether the program's file can take the volume over: it runs, knows what it would be handed, and can read what its
/// arguments name as it is now.
pub(super) async fn check(running: &Running) -> Result<(), String> {
    let program = program();
    let mut command = Command::new(&program);
    command.arg(PROBE).args(std::env::args_os());
    let asked = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let answer = match tokio::time::timeout(PROBE_DEADLINE, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("{}: {error}", program.display())),
        Err(_) => return Err(format!("{} does not answer", program.display())),
    };
    let said = String::from_utf8_lossy(&answer.stdout);
    let mut words = said.split_whitespace();
    if answer.status.success() && words.next() == Some(&VERSION.to_string()) {
        if running.leaves_host() && words.next() != Some(OPEN) {
            return Err(
                "a successor would serve an address that is not loopback without requiring TLS; require TLS \
                        again, or allow it with --insecure"
                    .into(),
            );
        }
        return Ok(());
    }
    Err(refusal(&program, &answer))
}

/// In the successor's own words, if it had any.
fn refusal(program: &Path, answer: &Output) -> String {
    let said = String::from_utf8_lossy(&answer.stderr);
    let why = match said.trim() {
        "" => format!("it ended with {} and named no reason;", answer.status),
        said => format!("{said} ({}); mend what it names,", answer.status),
    };
    format!(
        "{} does not take over what this process hands over: {why} go back to a version that does, or end the volume",
        program.display()
    )
}

/// What [`check`] looks for: which version of a volume's state this program takes over, and whether it may be `open`
/// to others than this host.
pub(super) fn answer(open: bool) {
    output::line(if open { format!("{VERSION} {OPEN}") } else { VERSION.to_string() });
}

/// Becomes the successor, with what is `besides`; returns only if that failed.
pub(super) fn execute(handover: &Handover, besides: &[&Named]) -> std::io::Error {
    let kept = || handover.descriptors().iter().chain(besides.iter().copied());
    let list = descriptors::keep(kept());
    let error = list.map(|list| descriptors::execute(&program(), std::env::args_os(), (VARIABLE, &list)));
    descriptors::keep_no_more(kept());
    error.unwrap_or_else(|error| error)
}

/// The program's file: after an upgrade, the new one of the old name.
fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(name) => name.into(),
        None => path,
    }
}

/// The control socket as a descriptor with a name.
pub(super) fn named(control: Option<Bound>) -> Result<Option<Named>, HandoverError> {
    let Some(control) = control else { return Ok(None) };
    let descriptor = control.into_fd().map_err(|error| HandoverError::Io {
        what: "take the control socket apart",
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(Some(Named { name: CONTROL.into(), descriptor }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_successor_that_says_nothing_is_told_by_its_end() {
        let refusal = |status, stderr: &str| {
            let status = ExitStatus::from_raw(status);
            refusal(Path::new("/new"), &Output { status, stdout: Vec::new(), stderr: stderr.into() })
        };
        for (status, stderr, expected) in [
            (3 << 8, "", "it ended with exit status: 3 and named no reason; go back"),
            (9, "\n", "it ended with signal: 9 (SIGKILL) and named no reason; go back"),
            (
                2 << 8,
                "error: no file c.pem\n",
                "error: no file c.pem (exit status: 2); mend what it names, go back",
            ),
        ] {
            let said = refusal(status, stderr);
            assert!(said.starts_with("/new does not take over") && said.contains(expected), "{said}");
        }
    }
}
