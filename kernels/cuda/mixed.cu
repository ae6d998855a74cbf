// GEMV of one input with matrices of several formats: the projections of a layer in one launch.
//
// A block has rows of one matrix, so that its threads decode one format. The formats are those of the K mixes; others take a
// launch each (matvec1, matvec4). Next: delta_step.cu.
#include "product.cuh"

struct MixedMatrix {
    Planes w;
    float* y; // [vectors, rows]
    int rows;
    int first; // first block within the launch
    int lanes; // threads per row
    int format;
};

#define MIXED 8
struct Mixed {
    MixedMatrix of[MIXED];
    const i8* q;         // [vectors, cols]
    const XScale* scale; // [vectors, cols / 32]
    int n;               // matrices
    int cols;
    int vectors;
    int unused;
};

enum MixedFormat { MIXED_Q2_K, MIXED_Q3_K, MIXED_Q4_K, MIXED_Q5_K, MIXED_Q6_K, MIXED_Q8_0 };

template <class F, int T> __device__ __forceinline__ void mixed_rows(const Mixed& p, const MixedMatrix& of) {
    int row = ((blockIdx.x - of.first) * blockDim.x + threadIdx.x) / of.lanes, v = blockIdx.y * T;
    bool live = row < of.rows;
    if (threadIdx.x == 0) {
        u32 row_bytes = p.cols / F::LEN * F::PLANE;
        prefetch_l2(of.w.plane[0] + (i64)row * row_bytes, min(rows_of_block(of.lanes), of.rows - row) * row_bytes);
    }
    wait_dependencies();
    float acc[T] = {};
    row_part<F, T>(of.w, (i64)(live ? row : 0) * (p.cols / F::LEN), Vectors{p.q, p.scale, p.cols, v, p.vectors - 1}, of.lanes, acc);
#pragma unroll
    for (int t = 0; t < T; t++) {
        float y = lanes_sum(acc[t], of.lanes);
        if (live && v + t < p.vectors && threadIdx.x % of.lanes == 0) of.y[(i64)(v + t) * of.rows + row] = y;
    }
}

// Grid: blocks of all matrices, vectors / T.
template <int T> __device__ __forceinline__ void mixed(const Mixed& p) {
    launch_dependents();
    int m = 0;
#pragma unroll
    for (int i = 1; i < MIXED; i++)
        if (i < p.n && (int)blockIdx.x >= p.of[i].first) m = i;
    const MixedMatrix& of = p.of[m];
    switch (of.format) {
        case MIXED_Q2_K: return mixed_rows<Q2_K, T>(p, of);
        case MIXED_Q3_K: return mixed_rows<Q3_K, T>(p, of);
        case MIXED_Q4_K: return mixed_rows<Q4_K, T>(p, of);
        case MIXED_Q5_K: return mixed_rows<Q5_K, T>(p, of);
        case MIXED_Q6_K: return mixed_rows<Q6_K, T>(p, of);
        default: return mixed_rows<Q8_0, T>(p, of);
    }
}

KERNEL_BLOCKS(mixed1, 128, 4)(const __grid_constant__ Mixed p) { mixed<1>(p); }
REGISTER(mixed1)
KERNEL(mixed4, 128)(const __grid_constant__ Mixed p) { mixed<4>(p); }
REGISTER(mixed4)
