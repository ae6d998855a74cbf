//! Defines the vector operations that kernels are written over, and selects an instruction set at run time.
//!
//! A vector is a format's sub-block: 32 bytes, 8 integers or 8 floats, whatever the register width. An [`Isa`] value is
//! a proof token that only detection creates, so its instructions may run. All instruction sets give the same bits:
//! integer sums are exact, and float sums use the same eight lanes in the same order. A [`Kernel`] is written once;
//! [`SimdLevel::run`] monomorphises it per instruction set and dispatches. This module knows no format and no op. Next:
//! `scalar`, which defines each operation, then `x86` and `neon`, `panel`, which maps rows to lanes, and `amx`.

#[cfg(target_arch = "x86_64")]
mod amx;
mod lookup;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_asm;
#[cfg(target_arch = "aarch64")]
mod neon_lookup;
#[cfg(target_arch = "aarch64")]
mod neon_shuffle;
mod panel;
#[cfg(target_arch = "x86_64")]
mod panel16;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_lookup;
#[cfg(target_arch = "x86_64")]
mod x86_pairs;
#[cfg(target_arch = "x86_64")]
mod x86_shuffle;

pub use lookup::{Fours, Indices};
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub(crate) use panel::add_scaled_dots;
pub use panel::{MatrixSimd, MatrixTokens, NoMatrix, Panel8, PanelSimd, PanelSums};
pub use scalar::Scalar;
pub(crate) use scalar::to_int;
#[cfg(target_arch = "x86_64")]
pub use x86::X86;

/// Vector operations of one instruction set; `Scalar` is their definition.
///
/// Bytes are unsigned (quants of weights) or signed (activations) by use. Signed activations are never -128: without
/// that guarantee AVX2 dot products would need twice the instructions.
pub trait Isa: Copy + Send + Sync + 'static {
    /// Vector of 32 bytes, the quants of a sub-block.
    type Bytes: Copy;
    /// Vector of eight i32, for exact sums.
    type Ints: Copy;
    /// Vector of eight f32, one partial sum per lane.
    type Floats: Copy;
    /// 16 x i16: integer scales of the two halves of eight sub-blocks.
    type Scales: Copy;

    /// The panel operations of this instruction set, for GEMM.
    type Panel: PanelSimd;
    /// True with 32 vector registers, false with 16; it selects the size of register tiles.
    const MANY_REGISTERS: bool;

    /// The [`PanelSimd`] token of this instruction set.
    fn panel(self) -> Self::Panel;

    /// Runs `kernel` inside a function that enables this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    // ---- floats ----------------------------------------------------------------------------------------

    /// Broadcasts v to eight lanes.
    fn splat(self, v: f32) -> Self::Floats;
    /// Eight floats, little endian, at any alignment.
    fn load(self, v: &[u8; 32]) -> Self::Floats;
    /// Loads eight floats at any alignment.
    fn load_floats(self, v: &[f32; 8]) -> Self::Floats;
    /// Writes eight floats in lane order.
    fn store(self, v: Self::Floats, out: &mut [f32; 8]);
    /// Lane-wise a + b in f32.
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Lane-wise a - b in f32.
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Lane-wise a * b in f32, never fused with an addition.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Lane-wise a / b in f32, correctly rounded.
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b + c, rounded once
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// a where a > b, else b: a NaN in either gives b.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a where a < b, else b: a NaN in either gives b.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// yes where a < b, else no.
    fn select(self, a: Self::Floats, b: Self::Floats, yes: Self::Floats, no: Self::Floats) -> Self::Floats;
    /// Sum of the lanes, in this order: ((0+4) + (2+6)) + ((1+5) + (3+7)).
    fn reduce_add(self, v: Self::Floats) -> f32;
    /// Eight binary16, little endian, converted to f32.
    fn load_f16(self, v: &[u8; 16]) -> Self::Floats;
    /// Eight binary16 from eight addresses.
    fn gather_f16(self, v: [[u8; 2]; 8]) -> Self::Floats;
    /// Eight bfloat16, little endian: the upper halves of floats.
    fn load_bf16(self, v: &[u8; 16]) -> Self::Floats;
    /// Broadcasts one binary16, little endian.
    fn splat_f16(self, v: [u8; 2]) -> Self::Floats;
    /// One binary16, little endian, converted to f32.
    fn f16(self, v: [u8; 2]) -> f32;

    // ---- integers --------------------------------------------------------------------------------------

    /// Eight zeros, the start of an integer sum.
    fn zeros(self) -> Self::Ints;
    /// Loads eight integers at any alignment.
    fn load_ints(self, v: &[i32; 8]) -> Self::Ints;
    /// Writes eight integers at any alignment.
    fn store_ints(self, v: Self::Ints, out: &mut [i32; 8]);
    /// v in lane 0, zeros after it.
    fn set_lane0(self, v: i32) -> Self::Ints;
    /// Lane-wise a + b, wrapping on overflow.
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Lane-wise a << BY, zeros coming in.
    fn shl_ints<const BY: i32>(self, a: Self::Ints) -> Self::Ints;
    /// Lane-wise a - b, wrapping on overflow.
    fn sub_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Lane-wise maximum of signed integers.
    fn max_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// The largest lane as a signed integer.
    fn largest(self, v: Self::Ints) -> i32;
    /// Integers as floats, rounded to nearest even.
    fn floats(self, v: Self::Ints) -> Self::Floats;
    /// Floats as integers, rounded to nearest even; i32::MIN for NaN and for what is outside -2^31..2^31.
    fn round(self, v: Self::Floats) -> Self::Ints;
    /// The bits of |v|: as integers they are in the order of |v|, with NaN above infinity.
    fn magnitude(self, v: Self::Floats) -> Self::Ints;
    /// The sum of the lanes, wrapping.
    fn reduce_add_i32(self, v: Self::Ints) -> i32;
    /// Lane l = the sum of the eight lanes of `v[l]`, wrapping.
    fn reduce_add_each(self, v: [Self::Ints; 8]) -> Self::Ints;
    /// Broadcasts v to eight lanes.
    fn splat_int(self, v: i32) -> Self::Ints;
    /// The low 16 bits of `low`, and above them the low 16 bits of `high`.
    fn pair(self, low: Self::Ints, high: Self::Ints) -> Self::Ints;
    /// Lane-wise a * b, wrapping on overflow.
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Lane l += `w[2l] * x[0] + w[2l+1] * x[1]`, of i16 in w's lanes and in x, little endian.
    fn dot_pairs(self, acc: Self::Ints, w: Self::Ints, x: [u8; 4]) -> Self::Ints;
    /// `Lane l = m[l] * (sums[2l] + sums[2l+1])`, of eight bytes and sixteen i16, little endian.
    fn dot_sums_8(self, m: [u8; 8], sums: &[u8; 32]) -> Self::Ints;
    /// `Lane l = s[2l] * sums[2l] + s[2l+1] * sums[2l+1]`, of sixteen i8 and sixteen i16, little endian.
    fn dot_sums_16(self, s: [u8; 16], sums: &[u8; 32]) -> Self::Ints;
    /// Narrows four vectors of integers in -128..=127 to bytes.
    fn pack_i8(self, v: [Self::Ints; 4]) -> Self::Bytes;

    // ---- bytes -----------------------------------------------------------------------------------------

    /// Prefetches the bytes of a value some bytes after `v` into L1; the address need not be valid.
    fn prefetch_l1<V>(self, v: &V, bytes_after: usize);
    /// As [`Isa::prefetch_l1`], but into L2, for bytes that are needed later.
    fn prefetch_l2<V>(self, v: &V, bytes_after: usize);
    /// 32 bytes at any alignment.
    fn bytes(self, v: &[u8; 32]) -> Self::Bytes;
    /// Writes 32 bytes at any alignment.
    fn store_bytes(self, v: Self::Bytes, out: &mut [u8; 32]);
    /// Broadcasts v to all 32 bytes.
    fn splat_byte(self, v: u8) -> Self::Bytes;
    /// Four words of eight bytes, little endian, the first lowest.
    fn set_u64(self, v: [u64; 4]) -> Self::Bytes;
    /// Bytes `4 l .. 4 l + 4` of vector v = the entry of `grid` with the number `8 v + l` of 64.
    fn lookup_fours<const N: usize>(self, grid: &Fours<N>, numbers: &[Indices<N>; 4]) -> [Self::Bytes; 8];
    /// Sixteen bytes as 16-bit words.
    fn words(self, v: &[u8; 16]) -> Self::Bytes;
    /// The product of 16-bit words, modulo 2^16.
    fn mul_words(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// The upper bytes of the 16-bit words of a, then those of b.
    fn upper_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// The second, fourth, ... of sixteen groups of four bytes.
    fn odd_fours(self, v: &[u8; 64]) -> Self::Bytes;
    /// Byte b of each four = bits `7 b .. 7 b + 7` of the four.
    fn sevens(self, v: Self::Bytes) -> Self::Bytes;
    /// Broadcasts four bytes to eight lanes.
    fn broadcast_u32(self, v: [u8; 4]) -> Self::Bytes;
    /// Byte `4 l + r` of vector c = byte `8 c + l` of row r.
    fn interleave(self, rows: [&[u8; 32]; 4]) -> [Self::Bytes; 4];
    /// Byte `4 l + i` of vector c = byte `4 c + i` of row l.
    fn transpose_8x8(self, rows: [&[u8; 32]; 8]) -> [Self::Bytes; 8];
    /// The same bits as floats.
    fn as_floats(self, v: Self::Bytes) -> Self::Floats;
    /// Byte `at` of each four.
    fn unsigned_byte(self, v: Self::Bytes, at: usize) -> Self::Ints;
    /// Byte `at` of each four, sign-extended.
    fn signed_byte(self, v: Self::Bytes, at: usize) -> Self::Ints;
    /// Bytes `2 at` and `2 at + 1` of each four as binary16.
    fn half(self, v: Self::Bytes, at: usize) -> Self::Floats;
    /// Byte i = low nibble of `v[i]`, byte 16 + i = high nibble of `v[i]`.
    fn nibbles(self, v: &[u8; 16]) -> Self::Bytes;
    /// Fills both halves with the same 16 bytes: v, then v again.
    fn twice(self, v: &[u8; 16]) -> Self::Bytes;
    /// Byte i = 0xff where bit i of v is set, else 0.
    fn mask(self, v: [u8; 4]) -> Self::Bytes;
    /// Byte i = `-v[i]` where bit i of `bits` is set, else `v[i]`; -128 stays -128.
    fn negate_bits(self, v: Self::Bytes, bits: [u8; 4]) -> Self::Bytes;
    /// Byte-wise a + b, wrapping on overflow.
    fn add_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Bitwise a & b of 32 bytes.
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Bitwise a | b of 32 bytes.
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted right, zeros coming in.
    fn shr<const BY: i32>(self, a: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted left, zeros coming in.
    fn shl<const BY: i32>(self, a: Self::Bytes) -> Self::Bytes;
    /// Byte i = `table[index[i]]`, for indices below 16.
    fn table_lookup(self, table: &[i8; 16], index: Self::Bytes) -> Self::Bytes;
    /// Lane l += sum of `w[i] * x[i]` over the four bytes i of lane l; w unsigned and at most 128, x signed.
    fn dot(self, acc: Self::Ints, w: Self::Bytes, x: Self::Bytes) -> Self::Ints;
    /// The same for signed w.
    fn dot_signed(self, acc: Self::Ints, w: Self::Bytes, x: Self::Bytes) -> Self::Ints;
    /// `totals[t] + scale * sum` for each token t, where the sum adds [`Isa::dot`] of `w[i]` and the broadcast `x[t][i]` over all i;
    /// w at most `max_quant`, which is at most 128, and the scale in 16 bits.
    #[inline(always)]
    fn add_scaled_dots<const T: usize>(
        self,
        totals: [Self::Ints; T],
        w: &[Self::Bytes],
        _max_quant: u8,
        x: [&[[u8; 4]]; T],
        scale: Self::Ints,
    ) -> [Self::Ints; T] {
        add_scaled_dots::<_, T, false>(Panel8::of(self), totals, w, x, scale)
    }
    /// Sixteen i8 scales: `s[2j]` for the first half of sub-block j, `s[2j+1]` for the second.
    fn scales_16(self, s: [u8; 16]) -> Self::Scales;
    /// Eight i8 scales, one a sub-block.
    fn scales_8(self, s: [u8; 8]) -> Self::Scales;
    /// The same as `scales_16` of `first[j]` and `second[j]` in turn.
    fn scales_of_halves(self, first: [u8; 8], second: [u8; 8]) -> Self::Scales;
    /// `acc += scale * dot(0, w, x)` with the two scales of sub-block `j < 8`, for lanes 0..4 and 4..8.
    fn dot_scaled(
        self,
        acc: Self::Ints,
        w: Self::Bytes,
        x: Self::Bytes,
        s: Self::Scales,
        j: usize,
    ) -> Self::Ints;
    /// The same for signed w.
    fn dot_signed_scaled(
        self,
        acc: Self::Ints,
        w: Self::Bytes,
        x: Self::Bytes,
        s: Self::Scales,
        j: usize,
    ) -> Self::Ints;
}

/// A computation written once over [`Isa`]. `run` and every callee that takes an `Isa` must be `#[inline(always)]`:
/// only then do they become part of the function that enables the instructions. Inner loops avoid closures and the
/// `map` and `from_fn` of arrays, which stay calls and spill the vectors.
pub trait Kernel {
    /// The type that `run` returns; `()` for kernels that write to a slice.
    type Output;
    /// Computes the result with the vector operations of `isa`.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// An instruction set that this machine supports. Only [`SimdLevel::detect`] and [`SimdLevel::available`] create one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SimdLevel {
    /// Portable loops without intrinsics, available on every machine.
    Scalar(Scalar),
    /// AVX2 with FMA and F16C: 8 floats or 32 bytes per instruction.
    #[cfg(target_arch = "x86_64")]
    Avx2(X86<false>),
    /// AVX-512 F, BW, VL and VNNI: a byte dot product per instruction; with AMX a product of matrices too.
    #[cfg(target_arch = "x86_64")]
    Avx512(X86<true>),
    /// NEON: 4 floats or 16 bytes per instruction.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<false>),
    /// NEON with dotprod: a byte dot product per instruction.
    #[cfg(target_arch = "aarch64")]
    Dotprod(Neon<true>),
}

impl SimdLevel {
    /// The fastest level of this machine.
    pub fn detect() -> SimdLevel {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(isa) = X86::detect() {
                return SimdLevel::Avx512(isa.with_amx().unwrap_or(isa));
            }
            if let Some(isa) = X86::detect() {
                return SimdLevel::Avx2(isa);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if let Some(isa) = Neon::detect() {
                return SimdLevel::Dotprod(isa);
            }
            if let Some(isa) = Neon::detect() {
                return SimdLevel::Neon(isa);
            }
        }
        SimdLevel::Scalar(Scalar::detect())
    }

    /// Every level of this machine, scalar first.
    pub fn available() -> Vec<SimdLevel> {
        #[allow(unused_mut, reason = "on other machines there is one")]
        let mut all = vec![SimdLevel::Scalar(Scalar::detect())];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(X86::detect().map(SimdLevel::Avx2));
            all.extend(X86::detect().map(SimdLevel::Avx512));
            all.extend(X86::detect().and_then(X86::with_amx).map(SimdLevel::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(Neon::detect().map(SimdLevel::Neon));
            all.extend(Neon::detect().map(SimdLevel::Dotprod));
        }
        all
    }

    /// The display name: `AVX-512 VNNI`.
    pub fn name(self) -> &'static str {
        match self {
            SimdLevel::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512(isa) if isa.amx().is_some() => "AVX-512 VNNI, AMX",
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512(_) => "AVX-512 VNNI",
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Neon(_) => "NEON",
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Dotprod(_) => "NEON dotprod",
        }
    }

    /// Runs the kernel compiled for this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            SimdLevel::Scalar(isa) => isa.run(kernel),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2(isa) => isa.run(kernel),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512(isa) => isa.run(kernel),
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Neon(isa) => isa.run(kernel),
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Dotprod(isa) => isa.run(kernel),
        }
    }
}
