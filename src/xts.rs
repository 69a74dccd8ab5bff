//! AES-256-XTS over whole sectors, in place (IEEE 1619-2018, NIST SP 800-38E).
//!
//! The tweak is the sector's number as 16 little-endian bytes, which is dm-crypt's `plain64`
//! (drivers/md/dm-crypt.c, `crypt_iv_plain64_gen`) with `iv_large_sectors`. Two implementations agree byte for
//! byte: [`Implementation::AwsLc`] with assembly for AES-NI, VAES/AVX-512 and ARMv8, and
//! [`Implementation::Portable`] in plain Rust, which is also the oracle in tests.

#[allow(unsafe_code, reason = "AWS-LC's XTS is reached through its C interface only")]
mod aws_lc;
mod portable;

use crate::geometry::SectorSize;
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

    /// The sector size it was made for.
    fn sector_size(&self) -> SectorSize;
}

/// Which code does the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Implementation {
    /// AWS-LC: about 10 GB/s on one core with AVX-512 and VAES, 5 with AES-NI.
    #[default]
    AwsLc,
    /// The crates `aes` and `xts-mode`: no C, no assembly, a tenth of the speed.
    Portable,
}

impl Implementation {
    /// Makes a cipher from `key`, which may be dropped after that.
    pub fn cipher(self, key: &DataKey, sector: SectorSize) -> Box<dyn SectorCipher> {
        match self {
            Self::AwsLc => Box::new(aws_lc::AwsLc::new(key, sector)),
            Self::Portable => Box::new(portable::Portable::new(key, sector)),
        }
    }
}

fn assert_whole_sectors(data: &[u8], sector: SectorSize) {
    assert!(data.len().is_multiple_of(sector.bytes()), "{} bytes are no whole sectors", data.len());
}

#[cfg(test)]
mod tests;
