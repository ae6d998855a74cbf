//! What x86 does with whole super-blocks: two sub-blocks a register where there is AVX-512, one where there is not.
//!
//! The two halves of a 512-bit sum are added as integers before anything is rounded, so both give the same bits.

use super::Parts;
use super::x86::X86;
use std::arch::x86_64::*;

/// The part of [`Isa`] that depends on the width of a register.
pub trait Width: Copy {
    /// See [`Isa::Levels`].
    type Unsigned: Copy;
    /// See [`Isa::SignedLevels`].
    type Signed: Copy;
    /// See [`Isa::TOKENS`].
    const SHARED: usize;

    /// See [`Isa::levels`].
    fn lay_out(self, q: [__m256i; 8], s: __m256i) -> Self::Unsigned;
    /// See [`Isa::products`].
    fn sum(self, w: &Self::Unsigned, x: &[[u8; 32]; 8]) -> __m256i;
    /// See [`Isa::signed_levels`].
    fn lay_out_signed(self, q: [__m256i; 8], s: __m256i) -> Self::Signed;
    /// See [`Isa::signed_products`].
    fn sum_signed(self, w: &Self::Signed, x: &[[u8; 32]; 8]) -> __m256i;
}

impl Width for X86<false> {
    type Unsigned = Parts<__m256i, __m256i>;
    type Signed = Parts<__m256i, __m256i>;
    const SHARED: usize = 4;

    #[inline(always)]
    fn lay_out(self, q: [__m256i; 8], s: __m256i) -> Self::Unsigned {
        Parts { q, s }
    }
    #[inline(always)]
    fn sum(self, w: &Self::Unsigned, x: &[[u8; 32]; 8]) -> __m256i {
        super::products(self, w, x)
    }
    #[inline(always)]
    fn lay_out_signed(self, q: [__m256i; 8], s: __m256i) -> Self::Signed {
        Parts { q, s }
    }
    #[inline(always)]
    fn sum_signed(self, w: &Self::Signed, x: &[[u8; 32]; 8]) -> __m256i {
        super::signed_products(self, w, x)
    }
}

/// Sub-blocks 2p and 2p + 1 of register p, and their scales, one for each pair of bytes.
#[derive(Clone, Copy)]
pub struct Pairs {
    q: [__m512i; 4],
    s: [__m512i; 4],
}

/// Magnitudes of signed levels, and where they are negative.
#[derive(Clone, Copy)]
pub struct SignedPairs {
    pairs: Pairs,
    negative: [__mmask64; 4],
}

impl Width for X86<true> {
    type Unsigned = Pairs;
    type Signed = SignedPairs;
    const SHARED: usize = 8;

    #[inline(always)]
    fn lay_out(self, q: [__m256i; 8], s: __m256i) -> Pairs {
        // SAFETY: the token proves AVX-512 F, BW and VNNI.
        unsafe {
            // s has the scales of the sub-blocks' first halves in lanes 0..8, of their second halves in 8..16.
            let first = _mm512_inserti64x4::<1>(
                _mm512_castsi256_si512(_mm256_inserti128_si256::<1>(
                    _mm256_setzero_si256(),
                    _mm_set1_epi16(8),
                )),
                _mm256_inserti128_si256::<1>(_mm256_set1_epi16(1), _mm_set1_epi16(9)),
            );
            let scales = _mm512_castsi256_si512(s);
            let mut out = Pairs { q: [scales; 4], s: [scales; 4] };
            for p in 0..4 {
                out.q[p] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(q[2 * p]), q[2 * p + 1]);
                let index = _mm512_add_epi16(first, _mm512_set1_epi16(2 * p as i16));
                out.s[p] = _mm512_permutexvar_epi16(index, scales);
            }
            out
        }
    }

    #[inline(always)]
    fn sum(self, w: &Pairs, x: &[[u8; 32]; 8]) -> __m256i {
        // SAFETY: the token proves AVX-512 F, BW and VNNI; loadu reads 64 of the 256 bytes of x.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); 2];
            for p in 0..4 {
                let x = _mm512_loadu_si512(x[2 * p..2 * p + 2].as_ptr().cast());
                let pairs = _mm512_maddubs_epi16(w.q[p], x);
                sums[p % 2] = _mm512_dpwssd_epi32(sums[p % 2], pairs, w.s[p]);
            }
            halves(_mm512_add_epi32(sums[0], sums[1]))
        }
    }

    #[inline(always)]
    fn lay_out_signed(self, q: [__m256i; 8], s: __m256i) -> SignedPairs {
        let mut pairs = self.lay_out(q, s);
        let mut negative = [0; 4];
        for (negative, q) in negative.iter_mut().zip(&mut pairs.q) {
            // SAFETY: the token proves AVX-512 F and BW.
            unsafe {
                *negative = _mm512_movepi8_mask(*q);
                *q = _mm512_abs_epi8(*q);
            }
        }
        SignedPairs { pairs, negative }
    }

    #[inline(always)]
    fn sum_signed(self, w: &SignedPairs, x: &[[u8; 32]; 8]) -> __m256i {
        // SAFETY: the token proves AVX-512 F, BW and VNNI; loadu reads 64 of the 256 bytes of x.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); 2];
            for p in 0..4 {
                let x = _mm512_loadu_si512(x[2 * p..2 * p + 2].as_ptr().cast());
                let x = _mm512_mask_sub_epi8(x, w.negative[p], _mm512_setzero_si512(), x);
                let pairs = _mm512_maddubs_epi16(w.pairs.q[p], x);
                sums[p % 2] = _mm512_dpwssd_epi32(sums[p % 2], pairs, w.pairs.s[p]);
            }
            halves(_mm512_add_epi32(sums[0], sums[1]))
        }
    }
}

/// The lower half plus the upper.
#[inline(always)]
unsafe fn halves(v: __m512i) -> __m256i {
    // SAFETY: the caller has AVX-512 F.
    unsafe { _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v)) }
}
