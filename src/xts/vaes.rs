//! AES-256-XTS by VAES on vectors of 256 bits, two blocks in each and sixteen under way at once: for x86-64 processors
//! that have VAES but no AVX-512 (AMD's Zen 3, Intel's without it), to which AWS-LC gives AES-NI, with one block in each instruction.
//!
//! Two things keep the processor's AES units busy. Where sectors begin, the tweaks of sixteen of them are enciphered
//! together, and the powers of each are made side by side, not each from the one before. And a tweak goes on by sixteen
//! blocks at once: times x^16 is a shift by two bytes, and the two that fall out, times the polynomial, come back.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_loadu_si128, _mm_set1_epi32,
    _mm_setzero_si128, _mm_shuffle_epi32, _mm_slli_si128, _mm_xor_si128, _mm256_aesdec_epi128,
    _mm256_aesdeclast_epi128, _mm256_aesenc_epi128, _mm256_aesenclast_epi128, _mm256_broadcastsi128_si256,
    _mm256_castsi256_si128, _mm256_clmulepi64_epi128, _mm256_extracti128_si256, _mm256_loadu_si256,
    _mm256_set_epi64x, _mm256_set1_epi64x, _mm256_slli_si256, _mm256_sllv_epi64, _mm256_srli_si256,
    _mm256_srlv_epi64, _mm256_storeu_si256, _mm256_sub_epi64, _mm256_xor_si256, _mm256_zeroall,
};
use std::array;
use std::hint::black_box;

use zeroize::Zeroize;

use super::{SectorCipher, assert_whole_sectors, stack};
use crate::geometry::SectorSize;
use crate::mapping::Window;
use crate::secret::DataKey;

/// Round keys of AES-256 (FIPS 197, 5.2).
const ROUND_KEYS: usize = 15;
/// Vectors under way at once: as many as the AES units of a core take to begin while the first is in them.
const VECTORS: usize = 8;
/// Bytes of these vectors. A sector of either size is a multiple of them.
const STRIDE: usize = VECTORS * 32;
/// Sectors whose tweaks are enciphered together, two in a vector.
const TOGETHER: usize = 2 * VECTORS;
/// Words of stack below [`Vaes::apply`] that are wiped. Optimised, `sectors` takes some six hundred bytes. What the kernel
/// writes there at a signal lies deeper; signals to the process go to its first thread, which enciphers nothing, and after
/// one of its own making (SIGBUS) `mapping` wipes what the kernel wrote.
const STACK: usize = if cfg!(debug_assertions) { 32 * 1024 } else { 1024 } / 8;

// What does not fill a stride would stay as it is.
const _: () = assert!(SectorSize::B512.bytes().is_multiple_of(STRIDE));
const _: () = assert!(SectorSize::B4096.bytes().is_multiple_of(STRIDE));

type Schedule = [__m128i; ROUND_KEYS];

/// x^128 is x^7 + x^2 + x + 1 (IEEE 1619-2018, 5.2).
const POLYNOMIAL: i64 = 0x87;

/// The instruction sets that [`Vaes`] needs are there.
pub(super) fn is_available() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("aes") && has!("avx2") && has!("vaes") && has!("vpclmulqdq")
}

/// AWS-LC has nothing better here (`avx512_xts_available` in its crypto/fipsmodule/aes/internal.h), at least for sectors
/// of 4096 bytes.
pub(super) fn is_fastest() -> bool {
    use std::arch::is_x86_feature_detected as has;
    let [f, bw, dq, vl] = [has!("avx512f"), has!("avx512bw"), has!("avx512dq"), has!("avx512vl")];
    is_available() && !(f && bw && dq && vl && has!("avx512vbmi2"))
}

/// `None` where the processor [cannot](is_available).
pub(super) fn cipher(key: &DataKey, sector: SectorSize) -> Option<Box<dyn SectorCipher>> {
    Vaes::new(key, sector).map(|cipher| Box::new(cipher) as Box<dyn SectorCipher>)
}

pub(super) struct Vaes {
    keys: Box<Keys>,
    sector: SectorSize,
}

/// In this order, so that whoever looks for keys in a process's memory, as tests do, knows how they lie.
#[repr(C)]
struct Keys {
    data: Schedule,
    /// The same for deciphering, first to last (FIPS 197, 5.3.5).
    inverse: Schedule,
    tweak: Schedule,
}

impl Vaes {
    /// `None` where [the processor](is_available) cannot.
    pub(super) fn new(key: &DataKey, sector: SectorSize) -> Option<Self> {
        if !is_available() {
            return None;
        }
        // SAFETY: the instruction sets that `expand` needs are there.
        let expand = || Box::new(unsafe { Keys::expand(key) });
        Some(Self { keys: stack::apart(expand), sector })
    }

    /// Whole strides; the first is the beginning of the data unit with number `first`.
    fn apply<const ENCRYPT: bool>(&self, unit: usize, first: u128, data: &mut [u8]) {
        let there = data.as_mut_ptr();
        // SAFETY: the bytes are borrowed to be read and written.
        unsafe { self.apply_to::<ENCRYPT>(unit, first, there, there, data.len()) };
    }

    /// # Safety
    /// `length` bytes may be read from `from` on and written from `to` on, which are the same or apart.
    unsafe fn apply_to<const ENCRYPT: bool>(
        &self,
        unit: usize,
        first: u128,
        from: *const u8,
        to: *mut u8,
        length: usize,
    ) {
        // SAFETY: `new` has made this, so the instruction sets that `sectors` needs are there; the rest is the caller's.
        unsafe { sectors::<ENCRYPT>(&self.keys, unit, first, from, to, length) };
        stack::wipe::<STACK>();
    }

    /// One data unit of whole blocks, as published vectors have them. Blocks do not depend on those after them.
    #[cfg(test)]
    pub(super) fn unit(&self, encrypt: bool, number: u128, unit: &mut [u8]) {
        let mut padded = vec![0; unit.len().next_multiple_of(STRIDE)];
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
        let (unit, first) = (self.sector.bytes(), first.into());
        // SAFETY: as many bytes are borrowed to be read as may be written where `target` is, which is apart.
        unsafe { self.apply_to::<true>(unit, first, data.as_ptr(), target.start(), data.len()) };
    }

    fn decrypt_from(&self, first: u64, source: &Window, data: &mut [u8]) {
        assert_whole_sectors(data, self.sector);
        assert_eq!(data.len(), source.len());
        let (unit, first) = (self.sector.bytes(), first.into());
        // SAFETY: as many bytes are borrowed to be written as may be read where `source` is, which is apart.
        unsafe { self.apply_to::<false>(unit, first, source.start(), data.as_mut_ptr(), data.len()) };
    }

    fn sector_size(&self) -> SectorSize {
        self.sector
    }
}

impl Keys {
    #[target_feature(enable = "aes")]
    fn expand(key: &DataKey) -> Self {
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

/// Never inlined, so that all it leaves on the stack lies below its caller's frame.
///
/// # Safety
/// `length` bytes may be read from `from` on and written from `to` on, which are the same or apart.
#[inline(never)]
#[target_feature(enable = "aes,avx2,vaes,vpclmulqdq")]
unsafe fn sectors<const ENCRYPT: bool>(
    keys: &Keys,
    unit: usize,
    first: u128,
    from: *const u8,
    to: *mut u8,
    length: usize,
) {
    let (mut number, mut at) = (first, 0);
    while at + unit <= length {
        let tweaks = tweaks(black_box(&keys.tweak), number);
        number = number.wrapping_add(TOGETHER as u128);
        let group = ((length - at) / unit).min(TOGETHER);
        for tweak in tweaks.into_iter().take(group) {
            let mut powers = powers(tweak);
            for _ in 0..unit / STRIDE {
                // For the compiler, the keys may be others each time: else it would put copies of all fifteen on the
                // stack before the loop. Reading them where they are is a third faster.
                let keys = black_box(keys);
                let round_keys = if ENCRYPT { &keys.data } else { &keys.inverse };
                // SAFETY: a stride lies before `length`, for a whole unit does.
                unsafe { apply_stride::<ENCRYPT>(round_keys, &powers, from.add(at), to.add(at)) };
                at += STRIDE;
                for power in &mut powers {
                    *power = by_sixteen_blocks(*power);
                }
            }
        }
    }
    _mm256_zeroall();
}

/// The tweaks of [`TOGETHER`] sectors from number `first`.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn tweaks(keys: &Schedule, first: u128) -> [__m128i; TOGETHER] {
    let key = |round: usize| _mm256_broadcastsi128_si256(keys[round]);
    let mut pairs = [key(0); VECTORS];
    let mut number = first;
    for pair in &mut pairs {
        let (even, odd) = (words(number), words(number.wrapping_add(1)));
        number = number.wrapping_add(2);
        *pair = _mm256_xor_si256(*pair, _mm256_set_epi64x(odd[1], odd[0], even[1], even[0]));
    }
    for round in 1..ROUND_KEYS - 1 {
        let key = key(round);
        for pair in &mut pairs {
            *pair = _mm256_aesenc_epi128(*pair, key);
        }
    }
    let key = key(ROUND_KEYS - 1);
    let mut tweaks = [_mm_setzero_si128(); TOGETHER];
    for (two, pair) in tweaks.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
        let pair = _mm256_aesenclast_epi128(pair, key);
        *two = [_mm256_castsi256_si128(pair), _mm256_extracti128_si256::<1>(pair)];
    }
    tweaks
}

/// Lower and upper half of a data unit's number.
fn words(number: u128) -> [i64; 2] {
    let bytes = number.to_le_bytes();
    let words = bytes.as_chunks().0;
    [i64::from_le_bytes(words[0]), i64::from_le_bytes(words[1])]
}

/// `tweak` times x^0 to x^15: the tweaks of the first sixteen blocks of a sector.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn powers(tweak: __m128i) -> [__m256i; VECTORS] {
    let mut powers = [_mm256_broadcastsi128_si256(tweak); VECTORS];
    for (power, even) in powers.iter_mut().zip([0, 2, 4, 6, 8, 10, 12, 14]) {
        let shifts = _mm256_set_epi64x(even + 1, even + 1, even, even);
        let stays = _mm256_sllv_epi64(*power, shifts);
        // A shift by 64 gives zero.
        let leaves = _mm256_srlv_epi64(*power, _mm256_sub_epi64(_mm256_set1_epi64x(64), shifts));
        let reduced = _mm256_clmulepi64_epi128::<0x01>(leaves, _mm256_set1_epi64x(POLYNOMIAL));
        *power = _mm256_xor_si256(_mm256_xor_si256(stays, _mm256_slli_si256::<8>(leaves)), reduced);
    }
    powers
}

/// `tweak` times x^16.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn by_sixteen_blocks(tweak: __m256i) -> __m256i {
    let leaves = _mm256_srli_si256::<14>(tweak);
    let reduced = _mm256_clmulepi64_epi128::<0x00>(leaves, _mm256_set1_epi64x(POLYNOMIAL));
    _mm256_xor_si256(_mm256_slli_si256::<2>(tweak), reduced)
}

#[allow(
    clippy::needless_range_loop,
    reason = "the compiler leaves three iterators zipped as a loop, with branches"
)]
/// Sixteen blocks, each between its tweak and its tweak.
///
/// # Safety
/// [`STRIDE`] bytes may be read from `from` on and written from `to` on.
#[inline]
#[target_feature(enable = "avx2,vaes")]
unsafe fn apply_stride<const ENCRYPT: bool>(
    keys: &Schedule,
    tweaks: &[__m256i; VECTORS],
    from: *const u8,
    to: *mut u8,
) {
    let key = |round: usize| _mm256_broadcastsi128_si256(keys[round]);
    let mut blocks = [key(0); VECTORS];
    for i in 0..VECTORS {
        // SAFETY: reads 32 bytes of the stride, which need no alignment.
        let block = unsafe { _mm256_loadu_si256(from.add(32 * i).cast()) };
        blocks[i] = _mm256_xor_si256(blocks[i], _mm256_xor_si256(block, tweaks[i]));
    }
    for round in 1..ROUND_KEYS - 1 {
        let key = key(round);
        for block in &mut blocks {
            *block =
                if ENCRYPT { _mm256_aesenc_epi128(*block, key) } else { _mm256_aesdec_epi128(*block, key) };
        }
    }
    let key = key(ROUND_KEYS - 1);
    for i in 0..VECTORS {
        let last = _mm256_xor_si256(key, tweaks[i]);
        let block = if ENCRYPT {
            _mm256_aesenclast_epi128(blocks[i], last)
        } else {
            _mm256_aesdeclast_epi128(blocks[i], last)
        };
        // SAFETY: writes 32 bytes of the stride, which need no alignment.
        unsafe { _mm256_storeu_si256(to.add(32 * i).cast(), block) };
    }
}
