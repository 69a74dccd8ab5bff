//! Why a backing cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why a backing cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An operating system call failed.
    #[error("backing {path:?}: {action}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// Somebody else has it.
    #[error("backing {0:?} is in use by another process (or mounted); choose another, or stop its user")]
    InUse(PathBuf),
    /// It cannot hold the volume.
    #[error(
        "backing {path:?} has {has} bytes, the volume needs {needs}; make it larger, or the volume smaller"
    )]
    TooSmall {
        /// The backing.
        path: PathBuf,
        /// Its bytes.
        has: u64,
        /// The volume's bytes.
        needs: u64,
    },
    /// It holds somebody's data.
    #[error(
        "backing {0:?} exists and holds data, which a new volume would destroy; remove it, or choose another path"
    )]
    HoldsData(PathBuf),
    /// Neither directory, regular file nor block device.
    #[error("backing {0:?} is neither a directory, a regular file nor a block device")]
    WrongKind(PathBuf),
    /// It cannot be written.
    #[error("backing {0:?} is read-only; make it writable, or choose another")]
    ReadOnly(PathBuf),
    /// It cannot be used past the page cache.
    #[error("backing {path:?}: I/O past the page cache: {source}; leave --direct out, or choose another place", path = path.display())]
    NoDirect {
        /// The backing.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// Sectors are too small to be moved past the page cache.
    #[error(
        "backing {path:?}: I/O past the page cache is in multiples of {needs} bytes, more than a sector of {sector}; \
         use --sector-size 4096, or leave --direct out", path = path.display()
    )]
    Alignment {
        /// The backing.
        path: PathBuf,
        /// Bytes that offsets and lengths have to be multiples of.
        needs: usize,
        /// Bytes of a sector.
        sector: usize,
    },
    /// Not a byte is left where the volume's data would go.
    #[error("backing {0:?}: no space left on its file system; free some, or choose another place")]
    Full(PathBuf),
}

/// What the operating system answered to `action` on `path`.
pub(super) fn on(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => StoreError::Full(path),
        Some(Errno::BUSY | Errno::WOULDBLOCK) => StoreError::InUse(path),
        Some(Errno::ROFS) => StoreError::ReadOnly(path),
        // A read-only block device opens for writing, and then refuses (block/fops.c, blkdev_fallocate).
        Some(Errno::PERM) if action == "discard" => StoreError::ReadOnly(path),
        _ => StoreError::Io { action, path, source },
    }
}
