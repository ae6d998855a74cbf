// RMSNorm of the residual stream in the last block of the product that adds to it, which saves a launch per norm.
//
// The other blocks publish their rows by a fence and a counter (last_of). Next: product.cuh.
#pragma once
#include "dot.cuh"

// The norm after a product; w is null where there is none.
struct NormAfter {
    const float* w;
    float* h;      // [tokens, cols]
    i8* q;         // the same, quantised
    XScale* scale;
    int* count;    // of finished blocks, for each row of the grid; zero
    float eps;
    int unused;
};

#define NORM_FOURS 5 // loads in flight per thread: 2,560 columns for 128 threads

// h = x / sqrt(mean(x^2) + eps) * w of row `row`, which other blocks have written. cols is a multiple of 32; scratch: 33 floats.
__device__ __forceinline__ void norm_row(const NormAfter& p, const float* x, i64 row, int cols, float* scratch) {
    int own = 4 * threadIdx.x, step = 4 * blockDim.x;
    x += row * cols;
    float sum = 0;
#pragma unroll 1
    for (int first = 0; first < cols; first += NORM_FOURS * step) {
        int c = first + own;
        Four v[NORM_FOURS];
#pragma unroll
        for (int n = 0; n < NORM_FOURS; n++) v[n] = c + n * step < cols ? read_fresh_16(x + c + n * step) : Four{};
#pragma unroll
        for (int n = 0; n < NORM_FOURS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum += __int_as_float(v[n].v[i]) * __int_as_float(v[n].v[i]);
    }
    float factor = 1.0f / sqrtf(block_sum(sum, scratch) / (float)cols + p.eps);
#pragma unroll 1
    for (int first = 0; first < cols; first += NORM_FOURS * step) {
        int c = first + own;
        Four v[NORM_FOURS], w[NORM_FOURS];
#pragma unroll
        for (int n = 0; n < NORM_FOURS; n++) {
            int at = c + n * step < cols ? c + n * step : 0;
            v[n] = read_fresh_16(x + at), w[n] = read_16(p.w + at);
        }
#pragma unroll
        for (int n = 0; n < NORM_FOURS; n++) {
            bool in = c + n * step < cols;
            i64 at = row * cols + c + n * step;
            Four y;
#pragma unroll
            for (int i = 0; i < 4; i++) y.v[i] = __float_as_int(__int_as_float(v[n].v[i]) * factor * __int_as_float(w[n].v[i]));
            if (in) *(Four*)(p.h + at) = y;
            quantise_fours(y, p.q, p.scale, at, in);
        }
    }
}

// Norms of rows first..end of x in the last block of a row of the grid. All threads must call it after they have written x.
// s: 34 floats of shared memory.
__device__ __forceinline__ void norm_after(const NormAfter& p, const float* x, int first, int end, int cols, float* s) {
    __syncthreads();
    if (!last_of(p.count + blockIdx.y, gridDim.x, (int*)s)) return;
#pragma unroll 1
    for (int row = first; row < end; row++) norm_row(p, x, row, cols, s + 1);
}
