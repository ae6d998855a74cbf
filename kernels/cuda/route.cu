// Routing, the grouping of routed pairs by expert, and the combination and relocation of experts.
//
// Next: attention.cu.
#include "route.cuh"

// Grid: tokens, one warp each. Shared: the scratch of a choice.
KERNEL(route, 32)(const __grid_constant__ Route p) {
    SHARED(float, s);
    follow_launch();
    choose(p, s, blockIdx.x);
}
REGISTER(route)

// Sorts (token, slot) pairs by expert and splits them into tiles of up to `tile`. One block; shared: [2 experts]. `tiles` has
// room for n / tile + experts entries; unused ones get group -1. Pairs without an expert are skipped.
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

// y_t = sum over slots, in their order, of weight * out; slots without an expert are skipped. Grid: tokens, columns / 256.
KERNEL(weighted_sum, 256)(const float* out, const int* chosen, const float* weights, float* y, int top_k, int cols) {
    follow_launch();
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    i64 t = blockIdx.x;
    if (c >= cols) return;
    float sum = 0;
    for (int k = 0; k < top_k; k++)
        if (chosen[t * top_k + k] >= 0) sum += weights[t * top_k + k] * out[(t * top_k + k) * cols + c];
    y[t * cols + c] = sum;
}
REGISTER(weighted_sum)

// Copies matrices between stacks: moves[i] is [to, from]. Grid: moves, parts of a matrix.
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
