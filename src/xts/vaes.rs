//! AES-256-XTS by VAES, on vectors of 512 bits where the processor has AVX-512, else of 256. AWS-LC has assembly for the
//! former only, and uses AES-NI elsewhere, with one block in each instruction.
//!
//! Besides, it fetches ciphertext that lies in memory, and in no cache, before the cipher gets there: AWS-LC, which is
//! handed one sector at a time, does not know what comes next.

mod keys;
mod sectors;
mod vectors;

use self::keys::Keys;
use self::sectors::{Work, apply_narrow, apply_wide};
use self::vectors::{Narrow, Wide};
use super::{SectorCipher, assert_whole_sectors, stack};
use crate::geometry::SectorSize;
use crate::mapping::Window;
use crate::secret::DataKey;

/// Words of stack below [`Vaes::work`] that are wiped. Optimised, `apply_narrow` takes 912 bytes with what it
/// saves, `apply_wide` 656. What the kernel writes there at a signal lies deeper; signals to the process go to its first
/// thread, which enciphers nothing, and after one of its own making (SIGBUS) `mapping` wipes what the kernel wrote.
const STACK: usize = if cfg!(debug_assertions) { 32 * 1024 } else { 1024 } / 8;

/// The instructions that [`Vaes`] needs are there.
pub(super) fn is_available() -> bool {
    Narrow::detect().is_some()
}

/// `None` where the processor [cannot](is_available).
pub(super) fn cipher(key: &DataKey, sector: SectorSize) -> Option<Box<dyn SectorCipher>> {
    Vaes::new(key, sector).map(|cipher| Box::new(cipher) as Box<dyn SectorCipher>)
}

/// The widest that the processor has.
#[derive(Clone, Copy)]
enum Width {
    Narrow(Narrow),
    Wide(Wide),
}

pub(super) struct Vaes {
    keys: Box<Keys>,
    sector: SectorSize,
    width: Width,
}

impl Vaes {
    /// `None` where [the processor](is_available) cannot.
    pub(super) fn new(key: &DataKey, sector: SectorSize) -> Option<Self> {
        let width = Wide::detect().map(Width::Wide).or_else(|| Narrow::detect().map(Width::Narrow))?;
        // SAFETY: the instructions that `expand` needs are there.
        let expand = || Box::new(unsafe { Keys::expand(key) });
        Some(Self { keys: stack::apart(expand), sector, width })
    }

    /// The same on vectors of 256 bits.
    #[cfg(test)]
    pub(super) fn narrow(self) -> Self {
        Self { width: Narrow::detect().map_or(self.width, Width::Narrow), ..self }
    }

    /// In place, in a buffer that was filled just now.
    fn apply<const ENCRYPT: bool>(&self, unit: usize, first: u128, data: &mut [u8]) {
        let (there, length) = (data.as_mut_ptr(), data.len());
        // SAFETY: the bytes are borrowed to be read and written.
        unsafe { self.work::<ENCRYPT>(Work { unit, first, from: there, to: there, length, is_far: false }) };
    }

    /// # Safety
    /// `work` is of bytes that may be read and written.
    unsafe fn work<const ENCRYPT: bool>(&self, work: Work) {
        // SAFETY: a width is there only where its instructions are; the rest is the caller's.
        unsafe {
            match self.width {
                Width::Narrow(with) => apply_narrow::<ENCRYPT>(with, &self.keys, work),
                Width::Wide(with) => apply_wide::<ENCRYPT>(with, &self.keys, work),
            }
        }
        stack::wipe::<STACK>();
    }

    /// One data unit of whole blocks, as published vectors have them. Blocks do not depend on those after them.
    #[cfg(test)]
    pub(super) fn unit(&self, encrypt: bool, number: u128, unit: &mut [u8]) {
        let mut padded = vec![0; unit.len().next_multiple_of(sectors::stride::<Wide>())];
        padded[..unit.len()].copy_from_slice(unit);
        let length = padded.len();
        if encrypt {
            self.apply::<true>(length, number, &mut padded);
        } else {
            self.apply::<false>(length, number, &mut padded);
        }
        unit.copy_from_slice(&padded[..unit.len()]);
    }
}

impl SectorCipher for Vaes {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        assert_whole_sectors(data, self.sector);
        self.apply::<true>(self.sector.bytes(), first.into(), data);
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        assert_whole_sectors(data, self.sector);
        self.apply::<false>(self.sector.bytes(), first.into(), data);
    }

    fn encrypt_into(&self, first: u64, data: &[u8], target: &Window) {
        assert_whole_sectors(data, self.sector);
        assert_eq!(data.len(), target.len());
        let (unit, first, length) = (self.sector.bytes(), first.into(), data.len());
        let work = Work { unit, first, from: data.as_ptr(), to: target.start(), length, is_far: true };
        // SAFETY: as many bytes are borrowed to be read as may be written where `target` is, which is apart.
        unsafe { self.work::<true>(work) };
    }

    fn decrypt_from(&self, first: u64, source: &Window, data: &mut [u8]) {
        assert_whole_sectors(data, self.sector);
        assert_eq!(data.len(), source.len());
        let (unit, first, length) = (self.sector.bytes(), first.into(), data.len());
        let work = Work { unit, first, from: source.start(), to: data.as_mut_ptr(), length, is_far: true };
        // SAFETY: as many bytes are borrowed to be written as may be read where `source` is, which is apart.
        unsafe { self.work::<false>(work) };
    }

    fn sector_size(&self) -> SectorSize {
        self.sector
    }
}
