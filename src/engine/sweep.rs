//! Clearing away what dead processes left, by their journals.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::journal::{self, Entry, EnvelopeNote, GrantNote, Note};
use crate::audit::AuditLog;
use crate::envelope::{self, Document, VolumeId, file as envelope_file};
use crate::files;
use crate::kms::{KmsError, Released, Role, Witness};

/// How long a grant may take to appear, with room to spare: AWS says five minutes.
const GRANT_APPEARS: Duration = Duration::from_secs(600);

/// What became of a dead process's leftovers, or would become of them.
pub struct Swept {
    /// The journal's file.
    pub path: PathBuf,
    /// The volume, where its journal could be read.
    pub volume: Option<VolumeId>,
    /// What was done, or would be, one line each.
    pub deeds: Vec<Deed>,
    /// Why something is still left.
    pub outcome: Result<(), SweepError>,
}

/// One thing that is cleared away.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case", tag = "deed")]
pub enum Deed {
    /// A grant was ended.
    Grant {
        /// Its id, or its name where the id never became known.
        grant: String,
        /// How; none if it was not done.
        ended: Option<Released>,
    },
    /// A file was removed.
    File {
        /// Its path.
        path: PathBuf,
    },
}

/// Why a dead process's leftovers are still there.
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

/// Clears away what dead processes left: grants, sockets, named backings, half-made envelopes. What cannot be
/// cleared stays in the journal and is reported; a volume that lives is not touched. With `dry_run` nothing is
/// done, and the deeds are what would be.
pub async fn sweep(state: &Path, audit: &AuditLog, dry_run: bool) -> Vec<Swept> {
    let mut all = Vec::new();
    let directory = journal::directory(state);
    match journal::require_own(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return all,
        Err(error) => {
            tracing::warn!(path = %directory.display(), %error, "journals are not read");
            return all;
        }
    }
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if !journal::is_journal(&path) {
            remove_unfinished(&path);
            continue;
        }
        let Ok(Some(file)) = files::lock_if_free(&path) else { continue };
        let mut swept = Swept { path, volume: None, deeds: Vec::new(), outcome: Ok(()) };
        swept.outcome = clear(&mut swept, file, audit, dry_run).await;
        let path = swept.path.display();
        match &swept.outcome {
            Ok(()) => tracing::info!(%path, dry_run, "cleared a dead process's leftovers away"),
            Err(error) => tracing::warn!(%path, %error, "cannot clear a dead process's leftovers away"),
        }
        if let Some(volume) = swept.volume.as_ref().filter(|_| !dry_run) {
            let error = swept.outcome.as_ref().err().map(ToString::to_string);
            let details = [("deeds", serde_json::json!(swept.deeds)), ("error", serde_json::json!(error))];
            let details = details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            audit.volume("LeftoversCleared", volume.as_str(), details);
        }
        all.push(swept);
    }
    all
}

/// Undoes what a process has made that lives and gives up, as if it had died.
pub(super) async fn abandon(journal: &Entry, audit: &AuditLog) {
    let path = journal.path().to_path_buf();
    let mut swept = Swept { path, volume: None, deeds: Vec::new(), outcome: Ok(()) };
    let cleared = match File::open(&swept.path) {
        Ok(file) => clear(&mut swept, file, audit, false).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = cleared {
        tracing::warn!(%error, "something is left over; the next start or `sealblk gc` clears it away");
    }
}

/// A journal whose writer died before it got its name; what it would have said stands in the one it was to replace.
/// Only an old one: a young one's writer may be about to lock it.
fn remove_unfinished(path: &Path) {
    let age = fs::metadata(path).and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
    if !matches!(age, Ok(Ok(age)) if age > Duration::from_secs(60)) {
        return;
    }
    if let Ok(Some(_lock)) = files::lock_if_free(path)
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished journal");
    }
}

async fn clear(
    swept: &mut Swept,
    mut journal: File,
    audit: &AuditLog,
    dry_run: bool,
) -> Result<(), SweepError> {
    let mut text = String::new();
    journal.read_to_string(&mut text)?;
    let note: Note = serde_json::from_str(&text).map_err(io::Error::from)?;
    swept.volume = Some(note.volume.clone());
    // First what needs nobody else: the KMS may be out of reach. One failure does not keep the other from its end.
    let (kept, files) = envelope_and_files(&note)?;
    let removed =
        files.into_iter().map(|path| remove(path, dry_run, &mut swept.deeds)).fold(Ok(()), io::Result::and);
    let leftovers: Vec<_> = note.grants.iter().filter(|grant| !names(kept.as_ref(), grant)).collect();
    let age = journal.metadata()?.modified()?.elapsed().unwrap_or_default();
    let witness = audit.for_volume(note.volume.as_str());
    let mut ended = Ok(());
    for grant in leftovers {
        ended = ended.and(end(grant, age, dry_run, &witness, &mut swept.deeds).await);
    }
    ended?;
    removed?;
    if !dry_run {
        fs::remove_file(&swept.path)?;
    }
    Ok(())
}

/// The envelope, if it is whole and to be kept, and the files that are not.
fn envelope_and_files(note: &Note) -> io::Result<(Option<Document>, Vec<PathBuf>)> {
    let mut files: Vec<_> =
        note.sockets.iter().filter(|path| crate::nbd::server::is_abandoned(path)).cloned().collect();
    files.extend(note.control.iter().filter(|path| crate::nbd::server::is_abandoned(path)).cloned());
    files.extend(note.directory.iter().filter(|path| path.is_dir()).cloned());
    let mut kept = None;
    if let Some(EnvelopeNote { path, undo_unless_sealed }) = &note.envelope {
        // One that is locked is another process's, which is writing it.
        let unfinished = [path.clone(), envelope_file::token_path(path)].map(|path| files::unfinished(&path));
        files.extend(unfinished.into_iter().filter(|path| matches!(files::lock_if_free(path), Ok(Some(_)))));
        match envelope_file::read(path) {
            Ok(document) if document.volume != note.volume => {}
            Ok(document) if document.is_sealed() || !undo_unless_sealed => kept = Some(document),
            Ok(_) => files.extend(
                [envelope_file::token_path(path), path.clone()].into_iter().filter(|path| path.exists()),
            ),
            // A token that is locked is another process's, which is about to make the envelope of that name.
            Err(envelope::EnvelopeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let token = envelope_file::token_path(path);
                files.extend(Some(token).filter(|path| matches!(files::lock_if_free(path), Ok(Some(_)))));
            }
            // A damaged envelope may be mended by its owner: until then nothing of it is a leftover.
            Err(error) => return Err(io::Error::other(error.to_string())),
        }
    }
    let is_durable = kept
        .as_ref()
        .is_some_and(|document| document.is_sealed() && document.life == envelope::Life::Durable);
    let made = note.backing.as_ref().filter(|made| {
        let now = fs::symlink_metadata(&made.path);
        !is_durable && now.is_ok_and(|now| (now.dev(), now.ino()) == (made.device, made.inode))
    });
    files.extend(made.map(|made| made.path.clone()));
    Ok((kept, files))
}

/// True if the envelope that is kept needs the grant.
fn names(kept: Option<&Document>, grant: &GrantNote) -> bool {
    let Some(document) = kept else { return false };
    let pending = document.since_seal.pending.iter().map(|pending| &pending.slot);
    let mut known = document.slots.iter().chain(pending).filter_map(|slot| slot.grant.as_ref());
    known.any(|known| match &grant.id {
        Some(id) => known.id == *id,
        None => grant.name.as_ref() == Some(&known.name),
    })
}

async fn end(
    grant: &GrantNote,
    age: Duration,
    dry_run: bool,
    witness: &Arc<dyn Witness>,
    deeds: &mut Vec<Deed>,
) -> Result<(), SweepError> {
    let Some(reference) = grant.reference() else { return Ok(()) };
    let name = grant.id.clone().or_else(|| grant.name.clone()).unwrap_or_default();
    let ended = match dry_run {
        true => None,
        false => {
            Some(grant.provider.open(Role::Provisioner, witness.clone()).await?.release(&reference).await?)
        }
    };
    deeds.push(Deed::Grant { grant: name, ended });
    if !dry_run && !is_settled(grant, ended, age) {
        return Err(SweepError::Unsettled);
    }
    Ok(())
}

/// True if this is the last word on the grant. One whose making got no answer may appear under its name later: the
/// call may still be under way, and lists lag behind (AWS KMS developer guide, "Grants").
fn is_settled(grant: &GrantNote, ended: Option<Released>, age: Duration) -> bool {
    let may_appear = grant.id.is_none() && ended == Some(Released::AlreadyGone);
    !may_appear || age > GRANT_APPEARS
}

fn remove(path: PathBuf, dry_run: bool, deeds: &mut Vec<Deed>) -> io::Result<()> {
    if !dry_run {
        let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    deeds.push(Deed::File { path });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::journal::MadeFile;
    use crate::kms::{KeyArn, Provider};

    fn grant(name: Option<&str>, id: Option<&str>) -> GrantNote {
        GrantNote {
            provider: Provider::Local { directory: "/nonexistent".into() },
            key: KeyArn::new("arn"),
            name: name.map(Into::into),
            id: id.map(Into::into),
        }
    }

    #[test]
    fn a_grant_without_an_answer_is_waited_for() {
        let (now, later) = (Duration::ZERO, GRANT_APPEARS + Duration::from_secs(1));
        let unanswered = grant(Some("name"), None);
        assert!(!is_settled(&unanswered, Some(Released::AlreadyGone), now));
        assert!(is_settled(&unanswered, Some(Released::AlreadyGone), later));
        assert!(is_settled(&unanswered, Some(Released::Retired), now));
        assert!(is_settled(&grant(Some("name"), Some("id")), Some(Released::AlreadyGone), now));
    }

    #[test]
    fn files_that_are_gone_already_are_no_failure() {
        let mut note = Note::new(&VolumeId::random());
        note.sockets.push("/nonexistent/socket".into());
        note.directory = Some("/nonexistent".into());
        note.backing = Some(MadeFile { path: "/nonexistent/file".into(), device: 1, inode: 2 });
        note.envelope = Some(EnvelopeNote { path: "/nonexistent/envelope".into(), undo_unless_sealed: true });
        let (kept, files) = envelope_and_files(&note).unwrap();
        assert!(kept.is_none() && files.is_empty());
    }
}
