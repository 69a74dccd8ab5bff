//! From a specification to a volume that is served.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::journal::{self, Entry, Note};
use super::{EngineError, Running, Specification, Step};
use crate::envelope::{self, Layout, Prepared, VolumeId};
use crate::geometry::VolumeSize;
use crate::kms::{KeyService, Lease, Role, isolate};
use crate::nbd::server::{Address, Export, Limits, Listener, serve};
use crate::secret::DataKey;
use crate::store::{FileStore, Leftover};
use crate::volume::EncryptedVolume;

/// For what dead volumes left: a KMS that cannot be reached must not hold a start up.
const SWEEP_DEADLINE: Duration = Duration::from_secs(10);

/// Starts a volume and serves it.
///
/// # Errors
/// An [`EngineError`]; what was made until then is undone, and what could not be undone stays in the journal for
/// the next start or `sealblk gc`.
pub async fn start(specification: Specification) -> Result<Running, EngineError> {
    let id = VolumeId::random();
    let mut steps = vec![Step::now("started")];
    let context = envelope::bind(&specification.key.context, &id, specification.layout)?;
    if tokio::time::timeout(SWEEP_DEADLINE, journal::sweep(&specification.state)).await.is_err() {
        tracing::warn!("dead volumes' grants could not be retired in time; the next start tries again");
    }
    let mut listeners = listen(&specification).await?;
    steps.push(Step::now("listening"));
    let kms = specification.provider.open(Role::Provisioner).await?;
    let prepared = envelope::prepare(&*kms, &specification.key, &id, context).await?;
    steps.push(Step::now("key-checked"));
    let (store, leftover) = open_backing(&specification).await?;
    steps.push(Step::now("backing-opened"));
    // Nobody else has its name, so it need not be made early; and from here on the journal knows it at once.
    let private = if listeners.is_empty() { Some(listen_privately(&mut listeners).await?) } else { None };
    let note = Note::new(&id, &specification.provider, &prepared, &listeners, private.as_ref(), &leftover);
    let mut journal = Entry::create(&specification.state, note)?;
    let (lease, key) = match unlock(&specification, &*kms, &prepared, &mut journal, &mut steps).await {
        Ok(unlocked) => unlocked,
        Err(error) => {
            abandon(&*kms, journal).await;
            return Err(error);
        }
    };
    let volume = Arc::new(open_volume(&specification, store, key));
    steps.push(Step::now("unlocked"));
    let export = Export {
        name: specification.export.clone(),
        description: format!("sealblk {id}, {}", specification.layout),
        device: volume.clone(),
    };
    let uris = listeners.iter().map(|listener| listener.uri(&specification.export)).collect();
    let socket = listeners.iter().find_map(Listener::path).map(Path::to_path_buf);
    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(listeners, export, Limits::default(), stopped));
    steps.push(Step::now("serving"));
    Ok(Running {
        id,
        key: prepared.key,
        uris,
        socket,
        provider: specification.provider,
        kms,
        context: prepared.context,
        layout: specification.layout,
        grant_id: lease.grant_id,
        token: lease.token,
        volume,
        backing: specification.backing.describe(),
        leftover,
        journal,
        private,
        stop,
        server,
        steps,
    })
}

/// Keys the cipher and wipes the raw key.
fn open_volume(specification: &Specification, store: FileStore, key: DataKey) -> EncryptedVolume {
    let Layout { sector, size } = specification.layout;
    if size.bytes() > VolumeSize::ADVISED {
        tracing::warn!("the volume is over 1 TiB, the most that IEEE P1619 advises to encrypt under one key");
    }
    let cipher = specification.implementation.cipher(&key, sector);
    drop(key);
    EncryptedVolume::new(Box::new(store), cipher, size, specification.options)
}

/// On a thread that may block: discarding a whole disk takes its time, and a signal must get through meanwhile.
async fn open_backing(specification: &Specification) -> Result<(FileStore, Leftover), EngineError> {
    let (backing, size) = (specification.backing.clone(), specification.layout.size.bytes());
    let opened = tokio::task::spawn_blocking(move || backing.open_new(size)).await;
    Ok(opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

/// Makes the key and its grant, and unwraps the key through the grant.
async fn unlock(
    specification: &Specification,
    kms: &dyn KeyService,
    prepared: &Prepared,
    journal: &mut Entry,
    steps: &mut Vec<Step>,
) -> Result<(Lease, DataKey), EngineError> {
    let wrapped = prepared.generate(kms).await?;
    journal.expect_grant()?;
    let lease = match prepared.lease(kms).await {
        Ok(lease) => lease,
        Err(error) => {
            if error.is_definite() {
                journal.expect_no_grant()?;
            }
            return Err(error.into());
        }
    };
    journal.set_grant(&lease.grant_id)?;
    steps.push(Step::now("provisioned"));
    let key = isolate::unwrap(
        &specification.helper,
        &specification.provider,
        &wrapped,
        &prepared.context,
        Some(&lease.token),
        specification.provider.patience(),
    )
    .await?;
    Ok((lease, key))
}

/// Ends the grant that [`unlock`] may have made before it failed.
async fn abandon(kms: &dyn KeyService, journal: Entry) {
    match kms.release(&journal.grant()).await {
        Ok(released) if journal.is_settled(released) => journal.remove(),
        Ok(_) => tracing::warn!("a grant may still appear; the next start or `sealblk gc` looks again"),
        Err(error) => {
            tracing::warn!(%error, "a grant may be left over; the next start or `sealblk gc` retires it");
        }
    }
}

/// Binds the addresses that were asked for.
async fn listen(specification: &Specification) -> Result<Vec<Listener>, EngineError> {
    let mut listeners = Vec::new();
    for address in &specification.listen {
        listeners.push(Listener::bind(address, specification.insecure).await?);
    }
    Ok(listeners)
}

/// Binds a socket of the volume's own.
async fn listen_privately(listeners: &mut Vec<Listener>) -> Result<PrivateDirectory, EngineError> {
    let private = PrivateDirectory::make()?;
    listeners.push(Listener::bind(&Address::Unix(private.socket()), false).await?);
    Ok(private)
}

/// A directory that nobody else can enter, for one socket; both are removed on drop.
pub(super) struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn make() -> Result<Self, EngineError> {
        let parent = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
        let name = format!("sealblk-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let path = parent.unwrap_or_else(std::env::temp_dir).join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source: io::Error| EngineError::State {
            action: "make directory",
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn socket(&self) -> PathBuf {
        self.0.join("nbd.sock")
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // Its listener removes the socket as well; whichever comes second finds nothing.
        let _ = std::fs::remove_file(self.socket());
        if let Err(error) = std::fs::remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the socket's directory");
        }
    }
}
