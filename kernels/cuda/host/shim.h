// Defines CUDA's names on the host, so that tests run kernels unchanged without a GPU, with one fiber per thread.
//
// Threads and lanes run in random order at every step, shared memory starts full of NaN bits and is followed by guard bytes,
// asynchronous copies complete only when waited for, and a barrier or shuffle that not all threads reach aborts the process
// with an error. It measures no time and detects races only by their effects. Next: driver.cpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <tuple>
#include <utility>

#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define KERNEL(name, threads) extern "C" void name
#define KERNEL_BLOCKS(name, threads, blocks) KERNEL(name, threads)
#define SHARED(type, name) type* name = (type*)shim::shared()
#define SHIM_JOIN_(a, b) a##b
#define SHIM_JOIN(a, b) SHIM_JOIN_(a, b)
#define SHIM_TEXT_(a) #a
#define SHIM_TEXT(a) SHIM_TEXT_(a)
#define REGISTER(name) static const bool SHIM_JOIN(registered_, name) = shim::add(SHIM_TEXT(name), name);

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};

using std::max;
using std::min;

namespace shim {
unsigned char* shared();
void barrier();
u64 exchange(u64 value, int from); // collective: returns the value of lane `from`
const u64* gather(u64 value);      // collective: returns the values of all 32 lanes
void later(void* to, const void* from);
void commit();
void wait(int left);

// A kernel by name, with a call through an array of argument pointers and the argument sizes.
struct Kernel {
    void (*call)(void* f, void** args);
    void* f;
    int n;
    const size_t* sizes;
};
void add_kernel(const char* name, Kernel kernel);

template <class... A, size_t... I> void call_with(void* f, void** args, std::index_sequence<I...>) {
    ((void (*)(A...))f)(*(std::remove_const_t<A>*)args[I]...);
}
template <class... A> bool add(const char* name, void (*f)(A...)) {
    static const size_t sizes[] = {sizeof(A)...};
    add_kernel(name, Kernel{[](void* g, void** args) { call_with<A...>(g, args, std::index_sequence_for<A...>()); },
                            (void*)f, (int)sizeof...(A), sizes});
    return true;
}
} // namespace shim

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { shim::barrier(); }
inline void __threadfence() {}
inline void __syncwarp() { shim::gather(0); }
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
inline void sincospi(double x, double* s, double* c) {
    x *= 3.14159265358979323846;
    *s = sin(x), *c = cos(x);
}
inline int __float2int_rn(float f) { return f != f ? 0 : (int)nearbyintf(f); }
template <class T> T __shfl_xor_sync(unsigned, T v, int by) {
    u64 bits = 0;
    memcpy(&bits, &v, sizeof(T));
    bits = shim::exchange(bits, (int)(threadIdx.x % 32) ^ by);
    memcpy(&v, &bits, sizeof(T));
    return v;
}
inline u32 __reduce_max_sync(unsigned, u32 v) {
    const u64* all = shim::gather(v);
    return (u32)*std::max_element(all, all + 32);
}
inline u32 __reduce_min_sync(unsigned, u32 v) {
    const u64* all = shim::gather(v);
    return (u32)*std::min_element(all, all + 32);
}

// Warp sums and maxima synchronise once here instead of five times; the order of additions is the same.
template <class Join> inline float join_lanes(float v, Join join) {
    const u64* all = shim::gather((u32)__float_as_int(v));
    float x[32], y[32];
    for (int l = 0; l < 32; l++) x[l] = __int_as_float((int)all[l]);
    for (int by = 16; by > 0; by /= 2) {
        for (int l = 0; l < 32; l++) y[l] = join(x[l], x[l ^ by]);
        memcpy(x, y, sizeof x);
    }
    return x[threadIdx.x % 32];
}
inline float warp_sum(float v) {
    return join_lanes(v, [](float a, float b) { return a + b; });
}
inline float warp_max(float v) {
    return join_lanes(v, [](float a, float b) { return fmaxf(a, b); });
}

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(i8)(a >> 8 * i) * (int)(i8)(b >> 8 * i);
    return c;
}
inline int dp4a_unsigned(u32 a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(u8)(a >> 8 * i) * (int)(i8)(b >> 8 * i);
    return c;
}
inline int __dp2a_lo(int a, int b, int c) { return c + (int)(i16)a * (int)(i8)b + (int)(i16)(a >> 16) * (int)(i8)(b >> 8); }
inline u32 __byte_perm(u32 a, u32 b, u32 s) {
    u64 all = a | (u64)b << 32;
    u32 r = 0;
    for (int i = 0; i < 4; i++) r |= (u32)(all >> (s >> 4 * i & 7) * 8 & 255) << 8 * i;
    return r;
}
inline int atomicAdd(int* p, int v) { int old = *p; *p += v; return old; }

inline float f16_float(u16 h) {
    u32 sign = (u32)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;
    if (e == 31) return __int_as_float((int)(sign | 0x7f800000 | m << 13));
    if (e) return __int_as_float((int)(sign | (e + 112) << 23 | m << 13));
    float f = (float)m * 5.9604644775390625e-8f; // 2^-24
    return sign ? -f : f;
}
inline u16 float_f16(float f) {
    u32 bits = (u32)__float_as_int(f), sign = bits >> 16 & 0x8000;
    float a = fabsf(f);
    if (a != a) return (u16)(sign | 0x7fff);
    if (a >= 65520.0f) return (u16)(sign | 0x7c00);
    if (a < 6.103515625e-5f) return (u16)(sign | (u32)nearbyintf(a * 16777216.0f));
    int e;
    float m = frexpf(a, &e); // a = m 2^e, m in 0.5..1
    u32 q = (u32)nearbyintf(m * 2048.0f);
    return (u16)(sign | (((u32)(e + 13) << 10) + q));
}

inline u32 pack_f16(float low, float high) { return float_f16(low) | (u32)float_f16(high) << 16; }
inline float exp2_fast(float x) { return exp2f(x); }

// ---- fragments, laid out as in the PTX manual --------------------------------------------------------------------

inline int byte_of(u64 word, int i) { return (i8)(word >> 8 * i); }
inline float half_of(u64 word, int i) { return f16_float((u16)(word >> 16 * i)); }

template <int K> inline void shim_mma_i8(int d[4], const u32* a, const u32* b) {
    int lane = threadIdx.x % 32, A[16][K], B[K][8];
    for (int i = 0; i < K / 8; i++) { // a_i: row g + 8 (i % 2), columns 4 c + 16 (i / 2) ..
        const u64* all = shim::gather(a[i]);
        for (int l = 0; l < 32; l++)
            for (int j = 0; j < 4; j++) A[l / 4 + i % 2 * 8][l % 4 * 4 + j + i / 2 * 16] = byte_of(all[l], j);
    }
    for (int i = 0; i < K / 16; i++) { // b_i: rows 4 c + 16 i .., column g
        const u64* all = shim::gather(b[i]);
        for (int l = 0; l < 32; l++)
            for (int j = 0; j < 4; j++) B[l % 4 * 4 + j + i * 16][l / 4] = byte_of(all[l], j);
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < K; k++) d[i] += A[lane / 4 + i / 2 * 8][k] * B[k][lane % 4 * 2 + i % 2];
}
inline void mma_i8(int d[4], const u32 a[4], const u32 b[2]) { shim_mma_i8<32>(d, a, b); }
inline void mma_i8_16(int d[4], const u32 a[2], u32 b) { shim_mma_i8<16>(d, a, &b); }

// Each lane unpacks the two rows of A and two columns of B that its four sums need.
inline void mma_f16(float d[4], const u32 a[4], const u32 b[2]) {
    int lane = threadIdx.x % 32;
    float A[2][16], B[2][16];
    for (int half = 0; half < 2; half++) { // a_i: row g + 8 (i % 2), columns 2 c + 8 (i / 2) ..
        const u64* all = shim::gather(a[2 * half] | (u64)a[2 * half + 1] << 32);
        for (int c = 0; c < 4; c++)
            for (int j = 0; j < 4; j++) A[j / 2][8 * half + 2 * c + j % 2] = half_of(all[lane / 4 * 4 + c], j);
    }
    const u64* all = shim::gather(b[0] | (u64)b[1] << 32); // b_i: rows 2 c + 8 i .., column g
    for (int i = 0; i < 2; i++)
        for (int c = 0; c < 4; c++)
            for (int j = 0; j < 4; j++) B[i][8 * (j / 2) + 2 * c + j % 2] = half_of(all[4 * (lane % 4 * 2 + i) + c], j);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) d[i] += A[i / 2][k] * B[i % 2][k];
}

inline u32 tf32(float f) {
    u32 bits = (u32)__float_as_int(f);
    return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
}

inline void mma_tf32(float d[4], const u32 a[4], const u32 b[2]) {
    int lane = threadIdx.x % 32;
    float A[16][8], B[8][8];
    for (int i = 0; i < 4; i++) { // a_i: row g + 8 (i % 2), column c + 4 (i / 2)
        const u64* all = shim::gather(a[i]);
        for (int l = 0; l < 32; l++) A[l / 4 + i % 2 * 8][l % 4 + i / 2 * 4] = __int_as_float((int)((u32)all[l] & ~0x1fffu));
    }
    for (int i = 0; i < 2; i++) { // b_i: row c + 4 i, column g
        const u64* all = shim::gather(b[i]);
        for (int l = 0; l < 32; l++) B[l % 4 + i * 4][l / 4] = __int_as_float((int)((u32)all[l] & ~0x1fffu));
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 8; k++) d[i] += A[lane / 4 + i / 2 * 8][k] * B[k][lane % 4 * 2 + i % 2];
}

template <int N> inline void shim_load(u32* b, const u16* row, bool transposed) {
    int lane = threadIdx.x % 32, r = lane / 4, c = lane % 4 * 2;
    const u64* rows = shim::gather((u64)row);
    for (int i = 0; i < N; i++) {
        const u16* const* of = (const u16* const*)(rows + 8 * i);
        b[i] = transposed ? of[c][r] | (u32)of[c + 1][r] << 16 : of[r][c] | (u32)of[r][c + 1] << 16;
    }
}
inline void load_transposed(u32 b[2], const u16* row) { shim_load<2>(b, row, true); }
struct SharedBase {
    u16* at;
    SharedBase(const void* p) : at((u16*)p) {}
};
template <class T> inline T* base_of(T* p) { return p; }
inline void load_4(u32 b[4], SharedBase row, int offset = 0) { shim_load<4>(b, row.at + offset, false); }
inline void load_4_transposed(u32 b[4], SharedBase row, int offset = 0) { shim_load<4>(b, row.at + offset, true); }

inline void copy_16(void* to, const void* from) { shim::later(to, from); }
inline void copy_16_or_zero(SharedBase to, int offset, const void* from, bool in) {
    if (in) shim::later(to.at + offset, from);
    else memset(to.at + offset, 0, 16);
}
inline void copies_commit() { shim::commit(); }
template <int left> inline void copies_done() { shim::wait(left); }
