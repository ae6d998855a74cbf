// Fused ops for a few tokens: one launch instead of two to seven.
//
// A launch costs about as long as reading 4 MB, which is what a layer's products of one token read, so decoding op by op
// would take twice as long. Next: gemm.cuh, products of many vectors.
#pragma once
#include "product.cuh"
#include "route.cuh"

// ---- float activations --------------------------------------------------------------------------------------------

struct FreshMatrix {
    Planes w;
    const float* x; // input of this matrix
    float* y;
    int rows;
    int x_stride; // values from one vector to the next
    int y_stride;
    int rest; // columns of x after the matrix's; copied after its results
};

#define FRESH 2 // largest number of matrices per launch
struct Fresh {
    FreshMatrix of[FRESH];
    int cols;
    int groups; // matrices of the stack; vector v uses v mod groups
    int lanes;
    int unused;
    i8* levels; // if not null (one matrix only): quantised results, 32 rows per block
    XScale* scales;
};

struct FreshPart {
    const FreshMatrix& of;
    const float* x;
    float* y;
    int row, lane;
    bool live;
    i64 first; // row of the stack

    __device__ __forceinline__ FreshPart(const Fresh& p)
        : of(p.of[blockIdx.z]), x(of.x + (i64)blockIdx.y * of.x_stride), y(of.y + (i64)blockIdx.y * of.y_stride) {
        row = (blockIdx.x * blockDim.x + threadIdx.x) / p.lanes;
        lane = threadIdx.x % p.lanes;
        live = row < of.rows;
        first = (i64)(blockIdx.y % p.groups) * of.rows + (live ? row : 0);
    }

    __device__ __forceinline__ void finish(const Fresh& p, float sum, float* results) const {
        sum = lanes_sum(sum, p.lanes);
        if (live && lane == 0) y[row] = sum;
        if (p.levels) {
            if (lane == 0) results[threadIdx.x / p.lanes] = sum;
            __syncthreads();
            i64 at = (i64)blockIdx.y * of.y_stride + blockIdx.x * 32 + threadIdx.x;
            if (threadIdx.x < 32) quantise_32(results[threadIdx.x], p.levels, p.scales, at);
        }
        if (blockIdx.x > 0) return;
        for (int c = threadIdx.x; c < of.rest; c += blockDim.x) y[of.rows + c] = x[p.cols + c];
    }
};

// y_v = [W_(v mod groups) x_v[..cols] | x_v[cols..]]. For matrices of few columns: each block quantises its input itself.
// Grid: rows * lanes / 128, vectors, matrices. Shared: 32 results, cols bytes, their scales.
template <class F> __device__ __forceinline__ void fresh(const Fresh& p) {
    launch_dependents();
    SHARED(float, results);
    i8* q = (i8*)(results + 32);
    XScale* scale = (XScale*)(q + p.cols);
    FreshPart part(p);
    int pieces = p.cols / Row<F>::WEIGHTS, c = threadIdx.x;
    Row<F> row(part.of.w, part.first * (p.cols / F::LEN), part.lane);
    u32 row_bytes = p.cols / F::LEN * F::PLANE;
    if (part.lane == 0) prefetch_l2(part.of.w.plane[0] + part.first * row_bytes, row_bytes);
    wait_dependencies();
    float x = c < p.cols ? part.x[c] : 0;
    auto next = row.load(min(part.lane, pieces - 1)); // loads while the input is quantised
    for (; c < p.cols; c += blockDim.x, x = c < p.cols ? part.x[c] : 0) quantise_32(x, q, scale, c);
    __syncthreads();
    float sum = 0;
#pragma unroll 1
    for (int u = part.lane; u < pieces; u += p.lanes) {
        auto piece = next;
        next = row.load(min(u + p.lanes, pieces - 1));
        sum += row.template dot<SharedMem>(piece, u, q, scale);
    }
    part.finish(p, sum, results);
}

template <class F> __device__ __forceinline__ void fresh_plain(const Fresh& p) {
    follow_launch();
    SHARED(float, results);
    FreshPart part(p);
    float sum = 0;
    for (int c = part.lane; c < p.cols; c += p.lanes) sum += F::value(part.of.w.plane[0], part.first * p.cols + c) * part.x[c];
    part.finish(p, sum, results);
}

// ---- the router ----------------------------------------------------------------------------------------------------

#define ROUTER_FOURS 5 // loads in flight per thread: 2,560 columns

struct Router {
    Route route;
    Planes w;       // [experts, cols]
    const float* x; // [tokens, cols]
    float* logits;  // read by the block that chooses
    int* count;     // [tokens], zero
    int cols;       // a multiple of 4
    int unused;
};

// Computes the router's logits; the last block chooses the experts. Grid: experts, tokens: one block per logit, so that the
// whole matrix is in flight at once. Shared: a flag, and the scratch of the choice.
template <class F> __device__ __forceinline__ void matmul_route(const Router& p) {
    SHARED(float, s);
    i64 t = blockIdx.y, e = blockIdx.x;
    launch_dependents();
    u32 row_bytes = p.cols * F::BYTES;
    if (threadIdx.x == 0 && row_bytes % 16 == 0) prefetch_l2(p.w.plane[0] + e * row_bytes, row_bytes);
    wait_dependencies();
    float sum = 0;
    int step = 4 * blockDim.x;
#pragma unroll 1
    for (int c = 4 * threadIdx.x; c < p.cols; c += ROUTER_FOURS * step) {
        float w[ROUTER_FOURS][4];
        Four x[ROUTER_FOURS];
#pragma unroll
        for (int n = 0; n < ROUTER_FOURS; n++) {
            int at = min(c + n * step, p.cols - 4);
            F::four(p.w.plane[0], e * p.cols + at, w[n]);
            x[n] = load_16(p.x + t * p.cols + at);
        }
#pragma unroll
        for (int n = 0; n < ROUTER_FOURS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum += c + n * step < p.cols ? w[n][i] * __int_as_float(x[n].v[i]) : 0;
    }
    sum = block_sum(sum, s + 1);
    if (threadIdx.x == 0) p.logits[t * p.route.experts + e] = sum;
    if (last_of(p.count + t, p.route.experts, (int*)s) && threadIdx.x < 32) choose(p.route, s + 1, t);
}

// ---- feed-forward: routed experts and the shared expert -------------------------------------------------------------

struct FusedFfn {
    Planes gate, up, down;                      // stacks of experts
    Planes shared_gate, shared_up, shared_down; // same shapes
    const i8* q;                                // [tokens, dim]
    const XScale* scale;
    const int* places;    // [tokens, top_k]: positions of a token's experts in the stacks, -1 if absent
    const float* weights; // [tokens, top_k]
    i8* inner;            // [tokens, top_k + shared, hidden]
    XScale* inner_scale;
    float* y; // [tokens, dim]
    int dim, hidden;
    int top_k;
    int shared; // 0 or 1
    int lanes;  // threads per row of down
    float limit;
    NormAfter norm; // with one, y is the residual stream, to which the result is added
};

// Threads per row of gate and up: a block has the 32 rows that share a scale.
template <class F> constexpr int UP_LANES = 256 / Row<F>::WEIGHTS;

// SiLU(W_gate x) * W_up x, quantised; zero for absent experts. Grid: hidden / 32, tokens * (top_k + shared).
template <class F> __device__ __forceinline__ void ffn_up(const FusedFfn& p) {
    SHARED(float, inner);
    int each = p.top_k + p.shared, t = blockIdx.y / each, slot = blockIdx.y % each;
    const int lanes = UP_LANES<F>;
    int r = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    bool own = slot < p.top_k;
    launch_dependents();
    if (!own && threadIdx.x < 2) {
        u32 bytes = 32 * (p.dim / F::LEN) * F::PLANE;
        prefetch_l2((threadIdx.x ? p.shared_up : p.shared_gate).plane[0] + (i64)blockIdx.x * bytes, bytes);
    }
    wait_dependencies();
    i64 m = own ? p.places[t * p.top_k + slot] : 0;
    i64 first = (m * p.hidden + blockIdx.x * 32 + r) * (p.dim / F::LEN);
    const Planes &w_gate = own ? p.gate : p.shared_gate, &w_up = own ? p.up : p.shared_up;
    const i8* q = p.q + (i64)t * p.dim;
    const XScale* scale = p.scale + (i64)t * p.dim / 32;
    int pieces = m < 0 ? 0 : p.dim / Row<F>::WEIGHTS;
    Row<F> gate_row(w_gate, first, lane), up_row(w_up, first, lane);
    float gate = 0, up = 0;
#pragma unroll 1 // two pieces are in flight; four need registers that would limit occupancy
    for (int u = lane; u < pieces; u += lanes) {
        auto a = gate_row.load(u), b = up_row.load(u);
        gate += gate_row.template dot<GlobalMem>(a, u, q, scale);
        up += up_row.template dot<GlobalMem>(b, u, q, scale);
    }
    gate = lanes_sum(gate, lanes);
    up = lanes_sum(up, lanes);
    if (lane == 0) inner[r] = limited_silu_mul(gate, up, p.limit);
    __syncthreads();
    i64 at = ((i64)blockIdx.y * gridDim.x + blockIdx.x) * 32 + threadIdx.x;
    if (threadIdx.x < 32) quantise_32(inner[threadIdx.x], p.inner, p.inner_scale, at);
}

// A slot of a token: its matrix by planes and first block, and its weight.
struct FfnSlot {
    Planes w;
    i64 first;
    float weight;
};

// y_t = sum over slots of weight W_down inner, plus the shared expert's. Grid: dim * lanes / 128, tokens. Shared: the slots, then 34 floats for a norm. One
// branch-free loop over the pieces of all slots keeps two in flight.
template <class F> __device__ __forceinline__ void ffn_down(const FusedFfn& p) {
    SHARED(FfnSlot, slots);
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / p.lanes, lane = threadIdx.x % p.lanes, t = blockIdx.y;
    bool live = row < p.dim;
    int each = p.top_k + p.shared, blocks = p.hidden / F::LEN, pieces = p.hidden / Row<F>::WEIGHTS;
    int turns = (pieces + p.lanes - 1) / p.lanes;
    launch_dependents();
    if (threadIdx.x == 0) {
        u32 row_bytes = blocks * F::PLANE;
        if (p.shared) prefetch_l2(p.shared_down.plane[0] + (i64)row * row_bytes, min(rows_of_block(p.lanes), p.dim - row) * row_bytes);
        if (p.norm.w && row == 0) prefetch_l2(p.norm.w, 4 * p.dim);
    }
    wait_dependencies();
    for (int s = threadIdx.x; s < each; s += blockDim.x) {
        bool own = s < p.top_k;
        i64 m = own ? max(p.places[t * p.top_k + s], 0) : 0;
        slots[s] = FfnSlot{own ? p.down : p.shared_down, m * p.dim * blocks, own ? p.weights[t * p.top_k + s] : 1.0f};
    }
    __syncthreads();
    i64 first = (i64)(live ? row : 0) * blocks;
    const i8* q = p.inner + (i64)t * each * p.hidden;
    const XScale* scale = p.inner_scale + (i64)t * each * p.hidden / 32;
    float y = 0;
    int slot = 0, u = lane;
#pragma unroll 2 // three need registers that would limit occupancy
    for (int n = 0; n < each * turns; n++) {
        int at = min(u, pieces - 1);
        const FfnSlot& of = slots[slot];
        Row<F> weights(of.w, of.first + first, lane);
        auto piece = weights.load(at);
        float dot = weights.template dot<GlobalMem>(piece, at, q + slot * p.hidden, scale + slot * p.hidden / 32);
        y += u < pieces ? of.weight * dot : 0;
        u += p.lanes;
        bool next = u >= turns * p.lanes;
        slot += next;
        u = next ? lane : u;
    }
    y = lanes_sum(y, p.lanes);
    float* to = p.y + (i64)t * p.dim + row;
    if (live && lane == 0) *to = p.norm.w ? *to + y : y;
    if (p.norm.w) norm_after(p.norm, p.y, t, t + 1, p.dim, (float*)slots);
}
