// Absorbed MLA attention: all heads read one latent row as key, and its first values as value:
// o_h = sum_s softmax_s(scale q_h . c_s) c_s[..value_dim].
//
// The rows of a cache are split into parts, which blocks process in parallel (split-KV): a part writes its maximum score, sum
// of weights and weighted values, and `merge` combines the parts. attend_tensor processes 32 heads of a token at once, so
// that a row is read once for all of them; attend_plain handles other shapes and F32 caches.
// Next: materialized.cu.
#include "cache.cuh"

struct Attention {
    const float* q; // [tokens, heads, width]
    float* o;       // [tokens, heads, value_dim] with one part, else [tokens, heads, parts, value_dim + 2]
    CacheShape cache;
    int heads, value_dim, parts;
    float scale;
};

// Appends each span's rows to its cache. Grid: spans, blocks that share a span's rows; a warp takes 32 columns of a row at a
// time. A single block also advances the length of the cache. Several blocks cannot, since others may not have read the
// length yet: `advance` follows them.
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

// Rotates pairs (2i, 2i+1) of the last `dims` columns of each head of q and of the rows kv, before these are appended. Angles
// are computed in f64, once for all heads. Grid: rows of a span, spans.
KERNEL(rotate, 32)(const __grid_constant__ Spans spans, float* q, float* kv, int heads, int width, int kv_width, int dims, float base) {
    const SpanOf& span = spans.of[blockIdx.y];
    if ((int)blockIdx.x >= span.rows) return;
    i64 t = span.first + blockIdx.x;
    double position = ((const Header*)span.state)->len + (int)blockIdx.x;
    for (int i = threadIdx.x; i < dims / 2; i += blockDim.x) {
        double angle = position * pow((double)base, -2.0 * i / dims), s, c;
        sincos(angle, &s, &c);
        for (int h = 0; h <= heads; h++) {
            float* pair = (h < heads ? q + (t * heads + h + 1) * width : kv + (t + 1) * kv_width) - dims + 2 * i;
            float x = pair[0], y = pair[1];
            pair[0] = x * (float)c - y * (float)s;
            pair[1] = x * (float)s + y * (float)c;
        }
    }
}
REGISTER(rotate)

// Advances the lengths after several blocks have appended. Grid: 1; one thread per span.
KERNEL(advance, 32)(const __grid_constant__ Spans spans, int n_spans) {
    if (threadIdx.x >= n_spans) return;
    const SpanOf& span = spans.of[threadIdx.x];
    ((Header*)span.state)->len += span.rows;
}
REGISTER(advance)

// The rows first..end of a cache that a block of queries attends to.
struct Look {
    const Header* header;
    int first, end;
};

// The rows of part `part` that token `t` of the batch attends to; no header if no span contains the token.
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

// Address of a query's results: weighted values, then (with parts) the maximum score and the sum of weights.
__device__ __forceinline__ float* result_of(const Attention& p, i64 query, int part) {
    return p.parts == 1 ? p.o + query * p.value_dim : p.o + (query * p.parts + part) * (p.value_dim + 2);
}

#define PLAIN_ROWS 32
#define PLAIN_VALUES 4 // per thread: value_dim <= 128 * 4

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
#pragma unroll 2 // more spills
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

// Combines the parts of a query: one warp computes the weight of each part, then 4 x 128 threads sum a quarter of the parts for
// one value each. Grid: tokens * heads, values / 128; shared: [n] weights, [4, 128] sums. (NaN in a part's sum propagates.)
KERNEL(merge, 512)(const float* parts, float* o, int n, int value_dim) {
    SHARED(float, weight);
    float* quarters = weight + n;
    int stride = value_dim + 2;
    parts += (i64)blockIdx.x * n * stride;
    if (threadIdx.x < 32) {
        float largest = -INFINITY_F, total = 0;
        for (int i = threadIdx.x; i < n; i += 32) largest = fmaxf(largest, parts[(i64)i * stride + value_dim]);
        largest = warp_max(largest);
        for (int i = threadIdx.x; i < n; i += 32) {
            const float* part = parts + (i64)i * stride + value_dim;
            weight[i] = part[1] != 0 ? expf(part[0] - largest) : 0;
            total += weight[i] * part[1];
        }
        total = warp_sum(total);
        for (int i = threadIdx.x; i < n; i += 32) weight[i] = total != 0 ? weight[i] / total : 0;
    }
    __syncthreads();
    int c = blockIdx.y * 128 + threadIdx.x % 128, quarter = threadIdx.x / 128;
    float y = 0;
    if (c < value_dim)
#pragma unroll 8
        for (int i = quarter; i < n; i += 4) y += weight[i] * parts[(i64)i * stride + c];
    quarters[threadIdx.x] = y;
    __syncthreads();
    if (quarter > 0 || c >= value_dim) return;
    const float* q = quarters + threadIdx.x;
    o[(i64)blockIdx.x * value_dim + c] = (q[0] + q[128]) + (q[256] + q[384]);
}
REGISTER(merge)

#define HEADS 32      // queries per block
#define ROWS 16       // cache rows per tile
#define STAGES 3      // tiles in the pipeline: one is processed while two load
#define VALUES 512    // value_dim
#define MOST_WIDTH 576
#define PITCH (MOST_WIDTH + 8) // halves; avoids bank conflicts of the fragments
#define P_PITCH (ROWS + 8)

struct TensorShared {
    u16 q[HEADS * PITCH];
    u16 c[STAGES][ROWS * PITCH];
    u16 p[HEADS * P_PITCH]; // weights
    float score[2][HEADS][ROWS + 1]; // for each half of the columns
    float largest[HEADS], sum[HEADS], old[HEADS];
};

// Address of a tile of rows, which are contiguous because tiles begin at multiples of ROWS.
__device__ __forceinline__ const u8* tile_at(u8* const* segments, const CacheShape& cache, int first) {
    return segments[first / SEGMENT] + (i64)(first % SEGMENT) * cache.row_bytes;
}

#define PIECES ((MOST_WIDTH + 127) / 128) // pieces of eight columns per thread
#define TOGETHER 3                        // Q8_0 pieces in flight

// Loads a tile's n rows as binary16, zero-padded. Sixteen threads per row.
__device__ __forceinline__ void load_rows(const Attention& p, const u8* rows, u16* tile, int n) {
    int r = threadIdx.x / 16, first = threadIdx.x % 16 * 8;
    const u8* row = rows + (i64)r * p.cache.row_bytes;
    u16* to = tile + r * PITCH;
    if (p.cache.format == CACHE_F16) {
#pragma unroll
        for (int k = 0; k < PIECES; k++) {
            int c = first + 128 * k;
            if (c >= p.cache.width) break;
            if (r < n) copy_16(to + c, row + 2 * c);
            else *(Four*)(to + c) = Four{};
        }
        return;
    }
#pragma unroll 1 // five at once need more registers than two blocks per multiprocessor have
    for (; first < p.cache.width; first += 128 * TOGETHER) {
        int2 q[TOGETHER];
        u16 d[TOGETHER];
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
            int c = first + 128 * k;
            bool in = r < n && c < p.cache.width;
            q[k] = in ? __ldg((const int2*)(row + c)) : int2{};
            d[k] = in ? __ldg((const u16*)(row + 32 * p.cache.blocks) + c / 32) : 0;
        }
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
            int c = first + 128 * k;
            float scale = f16_float(d[k]);
            Four out;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int two = (j < 2 ? q[k].x : q[k].y) >> (j % 2 * 16);
                out.v[j] = (int)pack_f16((float)(i8)two * scale, (float)(i8)(two >> 8) * scale);
            }
            if (c < p.cache.width) *(Four*)(to + c) = out;
        }
    }
}

// Accumulates sixteen columns of the products of 16 heads and 8 rows.
__device__ __forceinline__ void score_step(float acc[4], const u16* q, const u16* k) {
    u32 a[4] = {*(const u32*)q, *(const u32*)(q + 8 * PITCH), *(const u32*)(q + 8), *(const u32*)(q + 8 * PITCH + 8)};
    u32 b[2] = {*(const u32*)k, *(const u32*)(k + 8)};
    mma_f16(acc, a, b);
}

// Scores of this warp's 16 heads x 8 rows over half of the columns.
__device__ __forceinline__ void scores(const Attention& p, TensorShared& s, const u16* tile) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4 * 2;
    int heads = warp % 2 * 16, rows = warp / 2 % 2 * 8, half = warp / 4;
    const u16* q = s.q + (heads + g) * PITCH + c;
    const u16* k = tile + (rows + g) * PITCH + c;
    float even[4] = {}, odd[4] = {};
    int d = half * p.cache.width / 2, end = d + p.cache.width / 2;
    for (; d + 32 <= end; d += 32) {
        score_step(even, q + d, k + d);
        score_step(odd, q + d + 16, k + d + 16);
    }
    if (d < end) score_step(even, q + d, k + d);
#pragma unroll
    for (int j = 0; j < 4; j++) s.score[half][heads + g + j / 2 * 8][rows + c + j % 2] = even[j] + odd[j];
}

// Updates the online softmax of four heads per warp, two at a time, one lane per row; writes weights to shared memory.
__device__ __forceinline__ void soften(const Attention& p, TensorShared& s, int n) {
    int r = threadIdx.x % ROWS;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int h = threadIdx.x / 32 * 4 + 2 * i + threadIdx.x % 32 / ROWS;
        float score = r < n ? (s.score[0][h][r] + s.score[1][h][r]) * p.scale : -INFINITY_F;
        float before = s.largest[h], now = fmaxf(before, score);
#pragma unroll
        for (int by = ROWS / 2; by > 0; by /= 2) now = fmaxf(now, __shfl_xor_sync(FULL, now, by));
        float weight = expf(score - now), total = weight, old = expf(before - now);
#pragma unroll
        for (int by = ROWS / 2; by > 0; by /= 2) total += __shfl_xor_sync(FULL, total, by);
        s.p[h * P_PITCH + r] = float_f16(weight);
        if (r == 0) s.largest[h] = now, s.sum[h] = s.sum[h] * old + total, s.old[h] = old;
    }
}

// Adds the weighted rows to this warp's 32 heads x 64 values.
__device__ __forceinline__ void weigh(const TensorShared& s, const u16* tile, float acc[2][8][4]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4 * 2;
    u32 a[2][4];
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const u16* w = s.p + (16 * m + g) * P_PITCH + c;
        a[m][0] = *(const u32*)w, a[m][1] = *(const u32*)(w + 8 * P_PITCH);
        a[m][2] = *(const u32*)(w + 8), a[m][3] = *(const u32*)(w + 8 * P_PITCH + 8);
        float upper = s.old[16 * m + g], lower = s.old[16 * m + g + 8];
#pragma unroll
        for (int n = 0; n < 8; n++) acc[m][n][0] *= upper, acc[m][n][1] *= upper, acc[m][n][2] *= lower, acc[m][n][3] *= lower;
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
        u32 b[2];
        load_transposed(b, tile + lane % 16 * PITCH + 64 * warp + 8 * n);
        mma_f16(acc[0][n], a[0], b);
        mma_f16(acc[1][n], a[1], b);
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
    int tiles = (look.end - look.first + ROWS - 1) / ROWS;
    u8* const* segments = look.header->segments;
    const u8* next = tiles > 0 ? tile_at(segments, p.cache, look.first) : 0; // loaded one tile ahead
    auto load = [&](int tile) {
        int first = look.first + tile * ROWS;
        if (tile < tiles) load_rows(p, next, s.c[tile % STAGES], min(ROWS, look.end - first));
        copies_commit(); // one group per tile, even if empty
        if (tile + 1 < tiles) next = tile_at(segments, p.cache, first + ROWS);
    };
    for (int tile = 0; tile < STAGES - 1; tile++) load(tile);
    float acc[2][8][4] = {};
    for (int tile = 0; tile < tiles; tile++) {
        const u16* c = s.c[tile % STAGES];
        copies_done<STAGES - 2>();
        __syncthreads(); // the tile has arrived, and no thread reads the previous tile any more, which is overwritten next
        load(tile + STAGES - 1);
        scores(p, s, c);
        __syncthreads();
        soften(p, s, min(ROWS, look.end - look.first - tile * ROWS));
        __syncthreads();
        weigh(s, c, acc);
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
