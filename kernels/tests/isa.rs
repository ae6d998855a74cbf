//! Every operation of every instruction set is bit-identical to the scalar loops, also for extreme operands.

#[path = "common/random.rs"]
mod random;

use kernels::simd::{Fours, Indices, Isa, Kernel, SimdLevel};
use random::Random;

/// Operands within the operations' contract: quants of at most 128, activations above -128.
struct Operands {
    floats: [[f32; 8]; 4],
    levels: [u8; 32],
    signed: [u8; 32],
    activations: [u8; 32],
    /// Operands of 16-bit sums; any bytes elsewhere.
    sums: [u8; 32],
    ints: [i32; 2],
}

/// Results by operation, as 32-bit words.
type Results = Vec<(&'static str, Vec<u32>)>;

struct FloatOps<'a>(&'a Operands);

impl Kernel for FloatOps<'_> {
    type Output = Results;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Results {
        let [a, b, c, d] = self.0.floats.map(|v| isa.load_floats(&v));
        let (half, pair): ([u8; 16], [u8; 2]) = (part(&self.0.sums), part(&self.0.sums));
        let vectors = [
            ("splat", isa.splat(self.0.floats[0][0])),
            ("load", isa.load(&self.0.sums)),
            ("add", isa.add(a, b)),
            ("sub", isa.sub(a, b)),
            ("mul", isa.mul(a, b)),
            ("div", isa.div(a, b)),
            ("fma", isa.fma(a, b, c)),
            ("max", isa.max(a, b)),
            ("min", isa.min(a, b)),
            ("select", isa.select(a, b, c, d)),
            ("select equal", isa.select(a, a, c, d)),
            ("load_f16", isa.load_f16(&half)),
            ("load_bf16", isa.load_bf16(&half)),
            ("splat_f16", isa.splat_f16(pair)),
            ("half 0", isa.half(isa.bytes(&self.0.sums), 0)),
            ("half 1", isa.half(isa.bytes(&self.0.sums), 1)),
            ("floats", isa.floats(isa.set_lane0(self.0.ints[0]))),
            ("total and f16", isa.load_floats(&[isa.reduce_add(a), isa.f16(pair), 0., 0., 0., 0., 0., 0.])),
        ];
        let mut out: Results = vectors.into_iter().map(|(op, v)| (op, words(isa, v))).collect();
        let ints = [("round", isa.round(a)), ("magnitude", isa.magnitude(a))];
        out.extend(ints.into_iter().map(|(op, v)| (op, int_words(isa, v))));
        out
    }
}

struct Ints<'a>(&'a Operands);

impl Kernel for Ints<'_> {
    type Output = Results;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Results {
        let Operands { levels, signed, activations, sums, ints, .. } = self.0;
        let (w, q, x) = (isa.bytes(levels), isa.bytes(signed), isa.bytes(activations));
        let acc = isa.dot_sums_16(part(signed), sums);
        let far = isa.add_ints(isa.set_lane0(ints[0]), isa.dot_signed(isa.set_lane0(ints[1]), q, x));
        let (wide, narrow) = (isa.scales_16(part(signed)), isa.scales_8(part(signed)));
        let mut out = vec![
            ("zeros", isa.zeros()),
            ("first", isa.set_lane0(ints[0])),
            ("dot_sums_8", isa.dot_sums_8(part(signed), sums)),
            ("dot_sums_16", acc),
            ("add_ints", far),
            ("sub_ints", isa.sub_ints(acc, far)),
            ("max_ints", isa.max_ints(acc, far)),
            ("shl_ints", isa.shl_ints::<5>(far)),
            ("reduce_add_i32", isa.set_lane0(isa.reduce_add_i32(far))),
            ("largest", isa.set_lane0(isa.largest(far))),
            ("splat_int", isa.splat_int(ints[0])),
            ("pair", isa.pair(acc, far)),
            ("mul_ints", isa.mul_ints(acc, far)),
            (
                "reduce_add_each",
                isa.reduce_add_each([
                    acc,
                    far,
                    acc,
                    far,
                    far,
                    isa.splat_int(ints[1]),
                    acc,
                    isa.set_lane0(ints[0]),
                ]),
            ),
            ("dot_pairs", isa.dot_pairs(acc, far, part(activations))),
            ("dot", isa.dot(far, w, x)),
            ("dot_signed", isa.dot_signed(far, q, x)),
        ];
        let halves = isa.scales_of_halves(part(signed), part(sums));
        for j in 0..8 {
            out.push(("dot_scaled, halves", isa.dot_scaled(far, w, x, halves, j)));
            out.push(("dot_scaled, 16", isa.dot_scaled(far, w, x, wide, j)));
            out.push(("dot_scaled, 8", isa.dot_scaled(far, w, x, narrow, j)));
            out.push(("dot_signed_scaled, 16", isa.dot_signed_scaled(far, q, x, wide, j)));
            out.push(("dot_signed_scaled, 8", isa.dot_signed_scaled(far, q, x, narrow, j)));
        }
        for at in 0..4 {
            out.push(("unsigned_byte", isa.unsigned_byte(q, at)));
            out.push(("signed_byte", isa.signed_byte(q, at)));
        }
        out.into_iter().map(|(op, v)| (op, int_words(isa, v))).collect()
    }
}

static FOURS_512: Fours<512> = Fours::new(nibbles(), values());
static FOURS_256: Fours<256> = Fours::new(nibbles(), values());

/// Any 16 bits for each entry.
const fn nibbles<const N: usize>() -> [u16; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = ((i as u32 * 40_503) >> 3) as u16;
        i += 1;
    }
    out
}

/// Sixteen different values, negative ones too.
const fn values() -> [i8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (17 * i as u8).cast_signed();
        i += 1;
    }
    out
}

struct Bytes<'a>(&'a Operands);

impl Kernel for Bytes<'_> {
    type Output = Results;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Results {
        let Operands { levels, signed, activations, sums, .. } = self.0;
        let (a, b) = (isa.bytes(signed), isa.bytes(sums));
        isa.prefetch_l1(sums, 1 << 40);
        let table = part::<16>(sums).map(u8::cast_signed);
        let ints = |at: usize| std::array::from_fn(|l| f32::from(signed[at + l].cast_signed()));
        let small = [0, 8, 16, 24].map(|at| isa.round(isa.load_floats(&ints(at))));
        let bytes = [
            ("splat_byte", isa.splat_byte(sums[0])),
            ("nibbles", isa.nibbles(&part(sums))),
            ("twice", isa.twice(&part(sums))),
            ("mask", isa.mask(part(sums))),
            ("set_u64", isa.set_u64([0, 8, 16, 24].map(|at| u64::from_le_bytes(part(&sums[at..]))))),
            ("negate_bits", isa.negate_bits(a, part(sums))),
            ("words", isa.words(&part(sums))),
            ("mul_words", isa.mul_words(a, b)),
            ("upper_bytes", isa.upper_bytes(a, b)),
            ("odd_fours", isa.odd_fours(bytemuck::cast_ref(&[*sums, *signed]))),
            ("sevens", isa.sevens(b)),
            ("add_bytes", isa.add_bytes(a, b)),
            ("and", isa.and(a, b)),
            ("or", isa.or(a, b)),
            ("shr 1", isa.shr::<1>(a)),
            ("shr 4", isa.shr::<4>(a)),
            ("shr 7", isa.shr::<7>(a)),
            ("shl 1", isa.shl::<1>(a)),
            ("shl 4", isa.shl::<4>(a)),
            ("shl 7", isa.shl::<7>(a)),
            ("table_lookup", isa.table_lookup(&table, isa.and(isa.bytes(activations), isa.splat_byte(15)))),
            ("narrow", isa.pack_i8(small)),
            ("broadcast_u32", isa.broadcast_u32(part(sums))),
        ];
        let rows = [signed, activations, sums, levels, signed, sums, levels, activations];
        let transposed = isa.transpose_8x8(rows).map(|v| ("transpose_8x8", v));
        let interleaved = isa.interleave([signed, activations, sums, levels]).map(|v| ("interleave", v));
        let (c, d) = (isa.bytes(activations), isa.bytes(levels));
        let numbers = [a, b, c, d].map(|v| Indices::new(isa, v));
        let fours = isa.lookup_fours(&FOURS_512, &numbers).map(|v| ("lookup_fours 512", v));
        let numbers = [a, b, c, d].map(|v| Indices::new(isa, v));
        let fewer = isa.lookup_fours(&FOURS_256, &numbers).map(|v| ("lookup_fours 256", v));
        let mut out = [0; 32];
        let mut words = |v| {
            isa.store_bytes(v, &mut out);
            out.map(u32::from).to_vec()
        };
        let all = bytes.into_iter().chain(transposed).chain(interleaved).chain(fours).chain(fewer);
        all.map(|(op, v)| (op, words(v))).collect()
    }
}

fn part<const N: usize>(v: &[u8]) -> [u8; N] {
    v[..N].try_into().expect("N bytes")
}

/// The bits of a float, with one NaN for all: machines differ in which of two NaN they propagate.
fn words<I: Isa>(isa: I, v: I::Floats) -> Vec<u32> {
    let mut out = [0.0; 8];
    isa.store(v, &mut out);
    out.map(|v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).to_vec()
}

/// Two floats per lane: the lower half is exact, and the sum is rounded by less than its lowest bit.
fn int_words<I: Isa>(isa: I, v: I::Ints) -> Vec<u32> {
    let mut out = [0; 8];
    isa.store_ints(v, &mut out);
    out.map(i32::cast_unsigned).to_vec()
}

impl Random {
    /// Random floats, one in three of them extreme.
    fn byte(&mut self, extremes: &[u8]) -> u8 {
        if self.next().is_multiple_of(3) { self.one_of(extremes) } else { self.next() as u8 }
    }
    /// Extreme floats, halves of integers, and random bits.
    fn float(&mut self) -> f32 {
        let two31 = 2_147_483_648.0_f32;
        let extremes = [0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, 1e-40, f32::INFINITY, f32::NAN, two31];
        let v = match self.next() % 4 {
            0 => self.one_of(&extremes),
            1 => (self.next() % 512) as f32 / 2.0,
            2 => two31.next_down() / (self.next() % 4) as f32,
            _ => f32::from_bits(self.next() as u32),
        };
        if self.next().is_multiple_of(2) { v } else { -v }
    }
    fn case(&mut self) -> Operands {
        let extremes = [0, 1, 127, 128, 255];
        Operands {
            floats: std::array::from_fn(|_| std::array::from_fn(|_| self.float())),
            levels: std::array::from_fn(|_| self.byte(&[0, 127, 128]).min(128)),
            signed: std::array::from_fn(|_| self.byte(&extremes)),
            activations: std::array::from_fn(|_| match self.byte(&[0, 127, 129, 255]) {
                128 => 129,
                x => x,
            }),
            sums: std::array::from_fn(|_| self.byte(&extremes)),
            ints: std::array::from_fn(|_| self.one_of(&[0, 1, -1, 1 << 24, i32::MAX, i32::MIN])),
        }
    }
}

fn all(level: SimdLevel, case: &Operands) -> Results {
    [level.run(FloatOps(case)), level.run(Ints(case)), level.run(Bytes(case))].concat()
}

#[test]
fn every_level_gives_the_bits_of_the_plain_loops() {
    let mut random = Random::new(1);
    for i in 0..4000 {
        let case = random.case();
        let expected = all(SimdLevel::available()[0], &case);
        for level in SimdLevel::available() {
            for (result, expected) in all(level, &case).iter().zip(&expected) {
                assert_eq!(result, expected, "case {i} at {}", level.name());
            }
        }
    }
}

/// Adds scaled products of eight vectors with four tokens.
struct ScaledDots<'a> {
    w: &'a [[u8; 32]; 8],
    max_quant: u8,
    x: &'a [[[u8; 4]; 8]; 4],
    scale: i32,
}

impl Kernel for ScaledDots<'_> {
    type Output = [[i32; 8]; 4];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> [[i32; 8]; 4] {
        let mut w = [isa.splat_byte(0); 8];
        for (w, bytes) in w.iter_mut().zip(self.w) {
            *w = isa.bytes(bytes);
        }
        let [a, b, c, d] = self.x;
        let start = [isa.splat_int(0), isa.splat_int(1), isa.splat_int(-1), isa.splat_int(1 << 20)];
        let totals = isa.add_scaled_dots(start, &w, self.max_quant, [a, b, c, d], isa.splat_int(self.scale));
        let mut out = [[0; 8]; 4];
        for (total, out) in totals.into_iter().zip(&mut out) {
            isa.store_ints(total, out);
        }
        out
    }
}

/// The largest quants and activations, whose sums are the largest, and random ones.
#[test]
fn scaled_dots_of_the_largest_quants_are_exact() {
    let mut random = Random::new(2);
    for (max_quant, i) in
        [1, 3, 7, 15, 18, 31, 63, 128].into_iter().flat_map(|max_quant| (0..60).map(move |i| (max_quant, i)))
    {
        let x = [[127; 4]; 8];
        let (mut w, mut x) =
            ([[max_quant; 32]; 8], [x, x.map(|four| four.map(|x: u8| x.wrapping_neg())), x, x]);
        x[2][i % 8] = [129; 4];
        if i >= 8 {
            w.as_flattened_mut().iter_mut().for_each(|w| *w = random.below(max_quant as usize + 1) as u8);
            let quants = x.as_flattened_mut().as_flattened_mut();
            quants.iter_mut().for_each(|x| *x = (random.below(255) as i32 - 127) as u8);
        }
        let scale = random.one_of(&[1, 63, 127, -128]);
        let product = |t: usize, l: usize, i: usize| {
            let of_byte = |b: usize| w[i][4 * l + b] as i32 * x[t][i][b].cast_signed() as i32;
            (0..4).map(of_byte).sum::<i32>()
        };
        let sum = |t: usize, l: usize| (0..8).map(|i| product(t, l, i)).sum::<i32>();
        let start = [0, 1, -1, 1 << 20];
        let expected: [[i32; 8]; 4] =
            std::array::from_fn(|t| std::array::from_fn(|l| start[t] + scale * sum(t, l)));
        for level in SimdLevel::available() {
            let found = level.run(ScaledDots { w: &w, max_quant, x: &x, scale });
            assert_eq!(found, expected, "quants of at most {max_quant} at {}", level.name());
        }
    }
}

/// Converts every binary16, eight at a time.
struct HalfConversion;

impl Kernel for HalfConversion {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<u32> {
        let mut out = Vec::new();
        for first in (0..=u16::MAX).step_by(8) {
            let halves: [u16; 8] = std::array::from_fn(|l| first + l as u16);
            out.extend(words(isa, isa.load_f16(&part(halves.map(u16::to_le_bytes).as_flattened()))));
            let ones = halves.map(|half| isa.f16(half.to_le_bytes()));
            out.extend(words(isa, isa.load_floats(&ones)));
        }
        out
    }
}

#[test]
fn every_binary16() {
    let expected = SimdLevel::available()[0].run(HalfConversion);
    for level in SimdLevel::available() {
        assert!(level.run(HalfConversion) == expected, "{}", level.name());
    }
}
