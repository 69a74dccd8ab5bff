//! Sectors by eight vectors at once, whatever their width.
//!
//! Two things keep the processor's AES units busy. Where sectors begin, the tweaks of sixteen of them are enciphered
//! together, and the powers of each are made side by side, not each from the one before. And a tweak goes on by all the
//! blocks that are under way: times x^16 is a shift by two bytes, x^32 by four, and those that fall out, times the
//! polynomial, come back.
//!
//! All of it is inlined into [`apply_narrow`] and [`apply_wide`], where its vectors' instructions are allowed.

use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_prefetch, _mm_setzero_si128};
use std::hint::black_box;

use super::keys::{Keys, ROUND_KEYS, Schedule};
use super::vectors::{Narrow, Vectors, Wide};
use crate::geometry::SectorSize;

/// Vectors under way at once: as many as the AES units of a core take to begin while the first is in them.
const VECTORS: usize = 8;
/// Sectors whose tweaks are enciphered together.
const TOGETHER: usize = 16;
/// Bytes from what is at work to what is fetched meanwhile. By itself a processor fetches ahead within a page (the streamer of
/// Intel's optimization manual, "Data Prefetching"), and looks at fewer instructions in advance than a page takes. What a
/// call begins with, as many bytes, is not fetched.
const AHEAD: usize = 4096;
const CACHE_LINE: usize = 64;

/// Whole data units, and where they are.
#[derive(Clone, Copy)]
pub(super) struct Work {
    /// Bytes of a data unit, a multiple of a [`stride`].
    pub(super) unit: usize,
    /// Its number, which is its tweak.
    pub(super) first: u128,
    pub(super) from: *const u8,
    /// The same place, or one apart.
    pub(super) to: *mut u8,
    /// Bytes.
    pub(super) length: usize,
    /// The ciphertext is in no cache, as likely as not.
    pub(super) is_far: bool,
}

/// Bytes under way at once.
pub(super) const fn stride<V: Vectors>() -> usize {
    VECTORS * V::BLOCKS * 16
}

// What does not fill a stride would stay as it is.
const _: () = assert!(SectorSize::B512.bytes().is_multiple_of(stride::<Wide>()));
const _: () = assert!(SectorSize::B4096.bytes().is_multiple_of(stride::<Wide>()));
const _: () = assert!(stride::<Wide>().is_multiple_of(stride::<Narrow>()));

/// Never inlined, so that all it leaves on the stack lies below its caller's frame.
///
/// # Safety
/// `work` is of bytes that may be read and written.
#[inline(never)]
#[target_feature(enable = "aes,avx2,vaes,vpclmulqdq")]
pub(super) unsafe fn apply_narrow<const ENCRYPT: bool>(with: Narrow, keys: &Keys, work: Work) {
    // SAFETY: the caller's.
    unsafe { apply::<ENCRYPT, _>(with, keys, work) };
}

/// The same.
///
/// # Safety
/// `work` is of bytes that may be read and written.
#[inline(never)]
#[target_feature(enable = "aes,avx2,avx512f,avx512bw,vaes,vpclmulqdq")]
pub(super) unsafe fn apply_wide<const ENCRYPT: bool>(with: Wide, keys: &Keys, work: Work) {
    // SAFETY: the caller's.
    unsafe { apply::<ENCRYPT, _>(with, keys, work) };
}

/// # Safety
/// `work` is of bytes that may be read and written.
#[inline(always)]
unsafe fn apply<const ENCRYPT: bool, V: Vectors>(with: V, keys: &Keys, work: Work) {
    let Work { unit, first, from, to, length, is_far } = work;
    let (mut number, mut at) = (first, 0);
    while at + unit <= length {
        let tweaks = tweaks(with, black_box(&keys.tweak), number);
        number = number.wrapping_add(TOGETHER as u128);
        let group = ((length - at) / unit).min(TOGETHER);
        for tweak in tweaks.into_iter().take(group) {
            let mut powers = powers(with, tweak);
            for _ in 0..unit / stride::<V>() {
                if is_far && at + AHEAD < length {
                    let ciphertext = if ENCRYPT { to.cast_const() } else { from };
                    fetch::<V>(ciphertext.wrapping_add(at + AHEAD));
                }
                // For the compiler, the keys may be others each time: else it would put copies of all fifteen on the
                // stack before the loop. Reading them where they are is a third faster.
                let keys = black_box(keys);
                let round_keys = if ENCRYPT { &keys.data } else { &keys.inverse };
                // SAFETY: a stride lies before `length`, for a whole unit does.
                unsafe { apply_stride::<ENCRYPT, V>(with, round_keys, &powers, from.add(at), to.add(at)) };
                at += stride::<V>();
                // One by one: the compiler makes a loop, and memory, of `map`.
                let [a, b, c, d, e, f, g, h] = powers;
                let next = |power| with.times_x_to_eight_vectors(power);
                powers = [next(a), next(b), next(c), next(d), next(e), next(f), next(g), next(h)];
            }
        }
    }
    with.wipe();
}

/// Has the stride of ciphertext that begins there come to the cache.
#[inline(always)]
fn fetch<V: Vectors>(ciphertext: *const u8) {
    for line in (0..stride::<V>()).step_by(CACHE_LINE) {
        // SAFETY: a hint, which every x86-64 processor has, and which faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ciphertext.wrapping_add(line).cast()) };
    }
}

/// The tweaks of [`TOGETHER`] sectors from number `first`.
#[inline(always)]
fn tweaks<V: Vectors>(with: V, keys: &Schedule, first: u128) -> [__m128i; TOGETHER] {
    let mut tweaks = [no_block(); TOGETHER];
    let count = TOGETHER / V::BLOCKS;
    let mut vectors = [with.repeat(keys[0]); VECTORS];
    for (at, vector) in vectors[..count].iter_mut().enumerate() {
        let number = first.wrapping_add((at * V::BLOCKS) as u128);
        let numbers = with.words(|word| half(number.wrapping_add(word as u128 / 2), word % 2));
        *vector = with.xor(*vector, numbers);
    }
    for key in &keys[1..ROUND_KEYS - 1] {
        let key = with.repeat(*key);
        for vector in &mut vectors[..count] {
            *vector = with.round::<true>(*vector, key);
        }
    }
    let key = with.repeat(keys[ROUND_KEYS - 1]);
    for (vector, some) in vectors.into_iter().zip(tweaks.chunks_exact_mut(V::BLOCKS)) {
        let vector = with.last_round::<true>(vector, key);
        // SAFETY: as many blocks are borrowed as a vector has.
        unsafe { with.store(vector, some.as_mut_ptr().cast()) };
    }
    tweaks
}

fn no_block() -> __m128i {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _mm_setzero_si128() }
}

/// The first block of each vector.
const fn multiples<V: Vectors>() -> [usize; VECTORS] {
    let n = V::BLOCKS;
    [0, n, 2 * n, 3 * n, 4 * n, 5 * n, 6 * n, 7 * n]
}

/// Lower or upper half of a data unit's number.
#[allow(clippy::cast_possible_truncation, reason = "the other half")]
#[inline(always)]
fn half(number: u128, upper: usize) -> i64 {
    (number >> (64 * upper)) as i64
}

/// `tweak` times x^0, x^1 and so on: the tweaks of a sector's first blocks.
#[allow(clippy::cast_possible_wrap, reason = "31 at most")]
#[inline(always)]
fn powers<V: Vectors>(with: V, tweak: __m128i) -> [V::Vector; VECTORS] {
    // As constants: else the compiler leaves a loop.
    let firsts = const { multiples::<V>() };
    let mut powers = [with.repeat(tweak); VECTORS];
    for (power, first) in powers.iter_mut().zip(firsts) {
        let exponents = with.words(|word| (first + word / 2) as i64);
        *power = with.times_x_to(*power, exponents);
    }
    powers
}

/// Blocks of eight vectors, each between its tweak and its tweak.
///
/// # Safety
/// A [`stride`] may be read from `from` on and written from `to` on.
#[allow(clippy::needless_range_loop, reason = "three iterators zipped stay a loop, with branches")]
#[inline(always)]
unsafe fn apply_stride<const ENCRYPT: bool, V: Vectors>(
    with: V,
    keys: &Schedule,
    tweaks: &[V::Vector; VECTORS],
    from: *const u8,
    to: *mut u8,
) {
    let size = V::BLOCKS * 16;
    let mut blocks = [with.repeat(keys[0]); VECTORS];
    for i in 0..VECTORS {
        // SAFETY: a vector of the stride.
        let block = unsafe { with.load(from.add(size * i)) };
        blocks[i] = with.xor(blocks[i], with.xor(block, tweaks[i]));
    }
    for round in 1..ROUND_KEYS - 1 {
        let key = with.repeat(keys[round]);
        for block in &mut blocks {
            *block = with.round::<ENCRYPT>(*block, key);
        }
    }
    let key = with.repeat(keys[ROUND_KEYS - 1]);
    for i in 0..VECTORS {
        let block = with.last_round::<ENCRYPT>(blocks[i], with.xor(key, tweaks[i]));
        // SAFETY: a vector of the stride.
        unsafe { with.store(block, to.add(size * i)) };
    }
}
