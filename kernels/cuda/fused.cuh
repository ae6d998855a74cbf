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
    SHARED(float, results);
    i8* q = (i8*)(results + 32);
    XScale* scale = (XScale*)(q + p.cols);
    FreshPart part(p);
    int units = p.cols / F::LEN * F::UNITS, c = threadIdx.x;
    i64 first = part.first * (p.cols / F::LEN);
    float x = c < p.cols ? part.x[c] : 0;
    Unit next = unit_of<F>(part.of.w, first, min(part.lane, units - 1)); // loads while the input is quantised
    for (; c < p.cols; c += blockDim.x, x = c < p.cols ? part.x[c] : 0) quantise_32(x, q, scale, c);
    __syncthreads();
    float sum = 0;
#pragma unroll 1
    for (int u = part.lane; u < units; u += p.lanes) {
        Unit unit = next;
        next = unit_of<F>(part.of.w, first, min(u + p.lanes, units - 1));
        sum += dot_of<F, SharedMem>(unit, u, q, scale);
    }
    part.finish(p, sum, results);
}

template <class F> __device__ __forceinline__ void fresh_plain(const Fresh& p) {
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
            x[n] = read_16(p.x + t * p.cols + at);
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
};

#define UP_LANES 8 // threads per row of gate and up: a block has the 32 rows that share a scale

// SiLU(W_gate x) * W_up x, quantised; zero for absent experts. Grid: hidden / 32, tokens * (top_k + shared).
template <class F> __device__ __forceinline__ void ffn_up(const FusedFfn& p) {
    SHARED(float, inner);
    int each = p.top_k + p.shared, t = blockIdx.y / each, slot = blockIdx.y % each;
    int r = threadIdx.x / UP_LANES, lane = threadIdx.x % UP_LANES;
    bool own = slot < p.top_k;
    i64 m = own ? p.places[t * p.top_k + slot] : 0;
    i64 first = (m * p.hidden + blockIdx.x * 32 + r) * (p.dim / F::LEN);
    const Planes &w_gate = own ? p.gate : p.shared_gate, &w_up = own ? p.up : p.shared_up;
    const i8* q = p.q + (i64)t * p.dim;
    const XScale* scale = p.scale + (i64)t * p.dim / 32;
    int units = m < 0 ? 0 : p.dim / F::LEN * F::UNITS;
    float gate = 0, up = 0;
#pragma unroll 1 // two units are in flight; four need registers that would limit occupancy
    for (int u = lane; u < units; u += UP_LANES) {
        Unit a = unit_of<F>(w_gate, first, u), b = unit_of<F>(w_up, first, u);
        gate += dot_of<F>(a, u, q, scale);
        up += dot_of<F>(b, u, q, scale);
    }
    gate = lanes_sum(gate, UP_LANES);
    up = lanes_sum(up, UP_LANES);
    if (lane == 0) inner[r] = limited_silu_mul(gate, up, p.limit);
    __syncthreads();
    i64 at = ((i64)blockIdx.y * gridDim.x + blockIdx.x) * 32 + threadIdx.x;
    if (threadIdx.x < 32) quantise_32(inner[threadIdx.x], p.inner, p.inner_scale, at);
}

// y_t = sum over slots of weight W_down inner, plus the shared expert's. Grid: dim * lanes / 128, tokens. One branch-free loop
// over the units of all slots keeps two in flight.
template <class F> __device__ __forceinline__ void ffn_down(const FusedFfn& p) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / p.lanes, lane = threadIdx.x % p.lanes, t = blockIdx.y;
    bool live = row < p.dim;
    int each = p.top_k + p.shared, blocks = p.hidden / F::LEN, units = blocks * F::UNITS;
    int turns = (units + p.lanes - 1) / p.lanes;
    const int* places = p.places + t * p.top_k;
    const float* weights = p.weights + t * p.top_k;
    float y = 0;
    int slot = 0, turn = 0;
#pragma unroll 2 // three need registers that would limit occupancy
    for (int n = 0; n < each * turns; n++) {
        int u = turn * p.lanes + lane, known = min(slot, p.top_k - 1);
        bool own = slot < p.top_k, in = u < units;
        u = in ? u : 0;
        i64 m = p.top_k > 0 ? max(places[known], 0) : 0;
        float weight = p.top_k > 0 ? weights[known] : 1.0f;
        m = own ? m : 0;
        weight = own ? weight : 1.0f;
        const Planes& w = own ? p.down : p.shared_down;
        i64 at = ((i64)t * each + slot) * p.hidden;
        Unit unit = unit_of<F>(w, (m * p.dim + (live ? row : 0)) * blocks, u);
        float dot = dot_of<F>(unit, u, p.inner + at, p.inner_scale + at / 32);
        y += in ? weight * dot : 0;
        bool next = ++turn == turns;
        slot += next;
        turn = next ? 0 : turn;
    }
    y = lanes_sum(y, p.lanes);
    if (live && lane == 0) p.y[(i64)t * p.dim + row] = y;
}
