//! Opening what a volume lies on, and clearing it away afterwards.

mod open;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::FileStore;
use super::error::{StoreError, on};

/// What a user asked a volume to lie on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory (of this process, in the kernel's page cache; it may be swapped, being ciphertext).
    Memory,
    /// An existing directory: an unnamed file in it, which vanishes with the process whatever ends it.
    Directory(PathBuf),
    /// A regular file: made, or one that exists and holds no data.
    File(PathBuf),
    /// A block device.
    Device(PathBuf),
}

/// What has become of a backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disposal {
    /// It is gone.
    Removed,
    /// It was there before, so it stays; what the volume wrote was discarded.
    Discarded,
    /// It is a durable volume's, and stays as it is: its envelope opens it again.
    Preserved,
    /// It was there before and cannot discard, so it stays with ciphertext that no key can read any more.
    Kept,
}

/// What has to be cleared away once a volume is done with its backing. Holds the backing's lock. Dropped before
/// [`Leftover::dispose`], it removes what was made and leaves the rest as it is.
pub struct Leftover {
    file: File,
    path: PathBuf,
    size: u64,
    ending: Ending,
    /// Made, and still without its name.
    is_unnamed: bool,
}

/// A [`Leftover`] without its file: for a successor process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftoverDescription {
    path: PathBuf,
    size: u64,
    ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Ending {
    Vanishes,
    Unlink,
    Discard,
    Stay,
}

impl Backing {
    /// Reads what the user wrote: `memory`, a directory, a block device, or the path of a file that exists or not.
    ///
    /// # Errors
    /// [`StoreError::WrongKind`] for other kinds of file, [`StoreError::Io`] if the path cannot be looked up.
    pub fn from_argument(text: &str) -> Result<Self, StoreError> {
        if text == "memory" {
            return Ok(Self::Memory);
        }
        let path = PathBuf::from(text);
        let kind = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::File(path)),
            Err(source) => return Err(StoreError::Io { action: "look up", path, source }),
        };
        match () {
            () if kind.is_dir() => Ok(Self::Directory(path)),
            () if kind.is_file() => Ok(Self::File(path)),
            () if kind.is_block_device() => Ok(Self::Device(path)),
            () => Err(StoreError::WrongKind(path)),
        }
    }

    /// How it is named to users.
    pub fn describe(&self) -> String {
        match self {
            Self::Memory => "memory".into(),
            Self::Directory(path) => format!("unnamed file in {}", path.display()),
            Self::File(path) | Self::Device(path) => path.display().to_string(),
        }
    }

    /// Opens an empty backing for a new volume of `size` bytes and locks out other users. A file that is made gets
    /// its name by [`Leftover::give_name`].
    ///
    /// A block device is discarded as far as the volume reaches: naming it is consent. A file that holds data is
    /// refused.
    ///
    /// # Errors
    /// A [`StoreError`]; what was made until then is removed again.
    pub fn open_new(&self, size: u64) -> Result<(FileStore, Leftover), StoreError> {
        let mut is_unnamed = false;
        let (file, path, ending) = match self {
            Self::Memory => (open::memory()?, Path::new("memory"), Ending::Vanishes),
            Self::Directory(path) => (open::unnamed_file(path)?, path.as_path(), Ending::Vanishes),
            Self::File(path) => match open::empty_file(path)? {
                open::Empty::Found(file) => (file, path.as_path(), Ending::Discard),
                open::Empty::Made { file, has_name } => {
                    is_unnamed = !has_name;
                    (file, path.as_path(), Ending::Unlink)
                }
            },
            Self::Device(path) => (open::device(path)?, path.as_path(), Ending::Discard),
        };
        let leftover = Leftover { file, path: path.into(), size, ending, is_unnamed };
        if matches!(self, Self::Directory(_) | Self::File(_)) {
            leftover.warn_of_little_space();
        }
        leftover.make_room()?;
        let file = leftover.file.try_clone().map_err(on(path, "share"))?;
        Ok((FileStore::new(file), leftover))
    }
}

impl Backing {
    /// Opens the backing of a durable volume of `size` bytes again, locks out other users, and leaves all that is
    /// on it as it is.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub fn open_existing(&self, size: u64) -> Result<(FileStore, Leftover), StoreError> {
        let (file, path) = match self {
            Self::File(path) => (open::locked_file(path)?, path),
            Self::Device(path) => (open::device(path)?, path),
            Self::Memory => return Err(StoreError::WrongKind("memory".into())),
            Self::Directory(path) => return Err(StoreError::WrongKind(path.clone())),
        };
        let has = seek(&file, SeekFrom::End(0)).map_err(io::Error::from).map_err(on(path, "measure"))?;
        if has < size {
            return Err(StoreError::TooSmall { path: path.clone(), has, needs: size });
        }
        let store = FileStore::new(file.try_clone().map_err(on(path, "share"))?);
        Ok((store, Leftover { file, path: path.clone(), size, ending: Ending::Stay, is_unnamed: false }))
    }
}

impl Leftover {
    /// The file that was made for the volume and has a name, if there is one.
    pub fn made_file(&self) -> Option<&Path> {
        matches!(self.ending, Ending::Unlink).then_some(&self.path)
    }

    /// Gives a file that was made its name, if it has none yet. Whoever writes down first what it is to be called and
    /// which file it is leaves none behind that nobody knows of.
    ///
    /// # Errors
    /// A [`StoreError`], also if the name has been taken meanwhile.
    pub fn give_name(&mut self) -> Result<(), StoreError> {
        if std::mem::take(&mut self.is_unnamed) {
            open::give_name(&self.file, &self.path).map_err(on(&self.path, "name"))?;
        }
        Ok(())
    }

    /// What it is called.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The backing's file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What a successor has to know beside the file.
    pub fn description(&self) -> LeftoverDescription {
        LeftoverDescription { path: self.path.clone(), size: self.size, ending: self.ending }
    }

    /// The file, which is a successor's to clear away from now on.
    ///
    /// # Errors
    /// The operating system's.
    pub fn leave(mut self) -> io::Result<File> {
        self.ending = Ending::Vanishes;
        self.file.try_clone()
    }

    /// From a predecessor's parts.
    pub fn from_parts(file: File, description: LeftoverDescription) -> Self {
        let LeftoverDescription { path, size, ending } = description;
        Self { file, path, size, ending, is_unnamed: false }
    }

    /// The same backing, which is to stay as it is.
    #[must_use]
    pub fn preserved(mut self) -> Self {
        self.ending = Ending::Stay;
        self
    }

    /// Clears the backing away. Its store must not be in use any more.
    ///
    /// # Errors
    /// What the operating system answers; the data is unreadable without its key all the same.
    pub fn dispose(mut self) -> Result<Disposal, StoreError> {
        match std::mem::replace(&mut self.ending, Ending::Vanishes) {
            Ending::Vanishes => Ok(Disposal::Removed),
            Ending::Stay => Ok(Disposal::Preserved),
            Ending::Unlink => self.unlink().map_err(on(&self.path, "remove")).map(|()| Disposal::Removed),
            Ending::Discard => match self.punch(self.size) {
                Ok(()) => Ok(Disposal::Discarded),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Disposal::Kept),
                Err(error) => Err(on(&self.path, "discard")(error)),
            },
        }
    }

    /// Removes the file that was made, and no other one that has taken its name since.
    fn unlink(&self) -> io::Result<()> {
        let (made, named) = (self.file.metadata()?, std::fs::symlink_metadata(&self.path));
        match named {
            Ok(named) if (named.dev(), named.ino()) == (made.dev(), made.ino()) => {
                std::fs::remove_file(&self.path)
            }
            Ok(_) => {
                tracing::warn!(path = %self.path.display(), "another file has the backing's name now, and stays");
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn make_room(&self) -> Result<(), StoreError> {
        match self.ending {
            Ending::Stay => {}
            Ending::Vanishes | Ending::Unlink => {
                self.file.set_len(self.size).map_err(on(&self.path, "enlarge"))?;
            }
            Ending::Discard => {
                let has = seek(&self.file, SeekFrom::End(0))
                    .map_err(io::Error::from)
                    .map_err(on(&self.path, "measure"))?;
                if has < self.size {
                    return Err(StoreError::TooSmall { path: self.path.clone(), has, needs: self.size });
                }
                match self.punch(self.size) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        tracing::warn!(path = %self.path.display(), "the backing has no discard: what was never written reads as noise");
                    }
                    Err(error) => return Err(on(&self.path, "discard")(error)),
                }
            }
        }
        self.try_space()
    }

    /// Takes a little space and gives it back, so that a full disk is found now and not by the first write.
    fn try_space(&self) -> Result<(), StoreError> {
        let length = self.size.min(1 << 20);
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, length) {
            Err(Errno::NOSPC | Errno::DQUOT) => Err(StoreError::Full(self.path.clone())),
            Ok(()) => self.punch(length).map_err(on(&self.path, "discard")),
            // Without fallocate there is nothing to learn, and nothing was taken.
            Err(_) => Ok(()),
        }
    }

    /// A sparse file may be larger than what is free: fine for a volume that is never filled, so no error.
    fn warn_of_little_space(&self) {
        let Ok(space) = rustix::fs::fstatvfs(&self.file) else { return };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < self.size {
            let (path, size) = (self.path.display(), self.size);
            tracing::warn!(%path, free, size, "the volume is larger than the free space: writes fail once it is used up");
        }
    }

    fn punch(&self, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, 0, length)?)
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if self.ending == Ending::Unlink
            && let Err(error) = self.unlink()
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the backing that was made");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const SIZE: u64 = 1 << 20;

    #[test]
    fn what_was_made_is_removed_and_what_was_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("volume");
        let (store, mut leftover) = Backing::File(path.clone()).open_new(SIZE).unwrap();
        store.write(0, b"ciphertext").unwrap();
        drop(store);
        assert!(!path.exists(), "it has no name before somebody knows of it");
        leftover.give_name().unwrap();
        assert!(path.exists());
        assert_eq!(leftover.dispose().unwrap(), Disposal::Removed);
        assert!(!path.exists());

        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let (store, leftover) = Backing::File(path.clone()).open_new(SIZE).unwrap();
        store.write(0, b"ciphertext").unwrap();
        drop(store);
        assert_eq!(leftover.dispose().unwrap(), Disposal::Discarded);
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; 1 << 20]);
    }

    #[test]
    fn an_unnamed_file_never_has_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _leftover) = Backing::Directory(directory.path().into()).open_new(SIZE).unwrap();
        store.write(SIZE - 3, b"end").unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn data_is_not_overwritten_and_a_small_file_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, b"data").unwrap();
        assert!(matches!(Backing::File(path.clone()).open_new(SIZE), Err(StoreError::HoldsData(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");

        let path = directory.path().join("small");
        File::create(&path).unwrap().set_len(4096).unwrap();
        let refused = Backing::File(path.clone()).open_new(SIZE);
        assert!(matches!(refused, Err(StoreError::TooSmall { has: 4096, needs: SIZE, .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    }

    #[test]
    fn a_second_user_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let backing = Backing::File(directory.path().join("volume"));
        let (_store, mut leftover) = backing.open_new(SIZE).unwrap();
        let (_late, mut late) = backing.open_new(SIZE).unwrap();
        leftover.give_name().unwrap();
        assert!(matches!(late.give_name(), Err(StoreError::InUse(_))));
        drop(late);
        assert!(matches!(backing.open_new(SIZE), Err(StoreError::InUse(_))));
        leftover.dispose().unwrap();
    }

    #[test]
    fn other_kinds_of_file_are_refused() {
        assert!(matches!(Backing::from_argument("/dev/null"), Err(StoreError::WrongKind(_))));
        assert!(matches!(Backing::from_argument("memory"), Ok(Backing::Memory)));
        assert!(matches!(Backing::from_argument("/"), Ok(Backing::Directory(_))));
    }
}
