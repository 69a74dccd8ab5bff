//! AES-256-XTS over whole sectors, in place (IEEE 1619-2018, NIST SP 800-38E).
//!
//! The tweak is the sector's number as 16 little-endian bytes, which is dm-crypt's `plain64`
//! (drivers/md/dm-crypt.c, `crypt_iv_plain64_gen`) with `iv_large_sectors`. Three implementations agree byte for
//! byte: [`Implementation::Vaes`] for x86-64 processors with VAES, [`Implementation::AwsLc`] with assembly for VAES and
//! AVX-512, AES-NI, and ARMv8, and [`Implementation::Portable`] in plain Rust, the oracle in tests.

#[allow(unsafe_code, reason = "AWS-LC's XTS is reached through its C interface only")]
mod aws_lc;
mod portable;
mod stack;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "instructions that not every processor has, and loads of vectors from bytes")]
mod vaes;

use zeroize::Zeroizing;

use crate::geometry::SectorSize;
use crate::mapping::Window;
use crate::secret::DataKey;

/// Enciphers and deciphers sectors. Holds the expanded keys, which are wiped when it is dropped.
pub trait SectorCipher: Send + Sync {
    /// Enciphers `data` in place: whole sectors, the first with number `first`.
    ///
    /// # Panics
    /// If `data` is not a whole number of sectors.
    fn encrypt(&self, first: u64, data: &mut [u8]);

    /// Deciphers `data` in place: whole sectors, the first with number `first`.
    ///
    /// # Panics
    /// If `data` is not a whole number of sectors.
    fn decrypt(&self, first: u64, data: &mut [u8]);

    /// Enciphers `data`, which stays as it is, into `target`, which is as long: whole sectors, the first with number
    /// `first`.
    ///
    /// # Panics
    /// If `data` is not a whole number of sectors, or `target` not as long.
    fn encrypt_into(&self, first: u64, data: &[u8], target: &Window) {
        assert_eq!(data.len(), target.len());
        let size = self.sector_size().bytes();
        let mut scratch = Zeroizing::new([0; SectorSize::B4096.bytes()]);
        for (number, sector) in (first..).zip(data.chunks(size)) {
            scratch[..sector.len()].copy_from_slice(sector);
            self.encrypt(number, &mut scratch[..sector.len()]);
            let before = usize::try_from(number - first).unwrap_or(usize::MAX);
            target.write(before.saturating_mul(size), &scratch[..sector.len()]);
        }
    }

    /// Deciphers `source` into `data`, which is as long: whole sectors, the first with number `first`.
    ///
    /// # Panics
    /// If `data` is not a whole number of sectors, or `source` not as long.
    fn decrypt_from(&self, first: u64, source: &Window, data: &mut [u8]) {
        source.read(data);
        self.decrypt(first, data);
    }

    /// The sector size it was made for.
    fn sector_size(&self) -> SectorSize;
}

/// Which code does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Implementation {
    /// AWS-LC: 9 to 12 GB/s on one core with VAES and AVX-512, 5 with AES-NI and nothing more.
    AwsLc,
    /// Ours, by VAES on vectors of 512 or 256 bits: 9 to 12 GB/s on one core, and 8, not 5, from memory.
    Vaes,
    /// The crates `aes` and `xts-mode`: no C, no assembly, a tenth of the speed.
    Portable,
}

impl Implementation {
    /// Those that this processor can do.
    pub fn available() -> impl Iterator<Item = Self> {
        let is_available = |one: &Self| *one != Self::Vaes || vaes::is_available();
        [Self::AwsLc, Self::Vaes, Self::Portable].into_iter().filter(is_available)
    }

    /// The one that is fastest on this processor, as far as such a one has been measured (docs/performance.md).
    pub fn fastest() -> Self {
        if vaes::is_available() { Self::Vaes } else { Self::AwsLc }
    }

    /// As `--cipher` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AwsLc => "aws-lc",
            Self::Vaes => "vaes",
            Self::Portable => "portable",
        }
    }

    /// Makes a cipher from `key`, which may be dropped after that. Where the processor lacks what [`Self::Vaes`]
    /// needs, that is AWS-LC's: they agree byte for byte.
    pub fn cipher(self, key: &DataKey, sector: SectorSize) -> Box<dyn SectorCipher> {
        match self {
            Self::Vaes => vaes::cipher(key, sector).unwrap_or_else(|| Self::AwsLc.cipher(key, sector)),
            Self::AwsLc => Box::new(aws_lc::AwsLc::new(key, sector)),
            Self::Portable => Box::new(portable::Portable::new(key, sector)),
        }
    }
}

/// On other processors there is none.
#[cfg(not(target_arch = "x86_64"))]
mod vaes {
    use super::{DataKey, SectorCipher, SectorSize};

    pub(super) fn is_available() -> bool {
        false
    }

    pub(super) fn cipher(_key: &DataKey, _sector: SectorSize) -> Option<Box<dyn SectorCipher>> {
        None
    }
}

fn assert_whole_sectors(data: &[u8], sector: SectorSize) {
    assert!(data.len().is_multiple_of(sector.bytes()), "{} bytes are no whole sectors", data.len());
}

#[cfg(test)]
mod tests;
