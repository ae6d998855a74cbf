//! Declares the ops of the graph, one formula each, that every backend implements.
//!
//! Ops are eager and know no model. A batch is a matrix with one row per token; it may hold rows of several sequences,
//! and [`Span`]s map rows to the state of stateful ops. Comments give shapes as `[rows, columns]`, last index fastest. A
//! wrong shape is a caller's bug and panics. Next: `reference`, which implements every op as plain loops.

use crate::quant::Format;
use bytes::Bytes;
use std::ops::Range;

/// One sequence's rows of a batch, with the state they read and advance.
pub struct Span<'a, S> {
    /// Rows of the batch's matrices, in the order of the sequence.
    pub rows: Range<usize>,
    /// The state before the first of these rows; after the op, the state after the last.
    pub state: &'a mut S,
}

/// A weight in its stored format: `count` matrices of `rows` x `cols`, row after row of blocks.
#[derive(Clone)]
pub struct Stored {
    /// Format of every row.
    pub format: Format,
    /// Matrices in the stack: experts or heads; 1 for a plain matrix.
    pub count: usize,
    /// Rows of each matrix (outputs).
    pub rows: usize,
    /// Columns of each matrix (inputs), whole blocks.
    pub cols: usize,
    /// `count * rows * format.row_bytes(cols)` bytes, usually a view into the mapped file.
    pub bytes: Bytes,
}

/// How a router turns logits into chosen experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts chosen for a token.
    pub top_k: usize,
    /// Groups the experts are divided into; 1 means no grouping.
    pub groups: usize,
    /// Groups that stay eligible: those with the largest sum of their two best biased scores.
    pub top_groups: usize,
    /// Divide the weights by their sum (plus 1e-20).
    pub normalise: bool,
    /// Factor on the weights after that.
    pub scale: f32,
}

/// The three projections of a gated feed-forward, plain or stacked by expert.
pub struct Gated<'a, W> {
    /// `[hidden, dim]`
    pub gate: &'a W,
    /// `[hidden, dim]`
    pub up: &'a W,
    /// `[dim, hidden]`
    pub down: &'a W,
}

/// The up-projections from the latent to each head's keys and values (`kv_b_proj`).
pub struct Expansion<'a, W> {
    /// `[heads, latent, nope]`
    pub k: &'a W,
    /// `[heads, value_dim, latent]`
    pub v: &'a W,
    /// Columns of the latent.
    pub latent: usize,
}

/// The format of KV cache rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// 4 bytes per value: exact, for comparisons with other implementations.
    F32,
    /// 2 bytes per value.
    F16,
    /// 34 bytes per 32 values.
    Q8_0,
}

/// Largest sizes that a backend's ops take. Above them they panic: a model is checked against these when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Experts chosen for a token ([`Routing::top_k`]).
    pub top_k: usize,
    /// Groups of experts ([`Routing::groups`]).
    pub groups: usize,
    /// Experts of a router.
    pub experts: usize,
    /// Taps of a short convolution.
    pub taps: usize,
    /// Heads of a delta rule.
    pub delta_heads: usize,
    /// Key channels of a head of a delta rule.
    pub delta_keys: usize,
    /// Columns of a cache row that attention reads as value.
    pub latent: usize,
    /// Columns of a cache row.
    pub cache_width: usize,
}

impl Limits {
    /// No bounds.
    pub const NONE: Limits = Limits {
        top_k: usize::MAX,
        groups: usize::MAX,
        experts: usize::MAX,
        taps: usize::MAX,
        delta_heads: usize::MAX,
        delta_keys: usize::MAX,
        latent: usize::MAX,
        cache_width: usize::MAX,
    };
}

/// Why a backend could not load a weight or allocate a state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device is out of memory.
    #[error("out of memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
    },
}

/// A compute device. Tensors are f32 matrices `[rows, cols]`; results are new tensors from the backend's buffer pool, so
/// decode allocates nothing once the pool is warm.
pub trait Backend: Send + Sync + 'static {
    /// Names the arithmetic. States made under one name may be carried on under it, by another process or device too: what
    /// leaves a backend is in one form, and devices of one name differ by rounding alone.
    const NAME: &'static str;
    /// Whether [`Backend::expanded_attention`] makes keys and values.
    const EXPANDS: bool = false;
    /// Largest sizes that the ops take.
    const LIMITS: Limits;
    /// f32 `[rows, cols]`: activations and recurrent state.
    type Tensor: Send + Sync;
    /// A weight on the device, in its stored format.
    type Weight: Send + Sync;
    /// The append-only KV cache of one layer of one sequence; clones share rows.
    type Cache: Clone + Send + Sync;
    /// The experts chosen for each row of a batch, and their weights.
    type Routed;

    /// The device's description: `CPU AVX-512 VNNI, 2 threads`.
    fn describe(&self) -> String;

    // ---- memory ----------------------------------------------------------------------------------------

    /// Loads a stored weight; the CPU keeps the view, a GPU copies it.
    fn weight(&self, stored: Stored) -> Result<Self::Weight, Error>;
    /// Creates a tensor; `values.len() == rows * cols`.
    fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> Self::Tensor;
    /// The values of a tensor, row after row.
    fn read(&self, x: &Self::Tensor) -> Vec<f32>;
    /// Copies a tensor on the device, bit for bit.
    fn copy(&self, x: &Self::Tensor) -> Self::Tensor;
    /// An empty cache with rows of `width` values.
    fn cache(&self, format: CacheFormat, width: usize) -> Self::Cache;
    /// Rows in a cache.
    fn cache_len(&self, cache: &Self::Cache) -> usize;
    /// Rows `range` of a cache as f32 `[range.len(), width]`, rounded as attention reads them.
    fn cache_read(&self, cache: &Self::Cache, range: Range<usize>) -> Vec<f32>;
    /// Bytes of a stored row.
    fn cache_row_bytes(&self, cache: &Self::Cache) -> usize;
    /// Appends the stored bytes of rows `range` to `out`.
    fn cache_export(&self, cache: &Self::Cache, range: Range<usize>, out: &mut Vec<u8>);
    /// Appends rows exported by [`Backend::cache_export`] from a cache of this format and width.
    fn cache_import(&self, cache: &mut Self::Cache, rows: &[u8]);
    /// Truncates to `len` rows.
    fn cache_truncate(&self, cache: &mut Self::Cache, len: usize);
    /// The experts `[rows * top_k]` and their weights `[rows * top_k]`, best first.
    fn routed(&self, routed: &Self::Routed) -> (Vec<u32>, Vec<f32>);

    /// Told when a model's file is larger than the memory there is: weights that a step needs are then asked for before
    /// they are used.
    fn read_ahead(&self) {}

    /// Of experts that are not all in one place: how many chosen ones were met where the rest of the model is, and how many
    /// were chosen, up to now. None where all are in one place.
    fn experts_met(&self) -> Option<[u64; 2]> {
        None
    }

    /// Waits until all that was asked for is done, where that is later.
    fn wait(&self) {}

    // ---- graph capture ---------------------------------------------------------------------------------

    /// The result of a step that [`Backend::record`] kept, done again for other ids and for states that have advanced:
    /// one token a sequence, through the model that `weight` is of. None if none was kept of these states.
    fn replay(
        &self,
        _weight: &Self::Weight,
        _ids: &[u32],
        _state: &mut [Part<'_, Self>],
    ) -> Option<Self::Tensor>
    where
        Self: Sized,
    {
        None
    }
    /// Does a step that [`Backend::replay`] was asked for and did not have, and may keep it. Its ops are the same each
    /// time, and it reads no values.
    fn record(&self, _ids: &[u32], step: impl FnOnce() -> Self::Tensor) -> Self::Tensor
    where
        Self: Sized,
    {
        step()
    }

    // ---- rows and elements -----------------------------------------------------------------------------

    /// y_t = W_{ids_t}: rows of a table. `[tokens, cols]`
    fn embed(&self, table: &Self::Weight, ids: &[u32]) -> Self::Tensor;
    /// y_i = x_{rows_i}: some rows of a batch. `[rows.len(), cols]`
    fn gather(&self, x: &Self::Tensor, rows: &[usize]) -> Self::Tensor;
    /// x += y
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
    /// sigmoid(x), in place of x.
    fn sigmoid(&self, x: Self::Tensor) -> Self::Tensor;
    /// SiLU(gate) * up
    fn silu_mul(&self, gate: Self::Tensor, up: &Self::Tensor) -> Self::Tensor;

    // ---- norms -----------------------------------------------------------------------------------------

    /// y = x / sqrt(mean(x^2) + eps) * w over the first `w.cols` columns; columns after those are copied.
    fn rms_norm(&self, x: &Self::Tensor, w: &Self::Weight, eps: f32) -> Self::Tensor;
    /// x += y, and [`Backend::rms_norm`] of it.
    fn add_rms_norm(
        &self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        w: &Self::Weight,
        eps: f32,
    ) -> Self::Tensor {
        self.add(x, y);
        self.rms_norm(x, w, eps)
    }
    /// y = x / sqrt(sum(x^2) + eps) * scale over each `head_dim` columns.
    fn l2_norm(&self, x: Self::Tensor, head_dim: usize, eps: f32, scale: f32) -> Self::Tensor;
    /// y = RMSNorm(x; w) * sigmoid(gate), the norm over each `w.cols` columns (one head).
    fn gated_rms_norm(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        gate: &Self::Tensor,
        eps: f32,
    ) -> Self::Tensor;

    // ---- products --------------------------------------------------------------------------------------

    /// y = x W^T. `[tokens, cols] -> [tokens, rows]`
    fn matmul(&self, w: &Self::Weight, x: &Self::Tensor) -> Self::Tensor;
    /// Multiplies one input, quantised once, with several weights: `[matmul(w_0, x), ...]`.
    fn matmuls<const N: usize>(&self, w: [&Self::Weight; N], x: &Self::Tensor) -> [Self::Tensor; N] {
        w.map(|w| self.matmul(w, x))
    }
    /// Multiplies several weights with one input each: `[matmul(w_0, x_0), ...]`.
    fn matmul_each<const N: usize>(&self, w: [&Self::Weight; N], x: [&Self::Tensor; N]) -> [Self::Tensor; N] {
        std::array::from_fn(|i| self.matmul(w[i], x[i]))
    }
    /// Per head h of a stack: y_h = [W_h x_h[..cols] | x_h[cols..]]. Columns of a head beyond the matrix pass
    /// through. `[tokens, count * (cols + rest)] -> [tokens, count * (rows + rest)]`
    fn matmul_heads(&self, w: &Self::Weight, x: &Self::Tensor) -> Self::Tensor;
    /// W_down (SiLU(W_gate x) * W_up x). `[tokens, dim] -> [tokens, dim]`
    fn gated_ffn(&self, w: Gated<'_, Self::Weight>, x: &Self::Tensor) -> Self::Tensor {
        let [gate, up] = self.matmuls([w.gate, w.up], x);
        self.matmul(w.down, &self.silu_mul(gate, &up))
    }

    // ---- delta rule ------------------------------------------------------------------------------------

    /// y_t = SiLU(sum_j taps_j * x_{t - (n-1) + j}), per channel, causal; `taps` is `[channels, n]` and its
    /// last column multiplies the newest token. The state is the last n-1 inputs, oldest first: `[n-1, channels]`.
    fn short_conv(
        &self,
        spans: &mut [Span<'_, Self::Tensor>],
        x: &Self::Tensor,
        taps: &Self::Weight,
    ) -> Self::Tensor;
    /// g = a_h * softplus(f + dt_bias): the log-decay, <= 0, one a channel. `f: [tokens, heads * dim]`,
    /// `a: [1, heads]` holds -exp(A_log), `dt_bias: [1, heads * dim]`.
    fn kda_decay(&self, f: Self::Tensor, a: &Self::Weight, dt_bias: &Self::Weight) -> Self::Tensor;
    /// The gated delta rule, per head, state first decayed, then written, then read:
    /// S <- Diag(e^g) S;  S <- S + beta k (v - S^T k)^T;  o = S^T q.
    /// The state is S, `[heads * dk, dv]`. Long spans may be computed in chunks; the result is the same to rounding.
    fn delta_rule(
        &self,
        spans: &mut [Span<'_, Self::Tensor>],
        x: DeltaRule<'_, Self::Tensor>,
    ) -> Self::Tensor;

    /// A layer's delta attention, from the input projections to the input of the output projection:
    /// q = l2_norm(conv(q)) scale;  k = l2_norm(conv(k));  v = conv(v);  g = kda_decay(f);  the delta rule with
    /// sigmoid(beta);  RMSNorm(o) * sigmoid(gate). `[tokens, heads * dv]`
    fn delta_attention(
        &self,
        spans: &mut [Span<'_, DeltaState<Self::Tensor>>],
        x: DeltaProjections<Self::Tensor>,
        w: &DeltaWeights<'_, Self::Weight>,
    ) -> Self::Tensor
    where
        Self: Sized,
    {
        composed_delta_attention(self, spans, x, w, |_| {})
    }

    // ---- attention over a shared latent ----------------------------------------------------------------

    /// Appends each span's rows of x to its cache.
    fn append(&self, spans: &mut [Span<'_, Self::Cache>], x: &Self::Tensor);
    /// Causal attention in which all heads read one cache row c_s as key, and its first `value_dim` columns as
    /// value: o_h = sum_s softmax_s(scale * q_h . c_s) c_s[..value_dim]. Each span's rows are the newest in its
    /// cache (they have been appended). `q: [tokens, heads * width] -> [tokens, heads * value_dim]`
    fn latent_attention(
        &self,
        spans: &mut [Span<'_, Self::Cache>],
        q: &Self::Tensor,
        value_dim: usize,
        scale: f32,
    ) -> Self::Tensor;

    /// The same attention with per-head queries and values: over cache rows [c_s | pe_s] head h has keys [W_k,h^T c_s |
    /// pe_s] and values W_v,h c_s. `q: [tokens, heads * (nope + pe)] -> [tokens, heads * value_dim]`. The default absorbs
    /// both matrices into the queries and outputs; a backend may materialise keys and values, which is less work for
    /// many tokens.
    fn expanded_attention(
        &self,
        spans: &mut [Span<'_, Self::Cache>],
        q: &Self::Tensor,
        w: Expansion<'_, Self::Weight>,
        scale: f32,
    ) -> Self::Tensor {
        let q = self.matmul_heads(w.k, q);
        self.matmul_heads(w.v, &self.latent_attention(spans, &q, w.latent, scale))
    }

    // ---- mixture of experts ----------------------------------------------------------------------------

    /// s = sigmoid(logits); the `top_k` experts with the largest s + bias (lowest index first among equals),
    /// weighed by their unbiased s. `logits: [tokens, experts]`, `bias: [1, experts]`
    fn route(&self, logits: &Self::Tensor, bias: &Self::Weight, how: Routing) -> Self::Routed;
    /// [`Backend::route`] by the logits `router` x. `[tokens, dim]`
    fn matmul_route(
        &self,
        router: &Self::Weight,
        x: &Self::Tensor,
        bias: &Self::Weight,
        how: Routing,
    ) -> Self::Routed {
        self.route(&self.matmul(router, x), bias, how)
    }
    /// y_t = sum_e weight_te FFN_e(x_t) over the experts chosen for t. `[tokens, dim] -> [tokens, dim]`
    fn experts(&self, w: Gated<'_, Self::Weight>, x: &Self::Tensor, routed: &Self::Routed) -> Self::Tensor;
    /// [`Backend::experts`] plus the shared expert's output for every token.
    fn mixture(
        &self,
        w: Gated<'_, Self::Weight>,
        shared: Option<Gated<'_, Self::Weight>>,
        x: &Self::Tensor,
        routed: &Self::Routed,
    ) -> Self::Tensor {
        let mut y = self.experts(w, x, routed);
        if let Some(shared) = shared {
            self.add(&mut y, &self.gated_ffn(shared, x));
        }
        y
    }

    // ---- sampling --------------------------------------------------------------------------------------

    /// The `n` best values of each row, up to [`BEST`].
    fn best(&self, x: &Self::Tensor, n: usize) -> Vec<Best>;
}

/// Values of a row that [`Backend::best`] finds at most.
pub const BEST: usize = 256;

/// The best values of a row, of those that are numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// The largest values and their columns, in descending order, the lowest column first among equals; -0 equals 0.
    pub top: Vec<(f32, u32)>,
    /// Whether the row has no other numbers for sure: there were fewer than asked for, or no more columns.
    pub whole: bool,
    /// sum_i e^(x_i - max x) over the row; of no use where the largest value is infinite or there is none.
    pub sum: f32,
}

/// [`Backend::delta_attention`] composed of its parts; `see_g` receives the log-decay.
pub fn composed_delta_attention<B: Backend>(
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

/// A part of a sequence's state that a step advances.
pub enum Part<'a, B: Backend> {
    /// Of constant size.
    Tensor(&'a B::Tensor),
    /// Grows by a row.
    Cache(&'a mut B::Cache),
}

/// The recurrent state of delta attention, of constant size.
pub struct DeltaState<T> {
    /// S, `[heads * dk, dv]`
    pub s: T,
    /// The last n-1 inputs of the convolutions of q, k and v, oldest first: `[n-1, heads * dk]`
    pub conv: [T; 3],
}

/// Projections of a layer's input that [`Backend::delta_attention`] takes.
pub struct DeltaProjections<T> {
    /// `[tokens, heads * dk]`
    pub q: T,
    /// `[tokens, heads * dk]`
    pub k: T,
    /// `[tokens, heads * dv]`
    pub v: T,
    /// Before the decay's bias. `[tokens, heads * dk]`
    pub f: T,
    /// Before the sigmoid. `[tokens, heads]`
    pub beta: T,
    /// Before the sigmoid. `[tokens, heads * dv]`
    pub gate: T,
}

/// Weights and constants of [`Backend::delta_attention`].
pub struct DeltaWeights<'a, W> {
    /// Of q, k and v: `[channels, n]`
    pub taps: [&'a W; 3],
    /// -exp(A_log), `[1, heads]`
    pub a: &'a W,
    /// `[1, heads * dk]`
    pub dt_bias: &'a W,
    /// Of the norm of a head's output, `[1, dv]`
    pub norm: &'a W,
    /// dk
    pub head_dim: usize,
    /// Factor on q.
    pub scale: f32,
    /// Under the root of the l2 norms.
    pub l2_eps: f32,
    /// Under the root of the output's norm.
    pub norm_eps: f32,
}

/// Inputs of [`Backend::delta_rule`].
pub struct DeltaRule<'a, T> {
    /// Queries, normalised and scaled. `[tokens, heads * dk]`
    pub q: &'a T,
    /// Keys, normalised. `[tokens, heads * dk]`
    pub k: &'a T,
    /// Values. `[tokens, heads * dv]`
    pub v: &'a T,
    /// Log-decay, <= 0 and unbounded below. `[tokens, heads * dk]`
    pub g: &'a T,
    /// Write strength in 0..1. `[tokens, heads]`
    pub beta: &'a T,
}
