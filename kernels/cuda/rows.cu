// Ops on the rows of a batch: quantisation, elementwise ops, norms, the short convolution and the decay.
//
// Bound by memory: each value is read once and written once. Next: delta.cu.
#include "product.cuh"

// Quantises rows: row v is `cols` values from x + v * stride. Grid: rows, columns / 256.
KERNEL(quantise, 256)(const float* x, i8* q, XScale* scale, int cols, int stride) {
    follow_launch();
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    i64 row = blockIdx.x;
    if (c < cols) quantise_32(x[row * stride + c], q, scale, row * cols + c); // whole warps: rows are whole blocks
}
REGISTER(quantise)

// Extracts a plane of stored blocks: bytes first..first+len of each. One thread per byte of the plane.
KERNEL(split_plane, 256)(const u8* blocks, u8* plane, int block, int first, int len, i64 n) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) plane[i] = blocks[i / len * block + first + i % len];
}
REGISTER(split_plane)

// y_i = x_{rows_i}. Grid: rows, columns / 256.
KERNEL(gather, 256)(const float* x, const int* rows, float* y, int cols) {
    follow_launch();
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c < cols) y[(i64)blockIdx.x * cols + c] = x[(i64)rows[blockIdx.x] * cols + c];
}
REGISTER(gather)

// x += y
KERNEL(add, 256)(float* x, const float* y, i64 n) {
    follow_launch();
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += y[i];
}
REGISTER(add)

KERNEL(apply_sigmoid, 256)(float* x, i64 n) {
    follow_launch();
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = sigmoid(x[i]);
}
REGISTER(apply_sigmoid)

// gate <- SiLU(gate) * up, both limited
KERNEL(silu_mul, 256)(float* gate, const float* up, float limit, i64 n) {
    follow_launch();
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) gate[i] = limited_silu_mul(gate[i], up[i], limit);
}
REGISTER(silu_mul)

// Copies columns first..first+n of each part of x to the same columns of y: those that pass through a product by head.
KERNEL(pass_through, 256)(const float* x, float* y, int x_width, int y_width, int n, i64 all) {
    follow_launch();
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= all) return;
    i64 part = i / n;
    int c = (int)(i % n);
    y[part * y_width + y_width - n + c] = x[part * x_width + x_width - n + c];
}
REGISTER(pass_through)

// Copies the first `cols` of each `width` values, for float products by head.
KERNEL(first_columns, 256)(const float* x, float* y, int cols, int width, i64 n) {
    follow_launch();
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i / cols * width + i % cols];
}
REGISTER(first_columns)

#define NORM 6 // values per thread kept in registers

// If y is given, x += y; then h = x / sqrt(mean(x^2) + eps) * w over the first n of cols columns, the others copied. If q is
// given, h is quantised too (whole blocks). One block per row.
KERNEL(rms_norm, 1024)(float* x, const float* y, const float* w, float* h, i8* q, XScale* scale, int n, int cols, float eps) {
    follow_launch();
    SHARED(float, scratch);
    i64 row = (i64)blockIdx.x * cols;
    int step = blockDim.x;
    float kept[NORM], sum = 0;
#pragma unroll
    for (int i = 0; i < NORM; i++) {
        int c = threadIdx.x + i * step;
        kept[i] = c < cols ? x[row + c] : 0;
        if (y && c < cols) kept[i] += y[row + c];
    }
#pragma unroll
    for (int i = 0; i < NORM; i++) {
        int c = threadIdx.x + i * step;
        if (y && c < cols) x[row + c] = kept[i];
        if (c < n) sum += kept[i] * kept[i];
    }
    for (int c = threadIdx.x + NORM * step; c < cols; c += step) {
        float v = x[row + c];
        if (y) x[row + c] = v += y[row + c];
        if (c < n) sum += v * v;
    }
    float root = sqrtf(block_sum(sum, scratch) / (float)n + eps);
#pragma unroll
    for (int i = 0; i < NORM; i++) {
        int c = threadIdx.x + i * step;
        if (c >= cols) break;
        float v = c < n ? kept[i] / root * w[c] : kept[i];
        h[row + c] = v;
        if (q) quantise_32(v, q, scale, row + c);
    }
    for (int c = threadIdx.x + NORM * step; c < cols; c += step) {
        float v = x[row + c];
        h[row + c] = v = c < n ? v / root * w[c] : v;
        if (q) quantise_32(v, q, scale, row + c);
    }
}
REGISTER(rms_norm)

// y = RMSNorm(x; w) * sigmoid(gate), over each n values; quantised too if q is given. One warp per head.
KERNEL(gated_rms_norm, 128)(const float* x, const float* w, const float* gate, float* y, i8* q, XScale* scale, int n, float eps, i64 heads) {
    follow_launch();
    i64 head = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (head >= heads) return;
    float sum = 0;
    for (int c = threadIdx.x % 32; c < n; c += 32) sum += x[head * n + c] * x[head * n + c];
    float root = sqrtf(warp_sum(sum) / (float)n + eps);
    for (int c = threadIdx.x % 32; c < n; c += 32) {
        float v = x[head * n + c] / root * w[c] * sigmoid(gate[head * n + c]);
        y[head * n + c] = v;
        if (q) quantise_32(v, q, scale, head * n + c);
    }
}
REGISTER(gated_rms_norm)

// x <- x / sqrt(sum(x^2) + eps) * scale, over each n values. One warp per head.
KERNEL(l2_norm, 128)(float* x, int n, float eps, float scale, i64 heads) {
    follow_launch();
    i64 head = (i64)blockIdx.x * 4 + threadIdx.x / 32;
    if (head >= heads) return;
    float sum = 0;
    for (int c = threadIdx.x % 32; c < n; c += 32) sum += x[head * n + c] * x[head * n + c];
    float root = sqrtf(warp_sum(sum) + eps);
    for (int c = threadIdx.x % 32; c < n; c += 32) x[head * n + c] = x[head * n + c] / root * scale;
}
REGISTER(l2_norm)

// Multiplies each head of x, `dim` columns, by the sigmoid of its gate.
KERNEL(gate_heads, 256)(float* x, const float* gate, int dim, i64 n) {
    follow_launch();
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= sigmoid(gate[i / dim]);
}
REGISTER(gate_heads)

// The log-decay, in place of f.
KERNEL(kda_decay, 256)(float* f, const float* a, const float* bias, int cols, int dim, float bound, i64 n) {
    follow_launch();
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int c = (int)(i % cols);
    f[i] = log_decay(f[i] + bias[c], a[c / dim], bound);
}
REGISTER(kda_decay)

#define TAPS 8    // largest number of taps
#define STRETCH 32 // tokens per thread

// y_t = SiLU(sum_j taps_j x_{t - (n-1) + j}), per channel; the state is the last n - 1 inputs, oldest first.
// Grid: channels / 128, stretches of tokens, spans. A span of one stretch writes its state here, a longer one in conv_tail.
// The window is right-aligned in eight values, whose oldest ones are zero.
KERNEL(short_conv, 128)(const __grid_constant__ Spans spans, const float* x, const float* taps, float* y, int channels, int n) {
    follow_launch();
    const SpanOf& span = spans.of[blockIdx.z];
    int c = blockIdx.x * blockDim.x + threadIdx.x, t0 = blockIdx.y * STRETCH;
    if (c >= channels || t0 >= span.rows) return;
    float* state = (float*)span.state;
    x += (i64)span.first * channels + c;
    y += (i64)span.first * channels + c;
    float w[TAPS], tap[TAPS];
#pragma unroll
    for (int j = 0; j < TAPS; j++) {
        int back = TAPS - 1 - j, t = t0 - back; // the token before t0, except for the last tap
        bool used = j >= TAPS - n;
        tap[j] = used ? taps[(i64)c * n + j - (TAPS - n)] : 0;
        w[j] = !used || back == 0 ? 0 : t >= 0 ? x[(i64)t * channels] : state[(i64)(n - 1 + t) * channels + c];
    }
    int end = min(t0 + STRETCH, span.rows);
    for (int t = t0; t < end; t++) {
        w[TAPS - 1] = x[(i64)t * channels];
        float sum = 0;
#pragma unroll
        for (int j = 0; j < TAPS; j++) sum += tap[j] * w[j];
        y[(i64)t * channels] = sum * sigmoid(sum);
#pragma unroll
        for (int j = 0; j + 1 < TAPS; j++) w[j] = w[j + 1];
    }
    if (span.rows > STRETCH) return;
#pragma unroll
    for (int j = 0; j + 1 < TAPS; j++) {
        int row = j - (TAPS - n); // w has been shifted once more: the last n - 1 inputs end at TAPS - 2
        if (row >= 0 && row < n - 1) state[(i64)row * channels + c] = w[j];
    }
}
REGISTER(short_conv)

// Writes the last n - 1 inputs of spans longer than a stretch.
KERNEL(conv_tail, 128)(const __grid_constant__ Spans spans, const float* x, int channels, int n) {
    const SpanOf& span = spans.of[blockIdx.z];
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels || span.rows <= STRETCH) return;
    for (int row = 0; row < n - 1; row++)
        ((float*)span.state)[(i64)row * channels + c] = x[(i64)(span.first + span.rows - (n - 1) + row) * channels + c];
}
REGISTER(conv_tail)
