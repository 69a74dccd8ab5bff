//! Where ciphertext lies: bytes at offsets, with holes that read as zeros.
//!
//! One implementation serves files, block devices and memory alike ([`FileStore`]): a volume in memory is an
//! unnamed file in memory (`memfd_create(2)`).

mod backing;
mod error;
mod file;

use std::io;

pub use backing::{Backing, Disposal, Leftover, LeftoverDescription};
pub use error::StoreError;
pub use file::FileStore;

use crate::block::Extents;
use crate::geometry::ByteRange;
use crate::mapping::Window;
use crate::ring::Ring;

/// Ciphertext at offsets. All ranges lie inside the store; the volume sees to that.
///
/// Errors are the operating system's, whichever call it is; `ENOSPC` and `EIO` are told apart further up.
#[allow(clippy::missing_errors_doc, reason = "said once, above")]
pub trait Store: Send + Sync {
    /// Fills `buffer` from `offset`. What was never written, or discarded, reads as zeros.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// As [`Store::read`], if that need not wait for the medium: false, and `buffer` unspecified, if it might. What
    /// was swapped out of memory is waited for all the same.
    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let _ = (offset, buffer);
        Ok(false)
    }

    /// True if each read and write waits for a medium.
    fn always_waits(&self) -> bool {
        false
    }

    /// True if [`Store::write`] never waits for a medium.
    fn writes_at_once(&self) -> bool {
        false
    }

    /// Does `work` on the bytes of `range` where they lie in memory, instead of [`Store::read`] or [`Store::write`]:
    /// false if it cannot, or if it turns out that it was done on other memory.
    fn in_place(&self, range: ByteRange, work: &mut dyn FnMut(&Window)) -> bool {
        let _ = (range, work);
        false
    }

    /// Transfers under way at once, for the calling thread: each does what [`Store::read`] or [`Store::write`] would.
    /// `None` where it is as good to wait for each.
    fn ring(&self) -> Option<Ring<'_>> {
        None
    }

    /// Appends to `extents` what `range` consists of, from its start, and at least one byte of it: at most `most`
    /// holes, each with the data that follows it. Their borders may lie anywhere. What is not known to be a hole is
    /// data; what is one reads as zeros, and so does not hold what a completed write left there.
    fn extents(&self, range: ByteRange, most: usize, extents: &mut Extents) -> io::Result<()>;

    /// Begins to fetch `range`, or its first 64 MiB, so that a read need not wait for the medium. A hint: what goes
    /// wrong with it, the read will tell.
    fn prefetch(&self, range: ByteRange);

    /// Writes all of `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes `range` read as zeros, giving its space back where the store can.
    fn discard(&self, range: ByteRange) -> io::Result<()>;

    /// True if [`Store::discard`] gives space back, and is quicker than writing.
    fn discards_quickly(&self) -> bool;

    /// Returns once every completed write and discard is on stable storage.
    fn flush(&self) -> io::Result<()>;
}
