//! Which parts of a file in memory are there, so that they can be used where they lie.
//!
//! What is not there, a hole, would take memory if it were so much as looked at, and where there is no more of it the
//! mapping would be lost. So holes are left to read(2) and write(2). What is known of them is a hint: where it is wrong,
//! it costs time or memory, or the mapping says that it failed.

use std::fs::File;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::geometry::ByteRange;
use crate::mapping::{Mapping, Window};

/// Bytes that are known to be there, or not.
pub(super) const PIECE: u64 = PIECE_LENGTH as u64;
const PIECE_LENGTH: usize = 32 << 10;
/// Bytes that are there or not; where pages are larger, so are those of a file in memory.
const PAGE: usize = 4096;
/// Larger files are not mapped: for each GiB, the pieces take 4 KiB of memory, the kernel's tables up to 2 MiB.
const MOST: u64 = 1 << 40;

/// A file in memory, all of it mapped.
pub(super) struct Present {
    mapping: Mapping,
    /// A bit for each piece: all of it is there.
    pieces: Box<[AtomicU64]>,
    /// Whoever runs this knows that the mapping is lost.
    told: Once,
}

impl Present {
    /// Nothing of `file` is known to be there yet. `None` where it cannot be mapped.
    pub(super) fn of(file: &File) -> Option<Self> {
        let length = file.metadata().ok()?.len();
        let mapping = Mapping::of(file, usize::try_from(length).ok().filter(|_| length <= MOST)?)?;
        let words = length.div_ceil(PIECE).div_ceil(64);
        let pieces = (0..words).map(|_| AtomicU64::new(0)).collect();
        Some(Self { mapping, pieces, told: Once::new() })
    }

    /// `length` bytes were written at `offset`.
    pub(super) fn written(&self, offset: u64, length: usize) {
        for piece in whole_pieces(offset, length) {
            self.found(piece);
        }
    }

    /// `data` is what was read at `offset`. A page that is not all zeros is no hole; to ask for holes would take the
    /// file's lock, and the system as long as it takes to get to the next one.
    pub(super) fn seen(&self, offset: u64, data: &[u8]) {
        // The compiler makes a few wide loads of a stride.
        let is_zero = |stride: &[u8]| stride.iter().fold(0, |seen, byte| seen | byte) == 0;
        let is_page_there = |page: &[u8]| !page.chunks(64).all(is_zero);
        for piece in whole_pieces(offset, data.len()) {
            let start = usize::try_from(piece * PIECE - offset).unwrap_or(usize::MAX);
            let bytes = data.get(start..).and_then(|rest| rest.get(..PIECE_LENGTH)).unwrap_or_default();
            if !bytes.is_empty() && bytes.chunks(PAGE).all(is_page_there) {
                self.found(piece);
            }
        }
    }

    fn found(&self, piece: u64) {
        self.word(piece).map(|word| word.fetch_or(bit(piece), Ordering::Relaxed));
    }

    /// Something of `range` may not be there any more.
    pub(super) fn forget(&self, range: ByteRange) {
        for piece in range.start() / PIECE..range.end().div_ceil(PIECE) {
            self.word(piece).map(|word| word.fetch_and(!bit(piece), Ordering::Relaxed));
        }
    }

    /// As [`Mapping::reach`], if it is there and a page at least.
    pub(super) fn reach(&self, range: ByteRange, work: impl FnOnce(&Window)) -> bool {
        let is_worth_it = range.length() >= PAGE as u64 && self.has(range);
        let (at, length) = (usize::try_from(range.start()), usize::try_from(range.length()));
        let (true, Ok(at), Ok(length)) = (is_worth_it, at, length) else { return false };
        let is_done = self.mapping.reach(at, length, work);
        if !is_done {
            self.told.call_once(|| {
                tracing::warn!(
                    "the volume's file was cut short, or its file system is full, or its memory fails: \
                     from now on it is read and written by system calls"
                );
            });
        }
        is_done
    }

    /// True if all of `range` is there, as far as is known.
    fn has(&self, range: ByteRange) -> bool {
        let mut pieces = range.start() / PIECE..range.end().div_ceil(PIECE);
        pieces
            .all(|piece| self.word(piece).is_some_and(|word| word.load(Ordering::Relaxed) & bit(piece) != 0))
    }

    fn word(&self, piece: u64) -> Option<&AtomicU64> {
        self.pieces.get(usize::try_from(piece / 64).ok()?)
    }
}

/// The numbers of the pieces all of which is among `length` bytes at `offset`.
fn whole_pieces(offset: u64, length: usize) -> std::ops::Range<u64> {
    offset.div_ceil(PIECE)..offset.saturating_add(length as u64) / PIECE
}

fn bit(piece: u64) -> u64 {
    1 << (piece % 64)
}
