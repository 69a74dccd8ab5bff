//! What [`super::sectors`] asks of vectors, and what the processor's instructions for two widths make of it.
//!
//! Each function is one instruction or a few, and has to be inlined where these are allowed.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128, _mm256_aesenc_epi128,
    _mm256_aesenclast_epi128, _mm256_broadcastsi128_si256, _mm256_clmulepi64_epi128, _mm256_loadu_si256,
    _mm256_set_epi64x, _mm256_set1_epi64x, _mm256_slli_si256, _mm256_sllv_epi64, _mm256_srli_si256,
    _mm256_srlv_epi64, _mm256_storeu_si256, _mm256_sub_epi64, _mm256_xor_si256, _mm256_zeroall,
    _mm512_aesdec_epi128, _mm512_aesdeclast_epi128, _mm512_aesenc_epi128, _mm512_aesenclast_epi128,
    _mm512_broadcast_i32x4, _mm512_bslli_epi128, _mm512_bsrli_epi128, _mm512_clmulepi64_epi128,
    _mm512_loadu_si512, _mm512_set_epi64, _mm512_set1_epi64, _mm512_sllv_epi64, _mm512_srlv_epi64,
    _mm512_storeu_si512, _mm512_sub_epi64, _mm512_xor_si512,
};
use std::array;

/// x^128 is x^7 + x^2 + x + 1 (IEEE 1619-2018, 5.2).
const POLYNOMIAL: i64 = 0x87;

/// A width. A value of it exists only where the processor has the instructions for it.
pub(super) trait Vectors: Copy {
    type Vector: Copy;

    /// Of 16 bytes, in a vector.
    const BLOCKS: usize = size_of::<Self::Vector>() / 16;

    /// The same block everywhere.
    fn repeat(self, block: __m128i) -> Self::Vector;

    /// 64-bit words, the first of the first block first.
    fn words(self, word: impl Fn(usize) -> i64) -> Self::Vector;

    fn xor(self, one: Self::Vector, other: Self::Vector) -> Self::Vector;

    /// A round of AES, but the last one (FIPS 197, 5.1 and 5.3.5).
    fn round<const ENCRYPT: bool>(self, state: Self::Vector, key: Self::Vector) -> Self::Vector;

    fn last_round<const ENCRYPT: bool>(self, state: Self::Vector, key: Self::Vector) -> Self::Vector;

    /// Times x to the power that `power` has in each half of each block, 0 to 63.
    fn times_x_to(self, tweak: Self::Vector, power: Self::Vector) -> Self::Vector;

    /// Times x to the power of eight vectors' blocks: a shift by a few bytes, and what falls out, times the
    /// polynomial, comes back.
    fn times_x_to_eight_vectors(self, tweak: Self::Vector) -> Self::Vector;

    /// # Safety
    /// As many bytes as a vector has may be read from `from` on. They need no alignment.
    unsafe fn load(self, from: *const u8) -> Self::Vector;

    /// # Safety
    /// As many bytes as a vector has may be written from `to` on. They need no alignment.
    unsafe fn store(self, vector: Self::Vector, to: *mut u8);

    /// Leaves nothing in the registers that vectors were in.
    fn wipe(self);
}

/// 256 bits: AMD's Zen 3, and Intel's without AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Narrow(());

/// 512 bits.
#[derive(Clone, Copy)]
pub(super) struct Wide(());

impl Narrow {
    pub(super) fn detect() -> Option<Self> {
        use std::arch::is_x86_feature_detected as has;
        (has!("aes") && has!("avx2") && has!("vaes") && has!("vpclmulqdq")).then_some(Self(()))
    }
}

impl Wide {
    pub(super) fn detect() -> Option<Self> {
        use std::arch::is_x86_feature_detected as has;
        Narrow::detect().filter(|_| has!("avx512f") && has!("avx512bw")).map(|_| Self(()))
    }
}

// Every function of these takes `self`, which says that the instructions are there.

impl Vectors for Narrow {
    type Vector = __m256i;

    #[inline(always)]
    fn repeat(self, block: __m128i) -> __m256i {
        // SAFETY: `self` was made where the processor has the instruction.
        unsafe { _mm256_broadcastsi128_si256(block) }
    }

    #[inline(always)]
    fn words(self, word: impl Fn(usize) -> i64) -> __m256i {
        let [a, b, c, d] = array::from_fn(word);
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe { _mm256_set_epi64x(d, c, b, a) }
    }

    #[inline(always)]
    fn xor(self, one: __m256i, other: __m256i) -> __m256i {
        // SAFETY: `self` was made where the processor has the instruction.
        unsafe { _mm256_xor_si256(one, other) }
    }

    #[inline(always)]
    fn round<const ENCRYPT: bool>(self, state: __m256i, key: __m256i) -> __m256i {
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe { if ENCRYPT { _mm256_aesenc_epi128(state, key) } else { _mm256_aesdec_epi128(state, key) } }
    }

    #[inline(always)]
    fn last_round<const ENCRYPT: bool>(self, state: __m256i, key: __m256i) -> __m256i {
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe {
            if ENCRYPT { _mm256_aesenclast_epi128(state, key) } else { _mm256_aesdeclast_epi128(state, key) }
        }
    }

    #[inline(always)]
    fn times_x_to(self, tweak: __m256i, power: __m256i) -> __m256i {
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe {
            let stays = _mm256_sllv_epi64(tweak, power);
            // A shift by 64 gives zero.
            let leaves = _mm256_srlv_epi64(tweak, _mm256_sub_epi64(_mm256_set1_epi64x(64), power));
            let reduced = _mm256_clmulepi64_epi128::<0x01>(leaves, _mm256_set1_epi64x(POLYNOMIAL));
            _mm256_xor_si256(_mm256_xor_si256(stays, _mm256_slli_si256::<8>(leaves)), reduced)
        }
    }

    #[inline(always)]
    fn times_x_to_eight_vectors(self, tweak: __m256i) -> __m256i {
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe {
            let leaves = _mm256_srli_si256::<14>(tweak);
            let reduced = _mm256_clmulepi64_epi128::<0x00>(leaves, _mm256_set1_epi64x(POLYNOMIAL));
            _mm256_xor_si256(_mm256_slli_si256::<2>(tweak), reduced)
        }
    }

    /// # Safety
    /// The trait's.
    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m256i {
        // SAFETY: the bytes are the caller's, the instruction is there since `self` is.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    /// # Safety
    /// The trait's.
    #[inline(always)]
    unsafe fn store(self, vector: __m256i, to: *mut u8) {
        // SAFETY: the bytes are the caller's, the instruction is there since `self` is.
        unsafe { _mm256_storeu_si256(to.cast(), vector) }
    }

    #[inline(always)]
    fn wipe(self) {
        // SAFETY: `self` was made where the processor has the instruction.
        unsafe { _mm256_zeroall() }
    }
}

impl Vectors for Wide {
    type Vector = __m512i;

    #[inline(always)]
    fn repeat(self, block: __m128i) -> __m512i {
        // SAFETY: `self` was made where the processor has the instruction.
        unsafe { _mm512_broadcast_i32x4(block) }
    }

    #[inline(always)]
    fn words(self, word: impl Fn(usize) -> i64) -> __m512i {
        let [a, b, c, d, e, f, g, h] = array::from_fn(word);
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe { _mm512_set_epi64(h, g, f, e, d, c, b, a) }
    }

    #[inline(always)]
    fn xor(self, one: __m512i, other: __m512i) -> __m512i {
        // SAFETY: `self` was made where the processor has the instruction.
        unsafe { _mm512_xor_si512(one, other) }
    }

    #[inline(always)]
    fn round<const ENCRYPT: bool>(self, state: __m512i, key: __m512i) -> __m512i {
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe { if ENCRYPT { _mm512_aesenc_epi128(state, key) } else { _mm512_aesdec_epi128(state, key) } }
    }

    #[inline(always)]
    fn last_round<const ENCRYPT: bool>(self, state: __m512i, key: __m512i) -> __m512i {
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe {
            if ENCRYPT { _mm512_aesenclast_epi128(state, key) } else { _mm512_aesdeclast_epi128(state, key) }
        }
    }

    #[inline(always)]
    fn times_x_to(self, tweak: __m512i, power: __m512i) -> __m512i {
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe {
            let stays = _mm512_sllv_epi64(tweak, power);
            // A shift by 64 gives zero.
            let leaves = _mm512_srlv_epi64(tweak, _mm512_sub_epi64(_mm512_set1_epi64(64), power));
            let reduced = _mm512_clmulepi64_epi128::<0x01>(leaves, _mm512_set1_epi64(POLYNOMIAL));
            _mm512_xor_si512(_mm512_xor_si512(stays, _mm512_bslli_epi128::<8>(leaves)), reduced)
        }
    }

    #[inline(always)]
    fn times_x_to_eight_vectors(self, tweak: __m512i) -> __m512i {
        // SAFETY: `self` was made where the processor has the instructions.
        unsafe {
            let leaves = _mm512_bsrli_epi128::<12>(tweak);
            let reduced = _mm512_clmulepi64_epi128::<0x00>(leaves, _mm512_set1_epi64(POLYNOMIAL));
            _mm512_xor_si512(_mm512_bslli_epi128::<4>(tweak), reduced)
        }
    }

    /// # Safety
    /// The trait's.
    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m512i {
        // SAFETY: the bytes are the caller's, the instruction is there since `self` is.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    /// # Safety
    /// The trait's.
    #[inline(always)]
    unsafe fn store(self, vector: __m512i, to: *mut u8) {
        // SAFETY: the bytes are the caller's, the instruction is there since `self` is.
        unsafe { _mm512_storeu_si512(to.cast(), vector) }
    }

    #[inline(always)]
    fn wipe(self) {
        // SAFETY: `self` was made where the processor has the instructions, which change these registers only.
        unsafe {
            // Sixteen registers more than the other instruction clears.
            asm!(
                "vpxord zmm16, zmm16, zmm16", "vpxord zmm17, zmm17, zmm17", "vpxord zmm18, zmm18, zmm18",
                "vpxord zmm19, zmm19, zmm19", "vpxord zmm20, zmm20, zmm20", "vpxord zmm21, zmm21, zmm21",
                "vpxord zmm22, zmm22, zmm22", "vpxord zmm23, zmm23, zmm23", "vpxord zmm24, zmm24, zmm24",
                "vpxord zmm25, zmm25, zmm25", "vpxord zmm26, zmm26, zmm26", "vpxord zmm27, zmm27, zmm27",
                "vpxord zmm28, zmm28, zmm28", "vpxord zmm29, zmm29, zmm29", "vpxord zmm30, zmm30, zmm30",
                "vpxord zmm31, zmm31, zmm31",
                out("xmm16") _, out("xmm17") _, out("xmm18") _, out("xmm19") _, out("xmm20") _, out("xmm21") _,
                out("xmm22") _, out("xmm23") _, out("xmm24") _, out("xmm25") _, out("xmm26") _, out("xmm27") _,
                out("xmm28") _, out("xmm29") _, out("xmm30") _, out("xmm31") _,
                options(nomem, nostack, preserves_flags),
            );
            _mm256_zeroall();
        }
    }
}
