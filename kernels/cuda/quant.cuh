// Decodes the block formats on the device in units of 32 weights. The bit layouts are documented in kernels/src/quant.
//
// The host splits blocks into planes (kernels/src/cuda/planes.rs), so that quants are aligned to 16 bytes; no byte is
// added. A unit is two groups of 16 weights w = s q - m with q in a signed byte; group g of unit i begins at weight
// at(i, g) of its block. Formats with blocks of 32 have one unit per block, those with 256 have eight, and units
// 4c .. 4c+3 hold the weights 128c .. 128c+127. A format with PAIRED also
// decodes 64 weights at once for GEMV. PLANE is the bytes of a block in the first plane, a multiple of 16. Next: dot.cuh.
#pragma once
#include "common.cuh"

// The planes of a weight, block after block; the matrices of a stack are contiguous.
struct Planes {
    const u8* plane[3];
};

struct Unit {
    int q[8];
    float s[2];
    float m[2];
};

__device__ __forceinline__ u32 word(const u8* p) { return __ldg((const u32*)p); }
__device__ __forceinline__ u32 half_word(const u8* p) { return __ldg((const u16*)p); }
__device__ __forceinline__ float f16_at(const u8* p) { return f16_float((u16)half_word(p)); }

__device__ __forceinline__ void nibbles(Unit& u, Four v) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        u.q[j] = v.v[j] & 0x0f0f0f0f;
        u.q[4 + j] = (v.v[j] >> 4) & 0x0f0f0f0f;
    }
}

// Moves bit i of `bits` to bit 4 of weight i.
__device__ __forceinline__ void fifth(Unit& u, u32 bits) {
#pragma unroll
    for (int j = 0; j < 8; j++) u.q[j] |= ((((bits >> (4 * j)) & 15) * 0x00204081) & 0x01010101) << 4;
}

// Looks up each byte of index (below 16) in a table of sixteen bytes.
__device__ __forceinline__ int look_up(int index, u32 t0, u32 t1, u32 t2, u32 t3) {
    u32 pairs = (u32)index | (u32)index >> 4;
    u32 select = ((pairs & 0xff) | ((pairs >> 8) & 0xff00)) & 0x7777;
    u32 upper = (((u32)index >> 3) & 0x01010101) * 0xff;
    return (int)((__byte_perm(t0, t1, select) & ~upper) | (__byte_perm(t2, t3, select) & upper));
}

// -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113
__device__ __forceinline__ void nonlinear(Unit& u) {
#pragma unroll
    for (int j = 0; j < 8; j++) u.q[j] = look_up(u.q[j], 0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535);
}

__device__ __forceinline__ void scale(Unit& u, float s, float m) {
    u.s[0] = u.s[1] = s;
    u.m[0] = u.m[1] = m;
}

struct Of32 {
    static const int LEN = 32, UNITS = 1, UNROLL = 2; // pieces in flight per thread in GEMV
    static const bool SIXTEENS = false, PAIRED = false;
    static __device__ __forceinline__ int at(int, int g) { return 16 * g; }
};

struct Q4_0 : Of32 {
    static const int PLANE = 16;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int) {
        Unit u;
        nibbles(u, read_16(p.plane[0] + 16 * n));
        float d = f16_at(p.plane[1] + 2 * n);
        scale(u, d, 8 * d);
        return u;
    }
};

struct Q4_1 : Of32 {
    static const int PLANE = 16;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int) {
        Unit u;
        nibbles(u, read_16(p.plane[0] + 16 * n));
        u32 dm = word(p.plane[1] + 4 * n);
        scale(u, f16_float((u16)dm), -f16_float((u16)(dm >> 16)));
        return u;
    }
};

struct Q5_0 : Of32 {
    static const int PLANE = 16;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int) {
        Unit u;
        nibbles(u, read_16(p.plane[0] + 16 * n));
        fifth(u, word(p.plane[2] + 4 * n));
        float d = f16_at(p.plane[1] + 2 * n);
        scale(u, d, 16 * d);
        return u;
    }
};

struct Q5_1 : Of32 {
    static const int PLANE = 16;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int) {
        Unit u;
        nibbles(u, read_16(p.plane[0] + 16 * n));
        fifth(u, word(p.plane[2] + 4 * n));
        u32 dm = word(p.plane[1] + 4 * n);
        scale(u, f16_float((u16)dm), -f16_float((u16)(dm >> 16)));
        return u;
    }
};

struct Q8_0 : Of32 {
    static const int PLANE = 32;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int) {
        Unit u;
        Four low = read_16(p.plane[0] + 32 * n), high = read_16(p.plane[0] + 32 * n + 16);
#pragma unroll
        for (int j = 0; j < 4; j++) u.q[j] = low.v[j], u.q[4 + j] = high.v[j];
        scale(u, f16_at(p.plane[1] + 2 * n), 0);
        return u;
    }
};

struct IQ4_NL : Of32 {
    static const int PLANE = 16;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int) {
        Unit u;
        nibbles(u, read_16(p.plane[0] + 16 * n));
        nonlinear(u);
        scale(u, f16_at(p.plane[1] + 2 * n), 0);
        return u;
    }
};

struct MXFP4 : Of32 {
    static const int PLANE = 16;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int) {
        Unit u;
        nibbles(u, read_16(p.plane[0] + 16 * n));
        // 0 1 2 3 | 4 6 8 12 | 0 -1 -2 -3 | -4 -6 -8 -12
#pragma unroll
        for (int j = 0; j < 8; j++) u.q[j] = look_up(u.q[j], 0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc);
        u32 e = __ldg(p.plane[1] + n);
        scale(u, __int_as_float(e < 2 ? 0x00200000 << e : (e - 1) << 23), 0);
        return u;
    }
};

struct Of256 {
    static const int LEN = 256, UNITS = 8, UNROLL = 2;
    static const bool SIXTEENS = false, PAIRED = false;
    // Unit i = 2 p + h takes half h of the 32 bytes of group p: low nibbles, then high ones.
    static __device__ __forceinline__ int at(int i, int g) { return 64 * (i / 2) + 16 * (i % 2) + 32 * g; }
};

// The 6-bit scale and minimum of sub-block j (layout: quant/k_scales.rs).
__device__ __forceinline__ void six_bits(Unit& u, const u8* block, int p) {
    Four head = read_16(block);
    float d = f16_float((u16)head.v[0]), dmin = f16_float((u16)((u32)head.v[0] >> 16));
    u32 a = head.v[1], b = head.v[2], c = head.v[3];
#pragma unroll
    for (int g = 0; g < 2; g++) {
        int j = 2 * p + g, shift = 8 * (j % 4);
        u32 low = c >> shift, from_a = a >> shift, from_b = b >> shift;
        u32 sc = j < 4 ? from_a & 63 : (low & 15) | ((from_a >> 6) & 3) << 4;
        u32 m = j < 4 ? from_b & 63 : ((low >> 4) & 15) | ((from_b >> 6) & 3) << 4;
        u.s[g] = d * (float)sc;
        u.m[g] = dmin * (float)m;
    }
}

// Pair p is units 2 p and 2 p + 1: columns 64 p .. of the low nibbles and 64 p + 32 .. of the high ones.
struct KPairs : Of256 {
    static const bool PAIRED = true;
    static const int PAIR_STEP = 32;
    static __device__ __forceinline__ int pair_at(int pair) { return 64 * pair; }

    // Positions of the scales and minima of a pair in the packed bytes of six bits.
    struct Scales {
        bool first; // sub-blocks 0 to 3
        u32 s[2], m[2];

        __device__ __forceinline__ Scales(int pair) : first(pair < 2) {
            u32 at = pair % 2 * 2;
#pragma unroll
            for (int g = 0; g < 2; g++) s[g] = 0x4440 + at + g, m[g] = 0x4400 + 0x11 * (at + g);
        }

        // d_x s (q . x) - d_x m sum(x) over both sub-blocks; `dot` is multiplied by `unit`.
        __device__ __forceinline__ float apply(Four head, const int dot[2], const float unit[2], int2 x0, int2 x1) const {
            u32 a = head.v[1], b = head.v[2], c = head.v[3];
            u32 scales = first ? a & 0x3f3f3f3f : (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
            u32 minima = first ? b & 0x3f3f3f3f : (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
            float d0 = __int_as_float(x0.x), d1 = __int_as_float(x1.x);
            float products = d0 * unit[0] * (float)((int)__byte_perm(scales, 0, s[0]) * dot[0]) +
                             d1 * unit[1] * (float)((int)__byte_perm(scales, 0, s[1]) * dot[1]);
            float sums = d0 * (float)__dp2a_lo(x0.y, (int)__byte_perm(minima, 0, m[0]), 0) +
                         d1 * (float)__dp2a_lo(x1.y, (int)__byte_perm(minima, 0, m[1]), 0);
            return f16_float((u16)head.v[0]) * products - f16_float((u16)((u32)head.v[0] >> 16)) * sums;
        }
    };
};

struct Q4_K : KPairs {
    static const int PLANE = 144;
    struct Pairs {
        const u8 *head, *quants;
        Scales scales;
        struct Loaded {
            Four head, q[2];
        };

        __device__ __forceinline__ Pairs(const Planes& p, i64 first, int pair)
            : head(p.plane[0] + 144 * first), quants(head + 16 + 32 * pair), scales(pair) {}

        __device__ __forceinline__ Loaded load(u32 n) const {
            i64 at = 144 * (i64)n;
            return Loaded{read_16(head + at), {read_16(quants + at), read_16(quants + at + 16)}};
        }

        // High nibbles stay in place, which multiplies them by 16.
        __device__ __forceinline__ float dot(const Loaded& w, const Four x[4], int2 x0, int2 x1) const {
            int dots[2] = {};
            const float unit[2] = {1, 0.0625f};
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 v = w.q[j / 4].v[j % 4];
                dots[0] = dp4a_unsigned(v & 0x0f0f0f0f, x[j / 4].v[j % 4], dots[0]);
                dots[1] = dp4a_unsigned(v & 0xf0f0f0f0, x[2 + j / 4].v[j % 4], dots[1]);
            }
            return scales.apply(w.head, dots, unit, x0, x1);
        }
    };

    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8* block = p.plane[0] + 144 * n;
        nibbles(u, read_16(block + 16 + 16 * i));
        six_bits(u, block, i / 2);
        return u;
    }
};

struct Q5_K : KPairs {
    static const int PLANE = 176;
    struct Pairs {
        const u8 *head, *quants;
        int pair;
        Scales scales;
        struct Loaded {
            Four head, high[2], q[2];
        };

        __device__ __forceinline__ Pairs(const Planes& p, i64 first, int pair)
            : head(p.plane[0] + 176 * first), quants(head + 48 + 32 * pair), pair(pair), scales(pair) {}

        __device__ __forceinline__ Loaded load(u32 n) const {
            i64 at = 176 * (i64)n;
            return Loaded{read_16(head + at),
                          {read_16(head + at + 16), read_16(head + at + 32)},
                          {read_16(quants + at), read_16(quants + at + 16)}};
        }

        __device__ __forceinline__ float dot(const Loaded& w, const Four x[4], int2 x0, int2 x1) const {
            int dots[2] = {};
            const float unit[2] = {1, 1};
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 v = w.q[j / 4].v[j % 4], high = w.high[j / 4].v[j % 4];
                u32 low = (v & 0x0f0f0f0f) | (rotate(high, 4 - 2 * pair) & 0x10101010);
                dots[0] = dp4a_unsigned(low, x[j / 4].v[j % 4], dots[0]);
                u32 upper = (v >> 4 & 0x0f0f0f0f) | (rotate(high, 3 - 2 * pair) & 0x10101010);
                dots[1] = dp4a_unsigned(upper, x[2 + j / 4].v[j % 4], dots[1]);
            }
            return scales.apply(w.head, dots, unit, x0, x1);
        }
    };

    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8* block = p.plane[0] + 176 * n;
        nibbles(u, read_16(block + 48 + 16 * i));
        Four high = read_16(block + 16 + 16 * (i % 2));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 bits = (u32)high.v[j] >> (i / 2 * 2);
            u.q[j] |= (bits & 0x01010101) << 4;
            u.q[4 + j] |= (bits >> 1 & 0x01010101) << 4;
        }
        six_bits(u, block, i / 2);
        return u;
    }
};

struct IQ4_XS : Of256 {
    static const int PLANE = 128;
    // Unit i is sub-block i.
    static __device__ __forceinline__ int at(int i, int g) { return 32 * i + 16 * g; }
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        nibbles(u, read_16(p.plane[0] + 128 * n + 16 * i));
        nonlinear(u);
        u32 head = word(p.plane[1] + 8 * n), low = word(p.plane[1] + 8 * n + 4);
        int sc = (low >> (4 * i) & 15) | (head >> (16 + 2 * i) & 3) << 4;
        scale(u, f16_float((u16)head) * (float)(sc - 32), 0);
        return u;
    }
};

// Two bits per weight: unit i = 4 h + 2 e + b takes half b of the 32 bytes of half h, sub-blocks 4 h + 2 e and the next.
struct TwoBits : Of256 {
    static const bool SIXTEENS = true;
    static __device__ __forceinline__ int at(int i, int g) {
        return 128 * (i / 4) + 64 * (i / 2 % 2) + 16 * (i % 2) + 32 * g;
    }
    static __device__ __forceinline__ void levels(Unit& u, const u8* q, int i) {
        Four v = read_16(q + 32 * (i / 4) + 16 * (i % 2));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 bits = (u32)v.v[j] >> (i / 2 % 2 * 4);
            u.q[j] = bits & 0x03030303;
            u.q[4 + j] = bits >> 2 & 0x03030303;
        }
    }
};

struct Q2_K : TwoBits {
    static const int PLANE = 64;
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        levels(u, p.plane[0] + 64 * n, i);
        u32 dm = word(p.plane[2] + 4 * n);
        float d = f16_float((u16)dm), dmin = f16_float((u16)(dm >> 16));
#pragma unroll
        for (int g = 0; g < 2; g++) {
            u32 s = __ldg(p.plane[1] + 16 * n + at(i, g) / 16);
            u.s[g] = d * (float)(s & 15);
            u.m[g] = dmin * (float)(s >> 4);
        }
        return u;
    }
};

struct Q3_K : TwoBits {
    static const int PLANE = 96;
    static const int UNROLL = 1; // 2 spills
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8* block = p.plane[0] + 96 * n;
        levels(u, block + 32, i);
        Four high = read_16(block + 16 * (i % 2));
        int j0 = 4 * (i / 4) + 2 * (i / 2 % 2);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 bits = (u32)high.v[j] >> j0;
            u.q[j] |= (bits & 0x01010101) << 2;
            u.q[4 + j] |= (bits >> 1 & 0x01010101) << 2;
        }
        const u8* scales = p.plane[1] + 12 * n;
        float d = f16_at(p.plane[2] + 2 * n);
#pragma unroll
        for (int g = 0; g < 2; g++) {
            int k = at(i, g) / 16;
            u32 low = __ldg(scales + k % 8) >> (k / 8 * 4) & 15, top = __ldg(scales + 8 + k % 4) >> (k / 4 * 2) & 3;
            u.s[g] = d * (float)((int)(low | top << 4) - 32);
            u.m[g] = 4 * u.s[g];
        }
        return u;
    }
};

struct Q6_K : Of256 {
    static const int PLANE = 208;
    static const bool SIXTEENS = true, PAIRED = true;
    // Pair p = 2 h + s is the 32 bytes of (h, s): columns 128 h + 32 s .. of the low nibbles and 64 on of the high ones.
    static const int PAIR_STEP = 64;
    static __device__ __forceinline__ int pair_at(int pair) { return 128 * (pair / 2) + 32 * (pair % 2); }

    struct Pairs {
        const u8 *quants, *high, *scales, *d;
        int s;
        struct Loaded {
            Four q[2], high[2];
            int2 scales;
            u32 d;
        };

        __device__ __forceinline__ Pairs(const Planes& p, i64 first, int pair)
            : quants(p.plane[0] + 208 * first + 32 * pair), high(p.plane[0] + 208 * first + 128 + 32 * (pair / 2)),
              scales(p.plane[0] + 208 * first + 192 + 8 * (pair / 2)), d(p.plane[1] + 2 * first), s(pair % 2) {}

        __device__ __forceinline__ Loaded load(u32 n) const {
            i64 at = 208 * (i64)n;
            return Loaded{{read_16(quants + at), read_16(quants + at + 16)},
                          {read_16(high + at), read_16(high + at + 16)},
                          __ldg((const int2*)(scales + at)),
                          half_word(d + 2 * (i64)n)};
        }

        __device__ __forceinline__ float dot(const Loaded& w, const Four x[4], int2 x0, int2 x1) const {
            int dots[2][2] = {}; // [low or high nibbles][half]
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 v = w.q[j / 4].v[j % 4], bits = w.high[j / 4].v[j % 4];
                u32 low = (v & 0x0f0f0f0f) | (rotate(bits, 4 - 2 * s) & 0x30303030);
                dots[0][j / 4] = dp4a_unsigned(low, x[j / 4].v[j % 4], dots[0][j / 4]);
                u32 upper = (v >> 4 & 0x0f0f0f0f) | (bits >> (2 * s) & 0x30303030);
                dots[1][j / 4] = dp4a_unsigned(upper, x[2 + j / 4].v[j % 4], dots[1][j / 4]);
            }
            u32 low = (u32)w.scales.x >> (16 * s), upper = (u32)w.scales.y >> (16 * s);
            return f16_float((u16)w.d) * (part(low, dots[0], x0) + part(upper, dots[1], x1));
        }

        // d_x times the sum over both halves of s (q . x - 32 sum(x)); two scales in the low bytes.
        static __device__ __forceinline__ float part(u32 scales, const int dots[2], int2 x) {
            int y = (int)(i8)scales * dots[0] + (int)(i8)(scales >> 8) * dots[1];
            return __int_as_float(x.x) * (float)(y - 32 * __dp2a_lo(x.y, (int)scales, 0));
        }
    };

    // Unit i = 4 h + 2 s + b takes half b of the 32 bytes of (h, s): sub-block 4 h + s, and two on.
    static __device__ __forceinline__ int at(int i, int g) {
        return 128 * (i / 4) + 32 * (i / 2 % 2) + 16 * (i % 2) + 64 * g;
    }
    static __device__ __forceinline__ Unit unit(const Planes& p, i64 n, int i) {
        Unit u;
        const u8* block = p.plane[0] + 208 * n;
        nibbles(u, read_16(block + 16 * i));
        Four high = read_16(block + 128 + 32 * (i / 4) + 16 * (i % 2));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 bits = (u32)high.v[j] >> (i / 2 % 2 * 2);
            u.q[j] |= (bits & 0x03030303) << 4;
            u.q[4 + j] |= (bits >> 4 & 0x03030303) << 4;
        }
        float d = f16_at(p.plane[1] + 2 * n);
#pragma unroll
        for (int g = 0; g < 2; g++) {
            u.s[g] = d * (float)(i8)__ldg(block + 192 + at(i, g) / 16);
            u.m[g] = 32 * u.s[g];
        }
        return u;
    }
};

// The float formats: loads one value, or four at a multiple of four.
struct F32 {
    static const int BYTES = 4;
    static __device__ __forceinline__ float value(const u8* w, i64 i) { return __ldg((const float*)w + i); }
    static __device__ __forceinline__ void four(const u8* w, i64 i, float out[4]) {
        Four v = read_16(w + 4 * i);
#pragma unroll
        for (int j = 0; j < 4; j++) out[j] = __int_as_float(v.v[j]);
    }
};
struct F16 {
    static const int BYTES = 2;
    static __device__ __forceinline__ float value(const u8* w, i64 i) { return f16_float(__ldg((const u16*)w + i)); }
    static __device__ __forceinline__ void four(const u8* w, i64 i, float out[4]) {
        int2 v = __ldg((const int2*)(w + 2 * i));
        out[0] = f16_float((u16)v.x), out[1] = f16_float((u16)((u32)v.x >> 16));
        out[2] = f16_float((u16)v.y), out[3] = f16_float((u16)((u32)v.y >> 16));
    }
};
struct BF16 {
    static const int BYTES = 2;
    static __device__ __forceinline__ float value(const u8* w, i64 i) {
        return __int_as_float((int)((u32)__ldg((const u16*)w + i) << 16));
    }
    static __device__ __forceinline__ void four(const u8* w, i64 i, float out[4]) {
        int2 v = __ldg((const int2*)(w + 2 * i));
        out[0] = __int_as_float(v.x << 16), out[1] = __int_as_float(v.x & (int)0xffff0000);
        out[2] = __int_as_float(v.y << 16), out[3] = __int_as_float(v.y & (int)0xffff0000);
    }
};
