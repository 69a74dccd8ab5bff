//! Discards, which may be as long as the volume, while others read and write.
//!
//! While a file system takes a hole out of a file, whoever reads of that file what is not in the page cache waits,
//! wherever it lies. How long, goes by the data that is given back: the file system frees every extent by itself, and
//! one that passes discards on to its disk at once (ext4 without a journal) waits for the disk at each. Hence pieces
//! that hold little. What is a hole already is passed over, so that a sparse volume takes few of them.

use super::ranges::{REGION, Use};
use super::{EncryptedVolume, PIECE};
use crate::block::{BlockError, Extent, Extents};
use crate::geometry::ByteRange;

/// What is discarded at a time.
struct Portion {
    bytes: u64,
    /// Extents with holes between them: looking for each takes two system calls.
    extents: usize,
}

/// A few milliseconds of a file system's.
const PUNCHED: Portion = Portion { bytes: 8 << 20, extents: 64 };
/// Where zeros are written in place of holes, none are written into holes.
const ZEROED: Portion = Portion { bytes: PIECE as u64, extents: 1 };

impl EncryptedVolume {
    /// Makes whole sectors read as zeros.
    pub(super) fn discard_sectors(&self, body: ByteRange) -> Result<(), BlockError> {
        for region in body.pieces(REGION) {
            let mut rest = region;
            while !rest.is_empty() {
                self.go_on()?;
                let most = if self.store.discards_quickly() { PUNCHED } else { ZEROED };
                let data = self.first_data(rest, most.extents)?;
                for piece in data.pieces(most.bytes) {
                    let _writing = self.ranges.hold(piece, Use::Write);
                    // After the wait, which may be long where many discard the same.
                    self.go_on()?;
                    self.store.discard(piece)?;
                }
                rest = self.range(data.end(), rest.end() - data.end());
            }
        }
        Ok(())
    }

    /// The first `most` extents of data in whole sectors, or fewer, with the holes between them; nothing, behind the
    /// hole that was found, if there is no data.
    ///
    /// Nobody is kept from writing there meanwhile: what was written before is data for the store, and of what is
    /// being written the discard may take nothing.
    fn first_data(&self, sectors: ByteRange, most: usize) -> Result<ByteRange, BlockError> {
        let mut extents = Extents::default();
        self.store.extents(sectors, most, &mut extents)?;
        let length = |extent: &Extent| extent.length;
        let hole = |extent: Option<&Extent>| extent.filter(|extent| extent.is_hole).map_or(0, length);
        let (told, before) =
            (extents.as_slice().iter().map(length).sum::<u64>(), hole(extents.as_slice().first()));
        let after = if before == told { 0 } else { hole(extents.as_slice().last()) };
        // Their borders may lie within a sector.
        Ok(self.range(sectors.start() + before, told - before - after).covering(self.sector))
    }
}
