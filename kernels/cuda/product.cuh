// GEMV: multiplies stored weights with a few activation vectors at a time; each weight block is read once.
//
// y_v = W_m(v) x_(v / x_div)
//
// One launch shape serves matrices (m = 0), stacks by head (m = v mod groups) and chosen experts (m = chosen[v]). Each
// thread reads 16 bytes of weights at a time, bound by memory; activations come from L1. `lanes` threads of a warp share a
// row. Next: gemm.cuh, the same for many vectors.
#pragma once
#include "norm.cuh"

struct MatrixArg {
    Planes w;
    float* y;
    int rows;
    int first;    // first row within the launch
    int y_stride; // values from one result to the next
    int unused;
};

#define MATRICES 8
struct Product {
    MatrixArg of[MATRICES];
    const i8* q;          // [vectors / x_div, cols]
    const XScale* scale;  // [vectors / x_div, cols / 32]
    const float* x;       // the same as floats, for float formats
    const int* chosen;    // matrix of each vector, -1 for none; or null
    int n;                // matrices that share the input
    int rows;             // total rows
    int cols;
    int vectors;
    int groups;
    int x_div;
    int lanes;            // threads per row: a power of two up to 32
    int unused;
    NormAfter norm;       // for one matrix without `chosen`, whose y is the residual stream: y += W x
};

// Finds the matrix of the launch with this row; indexes parameters by a variable only once.
__device__ __forceinline__ int matrix_of(const Product& p, int row) {
    int m = 0;
#pragma unroll
    for (int i = 1; i < MATRICES; i++)
        if (i < p.n && row >= p.of[i].first) m = i;
    return m;
}

// Quantised activation rows of a product: T of them from `first`, of which those beyond `last` repeat it.
struct Vectors {
    const i8* q;
    const XScale* scale;
    int cols, first, last;
};

// This thread's contribution to T results of one row. The compiler does not unroll a loop with an unknown step into concurrent
// loads, so for one vector two pieces per iteration are written out.
template <class F, int T>
__device__ __forceinline__ void row_part(const Planes& w, i64 first_block, const Vectors& x, int lanes, float* acc) {
    int pieces = x.cols / Row<F>::WEIGHTS, lane = threadIdx.x % lanes, u = lane;
    Row<F> row(w, first_block, lane);
    if (T == 1 && F::UNROLL == 2) {
        const i8* q = x.q + (i64)x.first * x.cols;
        const XScale* scale = x.scale + (i64)x.first * x.cols / 32;
#pragma unroll 1
        for (; u + lanes < pieces; u += 2 * lanes) {
            auto one = row.load(u), two = row.load(u + lanes);
            acc[0] += row.template dot<GlobalMem>(one, u, q, scale);
            acc[0] += row.template dot<GlobalMem>(two, u + lanes, q, scale);
        }
    }
#pragma unroll 1
    for (; u < pieces; u += lanes) {
        auto piece = row.load(u);
#pragma unroll
        for (int t = 0; t < T; t++) {
            i64 at = (i64)(T == 1 ? x.first : min(x.first + t, x.last)) * x.cols;
            acc[t] += row.template dot<GlobalMem>(piece, u, x.q + at, x.scale + at / 32);
        }
    }
}

__device__ __forceinline__ float lanes_sum(float v, int lanes) {
    for (int by = lanes / 2; by > 0; by /= 2) v += __shfl_xor_sync(FULL, v, by);
    return v;
}

// Writes a row's results, or adds them to the residual stream, whose norm follows.
template <int T>
__device__ __forceinline__ void finish_rows(const Product& p, const MatrixArg& of, int v, int r, bool live, const float* acc) {
    SHARED(float, s);
    bool add = p.norm.w;
#pragma unroll
    for (int t = 0; t < T; t++) {
        float y = lanes_sum(acc[t], p.lanes);
        float* to = of.y + (i64)(v + t) * of.y_stride + r;
        if (live && v + t < p.vectors && threadIdx.x % p.lanes == 0) *to = add ? *to + y : y;
    }
    if (add) norm_after(p.norm, of.y, v, min(v + T, p.vectors), p.rows, s);
}

// While earlier launches end: prefetches the weights of a block's rows, of which thread 0 has the first, `at` in the stack, and
// the weights of the norm.
template <class F> __device__ __forceinline__ void prefetch_rows(const Product& p, const MatrixArg& of, i64 at, int r) {
    if (threadIdx.x > 0) return;
    u32 row_bytes = p.cols / F::LEN * F::PLANE;
    prefetch_l2(of.w.plane[0] + at * row_bytes, min(rows_of_block(p.lanes), of.rows - r) * row_bytes);
    if (p.norm.w && blockIdx.x == 0) prefetch_l2(p.norm.w, 4 * p.rows);
}

// Grid: rows * lanes / threads, vectors / T. Shared: 34 floats for a norm. T > 1 requires that the vectors share their matrix.
template <class F, int T> __device__ __forceinline__ void matvec(const Product& p) {
    launch_dependents();
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / p.lanes;
    bool live = row < p.rows;
    const MatrixArg& of = p.of[matrix_of(p, live ? row : 0)];
    int v = blockIdx.y * T, r = live ? row - of.first : 0;
    int m = (u32)v % (u32)p.groups;
    if (!p.chosen) prefetch_rows<F>(p, of, (i64)m * of.rows + r, r);
    wait_dependencies();
    if (p.chosen) m = p.chosen[v];
    if (m < 0) return;
    float acc[T] = {};
    Vectors x = {p.q, p.scale, p.cols, v / p.x_div, (p.vectors - 1) / p.x_div};
    row_part<F, T>(of.w, ((i64)m * of.rows + r) * (p.cols / F::LEN), x, p.lanes, acc);
    finish_rows<T>(p, of, v, r, live, acc);
}

// The same for float formats, with float activations: four at a time if rows begin at multiples of four.
template <class F, int T> __device__ __forceinline__ void matvec_plain(const Product& p) {
    follow_launch();
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / p.lanes;
    bool live = row < p.rows;
    const MatrixArg& of = p.of[matrix_of(p, live ? row : 0)];
    int v = blockIdx.y * T, r = live ? row - of.first : 0;
    i64 m = p.chosen ? p.chosen[v] : v % p.groups;
    if (m < 0) return;
    i64 first = (m * of.rows + r) * p.cols;
    int x_row = v / p.x_div, last = (p.vectors - 1) / p.x_div;
    float acc[T] = {};
    int fours = p.cols % 4 ? 0 : p.cols / 4;
    const int N = T == 1 ? 4 : 1; // loads in flight
#pragma unroll 1
    for (int c = threadIdx.x % p.lanes; c < fours; c += N * p.lanes) {
        float w[N][4];
        Four x[N][T];
#pragma unroll
        for (int n = 0; n < N; n++) {
            int at = 4 * min(c + n * p.lanes, fours - 1);
            F::four(of.w.plane[0], first + at, w[n]);
#pragma unroll
            for (int t = 0; t < T; t++) x[n][t] = load_16(p.x + (i64)min(x_row + t, last) * p.cols + at);
        }
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int t = 0; t < T; t++)
#pragma unroll
                for (int i = 0; i < 4; i++) acc[t] += c + n * p.lanes < fours ? w[n][i] * __int_as_float(x[n][t].v[i]) : 0;
    }
#pragma unroll 1
    for (int c = 4 * fours + threadIdx.x % p.lanes; c < p.cols; c += p.lanes) {
        float w = F::value(of.w.plane[0], first + c);
#pragma unroll
        for (int t = 0; t < T; t++) acc[t] += w * p.x[(i64)min(x_row + t, last) * p.cols + c];
    }
    finish_rows<T>(p, of, v, r, live, acc);
}

// Dequantises one row of a table per vector: the row in `chosen`, or the vector's own index. Grid: vectors, units / 128.
template <class F> __device__ __forceinline__ void embed(const Product& p) {
    follow_launch();
    i64 row = p.chosen ? p.chosen[blockIdx.x] : (int)blockIdx.x;
    int u = blockIdx.y * blockDim.x + threadIdx.x, units = p.cols / F::LEN * F::UNITS;
    if (u >= units) return;
    int block = u / F::UNITS, i = u % F::UNITS;
    Unit w = F::unit(p.of[0].w, row * (p.cols / F::LEN) + block, i);
    float* y = p.of[0].y + (i64)blockIdx.x * p.of[0].y_stride + block * F::LEN;
#pragma unroll
    for (int g = 0; g < 2; g++)
#pragma unroll
        for (int j = 0; j < 16; j++) {
            float level = (float)(i8)(w.q[4 * g + j / 4] >> (j % 4 * 8));
            y[F::at(i, g) + j] = w.s[g] * level - w.m[g];
        }
}

// Grid: vectors, columns / 128.
template <class F> __device__ __forceinline__ void embed_plain(const Product& p) {
    follow_launch();
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    i64 row = p.chosen ? p.chosen[blockIdx.x] : (int)blockIdx.x;
    if (c < p.cols) p.of[0].y[(i64)blockIdx.x * p.of[0].y_stride + c] = F::value(p.of[0].w.plane[0], row * p.cols + c);
}
