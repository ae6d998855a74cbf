// The router, the order in which the products of the experts go over the batch, and experts that change their place.
//
// s = sigmoid(logits); the top_k experts with the largest s + bias, lowest index first among equals; weights are the
// unbiased s. NaN ranks below every number. Next: attention.cu.
#include "common.cuh"

struct Route {
    const float *logits, *bias;
    int* chosen;
    float* weights;
    int experts, top_k, groups, top_groups;
    int normalise;
    float scale;
};

// Is (score a, index i) before (score b, index j)?
__device__ __forceinline__ bool before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

// The best of all lanes' candidates; index -1 is no candidate.
__device__ __forceinline__ int warp_best(float score, int index) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) {
        float s = __shfl_xor_sync(FULL, score, by);
        int i = __shfl_xor_sync(FULL, index, by);
        if (i >= 0 && (index < 0 || before(s, i, score, index))) score = s, index = i;
    }
    return index;
}

// Sum of the two best scores of a group.
__device__ __forceinline__ float two_best(const float* s, int n) {
    float first = -INFINITY_F, second = -INFINITY_F;
    for (int i = 0; i < n; i++) {
        second = fmaxf(second, fminf(s[i], first));
        first = fmaxf(first, s[i]);
    }
    return n > 1 ? first + second : first;
}

// A warp a token; shared: [experts] scores, [experts] biased scores, [groups] sums. At most 1024 experts.
KERNEL(route, 32)(const __grid_constant__ Route p) {
    SHARED(float, s);
    float *biased = s + p.experts, *sums = biased + p.experts;
    int lane = threadIdx.x, size = p.experts / p.groups;
    i64 t = blockIdx.x;
    for (int e = lane; e < p.experts; e += 32) {
        s[e] = sigmoid(p.logits[t * p.experts + e]);
        float score = s[e] + p.bias[e];
        biased[e] = score != score ? -INFINITY_F : score;
    }
    __syncwarp();
    u32 taken = 0; // bit i: expert lane + 32 i is chosen or its group is out
    if (p.top_groups < p.groups) {
        for (int g = lane; g < p.groups; g += 32) sums[g] = two_best(biased + g * size, size);
        __syncwarp();
        for (int e = lane; e < p.experts; e += 32) {
            int better = 0;
            for (int g = 0; g < p.groups; g++) better += before(sums[g], g, sums[e / size], e / size);
            if (better >= p.top_groups) taken |= 1u << (e / 32);
        }
    }
    float sum = 0;
    for (int k = 0; k < p.top_k; k++) {
        float score = 0;
        int index = -1;
        for (int e = lane; e < p.experts; e += 32)
            if (!(taken >> (e / 32) & 1) && (index < 0 || before(biased[e], e, score, index))) score = biased[e], index = e;
        index = warp_best(score, index);
        if (index % 32 == lane) taken |= 1u << (index / 32);
        sum += s[index];
        if (lane == 0) p.chosen[t * p.top_k + k] = index;
    }
    __syncwarp();
    float norm = p.normalise ? sum + 1e-20f : 1.0f;
    for (int k = lane; k < p.top_k; k += 32) p.weights[t * p.top_k + k] = s[p.chosen[t * p.top_k + k]] / norm * p.scale;
}
REGISTER(route)

// Pairs (token, slot) in the order of their experts, and tiles of up to `tile` of them. One block; shared: [2 experts].
// `tiles` has room for n / tile + experts entries; those not in use get group -1. Pairs without an expert are left out.
KERNEL(group_pairs, 1024)(const int* chosen, int n, int experts, int tile, int* pairs, int* starts, int* tiles) {
    SHARED(int, count);
    int *next = count + experts, room = n / tile + experts;
    for (int e = threadIdx.x; e < experts; e += blockDim.x) count[e] = 0;
    for (int i = threadIdx.x; i < room; i += blockDim.x) tiles[2 * i] = -1;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (chosen[i] >= 0) atomicAdd(count + chosen[i], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        int start = 0, at = 0;
        for (int e = 0; e < experts; e++) {
            starts[e] = next[e] = start;
            start += count[e];
            for (int first = 0; first < count[e]; first += tile, at++) tiles[2 * at] = e, tiles[2 * at + 1] = first;
        }
        starts[experts] = start;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (chosen[i] >= 0) pairs[atomicAdd(next + chosen[i], 1)] = i;
}
REGISTER(group_pairs)

// y_t = sum over slots, in their order, of weight * out; slots without an expert are left out. Grid: tokens, columns / 256.
KERNEL(weighted_sum, 256)(const float* out, const int* chosen, const float* weights, float* y, int top_k, int cols) {
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    i64 t = blockIdx.x;
    if (c >= cols) return;
    float sum = 0;
    for (int k = 0; k < top_k; k++)
        if (chosen[t * top_k + k] >= 0) sum += weights[t * top_k + k] * out[(t * top_k + k) * cols + c];
    y[t * cols + c] = sum;
}
REGISTER(weighted_sum)

// Some matrices of a stack to another: moves[i] is [to, from], each of so many bytes. Grid: moves, parts of a matrix.
KERNEL(move_matrices, 256)(const int* moves, const u8* from, u8* to, i64 bytes) {
    i64 i = blockIdx.y * (i64)blockDim.x + threadIdx.x, step = (i64)gridDim.y * blockDim.x;
    to += moves[2 * blockIdx.x] * bytes;
    from += moves[2 * blockIdx.x + 1] * bytes;
    if (bytes % 16 == 0)
        for (; i < bytes / 16; i += step) ((int4*)to)[i] = ((const int4*)from)[i];
    else
        for (; i < bytes; i += step) to[i] = from[i];
}
REGISTER(move_matrices)
