//! What a volume would leave behind if its process died, written down before it is made.
//!
//! One file per living volume in `STATE/volumes`, locked by its process as long as that lives. A file that can be
//! locked belongs to a dead one: [`sweep`] retires its grant, removes what it left, and then the file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::start::PrivateDirectory;
use crate::envelope::{Prepared, VolumeId};
use crate::kms::{GrantRef, KeyArn, KmsError, Provider, Released, Role};
use crate::nbd::server::Listener;
use crate::store::Leftover;

/// What is to be cleared away.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The volume.
    pub volume: VolumeId,
    provider: Provider,
    /// The KMS key.
    pub key: KeyArn,
    /// The grant's name, known before the grant is made.
    grant_name: String,
    /// The grant's id, known afterwards.
    pub grant_id: Option<String>,
    sockets: Vec<PathBuf>,
    directory: Option<PathBuf>,
    backing: Option<MadeFile>,
}

/// A file that the volume made, told apart from another one of the same name.
#[derive(Debug, Serialize, Deserialize)]
struct MadeFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Note {
    pub(super) fn new(
        volume: &VolumeId,
        provider: &Provider,
        prepared: &Prepared,
        listeners: &[Listener],
        private: Option<&PrivateDirectory>,
        leftover: &Leftover,
    ) -> Self {
        let made = leftover.made_file().and_then(|path| {
            let metadata = fs::metadata(path).ok()?;
            let path = std::path::absolute(path).ok()?;
            Some(MadeFile { path, device: metadata.dev(), inode: metadata.ino() })
        });
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        Self {
            volume: volume.clone(),
            provider: provider.clone(),
            key: prepared.key.clone(),
            grant_name: prepared.lease.name.clone(),
            grant_id: None,
            sockets: listeners.iter().filter_map(Listener::path).map(absolute).collect(),
            directory: private.map(|private| private.path().into()),
            backing: made,
        }
    }

    /// The grant, as well as it is known.
    fn grant(&self) -> GrantRef<'_> {
        match &self.grant_id {
            Some(grant_id) => GrantRef::Id { key: &self.key, grant_id },
            None => GrantRef::Name { key: &self.key, name: &self.grant_name },
        }
    }
}

/// The journal of a living volume.
pub struct Entry {
    note: Note,
    path: PathBuf,
    /// Holds the lock.
    file: File,
}

impl Entry {
    /// Writes the journal down: on disk when this returns.
    pub(super) fn create(state: &Path, note: Note) -> Result<Self, EngineError> {
        let directory = directory(state);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(failed("make directory", &directory))?;
        let path = directory.join(format!("{}.json", note.volume));
        let file = write(&directory, &path, &note).map_err(failed("write journal", &path))?;
        Ok(Self { note, path, file })
    }

    pub(super) fn set_grant(&mut self, id: &str) -> Result<(), EngineError> {
        self.note.grant_id = Some(id.into());
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        self.file = write(directory, &self.path, &self.note).map_err(failed("write journal", &self.path))?;
        Ok(())
    }

    /// The grant that is to be ended.
    pub(super) fn grant(&self) -> GrantRef<'_> {
        self.note.grant()
    }

    /// Nothing is left to be cleared away.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the journal");
        }
    }
}

fn directory(state: &Path) -> PathBuf {
    state.join("volumes")
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    let path = path.to_path_buf();
    move |source| EngineError::State { action, path, source }
}

/// Replaces `path` as a whole; the returned file holds the lock of the new one.
fn write(directory: &Path, path: &Path, note: &Note) -> io::Result<File> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.write_all(&serde_json::to_vec_pretty(note)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()?;
    Ok(file)
}

/// What became of a dead volume's leftovers.
pub struct Swept {
    /// The journal's file.
    pub path: PathBuf,
    /// The volume, where its journal could be read.
    pub volume: Option<VolumeId>,
    /// How its grant ended, or why something is still left.
    pub outcome: Result<Released, SweepError>,
}

/// Why a dead volume's leftovers are still there.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The journal cannot be read, or what it names cannot be removed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The grant could not be ended.
    #[error("{0}")]
    Kms(#[from] KmsError),
}

/// Clears away what dead volumes left: grants, sockets, named backings. What cannot be cleared stays in the
/// journal and is reported; a volume that lives is not touched.
pub async fn sweep(state: &Path) -> Vec<Swept> {
    let mut all = Vec::new();
    let entries = fs::read_dir(directory(state)).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "json") {
            remove_unfinished(&path);
            continue;
        }
        let Some(mut file) = lock_if_dead(&path) else { continue };
        let mut volume = None;
        let outcome = clear(&path, &mut file, &mut volume).await;
        match &outcome {
            Ok(released) => tracing::info!(path = %path.display(), ?released, "cleared a dead volume away"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot clear a dead volume away"),
        }
        all.push(Swept { path, volume, outcome });
    }
    all
}

/// A journal whose writer died before it got its name; what it would have said stands in the one it was to replace.
/// Only an old one: a young one's writer may be about to lock it.
fn remove_unfinished(path: &Path) {
    let age = fs::metadata(path).and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
    if !matches!(age, Ok(Ok(age)) if age > Duration::from_secs(60)) {
        return;
    }
    let removed = lock_if_dead(path).map(|_lock| fs::remove_file(path));
    if let Some(Err(error)) = removed {
        tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished journal");
    }
}

/// Opens and locks the journal of a process that is dead.
fn lock_if_dead(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    // It may have been replaced or removed between the two calls; then somebody else has dealt with it.
    let (opened, named) = (file.metadata().ok()?, fs::metadata(path).ok()?);
    (opened.ino() == named.ino()).then_some(file)
}

async fn clear(path: &Path, file: &mut File, volume: &mut Option<VolumeId>) -> Result<Released, SweepError> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let note: Note = serde_json::from_str(&text).map_err(io::Error::from)?;
    *volume = Some(note.volume.clone());
    // First what needs nobody else: the KMS may be out of reach.
    remove_files(&note)?;
    let kms = note.provider.open(Role::Provisioner).await?;
    let released = kms.release(&note.grant()).await?;
    fs::remove_file(path)?;
    Ok(released)
}

fn remove_files(note: &Note) -> io::Result<()> {
    for socket in note.sockets.iter().filter(|path| crate::nbd::server::is_abandoned(path)) {
        fs::remove_file(socket)?;
    }
    if let Some(directory) = note.directory.as_ref().filter(|path| path.exists()) {
        fs::remove_dir(directory)?;
    }
    if let Some(made) = &note.backing
        && fs::metadata(&made.path).is_ok_and(|now| (now.dev(), now.ino()) == (made.device, made.inode))
    {
        fs::remove_file(&made.path)?;
    }
    Ok(())
}
