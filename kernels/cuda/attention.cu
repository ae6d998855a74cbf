// Absorbed MLA attention: all heads read one latent row as key, and its first values as value:
// o_h = sum_s softmax_s(scale q_h . c_s) c_s[..value_dim].
//
// The rows of a cache are split into parts, which blocks process in parallel (split-KV): a part writes its maximum score, sum
// of weights and weighted values, and `merge` combines the parts. attend_tensor processes 32 heads of a token at once, so
// that a row is read once for all of them: attend_tensor_F16 copies rows asynchronously to shared memory, attend_tensor_Q8_0
// converts them to binary16 in registers. attend_plain handles other shapes and F32 caches. Each block of a grid finds its
// span by an index, so that few instructions precede its first read of a row (README.md has the counts).
// Next: materialized.cu.
#include "cache.cuh"

struct Attention {
    const float* q; // [tokens, heads, width]
    float* o;       // [tokens, heads, value_dim] with one part, else [tokens, heads, parts, value_dim + 2]
    CacheShape cache;
    int heads, value_dim, parts;
    float scale;
    u32 part_share; // 2^31 / parts, rounded up
    int tail_bytes; // of F16 rows, beyond those of the values
    u32 tile_bytes; // of the rows of a tile of attend_tensor
    int unused;
};

// Stores 32 columns of a cache row, one per lane.
__device__ __forceinline__ void store_columns(u8* row, const CacheShape& shape, int block, float v) {
    int lane = threadIdx.x % 32, c = 32 * block + lane;
    if (shape.format == CACHE_Q8_0) {
        float d = warp_max(fabsf(v)) / 127.0f, inverse = d == 0 ? 0 : 1.0f / d;
        ((i8*)row)[c] = (i8)roundf(v * inverse);
        if (lane == 0) ((u16*)(row + 32 * shape.blocks))[block] = float_f16(d);
    } else if (c < shape.width) {
        if (shape.format == CACHE_F32) ((float*)row)[c] = v;
        else ((u16*)row)[c] = float_f16(v);
    }
}

// Appends each span's rows to its cache. Grid: spans, blocks that share a span's rows; a warp takes 32 columns of a row at a
// time. A single block also advances the length of the cache. Several blocks cannot, since others may not have read the
// length yet: `advance` follows them.
KERNEL(append, 512)(const __grid_constant__ Spans spans, const __grid_constant__ CacheShape shape, const float* x) {
    follow_launch();
    const SpanOf& span = spans.of[blockIdx.x];
    Header* header = (Header*)span.state;
    int before = header->len, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int job = blockIdx.y * warps + threadIdx.x / 32; job < span.rows * shape.blocks; job += gridDim.y * warps) {
        int r = job / shape.blocks, block = job % shape.blocks, c = 32 * block + lane;
        float v = c < shape.width ? x[(i64)(span.first + r) * shape.width + c] : 0;
        store_columns(cache_row(header, shape, before + r), shape, block, v);
    }
    __syncthreads();
    if (threadIdx.x == 0 && gridDim.y == 1) header->len = before + span.rows;
}
REGISTER(append)

#define APPEND_NORM 2 // columns per thread whose loads are in flight at once: 1,024

// Appends the norm of each span's only row: x / sqrt(mean(x^2) + eps) * w over the first n columns, the others as they are.
// Grid: spans. Shared: 33 floats.
KERNEL(append_norm, 512)(const __grid_constant__ Spans spans, const __grid_constant__ CacheShape shape, const float* x, const float* w, int n, float eps) {
    SHARED(float, scratch);
    follow_launch();
    const SpanOf& span = spans.of[blockIdx.x];
    Header* header = (Header*)span.state;
    int before = header->len;
    x += (i64)span.first * shape.width;
    u8* row = cache_row(header, shape, before);
    float v[APPEND_NORM], own[APPEND_NORM], sum = 0;
#pragma unroll
    for (int i = 0; i < APPEND_NORM; i++) {
        int c = threadIdx.x + i * blockDim.x;
        v[i] = c < shape.width ? x[c] : 0, own[i] = c < n ? w[c] : 1;
        if (c < n) sum += v[i] * v[i];
    }
    for (int c = threadIdx.x + APPEND_NORM * blockDim.x; c < n; c += blockDim.x) sum += x[c] * x[c];
    float root = sqrtf(block_sum(sum, scratch) / (float)n + eps);
#pragma unroll
    for (int i = 0; i < APPEND_NORM; i++) {
        int c = threadIdx.x + i * blockDim.x;
        if (c / 32 < shape.blocks) store_columns(row, shape, c / 32, c < n ? v[i] / root * own[i] : v[i]);
    }
    for (int c = threadIdx.x + APPEND_NORM * blockDim.x; c / 32 < shape.blocks; c += blockDim.x) {
        float v = c < shape.width ? x[c] : 0;
        store_columns(row, shape, c / 32, c < n ? v / root * w[c] : v);
    }
    if (threadIdx.x == 0) header->len = before + 1; // all threads have read it before the barriers of the sum
}
REGISTER(append_norm)

// Rotates pairs (2i, 2i+1) of the last `dims` columns of each head of q and of the rows kv, before these are appended. Angles
// are computed in f64, once for all heads. Grid: rows of a span, spans.
KERNEL(rotate, 32)(const __grid_constant__ Spans spans, float* q, float* kv, int heads, int width, int kv_width, int dims, float base) {
    follow_launch();
    const SpanOf& span = spans.of[blockIdx.y];
    if ((int)blockIdx.x >= span.rows) return;
    i64 t = span.first + blockIdx.x;
    double position = ((const Header*)span.state)->len + (int)blockIdx.x;
    for (int i = threadIdx.x; i < dims / 2; i += blockDim.x) {
        double half_turns = position * (pow((double)base, -2.0 * i / dims) * 0.3183098861837907), s, c;
        sincospi(half_turns, &s, &c); // sincos needs a stack frame for large angles
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
    follow_launch();
    if (threadIdx.x >= n_spans) return;
    const SpanOf& span = spans.of[threadIdx.x];
    ((Header*)span.state)->len += span.rows;
}
REGISTER(advance)

// The rows of a cache, first..=last, that a block of queries attends to.
struct Look {
    const Header* header;
    int first, last;
};

// The rows of part `part` that a span's query `row` attends to; none where first > last. A part is whole tiles of a power of two
// rows; rounding may only make it longer.
__device__ __forceinline__ Look look_of(const SpanOf& span, const Attention& p, int row, int part, int tile) {
    const Header* header = (const Header*)span.state;
    int last = header->len + row - span.rows;
    int most = (int)__umulhi(2 * (u32)last, p.part_share) | (tile - 1), first = part * most + part;
    return Look{header, first, min(last, first + most)};
}

// Address of a query's results: weighted values, then (with parts) the maximum score and the sum of weights.
__device__ __forceinline__ float* result_of(const Attention& p, i64 query, int part) {
    return p.parts == 1 ? p.o + query * p.value_dim : p.o + (query * p.parts + part) * (p.value_dim + 2);
}

#define PLAIN_ROWS 32
#define PLAIN_VALUES 4 // per thread: value_dim <= 128 * 4

// Grid: rows of a span * heads, parts, spans; 128 threads. Shared: q [width], scores and weights of 32 rows.
KERNEL(attend_plain, 128)(const __grid_constant__ Spans spans, const __grid_constant__ Attention p) {
    SHARED(float, q);
    follow_launch();
    float *score = q + p.cache.width, *weight = score + PLAIN_ROWS;
    const SpanOf& span = spans.of[blockIdx.z];
    int row = blockIdx.x / p.heads;
    if (row >= span.rows) return;
    i64 query = (i64)span.first * p.heads + blockIdx.x;
    Look look = look_of(span, p, row, blockIdx.y, PLAIN_ROWS);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int c = threadIdx.x; c < p.cache.width; c += blockDim.x) q[c] = p.q[query * p.cache.width + c];
    float acc[PLAIN_VALUES] = {}, largest = -INFINITY_F, sum = 0;
    for (int first = look.first; first <= look.last; first += PLAIN_ROWS) {
        int n = min(PLAIN_ROWS, look.last - first + 1);
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
    follow_launch();
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
#define TILE (ROWS * PITCH)
#define LOG2_E 1.44269504f

// A head's softmax weights of the tile's rows, and the factor for its earlier sums.
struct Weights {
    u16 p[ROWS];
    float old, unused[3]; // avoids bank conflicts
};

struct TensorShared {
    u16 c[STAGES * TILE];
    u16 q[HEADS * PITCH];
    Weights p[HEADS];
    float score[2][HEADS][ROWS]; // of either half of the columns
    float largest[HEADS], sum[HEADS];
};

// Where a thread reads and writes shared memory for each tile, in bytes from the beginning of the array, `k` and `v` of the tile.
// They take registers, because ptxas would compute them for each tile, which took 34 of 226 instructions.
struct Places {
    int q, k, to_score, score, to_p, p, old, v;

    __device__ __forceinline__ Places() {
        int thread = opaque(threadIdx.x); // or the compiler would compute parts of these before the first copy
        int lane = thread % 32, warp = thread / 32;
        // A warp computes scores of 16 heads x 8 rows over half of the columns: every other 32.
        int heads = warp % 2 * 16, rows = warp / 2 % 2 * 8, half = warp / 4;
        q = kept(2 * ((heads + lane % 16) * PITCH + 32 * half + lane / 16 * 8));
        k = kept(2 * ((rows + lane % 8) * PITCH + 32 * half + lane / 8 * 8));
        to_score = kept(4 * ((half * HEADS + heads + lane / 4) * ROWS + rows + lane % 4 * 2));
        // A thread computes the weights of two rows for head thread / 8.
        score = 8 * thread;
        to_p = kept(thread / 8 * (int)sizeof(Weights) + thread % 8 * 4);
        // A warp sums 64 values for 32 heads.
        p = kept(lane % 16 * (int)sizeof(Weights) + lane / 16 * 16);
        old = kept(lane / 4 * (int)sizeof(Weights) + 2 * ROWS);
        v = kept(2 * (lane % 16 * PITCH + 64 * warp + lane / 16 * 8));
    }
};

// The address `bytes` behind `from`.
template <class T> __device__ __forceinline__ T* behind(const void* from, int bytes) { return (T*)((u8*)from + bytes); }

#define PIECES ((MOST_WIDTH + 127) / 128) // pieces of eight columns per thread

// Whether this thread has piece k of a row. Columns below VALUES need no comparison.
__device__ __forceinline__ bool has_piece(const Attention& p, int k) {
    return 128 * (k + 1) <= VALUES || (int)(threadIdx.x % 16 * 16) < p.tail_bytes - (256 * k - 2 * VALUES);
}

// Four int8 quants times a scale (twice in a word) in binary16. With 0x64 as the upper byte, q + 128 is 1,152 + q in binary16, and the
// difference to 1,152 is exact. The product is rounded once, as is a product in f32, which is exact before its conversion.
__device__ __forceinline__ void values_of(int quants, u32 scale, int* out) {
    u32 biased = (u32)quants ^ 0x80808080;
    out[0] = (int)mul_f16x2(sub_f16x2(__byte_perm(biased, 0x64646464, 0x4140), 0x64806480), scale);
    out[1] = (int)mul_f16x2(sub_f16x2(__byte_perm(biased, 0x64646464, 0x4342), 0x64806480), scale);
}

// Loads rows 0..=last of a tile as binary16, zeros beyond them. Sixteen threads per row; `row` is this thread's first piece, and
// `to` where its copies begin.
template <CacheFormat format> __device__ __forceinline__ void load_rows(const Attention& p, const u8* row, u8* to, int last, int scales_at) {
    bool in = (int)(threadIdx.x / 16) <= last;
    const u8* from = base_of(row);
    if (format == CACHE_F16) {
        SharedBase base(to);
#pragma unroll
        for (int k = 0; k < PIECES; k++)
            if (has_piece(p, k)) copy_16_or_zero(base, 128 * k, from + 256 * k, in);
        return;
    }
    const u8* scales = base_of(row + (u32)scales_at); // pieces are four scales apart
    int2 q[PIECES];
    u16 d[PIECES];
#pragma unroll
    for (int k = 0; k < PIECES; k++) {
        q[k] = read_8_or_any(from + 128 * k, in && has_piece(p, k));
        d[k] = in && has_piece(p, k) ? load_global((const u16*)(scales + 8 * k)) : 0; // makes zeros of any quants
    }
#pragma unroll
    for (int k = 0; k < PIECES; k++) {
        u32 scale = twice(d[k]);
        Four out;
        values_of(q[k].x, scale, out.v), values_of(q[k].y, scale, out.v + 2);
        if (has_piece(p, k)) *(Four*)(to + 256 * k) = out;
    }
}

// Loads the tiles of a part in turn. A tile's rows are contiguous, because tiles begin at multiples of ROWS.
template <CacheFormat format> struct Loader {
    const u64* segments;
    const u8* row; // this thread's first piece of the next tile
    int first, last;
    int to; // byte of the pipeline where this thread's copies of the next tile begin
    int scales; // bytes from there to the scale of the piece

    __device__ __forceinline__ Loader(const Attention& p, const Look& look)
        : segments((const u64*)look.header->segments), first(look.first), last(look.last) {
        to = threadIdx.x / 16 * PITCH * 2 + threadIdx.x % 16 * 16;
        scales = 32 * p.cache.blocks + threadIdx.x % 16 / 4 * 2 - threadIdx.x % 16 * 8;
        if (format == CACHE_Q8_0) scales = kept(scales);
        seek(p, min(first, last));
    }

    __device__ __forceinline__ void seek(const Attention& p, int at) {
        at = opaque(at); // or the compiler would compute rows of later segments before the first copy
        u32 r = (u32)at % SEGMENT + threadIdx.x / 16;
        u32 columns = threadIdx.x % 16 * (format == CACHE_F16 ? 16 : 8); // bytes
        row = (const u8*)load_global(segments + (u32)at / SEGMENT) + (r * (u32)p.cache.row_bytes + columns);
    }

    // Commits one group of copies of a tile that may have no rows.
    __device__ __forceinline__ void load(const Attention& p, TensorShared& s) {
        load_rows<format>(p, row, (u8*)s.c + to, last - first, scales);
        if (format == CACHE_F16) copies_commit();
        to += 2 * TILE;
        first = opaque(first + ROWS);
        if (first % SEGMENT) row += p.tile_bytes;
        else if (first <= last) seek(p, first);
    }

    // The same; the group is empty beyond the end.
    __device__ __forceinline__ void next(const Attention& p, TensorShared& s) {
        if (to >= 2 * STAGES * TILE) to -= 2 * STAGES * TILE;
        if (first <= last) return load(p, s);
        if (format == CACHE_F16) copies_commit();
        first += ROWS;
    }
};

// Loads the queries as binary16, eight threads per head, and clears the columns beyond the width of q and of all tiles.
__device__ __forceinline__ void load_queries(const Attention& p, TensorShared& s, i64 query) {
    int h = threadIdx.x / 8, first = threadIdx.x % 8 * 4;
    const float* q = p.q + (query + h) * p.cache.width;
    u16* to = s.q + h * PITCH;
#pragma unroll 6
    for (int c = first; c < p.cache.width; c += 32) {
        Four v = load_16(q + c);
        float x[4];
#pragma unroll
        for (int j = 0; j < 4; j++) x[j] = fminf(fmaxf(__int_as_float(v.v[j]), -65504.0f), 65504.0f);
        *(int2*)(to + c) = int2{(int)pack_f16(x[0], x[1]), (int)pack_f16(x[2], x[3])};
    }
#pragma unroll 1
    for (int c = p.cache.width + first; c < MOST_WIDTH; c += 32) {
        *(int2*)(to + c) = int2{};
#pragma unroll 1
        for (int r = h; r < STAGES * ROWS; r += HEADS) *(int2*)(s.c + r * PITCH + c) = int2{};
    }
}

// Scores of this warp's 16 heads x 8 rows over half of the columns.
__device__ __forceinline__ void scores(TensorShared& s, const Places& at, int tile) {
    SharedBase q(behind<u16>(s.q, at.q)), k(behind<u16>(s.c, tile + at.k));
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int d = 0; d < MOST_WIDTH; d += 64) {
        u32 a[4], b[4];
        load_4(b, k, d);
        load_4(a, q, d);
        mma_f16(even, a, b);
        load_4(a, q, d + 16);
        mma_f16(odd, a, b + 2);
    }
    float* to = behind<float>(s.score, at.to_score);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float one = even[2 * j] + odd[2 * j], two = even[2 * j + 1] + odd[2 * j + 1];
        *(int2*)(to + j * 8 * ROWS) = int2{__float_as_int(one), __float_as_int(two)};
    }
}

// The running maximum and sum of weights of head threadIdx.x / 8, the same in its eight threads.
struct Softmax {
    float largest, sum;
};

// Updates the online softmax, two rows per thread; writes weights to shared memory.
__device__ __forceinline__ void soften(const Attention& p, TensorShared& s, const Places& at, Softmax& softmax, int last) {
    int r = threadIdx.x % 8 * 2;
    int2 a = *behind<int2>(s.score[0], at.score), b = *behind<int2>(s.score[1], at.score);
    float one = r <= last ? (__int_as_float(a.x) + __int_as_float(b.x)) * p.scale : -INFINITY_F;
    float two = r < last ? (__int_as_float(a.y) + __int_as_float(b.y)) * p.scale : -INFINITY_F;
    float now = fmaxf(softmax.largest, fmaxf(one, two));
#pragma unroll
    for (int by = 4; by > 0; by /= 2) now = fmaxf(now, __shfl_xor_sync(FULL, now, by));
    one = exp2_fast((one - now) * LOG2_E), two = exp2_fast((two - now) * LOG2_E);
    float old = exp2_fast((softmax.largest - now) * LOG2_E), total = one + two;
#pragma unroll
    for (int by = 4; by > 0; by /= 2) total += __shfl_xor_sync(FULL, total, by);
    *behind<u32>(s.p, at.to_p) = pack_f16(one, two);
    softmax = Softmax{now, softmax.sum * old + total};
    if (threadIdx.x % 8 == 0) *behind<float>(s.p, at.to_p + 2 * ROWS) = old;
}

// Adds the weighted rows to this warp's 32 heads x 64 values.
__device__ __forceinline__ void weigh(const TensorShared& s, const Places& at, int tile, float acc[2][8][4]) {
    u32 a[2][4];
    SharedBase weights(behind<u16>(s.p, at.p));
#pragma unroll
    for (int m = 0; m < 2; m++) {
        load_4(a[m], weights, m * 16 * (int)(sizeof(Weights) / 2));
        const Weights* own = behind<const Weights>(s.p, at.old) + 16 * m;
        float upper = *(const float*)own, lower = *(const float*)(own + 8);
        if (upper != 1 || lower != 1)
#pragma unroll
            for (int n = 0; n < 8; n++)
                acc[m][n][0] *= upper, acc[m][n][1] *= upper, acc[m][n][2] *= lower, acc[m][n][3] *= lower;
    }
    SharedBase v(behind<u16>(s.c, tile + at.v));
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
        u32 b[4];
        load_4_transposed(b, v, 8 * n);
#pragma unroll
        for (int m = 0; m < 2; m++) mma_f16(acc[m][n], a[m], b), mma_f16(acc[m][n + 1], a[m], b + 2);
    }
}

// Width a multiple of 32 up to 576, value_dim 512, heads a multiple of 32, caches of F16 or Q8_0.
// Grid: rows of a span, parts, spans; 256 threads. A launch takes 32 of the heads, the first ones from q and o.
template <CacheFormat format>
__device__ __forceinline__ void attend_tensor(const Spans& spans, const Attention& p, TensorShared& s) {
    const SpanOf& span = spans.of[blockIdx.z];
    int row = blockIdx.x;
    wait_dependencies();
    if (row >= span.rows) return;
    Look look = look_of(span, p, row, blockIdx.y, ROWS);
    Loader<format> loader(p, look);
    int started = look.first + (STAGES - 1) * ROWS;
#pragma unroll 1 // the compiler would move work for the second tile before the copies of the first
    do loader.load(p, s);
    while (loader.first < started);
    launch_dependents(); // not earlier: the first reads of rows are urgent
    i64 query = (i64)(span.first + row) * p.heads;
    load_queries(p, s, query);
    Places at;
    Softmax softmax = {-INFINITY_F, 0};
    float acc[2][8][4] = {};
    int tile = 0; // byte of the pipeline
    while (loader.first - (STAGES - 1) * ROWS <= look.last) {
        if (format == CACHE_F16) copies_done<STAGES - 2>();
        __syncthreads(); // the tile has arrived, and no thread reads the previous tile any more, which is overwritten next
        loader.next(p, s);
        scores(s, at, tile);
        __syncthreads();
        soften(p, s, at, softmax, look.last - (loader.first - STAGES * ROWS));
        __syncthreads();
        weigh(s, at, tile, acc);
        tile = tile == 2 * (STAGES - 1) * TILE ? 0 : tile + 2 * TILE;
    }
    if (threadIdx.x % 8 == 0) s.largest[threadIdx.x / 8] = softmax.largest, s.sum[threadIdx.x / 8] = softmax.sum;
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

KERNEL_BLOCKS(attend_tensor_F16, 256, 2)(const __grid_constant__ Spans spans, const __grid_constant__ Attention p) {
    SHARED(TensorShared, s);
    attend_tensor<CACHE_F16>(spans, p, *s);
}
REGISTER(attend_tensor_F16)
KERNEL_BLOCKS(attend_tensor_Q8_0, 256, 2)(const __grid_constant__ Spans spans, const __grid_constant__ Attention p) {
    SHARED(TensorShared, s);
    attend_tensor<CACHE_Q8_0>(spans, p, *s);
}
REGISTER(attend_tensor_Q8_0)
