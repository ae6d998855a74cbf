//! Drafts: a step computes the logits after a token and after each drafted one, and the state advances past those that the
//! sampler accepts.
//!
//! An MLA layer appends rows for all tokens, and rejected ones are dropped. A KDA layer advances its S past the first token,
//! which is always accepted; it computes the draft's outputs on a copy of a few columns at a time and keeps the inputs of the
//! recurrence, from which S advances past the accepted tokens. Nothing copies a whole S. Next: [`super::kda`].

use super::state::{Draft, LayerState, State};
use super::{Backend, Mixer, Model, Outputs, Sequence};
use kernels::composed::DeltaDraft;
use std::ops::Range;
use std::sync::Arc;

/// Opens the drafts of a batch.
pub(super) fn open<B: Backend>(batch: &mut [Sequence<'_, B>], rows: &[Range<usize>]) {
    for (s, rows) in batch.iter_mut().zip(rows) {
        assert!(s.state.draft.is_none(), "a step before the draft of the last one is accepted");
        if s.outputs == Outputs::Draft {
            s.state.draft = Some(Draft { rows: rows.clone(), kda: Vec::new() });
        }
    }
}

/// Keeps the inputs of the next KDA layer in the drafts of a batch.
pub(super) fn keep<B: Backend>(batch: &mut [Sequence<'_, B>], kept: DeltaDraft<B::Tensor>) {
    let kept = Arc::new(kept);
    batch.iter_mut().filter_map(|s| s.state.draft.as_mut()).for_each(|draft| draft.kda.push(kept.clone()));
}

impl<B: Backend> Model<B> {
    /// Advances a state past the first `tokens` of a step with [`Outputs::Draft`], at least one, and drops the others.
    pub fn accept(&self, b: &B, state: &mut State<B>, tokens: usize) {
        let Draft { rows, kda } = state.draft.take().expect("a step with a draft");
        assert!((1..=rows.len()).contains(&tokens), "{tokens} accepted tokens of {}", rows.len());
        let mut kept = kda.iter();
        for (layer, state) in self.layers.iter().zip(&mut state.layers) {
            match (&layer.mixer, state) {
                (Mixer::Kda(kda), LayerState::Kda(state)) => {
                    let kept = kept.next().expect("inputs of each KDA layer");
                    kda.recurrence().accept(b, state, kept, rows.start..rows.start + tokens);
                }
                (_, LayerState::Mla(cache)) => {
                    b.cache_truncate(cache, b.cache_len(cache) - (rows.len() - tokens));
                }
                (Mixer::Mla(_), LayerState::Kda(_)) => {
                    panic!("a layer of the state is KDA, of the model MLA")
                }
            }
        }
        if let Some(followed) = &mut state.followed {
            followed.accept(b, tokens);
        }
        state.position += tokens as u64;
    }
}
