//! Launches the routing of tokens to experts.
//!
//! The arithmetic is in kernels/cuda/route.cu. Next: `experts`.

use super::driver::Address;
use super::memory::{DeviceBuffer, Tensor};
use super::{Cuda, Grid, Weight, block};
use crate::backend::Routing;
use bytemuck::{Pod, Zeroable};

/// Largest number of experts: 32 per lane.
pub(super) const EXPERTS: usize = 1024;

/// The experts chosen for each row of a batch, and their weights, best first.
pub struct Routed {
    /// Number of rows of the routed batch, one per token.
    pub rows: usize,
    /// Number of experts chosen for each row.
    pub top_k: usize,
    pub(super) chosen: DeviceBuffer,
    pub(super) weights: DeviceBuffer,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Route {
    logits: Address,
    bias: Address,
    chosen: Address,
    weights: Address,
    experts: i32,
    top_k: i32,
    groups: i32,
    top_groups: i32,
    normalize: i32,
    scale: f32,
}

/// Stack indices and weights of the routed experts, `[rows * top_k]` on the device; -1 marks an empty slot.
#[derive(Clone, Copy)]
pub(super) struct ExpertChoice {
    pub(super) places: Address,
    pub(super) weights: Address,
    pub(super) rows: usize,
    pub(super) top_k: usize,
    /// Whether experts may be absent from the stacks.
    pub(super) partial: bool,
}

impl Routed {
    /// For complete stacks: the index is the expert.
    pub(super) fn choice(&self) -> ExpertChoice {
        let Routed { rows, top_k, chosen, weights } = self;
        ExpertChoice { places: chosen.at, weights: weights.at, rows: *rows, top_k: *top_k, partial: false }
    }
}

impl Cuda {
    /// Allocates the routing result and fills the kernel's arguments.
    pub(super) fn choice_of(&self, logits: &Tensor, bias: &Weight, how: Routing) -> (Routed, Route) {
        let (rows, experts, top_k) = (logits.rows, logits.cols, how.top_k);
        assert_eq!(experts, bias.cols, "experts: logits and bias");
        assert!(experts <= EXPERTS, "CUDA: expected at most {EXPERTS} experts, found {experts}");
        assert!(
            how.groups > 0 && experts.is_multiple_of(how.groups),
            "{experts} experts in {} groups",
            how.groups
        );
        assert!(how.top_groups <= how.groups, "{} of {} groups", how.top_groups, how.groups);
        let eligible = experts / how.groups * how.top_groups;
        assert!(top_k <= eligible, "{top_k} of {eligible} eligible experts");
        let [chosen, weights] = [(); 2].map(|()| self.buffers.bytes(4 * rows * top_k));
        let route = Route {
            logits: logits.at(),
            bias: bias.floats(),
            chosen: chosen.at,
            weights: weights.at,
            experts: experts as i32,
            top_k: top_k as i32,
            groups: how.groups as i32,
            top_groups: how.top_groups as i32,
            normalize: how.normalize.into(),
            scale: how.scale,
        };
        (Routed { rows, top_k, chosen, weights }, route)
    }

    pub(super) fn choose(&self, logits: &Tensor, bias: &Weight, how: Routing) -> Routed {
        let (routed, route) = self.choice_of(logits, bias, how);
        if routed.rows * routed.top_k > 0 {
            let shared = 4 * (2 * logits.cols + how.groups);
            let grid = Grid { blocks: [routed.rows, 1, 1], threads: 32, shared };
            self.driver.launch(["route", ""], grid, &[block(&route)]);
        }
        routed
    }
}
