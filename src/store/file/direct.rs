//! Past the page cache (O_DIRECT of open(2)): what has to be aligned, and how what is not gets there all the same.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, statx};

use crate::store::error::StoreError;

/// Enough for every device and file system, where the kernel does not tell (before Linux 6.1).
const USUAL: u32 = 4096;
/// Bytes that are moved at a time where memory is not aligned.
const STEP: usize = 128 << 10;

/// What a file wants that is read and written past the page cache.
pub(super) struct Direct {
    /// Addresses are multiples of this; a power of two.
    memory: usize,
}

/// Offsets and lengths, too, are multiples of something.
struct Alignment {
    memory: u32,
    offset: u32,
}

impl Direct {
    /// `None` for a file that is read and written through the page cache.
    pub(super) fn of(file: &File) -> Option<Self> {
        let is_direct = fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::DIRECT));
        // What does not fit a usize is no alignment of memory.
        let memory = |alignment: Alignment| usize::try_from(alignment.memory).unwrap_or(STEP);
        is_direct.then(|| Self { memory: memory(alignment(file)) })
    }

    /// Has `file`, and all its duplicates, read and written past the page cache, in multiples of `sector` bytes.
    pub(super) fn begin(file: &File, path: &Path, sector: usize) -> Result<Self, StoreError> {
        let refused = |source: io::Error| StoreError::NoDirect { path: path.into(), source };
        let flags = fcntl_getfl(file).map_err(|error| refused(error.into()))?;
        fcntl_setfl(file, flags | OFlags::DIRECT).map_err(|error| refused(error.into()))?;
        let needs = alignment(file).offset as usize;
        if needs == 0 || !sector.is_multiple_of(needs) {
            return Err(StoreError::Alignment { path: path.into(), needs, sector });
        }
        Self::of(file).ok_or_else(|| refused(io::ErrorKind::Unsupported.into()))
    }

    /// Whether bytes can be moved from or to where they are.
    pub(super) fn takes(&self, bytes: &[u8]) -> bool {
        bytes.as_ptr().addr().is_multiple_of(self.memory)
    }

    /// Moves `length` bytes through memory that is aligned: `step` is called with its place among them and with
    /// that memory, once for each [`STEP`] of them.
    pub(super) fn bounce(
        &self,
        length: usize,
        mut step: impl FnMut(usize, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = vec![0; STEP.min(length) + self.memory];
        let start = bytes.as_ptr().align_offset(self.memory);
        (0..length).step_by(STEP).try_for_each(|at| {
            let now = STEP.min(length - at);
            step(at, &mut bytes[start..start + now])
        })
    }
}

/// statx(2), `STATX_DIOALIGN`.
fn alignment(file: &File) -> Alignment {
    match statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(told) if told.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            Alignment { memory: told.stx_dio_mem_align.max(1), offset: told.stx_dio_offset_align }
        }
        _ => Alignment { memory: USUAL, offset: USUAL },
    }
}
