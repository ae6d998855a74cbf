//! Stored rows as the lanes of a register: what a product of many tokens is written over.
//!
//! A vector of bytes holds four bytes of each row, so one byte product meets all rows with the same four
//! activations, and nothing has to be added across lanes. As wide as the machine's registers: [`Eight`] rows over
//! any [`Isa`], sixteen in `wide`. All give the same bits, as every sum of integers is exact and every row has its own
//! sums of floats. Next: `wide`.

use super::Isa;

/// Vectors whose lane is a row, [`Lanes::ROWS`] of them.
pub trait Lanes: Copy {
    /// Rows of a vector: 8 or 16.
    const ROWS: usize;
    /// Tokens whose sums there are registers for.
    const TOKENS: usize;
    /// What [`Lanes::signed`] adds to a level.
    const ADDED: i32;
    /// Four bytes a row.
    type Bytes: Copy;
    /// i32.
    type Ints: Copy;
    /// f32.
    type Floats: Copy;

    /// Vector c has bytes `4 c .. 4 c + 4` of each row, of the first [`Lanes::ROWS`] rows.
    fn turn(self, rows: &[&[u8; 32]; 16]) -> [Self::Bytes; 8];

    // ---- bytes, as in `Isa` ----------------------------------------------------------------------------

    /// The same byte everywhere.
    fn splat_byte(self, v: u8) -> Self::Bytes;
    /// a & b
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// a | b
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted right, zeros coming in.
    fn shr<const BY: i32>(self, a: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted left, zeros coming in.
    fn shl<const BY: i32>(self, a: Self::Bytes) -> Self::Bytes;
    /// Byte i = `table[index[i]]`, for indices below 16.
    fn look_up(self, table: &[i8; 16], index: Self::Bytes) -> Self::Bytes;
    /// Signed levels in the form of [`Lanes::dot_signed`]: [`Lanes::ADDED`] more.
    fn signed(self, w: Self::Bytes) -> Self::Bytes;

    // ---- a value a row ---------------------------------------------------------------------------------

    /// Zeros.
    fn zeros(self) -> Self::Ints;
    /// Byte `at` of each row's four.
    fn unsigned_byte(self, v: Self::Bytes, at: usize) -> Self::Ints;
    /// The same, signed.
    fn signed_byte(self, v: Self::Bytes, at: usize) -> Self::Ints;
    /// Half `at` of each row's four bytes as binary16.
    fn half(self, v: Self::Bytes, at: usize) -> Self::Floats;
    /// A value for each of the first [`Lanes::ROWS`] rows.
    fn load(self, v: &[f32; 16]) -> Self::Floats;
    /// The same of binary16, little endian, from as many places.
    fn gather_f16(self, v: [[u8; 2]; 16]) -> Self::Floats;
    /// low in the lower sixteen bits, high in the upper; both fit sixteen bits.
    fn pair(self, low: Self::Ints, high: Self::Ints) -> Self::Ints;
    /// `acc + sum of w[i] * x[i]` over a row's four bytes; w unsigned and at most 128, x signed and over -128.
    fn dot(self, acc: Self::Ints, w: Self::Bytes, x: [u8; 4]) -> Self::Ints;
    /// The same for levels that [`Lanes::signed`] gave.
    fn dot_signed(self, acc: Self::Ints, w: Self::Bytes, x: [u8; 4]) -> Self::Ints;
    /// `acc + w[0] * x[0] + w[1] * x[1]`, of i16.
    fn dot_pairs(self, acc: Self::Ints, w: Self::Ints, x: [u8; 4]) -> Self::Ints;
    /// acc + a * b, wrapping
    fn mul_add(self, acc: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// a + b, wrapping
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// The same number for each row.
    fn splat_int(self, v: i32) -> Self::Ints;
    /// Integers as floats, rounded to nearest even.
    fn floats(self, v: Self::Ints) -> Self::Floats;
    /// The same value for each row.
    fn splat(self, v: f32) -> Self::Floats;
    /// a * b
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b + c, rounded once
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Writes the first [`Lanes::ROWS`].
    fn store(self, v: Self::Floats, out: &mut [f32; 16]);
}

/// Eight rows in the vectors of an [`Isa`].
#[derive(Clone, Copy)]
pub struct Eight<I>(pub(super) I);

impl<I: Isa> Eight<I> {
    /// Eight rows on this machine.
    #[inline(always)]
    pub fn of(isa: I) -> Eight<I> {
        Eight(isa)
    }
}

impl<I: Isa> Lanes for Eight<I> {
    const ROWS: usize = 8;
    const TOKENS: usize = 4;
    const ADDED: i32 = 0;
    type Bytes = I::Bytes;
    type Ints = I::Ints;
    type Floats = I::Floats;

    #[inline(always)]
    fn turn(self, rows: &[&[u8; 32]; 16]) -> [I::Bytes; 8] {
        let [a, b, c, d, e, f, g, h, ..] = *rows;
        self.0.turn([a, b, c, d, e, f, g, h])
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
    fn look_up(self, table: &[i8; 16], index: I::Bytes) -> I::Bytes {
        self.0.look_up(table, index)
    }
    #[inline(always)]
    fn signed(self, w: I::Bytes) -> I::Bytes {
        w
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
        self.0.dot(acc, w, self.0.splat_four(x))
    }
    #[inline(always)]
    fn dot_signed(self, acc: I::Ints, w: I::Bytes, x: [u8; 4]) -> I::Ints {
        self.0.dot_signed(acc, w, self.0.splat_four(x))
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
