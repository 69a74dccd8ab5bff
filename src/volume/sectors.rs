//! Sectors between requests and the store: deciphered, enciphered, and changed in part.

use super::holes::is_hole;
use super::ranges::{Hold, REGION, Use};
use super::scratch::Scratch;
use super::{EncryptedVolume, PIECE, bytes};
use crate::block::{BlockError, Extents};
use crate::geometry::ByteRange;

impl EncryptedVolume {
    /// Deciphers whole sectors, leaves holes as the zeros that they are, and appends to `extents` which is which.
    pub(super) fn decipher(&self, offset: u64, data: &mut [u8], extents: &mut Extents) {
        let sector = self.sector.bytes();
        let mut start = 0;
        while start < data.len() {
            let in_hole = is_hole(&data[start..start + sector]);
            let alike = data[start..]
                .chunks_exact(sector)
                .skip(1)
                .take_while(|next| is_hole(next) == in_hole)
                .count();
            let run = (1 + alike) * sector;
            if !in_hole {
                self.cipher.decrypt(self.sector.number(offset + start as u64), &mut data[start..start + run]);
            }
            extents.push(run as u64, in_hole);
            start += run;
        }
    }

    /// Reads whole sectors.
    pub(super) fn read_sectors(
        &self,
        body: ByteRange,
        mut data: &mut [u8],
        extents: &mut Extents,
    ) -> Result<(), BlockError> {
        for piece in body.pieces(REGION) {
            let (now, later) = data.split_at_mut(bytes(piece));
            data = later;
            self.load(self.ranges.hold(piece, Use::Read), piece, now, extents)?;
        }
        Ok(())
    }

    /// Reads whole sectors that are held.
    fn load(
        &self,
        reading: Hold,
        held: ByteRange,
        data: &mut [u8],
        extents: &mut Extents,
    ) -> Result<(), BlockError> {
        if self.load_in_place(held, data, extents) {
            return Ok(());
        }
        self.store.read(held.start(), data)?;
        drop(reading);
        self.decipher(held.start(), data, extents);
        Ok(())
    }

    /// The same, where they lie in memory and are no holes; false if they do not, or may be.
    pub(super) fn load_in_place(&self, held: ByteRange, data: &mut [u8], extents: &mut Extents) -> bool {
        let mut may_have_holes = false;
        let was_there = self.store.in_place(held, &mut |source| {
            may_have_holes = source.has_zeros_each(self.sector.bytes());
            if !may_have_holes {
                self.cipher.decrypt_from(self.sector.number(held.start()), source, data);
            }
        });
        let is_done = was_there && !may_have_holes;
        if is_done {
            extents.push(held.length(), false);
        }
        is_done
    }

    /// Writes whole sectors that are held; leaves unspecified bytes in `data`.
    pub(super) fn keep(&self, held: ByteRange, data: &mut [u8]) -> Result<(), BlockError> {
        let first = self.sector.number(held.start());
        if !self.store.in_place(held, &mut |target| self.cipher.encrypt_into(first, data, target)) {
            self.cipher.encrypt(first, data);
            self.store.write(held.start(), data)?;
        }
        Ok(())
    }

    /// Reads the one sector of `scratch`; true if it is a hole.
    fn read_sector(&self, scratch: &mut Scratch) -> Result<bool, BlockError> {
        let (offset, sector) = (scratch.offset, scratch.sector());
        self.store.read(offset, sector)?;
        let in_hole = is_hole(sector);
        if !in_hole {
            self.cipher.decrypt(self.sector.number(offset), sector);
        }
        Ok(in_hole)
    }

    /// Reads part of one sector.
    pub(super) fn read_part(
        &self,
        part: ByteRange,
        target: &mut [u8],
        extents: &mut Extents,
    ) -> Result<(), BlockError> {
        if part.is_empty() {
            return Ok(());
        }
        let mut scratch = Scratch::of(part, self.sector);
        let reading = self.ranges.hold(part.covering(self.sector), Use::Read);
        let in_hole = self.read_sector(&mut scratch)?;
        drop(reading);
        target.copy_from_slice(scratch.part());
        extents.push(part.length(), in_hole);
        Ok(())
    }

    /// Changes part of one sector by `change`, losing nobody else's bytes.
    pub(super) fn change_part(
        &self,
        part: ByteRange,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), BlockError> {
        if part.is_empty() {
            return Ok(());
        }
        let mut scratch = Scratch::of(part, self.sector);
        let _changing = self.ranges.hold(part.covering(self.sector), Use::Write);
        self.read_sector(&mut scratch)?;
        change(scratch.part());
        self.cipher.encrypt(self.sector.number(scratch.offset), scratch.sector());
        Ok(self.store.write(scratch.offset, scratch.sector())?)
    }

    /// Writes whole sectors.
    pub(super) fn write_sectors(&self, body: ByteRange, mut data: &mut [u8]) -> Result<(), BlockError> {
        for piece in body.pieces(REGION) {
            let (now, later) = data.split_at_mut(bytes(piece));
            data = later;
            let _writing = self.ranges.hold(piece, Use::Write);
            self.keep(piece, now)?;
        }
        Ok(())
    }

    pub(super) fn zero_sectors(&self, body: ByteRange) -> Result<(), BlockError> {
        let mut zeros = vec![0; PIECE.min(bytes(body))];
        for piece in body.pieces(PIECE as u64) {
            self.go_on()?;
            let piece_of_zeros = &mut zeros[..bytes(piece)];
            piece_of_zeros.fill(0);
            self.write_sectors(piece, piece_of_zeros)?;
        }
        Ok(())
    }
}
