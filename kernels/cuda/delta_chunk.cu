// The chunkwise gated delta rule with chunks of 32 tokens, for long spans: delta_chunks computes everything that does not
// depend on S for all chunks of a slab in parallel, then delta_apply advances S chunk by chunk, 32 columns of one head's S
// per block.
//
// With G the cumulative log-decay inside a chunk, rows r, s of it, and L_rs = beta_r sum_d k_rd k_sd e^(G_rd - G_sd), s < r:
//
//   (I + L) W = Diag(beta) K e^G    (I + L) U = Diag(beta) V    P_rs = sum_d q_rd k_sd e^(G_rd - G_sd), s <= r
//   Vn = U - W S                    O = (Q e^G) S + P Vn        S <- Diag(e^G_C) S + (K e^(G_C - G))^T Vn
//
// Every e^(G_r - G_s) is a product of the decays in between, never a quotient: e^-G would overflow. Products with S run on
// the tensor cores in tf32, with each number split in two, so that they are as exact as f32. By count a chunk takes
// delta_apply about 1,300 tensor instructions, and 32 tokens take delta.cu 32 barriers (not yet run on a GPU).
// Next: route.cu.
#include "common.cuh"

#define CHUNK 32
#define DIM 128   // channels of keys and values
#define COLUMNS 32 // columns of S per block
#define S_PITCH 34  // row pitch of S; avoids bank conflicts of B's fragments

// Results of delta_chunks for a chunk of a head, in floats: W, Q e^G, U [32, 128]; K e^(G_C - G)
// transposed [128, 32]; P [32, 32]; e^G_C [128].
#define AT_W 0
#define AT_Q (CHUNK * DIM)
#define AT_U (2 * CHUNK * DIM)
#define AT_K (3 * CHUNK * DIM)
#define AT_P (4 * CHUNK * DIM)
#define AT_DECAY (AT_P + CHUNK * CHUNK)
#define CHUNK_FLOATS (AT_DECAY + DIM)

struct Chunks {
    const float *q, *k, *v, *g, *beta;
    float *o, *state, *scratch;
    int first, rows; // rows of the slab
    int heads, chunks;
};

struct alignas(16) Floats {
    float v[4];
};

__device__ __forceinline__ Floats read_floats(const float* p) {
    Four raw = read_16(p);
    return Floats{{__int_as_float(raw.v[0]), __int_as_float(raw.v[1]), __int_as_float(raw.v[2]), __int_as_float(raw.v[3])}};
}

struct ChunkShared {
    float k[CHUNK][DIM], q[CHUNK][DIM], alpha[CHUNK][DIM];
    float l[CHUNK][CHUNK];
    float beta[CHUNK];
};

// Exchanges half of the values between two lanes.
template <int half> __device__ __forceinline__ void fold(float v[32]) {
    bool upper = threadIdx.x & half;
#pragma unroll
    for (int i = 0; i < half; i++) {
        float keep = upper ? v[i + half] : v[i], give = upper ? v[i] : v[i + half];
        v[i] = keep + __shfl_xor_sync(FULL, give, half);
    }
}

// Sums 32 values over the lanes: lane i gets the sum of value i.
__device__ __forceinline__ float sum_each(float v[32]) {
    fold<16>(v);
    fold<8>(v);
    fold<4>(v);
    fold<2>(v);
    fold<1>(v);
    return v[0];
}

// Computes row r of L and P with a warp, from r backwards: w is e^(G_r - G_c), four columns per lane.
__device__ __forceinline__ void pairs_of_row(ChunkShared& s, int r, float* p) {
    int lane = threadIdx.x % 32, d = 4 * lane;
    float w[4] = {1, 1, 1, 1};
#pragma unroll
    for (int half = 1; half >= 0; half--) {
        float part[32]; // 16 tokens of L, 16 of P
#pragma unroll
        for (int j = 15; j >= 0; j--) {
            int c = 16 * half + j;
            float a = 0, b = 0;
            if (c <= r)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float k = s.k[c][d + i] * w[i];
                    a += s.k[r][d + i] * k;
                    b += s.q[r][d + i] * k;
                    w[i] *= s.alpha[c][d + i];
                }
            part[j] = a;
            part[16 + j] = b;
        }
        float sum = sum_each(part);
        int c = 16 * half + lane % 16;
        if (lane < 16) s.l[r][c] = s.beta[r] * sum;
        else p[c] = c <= r ? sum : 0;
    }
}

// Grid: chunks, heads. Tokens beyond the span neither decay nor write.
KERNEL(delta_chunks, 256)(const __grid_constant__ Chunks p) {
    SHARED(ChunkShared, shared);
    ChunkShared& s = *shared;
    int h = blockIdx.y, n = min(CHUNK, p.rows - (int)blockIdx.x * CHUNK);
    i64 t0 = p.first + blockIdx.x * CHUNK;
    float* out = p.scratch + ((i64)h * p.chunks + blockIdx.x) * CHUNK_FLOATS;
    for (int i = threadIdx.x; i < CHUNK * DIM; i += 256) {
        int r = i / DIM, d = i % DIM;
        bool live = r < n;
        i64 at = ((t0 + r) * p.heads + h) * DIM + d;
        s.k[r][d] = live ? p.k[at] : 0;
        s.q[r][d] = live ? p.q[at] : 0;
        s.alpha[r][d] = live ? expf(p.g[at]) : 1;
    }
    if (threadIdx.x < CHUNK) s.beta[threadIdx.x] = threadIdx.x < n ? p.beta[(t0 + threadIdx.x) * p.heads + h] : 0;
    __syncthreads();
    for (int r = threadIdx.x / 32; r < CHUNK; r += 8) pairs_of_row(s, r, out + AT_P + r * CHUNK);
    __syncthreads();
    // Forward substitution: one column of W or U per thread.
    int d = threadIdx.x % DIM;
    bool of_w = threadIdx.x < DIM;
    float x[CHUNK], decay = 1;
    if (of_w) {
#pragma unroll
        for (int r = 0; r < CHUNK; r++) {
            decay *= s.alpha[r][d];
            x[r] = s.beta[r] * s.k[r][d] * decay;
            out[AT_Q + r * DIM + d] = s.q[r][d] * decay;
        }
        out[AT_DECAY + d] = decay;
    } else {
#pragma unroll
        for (int r = CHUNK - 4; r >= 0; r -= 4) {
            Floats four;
#pragma unroll
            for (int i = 3; i >= 0; i--) {
                four.v[i] = s.k[r + i][d] * decay;
                decay *= s.alpha[r + i][d];
            }
            *(Floats*)(out + AT_K + d * CHUNK + r) = four;
        }
#pragma unroll
        for (int r = 0; r < CHUNK; r++) x[r] = r < n ? s.beta[r] * p.v[((t0 + r) * p.heads + h) * DIM + d] : 0;
    }
    out += (of_w ? AT_W : AT_U) + d;
#pragma unroll
    for (int r = 0; r < CHUNK; r++) {
#pragma unroll
        for (int c = 0; c < r; c++) x[r] -= s.l[r][c] * x[c];
        out[r * DIM] = x[r];
    }
}
REGISTER(delta_chunks)

struct ApplyShared {
    float s[DIM][S_PITCH];
    float vn[CHUNK][S_PITCH];
};

// Splits x in the sum of two tf32 numbers.
__device__ __forceinline__ void split(float x, u32& large, u32& small) {
    large = tf32(x);
    small = tf32(x - __int_as_float((int)large));
}

// acc += A B for sixteen columns of A: its rows g and g + 8, columns 4 c.. of both, and B's rows 4 c.., column g of each
// eight. Lane (g, c) uses its four columns as columns c and c + 4 of two fragments; the order does not affect the sum.
__device__ __forceinline__ void add_product(float acc[4][4], Floats top, Floats bottom, const float* b) {
#pragma unroll
    for (int step = 0; step < 2; step++) {
        u32 large[4], small[4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            split(top.v[2 * step + i], large[2 * i], small[2 * i]);
            split(bottom.v[2 * step + i], large[2 * i + 1], small[2 * i + 1]);
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
            u32 b_large[2], b_small[2];
#pragma unroll
            for (int i = 0; i < 2; i++) split(b[(2 * step + i) * S_PITCH + 8 * n], b_large[i], b_small[i]);
            mma_tf32(acc[n], small, b_large);
            mma_tf32(acc[n], large, b_small);
            mma_tf32(acc[n], large, b_large);
        }
    }
}

// acc += A B, where A has `cols` columns and a row pitch of `pitch` floats.
template <int cols> __device__ __forceinline__ void add_rows(float acc[4][4], const float* a, int pitch, const float* b) {
    int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < cols; k += 16) {
        Floats top = read_floats(a + g * pitch + k + 4 * c), bottom = read_floats(a + (g + 8) * pitch + k + 4 * c);
        add_product(acc, top, bottom, b + (k + 4 * c) * S_PITCH + g);
    }
}

// Grid: columns / 32, heads. Warps 0 and 1 compute Vn, 2 and 3 compute O, for sixteen tokens each; each updates a quarter of S.
KERNEL(delta_apply, 128)(const __grid_constant__ Chunks p) {
    SHARED(ApplyShared, shared);
    ApplyShared& s = *shared;
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4, h = blockIdx.y, col0 = blockIdx.x * COLUMNS;
    int tokens = warp % 2 * 16;
    bool of_o = warp >= 2;
    float* state = p.state + (i64)h * DIM * DIM + col0;
    for (int i = threadIdx.x; i < DIM * COLUMNS; i += 128) s.s[i / COLUMNS][i % COLUMNS] = state[i / COLUMNS * DIM + i % COLUMNS];
    __syncthreads();
    for (int chunk = 0; chunk < p.chunks; chunk++) {
        const float* in = p.scratch + ((i64)h * p.chunks + chunk) * CHUNK_FLOATS;
        float acc[4][4] = {};
        add_rows<DIM>(acc, in + (of_o ? AT_Q : AT_W) + tokens * DIM, DIM, s.s[0]);
        if (!of_o)
#pragma unroll
            for (int i = 0; i < 16; i++) {
                int row = tokens + g + i % 4 / 2 * 8, col = i / 4 * 8 + 2 * c + i % 2;
                s.vn[row][col] = in[AT_U + row * DIM + col0 + col] - acc[i / 4][i % 4];
            }
        __syncthreads();
        if (of_o) {
            add_rows<CHUNK>(acc, in + AT_P + tokens * CHUNK, CHUNK, s.vn[0]);
#pragma unroll
            for (int i = 0; i < 16; i++) {
                int row = chunk * CHUNK + tokens + g + i % 4 / 2 * 8, col = i / 4 * 8 + 2 * c + i % 2;
                if (row < p.rows) p.o[(((i64)p.first + row) * p.heads + h) * DIM + col0 + col] = acc[i / 4][i % 4];
            }
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
            int d = warp * 32 + m * 16;
            float add[4][4] = {};
            add_rows<CHUNK>(add, in + AT_K + d * CHUNK, CHUNK, s.vn[0]);
#pragma unroll
            for (int i = 0; i < 16; i++) {
                int row = d + g + i % 4 / 2 * 8, col = i / 4 * 8 + 2 * c + i % 2;
                s.s[row][col] = in[AT_DECAY + row] * s.s[row][col] + add[i / 4][i % 4];
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < DIM * COLUMNS; i += 128) state[i / COLUMNS * DIM + i % COLUMNS] = s.s[i / COLUMNS][i % COLUMNS];
}
REGISTER(delta_apply)
