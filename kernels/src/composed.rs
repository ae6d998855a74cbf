//! Composes the fused ops of [`Backend`] from its plain ones, for backends without a fused kernel.
//!
//! Each function has the name and result of the op that it composes. Next: `reference`.

use crate::backend::{
    Backend, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, GatedMlp, KvUpProjection, Residual,
    Routing, Span,
};
use std::ops::Range;

/// Composes [`Backend::add_rms_norm`] from `add` and `rms_norm`.
pub fn add_rms_norm<B: Backend>(
    b: &B,
    x: &mut B::Tensor,
    y: &B::Tensor,
    w: &B::Weight,
    eps: f32,
) -> B::Tensor {
    b.add(x, y);
    b.rms_norm(x, w, eps)
}

/// Composes [`Backend::append_norm`] from `rms_norm` and `append`.
pub fn append_norm<B: Backend>(
    b: &B,
    spans: &mut [Span<'_, B::Cache>],
    x: &B::Tensor,
    w: &B::Weight,
    eps: f32,
) {
    if !spans.is_empty() {
        b.append(spans, &b.rms_norm(x, w, eps));
    }
}

/// Composes [`Backend::matmul_add_norm`] from `matmul` and `add_rms_norm`.
pub fn matmul_add_norm<B: Backend>(
    b: &B,
    w: &B::Weight,
    x: &B::Tensor,
    to: Residual<'_, B::Tensor, B::Weight>,
) -> B::Tensor {
    b.add_rms_norm(to.x, &b.matmul(w, x), to.norm, to.eps)
}

/// Composes [`Backend::gated_ffn_add_norm`] from `gated_ffn` and `add_rms_norm`.
pub fn gated_ffn_add_norm<B: Backend>(
    b: &B,
    w: GatedMlp<'_, B::Weight>,
    x: &B::Tensor,
    to: Residual<'_, B::Tensor, B::Weight>,
) -> B::Tensor {
    b.add_rms_norm(to.x, &b.gated_ffn(w, x), to.norm, to.eps)
}

/// Composes [`Backend::mixture_add_norm`] from `mixture` and `add_rms_norm`.
pub fn mixture_add_norm<B: Backend>(
    b: &B,
    w: GatedMlp<'_, B::Weight>,
    shared: Option<GatedMlp<'_, B::Weight>>,
    x: &B::Tensor,
    routed: &B::Routed,
    to: Residual<'_, B::Tensor, B::Weight>,
) -> B::Tensor {
    b.add_rms_norm(to.x, &b.mixture(w, shared, x, routed), to.norm, to.eps)
}

/// Composes [`Backend::matmuls`] from one `matmul` per weight.
pub fn matmuls<B: Backend, const N: usize>(b: &B, w: [&B::Weight; N], x: &B::Tensor) -> [B::Tensor; N] {
    w.map(|w| b.matmul(w, x))
}

/// Composes [`Backend::matmul_each`] from one `matmul` per pair of weight and input.
pub fn matmul_each<B: Backend, const N: usize>(
    b: &B,
    w: [&B::Weight; N],
    x: [&B::Tensor; N],
) -> [B::Tensor; N] {
    std::array::from_fn(|i| b.matmul(w[i], x[i]))
}

/// Composes [`Backend::gated_ffn`] from `matmuls`, `silu_mul` and `matmul`.
pub fn gated_ffn<B: Backend>(b: &B, w: GatedMlp<'_, B::Weight>, x: &B::Tensor) -> B::Tensor {
    let [gate, up] = b.matmuls([w.gate, w.up], x);
    b.matmul(w.down, &b.silu_mul(gate, &up, w.limit))
}

/// Composes [`Backend::delta_attention`] from convolutions, l2 norms, the decay, the delta rule and the gated norm.
pub fn delta_attention<B: Backend>(
    b: &B,
    spans: &mut [Span<'_, DeltaState<B::Tensor>>],
    x: DeltaProjections<B::Tensor>,
    w: &DeltaWeights<'_, B::Weight>,
) -> B::Tensor {
    delta_attention_with(b, spans, x, w, |_| {})
}

/// [`Backend::delta_attention`]; `see_g` receives the log-decay.
pub fn delta_attention_with<B: Backend>(
    b: &B,
    spans: &mut [Span<'_, DeltaState<B::Tensor>>],
    x: DeltaProjections<B::Tensor>,
    w: &DeltaWeights<'_, B::Weight>,
    mut see_g: impl FnMut(&B::Tensor),
) -> B::Tensor {
    let mut conv = |i: usize, x: &B::Tensor| {
        let mut tails: Vec<_> = spans.iter_mut().map(|s| part(s, |state| &mut state.conv[i])).collect();
        b.short_conv(&mut tails, x, w.taps[i])
    };
    let (q, k, v) = (conv(0, &x.q), conv(1, &x.k), conv(2, &x.v));
    let q = b.l2_norm(q, w.head_dim, w.l2_eps, w.scale);
    let k = b.l2_norm(k, w.head_dim, w.l2_eps, 1.0);
    let g = b.kda_decay(x.f, w.a, w.dt_bias, w.decay);
    see_g(&g);
    let beta = b.sigmoid(x.beta);
    let mut states: Vec<_> = spans.iter_mut().map(|s| part(s, |state| &mut state.s)).collect();
    let o = b.delta_rule(&mut states, DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta });
    b.gated_rms_norm(&o, w.norm, &x.gate, w.norm_eps)
}

/// Composes [`Backend::advance_conv`] from `short_conv`, whose outputs are dropped.
pub fn advance_conv<B: Backend>(b: &B, spans: &mut [Span<'_, B::Tensor>], x: &B::Tensor, taps: &B::Weight) {
    b.short_conv(spans, x, taps);
}

/// Composes [`Backend::delta_rule_draft`] from the rule of the first rows, and that of the others on copies of the states.
pub fn delta_rule_draft<B: Backend>(
    b: &B,
    spans: &mut [Span<'_, B::Tensor>],
    x: DeltaRule<'_, B::Tensor>,
) -> B::Tensor {
    let first = |rows: &Range<usize>| rows.start..rows.end.min(rows.start + 1);
    let mut firsts: Vec<_> =
        spans.iter_mut().map(|s| Span { rows: first(&s.rows), state: &mut *s.state }).collect();
    let DeltaRule { q, k, v, g, beta } = x;
    let mut o = b.delta_rule(&mut firsts, DeltaRule { q, k, v, g, beta });
    let mut copies: Vec<_> = spans.iter().map(|s| b.copy(s.state)).collect();
    let rest = spans.iter().zip(&mut copies);
    let mut rest: Vec<_> =
        rest.map(|(s, state)| Span { rows: first(&s.rows).end..s.rows.end, state }).collect();
    b.add(&mut o, &b.delta_rule(&mut rest, x)); // each is zero in the rows of the other
    o
}

/// What [`delta_attention_draft`] keeps to advance states past accepted tokens.
pub struct DeltaDraft<T> {
    /// Inputs of the convolutions of q, k and v.
    conv: [T; 3],
    /// Inputs of the delta rule, as in [`DeltaRule`].
    k: T,
    v: T,
    g: T,
    beta: T,
}

/// [`Backend::delta_attention`] of a batch in which the rows of `drafts` are a token and a draft of those after it. The
/// outputs are those of `delta_attention`; [`accept_delta_draft`] completes the states of `drafts`.
pub fn delta_attention_draft<B: Backend>(
    b: &B,
    spans: &mut [Span<'_, DeltaState<B::Tensor>>],
    drafts: &mut [Span<'_, DeltaState<B::Tensor>>],
    x: DeltaProjections<B::Tensor>,
    w: &DeltaWeights<'_, B::Weight>,
) -> (B::Tensor, DeltaDraft<B::Tensor>) {
    let mut conv = |i: usize, x: &B::Tensor| {
        let mut copies: Vec<_> = drafts.iter().map(|s| b.copy(&s.state.conv[i])).collect();
        let copies = drafts.iter().zip(&mut copies).map(|(s, state)| Span { rows: s.rows.clone(), state });
        let tails = spans.iter_mut().map(|s| part(s, |state| &mut state.conv[i]));
        b.short_conv(&mut tails.chain(copies).collect::<Vec<_>>(), x, w.taps[i])
    };
    let (q, k, v) = (conv(0, &x.q), conv(1, &x.k), conv(2, &x.v));
    let q = b.l2_norm(q, w.head_dim, w.l2_eps, w.scale);
    let k = b.l2_norm(k, w.head_dim, w.l2_eps, 1.0);
    let g = b.kda_decay(x.f, w.a, w.dt_bias, w.decay);
    let beta = b.sigmoid(x.beta);
    let inputs = || DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta };
    let mut states: Vec<_> = drafts.iter_mut().map(|s| part(s, |state| &mut state.s)).collect();
    let mut o = b.delta_rule_draft(&mut states, inputs());
    if !spans.is_empty() {
        let mut states: Vec<_> = spans.iter_mut().map(|s| part(s, |state| &mut state.s)).collect();
        b.add(&mut o, &b.delta_rule(&mut states, inputs())); // each is zero in the rows of the other
    }
    let o = b.gated_rms_norm(&o, w.norm, &x.gate, w.norm_eps);
    (o, DeltaDraft { conv: [x.q, x.k, x.v], k, v, g, beta })
}

/// Advances a state past the accepted tokens of a draft, which are `rows` of its batch, the first row of the draft
/// included.
pub fn accept_delta_draft<B: Backend>(
    b: &B,
    state: &mut DeltaState<B::Tensor>,
    draft: &DeltaDraft<B::Tensor>,
    rows: Range<usize>,
    taps: [&B::Weight; 3],
) {
    for ((state, x), taps) in state.conv.iter_mut().zip(&draft.conv).zip(taps) {
        b.advance_conv(&mut [Span { rows: rows.clone(), state }], x, taps);
    }
    if rows.len() > 1 {
        let DeltaDraft { k, v, g, beta, .. } = draft;
        let inputs = DeltaRule { q: k, k, v, g, beta }; // the outputs are dropped, so q does not matter
        b.delta_rule(&mut [Span { rows: rows.start + 1..rows.end, state: &mut state.s }], inputs);
    }
}

/// The same rows with one part of their state.
fn part<'a, S, T>(span: &'a mut Span<'_, S>, of: impl Fn(&'a mut S) -> &'a mut T) -> Span<'a, T> {
    Span { rows: span.rows.clone(), state: of(span.state) }
}

/// [`Backend::materialized_attention`] by the absorbed path: W_k is absorbed into the queries, W_v into the outputs.
pub fn absorbed_attention<B: Backend>(
    b: &B,
    spans: &mut [Span<'_, B::Cache>],
    q: &B::Tensor,
    w: KvUpProjection<'_, B::Weight>,
    scale: f32,
) -> B::Tensor {
    let q = b.matmul_heads(w.k, q);
    b.matmul_heads(w.v, &b.latent_attention(spans, &q, w.latent, scale))
}

/// Composes [`Backend::matmul_route`] from `matmul` and `route`.
pub fn matmul_route<B: Backend>(
    b: &B,
    router: &B::Weight,
    x: &B::Tensor,
    bias: &B::Weight,
    how: Routing,
) -> B::Routed {
    b.route(&b.matmul(router, x), bias, how)
}

/// Composes [`Backend::mixture`] from `experts` and, where there is a shared expert, `gated_ffn` and `add`.
pub fn mixture<B: Backend>(
    b: &B,
    w: GatedMlp<'_, B::Weight>,
    shared: Option<GatedMlp<'_, B::Weight>>,
    x: &B::Tensor,
    routed: &B::Routed,
) -> B::Tensor {
    let mut y = b.experts(w, x, routed);
    if let Some(shared) = shared {
        b.add(&mut y, &b.gated_ffn(shared, x));
    }
    y
}
