// Kernels and calls with one defect each, for the test that the emulator finds them; with `fixed` they are right.
//
// None of this is in the program. The test (kernels/tests/emulator.rs) runs one case per process: a found defect aborts it.
#include "../common.cuh"

#define CU(name, ...) extern "C" int name(__VA_ARGS__)
CU(cuCtxSetCurrent, void*);
CU(cuMemAlloc_v2, u64*, size_t);
CU(cuMemFree_v2, u64);
CU(cuMemHostAlloc, void**, size_t, unsigned);
CU(cuMemFreeHost, void*);
CU(cuMemcpyHtoDAsync_v2, u64, const void*, size_t, void*);
CU(cuMemcpyDtoHAsync_v2, void*, u64, size_t, void*);
CU(cuMemcpyDtoDAsync_v2, u64, u64, size_t, void*);
CU(cuMemsetD8Async, u64, unsigned char, size_t, void*);
CU(cuStreamCreate, void**, unsigned);
CU(cuStreamSynchronize, void*);
CU(cuStreamWaitEvent, void*, void*, unsigned);
CU(cuModuleLoadDataEx, void**, const void*, unsigned, int*, void**);
CU(cuModuleGetFunction, void**, void*, const char*);
CU(cuFuncSetAttribute, void*, int, int);
CU(cuLaunchKernel, void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
CU(cuLaunchKernelEx, const void*, void*, void**, void**);
CU(cuEventCreate, void**, unsigned);
CU(cuEventRecord, void*, void*);
CU(cuStreamBeginCapture_v2, void*, int);
CU(cuStreamEndCapture, void*, void**);

namespace planted {

const int N = 256; // floats of the buffers, and threads of most launches

// ---- kernels -----------------------------------------------------------------------------------------------------

// Reverses 256 values through shared memory.
KERNEL(planted_barrier, N)(float* x, int fixed) {
    SHARED(float, s);
    s[threadIdx.x] = 0;
    __syncthreads();
    s[threadIdx.x] = x[threadIdx.x];
    if (fixed) __syncthreads();
    x[threadIdx.x] = s[N - 1 - threadIdx.x];
}
REGISTER(planted_barrier)

KERNEL(planted_second_barrier, N)(float* x, int fixed) {
    SHARED(float, s);
    for (int i = 0; i < 2; i++) {
        s[threadIdx.x] = x[threadIdx.x] + i;
        __syncthreads();
        x[threadIdx.x] = s[N - 1 - threadIdx.x];
        if (fixed) __syncthreads(); // before the next turn overwrites what is read
    }
}
REGISTER(planted_second_barrier)

KERNEL(planted_syncwarp, 32)(float* x, int fixed) {
    SHARED(float, s);
    s[threadIdx.x] = 0;
    __syncwarp();
    s[threadIdx.x] = x[threadIdx.x];
    if (fixed) __syncwarp();
    x[threadIdx.x] = s[threadIdx.x ^ 1];
}
REGISTER(planted_syncwarp)

// Bytes of one word, by several threads.
KERNEL(planted_bytes, N)(float* x, int fixed) {
    SHARED(i8, s);
    s[threadIdx.x] = 0;
    __syncthreads();
    s[threadIdx.x] = (i8)threadIdx.x;
    if (fixed) __syncthreads();
    if (threadIdx.x < N / 4) x[threadIdx.x] = (float)((const int*)s)[threadIdx.x];
}
REGISTER(planted_bytes)

KERNEL(planted_zeroed_counter, N)(float* x, int fixed) {
    SHARED(int, count);
    if (threadIdx.x == 32) *count = 0;
    __syncthreads();
    if (threadIdx.x == 0) *count = 0;
    if (fixed) __syncthreads();
    atomicAdd(count, 1);
    __syncthreads();
    x[threadIdx.x] = (float)*count;
}
REGISTER(planted_zeroed_counter)

KERNEL(planted_blocks, 32)(float* x, int fixed) {
    if (threadIdx.x == 0) x[fixed ? blockIdx.x : 0] = 1;
}
REGISTER(planted_blocks)

KERNEL(planted_neighbour, 32)(float* x, int fixed) {
    if (threadIdx.x == 0) x[blockIdx.x] = x[fixed ? blockIdx.x : (blockIdx.x + 1) % gridDim.x] + 1;
}
REGISTER(planted_neighbour)

// The last block sums the results of all.
KERNEL(planted_fence, 32)(float* x, int* count, int fixed) {
    SHARED(int, last);
    if (threadIdx.x == 0) {
        x[blockIdx.x] = (float)blockIdx.x;
        if (fixed) __threadfence();
        *last = atomicAdd(count, 1) == (int)gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!*last || threadIdx.x > 0) return;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) sum += __ldcg(x + i);
    x[0] = sum;
}
REGISTER(planted_fence)

KERNEL(planted_behind, N)(float* x, int fixed) { x[threadIdx.x + !fixed] = 1; }
REGISTER(planted_behind)

KERNEL(planted_before, N)(float* x, int fixed) { x[(int)threadIdx.x - !fixed] += 1; }
REGISTER(planted_before)

KERNEL(planted_shared_size, N)(float* x, int fixed) {
    SHARED(float, s);
    s[threadIdx.x + !fixed] = x[threadIdx.x];
}
REGISTER(planted_shared_size)

KERNEL(planted_alignment, 32)(float* x, int fixed) {
    int4 v = *(const int4*)(x + 4 * threadIdx.x + 2 * !fixed);
    x[4 * threadIdx.x] = __int_as_float(v.x);
}
REGISTER(planted_alignment)

KERNEL(planted_unwritten, N)(float* x, float* y, int fixed) { x[threadIdx.x] = (fixed ? x : y)[threadIdx.x]; }
REGISTER(planted_unwritten)

KERNEL(planted_unwritten_shared, N)(float* x, int fixed) {
    SHARED(float, s);
    if (fixed || threadIdx.x != 77) s[threadIdx.x] = 1;
    __syncthreads();
    x[threadIdx.x] = s[N - 1 - threadIdx.x];
}
REGISTER(planted_unwritten_shared)

KERNEL(planted_copy, 32)(float* x, int fixed) {
    SHARED(float, s);
    copy_16(s + 4 * threadIdx.x, x + 4 * threadIdx.x);
    copies_commit();
    if (fixed) copies_done<0>();
    x[4 * threadIdx.x] = s[4 * threadIdx.x];
}
REGISTER(planted_copy)

KERNEL(planted_ldg, 32)(float* x, int fixed) {
    float v = fixed ? x[threadIdx.x] : __ldg(x + threadIdx.x);
    x[threadIdx.x] = v + 1;
}
REGISTER(planted_ldg)

KERNEL(planted_divergence, N)(float* x, int fixed) {
    if (fixed || threadIdx.x < 100) __syncthreads();
    x[threadIdx.x] = 1;
}
REGISTER(planted_divergence)

KERNEL(planted_add, N)(float* x, float v) { x[threadIdx.x] += v; }
REGISTER(planted_add)

// Threads and blocks in the order in which they run.
KERNEL(planted_order, 64)(int* x, int* count) {
    x[atomicAdd(count, 1)] = (int)(blockIdx.x * blockDim.x + threadIdx.x);
}
REGISTER(planted_order)

// For programmatic launches, without a call of launch_dependents: they may overlap all the same.
KERNEL(planted_read_early, N)(const float* x, float* y, int fixed) {
    if (fixed) wait_dependencies();
    float v = x[threadIdx.x];
    if (!fixed) wait_dependencies();
    y[threadIdx.x] = v;
}
REGISTER(planted_read_early)

KERNEL(planted_write_early, N)(float* x, int fixed) {
    if (fixed) wait_dependencies();
    x[threadIdx.x] = 1;
    if (!fixed) wait_dependencies();
}
REGISTER(planted_write_early)

KERNEL(planted_end_early, N)(float* x, int fixed) {
    if (!fixed && threadIdx.x == 77) return;
    wait_dependencies();
    if (threadIdx.x != 77) x[threadIdx.x] = 1;
}
REGISTER(planted_end_early)

KERNEL(planted_ldg_of_launch, N)(const float* x, float* y, int fixed) {
    wait_dependencies();
    y[threadIdx.x] = fixed ? x[threadIdx.x] : __ldg(x + threadIdx.x);
}
REGISTER(planted_ldg_of_launch)

KERNEL(planted_prefetch, N)(const float* x, int fixed) {
    prefetch_l2(x + !fixed * N, 16);
    wait_dependencies();
}
REGISTER(planted_prefetch)

// 1 + 16 terms of 2^-24: each is below the last bit of 1.
KERNEL(planted_tensor, 32)(float* x) {
    float d[4] = {1, 1, 1, 1};
    u32 a[4], b[2], small = pack_f16(0.000244140625f, 0.000244140625f); // 2^-12
    for (u32& v : a) v = small;
    for (u32& v : b) v = small;
    mma_f16(d, a, b);
    x[threadIdx.x] = d[0];
}
REGISTER(planted_tensor)

// ---- cases -------------------------------------------------------------------------------------------------------

void* work;   // streams
void* copies;

template <class... A> void launch(const char* name, unsigned blocks, unsigned threads, unsigned shared, A... args) {
    void *f, *pointers[] = {&args...};
    if (cuModuleGetFunction(&f, nullptr, name)) abort();
    if (cuLaunchKernel(f, blocks, 1, 1, threads, 1, 1, shared, work, pointers, nullptr)) abort();
}

// A launch that may overlap with the one before it.
template <class... A> void launch_programmatic(const char* name, void* module, A... args) {
    struct {
        int id, padding, value[16];
    } attribute = {6, 0, {1}};
    struct {
        unsigned sizes[7];
        void *stream, *attributes;
        unsigned n;
    } config = {{1, 1, 1, N, 1, 1, 0}, work, &attribute, 1};
    void *f, *pointers[] = {&args...};
    if (cuModuleGetFunction(&f, module, name)) abort();
    if (cuLaunchKernelEx(&config, f, pointers, nullptr)) abort();
}

float* buffer() {
    u64 at;
    if (cuMemAlloc_v2(&at, N * sizeof(float))) abort();
    return (float*)at;
}

float* zeros() {
    float* x = buffer();
    cuMemsetD8Async((u64)x, 0, N * sizeof(float), work);
    return x;
}

// Prints values for the test to compare.
template <class T> void print(const T* x, int n) {
    T values[N];
    cuMemcpyDtoHAsync_v2(values, (u64)x, n * sizeof(T), work);
    for (int i = 0; i < n; i++) printf("%.9g ", (double)values[i]);
    printf("\n");
}

// A pinned 1 for every float, and its copy to x on the stream of copies.
void copy_ones(float* x, bool waits) {
    void *event, *ones;
    cuEventCreate(&event, 0);
    cuEventRecord(event, work);
    cuMemHostAlloc(&ones, N * sizeof(float), 0);
    for (int i = 0; i < N; i++) ((float*)ones)[i] = 1;
    if (waits) cuStreamWaitEvent(copies, event, 0);
    cuMemcpyHtoDAsync_v2((u64)x, ones, N * sizeof(float), copies);
}

struct Case {
    const char* name;
    void (*run)(bool fixed);
};
// A launch of the kernel with zeros as its argument.
#define KERNEL_CASE(name, blocks, threads, shared) \
    { #name, [](bool fixed) { launch("planted_" #name, blocks, threads, shared, zeros(), (int)fixed); } }

const Case CASES[] = {
    KERNEL_CASE(barrier, 1, N, 4 * N),
    KERNEL_CASE(second_barrier, 1, N, 4 * N),
    KERNEL_CASE(syncwarp, 1, 32, 4 * 32),
    KERNEL_CASE(bytes, 1, N, N),
    KERNEL_CASE(zeroed_counter, 1, N, 4),
    KERNEL_CASE(blocks, 8, 32, 0),
    KERNEL_CASE(neighbour, 8, 32, 0),
    {"fence", [](bool fixed) { launch("planted_fence", 8, 32, 4, zeros(), (int*)zeros(), (int)fixed); }},
    KERNEL_CASE(behind, 1, N, 0),
    KERNEL_CASE(before, 1, N, 0),
    KERNEL_CASE(shared_size, 1, N, 4 * N),
    KERNEL_CASE(alignment, 1, 32, 0),
    {"unwritten", [](bool fixed) { launch("planted_unwritten", 1, N, 0, zeros(), buffer(), (int)fixed); }},
    KERNEL_CASE(unwritten_shared, 1, N, 4 * N),
    KERNEL_CASE(copy, 1, 32, 16 * 32),
    KERNEL_CASE(ldg, 1, 32, 0),
    KERNEL_CASE(divergence, 1, N, 0),
    {"freed", [](bool fixed) {
         float* x = zeros();
         if (!fixed) cuMemFree_v2((u64)x);
         launch("planted_add", 1, N, 0, x, 1.0f);
     }},
    // The pool's poison ends where the buffer's user does.
    {"poison", [](bool fixed) {
         float* x = zeros();
         size_t used = fixed ? 4 * N : 4 * N - 4;
         cuMemsetD8Async((u64)x, 0xff, used, work);
         cuMemsetD8Async((u64)x, 0, used, work);
         launch("planted_add", 1, N, 0, x, 1.0f);
     }},
    {"threads", [](bool fixed) { launch("planted_add", 1, fixed ? N : N + 32, 0, zeros(), 1.0f); }},
    {"opt_in", [](bool fixed) {
         void* f;
         cuModuleGetFunction(&f, nullptr, "planted_add");
         if (fixed) cuFuncSetAttribute(f, 8, 64 << 10);
         launch("planted_add", 1, N, 64 << 10, zeros(), 1.0f);
     }},
    {"context", [](bool fixed) {
         if (!fixed) cuCtxSetCurrent(nullptr);
         buffer();
     }},
    {"wait_in_capture", [](bool fixed) {
         void* graph;
         float* x = zeros();
         cuStreamBeginCapture_v2(work, 2);
         launch("planted_add", 1, N, 0, x, 1.0f);
         if (!fixed) cuStreamSynchronize(work);
         cuStreamEndCapture(work, &graph);
     }},
    {"copy_in_capture", [](bool fixed) {
         void* graph;
         float *x = zeros(), value = 1;
         cuStreamBeginCapture_v2(work, 2);
         if (fixed) cuMemcpyDtoDAsync_v2((u64)x, (u64)(x + 1), 4, work);
         else cuMemcpyHtoDAsync_v2((u64)x, &value, 4, work);
         cuStreamEndCapture(work, &graph);
     }},
    {"pinned", [](bool fixed) {
         float* x = zeros();
         cuStreamSynchronize(work);
         for (int i = 0; i < 64; i++) { // some of the copies run at once
             void* p;
             cuMemHostAlloc(&p, 4 * N, 0);
             cuMemcpyHtoDAsync_v2((u64)x, memset(p, 0, 4 * N), 4 * N, copies);
             if (fixed) cuStreamSynchronize(copies);
             cuMemFreeHost(p);
         }
     }},
    // Prints 2 unless the copy runs before the kernel that should precede it.
    {"early_copy", [](bool fixed) {
         float *x = zeros(), *y = zeros();
         cuStreamSynchronize(work);
         launch("planted_add", 1, N, 0, x, 2.0f);
         cuMemcpyDtoDAsync_v2((u64)y, (u64)x, 4, work);
         copy_ones(x, fixed);
         print(y, 1);
         cuStreamSynchronize(copies);
     }},
    {"read_early", [](bool fixed) {
         float *x = zeros(), *y = zeros();
         launch("planted_add", 1, N, 0, x, 1.0f);
         launch_programmatic("planted_read_early", nullptr, x, y, (int)fixed);
     }},
    // What the launch before the last writes, which may not have ended either.
    {"read_early_of_two", [](bool fixed) {
         float *x = zeros(), *y = zeros(), *z = zeros();
         launch("planted_add", 1, N, 0, x, 1.0f);
         launch_programmatic("planted_write_early", nullptr, y, 1);
         launch_programmatic("planted_read_early", nullptr, x, z, (int)fixed);
     }},
    {"write_early", [](bool fixed) {
         float *x = zeros(), *y = zeros();
         launch("planted_unwritten", 1, N, 0, y, x, 0); // reads x
         launch_programmatic("planted_write_early", nullptr, x, (int)fixed);
     }},
    {"end_early", [](bool fixed) {
         launch("planted_add", 1, N, 0, zeros(), 1.0f);
         launch_programmatic("planted_end_early", nullptr, zeros(), (int)fixed); // follows a fill, which ends first
         launch_programmatic("planted_end_early", nullptr, buffer(), (int)fixed);
     }},
    {"ldg_of_launch", [](bool fixed) {
         float *x = zeros(), *y = zeros();
         launch("planted_add", 1, N, 0, x, 1.0f);
         launch_programmatic("planted_ldg_of_launch", nullptr, x, y, (int)fixed);
     }},
    {"prefetch", [](bool fixed) { launch("planted_prefetch", 1, N, 0, zeros(), (int)fixed); }},
    // The code that was loaded does not wait: a comment on this card.
    {"no_wait", [](bool fixed) {
         const char* waits = ".version 8.4\n.target sm_90\n.entry planted_write_early(\n){\n\tgriddepcontrol.wait;\n}\n";
         const char* does_not = ".version 8.4\n.target sm_80\n.entry planted_write_early(\n){\n\t//sm_90 griddepcontrol.wait;\n}\n";
         void *module, *values[2] = {};
         int options[2] = {5, 6};
         if (cuModuleLoadDataEx(&module, fixed ? waits : does_not, 2, options, values)) abort();
         launch_programmatic("planted_write_early", module, buffer(), 1);
     }},
    {"programmatic_in_capture", [](bool fixed) {
         void* graph;
         float* x = zeros();
         cuStreamBeginCapture_v2(work, 2);
         if (fixed) launch("planted_add", 1, N, 0, x, 1.0f);
         launch_programmatic("planted_write_early", nullptr, x, 1);
         cuStreamEndCapture(work, &graph);
     }},
    {"order", [](bool) {
         int* x = (int*)zeros();
         launch("planted_order", 4, 64, 0, x, (int*)zeros());
         print(x, N);
     }},
    {"tensor", [](bool) {
         float* x = zeros();
         launch("planted_tensor", 1, 32, 0, x);
         print(x, 1);
     }},
};

} // namespace planted

// Arguments: the case, and `fixed`.
extern "C" __attribute__((visibility("default"))) int emulator_planted(int n, char** args) {
    using namespace planted;
    for (const Case& one : CASES) {
        if (n < 2 || strcmp(args[1], one.name)) continue;
        cuCtxSetCurrent((void*)1);
        cuStreamCreate(&work, 0), cuStreamCreate(&copies, 0);
        one.run(n > 2);
        cuCtxSetCurrent((void*)1);
        cuStreamSynchronize(work), cuStreamSynchronize(copies);
        return 0;
    }
    return 2;
}
