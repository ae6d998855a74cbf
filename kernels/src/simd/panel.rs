//! Defines the panel operations of the GEMM microkernel: one weight row per SIMD lane.
//!
//! A byte vector holds four bytes of each row, so one byte dot product multiplies all rows with the same four
//! activations and no horizontal sum is needed. [`Panel8`] holds eight rows over any [`Isa`], `panel16` sixteen rows in
//! 512 bits. Both give the same bits: integer sums are exact and every row has float sums of its own.

use super::Isa;

/// Vectors with one row per lane, [`PanelSimd::MR`] lanes.
pub trait PanelSimd: Copy {
    /// Rows per panel: 8 or 16.
    const MR: usize;
    /// Tokens whose sums fit the registers.
    const NR: usize;
    /// The bias that [`PanelSimd::signed`] adds to signed quants.
    const U8_BIAS: i32;
    /// The bias that callers add to the four bytes x of [`PanelSimd::dot_biased`].
    const X_BIAS: u8;
    /// Vector of four bytes per row.
    type Bytes: Copy;
    /// Vector of one i32 per row.
    type Ints: Copy;
    /// Vector of one f32 per row.
    type Floats: Copy;
    /// The matrix registers of this instruction set, or [`NoMatrix`].
    type Matrix: MatrixSimd<Self>;

    /// Matrix registers set up for products with `tokens` tokens, 1..=16, if this machine has any.
    fn matrix(self, tokens: usize) -> Option<Self::Matrix>;
    /// Vector c has bytes `4 c .. 4 c + 4` of each row, of the first [`PanelSimd::MR`] rows.
    fn transpose(self, rows: &[&[u8; 32]; 16]) -> [Self::Bytes; 8];

    // ---- bytes, as in `Isa` ----------------------------------------------------------------------------

    /// Broadcasts v to all bytes of all rows.
    fn splat_byte(self, v: u8) -> Self::Bytes;
    /// Bitwise a & b of all bytes.
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Bitwise a | b of all bytes.
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted right, zeros coming in.
    fn shr<const BY: i32>(self, a: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted left, zeros coming in.
    fn shl<const BY: i32>(self, a: Self::Bytes) -> Self::Bytes;
    /// Byte i = `table[index[i]]`, for indices below 16.
    fn table_lookup(self, table: &[i8; 16], index: Self::Bytes) -> Self::Bytes;
    /// Adds [`PanelSimd::U8_BIAS`] to signed quants, as [`PanelSimd::dot_signed`] expects.
    fn signed(self, w: Self::Bytes) -> Self::Bytes;

    // ---- one value per row ------------------------------------------------------------------------------

    /// Loads four bytes per row; those after the first [`PanelSimd::MR`] rows are ignored.
    fn load_bytes(self, v: &[u8; 64]) -> Self::Bytes;
    /// Writes four bytes per row to the first `4 MR` bytes.
    fn store_bytes(self, v: Self::Bytes, out: &mut [u8; 64]);
    /// Loads one integer per row; those after the first [`PanelSimd::MR`] are ignored.
    fn load_ints(self, v: &[i32; 16]) -> Self::Ints;
    /// Zero in each row, the start of an integer sum.
    fn zeros(self) -> Self::Ints;
    /// Byte `at` of each row's four.
    fn unsigned_byte(self, v: Self::Bytes, at: usize) -> Self::Ints;
    /// Byte `at` of each row's four, sign-extended.
    fn signed_byte(self, v: Self::Bytes, at: usize) -> Self::Ints;
    /// Half `at` of each row's four bytes as binary16.
    fn half(self, v: Self::Bytes, at: usize) -> Self::Floats;
    /// Loads one value per row; those after the first [`PanelSimd::MR`] are ignored.
    fn load(self, v: &[f32; 16]) -> Self::Floats;
    /// One binary16 per row, little endian.
    fn gather_f16(self, v: [[u8; 2]; 16]) -> Self::Floats;
    /// low in the lower sixteen bits, high in the upper; both fit sixteen bits.
    fn pair(self, low: Self::Ints, high: Self::Ints) -> Self::Ints;
    /// `acc + sum of w[i] * x[i]` over a row's four bytes; w unsigned and at most 128, x signed and over -128.
    fn dot(self, acc: Self::Ints, w: Self::Bytes, x: [u8; 4]) -> Self::Ints;
    /// `totals[t] + scale * sum` for each token t, where the sum adds [`PanelSimd::dot`] of `w[i]` and `x[t][i]` over all i; w at
    /// most `max_quant`, which is at most 128, and the scale in 16 bits.
    #[inline(always)]
    fn add_scaled_dots<const T: usize>(
        self,
        totals: [Self::Ints; T],
        w: &[Self::Bytes],
        _max_quant: u8,
        x: [&[[u8; 4]]; T],
        scale: Self::Ints,
    ) -> [Self::Ints; T] {
        add_scaled_dots::<Self, T, false>(self, totals, w, x, scale)
    }
    /// The same as [`PanelSimd::dot`] for quants biased by [`PanelSimd::signed`].
    fn dot_signed(self, acc: Self::Ints, w: Self::Bytes, x: [u8; 4]) -> Self::Ints;
    /// The same for signed w in -127..=127 and x in -127..=127 plus [`PanelSimd::X_BIAS`]; the sum includes
    /// `X_BIAS * (w[0] + w[1] + w[2] + w[3])`, which callers subtract.
    fn dot_biased(self, acc: Self::Ints, w: Self::Bytes, x: [u8; 4]) -> Self::Ints;
    /// The same for several x with one w.
    fn dot_biased_each<const N: usize>(
        self,
        acc: [Self::Ints; N],
        w: Self::Bytes,
        x: [[u8; 4]; N],
    ) -> [Self::Ints; N];
    /// `acc + w[0] * x[0] + w[1] * x[1]`, of i16.
    fn dot_pairs(self, acc: Self::Ints, w: Self::Ints, x: [u8; 4]) -> Self::Ints;
    /// acc + a * b, wrapping
    fn mul_add(self, acc: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Row-wise a + b, wrapping on overflow.
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Broadcasts v to all rows.
    fn splat_int(self, v: i32) -> Self::Ints;
    /// Integers as floats, rounded to nearest even.
    fn floats(self, v: Self::Ints) -> Self::Floats;
    /// Broadcasts v to all rows.
    fn splat(self, v: f32) -> Self::Floats;
    /// Row-wise a * b in f32, never fused with an addition.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b + c, rounded once
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Writes the first [`PanelSimd::MR`] values.
    fn store(self, v: Self::Floats, out: &mut [f32; 16]);
}

/// [`PanelSimd::add_scaled_dots`] by one product after the other, also of quants biased by [`PanelSimd::signed`].
#[inline(always)]
pub(crate) fn add_scaled_dots<P: PanelSimd, const T: usize, const SIGNED: bool>(
    simd: P,
    mut totals: [P::Ints; T],
    w: &[P::Bytes],
    x: [&[[u8; 4]]; T],
    scale: P::Ints,
) -> [P::Ints; T] {
    let mut sums = [simd.zeros(); T];
    for i in 0..w.len() {
        for t in 0..T {
            sums[t] = if SIGNED {
                simd.dot_signed(sums[t], w[i], x[t][i])
            } else {
                simd.dot(sums[t], w[i], x[t][i])
            };
        }
    }
    for t in 0..T {
        totals[t] = simd.mul_add(totals[t], scale, sums[t]);
    }
    totals
}

/// Sums of a panel's sixteen rows for up to sixteen tokens, `[tokens][rows]`; those after the last token are kept.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct PanelSums(pub [[i32; 16]; 16]);

impl PanelSums {
    /// The sums before any product is added.
    pub const ZERO: PanelSums = PanelSums([[0; 16]; 16]);
}

/// Signed bytes of several tokens, `step` bytes apart.
#[derive(Clone, Copy)]
pub struct MatrixTokens<'a> {
    /// From the first byte of the first token on.
    pub bytes: &'a [u8],
    /// From one token to the next.
    pub step: usize,
}

#[cfg(target_arch = "x86_64")]
impl MatrixTokens<'_> {
    /// Address and step of `tokens` rows, after checking that each has `N` bytes.
    #[inline(always)]
    pub(super) fn rows<const N: usize>(self, tokens: usize) -> (*const u8, usize) {
        assert!((tokens - 1) * self.step + N <= self.bytes.len(), "bytes of {tokens} tokens");
        (self.bytes.as_ptr(), self.step)
    }
}

/// Matrix registers: one instruction multiplies the sixteen rows of a panel with sixteen tokens. Integer sums are exact,
/// so they equal those of [`PanelSimd::dot`].
pub trait MatrixSimd<P: PanelSimd> {
    /// Low bytes (unsigned) and high bytes (signed) of w times the row's scale; w unsigned, the scale in -128..=127.
    fn scaled(&self, w: P::Bytes, scale: P::Ints) -> [P::Bytes; 2];
    /// Sums over 256 columns of the bytes of `w`: low ones, unsigned, and high ones, signed.
    fn dot_256(&self, x: MatrixTokens<'_>, w: [&[P::Bytes; 64]; 2], sums: &mut [PanelSums; 2]);
    /// Sums over 32 columns of signed bytes.
    fn dot_32(&self, x: MatrixTokens<'_>, w: &[P::Bytes; 8], sums: &mut PanelSums);
}

/// The matrix registers of instruction sets without them: a type without values.
#[derive(Clone, Copy)]
pub enum NoMatrix {}

impl<P: PanelSimd> MatrixSimd<P> for NoMatrix {
    fn scaled(&self, _: P::Bytes, _: P::Ints) -> [P::Bytes; 2] {
        match *self {}
    }
    fn dot_256(&self, _: MatrixTokens<'_>, _: [&[P::Bytes; 64]; 2], _: &mut [PanelSums; 2]) {
        match *self {}
    }
    fn dot_32(&self, _: MatrixTokens<'_>, _: &[P::Bytes; 8], _: &mut PanelSums) {
        match *self {}
    }
}

/// The panel type of an x86 instruction set.
#[cfg(target_arch = "x86_64")]
pub trait NativePanel: Copy {
    /// Sixteen rows with AVX-512, eight with AVX2.
    type Panel: PanelSimd;
    /// The token that [`Isa::panel`] returns.
    fn panel(self) -> Self::Panel;
}

/// Eight rows over any [`Isa`].
#[derive(Clone, Copy)]
pub struct Panel8<I>(pub(super) I);

impl<I: Isa> Panel8<I> {
    /// Eight rows on this machine.
    #[inline(always)]
    pub fn of(isa: I) -> Panel8<I> {
        Panel8(isa)
    }
}

impl<I: Isa> PanelSimd for Panel8<I> {
    const MR: usize = 8;
    const NR: usize = 4;
    const U8_BIAS: i32 = 0;
    const X_BIAS: u8 = 0;
    type Bytes = I::Bytes;
    type Ints = I::Ints;
    type Floats = I::Floats;
    type Matrix = NoMatrix;

    #[inline(always)]
    fn matrix(self, _: usize) -> Option<NoMatrix> {
        None
    }
    #[inline(always)]
    fn transpose(self, rows: &[&[u8; 32]; 16]) -> [I::Bytes; 8] {
        let [a, b, c, d, e, f, g, h, ..] = *rows;
        self.0.transpose_8x8([a, b, c, d, e, f, g, h])
    }
    #[inline(always)]
    fn splat_byte(self, v: u8) -> I::Bytes {
        self.0.splat_byte(v)
    }
    #[inline(always)]
    fn and(self, a: I::Bytes, b: I::Bytes) -> I::Bytes {
        self.0.and(a, b)
    }
    #[inline(always)]
    fn or(self, a: I::Bytes, b: I::Bytes) -> I::Bytes {
        self.0.or(a, b)
    }
    #[inline(always)]
    fn shr<const BY: i32>(self, a: I::Bytes) -> I::Bytes {
        self.0.shr::<BY>(a)
    }
    #[inline(always)]
    fn shl<const BY: i32>(self, a: I::Bytes) -> I::Bytes {
        self.0.shl::<BY>(a)
    }
    #[inline(always)]
    fn table_lookup(self, table: &[i8; 16], index: I::Bytes) -> I::Bytes {
        self.0.table_lookup(table, index)
    }
    #[inline(always)]
    fn signed(self, w: I::Bytes) -> I::Bytes {
        w
    }
    #[inline(always)]
    fn load_bytes(self, v: &[u8; 64]) -> I::Bytes {
        self.0.bytes(v.first_chunk().expect("sixty-four"))
    }
    #[inline(always)]
    fn store_bytes(self, v: I::Bytes, out: &mut [u8; 64]) {
        self.0.store_bytes(v, out.first_chunk_mut().expect("sixty-four"));
    }
    #[inline(always)]
    fn load_ints(self, v: &[i32; 16]) -> I::Ints {
        self.0.load_ints(v.first_chunk().expect("sixteen"))
    }
    #[inline(always)]
    fn zeros(self) -> I::Ints {
        self.0.zeros()
    }
    #[inline(always)]
    fn unsigned_byte(self, v: I::Bytes, at: usize) -> I::Ints {
        self.0.unsigned_byte(v, at)
    }
    #[inline(always)]
    fn signed_byte(self, v: I::Bytes, at: usize) -> I::Ints {
        self.0.signed_byte(v, at)
    }
    #[inline(always)]
    fn half(self, v: I::Bytes, at: usize) -> I::Floats {
        self.0.half(v, at)
    }
    #[inline(always)]
    fn load(self, v: &[f32; 16]) -> I::Floats {
        self.0.load_floats(v.first_chunk().expect("sixteen"))
    }
    #[inline(always)]
    fn gather_f16(self, v: [[u8; 2]; 16]) -> I::Floats {
        let [a, b, c, d, e, f, g, h, ..] = v;
        self.0.gather_f16([a, b, c, d, e, f, g, h])
    }
    #[inline(always)]
    fn pair(self, low: I::Ints, high: I::Ints) -> I::Ints {
        self.0.pair(low, high)
    }
    #[inline(always)]
    fn dot(self, acc: I::Ints, w: I::Bytes, x: [u8; 4]) -> I::Ints {
        self.0.dot(acc, w, self.0.broadcast_u32(x))
    }
    #[inline(always)]
    fn add_scaled_dots<const T: usize>(
        self,
        totals: [I::Ints; T],
        w: &[I::Bytes],
        max_quant: u8,
        x: [&[[u8; 4]]; T],
        scale: I::Ints,
    ) -> [I::Ints; T] {
        self.0.add_scaled_dots(totals, w, max_quant, x, scale)
    }
    #[inline(always)]
    fn dot_signed(self, acc: I::Ints, w: I::Bytes, x: [u8; 4]) -> I::Ints {
        self.0.dot_signed(acc, w, self.0.broadcast_u32(x))
    }
    #[inline(always)]
    fn dot_biased(self, acc: I::Ints, w: I::Bytes, x: [u8; 4]) -> I::Ints {
        self.dot_signed(acc, w, x)
    }
    #[inline(always)]
    fn dot_biased_each<const N: usize>(
        self,
        acc: [I::Ints; N],
        w: I::Bytes,
        x: [[u8; 4]; N],
    ) -> [I::Ints; N] {
        let mut sums = acc;
        for n in 0..N {
            sums[n] = self.dot_biased(sums[n], w, x[n]);
        }
        sums
    }
    #[inline(always)]
    fn dot_pairs(self, acc: I::Ints, w: I::Ints, x: [u8; 4]) -> I::Ints {
        self.0.dot_pairs(acc, w, x)
    }
    #[inline(always)]
    fn mul_add(self, acc: I::Ints, a: I::Ints, b: I::Ints) -> I::Ints {
        self.0.add_ints(acc, self.0.mul_ints(a, b))
    }
    #[inline(always)]
    fn add(self, a: I::Ints, b: I::Ints) -> I::Ints {
        self.0.add_ints(a, b)
    }
    #[inline(always)]
    fn splat_int(self, v: i32) -> I::Ints {
        self.0.splat_int(v)
    }
    #[inline(always)]
    fn floats(self, v: I::Ints) -> I::Floats {
        self.0.floats(v)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> I::Floats {
        self.0.splat(v)
    }
    #[inline(always)]
    fn mul(self, a: I::Floats, b: I::Floats) -> I::Floats {
        self.0.mul(a, b)
    }
    #[inline(always)]
    fn fma(self, a: I::Floats, b: I::Floats, c: I::Floats) -> I::Floats {
        self.0.fma(a, b, c)
    }
    #[inline(always)]
    fn store(self, v: I::Floats, out: &mut [f32; 16]) {
        let (eight, _) = out.split_first_chunk_mut().expect("sixteen");
        self.0.store(v, eight);
    }
}
