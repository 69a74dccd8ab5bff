//! The encrypted volume: a [`BlockDevice`] over a [`Store`] of ciphertext.
//!
//! Byte 0 of the store is sector 0; there is no header. A ciphertext sector of all zero bytes is a hole and reads
//! as zeros: real ciphertext is never all zero (for 512 bytes the chance is 2^-4096). So a sparse file needs no
//! formatting, discarding is punching holes, and no table can be inconsistent after a crash.
//!
//! Requests at any byte offset are served, in any number at once: `ranges` keeps apart those that overlap.

mod discard;
mod holes;
mod lane;
mod ranges;
mod scratch;
mod sectors;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use self::holes::whole_sectors;
use self::lane::VolumeLane;
use self::ranges::{REGION, Ranges, Use};
use crate::block::{BlockDevice, BlockError, Extents, Features, Lane, Zeroes};
use crate::geometry::{ByteRange, SectorSize, Split, VolumeSize};
use crate::store::Store;
use crate::xts::SectorCipher;

/// Bytes at a time where zeros have to be written: half of a common L2 cache.
const PIECE: usize = 256 * 1024;
/// Holes that are looked for in one request, by two system calls each: a few milliseconds, however large it is.
const MOST_HOLES: usize = 4096;

/// What a volume has been through; a successor goes on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Bytes that clients have written.
    pub written: u64,
    /// A flush has failed, and so does every later one.
    pub flush_failed: bool,
    /// Changes are refused.
    pub frozen: bool,
}

/// How a volume treats discards and writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Refuses to be changed.
    pub read_only: bool,
    /// Punches holes on trim and write-zeroes. Without it an observer of the backing does not learn which sectors
    /// are unused, trim does nothing and zeros are written enciphered.
    pub discard: bool,
    /// A flush, or a write with FUA, is answered once the store has it for good. Without it both are answered at
    /// once, and what the machine has not written yet is lost if it crashes.
    #[serde(default = "honoured")]
    pub flush: bool,
}

/// Predecessors that did not know of [`Options::flush`] honoured flushes.
fn honoured() -> bool {
    true
}

/// An encrypted volume.
pub struct EncryptedVolume {
    /// Before the store, since fields end in this order: to unmap a large file takes seconds, and the keys are wiped first.
    cipher: Box<dyn SectorCipher>,
    store: Box<dyn Store>,
    size: VolumeSize,
    sector: SectorSize,
    options: Options,
    ranges: Ranges,
    written: AtomicU64,
    flush_failed: AtomicBool,
    stopped: AtomicBool,
    frozen: AtomicBool,
}

impl EncryptedVolume {
    /// A volume of `size` bytes over `store`, which is at least as long.
    pub fn new(
        store: Box<dyn Store>,
        cipher: Box<dyn SectorCipher>,
        size: VolumeSize,
        options: Options,
    ) -> Self {
        let sector = cipher.sector_size();
        Self {
            store,
            cipher,
            size,
            sector,
            options,
            ranges: Ranges::new(),
            written: AtomicU64::new(0),
            flush_failed: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
        }
    }

    /// The same volume with a predecessor's past.
    #[must_use]
    pub fn with_past(self, past: Past) -> Self {
        Self {
            written: AtomicU64::new(past.written),
            flush_failed: AtomicBool::new(past.flush_failed),
            frozen: AtomicBool::new(past.frozen),
            ..self
        }
    }

    /// What it has been through so far.
    pub fn past(&self) -> Past {
        Past {
            written: self.bytes_written(),
            flush_failed: self.flush_failed.load(Ordering::Acquire),
            frozen: self.is_frozen(),
        }
    }

    /// Bytes that clients have written so far, zeros and discards not counted.
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Refuses to be changed from now on, or takes changes again. Requests under way are finished.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// True while [`EncryptedVolume::freeze`] is in force.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    fn require_thawed(&self) -> Result<(), BlockError> {
        if self.is_frozen() { Err(BlockError::Frozen) } else { Ok(()) }
    }

    fn range(&self, offset: u64, length: u64) -> ByteRange {
        let range = ByteRange::within(offset, length, self.size.bytes());
        debug_assert!(range.is_some(), "the server checks ranges");
        range.unwrap_or(ByteRange::EMPTY)
    }

    /// A range of whole sectors in one region; `None` if it is another one.
    fn whole(&self, offset: u64, length: usize) -> Option<ByteRange> {
        let range = self.range(offset, length as u64);
        let fits = range.split(self.sector).body == range && range.pieces(REGION).nth(1).is_none();
        fits.then_some(range)
    }

    /// Asked between the pieces of a request that may be as long as the volume.
    fn go_on(&self) -> Result<(), BlockError> {
        if self.stopped.load(Ordering::Relaxed) { Err(BlockError::Stopped) } else { Ok(()) }
    }
}

impl BlockDevice for EncryptedVolume {
    fn size(&self) -> u64 {
        self.size.bytes()
    }

    fn features(&self) -> Features {
        let preferred_block = if self.sector == SectorSize::B512 { 512 } else { 4096 };
        Features {
            read_only: self.options.read_only,
            preferred_block,
            always_waits: self.store.always_waits(),
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8], extents: &mut Extents) -> Result<(), BlockError> {
        let Split { head, body, tail } = self.range(offset, buffer.len() as u64).split(self.sector);
        let (first, rest) = buffer.split_at_mut(bytes(head));
        let (middle, last) = rest.split_at_mut(bytes(body));
        self.read_part(head, first, extents)?;
        self.read_sectors(body, middle, extents)?;
        self.read_part(tail, last, extents)
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8], extents: &mut Extents) -> Result<bool, BlockError> {
        let Some(range) = self.whole(offset, buffer.len()) else { return Ok(false) };
        let Some(reading) = self.ranges.hold_now(range, Use::Read) else { return Ok(false) };
        if self.load_in_place(range, buffer, extents) {
            return Ok(true);
        }
        if !self.store.read_now(offset, buffer)? {
            return Ok(false);
        }
        drop(reading);
        self.decipher(offset, buffer, extents);
        Ok(true)
    }

    fn write_now(&self, offset: u64, data: &mut [u8]) -> Result<bool, BlockError> {
        let is_quick = self.store.writes_at_once() && !self.is_frozen();
        let Some(range) = self.whole(offset, data.len()).filter(|_| is_quick) else { return Ok(false) };
        let Some(_writing) = self.ranges.hold_now(range, Use::Write) else { return Ok(false) };
        self.keep(range, data)?;
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(true)
    }

    // No lock: what a completed write left is data for the store, and what a write under way will leave may be either.
    fn status(&self, offset: u64, length: u64, most: usize, extents: &mut Extents) -> Result<(), BlockError> {
        debug_assert!(most > 0, "a status has at least one extent");
        let range = self.range(offset, length);
        let (mut stored, before) = (Extents::default(), extents.as_slice().len());
        self.store.extents(range.covering(self.sector), most.min(MOST_HOLES), &mut stored)?;
        whole_sectors(&stored, range, self.sector, extents);
        extents.truncate(before.saturating_add(most));
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.store.prefetch(self.range(offset, length));
        Ok(())
    }

    fn write(&self, offset: u64, data: &mut [u8], durable: bool) -> Result<(), BlockError> {
        debug_assert!(!self.options.read_only, "the server refuses writes");
        self.require_thawed()?;
        let length = data.len() as u64;
        let Split { head, body, tail } = self.range(offset, length).split(self.sector);
        let (first, rest) = data.split_at_mut(bytes(head));
        let (middle, last) = rest.split_at_mut(bytes(body));
        self.change_part(head, |target| target.copy_from_slice(first))?;
        self.write_sectors(body, middle)?;
        self.change_part(tail, |target| target.copy_from_slice(last))?;
        self.written.fetch_add(length, Ordering::Relaxed);
        // Not by RWF_DSYNC: its error may be an earlier write's, which the kernel tells once and never again, and
        // could not be told from this write's own.
        if durable { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), BlockError> {
        if !self.options.flush {
            return Ok(());
        }
        // The kernel reports a failed write-back once and then forgets the pages (fsync(2), "NOTES").
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(BlockError::LostWrites);
        }
        self.store.flush().map_err(|error| {
            self.flush_failed.store(true, Ordering::Release);
            tracing::error!(%error, "flush failed: acknowledged writes may be lost");
            BlockError::Io(error)
        })
    }

    fn trim(&self, offset: u64, length: u64, durable: bool) -> Result<(), BlockError> {
        debug_assert!(!self.options.read_only, "the server refuses trims");
        self.require_thawed()?;
        if self.options.discard && self.store.discards_quickly() {
            self.discard_sectors(self.range(offset, length).split(self.sector).body)?;
        }
        if durable { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes, durable: bool) -> Result<(), BlockError> {
        debug_assert!(!self.options.read_only, "the server refuses zeros");
        self.require_thawed()?;
        let punch = self.options.discard && how.may_discard;
        if how.fast && !(punch && self.store.discards_quickly()) {
            return Err(BlockError::NotSupported);
        }
        let Split { head, body, tail } = self.range(offset, length).split(self.sector);
        self.change_part(head, |target| target.fill(0))?;
        if punch {
            self.discard_sectors(body)?;
        } else {
            self.zero_sectors(body)?;
        }
        self.change_part(tail, |target| target.fill(0))?;
        if durable { self.flush() } else { Ok(()) }
    }

    fn lane(&self) -> Option<Box<dyn Lane + '_>> {
        VolumeLane::of(self).map(|lane| Box::new(lane) as Box<dyn Lane + '_>)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// A range inside the volume and in a buffer: its length fits memory.
fn bytes(range: ByteRange) -> usize {
    usize::try_from(range.length()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
