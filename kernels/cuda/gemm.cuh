// GEMM: multiplies stored weights with many vectors, in tiles of 128 rows by 64 vectors on the int8 tensor cores.
//
// y_v = sum over groups of 32 (or 16) weights of  d_x s (q . x) - d_x m sum(x)
//
// Vectors are grouped by matrix (expert or head); a block takes one matrix and up to 64 vectors of its group, at any
// positions in the batch. A tile of 128 columns is decoded once to bytes in shared memory. Integer sums start at the bits
// of 1.5 * 2^23, so that one subtraction converts them to floats (|sum| < 2^22). Bound by arithmetic from about 64 vectors
// per matrix on. Next: rows.cu.
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
    float s[TILE_COLS / 16][TILE_ROWS];
    float m[TILE_COLS / 16][TILE_ROWS];
    float d[TILE_COLS / 32][TILE_VECTORS];
    float sum[TILE_COLS / 16][TILE_VECTORS]; // d times the sum of 16 quants
    int vector[TILE_VECTORS];
};

// Decodes weights of columns `col..col+128` to bytes; zero beyond the matrix.
template <class F> __device__ __forceinline__ void unpack(const Gemm& p, Tile& tile, int group, int col) {
    int row0 = blockIdx.x * TILE_ROWS;
    for (int u = threadIdx.x; u < TILE_ROWS * 4; u += blockDim.x) {
        int r = u / 4, unit = col / 32 + u % 4, block = unit / F::UNITS, i = unit % F::UNITS;
        bool live = row0 + r < p.rows && unit * 32 < p.cols;
        Unit w = {};
        if (live) w = F::unit(p.w, ((i64)group * p.rows + row0 + r) * (p.cols / F::LEN) + block, i);
#pragma unroll
        for (int g = 0; g < 2; g++) {
            int at = block * F::LEN + F::at(i, g) - col;
            *(Four*)(tile.w + r * TILE_PITCH + at) = Four{{w.q[4 * g], w.q[4 * g + 1], w.q[4 * g + 2], w.q[4 * g + 3]}};
            tile.s[at / 16][r] = w.s[g];
            tile.m[at / 16][r] = w.m[g];
        }
    }
}

// Loads activations of columns `col..col+128`.
__device__ __forceinline__ void load_x(const Gemm& p, Tile& tile, int n, int col) {
    for (int u = threadIdx.x; u < TILE_VECTORS * 8; u += blockDim.x) {
        int v = u / 8, c = col + u % 8 * 16;
        Four x = {};
        float d = 0, sum = 0;
        if (v < n && c < p.cols) {
            i64 at = (i64)(tile.vector[v] / p.x_div) * p.cols + c;
            x = read_16(p.q + at);
            XScale scale = p.scale[at / 32];
            d = scale.d;
            sum = d * (float)(c / 16 % 2 ? scale.sum[1] : scale.sum[0]);
        }
        *(Four*)(tile.x + v * TILE_PITCH + u % 8 * 16) = x;
        if (u % 2 == 0) tile.d[u % 8 / 2][v] = d;
        tile.sum[u % 8][v] = sum;
    }
}

// Accumulates 32 columns in the 16 rows x 64 vectors of a warp.
template <class F> __device__ __forceinline__ void multiply(const Tile& tile, int k, float acc[8][4]) {
    int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, r = threadIdx.x / 32 * 16 + g;
    const i8* w = tile.w + r * TILE_PITCH + 32 * k + 4 * c;
    u32 a[4] = {*(const u32*)w, *(const u32*)(w + 8 * TILE_PITCH), *(const u32*)(w + 16),
                *(const u32*)(w + 8 * TILE_PITCH + 16)};
    float s[2][2], m[2][2]; // [group of 16][row]
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) s[i][j] = tile.s[2 * k + i][r + 8 * j], m[i][j] = tile.m[2 * k + i][r + 8 * j];
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const i8* x = tile.x + (8 * n + g) * TILE_PITCH + 32 * k + 4 * c;
        u32 b[2] = {*(const u32*)x, *(const u32*)(x + 16)};
        int low[4] = {MAGIC, MAGIC, MAGIC, MAGIC}, high[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
        if (F::SIXTEENS) {
            u32 a_low[2] = {a[0], a[1]}, a_high[2] = {a[2], a[3]};
            mma_i8_16(low, a_low, b[0]);
            mma_i8_16(high, a_high, b[1]);
        } else {
            mma_i8(low, a, b);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int v = 8 * n + 2 * c + j % 2;
            float d = tile.d[k][v], dot = s[0][j / 2] * (__int_as_float(low[j]) - 12582912.0f);
            if (F::SIXTEENS) dot += s[1][j / 2] * (__int_as_float(high[j]) - 12582912.0f);
            acc[n][j] += d * dot - m[0][j / 2] * tile.sum[2 * k][v] - m[1][j / 2] * tile.sum[2 * k + 1][v];
        }
    }
}

// Grid: rows / 128, tiles of vectors; 256 threads.
template <class F> __device__ __forceinline__ void gemm(const Gemm& p) {
    SHARED(Tile, tile);
    Part part = part_of(p);
    if (part.n <= 0) return;
    if (threadIdx.x < part.n) tile->vector[threadIdx.x] = vector_of(p, part, threadIdx.x);
    float acc[8][4] = {};
    for (int col = 0; col < p.cols; col += TILE_COLS) {
        __syncthreads();
        unpack<F>(p, *tile, part.group, col);
        load_x(p, *tile, part.n, col);
        __syncthreads();
#pragma unroll
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
