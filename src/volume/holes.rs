//! Which sectors are holes: by their ciphertext, and by what a store says of its space.

use crate::block::Extents;
use crate::geometry::{ByteRange, SectorSize};

/// Bytes compared at once: the compiler makes a few wide loads of them.
const STRIDE: usize = 64;

/// True if `sector`, whole and still enciphered, is a hole. Real ciphertext shows in its first bytes.
pub(super) fn is_hole(sector: &[u8]) -> bool {
    debug_assert!(sector.len().is_multiple_of(STRIDE));
    sector.chunks_exact(STRIDE).all(|stride| stride.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// Appends to `extents` what `range` consists of, where the sectors that it touches are stored as `stored` says, or
/// begins to say. A sector is a hole only if all of it lies in one; what follows the last one told of is not covered.
pub(super) fn whole_sectors(stored: &Extents, range: ByteRange, sector: SectorSize, extents: &mut Extents) {
    let covering = range.covering(sector);
    let mut told = range.start();
    let mut tell = |until: u64, is_hole| {
        let until = until.min(range.end());
        extents.push(until.saturating_sub(told), is_hole);
        told = told.max(until);
    };
    let mut start = covering.start();
    for extent in stored.as_slice() {
        let end = start + extent.length;
        if extent.is_hole
            && let Some(hole) = ByteRange::within(start, extent.length, covering.end())
        {
            let whole = hole.split(sector).body;
            tell(whole.start(), false);
            tell(whole.end(), true);
        }
        start = end;
    }
    tell(start.next_multiple_of(sector.bytes() as u64), false);
}
