//! Estimates the memory of a model beside its weights from its hyperparameters.

use kernels::quant::Format;
use models::hybrid::config::{Config, MixerKind};
use serde::Serialize;

/// Bytes of a state value, which is always f32.
const F32: u64 = 4;

/// The memory of a sequence beside the weights, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MemoryEstimate {
    /// KDA states S, independent of the context length.
    pub kda_state_bytes: u64,
    /// The past inputs of the short convolutions.
    pub conv_bytes: u64,
    /// KV caches of a token, as f16: all MLA layers, and the block that predicts further tokens.
    pub f16_bytes_per_token: u64,
    /// KV caches of a token, as q8_0.
    pub q8_0_bytes_per_token: u64,
    /// Estimated activations of a batch.
    pub workspace_bytes: u64,
}

impl MemoryEstimate {
    /// Estimates the memory of one sequence with batches of `batch` tokens.
    pub fn of(c: &Config, batch: u64) -> MemoryEstimate {
        let (kda, mla) = (c.count(MixerKind::Kda) as u64, c.caches() as u64);
        let width = (c.kda.heads * c.kda.head_dim) as u64;
        // Rows are padded to whole blocks.
        let row = |format: Format| {
            let values = c.cache_width().next_multiple_of(format.block_len()) as u64;
            format.row_bytes(values).unwrap_or(0)
        };
        MemoryEstimate {
            kda_state_bytes: product([kda, width, c.kda.head_dim as u64, F32]),
            conv_bytes: product([kda, 3 * (c.kda.conv_taps as u64 - 1), width, F32]),
            f16_bytes_per_token: mla * row(Format::F16),
            q8_0_bytes_per_token: mla * row(Format::Q8_0),
            workspace_bytes: workspace(c, batch),
        }
    }

    /// The total of state, KV cache of `context` tokens, and workspace.
    pub fn total(&self, cache_bytes_per_token: u64, context: u64) -> u64 {
        let cache = product([cache_bytes_per_token, context]);
        [cache, self.kda_state_bytes, self.conv_bytes]
            .into_iter()
            .fold(self.workspace_bytes, u64::saturating_add)
    }
}

/// Multiplies with saturation, because sizes from a hostile file may overflow.
fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

/// The activations of the widest layer and of the residual stream, and the logits of one token.
fn workspace(c: &Config, batch: u64) -> u64 {
    // q, k, v before and after their convolutions, gate, output gate, output
    let kda = 9 * c.kda.heads * c.kda.head_dim;
    let m = &c.mla;
    let mla = m.heads * (m.nope_dim + 2 * m.latent_dim + 2 * m.pe_dim + m.value_dim);
    let dense = 3 * c.dense_hidden;
    let moe = c.moe.routing.top_k * (3 * c.moe.hidden + c.dim) + 3 * c.moe.shared_hidden;
    let widest = [kda, mla, dense, moe].into_iter().max().unwrap_or(0);
    let values = product([batch, (4 * c.dim + widest) as u64]).saturating_add(c.vocab as u64);
    product([F32, values])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::synth::Preset;

    #[test]
    fn the_real_model_needs_what_its_arithmetic_says() {
        let need = MemoryEstimate::of(&Config::from_gguf(&Preset::Real.metadata_only()).unwrap(), 512);
        assert_eq!((need.kda_state_bytes, need.conv_bytes), (41_943_040, 2_949_120));
        assert_eq!((need.f16_bytes_per_token, need.q8_0_bytes_per_token), (8_064, 4_284));
        assert!((100 << 20..200 << 20).contains(&need.workspace_bytes), "{}", need.workspace_bytes);
        assert_eq!(need.total(8_064, 1 << 20), (8_064 << 20) + 41_943_040 + 2_949_120 + need.workspace_bytes);
        assert_eq!(need.total(u64::MAX, 2), u64::MAX);
    }
}
