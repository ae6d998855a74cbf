// Common definitions: types, half floats, warp and block reductions, and instructions without a C++ equivalent.
//
// It contains no op and no format. Without a CUDA compiler, host/shim.h defines the same names, so that tests run the
// kernels unchanged on a machine without a GPU. All shared memory is dynamic: its size is part of the launch.
// Next: quant.cuh.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define KERNEL(name, threads) KERNEL_BLOCKS(name, threads, 1)
// Limits registers so that this many blocks fit on an SM.
#define KERNEL_BLOCKS(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name
#define SHARED(type, name)                                                    \
    extern __shared__ __align__(16) unsigned char shared_memory[];            \
    type* name = (type*)shared_memory
#define REGISTER(name)

// Begins an instruction in PTX for cards of compute capability 9.0 and newer. For older ones it is a comment; for these
// kernels/src/cuda/ptx.rs removes the mark.
#define SM_90 "//sm_90 "

// Programmatic dependent launch. A launch may begin before the one before it has ended: as soon as each block of that one has
// called launch_dependents or ended. wait_dependencies returns when that launch has ended, with its memory written. Therefore
// every thread waits before it ends, and before its first access of memory that an earlier launch writes or reads; then a launch
// ends after all those before it, too. Earlier launches' results are not read by __ldg, whose cache this does not order. Weights
// may be loaded before the wait, but ptxas moves such loads behind it; prefetch_l2 stays.
__device__ __forceinline__ void launch_dependents() { asm volatile(SM_90 "griddepcontrol.launch_dependents;"); }
__device__ __forceinline__ void wait_dependencies() { asm volatile(SM_90 "griddepcontrol.wait;" ::: "memory"); }

// Moves `bytes` bytes from `at`, a multiple of 16 like their number, to L2 without waiting for them.
__device__ __forceinline__ void prefetch_l2(const void* at, u32 bytes) {
    asm volatile(SM_90 "cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes));
}

__device__ __forceinline__ float f16_float(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

__device__ __forceinline__ u16 float_f16(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

// Packs two halves in a word, the first in the low bits.
__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// The same half twice.
__device__ __forceinline__ u32 twice(u16 h) {
    u32 both;
    asm("mov.b32 %0, {%1, %1};" : "=r"(both) : "h"(h));
    return both;
}

// a - b and a b of two halves each, rounded once.
__device__ __forceinline__ u32 sub_f16x2(u32 a, u32 b) {
    u32 d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ __forceinline__ u32 mul_f16x2(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// 2^x to 22 bits; denormal results are flushed to zero.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x within a unit in the last place; denormal numbers are taken for zero.
__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// c + a . b of four unsigned bytes and four signed ones.
__device__ __forceinline__ int dp4a_unsigned(u32 a, int b, int c) {
    int d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// D += A B of int8: A [16, 32] and B [32, 8] in the fragments of mma.m16n8k32.
__device__ __forceinline__ void mma_i8(int d[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with half the depth: A [16, 16] and B [16, 8].
__device__ __forceinline__ void mma_i8_16(int d[4], const u32 a[2], u32 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

// D += A B of binary16 with f32 sums: A [16, 16] and B [16, 8].
__device__ __forceinline__ void mma_f16(float d[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// D += A B of tf32 with f32 sums: A [16, 8] and B [8, 8].
__device__ __forceinline__ void mma_tf32(float d[4], const u32 a[4], const u32 b[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounds to tf32; returns the bits.
__device__ __forceinline__ u32 tf32(float f) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(f));
    return bits;
}

// Keeps the compiler from splitting an address that several instructions use with constant offsets.
template <class T> __device__ __forceinline__ T* base_of(T* p) {
    asm("" : "+l"(p));
    return p;
}

// Reads eight bytes that no block of the launch writes, if `in`; otherwise any value, without clearing the registers.
__device__ __forceinline__ int2 read_8_or_any(const u8* from, bool in) {
    int2 v;
    asm("{.reg .pred in; setp.ne.s32 in, %3, 0; @in ld.global.v2.s32 {%0, %1}, [%2];}" : "=r"(v.x), "=r"(v.y) : "l"(from), "r"((int)in));
    return v;
}

// The same number, of which the compiler knows nothing.
__device__ __forceinline__ int opaque(int v) {
    asm("" : "+r"(v));
    return v;
}

// The same number, which ptxas keeps in a register instead of computing it again where it is used. All threads must call it.
__device__ __forceinline__ int kept(int v) {
    asm volatile("shfl.sync.bfly.b32 %0, %0, 0, 31, 0xffffffff;" : "+r"(v));
    return v;
}

// An address in shared memory, used with constant offsets.
struct SharedBase {
    u32 at;
    __device__ __forceinline__ SharedBase(const void* p) : at((u32)__cvta_generic_to_shared(p)) { asm("" : "+r"(at)); }
};

// Loads two transposed 8 x 8 matrices of binary16 from shared memory: lane l supplies the address of row l of the sixteen.
__device__ __forceinline__ void load_transposed(u32 b[2], const u16* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(b[0]), "=r"(b[1]) : "r"(at));
}

// Loads four such matrices, not transposed, `offset` halves after `row`: lane l supplies row l of the thirty-two.
__device__ __forceinline__ void load_4(u32 b[4], SharedBase row, int offset = 0) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(row.at + 2 * offset));
}

// Loads four transposed matrices.
__device__ __forceinline__ void load_4_transposed(u32 b[4], SharedBase row, int offset = 0) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(row.at + 2 * offset));
}

// Copies 16 bytes from global to shared memory asynchronously; complete after copies_done and a barrier.
__device__ __forceinline__ void copy_16(void* shared, const void* global) {
    u32 at = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global));
}

// The same to `offset` halves after `shared` if `in`; zeros otherwise, without reading.
__device__ __forceinline__ void copy_16_or_zero(SharedBase shared, int offset, const void* global, bool in) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared.at + 2 * offset), "l"(global), "r"(in ? 16 : 0));
}

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;"); }

// Waits until at most `left` groups of this thread's copies are pending.
template <int left> __device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_group %0;" ::"n"(left)); }

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) v += __shfl_xor_sync(0xffffffffu, v, by);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, by));
    return v;
}
#else
#include "host/shim.h"
#endif

// Lets the next launch begin, and waits for those before this one.
__device__ __forceinline__ void follow_launch() {
    launch_dependents();
    wait_dependencies();
}

#define FULL 0xffffffffu
#define INFINITY_F __int_as_float(0x7f800000)

// Rotates left; the compiler emits one instruction.
__device__ __forceinline__ u32 rotate(u32 v, int by) { return v << (by & 31) | v >> (-by & 31); }

struct alignas(16) Four {
    int v[4];
};

// Loads 16 bytes of memory that is read-only during the kernel and the launches that overlap with it: weights.
__device__ __forceinline__ Four read_16(const void* p) {
    int4 v = __ldg((const int4*)p);
    return Four{{v.x, v.y, v.z, v.w}};
}

// Rows of a block of which `lanes` threads, a power of two, share one.
__device__ __forceinline__ int rows_of_block(int lanes) { return blockDim.x >> (31 - __clz(lanes)); }

// Loads through an address that is itself loaded, which the compiler would not take for one in global memory.
template <class T> __device__ __forceinline__ T load_global(const T* p) {
    __builtin_assume(__isGlobal(p));
    return *p;
}

// Loads 16 bytes that an earlier launch wrote.
__device__ __forceinline__ Four load_16(const void* p) {
    int4 v = *(const int4*)p;
    return Four{{v.x, v.y, v.z, v.w}};
}

// Loads a value that another block wrote before it incremented the counter.
__device__ __forceinline__ float read_fresh(const float* p) { return __ldcg(p); }

// The same for 16 bytes.
__device__ __forceinline__ Four read_fresh_16(const void* p) {
    int4 v = __ldcg((const int4*)p);
    return Four{{v.x, v.y, v.z, v.w}};
}

// Increments the counter of finished blocks after thread 0 of this block, or all of them and a barrier, have written its
// results. Returns true in the last of `blocks`, which then sees the results of all and resets the counter to 0. All threads
// must call it; `flag` is in shared memory.
__device__ __forceinline__ bool last_of(int* count, int blocks, int* flag) {
    if (threadIdx.x == 0) {
        __threadfence();
        *flag = atomicAdd(count, 1) == blocks - 1;
        if (*flag) *count = 0;
        __threadfence();
    }
    __syncthreads();
    return *flag;
}

// Sums over a block of whole warps and returns the sum in every thread; `scratch` is 33 floats.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        float sum = warp_sum(threadIdx.x < blockDim.x / 32 ? scratch[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) scratch[32] = sum;
    }
    __syncthreads();
    return scratch[32];
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// ln(1 + e^x) without overflow.
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// a softplus(x), or bound sigmoid(a x) with a bound, which is negative.
__device__ __forceinline__ float log_decay(float x, float a, float bound) {
    return bound == 0 ? a * softplus(x) : bound * sigmoid(a * x);
}

// SiLU(gate) * up, both limited; comparisons keep NaN.
__device__ __forceinline__ float limited_silu_mul(float gate, float up, float limit) {
    float y = gate * sigmoid(gate);
    if (y > limit) y = limit;
    if (up > limit) up = limit;
    if (up < -limit) up = -limit;
    return y * up;
}

// One sequence's rows of a batch and the address of its state. A launch takes up to SPANS of them.
struct SpanOf {
    void* state;
    int first;
    int rows;
};

#define SPANS 32
struct Spans {
    SpanOf of[SPANS];
};
