//! The state directory: its lock, and files that are replaced whole.
//!
//! Several processes use one directory at once, so all of it is read and written under an exclusive `flock(2)`
//! that lasts for one call. A file is written beside its place, synced and renamed over it, so a crash leaves
//! the old or the new one; being under the lock, the name beside it can be fixed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::failure::Failure;
use crate::secret::LockedBytes;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const LOCK: &str = "lock";

/// File that makes a directory a KMS: which account and region it plays. Written last.
pub(crate) const IDENTITY: &str = "kms.json";
/// File of the principals.
pub(crate) const PRINCIPALS: &str = "principals.json";
/// File of the principals' own policies, where they are not the default ones.
pub(crate) const USER_POLICIES: &str = "policies.json";
/// File of the secret that authenticates grant tokens.
pub(crate) const TOKEN_SECRET: &str = "token.key";
/// Directory of the keys' documents.
pub(crate) const KEYS: &str = "keys";
/// Directory of the keys' materials.
pub(crate) const MATERIALS: &str = "materials";
/// Why a directory is left alone.
pub(crate) const NOT_A_KMS: &str = "it has other files in it and no kms.json; name an empty or new directory";

/// A state directory.
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Makes the directory if need be, and keeps other users out of one that is empty.
    ///
    /// # Errors
    /// [`Failure::Storage`] if it cannot be made, or has files that other users may have seen.
    pub(crate) fn open(root: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::storage("cannot use the KMS directory", root, error);
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(root).map_err(failed)?;
        let mode = fs::metadata(root).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            if !is_new(root)? {
                if !root.join(IDENTITY).exists() {
                    return Err(Failure::storage("cannot make a KMS in", root, NOT_A_KMS));
                }
                let why =
                    format!("its mode is {:04o}, which lets other users in; chmod it to 0700", mode & 0o7777);
                return Err(Failure::storage("cannot keep keys in", root, why));
            }
            fs::set_permissions(root, Permissions::from_mode(DIRECTORY_MODE)).map_err(failed)?;
        }
        Ok(Self { root: root.into() })
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// [`Failure::Storage`] if the lock file cannot be opened or locked.
    pub(crate) fn lock(&self) -> Result<Files<'_>, Failure> {
        let path = self.root.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|error| Failure::storage("cannot open", &path, error))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))
            .map_err(|error| Failure::storage("cannot lock", &path, error))?;
        Ok(Files { root: &self.root, _lock: lock })
    }

    /// Path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// The directory's files, while its lock is held. Names are relative, and never come from a request unchecked.
pub(crate) struct Files<'a> {
    root: &'a Path,
    _lock: File,
}

impl Files<'_> {
    /// True if nothing but the lock is there.
    pub(crate) fn is_new(&self) -> Result<bool, Failure> {
        is_new(self.root)
    }

    /// True if the file is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.root.join(name).exists()
    }

    /// Makes a directory for files of one kind.
    pub(crate) fn make_directory(&self, name: &str) -> Result<(), Failure> {
        let path = self.root.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&path)
            .map_err(|error| Failure::storage("cannot make", &path, error))
    }

    /// Names (without the extension) of the documents in a directory, sorted.
    pub(crate) fn list(&self, directory: &str) -> Result<Vec<String>, Failure> {
        let path = self.root.join(directory);
        let failed = |error: io::Error| Failure::storage("cannot list", &path, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(String::from));
        }
        names.sort();
        Ok(names)
    }

    /// Reads a document; `None` if there is no such file.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let path = self.root.join(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::storage("cannot read", &path, error)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            Failure::storage("cannot use", &path, format!("it is damaged or not the embedded KMS's: {error}"))
        })
    }

    /// Reads a document that must be there.
    pub(crate) fn require<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        self.read(name)?.ok_or_else(|| {
            Failure::storage("cannot read", &self.root.join(name), io::Error::from(io::ErrorKind::NotFound))
        })
    }

    /// Writes a document.
    pub(crate) fn write<T: Serialize>(&self, name: &str, document: &T) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(document).map_err(Failure::internal)?;
        self.replace(name, &text)
    }

    /// Reads a secret of exactly `length` bytes into locked memory.
    pub(crate) fn read_secret(&self, name: &str, length: usize) -> Result<LockedBytes, Failure> {
        let path = self.root.join(name);
        let failed = |error: io::Error| Failure::storage("cannot read", &path, error);
        let mut file = File::open(&path).map_err(failed)?;
        let stored = file.metadata().map_err(failed)?.len();
        if stored != length as u64 {
            let why = format!("it has {stored} bytes instead of {length}");
            return Err(Failure::storage("cannot use", &path, why));
        }
        let mut secret = LockedBytes::zeroed(length).map_err(Failure::memory)?;
        file.read_exact(secret.as_mut_slice()).map_err(failed)?;
        Ok(secret)
    }

    /// Writes a secret.
    pub(crate) fn write_secret(&self, name: &str, secret: &LockedBytes) -> Result<(), Failure> {
        self.replace(name, secret.as_slice())
    }

    /// Removes a file; one that is gone already is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        let path = self.root.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::storage("cannot remove", &path, error))
            }
            _ => sync_parent(&path).map_err(|error| Failure::storage("cannot remove", &path, error)),
        }
    }

    /// Appends a line, by one write.
    pub(crate) fn append(&self, name: &str, line: &str) -> Result<(), Failure> {
        let path = self.root.join(name);
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(FILE_MODE)
            .open(&path)
            .and_then(|mut file| {
                let before = file.metadata()?.len();
                let written = file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_data());
                // A disk that is full takes part of a line: the log holds whole ones only.
                written.or_else(|error| file.set_len(before).and(Err(error)))
            })
            .map_err(|error| Failure::storage("cannot write to", &path, error))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.root.join(name);
        let beside = self.root.join(format!("{name}.tmp"));
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().create(true).write(true).truncate(true).mode(FILE_MODE).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            sync_parent(&path)
        };
        write().map_err(|error| Failure::storage("cannot write", &path, error))
    }
}

/// True if nothing is there but what a first start that died on the way may leave: no key among it.
fn is_new(root: &Path) -> Result<bool, Failure> {
    let mut entries =
        fs::read_dir(root).map_err(|error| Failure::storage("cannot read the KMS directory", root, error))?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| is_of_a_first_start(&entry.path()))))
}

fn is_of_a_first_start(path: &Path) -> bool {
    let is_empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    match path.file_name().and_then(|name| name.to_str()) {
        Some(KEYS | MATERIALS) => is_empty(),
        Some(name) => {
            let name = name.strip_suffix(".tmp").unwrap_or(name);
            name == LOCK
                || [TOKEN_SECRET, PRINCIPALS].contains(&name)
                || name == IDENTITY && path.extension().is_some_and(|extension| extension == "tmp")
        }
        None => false,
    }
}

/// Makes a rename or removal last.
fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
    }

    #[test]
    fn what_a_first_start_left_is_no_obstacle_and_a_key_is_one() {
        let lab = tempfile::tempdir().expect("a directory");
        let root = lab.path();
        for directory in [KEYS, MATERIALS] {
            fs::create_dir(root.join(directory)).expect("made");
        }
        for file in [LOCK, TOKEN_SECRET, "principals.json.tmp", "kms.json.tmp"] {
            fs::write(root.join(file), "").expect("written");
        }
        assert!(is_new(root).expect("readable"));
        fs::write(root.join(MATERIALS).join("a.key"), "").expect("written");
        assert!(!is_new(root).expect("readable"), "a key without its KMS is damage");
    }

    #[test]
    fn files_are_private_and_replaced_whole() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(&parent.path().join("a/b")).expect("made");
        let files = directory.lock().expect("locked");
        assert!(files.is_new().expect("listed"));
        files.write("x.json", &[1, 2]).expect("written");
        files.write("x.json", &[3]).expect("replaced");
        assert_eq!(files.require::<Vec<u8>>("x.json").expect("read"), [3]);
        assert_eq!(mode(&directory.path("x.json")), 0o600);
        assert_eq!(mode(&parent.path().join("a/b")), 0o700);
        assert!(!directory.path("x.json.tmp").exists());
        files.append("events", "one").expect("appended");
        assert_eq!(mode(&directory.path("events")), 0o600);
        files.remove("x.json").expect("removed");
        files.remove("x.json").expect("gone already");
        assert!(!files.has("x.json"));
    }

    #[test]
    fn others_are_kept_out_of_a_new_directory_and_a_used_one_is_refused() {
        let parent = tempfile::tempdir().expect("a directory");
        let open_to_others = || {
            fs::set_permissions(parent.path(), Permissions::from_mode(0o750)).expect("chmod");
        };
        open_to_others();
        Directory::open(parent.path()).expect("opened").lock().expect("locked");
        assert_eq!(mode(parent.path()), 0o700);
        fs::write(parent.path().join(IDENTITY), "").expect("written");
        open_to_others();
        let error = Directory::open(parent.path()).err().expect("refused");
        assert!(matches!(&error, Failure::Storage(message) if message.contains("0750")), "{error:?}");
    }

    #[test]
    fn damage_names_the_file() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(parent.path()).expect("opened");
        let files = directory.lock().expect("locked");
        fs::write(directory.path("x.json"), "{").expect("written");
        let error = files.read::<Vec<u8>>("x.json").expect_err("damaged");
        assert!(matches!(&error, Failure::Storage(message) if message.contains("x.json")), "{error:?}");
        let error = files.read_secret("x.json", 32).err().expect("too short");
        assert!(matches!(&error, Failure::Storage(message) if message.contains("1 bytes")), "{error:?}");
    }
}
