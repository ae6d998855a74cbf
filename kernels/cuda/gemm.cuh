// GEMM: multiplies stored weights with many vectors, in tiles of 128 rows by 64 vectors on the int8 tensor cores.
//
// y_v = sum over groups of 32 (or 16) weights of  d_x s (q . x) - d_x m sum(x)
//
// Vectors are grouped by matrix (expert or head); a block takes one matrix and up to 64 vectors of its group, at any
// positions in the batch. A tile of 128 columns is decoded once to bytes in shared memory. Integer sums start at the bits
// of 1.5 * 2^23, so that they are floats (|sum| < 2^22): s (sum - 1.5 * 2^23) is one fused multiply-add, and exact before its
// rounding, because s is a binary16 times a small integer and its product with the constant fits in 24 bits. Bound by
// arithmetic from about 64 vectors per matrix on. Next: rows.cu.
#pragma once
#include "product.cuh"

// Appends the format to a kernel's name.
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#define TILE_ROWS 128
#define TILE_VECTORS 64
#define TILE_COLS 128
#define TILE_PITCH (TILE_COLS + 16) // bytes; avoids bank conflicts of the fragments
#define MAGIC 0x4b400000            // 12582912.0f

struct Gemm {
    Planes w;
    float* y;
    const i8* q;
    const XScale* scale;
    const float* x;
    const int* pairs;  // vectors ordered by group, or null: vector i of group g is i * groups + g
    const int* starts; // [groups + 1] first entry of each group in `pairs`
    const int* tiles;  // [tiles][2]: group (or -1) and its first vector; used with `pairs`
    int rows;
    int cols;
    int y_stride;
    int groups;
    int vectors;       // per group; used without `pairs`
    int x_div;
};

// The vectors of this block: group, first within it, count.
struct Part {
    int group, first, n;
};

__device__ __forceinline__ Part part_of(const Gemm& p) {
    if (!p.pairs) {
        int each = (p.vectors + TILE_VECTORS - 1) / TILE_VECTORS;
        int first = blockIdx.y % each * TILE_VECTORS;
        return Part{(int)blockIdx.y / each, first, min(TILE_VECTORS, p.vectors - first)};
    }
    int group = p.tiles[2 * blockIdx.y];
    if (group < 0) return Part{0, 0, 0};
    int first = p.tiles[2 * blockIdx.y + 1];
    return Part{group, first, min(TILE_VECTORS, p.starts[group + 1] - p.starts[group] - first)};
}

__device__ __forceinline__ int vector_of(const Gemm& p, const Part& part, int i) {
    int at = part.first + i;
    return p.pairs ? p.pairs[p.starts[part.group] + at] : at * p.groups + part.group;
}

// Shared memory of a block.
struct Tile {
    i8 w[TILE_ROWS * TILE_PITCH];
    i8 x[TILE_VECTORS * TILE_PITCH];
    int2 w_scale[TILE_COLS / 16][TILE_ROWS];    // s and m, as bits
    union {
        int2 one[TILE_COLS / 32][TILE_VECTORS];     // d and d times the sum of the quants of a scale, as bits
        float two[3][TILE_COLS / 32][TILE_VECTORS]; // for two scales: d, and d times the sum for either
    } x_scale;
    int vector[TILE_VECTORS];
    int input[TILE_VECTORS]; // rows of activations
};

__device__ __forceinline__ int2 bits(float x, float y) { return int2{__float_as_int(x), __float_as_int(y)}; }

// Columns that share a scale.
template <class F> constexpr int SCALE_COLS = F::SIXTEENS ? 16 : 32;

// Decodes weights of columns `col..col+128` to bytes; zero beyond the matrix. A thread takes two units, which mostly share a
// header.
template <class F> __device__ __forceinline__ void unpack(const Gemm& p, Tile& tile, int group, int col) {
    int r = threadIdx.x / 2, row = blockIdx.x * TILE_ROWS + r;
    u32 unit = col / 32 + threadIdx.x % 2 * 2;
    i64 first = ((i64)group * p.rows + row) * (p.cols / F::LEN);
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u32 block = F::UNITS > 1 ? unit / F::UNITS : unit + h;
        int i = F::UNITS > 1 ? unit % F::UNITS + h : 0;
        Unit w = {};
        // Both units are in one block of a format with several, so that one condition holds for both.
        if (row < p.rows && (F::UNITS > 1 ? unit : unit + h) * 32 < p.cols) w = F::unit(p.w, first + block, i);
        int at0 = (int)block * F::LEN - col;
#pragma unroll
        for (int g = 0; g < 2; g++) {
            u32 at = at0 + F::at(i, g);
            *(Four*)(tile.w + r * TILE_PITCH + at) = Four{{w.q[4 * g], w.q[4 * g + 1], w.q[4 * g + 2], w.q[4 * g + 3]}};
            if (F::SIXTEENS || at % 32 == 0) tile.w_scale[at / SCALE_COLS<F>][r] = bits(w.s[g], w.m[g]);
        }
    }
}

// Loads activations of columns `col..col+128`: 32 of one vector per thread.
template <class F> __device__ __forceinline__ void load_x(const Gemm& p, Tile& tile, int n, int col) {
    int v = threadIdx.x / 4, k = threadIdx.x % 4, c = col + 32 * k;
    Four low = {}, high = {};
    int2 scale = {};
    if (v < n && c < p.cols) {
        u64 at = (u64)(u32)tile.input[v] * (u32)p.cols + c;
        low = read_16(p.q + at), high = read_16(p.q + at + 16);
        scale = GlobalMem::scale(p.scale + at / 32);
    }
    *(Four*)(tile.x + v * TILE_PITCH + 32 * k) = low;
    *(Four*)(tile.x + v * TILE_PITCH + 32 * k + 16) = high;
    float d = __int_as_float(scale.x);
    int sums[2] = {(int)(i16)scale.y, scale.y >> 16};
    if (!F::SIXTEENS) {
        tile.x_scale.one[k][v] = bits(d, d * (float)(sums[0] + sums[1]));
        return;
    }
    tile.x_scale.two[0][k][v] = d;
#pragma unroll
    for (int i = 0; i < 2; i++) tile.x_scale.two[1 + i][k][v] = d * (float)sums[i];
}

// s (sum - 12582912) of a sum that started at MAGIC; `offset` is -12582912 s.
__device__ __forceinline__ float scaled(int sum, float s, float offset) { return fmaf(__int_as_float(sum), s, offset); }

// Accumulates 32 columns in the 16 rows x 64 vectors of a warp.
template <class F> __device__ __forceinline__ void multiply(const Tile& tile, int k, float acc[8][4]) {
    const int N = 32 / SCALE_COLS<F>; // scales per row
    int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, r = threadIdx.x / 32 * 16 + g;
    SharedBase w(tile.w + (threadIdx.x / 32 * 16 + lane % 16) * TILE_PITCH + lane / 16 * 16);
    SharedBase x(tile.x + (lane % 8 + lane / 16 * 8) * TILE_PITCH + lane / 8 % 2 * 16);
    u32 a[4];
    load_4(a, w, 16 * k);
    float s[N][2], offset[N][2], m[N][2]; // [scale][row]
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int2 scale = tile.w_scale[N * k + i][r + 8 * j];
            s[i][j] = __int_as_float(scale.x), m[i][j] = __int_as_float(scale.y);
            offset[i][j] = -12582912.0f * s[i][j];
        }
    u32 b[4]; // of two n
#pragma unroll
    for (int n = 0; n < 8; n++) {
        if (n % 2 == 0) load_4(b, x, n * 4 * TILE_PITCH + 16 * k);
        const u32* own = b + n % 2 * 2;
        int low[4] = {MAGIC, MAGIC, MAGIC, MAGIC}, high[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
        if (F::SIXTEENS) {
            u32 a_low[2] = {a[0], a[1]}, a_high[2] = {a[2], a[3]};
            mma_i8_16(low, a_low, own[0]);
            mma_i8_16(high, a_high, own[1]);
        } else {
            mma_i8(low, a, own);
        }
        int v = 8 * n + 2 * c;
        Four both = {}; // d and the sum of either vector
        if (!F::SIXTEENS) both = *(const Four*)&tile.x_scale.one[k][v];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float dot = scaled(low[j], s[0][j / 2], offset[0][j / 2]);
            if (!F::SIXTEENS) {
                acc[n][j] += __int_as_float(both.v[j % 2 * 2]) * dot;
                acc[n][j] -= m[0][j / 2] * __int_as_float(both.v[j % 2 * 2 + 1]);
                continue;
            }
            dot += scaled(high[j], s[N - 1][j / 2], offset[N - 1][j / 2]);
            acc[n][j] += tile.x_scale.two[0][k][v + j % 2] * dot;
#pragma unroll
            for (int i = 0; i < N; i++) acc[n][j] -= m[i][j / 2] * tile.x_scale.two[1 + i][k][v + j % 2];
        }
    }
}

// Grid: rows / 128, tiles of vectors; 256 threads.
template <class F> __device__ __forceinline__ void gemm(const Gemm& p) {
    SHARED(Tile, tile);
    Part part = part_of(p);
    if (part.n <= 0) return;
    if (threadIdx.x < part.n) {
        int v = vector_of(p, part, threadIdx.x);
        tile->vector[threadIdx.x] = v, tile->input[threadIdx.x] = v / p.x_div;
    }
    float acc[8][4] = {};
    for (int col = 0; col < p.cols; col += TILE_COLS) {
        __syncthreads();
        unpack<F>(p, *tile, part.group, col);
        load_x<F>(p, *tile, part.n, col);
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < TILE_COLS / 32; k++) multiply<F>(*tile, k, acc);
    }
    int lane = threadIdx.x % 32, row = blockIdx.x * TILE_ROWS + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int v = 8 * n + lane % 4 * 2 + j % 2, r = row + j / 2 * 8;
            if (v < part.n && r < p.rows) p.y[(i64)tile->vector[v] * p.y_stride + r] = acc[n][j];
        }
}

#define PLAIN 64 // rows and vectors of a float tile
#define DEPTH 16

struct PlainTile {
    float w[DEPTH][PLAIN + 4];
    float x[DEPTH][PLAIN + 4];
    int vector[PLAIN];
};

// The same for float formats: 256 threads, four rows by four vectors each.
template <class F> __device__ __forceinline__ void gemm_plain(const Gemm& p) {
    SHARED(PlainTile, tile);
    Part part = part_of(p);
    if (part.n <= 0) return;
    if (threadIdx.x < part.n) tile->vector[threadIdx.x] = vector_of(p, part, threadIdx.x);
    int row0 = blockIdx.x * PLAIN, r0 = threadIdx.x % 16 * 4, v0 = threadIdx.x / 16 * 4;
    float acc[4][4] = {};
    for (int col = 0; col < p.cols; col += DEPTH) {
        __syncthreads();
        for (int i = threadIdx.x; i < PLAIN * DEPTH; i += blockDim.x) {
            int r = i / DEPTH, c = i % DEPTH;
            bool w = row0 + r < p.rows && col + c < p.cols, x = r < part.n && col + c < p.cols;
            tile->w[c][r] = w ? F::value(p.w.plane[0], ((i64)part.group * p.rows + row0 + r) * p.cols + col + c) : 0;
            tile->x[c][r] = x ? p.x[(i64)(tile->vector[r] / p.x_div) * p.cols + col + c] : 0;
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < DEPTH; c++)
#pragma unroll
            for (int i = 0; i < 16; i++) acc[i / 4][i % 4] += tile->w[c][r0 + i % 4] * tile->x[c][v0 + i / 4];
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        int v = v0 + i / 4, r = row0 + r0 + i % 4;
        if (v < part.n && r < p.rows) p.y[(i64)tile->vector[v] * p.y_stride + r] = acc[i / 4][i % 4];
    }
}
