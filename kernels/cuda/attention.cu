// Causal attention in which all heads read one latent row as key and its first values as value:
// o_h = sum_s softmax_s(scale q_h . c_s) c_s[..value_dim].
//
// The rows of a cache are split into parts that blocks take at the same time; a part leaves its largest score, its sum
// of weights and its weighted values, and `merge` joins the parts. attend_tensor meets 32 heads of a token at once, so
// a row is read once for them all; attend_plain is for shapes it does not take and for caches in f32.
// Next: sample.cu.
#include "cache.cuh"

struct Attention {
    const float* q; // [tokens, heads, width]
    float* o;       // [tokens, heads, value_dim] where there is one part, else [tokens, heads, parts, value_dim + 2]
    CacheShape cache;
    int heads, value_dim, parts;
    float scale;
};

// Appends each span's rows to its cache. Grid: spans, blocks that share a span's rows; a warp takes 32 columns of a row at a
// time. One block tells the cache of its rows; of several none knows whether the others have read where they begin, so
// `advance` comes after them.
KERNEL(append, 512)(const __grid_constant__ Spans spans, const __grid_constant__ CacheShape shape, const float* x) {
    const SpanOf& span = spans.of[blockIdx.x];
    Header* header = (Header*)span.state;
    int before = header->len, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int job = blockIdx.y * warps + threadIdx.x / 32; job < span.rows * shape.blocks; job += gridDim.y * warps) {
        int r = job / shape.blocks, block = job % shape.blocks, c = 32 * block + lane;
        u8* row = cache_row(header, shape, before + r);
        float v = c < shape.width ? x[(i64)(span.first + r) * shape.width + c] : 0;
        if (shape.format == CACHE_Q8_0) {
            float d = warp_max(fabsf(v)) / 127.0f, inverse = d == 0 ? 0 : 1.0f / d;
            ((i8*)row)[c] = (i8)roundf(v * inverse);
            if (lane == 0) ((u16*)(row + 32 * shape.blocks))[block] = float_f16(d);
        } else if (c < shape.width) {
            if (shape.format == CACHE_F32) ((float*)row)[c] = v;
            else ((u16*)row)[c] = float_f16(v);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0 && gridDim.y == 1) header->len = before + span.rows;
}
REGISTER(append)

// Rows that several blocks appended count. Grid: 1; a thread a span.
KERNEL(advance, 32)(const __grid_constant__ Spans spans, int n_spans) {
    if (threadIdx.x >= n_spans) return;
    const SpanOf& span = spans.of[threadIdx.x];
    ((Header*)span.state)->len += span.rows;
}
REGISTER(advance)

// What a block of queries looks at: rows first..end of a cache.
struct Look {
    const Header* header;
    int first, end;
};

// The rows of part `part` that token `t` of the batch sees; no header where none of these spans has it.
__device__ __forceinline__ Look look_of(const Spans& spans, int n_spans, int t, int part, int parts, int tile) {
    for (int i = 0; i < n_spans; i++) {
        const SpanOf& span = spans.of[i];
        if (t < span.first || t >= span.first + span.rows) continue;
        const Header* header = (const Header*)span.state;
        int seen = header->len - span.rows + (t - span.first) + 1;
        int each = ((seen + parts - 1) / parts + tile - 1) / tile * tile;
        return Look{header, min(seen, part * each), min(seen, (part + 1) * each)};
    }
    return Look{0, 0, 0};
}

// Where a query's results go: weighted values, then (in a part) the largest score and the sum of weights.
__device__ __forceinline__ float* result_of(const Attention& p, i64 query, int part) {
    return p.parts == 1 ? p.o + query * p.value_dim : p.o + (query * p.parts + part) * (p.value_dim + 2);
}

#define PLAIN_ROWS 32
#define PLAIN_VALUES 4 // of a thread: value_dim <= 128 * 4

// Grid: tokens * heads, parts; 128 threads. Shared: q [width], scores and weights of 32 rows.
KERNEL(attend_plain, 128)(const __grid_constant__ Spans spans, int n_spans, const __grid_constant__ Attention p) {
    SHARED(float, q);
    float *score = q + p.cache.width, *weight = score + PLAIN_ROWS;
    i64 query = blockIdx.x;
    Look look = look_of(spans, n_spans, (int)(query / p.heads), blockIdx.y, p.parts, PLAIN_ROWS);
    if (!look.header) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int c = threadIdx.x; c < p.cache.width; c += blockDim.x) q[c] = p.q[query * p.cache.width + c];
    float acc[PLAIN_VALUES] = {}, largest = -INFINITY_F, sum = 0;
    for (int first = look.first; first < look.end; first += PLAIN_ROWS) {
        int n = min(PLAIN_ROWS, look.end - first);
        __syncthreads();
        for (int r = warp; r < n; r += 4) {
            const u8* row = cache_row(look.header, p.cache, first + r);
            float dot = 0;
            for (int c = lane; c < p.cache.width; c += 32) dot += q[c] * cache_value(row, p.cache, c);
            dot = warp_sum(dot);
            if (lane == 0) score[r] = dot * p.scale;
        }
        __syncthreads();
        float now = largest;
        for (int r = 0; r < n; r++) now = fmaxf(now, score[r]);
        if (threadIdx.x < n) weight[threadIdx.x] = expf(score[threadIdx.x] - now);
        __syncthreads();
        float old = expf(largest - now);
        largest = now;
        sum *= old;
#pragma unroll 2
        for (int r = 0; r < n; r++) sum += weight[r];
#pragma unroll
        for (int i = 0; i < PLAIN_VALUES; i++) {
            int c = threadIdx.x + 128 * i;
            if (c < p.value_dim) {
                float y = acc[i] * old;
#pragma unroll 2 // more spill
                for (int r = 0; r < n; r++) y += weight[r] * cache_value(cache_row(look.header, p.cache, first + r), p.cache, c);
                acc[i] = y;
            }
        }
    }
    float* o = result_of(p, query, blockIdx.y);
    float norm = p.parts > 1 || sum == 0 ? 1 : 1 / sum;
#pragma unroll
    for (int i = 0; i < PLAIN_VALUES; i++) {
        int c = threadIdx.x + 128 * i;
        if (c < p.value_dim) o[c] = acc[i] * norm;
    }
    if (p.parts > 1 && threadIdx.x == 0) o[p.value_dim] = largest, o[p.value_dim + 1] = sum;
}
REGISTER(attend_plain)

// Joins the parts of a query. Grid: tokens * heads, values / 128; a thread a value.
KERNEL(merge, 128)(const float* parts, float* o, int n, int value_dim) {
    parts += (i64)blockIdx.x * n * (value_dim + 2);
    float largest = -INFINITY_F, sum = 0;
    for (int i = 0; i < n; i++) largest = fmaxf(largest, parts[(i64)i * (value_dim + 2) + value_dim]);
    for (int i = 0; i < n; i++) {
        const float* part = parts + (i64)i * (value_dim + 2) + value_dim;
        if (part[1] > 0) sum += expf(part[0] - largest) * part[1];
    }
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= value_dim) return;
    float y = 0;
#pragma unroll 4
    for (int i = 0; i < n; i++) {
        const float* part = parts + (i64)i * (value_dim + 2);
        if (part[value_dim + 1] > 0) y += expf(part[value_dim] - largest) * part[c];
    }
    o[(i64)blockIdx.x * value_dim + c] = sum > 0 ? y / sum : 0;
}
REGISTER(merge)

#define HEADS 32      // queries of a block
#define ROWS 32       // cache rows of a tile
#define VALUES 512    // value_dim
#define MOST_WIDTH 576
#define PITCH (MOST_WIDTH + 8) // halves; keeps the fragments' words in different banks
#define P_PITCH (ROWS + 8)

struct TensorShared {
    u16 q[HEADS * PITCH];
    u16 c[ROWS * PITCH];
    u16 p[HEADS * P_PITCH]; // weights
    float score[HEADS][ROWS + 1];
    float largest[HEADS], sum[HEADS], old[HEADS];
};

// Cache rows first..first+n as binary16; zeros after them.
__device__ __forceinline__ void load_rows(const Attention& p, const Look& look, TensorShared& s, int first, int n) {
    int chunks = p.cache.width / 8;
    for (int i = threadIdx.x; i < ROWS * chunks; i += blockDim.x) {
        int r = i / chunks, c = i % chunks * 8;
        u16* to = s.c + r * PITCH + c;
        if (r >= n) {
            *(Four*)to = Four{};
            continue;
        }
        const u8* row = cache_row(look.header, p.cache, first + r);
        if (p.cache.format == CACHE_F16) {
            copy_16(to, row + 2 * c);
        } else {
            int2 q = *(const int2*)(row + c);
            float d = f16_float(((const u16*)(row + 32 * p.cache.blocks))[c / 32]);
#pragma unroll
            for (int j = 0; j < 8; j++) to[j] = float_f16((float)(i8)((j < 4 ? q.x : q.y) >> (j % 4 * 8)) * d);
        }
    }
    copies_commit();
}

// Sixteen columns of the products of 16 heads and 8 rows.
__device__ __forceinline__ void score_step(float acc[4], const u16* q, const u16* k) {
    u32 a[4] = {*(const u32*)q, *(const u32*)(q + 8 * PITCH), *(const u32*)(q + 8), *(const u32*)(q + 8 * PITCH + 8)};
    u32 b[2] = {*(const u32*)k, *(const u32*)(k + 8)};
    mma_f16(acc, a, b);
}

// Scores of this warp's 16 heads x 8 rows.
__device__ __forceinline__ void scores(const Attention& p, TensorShared& s, int n) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4 * 2;
    const u16* q = s.q + (warp / 4 * 16 + g) * PITCH + c;
    const u16* k = s.c + (warp % 4 * 8 + g) * PITCH + c;
    float even[4] = {}, odd[4] = {};
    for (int d = 0; d < p.cache.width; d += 32) {
        score_step(even, q + d, k + d);
        score_step(odd, q + d + 16, k + d + 16);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int row = warp % 4 * 8 + c + j % 2;
        s.score[warp / 4 * 16 + g + j / 2 * 8][row] = row < n ? (even[j] + odd[j]) * p.scale : -INFINITY_F;
    }
}

// The softmax so far of four heads a warp, a lane a row: weights to shared memory.
__device__ __forceinline__ void soften(TensorShared& s) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int h = threadIdx.x / 32 * 4 + i;
        float score = s.score[h][lane], before = s.largest[h];
        float now = fmaxf(before, warp_max(score));
        float weight = expf(score - now), total = warp_sum(weight), old = expf(before - now);
        s.p[h * P_PITCH + lane] = float_f16(weight);
        __syncwarp();
        if (lane == 0) s.largest[h] = now, s.sum[h] = s.sum[h] * old + total, s.old[h] = old;
    }
}

// Adds the weighted rows to this warp's 32 heads x 64 values.
__device__ __forceinline__ void weigh(const TensorShared& s, float acc[2][8][4]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[m][n][j] *= s.old[16 * m + g + j / 2 * 8];
#pragma unroll
    for (int r = 0; r < ROWS; r += 16) {
        u32 a[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const u16* w = s.p + (16 * m + g) * P_PITCH + r + c;
            a[m][0] = *(const u32*)w, a[m][1] = *(const u32*)(w + 8 * P_PITCH);
            a[m][2] = *(const u32*)(w + 8), a[m][3] = *(const u32*)(w + 8 * P_PITCH + 8);
        }
#pragma unroll
        for (int n = 0; n < 8; n++) {
            u32 b[2];
            load_transposed(b, s.c + (r + lane % 16) * PITCH + 64 * warp + 8 * n);
            mma_f16(acc[0][n], a[0], b);
            mma_f16(acc[1][n], a[1], b);
        }
    }
}

// Width a multiple of 32 up to 576, value_dim 512, heads a multiple of 32, caches of F16 or Q8_0.
// Grid: tokens * heads / 32, parts; 256 threads.
KERNEL(attend_tensor, 256)(const __grid_constant__ Spans spans, int n_spans, const __grid_constant__ Attention p) {
    SHARED(TensorShared, shared);
    TensorShared& s = *shared;
    i64 query = (i64)blockIdx.x * HEADS;
    Look look = look_of(spans, n_spans, (int)(query / p.heads), blockIdx.y, p.parts, ROWS);
    if (!look.header) return;
    for (int i = threadIdx.x; i < HEADS * p.cache.width; i += blockDim.x) {
        float q = p.q[query * p.cache.width + i];
        s.q[i / p.cache.width * PITCH + i % p.cache.width] = float_f16(fminf(fmaxf(q, -65504.0f), 65504.0f));
    }
    if (threadIdx.x < HEADS) s.largest[threadIdx.x] = -INFINITY_F, s.sum[threadIdx.x] = 0;
    float acc[2][8][4] = {};
    for (int first = look.first; first < look.end; first += ROWS) {
        int n = min(ROWS, look.end - first);
        __syncthreads();
        load_rows(p, look, s, first, n);
        copies_done<0>();
        __syncthreads();
        scores(p, s, n);
        __syncthreads();
        soften(s);
        __syncthreads();
        weigh(s, acc);
    }
    __syncthreads();
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int h = 16 * m + lane / 4 + j / 2 * 8;
            float* o = result_of(p, query + h, blockIdx.y);
            float norm = p.parts > 1 || s.sum[h] == 0 ? 1 : 1 / s.sum[h];
#pragma unroll
            for (int n = 0; n < 8; n++) o[64 * warp + 8 * n + lane % 4 * 2 + j % 2] = acc[m][n][j] * norm;
            if (p.parts > 1 && warp == 0 && lane % 4 == 0 && j % 2 == 0) o[VALUES] = s.largest[h], o[VALUES + 1] = s.sum[h];
        }
}
REGISTER(attend_tensor)
