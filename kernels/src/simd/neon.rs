//! Implements [`Isa`] on 64-bit Arm: NEON, and the same with the byte dot products of the dotprod extension.
//!
//! A vector is two 128-bit registers. `sdot` replaces four plain NEON instructions, but both operands are signed, so an
//! unsigned quant of 128 would read as -128. Quants in 0..=128 are negated instead: -128..=0 fits a signed byte exactly,
//! and the sign cancels with that of the activations or the scale. Next: `neon_asm`, instructions without an intrinsic.

use super::neon_asm::{fcvtl, sdot};
use super::neon_lookup::{lookup_fours, mul_words, odd_fours, sevens, words};
use super::neon_shuffle::{interleave, transpose_8x8};
use super::{Fours, Indices, Isa, Kernel, Panel8};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Proof token of NEON; with `DOT` also of dotprod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    pub(super) fn detect() -> Option<Self> {
        let little = cfg!(target_endian = "little"); // lanes are read as bytes
        let plain = little && is_aarch64_feature_detected!("neon");
        (plain && (is_aarch64_feature_detected!("dotprod") || !DOT)).then_some(Neon(()))
    }

    /// -v of signed bytes; 0x80, of an unsigned 128 or a signed -128, stays 0x80.
    #[inline(always)]
    fn minus(self, v: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vsubq_u8(vdupq_n_u8(0), v.0), vsubq_u8(vdupq_n_u8(0), v.1)) }
    }

    /// `acc[l]` + the sum of `w[i] * x[i]` over the four bytes i of lane l, for w signed and x over -128.
    #[inline(always)]
    fn fours(self, acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves NEON, and with DOT also dotprod.
        unsafe {
            if DOT {
                return sdot(acc, w, x);
            }
            // No overflow: two products of at most 128 * 127 fit 16 bits.
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(w, x)))
        }
    }

    /// Lane l = `a[2l] * b[2l] + a[2l+1] * b[2l+1]`.
    #[inline(always)]
    fn pairs(self, a: int16x8_t, b: int16x8_t) -> int32x4_t {
        // SAFETY: the token proves NEON.
        unsafe { vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)) }
    }

    /// The lower 16 bits of each lane.
    #[inline(always)]
    fn lower_halves(self, v: int32x4x2_t) -> uint8x16_t {
        // SAFETY: the token proves NEON.
        unsafe { vreinterpretq_u8_s16(vuzp1q_s16(vreinterpretq_s16_s32(v.0), vreinterpretq_s16_s32(v.1))) }
    }
}

#[target_feature(enable = "neon")]
fn enter_neon<K: Kernel>(isa: Neon<false>, kernel: K) -> K::Output {
    kernel.run(isa)
}

#[target_feature(enable = "neon,dotprod")]
fn enter_dotprod<K: Kernel>(isa: Neon<true>, kernel: K) -> K::Output {
    kernel.run(isa)
}

impl<const DOT: bool> Isa for Neon<DOT> {
    type Bytes = uint8x16x2_t;
    type Ints = int32x4x2_t;
    type Floats = float32x4x2_t;
    /// 16 x i16: a multiply takes the scale from a lane.
    type Scales = [i32; 16];
    type Panel = Panel8<Self>;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn panel(self) -> Panel8<Self> {
        Panel8(self)
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features that the functions enable.
        unsafe { if DOT { enter_dotprod(Neon(()), kernel) } else { enter_neon(Neon(()), kernel) } }
    }

    #[inline(always)]
    fn splat(self, v: f32) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vdupq_n_f32(v), vdupq_n_f32(v)) }
    }
    #[inline(always)]
    fn load(self, v: &[u8; 32]) -> float32x4x2_t {
        let v = self.bytes(v);
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vreinterpretq_f32_u8(v.0), vreinterpretq_f32_u8(v.1)) }
    }
    #[inline(always)]
    fn load_floats(self, v: &[f32; 8]) -> float32x4x2_t {
        // SAFETY: the token proves NEON; v is eight readable floats.
        unsafe { float32x4x2_t(vld1q_f32(v.as_ptr()), vld1q_f32(v.as_ptr().add(4))) }
    }
    #[inline(always)]
    fn store(self, v: float32x4x2_t, out: &mut [f32; 8]) {
        // SAFETY: the token proves NEON; out is eight writable floats.
        unsafe { vst1q_f32_x2(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vsubq_f32(a.0, b.0), vsubq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vdivq_f32(a.0, b.0), vdivq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4x2_t, b: float32x4x2_t, c: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        self.select(b, a, a, b) // fmax gives NaN where one of the two is
    }
    #[inline(always)]
    fn min(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        self.select(a, b, a, b)
    }
    #[inline(always)]
    fn select(
        self,
        a: float32x4x2_t,
        b: float32x4x2_t,
        yes: float32x4x2_t,
        no: float32x4x2_t,
    ) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            float32x4x2_t(
                vbslq_f32(vcltq_f32(a.0, b.0), yes.0, no.0),
                vbslq_f32(vcltq_f32(a.1, b.1), yes.1, no.1),
            )
        }
    }
    #[inline(always)]
    fn reduce_add(self, v: float32x4x2_t) -> f32 {
        // SAFETY: the token proves NEON.
        unsafe {
            let four = vaddq_f32(v.0, v.1);
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8; 16]) -> float32x4x2_t {
        // SAFETY: the token proves NEON; v is sixteen readable bytes.
        unsafe { fcvtl(vld1q_u8(v.as_ptr())) }
    }
    #[inline(always)]
    fn gather_f16(self, v: [[u8; 2]; 8]) -> float32x4x2_t {
        self.load_f16(v.as_flattened().first_chunk().expect("sixteen bytes"))
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8; 16]) -> float32x4x2_t {
        // SAFETY: the token proves NEON; v is sixteen readable bytes.
        unsafe {
            let v = vreinterpretq_u16_u8(vld1q_u8(v.as_ptr()));
            let (low, high) = (vshll_n_u16::<16>(vget_low_u16(v)), vshll_high_n_u16::<16>(v));
            float32x4x2_t(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }
    #[inline(always)]
    fn splat_f16(self, v: [u8; 2]) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let four = fcvtl(vreinterpretq_u8_u16(vdupq_n_u16(u16::from_le_bytes(v)))).0;
            float32x4x2_t(four, four)
        }
    }
    #[inline(always)]
    fn f16(self, v: [u8; 2]) -> f32 {
        // SAFETY: the token proves NEON.
        unsafe { vgetq_lane_f32::<0>(self.splat_f16(v).0) }
    }
    #[inline(always)]
    fn zeros(self) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vdupq_n_s32(0), vdupq_n_s32(0)) }
    }
    #[inline(always)]
    fn load_ints(self, v: &[i32; 8]) -> int32x4x2_t {
        // SAFETY: the token proves NEON; v is eight readable integers.
        unsafe { int32x4x2_t(vld1q_s32(v.as_ptr()), vld1q_s32(v.as_ptr().add(4))) }
    }
    #[inline(always)]
    fn store_ints(self, v: int32x4x2_t, out: &mut [i32; 8]) {
        // SAFETY: the token proves NEON; out is eight writable integers.
        unsafe { vst1q_s32_x2(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn set_lane0(self, v: i32) -> int32x4x2_t {
        let zeros = self.zeros();
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vsetq_lane_s32::<0>(v, zeros.0), zeros.1) }
    }
    #[inline(always)]
    fn add_ints(self, a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vaddq_s32(a.0, b.0), vaddq_s32(a.1, b.1)) }
    }
    #[inline(always)]
    fn shl_ints<const BY: i32>(self, a: int32x4x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vshlq_n_s32::<BY>(a.0), vshlq_n_s32::<BY>(a.1)) }
    }
    #[inline(always)]
    fn sub_ints(self, a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vsubq_s32(a.0, b.0), vsubq_s32(a.1, b.1)) }
    }
    #[inline(always)]
    fn max_ints(self, a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vmaxq_s32(a.0, b.0), vmaxq_s32(a.1, b.1)) }
    }
    #[inline(always)]
    fn largest(self, v: int32x4x2_t) -> i32 {
        // SAFETY: the token proves NEON.
        unsafe { vmaxvq_s32(vmaxq_s32(v.0, v.1)) }
    }
    #[inline(always)]
    fn floats(self, v: int32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vcvtq_f32_s32(v.0), vcvtq_f32_s32(v.1)) }
    }
    #[inline(always)]
    fn round(self, v: float32x4x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            // The conversion gives i32::MAX above the range and 0 for NaN.
            let (limit, other) = (vdupq_n_f32(2_147_483_648.0), vdupq_n_s32(i32::MIN));
            int32x4x2_t(
                vbslq_s32(vcaltq_f32(v.0, limit), vcvtnq_s32_f32(v.0), other),
                vbslq_s32(vcaltq_f32(v.1, limit), vcvtnq_s32_f32(v.1), other),
            )
        }
    }
    #[inline(always)]
    fn magnitude(self, v: float32x4x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vreinterpretq_s32_f32(vabsq_f32(v.0)), vreinterpretq_s32_f32(vabsq_f32(v.1))) }
    }
    #[inline(always)]
    fn reduce_add_i32(self, v: int32x4x2_t) -> i32 {
        // SAFETY: the token proves NEON.
        unsafe { vaddvq_s32(vaddq_s32(v.0, v.1)) }
    }
    #[inline(always)]
    fn reduce_add_each(self, v: [int32x4x2_t; 8]) -> int32x4x2_t {
        // SAFETY: the token proves NEON; pairwise sums of registers.
        unsafe {
            let [a, b, c, d, e, f, g, h] = v.map(|v| vaddq_s32(v.0, v.1));
            let fours = |a, b, c, d| vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
            int32x4x2_t(fours(a, b, c, d), fours(e, f, g, h))
        }
    }
    #[inline(always)]
    fn splat_int(self, v: i32) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vdupq_n_s32(v), vdupq_n_s32(v)) }
    }
    #[inline(always)]
    fn pair(self, low: int32x4x2_t, high: int32x4x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON; a shift left that keeps the lowest bits of the other operand.
        unsafe { int32x4x2_t(vsliq_n_s32::<16>(low.0, high.0), vsliq_n_s32::<16>(low.1, high.1)) }
    }
    #[inline(always)]
    fn mul_ints(self, a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vmulq_s32(a.0, b.0), vmulq_s32(a.1, b.1)) }
    }
    #[inline(always)]
    fn dot_pairs(self, acc: int32x4x2_t, w: int32x4x2_t, x: [u8; 4]) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let x = vreinterpretq_s16_s32(vdupq_n_s32(i32::from_le_bytes(x)));
            let low = self.pairs(vreinterpretq_s16_s32(w.0), x);
            let high = self.pairs(vreinterpretq_s16_s32(w.1), x);
            int32x4x2_t(vaddq_s32(acc.0, low), vaddq_s32(acc.1, high))
        }
    }
    #[inline(always)]
    fn dot_sums_8(self, m: [u8; 8], sums: &[u8; 32]) -> int32x4x2_t {
        let sums = self.bytes(sums);
        // SAFETY: the token proves NEON; m is eight readable bytes.
        unsafe {
            let m = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(m.as_ptr())));
            int32x4x2_t(
                vmulq_s32(vmovl_s16(vget_low_s16(m)), vpaddlq_s16(vreinterpretq_s16_u8(sums.0))),
                vmulq_s32(vmovl_high_s16(m), vpaddlq_s16(vreinterpretq_s16_u8(sums.1))),
            )
        }
    }
    #[inline(always)]
    fn dot_sums_16(self, s: [u8; 16], sums: &[u8; 32]) -> int32x4x2_t {
        let sums = self.bytes(sums);
        // SAFETY: the token proves NEON; s is sixteen readable bytes.
        unsafe {
            let s = vreinterpretq_s8_u8(vld1q_u8(s.as_ptr()));
            int32x4x2_t(
                self.pairs(vmovl_s8(vget_low_s8(s)), vreinterpretq_s16_u8(sums.0)),
                self.pairs(vmovl_high_s8(s), vreinterpretq_s16_u8(sums.1)),
            )
        }
    }
    #[inline(always)]
    fn pack_i8(self, v: [int32x4x2_t; 4]) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            uint8x16x2_t(
                vuzp1q_u8(self.lower_halves(v[0]), self.lower_halves(v[1])),
                vuzp1q_u8(self.lower_halves(v[2]), self.lower_halves(v[3])),
            )
        }
    }
    #[inline(always)]
    fn prefetch_l1<V>(self, v: &V, bytes_after: usize) {
        let start = std::ptr::from_ref(v).addr().wrapping_add(bytes_after);
        for line in (0..size_of::<V>()).step_by(64) {
            let line = start.wrapping_add(line);
            // SAFETY: a prefetch is a hint that may have any address.
            unsafe {
                asm!("prfm pldl1keep, [{}]", in(reg) line, options(nomem, nostack, preserves_flags));
            }
        }
    }
    #[inline(always)]
    fn prefetch_l2<V>(self, v: &V, bytes_after: usize) {
        let start = std::ptr::from_ref(v).addr().wrapping_add(bytes_after);
        for line in (0..size_of::<V>()).step_by(64) {
            let line = start.wrapping_add(line);
            // SAFETY: a prefetch is a hint that may have any address.
            unsafe {
                asm!("prfm pldl2keep, [{}]", in(reg) line, options(nomem, nostack, preserves_flags));
            }
        }
    }
    #[inline(always)]
    fn bytes(self, v: &[u8; 32]) -> uint8x16x2_t {
        // SAFETY: the token proves NEON; v is 32 readable bytes.
        unsafe { uint8x16x2_t(vld1q_u8(v.as_ptr()), vld1q_u8(v.as_ptr().add(16))) }
    }
    #[inline(always)]
    fn store_bytes(self, v: uint8x16x2_t, out: &mut [u8; 32]) {
        // SAFETY: the token proves NEON; out is 32 writable bytes.
        unsafe { vst1q_u8_x2(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn splat_byte(self, v: u8) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vdupq_n_u8(v), vdupq_n_u8(v)) }
    }
    #[inline(always)]
    fn set_u64(self, v: [u64; 4]) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let two = |a, b| vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(a), vcreate_u64(b)));
            uint8x16x2_t(two(v[0], v[1]), two(v[2], v[3]))
        }
    }
    #[inline(always)]
    fn lookup_fours<const N: usize>(self, grid: &Fours<N>, numbers: &[Indices<N>; 4]) -> [uint8x16x2_t; 8] {
        lookup_fours(self, grid, numbers)
    }
    #[inline(always)]
    fn words(self, v: &[u8; 16]) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { words(v) }
    }
    #[inline(always)]
    fn mul_words(self, a: uint8x16x2_t, b: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(mul_words(a.0, b.0), mul_words(a.1, b.1)) }
    }
    #[inline(always)]
    fn upper_bytes(self, a: uint8x16x2_t, b: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vuzp2q_u8(a.0, a.1), vuzp2q_u8(b.0, b.1)) }
    }
    #[inline(always)]
    fn odd_fours(self, v: &[u8; 64]) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { odd_fours(v) }
    }
    #[inline(always)]
    fn sevens(self, v: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(sevens(v.0), sevens(v.1)) }
    }
    #[inline(always)]
    fn broadcast_u32(self, v: [u8; 4]) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let v = vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(v)));
            uint8x16x2_t(v, v)
        }
    }
    #[inline(always)]
    fn interleave(self, rows: [&[u8; 32]; 4]) -> [uint8x16x2_t; 4] {
        interleave(self, rows)
    }
    #[inline(always)]
    fn transpose_8x8(self, rows: [&[u8; 32]; 8]) -> [uint8x16x2_t; 8] {
        transpose_8x8(self, rows)
    }
    #[inline(always)]
    fn as_floats(self, v: uint8x16x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vreinterpretq_f32_u8(v.0), vreinterpretq_f32_u8(v.1)) }
    }
    #[inline(always)]
    fn unsigned_byte(self, v: uint8x16x2_t, at: usize) -> int32x4x2_t {
        // SAFETY: the token proves NEON; a shift by a negative number goes right.
        unsafe {
            let by = vdupq_n_s32(-8 * at as i32);
            let byte = |v| vandq_u32(vshlq_u32(vreinterpretq_u32_u8(v), by), vdupq_n_u32(0xff));
            int32x4x2_t(vreinterpretq_s32_u32(byte(v.0)), vreinterpretq_s32_u32(byte(v.1)))
        }
    }
    #[inline(always)]
    fn signed_byte(self, v: uint8x16x2_t, at: usize) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let by = vdupq_n_s32(24 - 8 * at as i32);
            let byte = |v| vshrq_n_s32::<24>(vshlq_s32(vreinterpretq_s32_u8(v), by));
            int32x4x2_t(byte(v.0), byte(v.1))
        }
    }
    #[inline(always)]
    fn half(self, v: uint8x16x2_t, at: usize) -> float32x4x2_t {
        // SAFETY: the token proves NEON; a shift by a negative number goes right.
        unsafe {
            let by = vdupq_n_s32(-16 * at as i32);
            let low = |v| vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_u8(v), by));
            fcvtl(self.lower_halves(int32x4x2_t(low(v.0), low(v.1))))
        }
    }
    #[inline(always)]
    fn nibbles(self, v: &[u8; 16]) -> uint8x16x2_t {
        let v = self.twice(v);
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vandq_u8(v.0, vdupq_n_u8(15)), vshrq_n_u8::<4>(v.1)) }
    }
    #[inline(always)]
    fn twice(self, v: &[u8; 16]) -> uint8x16x2_t {
        // SAFETY: the token proves NEON; v is sixteen readable bytes.
        let v = unsafe { vld1q_u8(v.as_ptr()) };
        uint8x16x2_t(v, v)
    }
    #[inline(always)]
    fn mask(self, v: [u8; 4]) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let low = vcombine_u8(vdup_n_u8(v[0]), vdup_n_u8(v[1]));
            let high = vcombine_u8(vdup_n_u8(v[2]), vdup_n_u8(v[3]));
            uint8x16x2_t(vtstq_u8(low, bit), vtstq_u8(high, bit))
        }
    }
    #[inline(always)]
    fn negate_bits(self, v: uint8x16x2_t, bits: [u8; 4]) -> uint8x16x2_t {
        let mask = self.mask(bits);
        // SAFETY: the token proves NEON.
        unsafe {
            let negated = |v, mask| vsubq_u8(veorq_u8(v, mask), mask);
            uint8x16x2_t(negated(v.0, mask.0), negated(v.1, mask.1))
        }
    }
    #[inline(always)]
    fn add_bytes(self, a: uint8x16x2_t, b: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vaddq_u8(a.0, b.0), vaddq_u8(a.1, b.1)) }
    }
    #[inline(always)]
    fn and(self, a: uint8x16x2_t, b: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vandq_u8(a.0, b.0), vandq_u8(a.1, b.1)) }
    }
    #[inline(always)]
    fn or(self, a: uint8x16x2_t, b: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vorrq_u8(a.0, b.0), vorrq_u8(a.1, b.1)) }
    }
    #[inline(always)]
    fn shr<const BY: i32>(self, a: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vshrq_n_u8::<BY>(a.0), vshrq_n_u8::<BY>(a.1)) }
    }
    #[inline(always)]
    fn shl<const BY: i32>(self, a: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON.
        unsafe { uint8x16x2_t(vshlq_n_u8::<BY>(a.0), vshlq_n_u8::<BY>(a.1)) }
    }
    #[inline(always)]
    fn table_lookup(self, table: &[i8; 16], index: uint8x16x2_t) -> uint8x16x2_t {
        // SAFETY: the token proves NEON; table is sixteen readable bytes.
        unsafe {
            let table = vld1q_u8(table.as_ptr().cast());
            uint8x16x2_t(vqtbl1q_u8(table, index.0), vqtbl1q_u8(table, index.1))
        }
    }
    #[inline(always)]
    fn dot(self, acc: int32x4x2_t, w: uint8x16x2_t, x: uint8x16x2_t) -> int32x4x2_t {
        // -w * -x: neither can overflow.
        self.dot_signed(acc, self.minus(w), self.minus(x))
    }
    #[inline(always)]
    fn dot_signed(self, acc: int32x4x2_t, w: uint8x16x2_t, x: uint8x16x2_t) -> int32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe {
            int32x4x2_t(
                self.fours(acc.0, vreinterpretq_s8_u8(w.0), vreinterpretq_s8_u8(x.0)),
                self.fours(acc.1, vreinterpretq_s8_u8(w.1), vreinterpretq_s8_u8(x.1)),
            )
        }
    }
    #[inline(always)]
    fn scales_16(self, s: [u8; 16]) -> [i32; 16] {
        let mut out = [0; 16];
        // SAFETY: the token proves NEON; s is sixteen readable bytes, out sixteen writable integers.
        unsafe {
            let s = vreinterpretq_s8_u8(vld1q_u8(s.as_ptr()));
            for (out, s) in out.as_chunks_mut::<8>().0.iter_mut().zip([vget_low_s8(s), vget_high_s8(s)]) {
                let s = vmovl_s8(s);
                vst1q_s32(out.as_mut_ptr(), vmovl_s16(vget_low_s16(s)));
                vst1q_s32(out.as_mut_ptr().add(4), vmovl_high_s16(s));
            }
        }
        out
    }
    #[inline(always)]
    fn scales_8(self, s: [u8; 8]) -> [i32; 16] {
        self.scales_of_halves(s, s)
    }
    #[inline(always)]
    fn scales_of_halves(self, first: [u8; 8], second: [u8; 8]) -> [i32; 16] {
        let mut s = [0; 16];
        // SAFETY: the token proves NEON; both are eight readable bytes, s is sixteen writable ones.
        unsafe {
            let (a, b) = (vld1_u8(first.as_ptr()), vld1_u8(second.as_ptr()));
            vst1q_u8(s.as_mut_ptr(), vcombine_u8(vzip1_u8(a, b), vzip2_u8(a, b)));
        }
        self.scales_16(s)
    }
    #[inline(always)]
    fn dot_scaled(
        self,
        acc: int32x4x2_t,
        w: uint8x16x2_t,
        x: uint8x16x2_t,
        s: [i32; 16],
        j: usize,
    ) -> int32x4x2_t {
        let sums = self.dot_signed(self.zeros(), self.minus(w), x);
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vmlsq_n_s32(acc.0, sums.0, s[2 * j]), vmlsq_n_s32(acc.1, sums.1, s[2 * j + 1])) }
    }
    #[inline(always)]
    fn dot_signed_scaled(
        self,
        acc: int32x4x2_t,
        w: uint8x16x2_t,
        x: uint8x16x2_t,
        s: [i32; 16],
        j: usize,
    ) -> int32x4x2_t {
        let sums = self.dot_signed(self.zeros(), w, x);
        // SAFETY: the token proves NEON.
        unsafe { int32x4x2_t(vmlaq_n_s32(acc.0, sums.0, s[2 * j]), vmlaq_n_s32(acc.1, sums.1, s[2 * j + 1])) }
    }
}
