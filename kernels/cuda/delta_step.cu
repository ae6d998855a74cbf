// Fused delta attention of one token per sequence: convolutions, norms, decay, the delta rule and the gated norm.
//
// A block takes one head of one sequence: it loads S (64 KB in the published model) to registers while it computes the
// inputs, and writes it once. Bound by memory: S is read and written. Next: delta_chunk.cu.
#include "product.cuh"

struct DeltaStep {
    const float *q, *k, *v, *f, *beta, *gate; // projections, one row per token
    const float *taps[3], *a, *dt_bias, *norm;
    float* y; // [tokens, heads * dim]
    i8* levels; // the same, quantised
    XScale* scales;
    int heads, n;
    float scale, l2_eps, norm_eps;
    float bound; // of the log-decay; 0 for an unbounded one
};

template <int DIM> struct StepShared {
    float y[3][DIM]; // q, k, v
    float alpha[DIM];
    float part[3][4][DIM]; // S'^T k, S'^T q, k . q over a quarter of the rows
};

#define STEP_TAPS 8 // largest number of taps

// SiLU of the convolution of one channel of a token; advances the channel's state. All reads precede all writes.
__device__ __forceinline__ float conv_step(float* state, float x, const float* taps, int channels, int n) {
    float w[STEP_TAPS], tap[STEP_TAPS], sum = 0;
#pragma unroll
    for (int j = 0; j < STEP_TAPS; j++) {
        w[j] = j + 1 < n ? state[(i64)j * channels] : j + 1 == n ? x : 0;
        tap[j] = j < n ? taps[j] : 0;
    }
#pragma unroll
    for (int j = 0; j < STEP_TAPS; j++) {
        sum += tap[j] * w[j];
        if (j > 0 && j < n) state[(i64)(j - 1) * channels] = w[j];
    }
    return sum * sigmoid(sum);
}

__device__ __forceinline__ const SpanOf& tail_of(int which, const Spans& q, const Spans& k, const Spans& v) {
    return (which == 0 ? q : which == 1 ? k : v).of[blockIdx.y];
}

// Grid: heads, spans; 4 DIM threads, each with a quarter of a column of S.
template <int DIM>
__device__ __forceinline__ void delta_step(const Spans& of_s, const Spans& of_q, const Spans& of_k, const Spans& of_v, const DeltaStep& p) {
    const int R = DIM / 4;
    SHARED(StepShared<DIM>, shared);
    StepShared<DIM>& s = *shared;
    int col = threadIdx.x % DIM, part = threadIdx.x / DIM, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int h = blockIdx.x, c = h * DIM + col, channels = p.heads * DIM;
    i64 t = of_s.of[blockIdx.y].first, at = t * channels + c;
    float* state = (float*)of_s.of[blockIdx.y].state + ((i64)h * DIM + part * R) * DIM + col;
    launch_dependents();
    if (threadIdx.x == 0) prefetch_l2(state, 4 * DIM * DIM);
    wait_dependencies();
    float S[R];
#pragma unroll
    for (int i = 0; i < R; i++) S[i] = state[i * DIM];
    float beta = p.beta[t * p.heads + h];
    if (part == 3) {
        s.alpha[col] = expf(log_decay(p.f[at] + p.dt_bias[c], p.a[h], p.bound));
    } else {
        float x = part == 0 ? p.q[at] : part == 1 ? p.k[at] : p.v[at];
        const float* taps = (part == 0 ? p.taps[0] : part == 1 ? p.taps[1] : p.taps[2]) + (i64)c * p.n;
        s.y[part][col] = conv_step((float*)tail_of(part, of_q, of_k, of_v).state + c, x, taps, channels, p.n);
    }
    __syncthreads();
    if (warp < 2) {
        float* y = s.y[warp];
        float sum = 0, scale = warp == 0 ? p.scale : 1.0f;
#pragma unroll
        for (int j = lane; j < DIM; j += 32) sum += y[j] * y[j];
        float root = sqrtf(warp_sum(sum) + p.l2_eps);
#pragma unroll
        for (int j = lane; j < DIM; j += 32) y[j] = y[j] / root * scale;
    }
    __syncthreads();
    // As in delta.cu: S' = Diag(alpha) S;  d = beta (v - S'^T k);  S = S' + k d^T;  o = S'^T q + (k . q) d.
    float v = s.y[2][col], sk = 0, sq = 0, kq = 0;
#pragma unroll
    for (int i = 0; i < R; i++) {
        float k = s.y[1][part * R + i], q = s.y[0][part * R + i];
        S[i] *= s.alpha[part * R + i];
        sk += S[i] * k;
        sq += S[i] * q;
        kq += k * q;
    }
    s.part[0][part][col] = sk, s.part[1][part][col] = sq, s.part[2][part][col] = kq;
    __syncthreads();
    sk = sq = kq = 0;
#pragma unroll
    for (int w = 0; w < 4; w++) sk += s.part[0][w][col], sq += s.part[1][w][col], kq += s.part[2][w][col];
    float d = sigmoid(beta) * (v - sk);
#pragma unroll
    for (int i = 0; i < R; i++) state[i * DIM] = S[i] + s.y[1][part * R + i] * d;
    if (part == 0) s.y[2][col] = sq + kq * d;
    __syncthreads();
    if (part > 0) return;
    const float* o = s.y[2];
    float sum = 0;
#pragma unroll
    for (int j = lane; j < DIM; j += 32) sum += o[j] * o[j];
    float root = sqrtf(warp_sum(sum) / DIM + p.norm_eps);
    float y = o[col] / root * p.norm[col] * sigmoid(p.gate[at]);
    p.y[at] = y;
    quantise_32(y, p.levels, p.scales, at);
}

KERNEL(delta_step_128, 512)(const __grid_constant__ Spans of_s, const __grid_constant__ Spans of_q, const __grid_constant__ Spans of_k, const __grid_constant__ Spans of_v, const __grid_constant__ DeltaStep p) {
    delta_step<128>(of_s, of_q, of_k, of_v, p);
}
REGISTER(delta_step_128)
KERNEL(delta_step_64, 256)(const __grid_constant__ Spans of_s, const __grid_constant__ Spans of_q, const __grid_constant__ Spans of_k, const __grid_constant__ Spans of_v, const __grid_constant__ DeltaStep p) {
    delta_step<64>(of_s, of_q, of_k, of_v, p);
}
REGISTER(delta_step_64)
KERNEL(delta_step_32, 128)(const __grid_constant__ Spans of_s, const __grid_constant__ Spans of_q, const __grid_constant__ Spans of_k, const __grid_constant__ Spans of_v, const __grid_constant__ DeltaStep p) {
    delta_step<32>(of_s, of_q, of_k, of_v, p);
}
REGISTER(delta_step_32)
