//! Declares the ops of the graph, one formula each, that every backend implements.
//!
//! Ops are eager and know no model. A batch is a matrix with one row per token; it may hold rows of several sequences,
//! and [`Span`]s map rows to the state of stateful ops. Comments give shapes as `[rows, columns]`, last index fastest. A
//! wrong shape is a caller's bug and panics.
//!
//! [`Backend`] has no default methods, so that a wrapper which misses an op does not compile. A backend without a fused
//! kernel for an op calls its composition in [`crate::composed`]. Next: `reference`, which implements every op as plain
//! loops.

use crate::quant::Format;
use bytes::Bytes;
use std::fmt;
use std::ops::{Range, Sub};
use std::sync::Arc;

/// One sequence's rows of a batch, with the state they read and advance.
pub struct Span<'a, S> {
    /// Rows of the batch's matrices, in the order of the sequence.
    pub rows: Range<usize>,
    /// The state before the first of these rows; after the op, the state after the last.
    pub state: &'a mut S,
}

/// A weight in its stored format: `count` matrices of `rows` x `cols`, row after row of blocks.
#[derive(Clone)]
pub struct QuantTensor {
    /// Name of the tensor in the model file, for backends that observe or report ops by weight; empty for unnamed ones.
    pub name: Arc<str>,
    /// Block format, the same for every row of the stack.
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
    pub normalize: bool,
    /// Factor on the weights after that.
    pub scale: f32,
}

/// The three projections of a gated MLP, plain or stacked by expert.
pub struct GatedMlp<'a, W> {
    /// W_gate, whose product passes through SiLU: `[hidden, dim]` per matrix.
    pub gate: &'a W,
    /// W_up, whose product the gate scales: `[hidden, dim]` per matrix.
    pub up: &'a W,
    /// W_down, from the hidden width back to the input's: `[dim, hidden]` per matrix.
    pub down: &'a W,
    /// Largest SiLU(W_gate x), and largest magnitude of W_up x; infinity for an MLP without a limit.
    pub limit: f32,
}

/// The residual stream x, to which an op adds its result, and the norm that follows: the op returns RMSNorm(x).
pub struct Residual<'a, T, W> {
    /// The residual stream, of the shape of the result. `[tokens, dim]`
    pub x: &'a mut T,
    /// Weight of the norm, `[1, dim]`
    pub norm: &'a W,
    /// Epsilon of the norm, added to the mean of squares.
    pub eps: f32,
}

/// The log-decay g of a key channel from f + dt_bias, which is in parentheses here, and a constant a_h > 0 of its head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// g = a_h softplus(...) with the stored a_h = -exp(A_log): unbounded below.
    Softplus,
    /// g = bound * sigmoid(a_h (...)) with the stored a_h = exp(A_log): between `bound` < 0 and 0.
    Bounded(f32),
}

/// Rotary position embedding of queries and of cache rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Number of heads of the queries.
    pub heads: usize,
    /// Last columns of each head, and of a cache row, that rotate: an even number.
    pub dims: usize,
    /// Base of the angles: pair i turns by base^(-2i/dims) per position.
    pub base: f32,
}

/// The up-projections from the latent to each head's keys and values (`kv_b_proj`).
pub struct KvUpProjection<'a, W> {
    /// W_k,h, which absorbed attention applies to a head's queries: `[heads, latent, nope]`.
    pub k: &'a W,
    /// W_v,h, which turns a head's attended latents into values: `[heads, value_dim, latent]`.
    pub v: &'a W,
    /// Leading columns of a cache row that hold c_s; pe_s follows.
    pub latent: usize,
}

/// The format of KV cache rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// 4 bytes per value: exact, for comparisons with other implementations.
    F32,
    /// IEEE binary16, 2 bytes per value.
    F16,
    /// 34 bytes per 32 values.
    Q8_0,
}

/// Largest sizes that a backend's ops take. Above them they panic: a model is checked against these when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Experts chosen for a token ([`Routing::top_k`]).
    pub top_k: usize,
    /// Groups that a router divides its experts into ([`Routing::groups`]).
    pub groups: usize,
    /// Experts that one router chooses from.
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
    /// No limits, for a backend whose loops take any size.
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

/// Identifies the arithmetic of a backend.
///
/// States may move between processes and devices whose versions are equal: their results then differ by rounding at
/// most. The version is part of the prefix cache's key, so a change that alters results must increase `revision`;
/// `models/tests/numerics_version.rs` checks that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NumericsVersion {
    /// The implementation; backends that share a state format and agree up to rounding share it.
    pub family: &'static str,
    /// Increases with every change of results.
    pub revision: u32,
}

impl fmt::Display for NumericsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.family, self.revision)
    }
}

/// How often the experts chosen by routers were in the GPU's expert cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertCacheStats {
    /// Lookups that found the expert in the cache.
    pub hits: u64,
    /// Experts that were looked up: each chosen expert of each token counts once.
    pub lookups: u64,
}

impl Sub for ExpertCacheStats {
    type Output = ExpertCacheStats;

    fn sub(self, before: ExpertCacheStats) -> ExpertCacheStats {
        ExpertCacheStats { hits: self.hits - before.hits, lookups: self.lookups - before.lookups }
    }
}

/// Why a backend could not load a weight or allocate a state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device is out of memory.
    #[error("out of memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// Purpose of the allocation, as the message names it.
        what: &'static str,
        /// Size of the allocation that failed.
        bytes: u64,
    },
}

/// A compute device. Tensors are f32 matrices `[rows, cols]`; results are new tensors from the backend's buffer pool, so
/// decode allocates nothing once the pool is warm.
pub trait Backend: Send + Sync + 'static {
    /// Version of the arithmetic and of exported state.
    const NUMERICS_VERSION: NumericsVersion;
    /// Largest sizes that the ops take.
    const LIMITS: Limits;
    /// The format with the fastest attention at a quality near F16's, for rows of `latent` and `pe` values.
    fn default_cache_format(latent: usize, pe: usize) -> CacheFormat;
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
    fn weight(&self, stored: QuantTensor) -> Result<Self::Weight, Error>;
    /// Creates a tensor; `values.len() == rows * cols`.
    fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> Self::Tensor;
    /// The values of a tensor, row after row.
    fn read(&self, x: &Self::Tensor) -> Vec<f32>;
    /// Copies a tensor on the device, bit for bit.
    fn copy(&self, x: &Self::Tensor) -> Self::Tensor;
    /// An empty cache with rows of `width` values.
    fn cache(&self, format: CacheFormat, width: usize) -> Self::Cache;
    /// Number of rows in a cache: one per appended token.
    fn cache_len(&self, cache: &Self::Cache) -> usize;
    /// Rows `range` of a cache as f32 `[range.len(), width]`, rounded as attention reads them.
    fn cache_read(&self, cache: &Self::Cache, range: Range<usize>) -> Vec<f32>;
    /// Bytes of a stored row.
    fn cache_row_bytes(&self, cache: &Self::Cache) -> usize;
    /// Appends the stored bytes of rows `range` to `out`.
    fn cache_export(&self, cache: &Self::Cache, range: Range<usize>, out: &mut Vec<u8>);
    /// Appends rows exported by [`Backend::cache_export`] from a cache of this format and width.
    fn cache_import(&self, cache: &mut Self::Cache, rows: &[u8]);
    /// Drops the rows after the first `len`, such as those of rejected draft tokens.
    fn cache_truncate(&self, cache: &mut Self::Cache, len: usize);
    /// The experts `[rows * top_k]` and their weights `[rows * top_k]`, best first.
    fn routed(&self, routed: &Self::Routed) -> (Vec<u32>, Vec<f32>);

    /// Announces that the model's file exceeds memory: the backend prefetches the weights of a step from disk.
    fn read_ahead(&self);

    /// Hits and lookups of the expert cache since the backend was made. None if all experts are on one device.
    fn expert_cache_stats(&self) -> Option<ExpertCacheStats>;

    /// Waits until all ops issued so far have finished.
    fn wait(&self);

    // ---- graph capture ---------------------------------------------------------------------------------

    /// Replays a decode step that [`Backend::capture`] captured, with new ids (one token per sequence) and advanced
    /// states; `weight` identifies the model. None if no step with these states has been captured.
    fn replay(
        &self,
        weight: &Self::Weight,
        ids: &[u32],
        state: &mut [StatePart<'_, Self>],
    ) -> Option<Self::Tensor>
    where
        Self: Sized;
    /// Runs a step after [`Backend::replay`] returned None, and may capture it. `step` issues the same ops each time and
    /// reads no values back.
    fn capture(&self, ids: &[u32], step: impl FnOnce() -> Self::Tensor) -> Self::Tensor
    where
        Self: Sized;

    // ---- rows and elements -----------------------------------------------------------------------------

    /// y_t = W_{ids_t}: rows of a table. `[tokens, cols]`
    fn embed(&self, table: &Self::Weight, ids: &[u32]) -> Self::Tensor;
    /// y_i = x_{rows_i}: some rows of a batch. `[rows.len(), cols]`
    fn gather(&self, x: &Self::Tensor, rows: &[usize]) -> Self::Tensor;
    /// The rows of several tensors of equal width, one tensor after the other. `[sum of rows, cols]`
    fn concat(&self, parts: &[&Self::Tensor]) -> Self::Tensor;
    /// Adds in place: x += y, of equal shapes.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
    /// sigmoid(x), in place of x.
    fn sigmoid(&self, x: Self::Tensor) -> Self::Tensor;
    /// Gates element by element: min(SiLU(gate), limit) * clamp(up, -limit, limit), of equal shapes.
    fn silu_mul(&self, gate: Self::Tensor, up: &Self::Tensor, limit: f32) -> Self::Tensor;
    /// y_h = x_h * sigmoid(gate_h): one gate per head. `gate: [tokens, heads]`, x and y: `[tokens, heads * dim]`
    fn gate_heads(&self, x: Self::Tensor, gate: &Self::Tensor) -> Self::Tensor;

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
    ) -> Self::Tensor;
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
    /// Multiplies one input, quantized once, with several weights: `[matmul(w_0, x), ...]`.
    fn matmuls<const N: usize>(&self, w: [&Self::Weight; N], x: &Self::Tensor) -> [Self::Tensor; N];
    /// Multiplies several weights with one input each: `[matmul(w_0, x_0), ...]`.
    fn matmul_each<const N: usize>(&self, w: [&Self::Weight; N], x: [&Self::Tensor; N]) -> [Self::Tensor; N];
    /// Per head h of a stack: y_h = [W_h x_h[..cols] | x_h[cols..]]. Columns of a head beyond the matrix pass
    /// through. `[tokens, count * (cols + rest)] -> [tokens, count * (rows + rest)]`
    fn matmul_heads(&self, w: &Self::Weight, x: &Self::Tensor) -> Self::Tensor;
    /// W_down (SiLU(W_gate x) * W_up x), limited as in [`Backend::silu_mul`]. `[tokens, dim] -> [tokens, dim]`
    fn gated_ffn(&self, w: GatedMlp<'_, Self::Weight>, x: &Self::Tensor) -> Self::Tensor;

    /// [`Backend::add_rms_norm`] of [`Backend::matmul`]. `[tokens, cols] -> [tokens, rows]`
    fn matmul_add_norm(
        &self,
        w: &Self::Weight,
        x: &Self::Tensor,
        to: Residual<'_, Self::Tensor, Self::Weight>,
    ) -> Self::Tensor;
    /// [`Backend::add_rms_norm`] of [`Backend::gated_ffn`]. `[tokens, dim] -> [tokens, dim]`
    fn gated_ffn_add_norm(
        &self,
        w: GatedMlp<'_, Self::Weight>,
        x: &Self::Tensor,
        to: Residual<'_, Self::Tensor, Self::Weight>,
    ) -> Self::Tensor;

    // ---- delta rule ------------------------------------------------------------------------------------

    /// y_t = SiLU(sum_j taps_j * x_{t - (n-1) + j}), per channel, causal; `taps` is `[channels, n]` and its
    /// last column multiplies the newest token. The state is the last n-1 inputs, oldest first: `[n-1, channels]`.
    fn short_conv(
        &self,
        spans: &mut [Span<'_, Self::Tensor>],
        x: &Self::Tensor,
        taps: &Self::Weight,
    ) -> Self::Tensor;
    /// The log-decay g <= 0 of each channel, as [`Decay`] defines it. `f: [tokens, heads * dim]`, `a: [1, heads]`,
    /// `dt_bias: [1, heads * dim]`.
    fn kda_decay(
        &self,
        f: Self::Tensor,
        a: &Self::Weight,
        dt_bias: &Self::Weight,
        decay: Decay,
    ) -> Self::Tensor;
    /// The gated delta rule, per head, state first decayed, then written, then read:
    /// S <- Diag(e^g) S;  S <- S + beta k (v - S^T k)^T;  o = S^T q.
    /// The state is S, `[heads * dk, dv]`. Long spans may be computed in chunks; the result is the same to rounding.
    fn delta_rule(
        &self,
        spans: &mut [Span<'_, Self::Tensor>],
        x: DeltaRule<'_, Self::Tensor>,
    ) -> Self::Tensor;
    /// Advances the states of [`Backend::short_conv`] past the spans' rows without computing outputs.
    fn advance_conv(&self, spans: &mut [Span<'_, Self::Tensor>], x: &Self::Tensor, taps: &Self::Weight);
    /// [`Backend::delta_rule`] of a token and a draft of those after it: the outputs of all rows of a span, at most
    /// [`MAX_DRAFT_ROWS`], while its state advances past the first row alone. [`Backend::delta_rule`] of the rows after
    /// it then advances the state past accepted ones.
    fn delta_rule_draft(
        &self,
        spans: &mut [Span<'_, Self::Tensor>],
        x: DeltaRule<'_, Self::Tensor>,
    ) -> Self::Tensor
    where
        Self: Sized;

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
        Self: Sized;

    // ---- attention over a shared latent ----------------------------------------------------------------

    /// Rotates the last columns of each head of q and of the rows kv by their positions, before kv is appended: columns
    /// (2i, 2i+1) of these turn by the angle p * base^(-2i/dims), where p is the number of rows that precede the token's in
    /// its cache. Rows outside the spans stay as they are. `q: [tokens, heads * width]`, `kv: [tokens, cache width]`
    fn rotate(
        &self,
        spans: &mut [Span<'_, Self::Cache>],
        q: &mut Self::Tensor,
        kv: &mut Self::Tensor,
        rope: Rope,
    );
    /// Appends each span's rows of x to its cache.
    fn append(&self, spans: &mut [Span<'_, Self::Cache>], x: &Self::Tensor);
    /// Appends [`Backend::rms_norm`] of each span's rows of x to its cache.
    fn append_norm(&self, spans: &mut [Span<'_, Self::Cache>], x: &Self::Tensor, w: &Self::Weight, eps: f32);
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
    /// pe_s] and values W_v,h c_s. `q: [tokens, heads * (nope + pe)] -> [tokens, heads * value_dim]`. Materializing keys
    /// and values is less work for many tokens than absorbing both matrices into the queries and outputs.
    fn materialized_attention(
        &self,
        spans: &mut [Span<'_, Self::Cache>],
        q: &Self::Tensor,
        w: KvUpProjection<'_, Self::Weight>,
        scale: f32,
    ) -> Self::Tensor;

    // ---- mixture of experts ----------------------------------------------------------------------------

    /// s = sigmoid(logits); the `top_k` experts with the largest s + bias (lowest index first among equals),
    /// weighted by their unbiased s. `logits: [tokens, experts]`, `bias: [1, experts]`
    fn route(&self, logits: &Self::Tensor, bias: &Self::Weight, how: Routing) -> Self::Routed;
    /// [`Backend::route`] by the logits `router` x. `[tokens, dim]`
    fn matmul_route(
        &self,
        router: &Self::Weight,
        x: &Self::Tensor,
        bias: &Self::Weight,
        how: Routing,
    ) -> Self::Routed;
    /// y_t = sum_e weight_te FFN_e(x_t) over the experts chosen for t. `[tokens, dim] -> [tokens, dim]`
    fn experts(&self, w: GatedMlp<'_, Self::Weight>, x: &Self::Tensor, routed: &Self::Routed)
    -> Self::Tensor;
    /// [`Backend::experts`] plus the shared expert's output for every token.
    fn mixture(
        &self,
        w: GatedMlp<'_, Self::Weight>,
        shared: Option<GatedMlp<'_, Self::Weight>>,
        x: &Self::Tensor,
        routed: &Self::Routed,
    ) -> Self::Tensor;

    /// [`Backend::add_rms_norm`] of [`Backend::mixture`]. `[tokens, dim] -> [tokens, dim]`
    fn mixture_add_norm(
        &self,
        w: GatedMlp<'_, Self::Weight>,
        shared: Option<GatedMlp<'_, Self::Weight>>,
        x: &Self::Tensor,
        routed: &Self::Routed,
        to: Residual<'_, Self::Tensor, Self::Weight>,
    ) -> Self::Tensor;

    // ---- sampling --------------------------------------------------------------------------------------

    /// The `n` largest values of each row; `n` is at most [`MAX_TOP_K`].
    fn top_k(&self, x: &Self::Tensor, n: usize) -> Vec<TopK>;
}

/// Largest `n` that [`Backend::top_k`] takes; the CPU and CUDA backends panic above it.
pub const MAX_TOP_K: usize = 256;

/// Most rows of a span that [`Backend::delta_rule_draft`] takes; the CPU backend panics above it.
pub const MAX_DRAFT_ROWS: usize = 64;

/// The largest values of a row; NaN is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// Values and their columns, in descending order, the lowest column first among equals; -0 equals 0.
    pub top: Vec<(f32, u32)>,
    /// `top` holds every number of the row: there are fewer than `n`, or no more than `n` columns.
    pub complete: bool,
    /// sum_i e^(x_i - max x) over the row; undefined if the largest value is infinite or there is none.
    pub sum_exp: f32,
}

/// A part of a sequence's state that a step advances, as [`Backend::replay`] takes it.
pub enum StatePart<'a, B: Backend> {
    /// Recurrent state, of constant size.
    Tensor(&'a B::Tensor),
    /// A KV cache, which grows by a row per token.
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
    /// Queries before the convolution and the l2 norm. `[tokens, heads * dk]`
    pub q: T,
    /// Keys before the convolution and the l2 norm. `[tokens, heads * dk]`
    pub k: T,
    /// Values before the convolution. `[tokens, heads * dv]`
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
    /// Convolution taps of q, k and v: `[channels, n]`
    pub taps: [&'a W; 3],
    /// Constant of the decay, one per head, `[1, heads]`: see [`Decay`].
    pub a: &'a W,
    /// Bias on f in the decay, `[1, heads * dk]`
    pub dt_bias: &'a W,
    /// How the decay follows from f.
    pub decay: Decay,
    /// Weight of the norm of a head's output, `[1, dv]`
    pub norm: &'a W,
    /// Key channels per head, dk: the l2 norms run over this many.
    pub head_dim: usize,
    /// Factor on q after its l2 norm.
    pub scale: f32,
    /// Epsilon of the l2 norms.
    pub l2_eps: f32,
    /// Epsilon of the output's norm.
    pub norm_eps: f32,
}

/// Inputs of [`Backend::delta_rule`], one row per token of the batch.
pub struct DeltaRule<'a, T> {
    /// Queries, normalized and scaled. `[tokens, heads * dk]`
    pub q: &'a T,
    /// Keys, normalized. `[tokens, heads * dk]`
    pub k: &'a T,
    /// Values. `[tokens, heads * dv]`
    pub v: &'a T,
    /// Log-decay, <= 0 and unbounded below. `[tokens, heads * dk]`
    pub g: &'a T,
    /// Write strength in 0..1. `[tokens, heads]`
    pub beta: &'a T,
}
