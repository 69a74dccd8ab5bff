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
use crate::audit::AuditLog;
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
    /// The grant is being made, or was: CreateGrant was called, and not refused.
    grant_expected: bool,
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
            grant_expected: false,
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

impl Note {
    /// True if `released` is the last word on the grant. A grant whose making got no answer may appear under its
    /// name later: the call may still be under way, and lists lag behind (AWS KMS developer guide, "Grants").
    fn is_settled(&self, released: Released, age: Duration) -> bool {
        let may_appear = self.grant_expected && self.grant_id.is_none() && released == Released::AlreadyGone;
        !may_appear || age > GRANT_APPEARS
    }
}

/// How long a grant may take to appear, with room to spare: AWS says five minutes.
const GRANT_APPEARS: Duration = Duration::from_secs(600);

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
        require_own(&directory).map_err(failed("use directory", &directory))?;
        let path = directory.join(format!("{}.json", note.volume));
        let file = write(&directory, &path, &note).map_err(failed("write journal", &path))?;
        Ok(Self { note, path, file })
    }

    /// CreateGrant is about to be called.
    pub(super) fn expect_grant(&mut self) -> Result<(), EngineError> {
        self.note.grant_expected = true;
        self.rewrite()
    }

    /// CreateGrant was refused.
    pub(super) fn expect_no_grant(&mut self) -> Result<(), EngineError> {
        self.note.grant_expected = false;
        self.rewrite()
    }

    /// CreateGrant has answered.
    pub(super) fn set_grant(&mut self, id: &str) -> Result<(), EngineError> {
        self.note.grant_id = Some(id.into());
        self.rewrite()
    }

    fn rewrite(&mut self) -> Result<(), EngineError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        self.file = write(directory, &self.path, &self.note).map_err(failed("write journal", &self.path))?;
        Ok(())
    }

    /// The volume.
    pub(super) fn volume(&self) -> &VolumeId {
        &self.note.volume
    }

    /// The grant that is to be ended.
    pub(super) fn grant(&self) -> GrantRef<'_> {
        self.note.grant()
    }

    /// True if `released` is the last word on the grant.
    pub(super) fn is_settled(&self, released: Released) -> bool {
        self.note.is_settled(released, Duration::ZERO)
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

/// Journals name files to remove and services to call: they are believed only where nobody else can write them.
fn require_own(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others own it or may write to it"));
    }
    Ok(())
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
    /// CreateGrant got no answer, and there is no such grant (yet).
    #[error("its grant may still appear; try again ten minutes after its start")]
    Unsettled,
}

/// Clears away what dead volumes left: grants, sockets, named backings. What cannot be cleared stays in the
/// journal and is reported; a volume that lives is not touched.
pub async fn sweep(state: &Path, audit: &AuditLog) -> Vec<Swept> {
    let mut all = Vec::new();
    let directory = directory(state);
    match require_own(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return all,
        Err(error) => {
            tracing::warn!(path = %directory.display(), %error, "journals are not read");
            return all;
        }
    }
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "json") {
            remove_unfinished(&path);
            continue;
        }
        let Some(mut file) = lock_if_dead(&path) else { continue };
        let mut volume = None;
        let outcome = clear(&path, &mut file, &mut volume, audit).await;
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

async fn clear(
    path: &Path,
    file: &mut File,
    volume: &mut Option<VolumeId>,
    audit: &AuditLog,
) -> Result<Released, SweepError> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let note: Note = serde_json::from_str(&text).map_err(io::Error::from)?;
    *volume = Some(note.volume.clone());
    // First what needs nobody else: the KMS may be out of reach. One failure does not keep the other from its end.
    let files = remove_files(&note);
    let kms = note.provider.open(Role::Provisioner, audit.for_volume(note.volume.as_str())).await?;
    let released = kms.release(&note.grant()).await?;
    files?;
    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    if !note.is_settled(released, age) {
        return Err(SweepError::Unsettled);
    }
    fs::remove_file(path)?;
    Ok(released)
}

/// Tries all of them, and fails with the first failure.
fn remove_files(note: &Note) -> io::Result<()> {
    let sockets = note.sockets.iter().filter(|path| crate::nbd::server::is_abandoned(path));
    let sockets = sockets.map(fs::remove_file).fold(Ok(()), io::Result::and);
    let directory = match note.directory.as_ref().map(fs::remove_dir) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let made = note.backing.as_ref().filter(|made| {
        fs::symlink_metadata(&made.path).is_ok_and(|now| (now.dev(), now.ino()) == (made.device, made.inode))
    });
    let backing = made.map_or(Ok(()), |made| fs::remove_file(&made.path));
    sockets.and(directory).and(backing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(grant_expected: bool, grant_id: Option<&str>) -> Note {
        Note {
            volume: VolumeId::random(),
            provider: Provider::Local { directory: "/nonexistent".into() },
            key: KeyArn::new("arn"),
            grant_name: "name".into(),
            grant_expected,
            grant_id: grant_id.map(Into::into),
            sockets: Vec::new(),
            directory: None,
            backing: None,
        }
    }

    #[test]
    fn a_grant_without_an_answer_is_waited_for() {
        let (now, later) = (Duration::ZERO, GRANT_APPEARS + Duration::from_secs(1));
        assert!(!note(true, None).is_settled(Released::AlreadyGone, now));
        assert!(note(true, None).is_settled(Released::AlreadyGone, later));
        assert!(note(true, None).is_settled(Released::Retired, now));
        assert!(note(true, Some("id")).is_settled(Released::AlreadyGone, now));
        assert!(note(false, None).is_settled(Released::AlreadyGone, now));
    }

    #[test]
    fn files_that_are_gone_already_are_no_failure() {
        let mut note = note(false, None);
        note.sockets.push("/nonexistent/socket".into());
        note.directory = Some("/nonexistent".into());
        note.backing = Some(MadeFile { path: "/nonexistent/file".into(), device: 1, inode: 2 });
        assert!(remove_files(&note).is_ok());
    }
}
