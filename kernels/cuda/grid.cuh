// Decodes the IQ1, IQ2 and IQ3 formats on the device, whose weights are vectors from a codebook. The bit layouts are
// documented in kernels/src/quant. Unit i of a block is sub-block i. Next: product.cu.
#pragma once
#include "grids.cuh"
#include "quant.cuh"

struct OfGrid : Of256 {
    static __device__ __forceinline__ int at(int i, int g) { return 32 * i + 16 * g; }
};

// Looks up four nibbles of digits, which are byte numbers in two words of values.
__device__ __forceinline__ u32 values_of(u32 digits, u32 low, u32 high) { return __byte_perm(low, high, digits); }

// Four magnitudes above 0, negated where bits 3..0 are set.
__device__ __forceinline__ int with_signs(u32 magnitudes, u32 bits) {
    u32 ones = ((bits & 15) * 0x00204081) & 0x01010101;
    return (int)((magnitudes ^ ones * 0xff) + ones);
}

// Four groups of eight signs from 28 bits; the eighth makes their number even.
__device__ __forceinline__ u32 even_signs(u32 v) {
    u32 seven = (v & 0x7f) | (v & 0x3f80) << 1 | (v & 0x1fc000) << 2 | (v & 0xfe00000) << 3;
    u32 parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return seven | (parity & 0x01010101) << 7;
}

// Vector k of eight weights from an IQ2 grid: 8 25 43.
__device__ __forceinline__ void iq2(Unit& u, int k, u32 digits, u32 signs) {
    u.q[2 * k] = with_signs(values_of(digits, 0x002b1908, 0), signs);
    u.q[2 * k + 1] = with_signs(values_of(digits >> 16, 0x002b1908, 0), signs >> 4);
}

// Eight times the values of vector k from the IQ1 grid and its offset: -8 0 8, plus or minus 1.
__device__ __forceinline__ void iq1(Unit& u, int k, u32 n, bool minus) {
    u32 digits = grid_iq1_s(n), of = minus ? 0x0007fff7 : 0x000901f9;
    u.q[2 * k] = (int)values_of(digits, of, 0);
    u.q[2 * k + 1] = (int)values_of(digits >> 16, of, 0);
}

// The scales of both groups: d times the odd numbers of two scales.
__device__ __forceinline__ void odd_scales(Unit& u, float d, u32 sc0, u32 sc1) {
    scale(u, d * (float)(2 * sc0 + 1), 0);
    u.s[1] = d * (float)(2 * sc1 + 1);
}

struct IQ2_XXS : OfGrid {
    static const int PLANE = 64;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8* sub = p.plane[0] + 64 * n + 8 * i;
        u32 numbers = word(sub), tail = word(sub + 4), signs = even_signs(tail);
#pragma unroll
        for (int k = 0; k < 4; k++) iq2(u, k, grid_iq2_xxs(numbers >> 8 * k & 255), signs >> 8 * k);
        odd_scales(u, 0.125f * f16_at(p.plane[1] + 2 * n), tail >> 28, tail >> 28);
        return u;
    }
};

struct IQ2_XS : OfGrid {
    static const int PLANE = 64;
    static const bool SIXTEENS = true;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8* sub = p.plane[0] + 64 * n + 8 * i;
        u32 pairs[2] = {word(sub), word(sub + 4)};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 v = pairs[k / 2] >> 16 * (k % 2) & 0xffff;
            iq2(u, k, grid_iq2_xs(v & 511), even_signs(v >> 9));
        }
        u32 sc = __ldg(p.plane[1] + 8 * n + i);
        odd_scales(u, 0.125f * f16_at(p.plane[2] + 2 * n), sc & 15, sc >> 4);
        return u;
    }
};

struct IQ2_S : OfGrid {
    static const int PLANE = 64;
    static const bool SIXTEENS = true;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8 *block = p.plane[0] + 64 * n, *head = p.plane[1] + 16 * n;
        u32 low = word(block + 4 * i), signs = word(block + 32 + 4 * i), high = __ldg(head + i), sc = __ldg(head + 8 + i);
#pragma unroll
        for (int k = 0; k < 4; k++)
            iq2(u, k, grid_iq2_s((low >> 8 * k & 255) | (high >> 2 * k & 3) << 8), signs >> 8 * k);
        odd_scales(u, 0.125f * f16_at(p.plane[2] + 2 * n), sc & 15, sc >> 4);
        return u;
    }
};

struct IQ3_XXS : OfGrid {
    static const int PLANE = 96;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8* block = p.plane[0] + 96 * n;
        u32 numbers[2] = {word(block + 8 * i), word(block + 8 * i + 4)}, tail = word(block + 64 + 4 * i);
        u32 signs = even_signs(tail);
        // 4 12 20 28 36 44 52 62
#pragma unroll
        for (int k = 0; k < 8; k++) {
            u32 digits = grid_iq3_xxs(numbers[k / 4] >> 8 * (k % 4) & 255);
            u.q[k] = with_signs(values_of(digits, 0x1c140c04, 0x3e342c24), signs >> 4 * k);
        }
        odd_scales(u, 0.25f * f16_at(p.plane[1] + 2 * n), tail >> 28, tail >> 28);
        return u;
    }
};

struct IQ3_S : OfGrid {
    static const int PLANE = 64;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8 *block = p.plane[0] + 64 * n, *head = p.plane[1] + 44 * n;
        u32 low[2] = {word(block + 8 * i), word(block + 8 * i + 4)}, high = __ldg(head + i), signs = word(head + 8 + 4 * i);
        // 1 3 5 7 9 11 13 15
#pragma unroll
        for (int k = 0; k < 8; k++) {
            u32 digits = grid_iq3_s((low[k / 4] >> 8 * (k % 4) & 255) | (high >> k & 1) << 8);
            u.q[k] = with_signs(values_of(digits, 0x07050301, 0x0f0d0b09), signs >> 4 * k);
        }
        u32 sc = __ldg(head + 40 + i / 2) >> (i % 2 * 4) & 15;
        odd_scales(u, f16_at(p.plane[2] + 2 * n), sc, sc);
        return u;
    }
};

struct IQ1_S : OfGrid {
    static const int PLANE = 32;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        u32 low = word(p.plane[0] + 32 * n + 4 * i), head = half_word(p.plane[1] + 16 * n + 2 * i);
#pragma unroll
        for (int k = 0; k < 4; k++) iq1(u, k, (low >> 8 * k & 255) | (head >> 3 * k & 7) << 8, head >> 15);
        odd_scales(u, 0.125f * f16_at(p.plane[2] + 2 * n), head >> 12 & 7, head >> 12 & 7);
        return u;
    }
};

struct IQ1_M : OfGrid {
    static const int PLANE = 48;
    static const bool SIXTEENS = true;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8 *block = p.plane[0] + 48 * n, *scales = p.plane[1] + 8 * n;
        u32 low = word(block + 4 * i), high = half_word(block + 32 + 2 * i);
#pragma unroll
        for (int k = 0; k < 4; k++)
            iq1(u, k, (low >> 8 * k & 255) | (high >> 4 * k & 7) << 8, high >> (4 * k + 3) & 1);
        u32 words[2] = {word(scales), word(scales + 4)}; // the upper nibbles are d
        u32 d = (words[0] >> 12 & 15) | (words[0] >> 24 & 0xf0) | (words[1] >> 4 & 0xf00) | (words[1] >> 16 & 0xf000);
        u32 sc = words[i / 4] >> (i / 2 % 2 * 16 + i % 2 * 6);
        odd_scales(u, 0.125f * f16_float((u16)d), sc & 7, sc >> 3 & 7);
        return u;
    }
};
