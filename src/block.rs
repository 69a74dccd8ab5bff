//! What an export serves: a block device, as the NBD server sees it.

mod lane;

use std::io;

pub use lane::{DEPTH, Direction, Event, Lane, Readiness, Transfer};

/// A device of bytes that several connections use at once. Every method may be called from any thread.
///
/// Callers keep ranges inside [`BlockDevice::size`] and do not change a device whose
/// [`Features::read_only`] is set: the server checks both first, and answers a client that does otherwise.
pub trait BlockDevice: Send + Sync {
    /// In bytes; does not change.
    fn size(&self) -> u64;

    /// What it can do; does not change.
    fn features(&self) -> Features;

    /// Fills `buffer` from `offset`, and appends to `extents` what its bytes are; holes are filled with zeros. Each byte
    /// that is being written meanwhile comes out as it was or as it will be.
    ///
    /// # Errors
    /// A [`BlockError`]; what `buffer` and `extents` hold is then unspecified.
    fn read(&self, offset: u64, buffer: &mut [u8], extents: &mut Extents) -> Result<(), BlockError>;

    /// As [`BlockDevice::read`], if that need not wait for anything: false, and nothing done, if it might.
    ///
    /// # Errors
    /// A [`BlockError`].
    fn read_now(&self, offset: u64, buffer: &mut [u8], extents: &mut Extents) -> Result<bool, BlockError> {
        let _ = (offset, buffer, extents);
        Ok(false)
    }

    /// As [`BlockDevice::write`] without `durable`, if that need not wait for anything: false, and `data` as it was,
    /// if it might.
    ///
    /// # Errors
    /// A [`BlockError`].
    fn write_now(&self, offset: u64, data: &mut [u8]) -> Result<bool, BlockError> {
        let _ = (offset, data);
        Ok(false)
    }

    /// Appends to `extents` what the range consists of, from its start: at least one extent, at most `most`
    /// of them, so that the last one may end before the range does. What is not known to be a hole is data.
    ///
    /// # Errors
    /// A [`BlockError`].
    fn status(&self, offset: u64, length: u64, most: usize, extents: &mut Extents) -> Result<(), BlockError>;

    /// Says that the range will be read soon: a hint, which may do nothing, or only for the range's beginning.
    ///
    /// # Errors
    /// A [`BlockError`].
    fn cache(&self, offset: u64, length: u64) -> Result<(), BlockError>;

    /// Writes `data` at `offset` and leaves unspecified bytes in `data`: it may be enciphered in place.
    /// With `durable`, returns only once the data is on stable storage (FUA).
    ///
    /// # Errors
    /// A [`BlockError`]; any part of the data may have been written.
    fn write(&self, offset: u64, data: &mut [u8], durable: bool) -> Result<(), BlockError>;

    /// Returns once every completed write, by whatever connection, is on stable storage.
    ///
    /// # Errors
    /// A [`BlockError`]; from then on every flush and every durable request fails, for the lost data stays lost.
    fn flush(&self) -> Result<(), BlockError>;

    /// Says that the range's contents are not needed any more. What it reads as afterwards is unspecified.
    ///
    /// # Errors
    /// A [`BlockError`].
    fn trim(&self, offset: u64, length: u64, durable: bool) -> Result<(), BlockError>;

    /// Makes the range read as zeros.
    ///
    /// # Errors
    /// A [`BlockError`]; [`BlockError::NotSupported`] only if `how.fast` is set and it would be no quicker than
    /// writing.
    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes, durable: bool) -> Result<(), BlockError>;

    /// Requests that are under way at once, for the thread that calls this and keeps it; `None` where it is as good to
    /// wait for each.
    fn lane(&self) -> Option<Box<dyn Lane + '_>> {
        None
    }

    /// Ends long requests before they are done, with [`BlockError::Stopped`]: the server's time is over.
    fn stop(&self);
}

/// What a device can do and prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Refuses to be changed.
    pub read_only: bool,
    /// Smallest request in bytes that it serves without reading first; a power of two.
    pub preferred_block: u32,
    /// Each read and write waits for a medium, so that none of them should wait for another one, and memory is best
    /// [in one piece](crate::pages::Pages::in_one_piece).
    pub always_waits: bool,
}

/// What some consecutive bytes of a device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; at least one.
    pub length: u64,
    /// They take no space and read as zeros. Otherwise they are allocated, and may hold anything.
    pub is_hole: bool,
}

/// Extents that follow each other; no two neighbours are alike.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Extent>);

impl Extents {
    /// Appends `length` bytes, which may be none.
    pub fn push(&mut self, length: u64, is_hole: bool) {
        match self.0.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.is_hole == is_hole => last.length += length,
            _ => self.0.push(Extent { length, is_hole }),
        }
    }

    /// Keeps the first `most` and forgets the others.
    pub fn truncate(&mut self, most: usize) {
        self.0.truncate(most);
    }

    /// Forgets all, and keeps the memory for the next ones.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// All of them, in order.
    pub fn as_slice(&self) -> &[Extent] {
        &self.0
    }
}

/// How zeros may be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroes {
    /// The space may be given back. Without it the range must be allocated afterwards.
    pub may_discard: bool,
    /// Fail rather than be as slow as writing.
    pub fast: bool,
}

/// Why a device did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// No space, or no quota, left on the backing.
    #[error("no space left on the backing")]
    NoSpace,
    /// The request cannot be served in the way it asks for.
    #[error("not supported by the backing")]
    NotSupported,
    /// The backing ends before the volume does.
    #[error("the backing's file is shorter than the volume: somebody cut it short while it was served")]
    CutShort,
    /// Anything else that the backing answered.
    #[error("backing: {0}")]
    Io(#[source] io::Error),
    /// An earlier flush failed, so data that was acknowledged may be lost.
    #[error("an earlier flush failed: data written before it may be lost")]
    LostWrites,
    /// The device takes no changes for the time being.
    #[error("frozen: the volume is read-only while its KMS key is not usable")]
    Frozen,
    /// [`BlockDevice::stop`] came before the request was done.
    #[error("the volume is about to end")]
    Stopped,
}

impl From<io::Error> for BlockError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpace
            }
            // Past the end of a file there is nothing to read, and of a device nothing to write either.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => Self::CutShort,
            _ => Self::Io(error),
        }
    }
}
