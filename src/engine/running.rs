//! A volume that is being served.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use super::handover::KeptSocket;
use super::journal::Entry;
use super::sockets::{PrivateDirectory, uris};
use super::{EngineError, ExportName, HandoverError, Serving, Step, handover};
use crate::audit::AuditLog;
use crate::block::BlockDevice;
use crate::envelope::watch::KeyStatus;
use crate::envelope::{self, Held, Layout, Life, Rewrapped, Target, Unwrapper, VolumeId};
use crate::kms::{EncryptionContext, KeyArn, KeyHealth, KeyService, KmsError, Provider};
use crate::nbd::server::{Export, Exports, Limits, Listener, Resumed, Served, Signal, serve};
use crate::secret::DataKey;
use crate::store::Leftover;
use crate::volume::{EncryptedVolume, Options};
use crate::xts::Implementation;

/// A volume that is being served.
pub struct Running {
    /// Its id.
    pub id: VolumeId,
    /// URIs of its listeners, in the order they were asked for: the default export's first, then the others'.
    pub uris: Vec<String>,
    /// Path of its first Unix socket, if it has one.
    pub socket: Option<PathBuf>,
    /// What the KMS told about the key at the start, where it was asked.
    pub health: Option<KeyHealth>,
    pub(super) audit: AuditLog,
    pub(super) by: Unwrapper,
    /// The grants were made for this run and end with it; else they are the envelope's.
    pub(super) owns_grants: bool,
    pub(super) keep: Arc<Mutex<Keep>>,
    moves: Moves,
    pub(super) layout: Layout,
    pub(super) volume: Arc<EncryptedVolume>,
    pub(super) options: Options,
    pub(super) implementation: Implementation,
    pub(super) exports: Vec<ExportName>,
    pub(super) activated: bool,
    /// The data key, for a successor; kept only where the user has asked for that.
    pub(super) key_kept: Option<DataKey>,
    /// Listeners that accept nobody here, for the next successor.
    pub(super) held_back: Vec<Listener>,
    leaves_host: bool,
    /// For [`Running::snapshot`](super::handover).
    pub(super) sockets: Vec<KeptSocket>,
    pub(super) backing: String,
    pub(super) leftover: Leftover,
    pub(super) private: Option<PrivateDirectory>,
    pub(super) stop: watch::Sender<Signal>,
    pub(super) server: JoinHandle<Served>,
    pub(super) steps: Vec<Step>,
}

/// What a rewrap changes, and so nobody else meanwhile.
pub(super) struct Keep {
    pub(super) held: Held,
    pub(super) journal: Entry,
}

/// Where rewraps have moved the data key to. Apart from [`Keep`], so that nobody waits for one that is under way.
#[derive(Clone)]
struct Moves(Arc<std::sync::Mutex<Moved>>);

struct Moved {
    /// The provider that unwraps.
    provider: Provider,
    /// Moves that are not recorded yet: KMS key and grant.
    untold: Vec<(KeyArn, Option<String>)>,
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, Moved> {
        // Nobody panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rewrap under way. Dropped, it tells if the key has moved: also if ending the old grant failed afterwards, or if
/// the rewrap was given up there.
struct Moving<'a> {
    keep: &'a mut Keep,
    before: Option<String>,
    to: Provider,
    moves: Moves,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let grant = grant_of(&self.keep.held);
        if grant != self.before {
            let mut moved = self.moves.lock();
            moved.provider = self.to.clone();
            moved.untold.push((self.keep.held.document.slots[0].key.clone(), grant));
        }
    }
}

/// The first slot's. No two rewraps have the same.
fn grant_of(held: &Held) -> Option<String> {
    held.document.slots.first()?.grant.as_ref().map(|grant| grant.id.clone())
}

/// What is to be said about a volume that is served.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The volume.
    pub volume: VolumeId,
    /// How long it lives.
    pub life: Life,
    /// The KMS key that wraps its data key.
    pub kms_key: KeyArn,
    /// `local` or `aws`.
    pub provider: &'static str,
    /// Which of the KMS key's materials wrapped it, where the service tells.
    pub key_material: Option<String>,
    /// The grant by which it was unlocked, or would be again.
    pub grant: Option<String>,
    /// The whole encryption context.
    pub encryption_context: EncryptionContext,
    /// The envelope's file.
    pub envelope: Option<PathBuf>,
    /// The cipher, by dm-crypt's name.
    pub cipher: &'static str,
    /// Bytes in a sector.
    pub sector_size: usize,
    /// Bytes in the volume.
    pub size: u64,
    /// Where the ciphertext lies.
    pub backing: String,
    /// Bytes that clients wrote.
    pub bytes_written: u64,
    /// Writes are refused, by the user's wish or because of the KMS key's state.
    pub read_only: bool,
    /// Names that it is served under, the default export first.
    pub exports: Vec<ExportName>,
    /// Where clients connect.
    pub uris: Vec<String>,
    /// The process.
    pub pid: u32,
    /// Its version.
    pub version: &'static str,
    /// What has happened, in order.
    pub steps: Vec<Step>,
}

/// Everything that a volume is served with.
pub(super) struct Ready {
    pub(super) audit: AuditLog,
    pub(super) by: Unwrapper,
    pub(super) health: Option<KeyHealth>,
    pub(super) owns_grants: bool,
    pub(super) held: Held,
    pub(super) journal: Entry,
    pub(super) volume: EncryptedVolume,
    pub(super) options: Options,
    pub(super) implementation: Implementation,
    pub(super) exports: Vec<ExportName>,
    /// Some of its sockets were inherited from whoever started it.
    pub(super) activated: bool,
    pub(super) key_kept: Option<DataKey>,
    pub(super) backing: String,
    pub(super) leftover: Leftover,
    pub(super) private: Option<PrivateDirectory>,
    pub(super) steps: Vec<Step>,
}

impl Ready {
    /// Serves it on `listeners`, and to a predecessor's clients; `held_back` are kept, and nobody is accepted there.
    ///
    /// # Errors
    /// The operating system's, if a restartable volume's listeners cannot be copied.
    pub(super) fn serve(
        self,
        mut listeners: Vec<Listener>,
        held_back: Vec<Listener>,
        resumed: Resumed,
        serving: &Serving,
    ) -> Result<Running, HandoverError> {
        let Self { audit, by, health, owns_grants, held, journal, options, implementation, exports, .. } =
            self;
        let restartable = self.key_kept.is_some();
        let (id, layout) = (held.document.volume.clone(), held.document.layout());
        let volume = Arc::new(self.volume);
        let served = exports.iter().map(|export| Export {
            name: export.name.clone(),
            description: format!("sealblk {id}, {layout}"),
            device: volume.clone(),
            read_only: export.read_only,
        });
        let served = Exports::new(served.collect());
        let uris = uris(&exports, &listeners, serving.is_secure());
        listeners.iter_mut().for_each(|listener| listener.admit(serving.users.clone()));
        let socket = listeners.iter().find_map(Listener::path).map(Into::into);
        let all = listeners.iter().chain(&held_back);
        let sockets = if restartable { handover::sockets(all)? } else { Vec::new() };
        let leaves_host = listeners.iter().any(|listener| listener.require_allowed(false).is_err());
        let (stop, stopped) = watch::channel(Signal::Run);
        let limits = Limits { restartable, ..serving.limits };
        let server = tokio::spawn(serve(listeners, served, serving.tls.clone(), limits, resumed, stopped));
        let moved = Moved { provider: by.provider.clone(), untold: Vec::new() };
        Ok(Running {
            audit,
            id,
            uris,
            socket,
            health,
            by,
            owns_grants,
            keep: Arc::new(Mutex::new(Keep { held, journal })),
            moves: Moves(Arc::new(std::sync::Mutex::new(moved))),
            layout,
            volume,
            options,
            implementation,
            exports,
            activated: self.activated,
            key_kept: self.key_kept,
            held_back,
            leaves_host,
            sockets,
            backing: self.backing,
            leftover: self.leftover,
            private: self.private,
            stop,
            server,
            steps: self.steps,
        })
    }
}

impl Running {
    /// The KMS key that wraps the data key now.
    pub async fn key(&self) -> KeyArn {
        self.keep.lock().await.held.document.slots[0].key.clone()
    }

    /// Moves the data key to another KMS key, or to the newest material of its own. No I/O waits for it; a second
    /// rewrap waits for the first.
    ///
    /// # Errors
    /// [`EngineError::Envelope`]; the volume opens as before, or by the new key if that was taken in already.
    pub fn rewrap(
        &self,
        target: Target,
    ) -> impl Future<Output = Result<Rewrapped, EngineError>> + Send + 'static {
        let (keep, by, moves) = (self.keep.clone(), self.by.clone(), self.moves.clone());
        async move {
            let mut keep = keep.lock().await;
            // The one before, which this one has waited for, may have moved the key.
            let by = by.at(&moves.lock().provider);
            let before = grant_of(&keep.held);
            let moving = Moving { keep: &mut keep, before, to: target.provider.clone(), moves };
            let Keep { held, journal } = &mut *moving.keep;
            Ok(envelope::rewrap(held, &by, &target, journal).await?)
        }
    }

    /// Records the rewraps that have moved the data key since the last time, and tells the KMS key of the last one.
    pub fn record_moves(&mut self) -> Option<KeyArn> {
        let moves = std::mem::take(&mut self.moves.lock().untold);
        for (key, grant) in &moves {
            self.happened("rewrapped");
            self.record("VolumeRewrapped", json!({ "keyId": key, "grantId": grant }));
        }
        moves.into_iter().next_back().map(|(key, _)| key)
    }

    /// Writes an event of the volume into the audit log.
    pub(super) fn record(&self, event: &str, details: Value) {
        let Value::Object(details) = details else { return };
        self.audit.volume(event, self.id.as_str(), details);
    }

    /// Notes what has become of the KMS key.
    pub fn key_changed(&self, status: &KeyStatus) {
        self.record("KeyStateChanged", json!({ "keyId": status.key, "state": status.known }));
    }

    /// The KMS under the provisioner's identity.
    ///
    /// # Errors
    /// As [`Provider::open`].
    pub async fn provisioner(&self) -> Result<Arc<dyn KeyService>, KmsError> {
        self.by.at(&self.provider()).provisioner().await
    }

    /// The KMS that unwraps now.
    pub fn provider(&self) -> Provider {
        self.moves.lock().provider.clone()
    }

    /// True while writes are refused by [`Running::freeze`].
    pub fn is_frozen(&self) -> bool {
        self.volume.is_frozen()
    }

    /// True if it can go over to a successor process.
    pub fn is_restartable(&self) -> bool {
        self.key_kept.is_some()
    }

    /// True if clients of other hosts may reach it: an address that is not loopback, or vsock.
    pub fn leaves_host(&self) -> bool {
        self.leaves_host
    }

    /// Names that it is served under, the default export first.
    pub fn exports(&self) -> &[ExportName] {
        &self.exports
    }

    /// True if some of its sockets were inherited (LISTEN_FDS): standard output belongs to a pipeline of whoever
    /// passed them, then.
    pub fn is_activated(&self) -> bool {
        self.activated
    }

    /// Notes that something happened.
    pub fn happened(&mut self, step: &'static str) {
        self.steps.push(Step::now(step));
    }

    /// Refuses writes from now on, or takes them again.
    pub fn freeze(&mut self, frozen: bool) {
        self.volume.freeze(frozen);
        self.happened(if frozen { "frozen" } else { "thawed" });
        self.record(if frozen { "VolumeFrozen" } else { "VolumeThawed" }, json!({}));
    }

    /// What is to be said about it, as it is now; the key as it is after a rewrap that is under way.
    pub fn status(&self) -> impl Future<Output = Status> + Send + 'static {
        let keep = self.keep.clone();
        let read_only = self.volume.features().read_only || self.volume.is_frozen();
        let (id, layout, backing) = (self.id.clone(), self.layout, self.backing.clone());
        let (bytes_written, steps) = (self.volume.bytes_written(), self.steps.clone());
        let (exports, uris) = (self.exports.clone(), self.uris.clone());
        async move {
            let keep = keep.lock().await;
            let document = &keep.held.document;
            let slot = &document.slots[0];
            Status {
                volume: id,
                life: document.life,
                kms_key: slot.key.clone(),
                provider: slot.provider.as_str(),
                key_material: slot.material().map(Into::into),
                grant: slot.grant.as_ref().map(|grant| grant.id.clone()),
                encryption_context: document.whole_context(),
                envelope: keep.held.file.as_ref().map(|file| file.path().into()),
                cipher: envelope::CIPHER,
                sector_size: layout.sector.bytes(),
                size: layout.size.bytes(),
                backing,
                bytes_written,
                read_only,
                exports,
                uris,
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION"),
                steps,
            }
        }
    }
}
