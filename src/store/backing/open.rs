//! The system calls by which backings are opened.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, MemfdFlags, Mode, OFlags, SeekFrom, flock, linkat, seek};
use rustix::io::Errno;

use crate::store::error::{StoreError, on};

pub(super) fn memory() -> Result<File, StoreError> {
    rustix::fs::memfd_create("sealblk", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|error| on(Path::new("memory"), "make a file in memory")(error.into()))
}

/// A file without a name, so that nothing is left of it after `kill -9` either.
pub(super) fn unnamed_file(directory: &Path) -> Result<File, StoreError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // A file system without O_TMPFILE: make a file and take its name away at once.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let path = directory.join(format!(".sealblk-{}", uuid::Uuid::new_v4()));
            let file = open_file(&path, OpenOptions::new().create_new(true))?;
            std::fs::remove_file(&path).map_err(on(&path, "remove the name of"))?;
            Ok(file)
        }
        Err(error) => Err(on(directory, "make a file in")(error.into())),
    }
}

fn open_file(path: &Path, options: &mut OpenOptions) -> Result<File, StoreError> {
    options.read(true).write(true).mode(0o600).open(path).map_err(on(path, "open for reading and writing"))
}

/// A file without data.
pub(super) enum Empty {
    /// It was there.
    Found(File),
    /// It was made, with its name only where the file system makes none without.
    Made { file: File, has_name: bool },
}

pub(super) fn empty_file(path: &Path) -> Result<Empty, StoreError> {
    if path.symlink_metadata().is_ok() {
        let file = locked_file(path)?;
        return match seek(&file, SeekFrom::Data(0)) {
            Err(Errno::NXIO) => Ok(Empty::Found(file)),
            Ok(_) => Err(StoreError::HoldsData(path.into())),
            Err(error) => Err(on(path, "look for data in")(error.into())),
        };
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unnamed = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let (file, has_name) = match rustix::fs::open(directory, unnamed, Mode::RUSR | Mode::WUSR) {
        Ok(file) => (file.into(), false),
        // A file system without O_TMPFILE.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            (open_file(path, OpenOptions::new().create_new(true))?, true)
        }
        Err(error) => return Err(on(path, "open for reading and writing")(error.into())),
    };
    lock(&file, path)?;
    Ok(Empty::Made { file, has_name })
}

/// Gives a file without a name one that does not exist (open(2), under `O_TMPFILE`).
pub(super) fn give_name(file: &File, path: &Path) -> io::Result<()> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        // Another start was faster.
        Err(Errno::EXIST) => Err(Errno::BUSY.into()),
        named => Ok(named?),
    }
}

pub(super) fn locked_file(path: &Path) -> Result<File, StoreError> {
    let file = open_file(path, &mut OpenOptions::new())?;
    lock(&file, path)?;
    Ok(file)
}

/// `O_EXCL` on a block device refuses one that is mounted, or opened so by somebody else (open(2)).
pub(super) fn device(path: &Path) -> Result<File, StoreError> {
    let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or_default();
    let file = open_file(path, OpenOptions::new().custom_flags(exclusive))?;
    lock(&file, path)?;
    Ok(file)
}

fn lock(file: &File, path: &Path) -> Result<(), StoreError> {
    flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|error| on(path, "lock")(error.into()))
}
