//! The keys of AES-256, expanded (FIPS 197, 5.2).

use std::arch::x86_64::{
    __m128i, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_loadu_si128, _mm_set1_epi32, _mm_setzero_si128,
    _mm_shuffle_epi32, _mm_slli_si128, _mm_xor_si128,
};
use std::array;

use zeroize::Zeroize;

use crate::secret::DataKey;

pub(super) const ROUND_KEYS: usize = 15;

pub(super) type Schedule = [__m128i; ROUND_KEYS];

/// In this order, so that whoever looks for keys in a process's memory, as tests do, knows how they lie.
#[repr(C)]
pub(super) struct Keys {
    pub(super) data: Schedule,
    /// The same for deciphering, first to last (FIPS 197, 5.3.5).
    pub(super) inverse: Schedule,
    pub(super) tweak: Schedule,
}

impl Keys {
    #[target_feature(enable = "aes")]
    pub(super) fn expand(key: &DataKey) -> Self {
        let (data, tweak) = (schedule(key.data_half()), schedule(key.tweak_half()));
        let inverse = array::from_fn(|round| match round {
            0 | 14 => data[14 - round],
            _ => _mm_aesimc_si128(data[14 - round]),
        });
        Self { data, inverse, tweak }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.data.zeroize();
        self.inverse.zeroize();
        self.tweak.zeroize();
    }
}

/// Key expansion (FIPS 197, 5.2), four words at a time.
#[target_feature(enable = "aes")]
fn schedule(key: &[u8]) -> Schedule {
    let (halves, _) = key.as_chunks::<16>();
    let mut keys = [_mm_setzero_si128(); ROUND_KEYS];
    for (key, half) in keys.iter_mut().zip(halves) {
        // SAFETY: reads the 16 bytes that are borrowed, which need no alignment.
        *key = unsafe { _mm_loadu_si128(half.as_ptr().cast()) };
    }
    let mut constant = 1;
    for round in 2..ROUND_KEYS {
        let last = _mm_aeskeygenassist_si128::<0>(keys[round - 1]);
        let word = if round % 2 == 0 {
            let rotated = _mm_shuffle_epi32::<0xff>(last);
            let word = _mm_xor_si128(rotated, _mm_set1_epi32(constant));
            constant <<= 1;
            word
        } else {
            _mm_shuffle_epi32::<0xaa>(last)
        };
        // Each word is the sum of those before it in the round key before the last, and of `word`.
        let mut sums = keys[round - 2];
        sums = _mm_xor_si128(sums, _mm_slli_si128::<4>(sums));
        sums = _mm_xor_si128(sums, _mm_slli_si128::<8>(sums));
        keys[round] = _mm_xor_si128(sums, word);
    }
    keys
}
