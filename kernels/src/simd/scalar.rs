//! Defines the operations of [`Isa`] as plain loops; machines without a supported extension run them.

use super::{Fours, Indices, Isa, Kernel, Panel8};
use half::f16;
use std::array::from_fn;

/// Proof token of plain loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scalar(());

impl Scalar {
    pub(crate) fn detect() -> Scalar {
        Scalar(())
    }
}

#[inline(always)]
fn sum_of_products(w: impl Fn(usize) -> i32, x: [u8; 32], s: [i16; 2], acc: [i32; 8]) -> [i32; 8] {
    from_fn(|lane| {
        let sum = (4 * lane..4 * lane + 4).map(|i| w(i) * x[i].cast_signed() as i32).sum::<i32>();
        acc[lane].wrapping_add(sum.wrapping_mul(s[lane / 4] as i32))
    })
}

/// The integer part; i32::MIN for NaN and values outside -2^31..2^31, as on x86.
#[inline(always)]
pub(crate) fn to_int(v: f32) -> i32 {
    if v.abs() < 2_147_483_648.0 { v as i32 } else { i32::MIN }
}

impl Isa for Scalar {
    type Bytes = [u8; 32];
    type Ints = [i32; 8];
    type Floats = [f32; 8];
    type Scales = [i16; 16];
    type Panel = Panel8<Self>;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn panel(self) -> Panel8<Self> {
        Panel8(self)
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, v: f32) -> [f32; 8] {
        [v; 8]
    }
    #[inline(always)]
    fn load(self, v: &[u8; 32]) -> [f32; 8] {
        from_fn(|l| f32::from_le_bytes([v[4 * l], v[4 * l + 1], v[4 * l + 2], v[4 * l + 3]]))
    }
    #[inline(always)]
    fn load_floats(self, v: &[f32; 8]) -> [f32; 8] {
        *v
    }
    #[inline(always)]
    fn store(self, v: [f32; 8], out: &mut [f32; 8]) {
        *out = v;
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|l| a[l] + b[l])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|l| a[l] - b[l])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|l| a[l] * b[l])
    }
    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|l| a[l] / b[l])
    }
    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        from_fn(|l| a[l].mul_add(b[l], c[l]))
    }
    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|l| if a[l] > b[l] { a[l] } else { b[l] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        from_fn(|l| if a[l] < b[l] { a[l] } else { b[l] })
    }
    #[inline(always)]
    fn select(self, a: [f32; 8], b: [f32; 8], yes: [f32; 8], no: [f32; 8]) -> [f32; 8] {
        from_fn(|l| if a[l] < b[l] { yes[l] } else { no[l] })
    }
    #[inline(always)]
    fn reduce_add(self, v: [f32; 8]) -> f32 {
        let h: [f32; 4] = from_fn(|l| v[l] + v[l + 4]);
        (h[0] + h[2]) + (h[1] + h[3])
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8; 16]) -> [f32; 8] {
        from_fn(|l| self.f16([v[2 * l], v[2 * l + 1]]))
    }
    #[inline(always)]
    fn gather_f16(self, v: [[u8; 2]; 8]) -> [f32; 8] {
        v.map(|v| self.f16(v))
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8; 16]) -> [f32; 8] {
        from_fn(|l| f32::from_le_bytes([0, 0, v[2 * l], v[2 * l + 1]]))
    }
    #[inline(always)]
    fn splat_f16(self, v: [u8; 2]) -> [f32; 8] {
        [self.f16(v); 8]
    }
    #[inline(always)]
    fn f16(self, v: [u8; 2]) -> f32 {
        f16::from_le_bytes(v).to_f32_const()
    }

    #[inline(always)]
    fn zeros(self) -> [i32; 8] {
        [0; 8]
    }
    #[inline(always)]
    fn load_ints(self, v: &[i32; 8]) -> [i32; 8] {
        *v
    }
    #[inline(always)]
    fn store_ints(self, v: [i32; 8], out: &mut [i32; 8]) {
        *out = v;
    }
    #[inline(always)]
    fn set_lane0(self, v: i32) -> [i32; 8] {
        [v, 0, 0, 0, 0, 0, 0, 0]
    }
    #[inline(always)]
    fn add_ints(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|l| a[l].wrapping_add(b[l]))
    }
    #[inline(always)]
    fn shl_ints<const BY: i32>(self, a: [i32; 8]) -> [i32; 8] {
        a.map(|a| a << BY)
    }
    #[inline(always)]
    fn sub_ints(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|l| a[l].wrapping_sub(b[l]))
    }
    #[inline(always)]
    fn max_ints(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|l| a[l].max(b[l]))
    }
    #[inline(always)]
    fn largest(self, v: [i32; 8]) -> i32 {
        v.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    fn floats(self, v: [i32; 8]) -> [f32; 8] {
        v.map(|v| v as f32)
    }
    #[inline(always)]
    fn round(self, v: [f32; 8]) -> [i32; 8] {
        v.map(|v| to_int(v.round_ties_even()))
    }
    #[inline(always)]
    fn magnitude(self, v: [f32; 8]) -> [i32; 8] {
        v.map(|v| v.abs().to_bits().cast_signed())
    }
    #[inline(always)]
    fn reduce_add_i32(self, v: [i32; 8]) -> i32 {
        v.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn reduce_add_each(self, v: [[i32; 8]; 8]) -> [i32; 8] {
        v.map(|v| v.into_iter().fold(0, i32::wrapping_add))
    }
    #[inline(always)]
    fn splat_int(self, v: i32) -> [i32; 8] {
        [v; 8]
    }
    #[inline(always)]
    fn pair(self, low: [i32; 8], high: [i32; 8]) -> [i32; 8] {
        from_fn(|l| low[l] & 0xffff | high[l] << 16)
    }
    #[inline(always)]
    fn mul_ints(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        from_fn(|l| a[l].wrapping_mul(b[l]))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: [i32; 8], w: [i32; 8], x: [u8; 4]) -> [i32; 8] {
        let x = i32::from_le_bytes(x);
        let product = |w: i32, x: i32| w as i16 as i32 * x as i16 as i32;
        from_fn(|l| {
            let pair = product(w[l], x).wrapping_add(product(w[l] >> 16, x >> 16));
            acc[l].wrapping_add(pair)
        })
    }
    #[inline(always)]
    fn dot_sums_8(self, m: [u8; 8], sums: &[u8; 32]) -> [i32; 8] {
        let sum = |i: usize| i16::from_le_bytes([sums[2 * i], sums[2 * i + 1]]) as i32;
        from_fn(|l| m[l] as i32 * (sum(2 * l) + sum(2 * l + 1)))
    }
    #[inline(always)]
    fn dot_sums_16(self, s: [u8; 16], sums: &[u8; 32]) -> [i32; 8] {
        let product =
            |i: usize| s[i].cast_signed() as i32 * i16::from_le_bytes([sums[2 * i], sums[2 * i + 1]]) as i32;
        from_fn(|l| product(2 * l) + product(2 * l + 1))
    }
    #[inline(always)]
    fn pack_i8(self, v: [[i32; 8]; 4]) -> [u8; 32] {
        from_fn(|i| v[i / 8][i % 8] as u8)
    }

    #[inline(always)]
    fn prefetch_l1<V>(self, _: &V, _: usize) {}
    #[inline(always)]
    fn prefetch_l2<V>(self, _: &V, _: usize) {}
    #[inline(always)]
    fn bytes(self, v: &[u8; 32]) -> [u8; 32] {
        *v
    }
    #[inline(always)]
    fn store_bytes(self, v: [u8; 32], out: &mut [u8; 32]) {
        *out = v;
    }
    #[inline(always)]
    fn splat_byte(self, v: u8) -> [u8; 32] {
        [v; 32]
    }
    #[inline(always)]
    fn set_u64(self, v: [u64; 4]) -> [u8; 32] {
        from_fn(|i| v[i / 8].to_le_bytes()[i % 8])
    }
    #[inline(always)]
    fn lookup_fours<const N: usize>(self, grid: &Fours<N>, numbers: &[Indices<N>; 4]) -> [[u8; 32]; 8] {
        from_fn(|v| from_fn(|i| numbers[v / 2].of(&grid.entries, v % 2 * 8 + i / 4).to_le_bytes()[i % 4]))
    }
    #[inline(always)]
    fn words(self, v: &[u8; 16]) -> [u8; 32] {
        from_fn(|i| if i % 2 == 0 { v[i / 2] } else { 0 })
    }
    #[inline(always)]
    fn mul_words(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        let word = |v: [u8; 32], i: usize| u16::from_le_bytes([v[i & !1], v[i | 1]]);
        from_fn(|i| word(a, i).wrapping_mul(word(b, i)).to_le_bytes()[i % 2])
    }
    #[inline(always)]
    fn upper_bytes(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        from_fn(|i| if i < 16 { a[2 * i + 1] } else { b[2 * i - 31] })
    }
    #[inline(always)]
    fn odd_fours(self, v: &[u8; 64]) -> [u8; 32] {
        from_fn(|i| v[i / 4 * 8 + 4 + i % 4])
    }
    #[inline(always)]
    fn sevens(self, v: [u8; 32]) -> [u8; 32] {
        let four = |l: usize| u32::from_le_bytes([v[4 * l], v[4 * l + 1], v[4 * l + 2], v[4 * l + 3]]);
        from_fn(|i| (four(i / 4) >> (7 * (i % 4)) & 127) as u8)
    }
    #[inline(always)]
    fn broadcast_u32(self, v: [u8; 4]) -> [u8; 32] {
        from_fn(|i| v[i % 4])
    }
    #[inline(always)]
    fn interleave(self, rows: [&[u8; 32]; 4]) -> [[u8; 32]; 4] {
        from_fn(|c| from_fn(|i| rows[i % 4][8 * c + i / 4]))
    }
    #[inline(always)]
    fn transpose_8x8(self, rows: [&[u8; 32]; 8]) -> [[u8; 32]; 8] {
        from_fn(|c| from_fn(|i| rows[i / 4][4 * c + i % 4]))
    }
    #[inline(always)]
    fn as_floats(self, v: [u8; 32]) -> [f32; 8] {
        self.load(&v)
    }
    #[inline(always)]
    fn unsigned_byte(self, v: [u8; 32], at: usize) -> [i32; 8] {
        from_fn(|l| v[4 * l + at] as i32)
    }
    #[inline(always)]
    fn signed_byte(self, v: [u8; 32], at: usize) -> [i32; 8] {
        from_fn(|l| v[4 * l + at].cast_signed() as i32)
    }
    #[inline(always)]
    fn half(self, v: [u8; 32], at: usize) -> [f32; 8] {
        from_fn(|l| self.f16([v[4 * l + 2 * at], v[4 * l + 2 * at + 1]]))
    }
    #[inline(always)]
    fn nibbles(self, v: &[u8; 16]) -> [u8; 32] {
        from_fn(|i| if i < 16 { v[i] & 15 } else { v[i - 16] >> 4 })
    }
    #[inline(always)]
    fn twice(self, v: &[u8; 16]) -> [u8; 32] {
        from_fn(|i| v[i % 16])
    }
    #[inline(always)]
    fn mask(self, v: [u8; 4]) -> [u8; 32] {
        from_fn(|i| if v[i / 8] >> (i % 8) & 1 == 1 { 0xff } else { 0 })
    }
    #[inline(always)]
    fn negate_bits(self, v: [u8; 32], bits: [u8; 4]) -> [u8; 32] {
        from_fn(|i| if bits[i / 8] >> (i % 8) & 1 == 1 { v[i].wrapping_neg() } else { v[i] })
    }
    #[inline(always)]
    fn add_bytes(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn and(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn or(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn shr<const BY: i32>(self, a: [u8; 32]) -> [u8; 32] {
        a.map(|a| a >> BY)
    }
    #[inline(always)]
    fn shl<const BY: i32>(self, a: [u8; 32]) -> [u8; 32] {
        a.map(|a| a << BY)
    }
    #[inline(always)]
    fn table_lookup(self, table: &[i8; 16], index: [u8; 32]) -> [u8; 32] {
        index.map(|i| table[(i & 15) as usize].cast_unsigned())
    }
    #[inline(always)]
    fn dot(self, acc: [i32; 8], w: [u8; 32], x: [u8; 32]) -> [i32; 8] {
        sum_of_products(|i| w[i] as i32, x, [1, 1], acc)
    }
    #[inline(always)]
    fn dot_signed(self, acc: [i32; 8], w: [u8; 32], x: [u8; 32]) -> [i32; 8] {
        sum_of_products(|i| w[i].cast_signed() as i32, x, [1, 1], acc)
    }
    #[inline(always)]
    fn scales_16(self, s: [u8; 16]) -> [i16; 16] {
        s.map(|s| s.cast_signed() as i16)
    }
    #[inline(always)]
    fn scales_8(self, s: [u8; 8]) -> [i16; 16] {
        from_fn(|i| s[i / 2].cast_signed() as i16)
    }
    #[inline(always)]
    fn scales_of_halves(self, first: [u8; 8], second: [u8; 8]) -> [i16; 16] {
        from_fn(|i| if i % 2 == 0 { first[i / 2] } else { second[i / 2] }.cast_signed() as i16)
    }
    #[inline(always)]
    fn dot_scaled(self, acc: [i32; 8], w: [u8; 32], x: [u8; 32], s: [i16; 16], j: usize) -> [i32; 8] {
        sum_of_products(|i| w[i] as i32, x, [s[2 * j], s[2 * j + 1]], acc)
    }
    #[inline(always)]
    fn dot_signed_scaled(self, acc: [i32; 8], w: [u8; 32], x: [u8; 32], s: [i16; 16], j: usize) -> [i32; 8] {
        sum_of_products(|i| w[i].cast_signed() as i32, x, [s[2 * j], s[2 * j + 1]], acc)
    }
}
