//! What a predecessor that died had changed after the service manager was given the state: journal and envelope are
//! replaced, never changed in place, so the lock that was handed over may be one of a file without a name.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::State;
use crate::engine::journal::{self, Note};
use crate::envelope::{Document, EnvelopeFile, SealKey, file};
use crate::files;

impl State {
    /// The lock of the journal that has the name now, after reading it; else the one that was handed over.
    pub(super) fn regain_journal(&mut self, lock: File) -> File {
        if is_named(&lock, &self.journal) {
            return lock;
        }
        match later_note(&self.note, &self.journal) {
            Ok((note, lock)) => {
                self.note = note;
                lock
            }
            Err(error) => {
                tracing::warn!(path = %self.journal.display(), %error, "the journal is not the one that was handed over");
                lock
            }
        }
    }

    /// As [`State::regain_journal`], and after it, for the envelope. One that the data key did not seal is not believed.
    pub(super) fn regain_envelope(&mut self, path: PathBuf, lock: File, seal: &SealKey) -> EnvelopeFile {
        if is_named(&lock, &path) {
            return EnvelopeFile::adopt(path, lock);
        }
        match EnvelopeFile::open(&path) {
            Ok((file, document)) if self.is_followed_by(&document, seal) => {
                self.follow(document, &path);
                return file;
            }
            Ok(_) => {
                tracing::warn!(path = %path.display(), "the envelope is neither the one that was handed over nor a later one");
            }
            Err(error) => tracing::warn!(%error, "the envelope is not the one that was handed over"),
        }
        EnvelopeFile::adopt(path, lock)
    }

    fn is_followed_by(&self, document: &Document, seal: &SealKey) -> bool {
        document.volume == self.document.volume
            && document.revision() >= self.document.revision()
            && document.verify(seal) == Some(true)
    }

    /// A rewrap that had got that far had written its token and its provider down before.
    fn follow(&mut self, document: Document, path: &Path) {
        let grant = |document: &Document| Some(document.slots.first()?.grant.as_ref()?.id.clone());
        let (before, now) = (grant(&self.document), grant(&document));
        self.document = document;
        if before == now {
            return;
        }
        let token = file::read_token(&file::token_path(path));
        let token =
            token.inspect_err(|error| tracing::warn!(%error, "the grant token is lost")).ok().flatten();
        self.token = token.map(|token| token.expose().to_owned());
        if let Some(noted) = self.note.grants.iter().find(|noted| now.is_some() && noted.id == now) {
            self.provider = noted.provider.clone();
        }
    }
}

fn is_named(lock: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (lock.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => identity(held) == identity(named),
        _ => false,
    }
}

fn later_note(known: &Note, path: &Path) -> io::Result<(Note, File)> {
    journal::require_own(path.parent().unwrap_or(path))?;
    let lock = files::lock_if_free(path)?.ok_or(io::ErrorKind::WouldBlock)?;
    let note: Note = serde_json::from_str(&io::read_to_string(&lock)?)?;
    if note.volume != known.volume {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is another volume's"));
    }
    Ok((note, lock))
}
