//! Appending to the log, and rotating it.
//!
//! Whoever writes holds an exclusive `flock(2)` on the file that has the name. Rotation takes the name away from
//! that file, so a writer that gets the lock looks whether the name is still the file's, and opens anew if not.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::{FILE, ROTATED};

/// The file that is written to.
pub(super) struct LogFile {
    path: PathBuf,
    limit: u64,
    file: Mutex<File>,
}

impl LogFile {
    /// Opens the log in `directory`, rotating it beyond `limit` bytes.
    pub(super) fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = directory.join(FILE);
        let file = Mutex::new(open_own(&path, true)?);
        Ok(Self { path, limit, file })
    }

    /// Appends a line, which has no end of line yet: on disk when this returns.
    pub(super) fn append(&self, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let locked = Locked::take(&file)?;
            if !is_named(&file, &self.path)? {
                drop(locked);
                *file = open_own(&self.path, true)?;
                continue;
            }
            let length = file.metadata()?.len();
            if length > 0 && length + line.len() as u64 > self.limit {
                rotate(&self.path)?;
                continue;
            }
            return write(&file, length, line);
        }
    }
}

/// Writes a line at the end, or nothing.
fn write(mut file: &File, length: u64, mut line: Vec<u8>) -> io::Result<()> {
    // A crash may have cut the line before this one short.
    if length > 0 && last_byte(file)? != b'\n' {
        line.insert(0, b'\n');
    }
    let written = file.write_all(&line).and_then(|()| file.sync_data());
    // A disk that is full takes part of a line: the log holds whole ones only.
    written.or_else(|error| file.set_len(length).and(Err(error)))
}

fn last_byte(mut file: &File) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Moves every file one further, the oldest out of existence. The caller holds the lock of the one at `path`.
fn rotate(path: &Path) -> io::Result<()> {
    for number in (1..ROTATED).rev() {
        match fs::rename(rotated(path, number), rotated(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, rotated(path, 1))?;
    sync_parent(path)
}

/// The name of a rotated file.
pub(super) fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Opens a file that is the caller's own and nobody else's; `writing` makes it if it is missing.
pub(super) fn open_own(path: &Path, writing: bool) -> io::Result<File> {
    // O_NONBLOCK: a FIFO in its place must not hang the process. It means nothing to a file.
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let existed = fs::symlink_metadata(path).is_ok();
    let file = OpenOptions::new()
        .read(true)
        .append(writing)
        .create(writing)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::LOOP) => refused("it is a symbolic link"),
            _ => error,
        })?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(refused("it is no regular file"));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused("another user owns it"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refused("other users may read or write it; chmod it to 0600"));
    }
    if writing && !existed {
        sync_parent(path)?;
    }
    Ok(file)
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// True if `path` is still the name of `file`.
pub(super) fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a new name, or a change of names, last.
fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Holds a file's lock. The lock is the open file's, so a clone of it is what unlocks.
pub(super) struct Locked(File);

impl Locked {
    /// Waits until nobody else writes.
    pub(super) fn take(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        Ok(Self(file))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Fails for no file that could be locked, and the last clone's end unlocks it too.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
