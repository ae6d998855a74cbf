//! Implements multi-token prediction (MTP): a block after the last layer, `nextn` in GGUF, predicts the token after the next
//! one. Drafts are made of its predictions.
//!
//! x_p = W_e RMSNorm(embed(t_{p+1})) + W_h RMSNorm(h_p);   x_p += MLA(RMSNorm(x_p));   x_p += FFN(RMSNorm(x_p))
//! h'_p = RMSNorm(x_p);   logits of t_{p+2} = W_out h'_p
//!
//! h_p is the model's output at token t_p after its final norm; a further prediction takes h' in its place. The block
//! attends to a KV cache of its own, with a row for each p. Steps only keep the hidden states of a followed sequence, and
//! the block processes them when a draft is wanted: without drafts it costs nothing. It starts with the last [`WINDOW`]
//! tokens of a prompt, and anew after a restore from the prefix cache, which has no rows of the block. RoPE is relative, so
//! the first row may be any token's. Next: [`super::draft`], which verifies drafts.

use super::config::{Config, MixerKind};
use super::mla::MlaSpans;
use super::state::{Followed, State};
use super::weights::Loader;
use super::{Backend, Layer, LayerProbe, Mixer, Model, Sequence};
use crate::gguf::Error;
use kernels::backend::{CacheFormat, Residual, Span};
use std::ops::Range;

/// Tokens that wait for the block at most: older ones are dropped, and the block starts anew after them.
pub const WINDOW: usize = 128;

/// The weights of the block.
pub(super) struct Mtp<B: Backend> {
    embed_norm: B::Weight,
    hidden_norm: B::Weight,
    /// The columns of W_eh that multiply the embedding, W_e, and those that multiply the hidden state, W_h.
    projections: [B::Weight; 2],
    layer: Layer<B>,
    norm: B::Weight,
}

impl<B: Backend> Mtp<B> {
    /// Loads the block after the layers; None where the file has none.
    pub fn load(
        from: &Loader<'_, B>,
        c: &Config,
        mixer: impl Fn(&Loader<'_, B>, MixerKind) -> Result<Mixer<B>, Error>,
    ) -> Result<Option<Self>, Error> {
        if !c.mtp || !from.has("nextn.eh_proj.weight") {
            return Ok(None);
        }
        Ok(Some(Mtp {
            embed_norm: from.vector("nextn.enorm.weight", c.dim)?,
            hidden_norm: from.vector("nextn.hnorm.weight", c.dim)?,
            projections: from.column_halves("nextn.eh_proj.weight", c.dim, c.dim)?,
            layer: Layer::load(from, c, c.layers.len(), MixerKind::Mla, mixer)?,
            norm: from.vector("layer_output_norm.weight", c.dim)?,
        }))
    }
}

impl<B: Backend> Followed<B> {
    /// Adds the tokens of a step and their rows of the residual stream x.
    fn push(&mut self, b: &B, tokens: &[u32], x: &B::Tensor, rows: Range<usize>) {
        let skipped = tokens.len().saturating_sub(WINDOW);
        let rows: Vec<usize> = rows.skip(skipped).collect();
        let mut waiting: usize =
            rows.len() + self.pending.iter().map(|(tokens, _)| tokens.len()).sum::<usize>();
        let mut dropped = 0;
        while waiting > WINDOW {
            waiting -= self.pending[dropped].0.len();
            dropped += 1;
        }
        if skipped > 0 || dropped > 0 {
            self.pending.drain(..dropped);
            b.cache_truncate(&mut self.cache, 0);
        }
        self.pending.push((tokens[skipped..].to_vec(), b.gather(x, &rows)));
    }

    /// Drops the tokens of the last step, a draft, after the first `accepted`.
    pub fn accept(&mut self, b: &B, accepted: usize) {
        if let Some((tokens, x)) = self.pending.last_mut()
            && accepted < tokens.len()
        {
            tokens.truncate(accepted);
            *x = b.gather(x, &(0..accepted).collect::<Vec<_>>());
        }
    }
}

/// Keeps the hidden states of the followed sequences of a batch; x is the residual stream after the last layer.
pub(super) fn keep<B: Backend>(b: &B, batch: &mut [Sequence<'_, B>], rows: &[Range<usize>], x: &B::Tensor) {
    for (s, rows) in batch.iter_mut().zip(rows) {
        if let Some(followed) = &mut s.state.followed {
            followed.push(b, s.tokens, x, rows.clone());
        }
    }
}

impl<B: Backend> Model<B> {
    /// Returns whether the model has a block that predicts further tokens.
    pub fn predicts(&self) -> bool {
        self.mtp.is_some()
    }

    /// Keeps what [`Model::predict`] needs from the next step of a sequence on, if the model has such a block. `cache` is
    /// the format of its KV cache. Steps of followed sequences are not replayed.
    pub fn follow(&self, b: &B, state: &mut State<B>, cache: CacheFormat) {
        if self.mtp.is_some() && state.followed.is_none() {
            let cache = b.cache(cache, self.config.cache_width());
            state.followed = Some(Box::new(Followed { cache, pending: Vec::new() }));
        }
    }

    /// Predicts the tokens after `token`, which is the next one of the sequence, at most `most`: each is the most likely one
    /// after those before it. None are predicted before the first step of a followed sequence. The state does not advance.
    pub fn predict(&self, b: &B, state: &mut State<B>, token: u32, most: usize) -> Vec<u32> {
        let mut predicted = Vec::new();
        if most > 0 {
            self.predict_with(b, state, token, |logits| {
                let best = b.top_k(logits, 1).first()?.top.first()?.1;
                predicted.push(best);
                (predicted.len() < most).then_some(best)
            });
        }
        predicted
    }

    /// [`Model::predict`] of tokens that `next` chooses by the logits of each, `[1, vocab]`, until it returns None.
    pub fn predict_with(
        &self,
        b: &B,
        state: &mut State<B>,
        token: u32,
        mut next: impl FnMut(&B::Tensor) -> Option<u32>,
    ) {
        assert!(!state.is_drafted(), "a prediction before the draft of the last step is accepted");
        let (Some(mtp), Some(followed)) = (&self.mtp, &mut state.followed) else { return };
        let Followed { cache, pending } = &mut **followed;
        let (ids, rows): (Vec<_>, Vec<_>) = pending.drain(..).unzip();
        if rows.is_empty() {
            return;
        }
        let mut ids = ids.concat(); // each row takes the token after its own
        ids.remove(0);
        ids.push(token);
        let x = b.concat(&rows.iter().collect::<Vec<_>>());
        let mut h = self.mtp_block(b, mtp, cache, &ids, &b.rms_norm(&x, &self.norm, self.config.norm_eps));
        let known = b.cache_len(cache);
        while let Some(token) = next(&b.matmul(&self.output, &h)) {
            h = self.mtp_block(b, mtp, cache, &[token], &h);
        }
        b.cache_truncate(cache, known);
    }

    /// h' of the last row. `ids: [tokens]`, `h: [tokens, dim] -> [1, dim]`
    fn mtp_block(&self, b: &B, mtp: &Mtp<B>, cache: &mut B::Cache, ids: &[u32], h: &B::Tensor) -> B::Tensor {
        let (eps, layer) = (self.config.norm_eps, &mtp.layer);
        let e = b.rms_norm(&b.embed(&self.embed, ids), &mtp.embed_norm, eps); // [token, dim]
        let h = b.rms_norm(h, &mtp.hidden_norm, eps);
        let [mut x, from_hidden] = b.matmul_each([&mtp.projections[0], &mtp.projections[1]], [&e, &h]);
        let h = b.add_rms_norm(&mut x, &from_hidden, &layer.mixer_norm, eps);
        let Mixer::Mla(mla) = &layer.mixer else { panic!("the block is loaded as MLA") };
        let mut spans =
            MlaSpans { absorbed: vec![Span { rows: 0..ids.len(), state: cache }], materialized: Vec::new() };
        let probe: &mut dyn super::Probe<B> = &mut ();
        let probe = &mut LayerProbe(probe, self.config.layers.len());
        let to = Residual { x: &mut x, norm: &layer.ffn_norm, eps };
        let h = mla.forward(b, &h, &mut spans, probe, to);
        let h = layer.ffn.forward(b, &h, probe, Residual { x: &mut x, norm: &mtp.norm, eps });
        b.gather(&h, &[ids.len() - 1])
    }
}
