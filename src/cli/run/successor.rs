//! Leaving a volume to a successor: this process re-executed, or one that systemd starts.

use std::os::fd::AsFd;
use std::path::PathBuf;

use sd_notify::NotifyState;

use super::attend::CONTROL;
use crate::control::Bound;
use crate::descriptors::{self, Named, VARIABLE};
use crate::engine::{CLIENT, Handover, HandoverError, Running};

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
    if running.is_restartable() {
        refresh(running, control).await;
    }
}

/// True if there is a service manager to leave a volume to.
pub(super) fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Gives systemd the volume's descriptors as they are now: a rewrap changes some.
pub(super) async fn refresh(running: &Running, control: Option<&Named>) {
    if !is_managed() {
        return;
    }
    match running.snapshot().await {
        Ok(snapshot) => store(snapshot.descriptors().iter().chain(control)),
        Err(error) => tracing::warn!(%error, "the service manager keeps nothing for a successor"),
    }
}

/// A name is stored once: what was there under it goes first.
fn store<'a>(named: impl Iterator<Item = &'a Named>) {
    for Named { name, descriptor } in named {
        let stored = forget(name).and_then(|()| {
            let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
            sd_notify::notify_with_fds(&state, &[descriptor.as_fd()])
        });
        if let Err(error) = stored {
            tracing::warn!(%error, name, "the service manager did not take a descriptor");
        }
    }
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

/// Leaves everything to the service manager, whose next process of this service gets it.
pub(super) fn leave_to_manager(handover: &Handover, control: Option<&Named>) {
    store(handover.descriptors().iter().chain(control));
}

/// Becomes the successor; returns only if that failed.
pub(super) fn execute(handover: &Handover, control: Option<&Named>) -> std::io::Error {
    let mut kept = vec![descriptors::keep(handover.descriptors())];
    if let Some(control) = control {
        kept.push(descriptors::keep(std::slice::from_ref(control)));
    }
    let list = match kept.into_iter().collect::<std::io::Result<Vec<_>>>() {
        Ok(lists) => join(&lists),
        Err(error) => return error,
    };
    let error = descriptors::execute(&program(), std::env::args_os(), (VARIABLE, &list));
    descriptors::keep_no_more(handover.descriptors());
    if let Some(control) = control {
        descriptors::keep_no_more(std::slice::from_ref(control));
    }
    error
}

/// One list of several of this process.
fn join(lists: &[String]) -> String {
    let pairs = lists.iter().filter_map(|list| list.split_once(';')).map(|(_, pairs)| pairs);
    format!("{};{}", std::process::id(), pairs.collect::<Vec<_>>().join(","))
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
