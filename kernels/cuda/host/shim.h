// Defines CUDA's names on the host, so that tests run kernels unchanged without a GPU, with one fiber per thread.
//
// Threads and blocks run in random order, shared memory starts full of NaN bits, asynchronous copies complete only when waited
// for, and a barrier or shuffle that not all threads reach, a race or an invalid access aborts the process with an error. It
// measures no time. Next: emulator.h.
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
#define KERNEL(name, threads)                                        \
    static const unsigned SHIM_JOIN(max_threads_of_, name) = threads; \
    extern "C" void name
#define KERNEL_BLOCKS(name, threads, blocks) KERNEL(name, threads)
#define SHARED(type, name) type* name = (type*)shim::shared()
#define SHIM_JOIN_(a, b) a##b
#define SHIM_JOIN(a, b) SHIM_JOIN_(a, b)
#define SHIM_TEXT_(a) #a
#define SHIM_TEXT(a) SHIM_TEXT_(a)
#define REGISTER(name) \
    static const bool SHIM_JOIN(registered_, name) = shim::add(SHIM_TEXT(name), SHIM_JOIN(max_threads_of_, name), name);
// Not instrumented: it calls shim::access itself.
#define UNCHECKED __attribute__((no_sanitize("thread")))
// Thread and block are constant for a kernel, whose reads of them need no check.
#ifdef EMULATOR_PART
#define BUILT_IN extern
#else
#define BUILT_IN extern const
#endif

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
void warp_barrier();
void later(void* to, const void* from); // zeros from null
void commit();
void wait(int left);
void fence();
void wait_dependencies();
void prefetch(const void* at, size_t bytes);
int atomic_add(int* p, int v);

// Checks an access of the running thread: is it inside of an allocation, written, aligned, without a race? Loads and stores of
// kernels are checked through the compiler's instrumentation, others by these calls.
enum Access { READ, WRITE, ATOMIC, CONSTANT };
void access(const void* p, size_t bytes, Access kind);
void in_flight(void* to, size_t bytes); // the target of an asynchronous copy
void matrix_row(const void* row);       // 16 bytes for ldmatrix

// A kernel by name, with a call through an array of argument pointers, the argument sizes, and its largest block.
struct Kernel {
    void (*call)(void* f, void** args);
    void* f;
    int n;
    const size_t* sizes;
    unsigned max_threads;
};
void add_kernel(const char* name, Kernel kernel);

template <class... A, size_t... I> void call_with(void* f, void** args, std::index_sequence<I...>) {
    ((void (*)(A...))f)(*(std::remove_const_t<A>*)args[I]...);
}
template <class... A> bool add(const char* name, unsigned max_threads, void (*f)(A...)) {
    static const size_t sizes[] = {sizeof(A)...};
    add_kernel(name, Kernel{[](void* g, void** args) { call_with<A...>(g, args, std::index_sequence_for<A...>()); },
                            (void*)f, (int)sizeof...(A), sizes, max_threads});
    return true;
}
} // namespace shim

BUILT_IN dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { shim::barrier(); }
inline void __threadfence() { shim::fence(); }
inline void launch_dependents() {}
inline void wait_dependencies() { shim::wait_dependencies(); }
inline void prefetch_l2(const void* at, u32 bytes) { shim::prefetch(at, bytes); }
inline void __syncwarp() { shim::warp_barrier(); }
template <class T> UNCHECKED T __ldg(const T* p) { return shim::access(p, sizeof(T), shim::CONSTANT), *p; }
template <class T> UNCHECKED T __ldcg(const T* p) { return shim::access(p, sizeof(T), shim::READ), *p; }
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
float warp_sum(float v);
float warp_max(float v);
u32 __reduce_max_sync(unsigned, u32 v);
u32 __reduce_min_sync(unsigned, u32 v);

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
inline int atomicAdd(int* p, int v) { return shim::atomic_add(p, v); }

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
inline u32 twice(u16 h) { return h | (u32)h << 16; }
// f32 has every product exactly, and the difference of numbers that are less than 2^13 apart in size.
inline u32 sub_f16x2(u32 a, u32 b) {
    auto sub = [](u32 a, u32 b) { return f16_float((u16)a) - f16_float((u16)b); };
    return pack_f16(sub(a, b), sub(a >> 16, b >> 16));
}
inline u32 mul_f16x2(u32 a, u32 b) {
    auto mul = [](u32 a, u32 b) { return f16_float((u16)a) * f16_float((u16)b); };
    return pack_f16(mul(a, b), mul(a >> 16, b >> 16));
}
inline int2 read_8_or_any(const u8* from, bool in) { return in ? *(const int2*)from : int2{0x7f807f80, 0x7f807f80}; }
inline int opaque(int v) { return v; }
inline int kept(int v) { return v; }
inline int __clz(int v) { return __builtin_clz((u32)v); }
inline bool __isGlobal(const void*) { return true; }
#define __builtin_assume(fact)
inline u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
inline float exp2_fast(float x) { return exp2f(x); }
inline float reciprocal_fast(float x) { return fabsf(x) < 1.17549435e-38f ? __int_as_float(0x7f800000) : 1.0f / x; }

inline u32 tf32(float f) {
    u32 bits = (u32)__float_as_int(f);
    return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
}

void mma_i8(int d[4], const u32 a[4], const u32 b[2]);
void mma_i8_16(int d[4], const u32 a[2], u32 b);
void mma_f16(float d[4], const u32 a[4], const u32 b[2]);
void mma_tf32(float d[4], const u32 a[4], const u32 b[2]);

struct SharedBase {
    u16* at;
    SharedBase(const void* p) : at((u16*)p) {}
};
template <class T> inline T* base_of(T* p) { return p; }
void load_transposed(u32 b[2], const u16* row);
void load_4(u32 b[4], SharedBase row, int offset = 0);
void load_4_transposed(u32 b[4], SharedBase row, int offset = 0);

inline void copy_16(void* to, const void* from) { shim::later(to, from); }
inline void copy_16_or_zero(SharedBase to, int offset, const void* from, bool in) {
    shim::later(to.at + offset, in ? from : nullptr);
}
inline void copies_commit() { shim::commit(); }
template <int left> inline void copies_done() { shim::wait(left); }
