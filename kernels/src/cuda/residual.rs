//! Launches products that end in the residual stream, with the norm that follows: x += y, h = RMSNorm(x).
//!
//! For a few tokens the product's last block computes the norm (kernels/cuda/norm.cuh); otherwise it is a launch of its own.
//! Next: `norm`.

use super::fused::FfnParts;
use super::matmul::{GEMV_MAX_TOKENS, Shape, Target};
use super::memory::Tensor;
use super::norm::NormAfter;
use super::{Cuda, Routed, Weight};
use crate::backend::{Backend, GatedMlp, Residual};
use crate::composed;

impl Cuda {
    /// Allocates h and fills the kernel's arguments; None for shapes whose norm is a launch of its own.
    fn norm_after(&self, to: &Residual<'_, Tensor, Weight>) -> Option<(Tensor, NormAfter)> {
        let [tokens, cols] = to.x.shape();
        if !(1..=GEMV_MAX_TOKENS).contains(&tokens) || !cols.is_multiple_of(32) || to.norm.cols != cols {
            return None;
        }
        let h = self.with_levels(tokens, cols, true);
        let (w, levels, count) = (to.norm.floats(), h.levels_at(), self.counts.at);
        let norm = NormAfter::new([w, h.at()], levels, count, to.eps);
        Some((h, norm))
    }

    pub(super) fn product_to_residual(
        &self,
        w: &Weight,
        x: &Tensor,
        to: Residual<'_, Tensor, Weight>,
    ) -> Tensor {
        let Some((h, norm)) = self.norm_after(&to).filter(|_| w.rows > 0) else {
            return composed::matmul_add_norm(self, w, x, to);
        };
        assert_eq!((w.count, w.cols), (1, x.cols), "a product: matrices, columns");
        assert_eq!(to.x.shape(), [x.rows, w.rows], "shapes of a sum");
        to.x.bytes.take();
        let shape = Shape { vectors: x.rows, groups: 1, x_div: 1, chosen: 0 };
        let target = Target { w, y: to.x.at(), y_stride: w.rows };
        let kernel = if x.rows > 1 { "matvec4" } else { "matvec1" };
        self.gemv(kernel, &[target], self.input(w, x), shape, norm);
        h
    }

    pub(super) fn ffn_to_residual(
        &self,
        w: &GatedMlp<'_, Weight>,
        x: &Tensor,
        mut to: Residual<'_, Tensor, Weight>,
    ) -> Tensor {
        match self.parts_to_residual(&FfnParts { experts: None, shared: Some(w) }, x, &mut to) {
            Some(h) => h,
            None => self.add_rms_norm(to.x, &self.ffn(w, x), to.norm, to.eps),
        }
    }

    pub(super) fn mixture_to_residual(
        &self,
        w: &GatedMlp<'_, Weight>,
        shared: Option<&GatedMlp<'_, Weight>>,
        x: &Tensor,
        routed: &Routed,
        mut to: Residual<'_, Tensor, Weight>,
    ) -> Tensor {
        if routed.top_k > 0 && [w.gate, w.up, w.down].iter().all(|w| w.host().is_none()) {
            let parts = FfnParts { experts: Some((w, routed.choice())), shared };
            if let Some(h) = self.parts_to_residual(&parts, x, &mut to) {
                return h;
            }
        }
        let y = self.chosen_experts(w, shared, x, routed);
        self.add_rms_norm(to.x, &y, to.norm, to.eps)
    }

    fn parts_to_residual(
        &self,
        parts: &FfnParts<'_>,
        x: &Tensor,
        to: &mut Residual<'_, Tensor, Weight>,
    ) -> Option<Tensor> {
        if !parts.is_fusable(x.rows) {
            return None;
        }
        let (h, norm) = self.norm_after(to)?;
        assert_eq!(to.x.shape(), x.shape(), "shapes of a sum");
        to.x.bytes.take();
        self.fused_ffn_to(parts, x, to.x.at(), norm);
        Some(h)
    }
}
