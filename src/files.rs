//! Small files that are whole after a crash, each locked by the process that works with it.
//!
//! A file is never changed in place: its successor is written beside it, synced, locked and then given its name.
//! So whoever opens the name finds the old text or the new one, and a lock (`flock(2)`) goes over from one to the
//! other without a gap.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

/// Puts `bytes` in the place of `path`, on disk when this returns: with the old one's owner and mode where there is
/// one and that is allowed, else with mode 0600. The returned file holds the lock of the new one; whoever replaces a
/// file that others use holds the lock of the old one already.
///
/// # Errors
/// The operating system's; the old file is untouched then, but for an error after the renaming.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    put(path, bytes, |from, to| {
        if let Ok(old) = fs::metadata(to) {
            inherit(from, &old)?;
        }
        fs::rename(from, to)
    })
}

/// Root that replaces somebody's file leaves it theirs.
fn inherit(successor: &Path, old: &fs::Metadata) -> io::Result<()> {
    let new = fs::symlink_metadata(successor)?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        match std::os::unix::fs::lchown(successor, Some(old.uid()), Some(old.gid())) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    }
    fs::set_permissions(successor, fs::Permissions::from_mode(old.mode() & 0o777))
}

/// As [`replace`], for a name that must not exist.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] for one that does; otherwise as [`replace`].
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<File> {
    put(path, bytes, |from, to| match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can do it in one step.
        Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
        renamed => Ok(renamed?),
    })
}

fn put(path: &Path, bytes: &[u8], name: impl FnOnce(&Path, &Path) -> io::Result<()>) -> io::Result<File> {
    let successor = unfinished(path);
    let file = make(&successor)?;
    let written = write(&file, bytes).and_then(|()| name(&successor, path));
    written.inspect_err(|_| {
        // It may have its name already; then the next one finds it.
        let _ = fs::remove_file(&successor);
    })?;
    File::open(directory_of(path))?.sync_all()?;
    Ok(file)
}

/// A new file, locked. One of a dead process is taken away before; one that is locked is somebody's who is writing.
fn make(path: &Path) -> io::Result<File> {
    match lock_if_free(path) {
        Ok(Some(_lock)) => fs::remove_file(path)?,
        Ok(None) => return Err(io::ErrorKind::WouldBlock.into()),
        Err(_) => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens a file for reading without waiting for anybody: a pipe that nobody writes to is opened at once.
///
/// # Errors
/// The operating system's.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Removes `path`, on disk when this returns; a file that is gone already is no error.
///
/// # Errors
/// The operating system's.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(directory_of(path))?.sync_all(),
    }
}

/// Where the successor of `path` is written: what a crash on the way leaves behind.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(".new");
    name.into()
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens `path` and locks it; `None` if another process has the lock.
///
/// # Errors
/// The operating system's.
pub fn lock_if_free(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // It may have been replaced between the two calls: then the lock is one of a file without a name.
        let (opened, named) = (file.metadata()?, fs::metadata(path)?);
        if (opened.dev(), opened.ino()) == (named.dev(), named.ino()) {
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_private_and_locked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let first = create(&path, b"first").unwrap();
        assert_eq!(create(&path, b"again").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert!(lock_if_free(&path).unwrap().is_none());
        let second = replace(&path, b"second").unwrap();
        drop(first);
        assert!(lock_if_free(&path).unwrap().is_none(), "the lock has gone over");
        drop(second);
        assert!(lock_if_free(&path).unwrap().is_some());
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!unfinished(&path).exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("no/file");
        assert_eq!(replace(&path, b"").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(remove(&directory.path().join("file")).is_ok());
    }
}
