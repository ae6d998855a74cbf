//! Wraps NEON instructions without a suitable intrinsic as inline assembly.

use std::arch::aarch64::*;
use std::arch::asm;

/// `acc[l]` + the sum of `w[i] * x[i]` over the four signed bytes i of lane l.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sdot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: dotprod is enabled; the instruction reads and writes registers only.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Eight binary16 as floats. The intrinsics ask for an extension that the instruction does not need.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fcvtl(v: uint8x16_t) -> float32x4x2_t {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: NEON is enabled; the instructions read and write registers only.
    unsafe {
        asm!("fcvtl {low:v}.4s, {v:v}.4h", low = out(vreg) low, v = in(vreg) v,
            options(pure, nomem, nostack, preserves_flags));
        asm!("fcvtl2 {high:v}.4s, {v:v}.8h", high = out(vreg) high, v = in(vreg) v,
            options(pure, nomem, nostack, preserves_flags));
    }
    float32x4x2_t(low, high)
}
