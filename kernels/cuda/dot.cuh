// Dot products of one row of stored weights with quantised activations, a piece at a time.
//
//   sum over groups of 16 or 32 weights of  d_x (s (q . x) - m sum(x))
//
// A piece is what a thread loads at once: a unit of 32 weights or, for formats with PAIRED, 64 weights of a block of 256 that
// share a header. Pairs decode scales as packed bytes and multiply them with integer sums, which takes a third of the
// instructions of two units. Next: product.cuh.
#pragma once
#include "quant.cuh"

// 32 activations: x_i = d q_i, and the sums of q over their halves.
struct XScale {
    float d;
    i16 sum[2];
};

// How a block of 32 values is quantised: x_i = d q_i with d = max|x| / 127.
struct Quantiser {
    float inverse, d;

    // Takes the bits of max|x|: NaN orders above infinity, so it propagates.
    __device__ __forceinline__ Quantiser(u32 bits) {
        float most = __int_as_float((int)bits);
        inverse = 127.0f * reciprocal_fast(most), d = most * (1.0f / 127.0f);
        if (inverse == INFINITY_F) inverse = 0, d = 0; // also of zeros
    }

    __device__ __forceinline__ int level(float v) const { return __float2int_rn(fminf(fmaxf(v * inverse, -127.0f), 127.0f)); }
};

// Quantises a block of 32 values; writes value `at` of q. A warp takes 32 consecutive values.
__device__ __forceinline__ void quantise_32(float v, i8* q, XScale* scale, i64 at) {
    u32 bits = __float_as_int(fabsf(v));
#pragma unroll
    for (int by = 16; by > 0; by /= 2) bits = max(bits, (u32)__shfl_xor_sync(FULL, (int)bits, by));
    Quantiser to(bits);
    int level = to.level(v), sum = level;
#pragma unroll
    for (int by = 8; by > 0; by /= 2) sum += __shfl_xor_sync(FULL, sum, by);
    int other = __shfl_xor_sync(FULL, sum, 16);
    q[at] = (i8)level;
    if (at % 32 == 0) scale[at / 32] = XScale{to.d, {(i16)sum, (i16)other}};
}

// The same with four floats per lane, of which eight have a block; writes values `at`.. of q if `in`.
__device__ __forceinline__ void quantise_fours(const Four& v, i8* q, XScale* scale, i64 at, bool in) {
    u32 bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) bits = max(bits, (u32)v.v[i] & 0x7fffffff);
#pragma unroll
    for (int by = 4; by > 0; by /= 2) bits = max(bits, (u32)__shfl_xor_sync(FULL, (int)bits, by));
    Quantiser to(bits);
    u32 levels = 0;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int level = to.level(__int_as_float(v.v[i]));
        levels |= (u32)(u8)level << (8 * i), sum += level;
    }
#pragma unroll
    for (int by = 2; by > 0; by /= 2) sum += __shfl_xor_sync(FULL, sum, by);
    int other = __shfl_xor_sync(FULL, sum, 4);
    if (in) *(u32*)(q + at) = levels;
    if (in && at % 32 == 0) scale[at / 32] = XScale{to.d, {(i16)sum, (i16)other}};
}

// Loads 32 columns of activations and their scale, from global memory or from shared memory.
struct GlobalMem {
    static __device__ __forceinline__ Four levels(const i8* q) { return load_16(q); }
    static __device__ __forceinline__ int2 scale(const XScale* scale) { return *(const int2*)scale; }
};
struct SharedMem {
    static __device__ __forceinline__ Four levels(const i8* q) { return *(const Four*)q; }
    static __device__ __forceinline__ int2 scale(const XScale* scale) { return *(const int2*)scale; }
};

// d_x (s (q . x) - m sum(x)) over the two groups of a unit.
template <class F, class From = GlobalMem>
__device__ __forceinline__ float unit_dot(const Unit& w, int i, const i8* q, const XScale* scale) {
    float y = 0;
#pragma unroll
    for (int g = 0; g < 2; g++) {
        int at = F::at(i, g);
        Four x = From::levels(q + at);
        int2 raw = From::scale(scale + at / 32);
        int dot = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) dot = __dp4a(w.q[4 * g + j], x.v[j], dot);
        int sum = at % 32 ? raw.y >> 16 : (int)(i16)raw.y;
        y += __int_as_float(raw.x) * (w.s[g] * (float)dot - w.m[g] * (float)sum);
    }
    return y;
}

// The pieces of a row, which begins at a block; this thread reads pieces lane, lane + lanes, ...
template <class F, bool paired = F::PAIRED> struct Row {
    static const int WEIGHTS = 32; // of a piece
    Planes w;
    i64 first;

    __device__ __forceinline__ Row(const Planes& w, i64 first, int) : w(w), first(first) {}

    __device__ __forceinline__ Unit load(int u) const { return F::unit(w, first + u / F::UNITS, u % F::UNITS); }

    // The product of piece u with a row of activations.
    template <class From>
    __device__ __forceinline__ float dot(const Unit& unit, int u, const i8* q, const XScale* scale) const {
        int at = u / F::UNITS * F::LEN;
        return unit_dot<F, From>(unit, u % F::UNITS, q + at, scale + at / 32);
    }
};

// The number of lanes must be a multiple of 4, so that each lane has the same pair of every block.
template <class F> struct Row<F, true> {
    static const int WEIGHTS = 64;
    typename F::Pairs pairs;
    int at; // first column of the pair

    __device__ __forceinline__ Row(const Planes& w, i64 first, int lane)
        : pairs(w, first, lane % 4), at(F::pair_at(lane % 4)) {}

    __device__ __forceinline__ auto load(int u) const { return pairs.load((u32)u / 4); }

    template <class From, class Loaded>
    __device__ __forceinline__ float dot(const Loaded& loaded, int u, const i8* q, const XScale* scale) const {
        const i8* low = q + at + 256 * (i64)((u32)u / 4);
        const XScale* s = scale + at / 32 + 8 * (i64)((u32)u / 4);
        const i8* high = low + F::PAIR_STEP;
        Four x[4] = {From::levels(low), From::levels(low + 16), From::levels(high), From::levels(high + 16)};
        return pairs.dot(loaded, x, From::scale(s), From::scale(s + F::PAIR_STEP / 32));
    }
};
