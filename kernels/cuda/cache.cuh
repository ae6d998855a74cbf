// Rows of a KV cache on the device: segments of SEGMENT rows, addressed through a header that kernels advance.
//
// A row of F32 or F16 is its values; a row of Q8_0 is its quants in blocks of 32, followed by their scales in binary16.
// Rows are padded to 16 bytes. (The host converts Q8_0 rows to ggml's blocks on export.) Next: attention.cu.
#pragma once
#include "common.cuh"

#define SEGMENT 256
enum CacheFormat { CACHE_F32, CACHE_F16, CACHE_Q8_0 };

// In device memory, one per cache: replayed launches find the same header with more rows.
struct Header {
    int len;
    int unused;
    u8* const* segments;
};

struct CacheShape {
    int format, width, blocks, row_bytes; // blocks of 32 values, rounded up
};

__device__ __forceinline__ u8* cache_row(const Header* h, const CacheShape& shape, int row) {
    return h->segments[row / SEGMENT] + (i64)(row % SEGMENT) * shape.row_bytes;
}

__device__ __forceinline__ float cache_value(const u8* row, const CacheShape& shape, int c) {
    if (shape.format == CACHE_F32) return ((const float*)row)[c];
    if (shape.format == CACHE_F16) return f16_float(((const u16*)row)[c]);
    return (float)((const i8*)row)[c] * f16_float(((const u16*)(row + 32 * shape.blocks))[c / 32]);
}
