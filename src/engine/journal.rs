//! What a process would leave behind if it died, written down before it is made.
//!
//! One file per living volume (or per running `provision` and `rewrap`) in `STATE/volumes`, locked by its process
//! as long as that lives. A file that can be locked belongs to a dead one: [`sweep`](super::sweep) retires its
//! grants, removes what it left, and then the file.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sockets::private_socket;
use crate::envelope::{EnvelopeError, Expected, Ledger, VolumeId};
use crate::files;
use crate::kms::{GrantRef, KeyArn, Provider};
use crate::nbd::server::Address;
use crate::store::Leftover;

/// What is to be cleared away.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The volume.
    pub volume: VolumeId,
    /// Grants that there may be.
    pub(super) grants: Vec<GrantNote>,
    /// The envelope: what it names is its own, and no leftover.
    pub(super) envelope: Option<EnvelopeNote>,
    pub(super) sockets: Vec<PathBuf>,
    pub(super) directory: Option<PathBuf>,
    pub(super) backing: Option<MadeFile>,
    /// Where the volume is reached while it lives.
    pub control: Option<PathBuf>,
}

/// A grant that there may be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrantNote {
    pub(super) provider: Provider,
    pub(super) key: KeyArn,
    /// Known before the grant is made.
    pub(super) name: Option<String>,
    /// Known afterwards.
    pub(super) id: Option<String>,
}

/// The volume's envelope.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EnvelopeNote {
    pub(super) path: PathBuf,
    /// It was made together with the volume, and is worth nothing before the first unlock has sealed it.
    pub(super) undo_unless_sealed: bool,
}

/// A file that the volume made, told apart from another one of the same name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MadeFile {
    pub(super) path: PathBuf,
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl Note {
    /// A note of nothing yet.
    pub(super) fn new(volume: &VolumeId) -> Self {
        Self {
            volume: volume.clone(),
            grants: Vec::new(),
            envelope: None,
            sockets: Vec::new(),
            directory: None,
            backing: None,
            control: None,
        }
    }

    /// Adds the sockets that will have been abandoned, and the directory of the private one.
    pub(super) fn with_sockets(mut self, addresses: &[Address], private: Option<&Path>) -> Self {
        let asked = addresses.iter().filter_map(|address| match address {
            Address::Unix(path) => Some(absolute(path)),
            Address::Tcp(_) | Address::Vsock { .. } => None,
        });
        self.sockets = asked.chain(private.map(private_socket)).collect();
        self.directory = private.map(Into::into);
        self
    }

    /// Names the backing, if it is a file that was made and has its name, or will have it.
    pub(super) fn set_backing(&mut self, leftover: &Leftover) {
        self.backing = leftover.made_file().and_then(|path| {
            let metadata = leftover.file().metadata().ok()?;
            Some(MadeFile { path: absolute(path), device: metadata.dev(), inode: metadata.ino() })
        });
    }
}

impl GrantNote {
    /// The grant, as well as it is known.
    pub(super) fn reference(&self) -> Option<GrantRef<'_>> {
        let key = &self.key;
        match (&self.id, &self.name) {
            (Some(grant_id), _) => Some(GrantRef::Id { key, grant_id }),
            (None, Some(name)) => Some(GrantRef::Name { key, name }),
            (None, None) => None,
        }
    }
}

/// The journal of a living process.
pub struct Entry {
    note: Note,
    path: PathBuf,
    /// Holds the lock.
    lock: File,
}

impl Entry {
    /// Writes the journal down: on disk when this returns.
    pub(super) fn create(state: &Path, note: Note) -> Result<Self, EnvelopeError> {
        let directory = directory(state);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(failed("make directory", &directory))?;
        require_own(&directory).map_err(failed("use directory", &directory))?;
        // A volume may have several: a dead one of its last run beside the one of a rewrap.
        let number = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let path = directory.join(format!("{}-{number}.json", note.volume));
        let lock = files::create(&path, &text(&note)).map_err(failed("write journal", &path))?;
        Ok(Self { note, path, lock })
    }

    /// Takes over a predecessor's, with its lock.
    pub(super) fn adopt(note: Note, path: PathBuf, lock: File) -> Self {
        Self { note, path, lock }
    }

    /// Holds the lock.
    pub(super) fn lock(&self) -> &File {
        &self.lock
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The note.
    pub(super) fn note(&self) -> &Note {
        &self.note
    }

    /// Changes the note: on disk when this returns.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Note)) -> Result<(), EnvelopeError> {
        change(&mut self.note);
        self.lock =
            files::replace(&self.path, &text(&self.note)).map_err(failed("write journal", &self.path))?;
        Ok(())
    }

    /// A durable volume's envelope is sealed: grant and backing are no leftovers from now on, also if the envelope
    /// has another name by the time somebody looks for it.
    pub(super) fn settle(&mut self) -> Result<(), EnvelopeError> {
        self.change(|note| {
            note.grants.clear();
            note.backing = None;
            if let Some(envelope) = &mut note.envelope {
                envelope.undo_unless_sealed = false;
            }
        })
    }

    /// Nothing is left to be cleared away.
    pub(super) fn remove(&self) {
        if let Err(error) = files::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the journal");
        }
    }
}

impl Ledger for Entry {
    fn expect(&mut self, grant: Expected) -> Result<(), EnvelopeError> {
        let Expected { provider, key, name } = grant;
        self.change(|note| note.grants.push(GrantNote { provider, key, name: Some(name), id: None }))
    }

    fn made(&mut self, id: &str) -> Result<(), EnvelopeError> {
        self.change(|note| {
            if let Some(last) = note.grants.last_mut() {
                last.id = Some(id.into());
            }
        })
    }

    fn refused(&mut self) -> Result<(), EnvelopeError> {
        self.change(|note| drop(note.grants.pop()))
    }

    fn will_end(&mut self, provider: &Provider, key: &KeyArn, id: &str) -> Result<(), EnvelopeError> {
        if self.note.grants.iter().any(|grant| grant.id.as_deref() == Some(id)) {
            return Ok(());
        }
        let grant =
            GrantNote { provider: provider.clone(), key: key.clone(), name: None, id: Some(id.into()) };
        self.change(|note| note.grants.push(grant))
    }

    fn settled(&mut self, id: &str) -> Result<(), EnvelopeError> {
        if !self.note.grants.iter().any(|grant| grant.id.as_deref() == Some(id)) {
            return Ok(());
        }
        self.change(|note| note.grants.retain(|grant| grant.id.as_deref() != Some(id)))
    }
}

/// Notes of all volumes that live on this host, as far as this user may read them.
pub fn living(state: &Path) -> Vec<Note> {
    let entries = fs::read_dir(directory(state)).into_iter().flatten().flatten();
    let journals = entries.map(|entry| entry.path()).filter(|path| is_journal(path));
    let alive = journals.filter(|path| matches!(files::lock_if_free(path), Ok(None)));
    alive.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
}

fn text(note: &Note) -> Vec<u8> {
    // Texts, numbers and lists; paths were checked to be UTF-8 before.
    serde_json::to_vec_pretty(note).unwrap_or_default()
}

pub(super) fn directory(state: &Path) -> PathBuf {
    state.join("volumes")
}

pub(super) fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// Journals name files to remove and services to call: they are believed only where nobody else can write them.
pub(super) fn require_own(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others own it or may write to it"));
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EnvelopeError {
    let path = path.to_path_buf();
    move |source| EnvelopeError::Io { action, path, source }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}
