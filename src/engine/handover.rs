//! A volume that goes over to a successor process, with its clients: by execve(2), or by systemd's descriptor store.
//!
//! Everything that is a descriptor goes as one: the data key in secret memory, the backing, the locked journal and
//! envelope, listeners, clients. Everything else is a document (`State`) in secret memory of its own. The
//! successor calls no KMS, so the state of the key does not matter.

mod regain;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::journal::{Entry, Note};
use super::running::{Keep, Ready, Running};
use super::sockets::PrivateDirectory;
use super::{EngineError, ExportName, Newcomers, Serving, Step};
use crate::audit::AuditLog;
use crate::descriptors::Named;
use crate::envelope::{Document, Held, SealKey, Unwrapper};
use crate::kms::{GrantToken, Provider};
use crate::nbd::server::{
    ConnectionDescription, Handed, HandedConnection, Listener, ListenerDescription, Resumed, Signal,
};
use crate::secret::{DataKey, LockedBytes};
use crate::store::{FileStore, Leftover, LeftoverDescription};
use crate::volume::{EncryptedVolume, Options, Past};
use crate::xts::Implementation;

/// Version of what is handed over. A program that knows another one is not executed as a successor, or refuses it.
pub const VERSION: u32 = 3;
const STATE: &str = "sealblk-state";
const KEY: &str = "sealblk-key";
const BACKING: &str = "sealblk-backing";
const JOURNAL: &str = "sealblk-journal";
const ENVELOPE: &str = "sealblk-envelope";
const LISTENER: &str = "sealblk-listener-";
/// Clients' descriptors have names that begin so.
pub const CLIENT: &str = "sealblk-client-";

/// What a successor has to know beside the descriptors. Holds the grant token, and so lies in secret memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    document: Document,
    envelope: Option<PathBuf>,
    token: Option<String>,
    provider: Provider,
    owns_grants: bool,
    journal: PathBuf,
    note: Note,
    options: Options,
    implementation: Implementation,
    past: Past,
    exports: Vec<ExportName>,
    activated: bool,
    listeners: Vec<ListenerDescription>,
    clients: Vec<ConnectionDescription>,
    served: u64,
    backing: String,
    leftover: LeftoverDescription,
    private: Option<PathBuf>,
    steps: Vec<Step>,
}

/// A volume between two processes. Dropped, it ends as if its process had died.
pub struct Handover {
    named: Vec<Named>,
}

/// Why a volume cannot go over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It was not started for that.
    #[error("the volume was started without --restartable")]
    NotRestartable,
    /// The kernel has no memory that outlives an execve and that nobody else reads.
    #[error(
        "the kernel has no secret memory (memfd_secret, Linux 5.14; before 6.5 with secretmem.enable=1): start the volume without --restartable"
    )]
    NoSecretMemory,
    /// A descriptor that belongs to the volume is missing.
    #[error("{0} is missing among the descriptors that were handed over; start the volume anew")]
    Missing(String),
    /// The document cannot be read.
    #[error(
        "the state that was handed over is of version {0}, and this program knows {VERSION} only; start the volume with the version that served it"
    )]
    Version(u32),
    /// What the operating system answered, or what cannot be read.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// A socket.
    #[error(transparent)]
    Socket(#[from] crate::nbd::server::ResumeError),
    /// Memory for the key.
    #[error(transparent)]
    Secret(#[from] crate::secret::SecretError),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> HandoverError {
    move |source| HandoverError::Io { what, source }
}

impl Handover {
    /// Finds a volume among descriptors that a predecessor left; those of others stay in `named`.
    pub fn find(named: &mut Vec<Named>) -> Option<Self> {
        let (own, others) = std::mem::take(named).into_iter().partition(|one: &Named| is_own(&one.name));
        *named = others;
        let own: Vec<Named> = own;
        own.iter().any(|one| one.name == STATE).then_some(Self { named: own })
    }

    /// The descriptors, to be kept open for the successor.
    pub fn descriptors(&self) -> &[Named] {
        &self.named
    }
}

impl Running {
    /// Copies of all descriptors but the clients': what a service manager keeps in case the process dies.
    ///
    /// # Errors
    /// A [`HandoverError`]; the volume goes on as before.
    pub async fn snapshot(&self) -> Result<Handover, HandoverError> {
        let keep = self.keep.lock().await;
        let copy = |descriptor: std::os::fd::BorrowedFd<'_>| {
            descriptor.try_clone_to_owned().map_err(failed("copy a descriptor"))
        };
        let key = self.key_kept.as_ref().ok_or(HandoverError::NotRestartable)?;
        let key = copy(key.descriptor().ok_or(HandoverError::NoSecretMemory)?)?;
        let mut named = vec![
            Named { name: KEY.into(), descriptor: key },
            Named { name: BACKING.into(), descriptor: copy(self.leftover.file().as_fd())? },
            Named { name: JOURNAL.into(), descriptor: copy(keep.journal.lock().as_fd())? },
        ];
        if let Some(file) = &keep.held.file {
            named.push(Named { name: ENVELOPE.into(), descriptor: copy(file.lock().as_fd())? });
        }
        for (number, socket) in self.sockets.iter().enumerate() {
            named.push(Named {
                name: format!("{LISTENER}{number}"),
                descriptor: copy(socket.descriptor.as_fd())?,
            });
        }
        let listeners = self.sockets.iter().map(|socket| socket.description.clone()).collect();
        let state = self.state(&keep, listeners, Vec::new(), 0);
        named.push(Named { name: STATE.into(), descriptor: write(&state)? });
        Ok(Handover { named })
    }

    /// Names of what [`Running::snapshot`] gives.
    pub fn descriptor_names(&self) -> Vec<String> {
        let listeners = (0..self.sockets.len()).map(|number| format!("{LISTENER}{number}"));
        [STATE, KEY, BACKING, JOURNAL, ENVELOPE].map(Into::into).into_iter().chain(listeners).collect()
    }

    fn state(
        &self,
        keep: &Keep,
        listeners: Vec<ListenerDescription>,
        clients: Vec<ConnectionDescription>,
        served: u64,
    ) -> State {
        let held = &keep.held;
        State {
            version: VERSION,
            document: held.document.clone(),
            envelope: held.file.as_ref().map(|file| file.path().into()),
            token: held.token.as_ref().map(|token| token.expose().to_owned()),
            provider: self.provider(),
            owns_grants: self.owns_grants,
            journal: keep.journal.path().into(),
            note: keep.journal.note().clone(),
            options: self.options,
            implementation: self.implementation,
            past: self.volume.past(),
            exports: self.exports.clone(),
            activated: self.activated,
            listeners,
            clients,
            served,
            backing: self.backing.clone(),
            leftover: self.leftover.description(),
            private: self.private.as_ref().map(|private| private.path().into()),
            steps: self.steps.clone(),
        }
    }

    /// Stops serving between two requests of each client and makes everything ready for a successor.
    ///
    /// # Errors
    /// A [`HandoverError`]; the volume ends then as if its process had died.
    pub async fn hand_over(mut self) -> Result<Handover, HandoverError> {
        self.record_moves();
        self.happened("handing-over");
        self.record("VolumeHandedOver", serde_json::json!({}));
        // The server is gone only if its task panicked, and then there is nothing to stop.
        let _ = self.stop.send(Signal::HandOver);
        let served = (&mut self.server).await.map_err(io::Error::other).map_err(failed("stop serving"))?;
        self.pack(served.handed.unwrap_or_default(), served.connections).await
    }

    async fn pack(mut self, handed: Handed, served: u64) -> Result<Handover, HandoverError> {
        let mut named = Vec::new();
        let mut add = |name: String, descriptor: OwnedFd| named.push(Named { name, descriptor });
        let mut listeners = Vec::new();
        for (number, listener) in
            handed.listeners.into_iter().chain(std::mem::take(&mut self.held_back)).enumerate()
        {
            let (descriptor, description) = listener.into_parts();
            add(format!("{LISTENER}{number}"), descriptor);
            listeners.push(description);
        }
        let mut clients = Vec::new();
        for (number, client) in handed.connections.into_iter().enumerate() {
            let (descriptor, description) = client.into_parts();
            add(format!("{CLIENT}{number}"), descriptor);
            clients.push(description);
        }
        let keep = self.keep.clone().lock_owned().await;
        let state = self.state(&keep, listeners, clients, served);
        add(STATE.into(), write(&state)?);
        // The last reference: cipher and buffers are wiped.
        drop(self.volume);
        let key = self.key_kept.and_then(DataKey::leave).ok_or(HandoverError::NoSecretMemory)?;
        add(KEY.into(), key);
        add(BACKING.into(), self.leftover.leave().map_err(failed("copy the backing's descriptor"))?.into());
        add(JOURNAL.into(), copy_lock(keep.journal.lock())?);
        if let Some(file) = &keep.held.file {
            add(ENVELOPE.into(), copy_lock(file.lock())?);
        }
        if let Some(private) = self.private {
            private.leave();
        }
        Ok(Handover { named })
    }
}

/// True for the name of a descriptor that belongs to a volume that was handed over; not for that of a socket which
/// systemd passes under its unit's name, such as `sealblk-run@build.socket`.
fn is_own(name: &str) -> bool {
    let numbered =
        |prefix| name.strip_prefix(prefix).is_some_and(|number: &str| number.parse::<usize>().is_ok());
    [STATE, KEY, BACKING, JOURNAL, ENVELOPE].contains(&name) || numbered(LISTENER) || numbered(CLIENT)
}

/// A listener's descriptor once more, for [`Running::snapshot`].
pub(super) struct KeptSocket {
    descriptor: OwnedFd,
    description: ListenerDescription,
}

/// Once more each.
pub(super) fn sockets<'a>(
    listeners: impl Iterator<Item = &'a Listener>,
) -> Result<Vec<KeptSocket>, HandoverError> {
    let kept = listeners.map(|listener| {
        let (descriptor, description) = listener.duplicate()?;
        Ok(KeptSocket { descriptor, description })
    });
    kept.collect::<io::Result<_>>().map_err(failed("copy a listener"))
}

/// A lock (flock(2)) lasts as long as one descriptor of it does.
fn copy_lock(lock: &File) -> Result<OwnedFd, HandoverError> {
    lock.try_clone().map(Into::into).map_err(failed("copy a lock"))
}

fn write(state: &State) -> Result<OwnedFd, HandoverError> {
    let text = zeroize::Zeroizing::new(
        serde_json::to_vec(state).map_err(|error| failed("write the state")(error.into()))?,
    );
    let mut memory = LockedBytes::zeroed(text.len())?;
    memory.as_mut_slice().copy_from_slice(&text);
    memory.leave().ok_or(HandoverError::NoSecretMemory)
}

/// The memory is left as it is: a service manager may keep it for the next process, in case this one dies on the way.
/// The kernel clears it with the last descriptor.
fn read(descriptor: OwnedFd) -> Result<State, HandoverError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let unreadable = |error: serde_json::Error| failed("read the state that was handed over")(error.into());
    let text = LockedBytes::from_descriptor(descriptor)?;
    let Version { version } = serde_json::from_slice(text.as_slice()).map_err(unreadable)?;
    if version != VERSION {
        return Err(HandoverError::Version(version));
    }
    serde_json::from_slice(text.as_slice()).map_err(unreadable)
}

/// Listeners, and those clients that were handed over.
fn resume_sockets(
    take: &mut impl FnMut(&str) -> Result<OwnedFd, HandoverError>,
    listening: Vec<ListenerDescription>,
    clients: Vec<ConnectionDescription>,
) -> Result<(Vec<Listener>, Vec<HandedConnection>), HandoverError> {
    let mut listeners = Vec::new();
    for (number, description) in listening.into_iter().enumerate() {
        let descriptor = take(&format!("{LISTENER}{number}"))?;
        listeners.push(Listener::from_parts(descriptor, description)?);
    }
    let mut connections = Vec::new();
    for (number, told) in clients.into_iter().enumerate() {
        // A service manager keeps no more than it was told to. The client connects again.
        let Ok(descriptor) = take(&format!("{CLIENT}{number}")) else {
            tracing::warn!(number, "a client's connection was not handed over, and is cut");
            continue;
        };
        connections.push(HandedConnection::from_parts(descriptor, told)?);
    }
    Ok((listeners, connections))
}

/// Listeners that accept clients, and those that may not by what the successor was told.
fn admit(listeners: Vec<Listener>, newcomers: Newcomers) -> (Vec<Listener>, Vec<Listener>) {
    listeners.into_iter().partition(|listener| {
        let refusal = newcomers.refusal(listener);
        if let Some(why) = &refusal {
            let at = listener.uri("", false);
            tracing::error!(at, why, "nobody new is accepted here until a successor may");
        }
        refusal.is_none()
    })
}

/// Goes on where the predecessor stopped.
///
/// # Errors
/// A [`HandoverError`]; the volume ends then as if its process had died.
pub async fn resume(
    handover: Handover,
    audit: &AuditLog,
    helper: PathBuf,
    serving: &Serving,
) -> Result<Running, EngineError> {
    let mut left: HashMap<String, OwnedFd> =
        handover.named.into_iter().map(|one| (one.name, one.descriptor)).collect();
    let mut take = |name: &str| left.remove(name).ok_or_else(|| HandoverError::Missing(name.into()));
    let mut state = read(take(STATE)?)?;
    let key = DataKey::from_descriptor(take(KEY)?)?;
    let seal = SealKey::derive(&key)?;
    let lock = state.regain_journal(take(JOURNAL)?.into());
    let envelope =
        state.envelope.take().map(|path| Ok::<_, HandoverError>((path, take(ENVELOPE)?))).transpose()?;
    let file = envelope.map(|(path, lock)| state.regain_envelope(path, lock.into(), &seal));
    let leftover = Leftover::from_parts(take(BACKING)?.into(), state.leftover);
    let journal = Entry::adopt(state.note, state.journal, lock);
    let (listeners, connections) = resume_sockets(&mut take, state.listeners, state.clients)?;
    let (id, layout) = (state.document.volume.clone(), state.document.layout());
    let store = FileStore::new(leftover.file().try_clone().map_err(failed("share the backing"))?);
    let cipher = state.implementation.cipher(&key, layout.sector);
    let held =
        Held { document: state.document, file, seal: Some(seal), token: state.token.map(GrantToken::new) };
    let ready = Ready {
        audit: audit.clone(),
        by: Unwrapper { helper, provider: state.provider, witness: audit.for_volume(id.as_str()) },
        health: None,
        owns_grants: state.owns_grants,
        held,
        journal,
        volume: EncryptedVolume::new(Box::new(store), cipher, layout.size, state.options)
            .with_past(state.past),
        options: state.options,
        implementation: state.implementation,
        exports: state.exports,
        activated: state.activated,
        key_kept: Some(key),
        backing: state.backing,
        leftover,
        private: state.private.map(PrivateDirectory::adopt),
        steps: state.steps,
    };
    let (listeners, held_back) = admit(listeners, serving.newcomers);
    let resumed = Resumed { connections, served: state.served };
    let mut running = ready.serve(listeners, held_back, resumed, serving)?;
    // Until here a failure leaves the key for another process.
    if let Some(key) = &mut running.key_kept {
        key.claim();
    }
    running.happened("resumed");
    running.record("VolumeResumed", serde_json::json!({ "uris": running.uris }));
    Ok(running)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As where a successor dies after it has read the state, and the next one gets it from the service manager.
    #[test]
    fn what_one_successor_has_read_another_reads_again() {
        let text = br#"{"version": 4711}"#;
        let mut memory = LockedBytes::zeroed(text.len()).unwrap();
        memory.as_mut_slice().copy_from_slice(text);
        let Some(kept) = memory.leave() else { return };
        for _ in 0..2 {
            let read = read(kept.try_clone().unwrap());
            assert!(matches!(read, Err(HandoverError::Version(4711))), "{:?}", read.err());
        }
    }

    #[test]
    fn a_key_that_nobody_went_on_with_is_there_for_the_next_try() {
        let bytes: Vec<u8> = (0..64).collect();
        let Some(kept) = DataKey::copy_from(&bytes).unwrap().leave() else { return };
        for _ in 0..2 {
            assert_eq!(DataKey::from_descriptor(kept.try_clone().unwrap()).unwrap().expose(), bytes);
        }
    }
}
