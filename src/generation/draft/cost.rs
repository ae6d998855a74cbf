//! The cost of a step by its number of tokens, relative to a step of one token: from bytes and operations of the model, and
//! corrected by the times of steps. Pure arithmetic.

use crate::runtime::engine::EngineBase;
use models::hybrid::config::MixerKind;
use std::time::Duration;

/// Distinct experts of t tokens are about t^0.68 times those of one: measured on replies of the published model.
const DISTINCT_EXPERTS_POWER: f64 = 0.68;
/// Time of a token's products with weights that are in the cache, in parts of the time to read these from memory.
const PRODUCT: f64 = 0.2;
/// Time of a multiply-add of absorbed attention, in bytes read from memory in that time.
const ATTENTION_MAC_BYTES: f64 = 0.5;
/// Passes over the recurrent state of a step with a draft beyond those of one token: advancing it past accepted tokens.
const REPLAY: f64 = 1.0;
/// Weight of a new measurement.
const FRESH: f64 = 0.1;
/// Bounds of the correction, so that a disturbed measurement does not turn drafts off or on for good.
const CORRECTION: [f64; 2] = [0.25, 6.0];

/// The cost of steps on this machine.
#[derive(Clone, Debug)]
pub(super) struct StepCost {
    /// Bytes of weights that every step reads.
    dense: f64,
    /// Bytes of one token's experts, and experts of a layer per chosen one.
    experts: f64,
    spread: f64,
    /// Bytes of the recurrent state, read and written.
    state: f64,
    /// Work of attention per token and cached row, in bytes.
    row: f64,
    /// Bytes that a prediction of a further token reads: the block for it and the output matrix.
    block: f64,
    /// Factor on the cost of a prediction.
    block_correction: f64,
    /// Factor on the cost beyond one token.
    correction: f64,
    /// Time of a step of one token.
    single: Option<f64>,
}

impl StepCost {
    pub fn new(engine: &EngineBase) -> StepCost {
        let c = &engine.config;
        let (mut dense, mut experts, mut block) = (0.0, 0.0, 0.0);
        let block_prefix = format!("blk.{}.", c.layers.len());
        let tied = engine.file.tensor("output.weight").is_none();
        let share = c.moe.routing.top_k as f64 / c.moe.experts.max(1) as f64;
        for tensor in &engine.file.tensors {
            let name = tensor.name.as_str();
            let used = if name.contains("_exps.") { share } else { 1.0 };
            let bytes = tensor.bytes as f64 * used;
            match name {
                "token_embd.weight" if !tied => {}
                "token_embd.weight" | "output.weight" => (dense, block) = (dense + bytes, block + bytes),
                name if name.starts_with(&block_prefix) => block += bytes,
                name if name.contains("_exps.") => experts += bytes,
                _ => dense += bytes,
            }
        }
        let state = 2 * 4 * c.kda.heads * c.kda.head_dim * c.kda.head_dim * c.count(MixerKind::Kda);
        let macs = c.mla.heads * (c.cache_width() + c.mla.latent_dim) * c.count(MixerKind::Mla);
        StepCost {
            dense,
            experts,
            spread: 1.0 / share.max(1e-9),
            state: state as f64,
            row: ATTENTION_MAC_BYTES * macs as f64,
            block,
            block_correction: 1.0,
            correction: 1.0,
            single: None,
        }
    }

    /// Returns the time of a prediction of a further token, relative to a step of one token.
    pub fn of_prediction(&self) -> f64 {
        self.block_correction * self.predicted_block()
    }

    fn predicted_block(&self) -> f64 {
        self.block / (self.dense + self.experts + self.state).max(1.0)
    }

    /// Records the time in which this many further tokens were predicted.
    pub fn record_predictions(&mut self, tokens: usize, took: Duration) {
        if let Some(single) = self.single.filter(|_| tokens > 0 && self.block > 0.0) {
            let found = took.as_secs_f64() / tokens as f64 / single.max(1e-9) / self.predicted_block();
            self.block_correction +=
                FRESH * (found.clamp(CORRECTION[0], CORRECTION[1]) - self.block_correction);
        }
    }

    /// Returns the time of a step of `tokens` tokens after `depth` others, relative to that of one token.
    pub fn of(&self, tokens: usize, depth: usize) -> f64 {
        1.0 + self.correction * (self.predicted(tokens, depth) - 1.0)
    }

    fn predicted(&self, tokens: usize, depth: usize) -> f64 {
        let bytes = |tokens: f64| {
            let distinct = tokens.powf(DISTINCT_EXPERTS_POWER).min(self.spread);
            let weights = self.dense + self.experts * distinct;
            let products = PRODUCT * ((tokens - 1.0) * self.dense + (tokens - distinct) * self.experts);
            let replay = if tokens > 1.0 { REPLAY * self.state } else { 0.0 };
            weights + products + self.state + replay + self.row * tokens * depth as f64
        };
        bytes(tokens as f64) / bytes(1.0).max(1.0)
    }

    /// Records the time of a step that only this sequence took part in.
    pub fn record(&mut self, tokens: usize, depth: usize, took: Duration) {
        let took = took.as_secs_f64();
        match self.single {
            _ if tokens == 1 => {
                // The minimum of recent steps: a pause is no property of the machine.
                self.single = Some(self.single.map_or(took, |old| took.min(old + FRESH * (took - old))));
            }
            Some(single) => {
                let beyond = (self.predicted(tokens, depth) - 1.0).max(0.05);
                let found = ((took / single.max(1e-9) - 1.0) / beyond).clamp(CORRECTION[0], CORRECTION[1]);
                self.correction += FRESH * (found - self.correction);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of the published model in about 4.5 bits per weight.
    const PUBLISHED: StepCost = StepCost {
        dense: 0.9e9,
        experts: 0.83e9,
        spread: 32.0,
        state: 84e6,
        row: ATTENTION_MAC_BYTES * (7 * 32 * (576 + 512)) as f64,
        block: 0.3e9,
        block_correction: 1.0,
        correction: 1.0,
        single: None,
    };

    #[test]
    fn a_step_of_eight_tokens_costs_less_than_eight_steps() {
        let at = |tokens, depth| PUBLISHED.of(tokens, depth);
        assert_eq!(at(1, 0), 1.0);
        assert!((2.5..5.0).contains(&at(8, 0)), "{}", at(8, 0));
        assert!(at(8, 32_768) > 1.5 * at(8, 0), "attention costs the same for each token");
        assert!((1..15).all(|n| at(n + 1, 100) > at(n, 100)));
    }

    #[test]
    fn measured_times_correct_the_prediction() {
        let mut cost = PUBLISHED.clone();
        let predicted = cost.of(8, 0);
        cost.record(8, 0, Duration::from_millis(900));
        assert_eq!(cost.of(8, 0), predicted, "no step of one token has been measured");
        let took = |times: f64| Duration::from_secs_f64(0.1 * times);
        (0..60).for_each(|_| cost.record(1, 0, took(1.0)));
        (0..60).for_each(|_| cost.record(8, 0, took(2.0 * predicted - 1.0)));
        assert!((cost.of(8, 0) - (2.0 * predicted - 1.0)).abs() < 0.1, "{}", cost.of(8, 0));
        (0..60).for_each(|_| cost.record(8, 0, took(1000.0)));
        assert!(cost.of(8, 0) < 1.0 + 6.1 * (predicted - 1.0), "an outlier is bounded");
        let predicted = cost.of_prediction();
        assert!((0.1..0.3).contains(&predicted), "{predicted}");
        (0..60).for_each(|_| cost.record_predictions(2, took(2.0 * 1.5 * predicted)));
        assert!((cost.of_prediction() - 1.5 * predicted).abs() < 0.01, "{}", cost.of_prediction());
    }
}
