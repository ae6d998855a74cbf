//! Implements panels of sixteen rows in 512-bit registers; AVX2 machines use eight rows in 256 bits.
//!
//! `vpdpbusd` needs one unsigned operand, so signed quants (or the broadcast operand) are biased by 128; the kernel
//! subtracts the bias from the sums. This file contains intrinsics only.

use super::amx::Tiles;
use super::panel::{NativePanel, Panel8, PanelSimd};
use super::x86::X86;
use std::arch::x86_64::*;

impl NativePanel for X86<false> {
    type Panel = Panel8<Self>;

    #[inline(always)]
    fn panel(self) -> Panel8<Self> {
        Panel8(self)
    }
}

impl NativePanel for X86<true> {
    type Panel = Panel16;

    #[inline(always)]
    fn panel(self) -> Panel16 {
        Panel16(self)
    }
}

/// Sixteen rows. Holding one proves AVX-512 F, BW and VNNI.
#[derive(Clone, Copy)]
pub struct Panel16(X86<true>);

impl PanelSimd for Panel16 {
    const MR: usize = 16;
    const NR: usize = 8;
    const U8_BIAS: i32 = 128;
    const X_BIAS: u8 = 128;
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;
    type Matrix = Tiles;

    #[inline(always)]
    fn matrix(self, tokens: usize) -> Option<Tiles> {
        Some(Tiles::new(self.0.amx()?, tokens))
    }
    #[inline(always)]
    fn transpose(self, rows: &[&[u8; 32]; 16]) -> [__m512i; 8] {
        // SAFETY: the token proves AVX-512 F and BW; loadu reads the 32 bytes of a row at any alignment.
        unsafe {
            // Row r in the lower half, row 8 + r in the upper.
            let mut r = [_mm512_setzero_si512(); 8];
            for i in 0..8 {
                let low = _mm256_loadu_si256(rows[i].as_ptr().cast());
                let high = _mm256_loadu_si256(rows[8 + i].as_ptr().cast());
                r[i] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
            let mut twos = r;
            for i in 0..4 {
                twos[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]); // columns 0, 1 and 4, 5
                twos[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]); // 2, 3 and 6, 7
            }
            let mut fours = r;
            for i in 0..2 {
                for c in 0..2 {
                    let (a, b) = (twos[4 * i + c], twos[4 * i + c + 2]);
                    fours[4 * i + 2 * c] = _mm512_unpacklo_epi64(a, b);
                    fours[4 * i + 2 * c + 1] = _mm512_unpackhi_epi64(a, b);
                }
            }
            // Column c is in the even quarters, column 4 + c in the odd ones.
            let even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
            let odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
            let mut out = r;
            for c in 0..4 {
                out[c] = _mm512_permutex2var_epi64(fours[c], even, fours[4 + c]);
                out[4 + c] = _mm512_permutex2var_epi64(fours[c], odd, fours[4 + c]);
            }
            out
        }
    }
    #[inline(always)]
    fn splat_byte(self, v: u8) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_set1_epi8(v.cast_signed()) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn shr<const BY: i32>(self, a: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F and BW.
        unsafe {
            let shifted = _mm512_srl_epi16(a, _mm_cvtsi32_si128(BY));
            _mm512_and_si512(shifted, _mm512_set1_epi8((0xff_u8 >> BY).cast_signed()))
        }
    }
    #[inline(always)]
    fn shl<const BY: i32>(self, a: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F and BW.
        unsafe {
            let shifted = _mm512_sll_epi16(a, _mm_cvtsi32_si128(BY));
            _mm512_and_si512(shifted, _mm512_set1_epi8((0xff_u8 << BY).cast_signed()))
        }
    }
    #[inline(always)]
    fn table_lookup(self, table: &[i8; 16], index: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F and BW; loadu reads the 16 bytes of table at any alignment.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, index)
        }
    }
    #[inline(always)]
    fn signed(self, w: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    fn load_bytes(self, v: &[u8; 64]) -> __m512i {
        // SAFETY: the token proves AVX-512 F; loadu reads the 64 bytes of v at any alignment.
        unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m512i, out: &mut [u8; 64]) {
        // SAFETY: the token proves AVX-512 F; storeu writes the 64 bytes of out at any alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn load_ints(self, v: &[i32; 16]) -> __m512i {
        // SAFETY: the token proves AVX-512 F; loadu reads the 64 bytes of v at any alignment.
        unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
    }
    #[inline(always)]
    fn zeros(self) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn unsigned_byte(self, v: __m512i, at: usize) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe {
            let lowest = _mm512_srlv_epi32(v, _mm512_set1_epi32(8 * at as i32));
            _mm512_and_si512(lowest, _mm512_set1_epi32(0xff))
        }
    }
    #[inline(always)]
    fn signed_byte(self, v: __m512i, at: usize) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_srai_epi32::<24>(_mm512_sllv_epi32(v, _mm512_set1_epi32(24 - 8 * at as i32))) }
    }
    #[inline(always)]
    fn half(self, v: __m512i, at: usize) -> __m512 {
        // SAFETY: the token proves AVX-512 F.
        unsafe {
            let lowest = _mm512_srlv_epi32(v, _mm512_set1_epi32(16 * at as i32));
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(lowest))
        }
    }
    #[inline(always)]
    fn load(self, v: &[f32; 16]) -> __m512 {
        // SAFETY: the token proves AVX-512 F; loadu reads the 64 bytes of v at any alignment.
        unsafe { _mm512_loadu_ps(v.as_ptr()) }
    }
    #[inline(always)]
    fn gather_f16(self, v: [[u8; 2]; 16]) -> __m512 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = v.map(i16::from_le_bytes);
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_cvtph_ps(_mm256_setr_epi16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)) }
    }
    #[inline(always)]
    fn pair(self, low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F and BW.
        unsafe { _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high)) }
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, x: [u8; 4]) -> __m512i {
        // SAFETY: the token proves AVX-512 F and VNNI.
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(i32::from_le_bytes(x))) }
    }
    #[inline(always)]
    fn dot_signed(self, acc: __m512i, w: __m512i, x: [u8; 4]) -> __m512i {
        self.dot(acc, w, x)
    }
    #[inline(always)]
    fn dot_biased(self, acc: __m512i, w: __m512i, x: [u8; 4]) -> __m512i {
        // SAFETY: the token proves AVX-512 F and VNNI.
        unsafe { _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(i32::from_le_bytes(x)), w) }
    }
    #[inline(always)]
    fn dot_biased_each<const N: usize>(self, acc: [__m512i; N], w: __m512i, x: [[u8; 4]; N]) -> [__m512i; N] {
        std::array::from_fn(|n| self.dot_biased(acc[n], w, x[n]))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m512i, w: __m512i, x: [u8; 4]) -> __m512i {
        // SAFETY: the token proves AVX-512 F and VNNI.
        unsafe { _mm512_dpwssd_epi32(acc, w, _mm512_set1_epi32(i32::from_le_bytes(x))) }
    }
    #[inline(always)]
    fn mul_add(self, acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_add_epi32(acc, _mm512_mullo_epi32(a, b)) }
    }
    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn splat_int(self, v: i32) -> __m512i {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    fn floats(self, v: __m512i) -> __m512 {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; 16]) {
        // SAFETY: the token proves AVX-512 F; storeu writes the 64 bytes of out at any alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }
}
