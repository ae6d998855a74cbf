// The gated delta rule, token by token: S <- Diag(e^g) S;  S <- S + beta k (v - S^T k)^T;  o = S^T q   (per head).
//
// With S' = Diag(e^g) S:  d = beta (v - S'^T k),  S = S' + k d^T,  o = S'^T q + (k . q) d: one pass computes both products
// with S', so a token costs one barrier. A block holds 32 columns of one head's S in registers: four warps share the rows,
// and each lane has a column. Decode reads and writes S once and is bound by memory; a long span is bound by the latency of
// a token, about 0.2 us expected (not yet run on a GPU). Next: delta_step.cu, a decoded token.
#include "common.cuh"

struct Delta {
    const float *q, *k, *v, *g, *beta;
    float* o;
    int heads, dk, dv, unused;
};

#define DELTA_ROWS 128 // largest dk

struct DeltaShared {
    float k[3][DELTA_ROWS], q[3][DELTA_ROWS], alpha[3][DELTA_ROWS];
    float part[2][3][4][32]; // S'^T k, S'^T q, k . q of each warp's rows
};

__device__ __forceinline__ void delta_inputs(const Delta& p, DeltaShared& s, int buffer, i64 t, int h) {
    int i = threadIdx.x;
    bool live = i < p.dk;
    i64 at = (t * p.heads + h) * p.dk + i;
    s.k[buffer][i] = live ? p.k[at] : 0;
    s.q[buffer][i] = live ? p.q[at] : 0;
    s.alpha[buffer][i] = live ? expf(p.g[at]) : 0;
}

// Grid: dv / 32, heads, spans; 128 threads, R rows of S each: dk <= 4 R.
template <int R> __device__ __forceinline__ void delta_rule(const Spans& spans, const Delta& p) {
    SHARED(DeltaShared, shared);
    DeltaShared& s = *shared;
    const SpanOf& span = spans.of[blockIdx.z];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, h = blockIdx.y, col = blockIdx.x * 32 + lane;
    bool live = col < p.dv;
    float* state = (float*)span.state + ((i64)h * p.dk + warp * R) * p.dv + col;
    float S[R];
#pragma unroll
    for (int i = 0; i < R; i++) S[i] = live && warp * R + i < p.dk ? state[(i64)i * p.dv] : 0;
    if (span.rows > 0) delta_inputs(p, s, 0, span.first, h);
    __syncthreads();
    for (int n = 0; n < span.rows; n++) {
        i64 t = span.first + n;
        int now = n % 3, turn = n % 2;
        if (n + 1 < span.rows) delta_inputs(p, s, (n + 1) % 3, t + 1, h);
        float v = live ? p.v[(t * p.heads + h) * p.dv + col] : 0, beta = p.beta[t * p.heads + h];
        // Phase 1: S' = Diag(alpha) S, and its products with k and q.
        float sk = 0, sq = 0, kq = 0;
#pragma unroll
        for (int i = 0; i < R; i++) {
            float k = s.k[now][warp * R + i], q = s.q[now][warp * R + i];
            S[i] *= s.alpha[now][warp * R + i];
            sk += S[i] * k;
            sq += S[i] * q;
            kq += k * q;
        }
        s.part[turn][0][warp][lane] = sk;
        s.part[turn][1][warp][lane] = sq;
        s.part[turn][2][warp][lane] = kq;
        __syncthreads();
        sk = sq = kq = 0;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            sk += s.part[turn][0][w][lane];
            sq += s.part[turn][1][w][lane];
            kq += s.part[turn][2][w][lane];
        }
        // Phase 2: d = beta (v - S'^T k),  S = S' + k d^T,  o = S'^T q + (k . q) d.
        float d = beta * (v - sk);
#pragma unroll
        for (int i = 0; i < R; i++) S[i] += s.k[now][warp * R + i] * d;
        if (live && warp == 0) p.o[(t * p.heads + h) * p.dv + col] = sq + kq * d;
    }
#pragma unroll
    for (int i = 0; i < R; i++)
        if (live && warp * R + i < p.dk) state[(i64)i * p.dv] = S[i];
}

KERNEL(delta_rule_128, 128)(const __grid_constant__ Spans spans, const __grid_constant__ Delta p) { delta_rule<32>(spans, p); }
REGISTER(delta_rule_128)
KERNEL(delta_rule_32, 128)(const __grid_constant__ Spans spans, const __grid_constant__ Delta p) { delta_rule<8>(spans, p); }
REGISTER(delta_rule_32)
