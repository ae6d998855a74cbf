// Warp-wide arithmetic: reductions, and tensor-core products on fragments laid out as in the PTX manual.
//
// Compiled without the sanitizer, because only registers and the emulator's own memory are read here. Tensor cores do not round
// the sums of a product as f32 additions do: of terms aligned to the largest exponent the bits below 24 are cut off
// (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores"); this emulates the coarsest, with no bits to spare.
// Next: driver.cpp.
#include "kernels.h"

// The sum is one synchronisation here instead of five; the order of additions is the same.
template <class Join> static float join_lanes(float v, Join join) {
    const u64* all = shim::gather((u32)__float_as_int(v));
    float x[32], y[32];
    for (int l = 0; l < 32; l++) x[l] = __int_as_float((int)all[l]);
    for (int by = 16; by > 0; by /= 2) {
        for (int l = 0; l < 32; l++) y[l] = join(x[l], x[l ^ by]);
        memcpy(x, y, sizeof x);
    }
    return x[threadIdx.x % 32];
}
float warp_sum(float v) {
    return join_lanes(v, [](float a, float b) { return a + b; });
}
float warp_max(float v) {
    return join_lanes(v, [](float a, float b) { return fmaxf(a, b); });
}
u32 __reduce_max_sync(unsigned, u32 v) {
    const u64* all = shim::gather(v);
    return (u32)*std::max_element(all, all + 32);
}
u32 __reduce_min_sync(unsigned, u32 v) {
    const u64* all = shim::gather(v);
    return (u32)*std::min_element(all, all + 32);
}

static int byte_of(u64 word, int i) { return (i8)(word >> 8 * i); }
static float half_of(u64 word, int i) { return f16_float((u16)(word >> 16 * i)); }

template <int K> static void multiply_i8(int d[4], const u32* a, const u32* b) {
    int lane = threadIdx.x % 32, A[16][K], B[K][8];
    for (int i = 0; i < K / 8; i++) { // a_i: row g + 8 (i % 2), columns 4 c + 16 (i / 2) ..
        const u64* all = shim::gather(a[i]);
        for (int l = 0; l < 32; l++)
            for (int j = 0; j < 4; j++) A[l / 4 + i % 2 * 8][l % 4 * 4 + j + i / 2 * 16] = byte_of(all[l], j);
    }
    for (int i = 0; i < K / 16; i++) { // b_i: rows 4 c + 16 i .., column g
        const u64* all = shim::gather(b[i]);
        for (int l = 0; l < 32; l++)
            for (int j = 0; j < 4; j++) B[l % 4 * 4 + j + i * 16][l / 4] = byte_of(all[l], j);
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < K; k++) d[i] += A[lane / 4 + i / 2 * 8][k] * B[k][lane % 4 * 2 + i % 2];
}
void mma_i8(int d[4], const u32 a[4], const u32 b[2]) { multiply_i8<32>(d, a, b); }
void mma_i8_16(int d[4], const u32 a[2], u32 b) { multiply_i8<16>(d, a, &b); }

// d + sum of N exact products, cut off below 2^-23 of the largest term and towards zero at the end.
template <int N> static float truncated_sum(float d, const float* a, const float* b) {
    double term[N + 1], most = 0;
    term[N] = d;
    for (int k = 0; k < N; k++) term[k] = (double)a[k] * b[k];
    for (int k = 0; k <= N; k++) most = std::max(most, fabs(term[k]));
    double plain = 0;
    for (int k = 0; k <= N; k++) plain += term[k];
    if (!(fabs(plain) < 1e38) || most < 1e-30) return (float)plain; // not finite, or no sum worth rounding
    u64 bits;
    memcpy(&bits, &most, 8);
    u64 exponent = bits >> 52, up_bits = (1023 + 23 + 1023 - exponent) << 52, down_bits = (exponent - 23) << 52;
    double up, down;
    memcpy(&up, &up_bits, 8), memcpy(&down, &down_bits, 8);
    i64 sum = 0;
    for (int k = 0; k <= N; k++) sum += (i64)(term[k] * up);
    u64 magnitude = (u64)(sum < 0 ? -sum : sum);
    int excess = magnitude >> 24 ? 64 - 24 - __builtin_clzll(magnitude) : 0;
    magnitude = magnitude >> excess << excess;
    return (float)((sum < 0 ? -1.0 : 1.0) * (double)magnitude * down);
}

// Each lane unpacks the two rows of A and two columns of B that its four sums need.
void mma_f16(float d[4], const u32 a[4], const u32 b[2]) {
    int lane = threadIdx.x % 32;
    float A[2][16], B[2][16];
    for (int half = 0; half < 2; half++) { // a_i: row g + 8 (i % 2), columns 2 c + 8 (i / 2) ..
        const u64* all = shim::gather(a[2 * half] | (u64)a[2 * half + 1] << 32);
        for (int c = 0; c < 4; c++)
            for (int j = 0; j < 4; j++) A[j / 2][8 * half + 2 * c + j % 2] = half_of(all[lane / 4 * 4 + c], j);
    }
    const u64* all = shim::gather(b[0] | (u64)b[1] << 32); // b_i: rows 2 c + 8 i .., column g
    for (int i = 0; i < 2; i++)
        for (int c = 0; c < 4; c++)
            for (int j = 0; j < 4; j++) B[i][8 * (j / 2) + 2 * c + j % 2] = half_of(all[4 * (lane % 4 * 2 + i) + c], j);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k += 8) d[i] = truncated_sum<8>(d[i], A[i / 2] + k, B[i % 2] + k);
}

void mma_tf32(float d[4], const u32 a[4], const u32 b[2]) {
    int lane = threadIdx.x % 32;
    float A[16][8], B[8][8];
    for (int i = 0; i < 4; i++) { // a_i: row g + 8 (i % 2), column c + 4 (i / 2)
        const u64* all = shim::gather(a[i]);
        for (int l = 0; l < 32; l++) A[l / 4 + i % 2 * 8][l % 4 + i / 2 * 4] = __int_as_float((int)((u32)all[l] & ~0x1fffu));
    }
    for (int i = 0; i < 2; i++) { // b_i: row c + 4 i, column g
        const u64* all = shim::gather(b[i]);
        for (int l = 0; l < 32; l++) B[l / 4][l % 4 + i * 4] = __int_as_float((int)((u32)all[l] & ~0x1fffu));
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 8; k += 4)
            d[i] = truncated_sum<4>(d[i], A[lane / 4 + i / 2 * 8] + k, B[lane % 4 * 2 + i % 2] + k);
}

template <int N> static void load(u32* b, const u16* row, bool transposed) {
    int lane = threadIdx.x % 32, r = lane / 4, c = lane % 4 * 2;
    if (lane < 8 * N) shim::matrix_row(row);
    const u64* rows = shim::gather((u64)row);
    for (int i = 0; i < N; i++) {
        const u16* const* of = (const u16* const*)(rows + 8 * i);
        b[i] = transposed ? of[c][r] | (u32)of[c + 1][r] << 16 : of[r][c] | (u32)of[r][c + 1] << 16;
    }
}
void load_transposed(u32 b[2], const u16* row) { load<2>(b, row, true); }
void load_4(u32 b[4], SharedBase row, int offset) { load<4>(b, row.at + offset, false); }
void load_4_transposed(u32 b[4], SharedBase row, int offset) { load<4>(b, row.at + offset, true); }
