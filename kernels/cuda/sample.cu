// Top-k of each row, so that sampling does not copy all logits to the host.
//
// Each value becomes a 64-bit integer key: order-preserving bits of the value above the complement of the column. Keys are
// distinct, so the top n and their order do not depend on scheduling, and ties and extremes need no special case. Key 0 is no
// number: NaN, or beyond the row's end.
//
// Bound by latency: a row of 160,000 values is 640 KiB, which the preceding matmul has left in L2. A row is therefore split
// over more blocks than multiprocessors (parts of 1024 values, sorted in shared memory as far as the top m need it), followed
// by few launches that merge descending lists of m pairwise until one is left, 4096 keys per block. m is a power of two up to
// 256. For m = 1 this is a tree of maxima. Next: host/shim.h.
#include "common.cuh"

#define PART 1024  // values per block
#define MERGE 4096 // keys per merging block

struct PartShared {
    u64 keys[PART];
    float scratch[33];
};

struct MergeShared {
    u64 keys[MERGE];
    float scratch[33];
};

// -0 counts as 0, as in comparisons.
__device__ __forceinline__ u64 key_of(float v, int column) {
    if (v != v) return 0;
    u32 bits = v == 0 ? 0 : (u32)__float_as_int(v);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (u64)bits << 32 | (u32)~column;
}

// The value of a key; -infinity for no number.
__device__ __forceinline__ float value_of(u64 key) {
    u32 bits = (u32)(key >> 32);
    if (key == 0) return -INFINITY_F;
    return __int_as_float((int)(bits >> 31 ? bits ^ 0x80000000u : ~bits));
}

__device__ __forceinline__ void larger_first(u64* keys, int i, int j) {
    u64 a = keys[i], b = keys[j];
    if (a < b) keys[i] = b, keys[j] = a;
}

// Sorts bitonic lists of 2^bits keys, 2^apart apart, in descending order.
__device__ __forceinline__ void order_lists(u64* keys, int lists, int bits, int apart) {
    for (int by = (1 << bits) / 2; by > 0; by /= 2) {
        for (int t = threadIdx.x; t < lists << bits >> 1; t += blockDim.x) {
            int p = t & ((1 << bits) / 2 - 1), i = (t >> (bits - 1) << apart) + 2 * p - (p & (by - 1));
            larger_first(keys, i, i + by);
        }
        __syncthreads();
    }
}

// Sorts 2^all keys in lists of 2^bits in descending order.
__device__ __forceinline__ void sort_lists(u64* keys, int all, int bits) {
    for (int half = 0; half < bits; half++) { // two lists of 2^half, the second read backwards, are a bitonic one
        for (int t = threadIdx.x; t < 1 << all >> 1; t += blockDim.x) {
            int p = t & ((1 << half) - 1), first = t >> half << (half + 1);
            larger_first(keys, first + p, first + (2 << half) - 1 - p);
        }
        __syncthreads();
        order_lists(keys, 1 << (all - half), half, half);
    }
}

// Moves the largest 2^bits keys of descending lists of 2^bits (2^all keys) to the front. Of two lists, one read backwards, the
// larger of each pair are the largest keys, and form a bitonic list.
__device__ __forceinline__ void merge_lists(u64* keys, int all, int bits) {
    for (int apart = bits; apart < all; apart++) {
        int pairs = 1 << (all - apart - 1);
        for (int t = threadIdx.x; t < pairs << bits; t += blockDim.x) {
            int p = t & ((1 << bits) - 1), first = t >> bits << (apart + 1);
            keys[first + p] = max(keys[first + p], keys[first + (1 << apart) + (1 << bits) - 1 - p]);
        }
        __syncthreads();
        order_lists(keys, pairs, bits, apart + 1);
    }
}

// The largest 2^bits keys of each part of a row, and the sum of e^(v - the part's largest). Grid: rows, parts.
KERNEL(best_of_part, 256)(const float* x, u64* best, float* sums, int cols, int bits) {
    SHARED(PartShared, s);
    follow_launch();
    float v[PART / 256];
    x += (i64)blockIdx.x * cols;
#pragma unroll
    for (int k = 0; k < PART / 256; k++) {
        int i = k * 256 + threadIdx.x, c = blockIdx.y * PART + i;
        v[k] = c < cols ? x[c] : __int_as_float(0x7fffffff);
        s->keys[i] = key_of(v[k], c);
    }
    __syncthreads();
    sort_lists(s->keys, 10, bits);
    merge_lists(s->keys, 10, bits);
    float most = value_of(s->keys[0]), sum = 0;
#pragma unroll
    for (int k = 0; k < PART / 256; k++)
        if (v[k] > -INFINITY_F) sum += expf(v[k] - most);
    sum = block_sum(sum, s->scratch);
    i64 part = (i64)blockIdx.x * gridDim.y + blockIdx.y;
    for (int i = threadIdx.x; i < 1 << bits; i += 256) best[(part << bits) + i] = s->keys[i];
    if (threadIdx.x == 0) sums[part] = sum;
}
REGISTER(best_of_part)

// The same for the lists and sums of a group of each row's `parts`. Grid: rows, groups of MERGE keys.
KERNEL(best_of_parts, 1024)(const u64* lists, const float* of_lists, u64* best, float* sums, int parts, int bits) {
    SHARED(MergeShared, s);
    follow_launch();
    int each = MERGE >> bits, first = blockIdx.y * each, n = min(each, parts - first), all = bits;
    i64 from = (i64)blockIdx.x * parts + first, group = (i64)blockIdx.x * gridDim.y + blockIdx.y;
    while (1 << (all - bits) < n) all++;
    for (int i = threadIdx.x; i < 1 << all; i += 1024) s->keys[i] = i < n << bits ? lists[(from << bits) + i] : 0;
    __syncthreads();
    merge_lists(s->keys, all, bits);
    float most = value_of(s->keys[0]), sum = 0;
    for (int l = threadIdx.x; l < n; l += 1024) {
        float own = value_of(lists[(from + l) << bits]);
        if (own > -INFINITY_F) sum += of_lists[from + l] * expf(own - most);
    }
    sum = block_sum(sum, s->scratch);
    for (int i = threadIdx.x; i < 1 << bits; i += 1024) best[(group << bits) + i] = s->keys[i];
    if (threadIdx.x == 0) sums[group] = sum;
}
REGISTER(best_of_parts)
