//! From a specification to a volume that is served.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::journal::{Entry, EnvelopeNote, Note};
use super::running::{Ready, Running};
use super::sockets::{PrivateDirectory, listen, listen_privately};
use super::sweep::{abandon, sweep};
use super::{EngineError, Envelope, HandoverError, Source, Specification, Step};
use crate::audit::AuditLog;
use crate::envelope::{
    self, Document, EnvelopeError, EnvelopeFile, Held, Layout, Life, Prepared, Unlocked, Unwrapper, VolumeId,
    bind,
};
use crate::geometry::VolumeSize;
use crate::kms::{GrantToken, KeyService, Role};
use crate::nbd::server::{Listener, Resumed};
use crate::secret::{DataKey, LockedBytes};
use crate::store::{Backing, FileStore, Leftover, StoreError};
use crate::volume::EncryptedVolume;

/// For what dead volumes left: a KMS that cannot be reached must not hold a start up.
const SWEEP_DEADLINE: Duration = Duration::from_secs(10);

/// Starts a volume and serves it. `also` is called once the journal is written, for what the caller makes beside it:
/// the control socket, which the journal names.
///
/// # Errors
/// An [`EngineError`], or that of `also`; what was made until then is undone, and what could not be undone stays in
/// the journal for the next start or `sealblk gc`.
pub async fn start<T, E: From<EngineError>>(
    source: Source,
    specification: Specification,
    also: impl FnOnce() -> Result<T, E>,
) -> Result<(Running, T), E> {
    if specification.restartable && LockedBytes::zeroed(1).map_err(EngineError::from)?.descriptor().is_none()
    {
        return Err(EngineError::from(HandoverError::NoSecretMemory).into());
    }
    let steps = vec![Step::now("started")];
    clear_away(&specification.state, &specification.audit).await;
    let id = source.volume();
    let alone = specification.listen.is_empty() && specification.inherited.is_empty();
    let private = alone.then(PrivateDirectory::named);
    let note = Note::new(&id).with_sockets(&specification.listen, private.as_deref());
    let note = Note { control: specification.control.clone(), ..note };
    // Before anything is made, so that nothing is forgotten whenever this process dies.
    let journal = Entry::create(&specification.state, note).map_err(EngineError::from)?;
    let mut making = Start { specification, journal, steps };
    let error = match also() {
        Ok(also) => match making.make(source, id, private).await {
            Ok(made) => return Ok((making.serve(made).await?, also)),
            Err(error) => error.into(),
        },
        Err(error) => error,
    };
    abandon(&making.journal, &making.specification.audit).await;
    Err(error)
}

/// A start that is under way.
struct Start {
    specification: Specification,
    journal: Entry,
    steps: Vec<Step>,
}

/// All that a volume consists of.
struct Made {
    plan: Plan,
    listeners: Vec<Listener>,
    private: Option<PrivateDirectory>,
    store: FileStore,
    leftover: Leftover,
    by: Unwrapper,
    unlocked: Unlocked,
    activated: bool,
}

impl Start {
    /// Makes everything, in the order in which it can fail. What is dropped after an error, and what the journal
    /// knows, undoes it.
    async fn make(
        &mut self,
        source: Source,
        id: VolumeId,
        private: Option<PathBuf>,
    ) -> Result<Made, EngineError> {
        let Self { specification, journal, steps } = self;
        let activated = !specification.inherited.is_empty();
        let mut listeners = listen(specification).await?;
        let private = match private {
            Some(path) => Some(listen_privately(path, &mut listeners).await?),
            None => None,
        };
        steps.push(Step::now("listening"));
        let mut plan = Plan::of(source, id, specification).await?;
        steps.push(Step::now("key-checked"));
        let by = Unwrapper {
            helper: specification.helper.clone(),
            provider: specification.provider.clone(),
            witness: specification.audit.for_volume(plan.document.volume.as_str()),
        };
        plan.require_lasting(&specification.backing)?;
        plan.open(&by).await?;
        let (store, mut leftover) = open_backing(specification, &plan).await?;
        journal.change(|note| {
            note.envelope = plan.note();
            note.set_backing(&leftover);
        })?;
        leftover.give_name()?;
        steps.push(Step::now("backing-opened"));
        let unlocked = match plan.unlock(&by, journal, steps).await {
            Ok(unlocked) => unlocked,
            Err(error) => {
                // A seal that was written without its answer needs its backing; what does not is in the journal.
                if plan.document.is_sealed() && plan.document.life == Life::Durable {
                    drop(leftover.preserved());
                }
                return Err(error);
            }
        };
        Ok(Made { plan, listeners, private, store, leftover, by, unlocked, activated })
    }

    /// Serves it.
    async fn serve(self, made: Made) -> Result<Running, EngineError> {
        let Self { specification, journal, mut steps } = self;
        let Made { plan, listeners, private, store, leftover, by, unlocked, activated } = made;
        let health = plan.making.as_ref().map(|making| making.prepared.health.clone());
        let owns_grants = plan.making.as_ref().is_some_and(|making| making.envelope.is_none());
        let held = plan.into_held(unlocked.seal);
        let leftover = if held.document.life == Life::Durable { leftover.preserved() } else { leftover };
        let layout = held.document.layout();
        let volume = open_volume(&specification, layout, store, &unlocked.key);
        steps.push(Step::now("unlocked"));
        let ready = Ready {
            audit: specification.audit,
            by,
            health,
            owns_grants,
            held,
            journal,
            volume,
            options: specification.options,
            implementation: specification.implementation,
            exports: specification.exports,
            activated,
            key_kept: specification.restartable.then_some(unlocked.key),
            backing: specification.backing.describe(),
            leftover,
            private,
            steps,
        };
        let mut running = ready.serve(listeners, Vec::new(), Resumed::default(), &specification.serving)?;
        running.happened("serving");
        let key = running.key().await;
        let details = json!({
            "keyId": key,
            "size": layout.size.bytes(),
            "exports": running.exports(),
            "uris": running.uris,
        });
        running.record("VolumeStarted", details);
        Ok(running)
    }
}

impl Source {
    /// The volume's id, which a new one gets here.
    fn volume(&self) -> VolumeId {
        match self {
            Self::New(_) => VolumeId::random(),
            Self::Envelope(envelope) => envelope.document.volume.clone(),
        }
    }
}

/// Clears away what dead volumes left, if that does not take too long.
pub(super) async fn clear_away(state: &Path, audit: &AuditLog) {
    if tokio::time::timeout(SWEEP_DEADLINE, sweep(state, audit, false)).await.is_err() {
        tracing::warn!("dead volumes' grants could not be retired in time; the next start tries again");
    }
}

/// Everything that is known about the key before anything is made.
struct Plan {
    document: Document,
    token: Option<GrantToken>,
    file: Option<EnvelopeFile>,
    /// Writes the file once the volume is unlocked.
    seals: bool,
    /// For a key that is still to be made: who makes it, and where its envelope goes.
    making: Option<Making>,
    /// The backing holds the volume's data already.
    reopened: bool,
    /// Once it is unlocked.
    unlocked: Option<Unlocked>,
}

struct Making {
    kms: Arc<dyn KeyService>,
    prepared: Prepared,
    envelope: Option<PathBuf>,
}

impl Plan {
    /// Everything of the key that can be told before anything is made.
    async fn of(source: Source, id: VolumeId, specification: &Specification) -> Result<Self, EngineError> {
        match source {
            Source::New(new) => {
                let life = if new.envelope.is_some() { Life::Durable } else { Life::Ephemeral };
                let whole = bind(&new.request.context, &id, new.layout)?;
                let witness = specification.audit.for_volume(id.as_str());
                let kms = specification.provider.open(Role::Provisioner, witness).await?;
                let prepared = envelope::prepare(&*kms, &new.request, id.to_string(), whole).await?;
                if let Some(path) = new.envelope.as_ref().filter(|path| path.exists()) {
                    return Err(EnvelopeError::Exists(path.clone()).into());
                }
                let document = Document::new(id, life, new.layout, new.request.context);
                let making = Some(Making { kms, prepared, envelope: new.envelope });
                let (reopened, unlocked) = (false, None);
                Ok(Self { document, token: None, file: None, seals: true, making, reopened, unlocked })
            }
            Source::Envelope(envelope) => {
                let Envelope { file, document, token, seal } = *envelope;
                let reopened = document.life == Life::Durable && document.is_sealed();
                let (file, seals) = (Some(file), seal);
                Ok(Self { document, token, file, seals, making: None, reopened, unlocked: None })
            }
        }
    }

    fn require_lasting(&self, backing: &Backing) -> Result<(), EngineError> {
        match (self.document.life, backing) {
            (Life::Durable, Backing::Memory | Backing::Directory(_)) => Err(EngineError::Fleeting),
            _ => Ok(()),
        }
    }

    /// Unlocks an envelope that is there, before its backing is touched: one that somebody has changed to say that
    /// there is nothing on it yet must not cost what is.
    async fn open(&mut self, by: &Unwrapper) -> Result<(), EngineError> {
        if self.making.is_none() {
            self.unlocked = Some(envelope::unlock(&mut self.document, by, self.token.as_ref()).await?);
        }
        Ok(())
    }

    fn note(&self) -> Option<EnvelopeNote> {
        let made_here = self.making.as_ref().and_then(|making| making.envelope.clone());
        let undo_unless_sealed = made_here.is_some();
        let path = made_here.or_else(|| self.file.as_ref().map(|file| file.path().into()))?;
        Some(EnvelopeNote { path: std::path::absolute(&path).unwrap_or(path), undo_unless_sealed })
    }

    /// Makes the key, if it is to be made here, and unlocks it, unless it is; then the envelope is sealed.
    async fn unlock(
        &mut self,
        by: &Unwrapper,
        journal: &mut Entry,
        steps: &mut Vec<Step>,
    ) -> Result<Unlocked, EngineError> {
        if let Some(Making { kms, prepared, envelope }) = &self.making {
            let lease =
                envelope::provision(&mut self.document, &**kms, &by.provider, prepared, false, journal)
                    .await?;
            if let Some(path) = envelope {
                let _locked = envelope::file::create_token(&envelope::file::token_path(path), &lease.token)?;
                self.file = Some(EnvelopeFile::create(path, &mut self.document)?);
            }
            self.token = Some(lease.token);
            steps.push(Step::now("provisioned"));
        }
        let unlocked = match self.unlocked.take() {
            Some(unlocked) => unlocked,
            None => envelope::unlock(&mut self.document, by, self.token.as_ref()).await?,
        };
        if let Some(file) = self.file.as_mut().filter(|_| unlocked.changed && self.seals) {
            file.write(&mut self.document)?;
            steps.push(Step::now("sealed"));
            if self.document.life == Life::Durable {
                journal.settle()?;
            }
        }
        Ok(unlocked)
    }

    fn into_held(self, seal: crate::envelope::SealKey) -> Held {
        Held { document: self.document, file: self.file, seal: Some(seal), token: self.token }
    }
}

/// Keys the cipher.
fn open_volume(
    specification: &Specification,
    layout: Layout,
    store: FileStore,
    key: &DataKey,
) -> EncryptedVolume {
    let Layout { sector, size } = layout;
    if size.bytes() > VolumeSize::ADVISED {
        tracing::warn!("the volume is over 1 TiB, the most that IEEE P1619 advises to encrypt under one key");
    }
    tracing::debug!(cipher = specification.implementation.name(), "the volume is keyed");
    let cipher = specification.implementation.cipher(key, sector);
    EncryptedVolume::new(Box::new(store), cipher, size, specification.options)
}

/// On a thread that may block: discarding a whole disk takes its time, and a signal must get through meanwhile.
async fn open_backing(
    specification: &Specification,
    plan: &Plan,
) -> Result<(FileStore, Leftover), EngineError> {
    let Layout { sector, size } = plan.document.layout();
    let (backing, reopened) = (specification.backing.clone(), plan.reopened);
    let direct = specification.direct && backing != Backing::Memory;
    let opened = tokio::task::spawn_blocking(move || {
        let (store, leftover) =
            if reopened { backing.open_existing(size.bytes()) } else { backing.open_new(size.bytes()) }?;
        let store = if direct { store.past_the_cache(leftover.path(), sector.bytes())? } else { store };
        Ok::<_, StoreError>((store, leftover))
    });
    Ok(opened.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}
