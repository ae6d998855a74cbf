//! Composes the fused ops of [`Backend`] from its plain ones, for backends without a fused kernel.
//!
//! Each function has the name and result of the op that it composes. Next: `reference`.

use crate::backend::{
    Backend, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, GatedMlp, KvUpProjection, Routing, Span,
};

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
    b.matmul(w.down, &b.silu_mul(gate, &up))
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
    let g = b.kda_decay(x.f, w.a, w.dt_bias);
    see_g(&g);
    let beta = b.sigmoid(x.beta);
    let mut states: Vec<_> = spans.iter_mut().map(|s| part(s, |state| &mut state.s)).collect();
    let o = b.delta_rule(&mut states, DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta });
    b.gated_rms_norm(&o, w.norm, &x.gate, w.norm_eps)
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
