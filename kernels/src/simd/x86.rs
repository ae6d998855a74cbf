//! Implements [`Isa`] on x86: AVX2 with FMA and F16C, and the same with the byte dot products of AVX-512 VNNI.
//!
//! Both use 256-bit registers, as a sub-block has 32 bytes. With AVX-512 VL there are 32 of them, and `vpdpbusd` replaces
//! three AVX2 instructions. `panel16` uses 512 bits. This file contains intrinsics only.

use super::amx::Amx;
use super::panel::NativePanel;
use super::x86_lookup::lookup_fours;
use super::{Fours, Indices, Isa, Kernel, x86_pairs, x86_shuffle};
use std::arch::x86_64::*;

/// Proof token of AVX2, FMA and F16C; with `VNNI` also of AVX-512 F, BW, VL and VNNI, and of AMX where it has that token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X86<const VNNI: bool>(Option<Amx>);

impl<const VNNI: bool> X86<VNNI> {
    pub(super) fn detect() -> Option<Self> {
        let plain = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        (plain && (wide || !VNNI)).then_some(X86(None))
    }
}

impl X86<true> {
    /// The same with AMX, where the machine has it.
    pub(super) fn with_amx(self) -> Option<Self> {
        Amx::detect().map(|amx| X86(Some(amx)))
    }
    pub(super) fn amx(self) -> Option<Amx> {
        self.0
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enter_avx2<K: Kernel>(isa: X86<false>, kernel: K) -> K::Output {
    kernel.run(isa)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn enter_avx512<K: Kernel>(isa: X86<true>, kernel: K) -> K::Output {
    kernel.run(isa)
}

impl<const VNNI: bool> Isa for X86<VNNI>
where
    X86<VNNI>: NativePanel,
{
    type Bytes = __m256i;
    type Ints = __m256i;
    type Floats = __m256;
    type Scales = __m256i;
    type Panel = <Self as NativePanel>::Panel;
    const MANY_REGISTERS: bool = VNNI;

    #[inline(always)]
    fn panel(self) -> Self::Panel {
        NativePanel::panel(self)
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features that the functions enable.
        unsafe { if VNNI { enter_avx512(X86(self.0), kernel) } else { enter_avx2(X86(None), kernel) } }
    }

    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_set1_ps(v) }
    }
    #[inline(always)]
    fn load(self, v: &[u8; 32]) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 32 bytes of v at any alignment.
        unsafe { _mm256_loadu_ps(v.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_floats(self, v: &[f32; 8]) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 32 bytes of v at any alignment.
        unsafe { _mm256_loadu_ps(v.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m256, out: &mut [f32; 8]) {
        // SAFETY: the token proves AVX2, FMA and F16C; storeu writes the 32 bytes of out at any alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn select(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn reduce_add(self, v: __m256) -> f32 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8; 16]) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 16 bytes of v at any alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(v.as_ptr().cast())) }
    }
    #[inline(always)]
    fn gather_f16(self, v: [[u8; 2]; 8]) -> __m256 {
        let [a, b, c, d, e, f, g, h] = v.map(i16::from_le_bytes);
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h)) }
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8; 16]) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 16 bytes of v at any alignment.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(v.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn splat_f16(self, v: [u8; 2]) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(v))) }
    }
    #[inline(always)]
    fn f16(self, v: [u8; 2]) -> f32 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(v) as i32))) }
    }
    #[inline(always)]
    fn zeros(self) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    fn load_ints(self, v: &[i32; 8]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 32 bytes of v at any alignment.
        unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_ints(self, v: __m256i, out: &mut [i32; 8]) {
        // SAFETY: the token proves AVX2, FMA and F16C; storeu writes the 32 bytes of out at any alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn set_lane0(self, v: i32) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_zextsi128_si256(_mm_cvtsi32_si128(v)) }
    }
    #[inline(always)]
    fn add_ints(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn shl_ints<const BY: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_slli_epi32::<BY>(a) }
    }
    #[inline(always)]
    fn sub_ints(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn max_ints(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_max_epi32(a, b) }
    }
    #[inline(always)]
    fn largest(self, v: __m256i) -> i32 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        }
    }
    #[inline(always)]
    fn floats(self, v: __m256i) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn round(self, v: __m256) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_cvtps_epi32(v) }
    }
    #[inline(always)]
    fn magnitude(self, v: __m256) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(i32::MAX)) }
    }
    #[inline(always)]
    fn reduce_add_i32(self, v: __m256i) -> i32 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        }
    }
    #[inline(always)]
    fn reduce_add_each(self, v: [__m256i; 8]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let [a, b, c, d, e, f, g, h] = v;
            let pairs = |a, b| {
                _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)) // a0+a2 b0+b2 a1+a3 b1+b3
            };
            let fours = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
            let low = fours(pairs(a, b), pairs(c, d));
            let high = fours(pairs(e, f), pairs(g, h));
            _mm256_add_epi32(
                _mm256_permute2x128_si256::<0x20>(low, high),
                _mm256_permute2x128_si256::<0x31>(low, high),
            )
        }
    }
    #[inline(always)]
    fn splat_int(self, v: i32) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_set1_epi32(v) }
    }
    #[inline(always)]
    fn pair(self, low: __m256i, high: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_blend_epi16::<0b1010_1010>(low, _mm256_slli_epi32::<16>(high)) }
    }
    #[inline(always)]
    fn mul_ints(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m256i, w: __m256i, x: [u8; 4]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(w, _mm256_set1_epi32(i32::from_le_bytes(x)))) }
    }
    #[inline(always)]
    fn dot_sums_8(self, m: [u8; 8], sums: &[u8; 32]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 32 bytes of sums at any alignment.
        unsafe {
            let m = _mm_cvtsi64_si128(i64::from_le_bytes(m));
            let m = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(m, m));
            _mm256_madd_epi16(m, _mm256_loadu_si256(sums.as_ptr().cast()))
        }
    }
    #[inline(always)]
    fn dot_sums_16(self, s: [u8; 16], sums: &[u8; 32]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 16 and the 32 bytes at any alignment.
        unsafe {
            let s = _mm256_cvtepi8_epi16(_mm_loadu_si128(s.as_ptr().cast()));
            _mm256_madd_epi16(s, _mm256_loadu_si256(sums.as_ptr().cast()))
        }
    }
    #[inline(always)]
    fn pack_i8(self, v: [__m256i; 4]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            // Packing works within 128-bit halves: four bytes of v0, v1, v2, v3, then the same of the upper halves.
            let pairs = [_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3])];
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_permutevar8x32_epi32(_mm256_packs_epi16(pairs[0], pairs[1]), order)
        }
    }
    #[inline(always)]
    fn prefetch_l1<V>(self, v: &V, bytes_after: usize) {
        let start = std::ptr::from_ref(v).cast::<i8>().wrapping_add(bytes_after);
        for line in (0..size_of::<V>()).step_by(64) {
            // SAFETY: a prefetch is a hint that may have any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line)) }
        }
    }
    #[inline(always)]
    fn prefetch_l2<V>(self, v: &V, bytes_after: usize) {
        let start = std::ptr::from_ref(v).cast::<i8>().wrapping_add(bytes_after);
        for line in (0..size_of::<V>()).step_by(64) {
            // SAFETY: a prefetch is a hint that may have any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(line)) }
        }
    }
    #[inline(always)]
    fn bytes(self, v: &[u8; 32]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 32 bytes of v at any alignment.
        unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m256i, out: &mut [u8; 32]) {
        // SAFETY: the token proves AVX2, FMA and F16C; storeu writes the 32 bytes of out at any alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn splat_byte(self, v: u8) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_set1_epi8(v.cast_signed()) }
    }
    #[inline(always)]
    fn set_u64(self, v: [u64; 4]) -> __m256i {
        let [a, b, c, d] = v;
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_setr_epi64x(a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed()) }
    }
    #[inline(always)]
    fn lookup_fours<const N: usize>(self, grid: &Fours<N>, numbers: &[Indices<N>; 4]) -> [__m256i; 8] {
        lookup_fours(self, grid, numbers)
    }
    #[inline(always)]
    fn words(self, v: &[u8; 16]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 16 bytes of v at any alignment.
        unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(v.as_ptr().cast())) }
    }
    #[inline(always)]
    fn mul_words(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_mullo_epi16(a, b) }
    }
    #[inline(always)]
    fn upper_bytes(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            // Packing works within 128-bit halves.
            let v = _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
            _mm256_permute4x64_epi64::<0b11_01_10_00>(v)
        }
    }
    #[inline(always)]
    fn odd_fours(self, v: &[u8; 64]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the two halves of v at any alignment.
        unsafe {
            let (a, b) = (_mm256_loadu_ps(v.as_ptr().cast()), _mm256_loadu_ps(v.as_ptr().add(32).cast()));
            let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            _mm256_permute4x64_epi64::<0b11_01_10_00>(odd)
        }
    }
    #[inline(always)]
    fn sevens(self, v: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let byte = |v, b: i32| _mm256_and_si256(v, _mm256_set1_epi32(127 << (8 * b)));
            let low = _mm256_or_si256(byte(v, 0), byte(_mm256_slli_epi32::<1>(v), 1));
            let high =
                _mm256_or_si256(byte(_mm256_slli_epi32::<2>(v), 2), byte(_mm256_slli_epi32::<3>(v), 3));
            _mm256_or_si256(low, high)
        }
    }
    #[inline(always)]
    fn broadcast_u32(self, v: [u8; 4]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_set1_epi32(i32::from_le_bytes(v)) }
    }
    #[inline(always)]
    fn interleave(self, rows: [&[u8; 32]; 4]) -> [__m256i; 4] {
        x86_shuffle::interleave(self, rows)
    }
    #[inline(always)]
    fn transpose_8x8(self, rows: [&[u8; 32]; 8]) -> [__m256i; 8] {
        x86_shuffle::transpose_8x8(self, rows)
    }
    #[inline(always)]
    fn as_floats(self, v: __m256i) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_castsi256_ps(v) }
    }
    #[inline(always)]
    fn unsigned_byte(self, v: __m256i, at: usize) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let lowest = _mm256_srlv_epi32(v, _mm256_set1_epi32(8 * at as i32));
            _mm256_and_si256(lowest, _mm256_set1_epi32(0xff))
        }
    }
    #[inline(always)]
    fn signed_byte(self, v: __m256i, at: usize) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_srai_epi32::<24>(_mm256_sllv_epi32(v, _mm256_set1_epi32(24 - 8 * at as i32))) }
    }
    #[inline(always)]
    fn half(self, v: __m256i, at: usize) -> __m256 {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let lowest = _mm256_srlv_epi32(v, _mm256_set1_epi32(16 * at as i32));
            let halves = _mm256_and_si256(lowest, _mm256_set1_epi32(0xffff));
            let packed = _mm256_packus_epi32(halves, halves);
            _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(packed)))
        }
    }
    #[inline(always)]
    fn nibbles(self, v: &[u8; 16]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 16 bytes of v at any alignment.
        unsafe {
            let v = _mm_loadu_si128(v.as_ptr().cast());
            _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(v), v), _mm256_set1_epi8(15))
        }
    }
    #[inline(always)]
    fn twice(self, v: &[u8; 16]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 16 bytes of v at any alignment.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(v.as_ptr().cast())) }
    }
    #[inline(always)]
    fn mask(self, v: [u8; 4]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            // Byte i gets byte i / 8 of v, of which it keeps bit i % 8.
            let spread =
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let v = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(v)), spread);
            _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit)
        }
    }
    #[inline(always)]
    fn negate_bits(self, v: __m256i, bits: [u8; 4]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C, and with VNNI also AVX-512 BW and VL.
        unsafe {
            if VNNI {
                return _mm256_mask_sub_epi8(v, u32::from_le_bytes(bits), _mm256_setzero_si256(), v);
            }
            let mask = self.mask(bits);
            _mm256_sub_epi8(_mm256_xor_si256(v, mask), mask)
        }
    }
    #[inline(always)]
    fn add_bytes(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_add_epi8(a, b) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn shr<const BY: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            _mm256_and_si256(_mm256_srli_epi16::<BY>(a), _mm256_set1_epi8((0xff_u8 >> BY).cast_signed()))
        }
    }
    #[inline(always)]
    fn shl<const BY: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            _mm256_and_si256(_mm256_slli_epi16::<BY>(a), _mm256_set1_epi8((0xff_u8 << BY).cast_signed()))
        }
    }
    #[inline(always)]
    fn table_lookup(self, table: &[i8; 16], index: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 16 bytes of table at any alignment.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, index)
        }
    }
    #[inline(always)]
    fn dot(self, acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C, and with VNNI also AVX-512 BW, VL and VNNI.
        unsafe {
            if VNNI {
                return _mm256_dpbusd_epi32(acc, w, x);
            }
            // No saturation: two products of at most 128 * 127 fit 16 bits.
            let pairs = _mm256_maddubs_epi16(w, x);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    fn dot_signed(self, acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { self.dot(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) }
    }
    #[inline(always)]
    fn add_scaled_dots<const T: usize>(
        self,
        totals: [__m256i; T],
        w: &[__m256i],
        max_quant: u8,
        x: [&[[u8; 4]]; T],
        scale: __m256i,
    ) -> [__m256i; T] {
        x86_pairs::add_scaled_dots(self, totals, w, max_quant, x, scale)
    }
    #[inline(always)]
    fn scales_16(self, s: [u8; 16]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 16 bytes of s at any alignment.
        unsafe {
            // Even scales to the lower half of the register, odd ones to the upper.
            let order = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
            _mm256_cvtepi8_epi16(_mm_shuffle_epi8(_mm_loadu_si128(s.as_ptr().cast()), order))
        }
    }
    #[inline(always)]
    fn scales_8(self, s: [u8; 8]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let s = _mm_cvtsi64_si128(i64::from_le_bytes(s));
            _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(s, s))
        }
    }
    #[inline(always)]
    fn scales_of_halves(self, first: [u8; 8], second: [u8; 8]) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe {
            let first = _mm_cvtsi64_si128(i64::from_le_bytes(first));
            let second = _mm_cvtsi64_si128(i64::from_le_bytes(second));
            _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(first, second))
        }
    }
    #[inline(always)]
    fn dot_scaled(self, acc: __m256i, w: __m256i, x: __m256i, s: __m256i, j: usize) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C, and with VNNI also AVX-512 BW, VL and VNNI.
        unsafe {
            // Scale j of each half, eight times; no saturation, as in dot.
            let s = _mm256_shuffle_epi8(s, _mm256_set1_epi16(0x0100 + 0x0202 * j as i16));
            let pairs = _mm256_maddubs_epi16(w, x);
            if VNNI {
                return _mm256_dpwssd_epi32(acc, pairs, s);
            }
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, s))
        }
    }
    #[inline(always)]
    fn dot_signed_scaled(self, acc: __m256i, w: __m256i, x: __m256i, s: __m256i, j: usize) -> __m256i {
        // SAFETY: the token proves AVX2, FMA and F16C.
        unsafe { self.dot_scaled(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w), s, j) }
    }
}
