// Materialised MLA attention, for spans of many tokens: keys and values of each head are computed from the cache:
//
//   k_hs = [W_k,h^T c_s | pe_s]    v_hs = W_v,h c_s    o_ht = sum_s softmax_s(scale q_ht . k_hs) v_hs
//
// The cache is processed in pieces of a few thousand rows. For each piece, latent_rows converts the rows to binary16, `materialize`
// multiplies them by the heads' matrices, and attend_materialized runs 128 queries of a head over the result; the state of the
// online softmax is carried between pieces in memory. LatentRows, keys and values are padded with zeros to the widths of the
// published shape, which changes no sum.
//
// By count, a row, token and head take 320 multiplications plus 131,072 / tokens for the key and the value; attention.cu takes
// 1,088. A warp of attend_materialized reads 40 KB of shared memory per tile of 64 keys for 160 tensor instructions of its 16
// queries: as many cycles as these take on sm_80, and half as many on sm_89, which is bound by arithmetic. A block has 8 warps,
// a multiprocessor runs one block (limited by registers and the 99 KB of consumer cards). Not yet run on a GPU.
// Next: sample.cu.
#include "cache.cuh"

#define NOPE 128            // key columns computed per head
#define PE 64               // key columns copied from the row
#define VALUE 128           // value columns
#define MADE (NOPE + VALUE) // halves computed per row and head

// Converts to binary16 with saturation; NaN is preserved.
__device__ __forceinline__ float in_half(float x) { return x != x ? x : fminf(fmaxf(x, -65504.0f), 65504.0f); }

struct WeightHalves {
    const float *k, *v; // [heads, latent, nope], [heads, value_dim, latent]
    u16* weights;       // [heads, MADE, padded]
    int latent, padded, nope, value_dim;
};

// Converts the heads' matrices to rows of latents, zero-padded. Grid: padded / 32, MADE / 32, heads; a block takes a tile of
// 32 x 32 and transposes those of keys.
KERNEL(materialize_weights, 256)(const __grid_constant__ WeightHalves p) {
    SHARED(float, tile);
    int lane = threadIdx.x % 32, h = blockIdx.z, first = 32 * blockIdx.x, made = 32 * blockIdx.y;
    for (int i = threadIdx.x / 32; i < 32; i += 8) {
        float x = 0;
        if (made < NOPE) {
            int l = first + i, m = made + lane;
            if (l < p.latent && m < p.nope) x = p.k[((i64)h * p.latent + l) * p.nope + m];
            tile[lane * 33 + i] = x;
        } else {
            int l = first + lane, m = made - NOPE + i;
            if (l < p.latent && m < p.value_dim) x = p.v[((i64)h * p.value_dim + m) * p.latent + l];
            tile[i * 33 + lane] = x;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x / 32; i < 32; i += 8)
        p.weights[((i64)h * MADE + made + i) * p.padded + first + lane] = float_f16(in_half(tile[i * 33 + lane]));
}
REGISTER(materialize_weights)

struct LatentRows {
    const Header* header;
    u16* rows; // [rows of the launch, padded + PE]
    CacheShape cache;
    int first, n; // rows of the cache; further rows of the launch are zero
    int latent, padded;
};

// Converts rows of a cache to binary16, with latent and pe each zero-padded. Grid: rows.
KERNEL(latent_rows, 128)(const __grid_constant__ LatentRows p) {
    int r = blockIdx.x;
    const u8* row = r < p.n ? cache_row(p.header, p.cache, p.first + r) : 0;
    u16* to = p.rows + (i64)r * (p.padded + PE);
    for (int c = threadIdx.x; c < p.padded + PE; c += 128) {
        int from = c < p.padded ? c : p.latent + c - p.padded;
        bool live = row && from < (c < p.padded ? p.latent : p.cache.width);
        to[c] = live ? float_f16(in_half(cache_value(row, p.cache, from))) : 0;
    }
}
REGISTER(latent_rows)

#define SIDE 128               // rows and columns per block of `materialize`
#define DEEP 32                // latents per iteration
#define DEEP_PITCH (DEEP + 8)  // halves; like all pitches here, it puts eight rows in different banks
#define SIDE_PITCH (SIDE + 8)

struct Materialize {
    const u16 *rows, *weights;
    u16* made; // [heads, n, MADE]
    int n;     // rows, a multiple of SIDE
    int padded;
};

struct MaterializeShared {
    u16 rows[2][SIDE * DEEP_PITCH];
    u16 weights[2][SIDE * DEEP_PITCH];
};

// Starts loading latents `at`.. of the block's rows and columns: four threads per row.
__device__ __forceinline__ void load_deep(const Materialize& p, MaterializeShared& s, int at) {
    int stage = at / DEEP % 2, c = threadIdx.x % 4 * 8;
#pragma unroll
    for (int r = threadIdx.x / 4; r < SIDE; r += 64) {
        copy_16(s.rows[stage] + r * DEEP_PITCH + c, p.rows + ((i64)blockIdx.y * SIDE + r) * (p.padded + PE) + at + c);
        copy_16(s.weights[stage] + r * DEEP_PITCH + c, p.weights + ((i64)blockIdx.x * SIDE + r) * p.padded + at + c);
    }
    copies_commit();
}

// Accumulates the products of 32 latents in this warp's 32 rows x 64 columns.
__device__ __forceinline__ void materialize_step(const u16* rows, const u16* weights, float acc[2][8][4]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    rows += (warp % 4 * 32 + lane % 16) * DEEP_PITCH + lane / 16 * 8;
    weights += (warp / 4 * 64 + lane / 16 * 8 + lane % 8) * DEEP_PITCH + lane / 8 % 2 * 8;
#pragma unroll 1 // two need more registers than two blocks per multiprocessor have
    for (int k = 0; k < DEEP; k += 16) {
        u32 a[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) load_4(a[m], rows + 16 * m * DEEP_PITCH + k);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            u32 b[4];
            load_4(b, weights + 16 * n * DEEP_PITCH + k);
#pragma unroll
            for (int m = 0; m < 2; m++) mma_f16(acc[m][2 * n], a[m], b), mma_f16(acc[m][2 * n + 1], a[m], b + 2);
        }
    }
}

// Computes keys or values of a head for 128 rows. Grid: heads * 2, rows / 128.
KERNEL(materialize, 256)(const __grid_constant__ Materialize p) {
    SHARED(MaterializeShared, shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float acc[2][8][4] = {};
    load_deep(p, *shared, 0);
    for (int at = 0; at < p.padded; at += DEEP) {
        if (at + DEEP < p.padded) load_deep(p, *shared, at + DEEP);
        else copies_commit(); // an empty group, so that the wait covers all but the newest
        copies_done<1>();
        __syncthreads();
        materialize_step(shared->rows[at / DEEP % 2], shared->weights[at / DEEP % 2], acc);
        __syncthreads();
    }
    u16* tile = (u16*)shared; // results are written in whole rows
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int r = warp % 4 * 32 + 16 * m + lane / 4 + 8 * i, c = warp / 4 * 64 + 8 * n + lane % 4 * 2;
                float low = in_half(acc[m][n][2 * i]), high = in_half(acc[m][n][2 * i + 1]);
                *(u32*)(tile + r * SIDE_PITCH + c) = pack_f16(low, high);
            }
    __syncthreads();
    for (int i = threadIdx.x; i < SIDE * SIDE / 8; i += 256) {
        int r = i / (SIDE / 8), c = i % (SIDE / 8) * 8;
        i64 row = (i64)(blockIdx.x / 2) * p.n + (i64)blockIdx.y * SIDE + r;
        *(Four*)(p.made + row * MADE + blockIdx.x % 2 * SIDE + c) = *(const Four*)(tile + r * SIDE_PITCH + c);
    }
}
REGISTER(materialize)

#define QUERIES 128 // per block: sixteen per warp
#define KEYS 64     // per tile
#define K_PITCH (NOPE + PE + 8)
#define V_PITCH (VALUE + 8)

struct MaterializedAttention {
    const float* q;        // [tokens of the batch, heads, nope + pe]
    float* o;              // [tokens of the batch, heads, value_dim]; divided by the sums after the last piece
    float* carry;          // [tokens of the span, heads, 2]: maximum score and sum of weights, carried between pieces
    const u16 *rows, *made;
    int first, tokens;     // the span's rows of the batch
    int before;            // rows of the cache before the span
    int from, to;          // rows of the piece
    int n;                 // capacity of `made` in rows
    int heads, nope, pe, value_dim, padded;
    float scale;           // positive; scores are exponents of 2
};

struct AttendShared {
    u16 k[2][KEYS * K_PITCH];
    u16 v[2][KEYS * V_PITCH];
};

// A lane's part of the softmax of its two queries, g and g + 8 of the warp's sixteen.
struct Running {
    float o[VALUE / 8][4];
    float largest[2], sum[2]; // the sum covers this lane's columns
};

// Starts loading a tile of the piece: four threads per row.
__device__ __forceinline__ void load_keys(const MaterializedAttention& p, AttendShared& s, int tile) {
    int r = threadIdx.x / 4, c = threadIdx.x % 4 * 8;
    i64 row = KEYS * tile + r;
    const u16* made = p.made + ((i64)blockIdx.y * p.n + row) * MADE + c;
    const u16* pe = p.rows + row * (p.padded + PE) + p.padded + c;
    u16 *k = s.k[tile % 2] + r * K_PITCH + c, *v = s.v[tile % 2] + r * V_PITCH + c;
#pragma unroll
    for (int i = 0; i < NOPE; i += 32) copy_16(k + i, made + i);
#pragma unroll
    for (int i = 0; i < PE; i += 32) copy_16(k + NOPE + i, pe + i);
#pragma unroll
    for (int i = 0; i < VALUE; i += 32) copy_16(v + i, made + NOPE + i);
    copies_commit();
}

// Column c of a query in the layout of keys.
__device__ __forceinline__ float query(const MaterializedAttention& p, const float* q, int c) {
    int at = c < NOPE ? c : c - NOPE + p.nope;
    return q && at < (c < NOPE ? p.nope : p.nope + p.pe) ? in_half(q[at]) : 0;
}

// Returns whether a token attends to rows of the piece; other tokens were finished by an earlier piece.
__device__ __forceinline__ bool is_live(const MaterializedAttention& p, int token) {
    return token < p.tokens && p.before + token >= p.from;
}

// Loads this warp's queries as fragments, and the softmax carried from earlier pieces.
__device__ __forceinline__ void begin(const MaterializedAttention& p, int token, u32 q[(NOPE + PE) / 16][4], Running& run) {
    int c = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        bool live = is_live(p, token + 8 * i);
        i64 of_batch = (i64)(p.first + token + 8 * i) * p.heads + blockIdx.y;
        const float* from = live ? p.q + of_batch * (p.nope + p.pe) : 0;
#pragma unroll
        for (int k = 0; k < (NOPE + PE) / 16; k++) {
            q[k][i] = pack_f16(query(p, from, 16 * k + c), query(p, from, 16 * k + c + 1));
            q[k][2 + i] = pack_f16(query(p, from, 16 * k + c + 8), query(p, from, 16 * k + c + 9));
        }
        bool carried = live && p.from > 0;
        const float* carry = p.carry + ((i64)(token + 8 * i) * p.heads + blockIdx.y) * 2;
        run.largest[i] = carried ? carry[0] : -INFINITY_F;
        run.sum[i] = carried && c == 0 ? carry[1] : 0;
#pragma unroll
        for (int n = 0; n < VALUE / 8; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int at = 8 * n + c + j;
                run.o[n][2 * i + j] = carried && at < p.value_dim ? p.o[of_batch * p.value_dim + at] : 0;
            }
    }
}

// Scores of sixteen queries and the tile's keys.
__device__ __forceinline__ void score_keys(const u16* keys, const u32 q[(NOPE + PE) / 16][4], float s[KEYS / 8][4]) {
    int lane = threadIdx.x % 32;
    keys += (lane / 16 * 8 + lane % 8) * K_PITCH + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < (NOPE + PE) / 16; k++)
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            u32 b[4];
            load_4(b, keys + 16 * n * K_PITCH + 16 * k);
            mma_f16(s[2 * n], q[k], b);
            mma_f16(s[2 * n + 1], q[k], b + 2);
        }
}

// Converts scores to weights. Query g attends to the first `seen` keys of the tile, query g + 8 to eight more.
__device__ __forceinline__ void soften_keys(float scale, int seen, float s[KEYS / 8][4], Running& run) {
    int c = threadIdx.x % 4 * 2;
    if (seen < KEYS)
#pragma unroll
        for (int i = 0; i < KEYS / 8 * 4; i++)
            if (i / 4 * 8 + c + i % 2 >= seen + i % 4 / 2 * 8) s[i / 4][i % 4] = -INFINITY_F;
    float old[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float now = run.largest[i];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) now = fmaxf(now, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        now = fmaxf(now, __shfl_xor_sync(FULL, now, 1));
        now = fmaxf(now, __shfl_xor_sync(FULL, now, 2));
        float base = now * scale, sum = 0; // every query of this piece attends to its first row
        old[i] = exp2_fast(run.largest[i] * scale - base);
        run.largest[i] = now;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int j = 2 * i; j < 2 * i + 2; j++) sum += s[n][j] = exp2_fast(s[n][j] * scale - base);
        run.sum[i] = run.sum[i] * old[i] + sum;
    }
    if (old[0] != 1 || old[1] != 1) // rare once the maximum over a long context has been seen
#pragma unroll
        for (int i = 0; i < VALUE / 8 * 4; i++) run.o[i / 4][i % 4] *= old[i % 4 / 2];
}

// Accumulates the weighted values.
__device__ __forceinline__ void weigh_values(const u16* values, const float s[KEYS / 8][4], Running& run) {
    int lane = threadIdx.x % 32;
    values += lane % 16 * V_PITCH + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        const float *low = s[2 * k], *high = s[2 * k + 1];
        u32 a[4] = {pack_f16(low[0], low[1]), pack_f16(low[2], low[3]), pack_f16(high[0], high[1]), pack_f16(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < VALUE / 16; n++) {
            u32 b[4];
            load_4_transposed(b, values + 16 * k * V_PITCH + 16 * n);
            mma_f16(run.o[2 * n], a, b);
            mma_f16(run.o[2 * n + 1], a, b + 2);
        }
    }
}

// Writes the results of queries without a later piece, and the carry of the others.
__device__ __forceinline__ void finish(const MaterializedAttention& p, int token, Running& run) {
    int c = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++, token += 8) {
        float sum = run.sum[i] + __shfl_xor_sync(FULL, run.sum[i], 1);
        sum += __shfl_xor_sync(FULL, sum, 2);
        if (!is_live(p, token)) continue;
        bool last = p.before + token < p.to;
        float norm = last ? 1 / sum : 1;
        float* carry = p.carry + ((i64)token * p.heads + blockIdx.y) * 2;
        if (!last && c == 0) carry[0] = run.largest[i], carry[1] = sum;
        float* o = p.o + ((i64)(p.first + token) * p.heads + blockIdx.y) * p.value_dim;
#pragma unroll
        for (int n = 0; n < VALUE / 8; n++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                if (8 * n + c + j < p.value_dim) o[8 * n + c + j] = run.o[n][2 * i + j] * norm;
    }
}

// Grid: tokens / 128 from the last, which attend to the most rows, heads.
KERNEL(attend_materialized, 256)(const __grid_constant__ MaterializedAttention p) {
    SHARED(AttendShared, shared);
    AttendShared& s = *shared;
    int of_block = (gridDim.x - 1 - blockIdx.x) * QUERIES, of_warp = of_block + threadIdx.x / 32 * 16;
    int token = of_warp + threadIdx.x % 32 / 4;
    // LatentRows of the piece that the newest token of the block and of this warp attends to; 0 without such a token.
    int end = min(p.to, p.before + min(of_block + QUERIES, p.tokens)) - p.from;
    int own = of_warp < p.tokens ? min(p.to, p.before + min(of_warp + 16, p.tokens)) - p.from : 0;
    if (end <= 0) return;
    u32 q[(NOPE + PE) / 16][4];
    Running run;
    load_keys(p, s, 0);
    begin(p, token, q, run);
    for (int tile = 0; tile * KEYS < end; tile++) {
        if ((tile + 1) * KEYS < end) load_keys(p, s, tile + 1);
        else copies_commit();
        copies_done<1>();
        __syncthreads();
        if (tile * KEYS < own) {
            float scores[KEYS / 8][4] = {};
            score_keys(s.k[tile % 2], q, scores);
            soften_keys(p.scale, p.before + token + 1 - p.from - tile * KEYS, scores, run);
            weigh_values(s.v[tile % 2], scores, run);
        }
        __syncthreads();
    }
    finish(p, token, run);
}
REGISTER(attend_materialized)
