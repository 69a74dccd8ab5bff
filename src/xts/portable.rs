//! AES-256-XTS from RustCrypto's `aes` and `xts-mode`.

use aes::Aes256;
use aes::cipher::KeyInit;
use xts_mode::{Xts128, get_tweak_default};

use super::{SectorCipher, assert_whole_sectors, stack};
use crate::geometry::SectorSize;
use crate::secret::DataKey;

/// Words of stack that are wiped after each use: further down than the calls reach.
const STACK: usize = 32 * 1024 / 8;

/// The expanded keys are boxed, so that moving the cipher copies none of them.
pub(super) struct Portable {
    xts: Box<Xts128<Aes256>>,
    sector: SectorSize,
}

impl Portable {
    pub(super) fn new(key: &DataKey, sector: SectorSize) -> Self {
        Self { xts: stack::apart(|| expand(key)), sector }
    }

    /// One data unit of any length from 16 bytes, as published vectors have them.
    #[cfg(test)]
    pub(super) fn unit(&self, encrypt: bool, number: u128, unit: &mut [u8]) {
        if encrypt {
            self.xts.encrypt_sector(unit, get_tweak_default(number));
        } else {
            self.xts.decrypt_sector(unit, get_tweak_default(number));
        }
    }
}

/// `Aes256` is built by value, so copies of the round keys pass over the stack.
#[allow(clippy::expect_used, reason = "both halves have 32 bytes by DataKey's type")]
fn expand(key: &DataKey) -> Box<Xts128<Aes256>> {
    let half = |bytes: &[u8]| Aes256::new_from_slice(bytes).expect("32 bytes");
    Box::new(Xts128::new(half(key.data_half()), half(key.tweak_half())))
}

/// The vector code keeps broadcast copies of the round keys on the stack of whichever thread calls it.
impl SectorCipher for Portable {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        assert_whole_sectors(data, self.sector);
        encrypt_area(&self.xts, self.sector, first, data);
        stack::wipe::<STACK>();
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        assert_whole_sectors(data, self.sector);
        decrypt_area(&self.xts, self.sector, first, data);
        stack::wipe::<STACK>();
    }

    fn sector_size(&self) -> SectorSize {
        self.sector
    }
}

#[inline(never)]
fn encrypt_area(xts: &Xts128<Aes256>, sector: SectorSize, first: u64, data: &mut [u8]) {
    xts.encrypt_area(data, sector.bytes(), u128::from(first), get_tweak_default);
}

#[inline(never)]
fn decrypt_area(xts: &Xts128<Aes256>, sector: SectorSize, first: u64, data: &mut [u8]) {
    xts.decrypt_area(data, sector.bytes(), u128::from(first), get_tweak_default);
}
