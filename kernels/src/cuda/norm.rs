//! Describes to kernels the norm that a product's last block computes (kernels/cuda/norm.cuh).
//!
//! Next: `mixed`.

use super::driver::Address;
use bytemuck::{Pod, Zeroable};

/// Shared memory of a block that computes a norm: a flag and the scratch of a sum.
const NORM_SHARED: usize = 4 * (1 + 33);

/// The norm after a product, as kernels take it; all zero where there is none.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct NormAfter {
    w: Address,
    h: Address,
    levels: [Address; 2],
    count: Address,
    eps: f32,
    unused: i32,
}

impl NormAfter {
    /// A norm with weight and result, its quantized values and their scales, and counters of finished blocks.
    pub(super) fn new([w, h]: [Address; 2], levels: [Address; 2], count: Address, eps: f32) -> NormAfter {
        NormAfter { w, h, levels, count, eps, unused: 0 }
    }

    /// No norm follows: all zero.
    pub(super) const NONE: NormAfter =
        NormAfter { w: 0, h: 0, levels: [0; 2], count: 0, eps: 0.0, unused: 0 };

    /// Shared memory that a block needs for the norm, in bytes.
    pub(super) fn shared(&self) -> usize {
        if self.w == 0 { 0 } else { NORM_SHARED }
    }
}
