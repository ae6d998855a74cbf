// Chooses a token's experts from the logits of its router.
//
// s = sigmoid(logits); the top_k experts with the largest s + bias, lowest index first among equals; weights are the
// unbiased s. NaN ranks below every number. Next: route.cu.
#pragma once
#include "common.cuh"

struct Route {
    const float *logits, *bias;
    int* chosen;
    float* weights;
    int experts, top_k, groups, top_groups;
    int normalise;
    float scale;
};

// Returns whether (score a, index i) ranks before (score b, index j).
__device__ __forceinline__ bool before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

// The best candidate of all lanes; index -1 is no candidate.
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

// Order-preserving bits of a number, above 0.
__device__ __forceinline__ u32 ordered(float x) {
    u32 bits = (u32)__float_as_int(x);
    return bits >> 31 ? ~bits : bits | 0x80000000;
}

#define LANE_EXPERTS 8 // per lane, kept in registers

// Top-k (up to 32) of one group of up to 256 experts. Each round reduces the lanes' largest scores, then the lowest index among
// equals. Lane k keeps the choice of round k.
__device__ __forceinline__ void choose_few(const Route& p, float* s, i64 t) {
    int lane = threadIdx.x % 32, own = 0;
    u32 key[LANE_EXPERTS]; // 0: no expert, or chosen
    float logit[LANE_EXPERTS], bias[LANE_EXPERTS];
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; i++) {
        int e = min(lane + 32 * i, p.experts - 1);
        logit[i] = read_fresh(p.logits + t * p.experts + e);
        bias[i] = p.bias[e];
    }
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; i++) {
        float score = sigmoid(logit[i]), biased = score + bias[i] + 0.0f; // -0 equals 0
        bool there = lane + 32 * i < p.experts;
        if (there) s[lane + 32 * i] = score;
        key[i] = there ? ordered(biased != biased ? -INFINITY_F : biased) : 0;
    }
    for (int k = 0; k < p.top_k; k++) {
        u32 most = 0;
#pragma unroll
        for (int i = 0; i < LANE_EXPERTS; i++) most = max(most, key[i]);
        most = __reduce_max_sync(FULL, most);
        u32 first = FULL;
#pragma unroll
        for (int i = LANE_EXPERTS - 1; i >= 0; i--) first = key[i] == most ? lane + 32 * i : first;
        first = __reduce_min_sync(FULL, first);
#pragma unroll
        for (int i = 0; i < LANE_EXPERTS; i++) key[i] = lane + 32 * i == first ? 0 : key[i];
        if (lane == k) own = (int)first;
    }
    __syncwarp();
    float score = lane < p.top_k ? s[own] : 0, norm = p.normalise ? warp_sum(score) + 1e-20f : 1.0f;
    if (lane >= p.top_k) return;
    p.chosen[t * p.top_k + lane] = own;
    p.weights[t * p.top_k + lane] = score / norm * p.scale;
}

// One warp per token, at most 1024 experts. Shared memory of a choice, in floats: [experts] scores, [experts] biased scores,
// [groups] sums.
__device__ __forceinline__ void choose(const Route& p, float* s, i64 t) {
    if (p.top_groups == p.groups && p.experts <= 32 * LANE_EXPERTS && p.top_k <= 32) return choose_few(p, s, t);
    float *biased = s + p.experts, *sums = biased + p.experts;
    int lane = threadIdx.x % 32, size = p.experts / p.groups;
    for (int e = lane; e < p.experts; e += 32) {
        s[e] = sigmoid(read_fresh(p.logits + t * p.experts + e));
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
