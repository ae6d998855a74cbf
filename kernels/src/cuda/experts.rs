//! Computes the routed experts of a batch: on the device, in RAM, or split between both.
//!
//! For layers whose experts stay in RAM, the GPU expert cache ([`super::expert_cache`]) holds the most used ones: the
//! device computes hits while the CPU computes misses, and the sums are added. Steps of many tokens upload the stacks
//! instead ([`super::staging`]). The cache contents depend on earlier requests, so results may differ by rounding from run
//! to run. Next: `expert_cache`.

use super::driver::Stream;
use super::expert_policy::distinct_misses;
use super::fused::FfnParts;
use super::graph::captured_ids;
use super::matmul::{GEMV_MAX_TOKENS, Shape, Target};
use super::memory::Tensor;
use super::norm::NormAfter;
use super::route::ExpertChoice;
use super::weight::WeightRef;
use super::{Cuda, Grid, Routed, Weight, arg};
use crate::backend::{Backend, GatedMlp};
use crate::cpu::NO_EXPERT;
use std::sync::atomic::Ordering;

impl Cuda {
    pub(super) fn chosen_experts(
        &self,
        w: &GatedMlp<'_, Weight>,
        shared: Option<&GatedMlp<'_, Weight>>,
        x: &Tensor,
        routed: &Routed,
    ) -> Tensor {
        let (n, hidden) = (w.gate.count, w.gate.rows);
        assert_eq!((w.up.count, w.up.rows, w.up.cols), (n, hidden, w.gate.cols), "shapes of gate and up");
        assert_eq!(
            (w.down.count, w.down.cols, w.gate.cols),
            (n, hidden, x.cols),
            "experts, hidden width, width"
        );
        assert_eq!(routed.rows, x.rows, "routed tokens");
        if x.rows * w.down.rows * routed.top_k == 0 {
            let zeros = self.buffers.tensor(x.rows, w.down.rows);
            self.driver.fill(zeros.at(), 0, 4 * zeros.len());
            return self.with_shared(zeros, shared, x);
        }
        if [w.gate, w.up, w.down].iter().any(|w| w.host().is_none()) {
            return self.experts_on_device(w, shared, x, routed.choice());
        }
        let mut y = self.buffers.tensor(x.rows, w.down.rows);
        if captured_ids().is_some() {
            self.defer_experts(w, shared, x, routed.choice(), &y);
        } else {
            self.experts_in_ram(w, shared, x, routed.choice(), &mut y);
        }
        y
    }

    /// Defers [`Cuda::experts_in_ram`] to the replays of the captured step.
    fn defer_experts(
        &self,
        w: &GatedMlp<'_, Weight>,
        shared: Option<&GatedMlp<'_, Weight>>,
        x: &Tensor,
        choice: ExpertChoice,
        y: &Tensor,
    ) {
        let downgrade = |w: &GatedMlp<'_, Weight>| ([w.gate, w.up, w.down].map(Weight::downgrade), w.limit);
        let (w, shared, x, y) = (downgrade(w), shared.map(downgrade), x.reserved(), y.reserved());
        self.defer(move |cuda| {
            let upgrade = |(w, limit): &([WeightRef; 3], f32)| (w.each_ref().map(WeightRef::upgrade), *limit);
            let (w, shared) = (upgrade(&w), shared.as_ref().map(upgrade));
            let shared = shared.as_ref().map(gated_mlp);
            // Copies, because they gain quantized values, which are of this replay only.
            cuda.experts_in_ram(&gated_mlp(&w), shared.as_ref(), &x.reserved(), choice, &mut y.reserved());
        });
    }

    /// Writes the sum of experts of stacks in RAM and of the shared expert to `y`.
    fn experts_in_ram(
        &self,
        w: &GatedMlp<'_, Weight>,
        shared: Option<&GatedMlp<'_, Weight>>,
        x: &Tensor,
        choice: ExpertChoice,
        y: &mut Tensor,
    ) {
        match self.experts_uploaded(w, x, choice) {
            Some(sum) => self.overwrite(y, &self.with_shared(sum, shared, x)),
            None => self.experts_split(w, shared, x, choice, y),
        }
    }

    /// Copies x to y, of its shape.
    fn overwrite(&self, y: &mut Tensor, x: &Tensor) {
        self.driver.copy(y.at(), x.at(), 4 * x.len());
    }

    /// y and the shared expert.
    fn with_shared(&self, mut y: Tensor, shared: Option<&GatedMlp<'_, Weight>>, x: &Tensor) -> Tensor {
        if let Some(shared) = shared {
            self.add(&mut y, &self.ffn(shared, x));
        }
        y
    }

    /// Computes experts of device stacks; slots of -1 are skipped.
    fn experts_on_device(
        &self,
        w: &GatedMlp<'_, Weight>,
        shared: Option<&GatedMlp<'_, Weight>>,
        x: &Tensor,
        choice: ExpertChoice,
    ) -> Tensor {
        let experts = Some((w, choice));
        if let Some(y) = self.fused_ffn(&FfnParts { experts, shared }, x) {
            return y;
        }
        if let Some(y) = self.fused_ffn(&FfnParts { experts, shared: None }, x) {
            return self.with_shared(y, shared, x);
        }
        let (n, ExpertChoice { rows, top_k, .. }) = (w.gate.count, choice);
        let shape = Shape { vectors: rows * top_k, groups: n, x_div: top_k, chosen: choice.places };
        let pairs = (rows > GEMV_MAX_TOKENS).then(|| self.pairs(choice, n));
        let inner = self.gate_and_up(w, x, shape, pairs.as_ref(), choice.partial);
        let out = self.buffers.tensor(shape.vectors, w.down.rows);
        let target = Target { w: w.down, y: out.at(), y_stride: w.down.rows };
        let (input, shape) = (self.input(w.down, &inner), Shape { x_div: 1, ..shape });
        match &pairs {
            Some(_) => self.gemm(target, input, shape, pairs.as_ref()),
            None => self.gemv("matvec1", &[target], input, shape, NormAfter::NONE),
        }
        self.with_shared(self.weighted_sum(&out, choice), shared, x)
    }

    /// Performs [`Cuda::experts_in_ram`] without uploading stacks: cache hits and the shared expert on the device, misses on
    /// the CPU in parallel. A token's activations cross the bus twice, 18 KB for the published model.
    fn experts_split(
        &self,
        w: &GatedMlp<'_, Weight>,
        shared: Option<&GatedMlp<'_, Weight>>,
        x: &Tensor,
        choice: ExpertChoice,
        y: &mut Tensor,
    ) {
        let n = choice.rows * choice.top_k;
        let (mut chosen, mut weights, mut rows) = (vec![0_u32; n], vec![0_f32; n], vec![0_f32; x.len()]);
        self.driver.downloads(&mut [
            (choice.places, bytemuck::cast_slice_mut(&mut chosen)),
            (choice.weights, bytemuck::cast_slice_mut(&mut weights)),
            (x.at(), bytemuck::cast_slice_mut(&mut rows)),
        ]);
        let mut layer = w.gate.slots().map(|slots| slots.layer());
        let places = match &mut layer {
            Some(layer) => layer.heat.places(&chosen, choice.rows),
            None => vec![-1; n],
        };
        let hits = places.iter().filter(|place| **place >= 0).count();
        let on_device = match layer.as_ref().filter(|_| hits > 0) {
            Some(layer) => {
                self.driver.after(Stream::Work, &layer.full);
                let places = self.buffers.upload(&places);
                let [gate, up, down] = [w.gate, w.up, w.down].map(Weight::cached_experts);
                let slots = GatedMlp { gate: &gate, up: &up, down: &down, limit: w.limit };
                Some(self.experts_on_device(
                    &slots,
                    shared,
                    x,
                    ExpertChoice { places: places.at, partial: hits < n, ..choice },
                ))
            }
            None => shared.map(|shared| self.ffn(shared, x)),
        };
        if hits < n {
            let absent: Vec<u32> = missing(&chosen, &places).collect();
            let host = self.host();
            let x = host.tensor(x.rows, x.cols, &rows);
            let [gate, up, down] = [w.gate, w.up, w.down].map(|w| w.host().expect("experts in RAM"));
            let w = GatedMlp { gate, up, down, limit: w.limit };
            let rest = host.experts(w, &x, &host.chosen(choice.top_k, &absent, &weights));
            self.driver.upload(y.at(), bytemuck::cast_slice(rest.values()));
            if let Some(sum) = on_device {
                self.add(y, &sum);
            }
        } else if let Some(sum) = on_device {
            self.overwrite(y, &sum);
        }
        if let Some(layer) = &mut layer {
            self.count_uses(hits, n);
            self.promote(w, layer, distinct_misses(&chosen, &places));
        }
    }

    fn count_uses(&self, hits: usize, lookups: usize) {
        self.uses[0].fetch_add(hits as u64, Ordering::Relaxed);
        self.uses[1].fetch_add(lookups as u64, Ordering::Relaxed);
    }

    /// The weighted sum of each token's expert outputs. `[tokens * top_k, dim] -> [tokens, dim]`
    pub(super) fn weighted_sum(&self, out: &Tensor, choice: ExpertChoice) -> Tensor {
        let (ExpertChoice { rows, top_k, .. }, cols) = (choice, out.cols);
        let y = self.buffers.tensor(rows, cols);
        let grid = Grid { blocks: [rows, cols.div_ceil(256), 1], threads: 256, shared: 0 };
        let [out, places, weights, y_at] = [out.at(), choice.places, choice.weights, y.at()].map(arg);
        let arguments = [out, places, weights, y_at, arg(top_k as i32), arg(cols as i32)];
        self.driver.launch(["weighted_sum", ""], grid, &arguments);
        y
    }
}

fn gated_mlp(([gate, up, down], limit): &([Weight; 3], f32)) -> GatedMlp<'_, Weight> {
    GatedMlp { gate, up, down, limit: *limit }
}

/// The routed experts that miss the cache; [`NO_EXPERT`] for hits.
fn missing(chosen: &[u32], places: &[i32]) -> impl Iterator<Item = u32> {
    chosen.iter().zip(places).map(|(e, place)| if *place < 0 { *e } else { NO_EXPERT })
}
