//! Implements the products of formats whose weights come from a codebook of vectors (a grid): IQ1, IQ2 and IQ3.
//!
//! ```text
//! w_i = UNIT d sc_j q_i          q_i: the codebook's value with its sign;  sc_j: odd, 1..32, one per 16 or 32 weights
//! ```
//! GEMV looks up 32 weights at a time; the dot product runs over their magnitudes, and the signs move to the activations.
//! GEMM looks up the rows of a panel one after the other, adds a bias and transposes them, once per batch of tokens: from
//! there on the panel is that of the other formats with 256 weights. Next: `iq3_s`, the plainest of these formats.

use super::activation::Q8x256;
use super::block::Block;
use super::superblock::{Offset, SuperBlock, SuperBlockPanel, decode_16_scales};
use crate::simd::{Isa, PanelSimd};

/// A format of 256 weights whose quants are entries of a grid.
pub(super) trait GridBlock: Block<X = Q8x256> {
    /// Groups with a scale each: 8 or 16.
    const SUBS: usize;
    /// The unit of d, a power of two.
    const UNIT: f32;
    /// How an entry becomes quants.
    const ENTRIES: Entries;

    /// The scales, odd and below 32: sixteen, or eight and then zeros.
    fn scales(&self) -> [u8; 16];
    /// The scale of the block, a binary16.
    fn d(&self) -> [u8; 2];
    /// The signs of the weights of each sub-block, a bit each, set where negative; unused with [`Entries::Biased`].
    fn signs(&self) -> [[u8; 4]; 8];
    /// The entries of the 32 weights of sub-block j.
    fn entries<I: Isa>(&self, isa: I, j: usize) -> I::Bytes;
    /// The block with this d and these parts.
    fn from_coded(d: [u8; 2], coded: &Coded) -> Self;
}

/// The parts of a block before they are packed.
pub(super) struct Coded {
    /// Number of the entry of each vector: 32 of eight weights, or 64 of four.
    pub(super) entries: [u16; 64],
    /// Signs of eight weights each, set where negative; or bit 0, the sign of the offset of eight weights.
    pub(super) signs: [u8; 32],
    /// The scale sc of 2 sc + 1, for each sub-block.
    pub(super) scales: [u8; 16],
}

/// How entries of a grid become quants.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Entries {
    /// Entries are magnitudes of at most 62 and have signs.
    Magnitudes,
    /// Entries are quants plus this number.
    Biased(u8),
}

impl Entries {
    /// What a panel's unsigned quants are too large by.
    const fn bias(self) -> u8 {
        match self {
            Entries::Magnitudes => 64,
            Entries::Biased(bias) => bias,
        }
    }
}

/// The quants of a block plus the bias, at most 128, 32 at a time.
#[inline(always)]
fn biased_quants<I: Isa, B: GridBlock>(isa: I, block: &B, out: &mut [[u8; 32]; 8]) {
    let signs = block.signs();
    for j in 0..8 {
        let mut quants = block.entries(isa, j);
        if B::ENTRIES == Entries::Magnitudes {
            quants = isa.add_bytes(isa.negate_bits(quants, signs[j]), isa.splat_byte(B::ENTRIES.bias()));
        }
        isa.store_bytes(quants, &mut out[j]);
    }
}

/// The scales as [`Isa::dot_scaled`] takes them.
#[inline(always)]
fn isa_scales<I: Isa, B: GridBlock>(isa: I, scales: [u8; 16]) -> I::Scales {
    if B::SUBS == 16 { isa.scales_16(scales) } else { isa.scales_8(*scales.first_chunk().expect("16 bytes")) }
}

impl<B: GridBlock> SuperBlock for B {
    const SUBS: usize = B::SUBS;
    const OFFSET: Offset = Offset::Zero(B::ENTRIES.bias() as i32);
    const UNIT: f32 = B::UNIT;

    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&B; 16], out: &mut SuperBlockPanel<I::Panel>) {
        let l = isa.panel();
        let mut quants = [[[0; 32]; 8]; 16];
        for r in 0..I::Panel::MR {
            biased_quants(isa, rows[r], &mut quants[r]);
        }
        for j in 0..8 {
            let mut of_rows = [&[0; 32]; 16];
            for r in 0..16 {
                of_rows[r] = &quants[r][j];
            }
            let q = l.transpose(&of_rows);
            out.quants[8 * j..8 * j + 8].copy_from_slice(&q);
        }
        let mut bytes = [[0; 32]; 16];
        for r in 0..I::Panel::MR {
            bytes[r][..16].copy_from_slice(&rows[r].scales());
            bytes[r][16..18].copy_from_slice(&rows[r].d());
        }
        let head = l.transpose(&bytes.each_ref());
        if B::SUBS == 16 {
            decode_16_scales(l, [head[0], head[1], head[2], head[3]], false, out);
        } else {
            for j in 0..8 {
                let sc = l.unsigned_byte(head[j / 4], j % 4);
                out.scales[j] = sc;
                out.pairs[j] = l.pair(sc, sc); // one scale for two sums of sixteen
            }
        }
        out.d_and_min[0] = l.mul(l.half(head[4], 0), l.splat(B::UNIT));
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &B, x: &Q8x256) -> [I::Ints; 2] {
        let (scales, signs) = (w.scales(), w.signs());
        let s = isa_scales::<I, B>(isa, scales);
        // Two accumulators halve the dependency chain.
        let mut acc = [isa.zeros(); 2];
        for j in 0..8 {
            let (entries, x) = (w.entries(isa, j), isa.bytes(&x.q[j]));
            let x = if B::ENTRIES == Entries::Magnitudes { isa.negate_bits(x, signs[j]) } else { x };
            acc[j % 2] = isa.dot_scaled(acc[j % 2], entries, x, s, j);
        }
        let total = isa.add_ints(acc[0], acc[1]);
        let Entries::Biased(bias) = B::ENTRIES else { return [total, isa.zeros()] };
        let of_sixteen = if B::SUBS == 16 { scales } else { each_twice(scales) };
        let offset = isa.mul_ints(isa.dot_sums_16(of_sixteen, &x.sums), isa.splat_int(bias as i32));
        [isa.sub_ints(total, offset), isa.zeros()]
    }

    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d(), [0; 2]]
    }
}

/// The first eight bytes, each of them twice.
#[inline(always)]
fn each_twice(v: [u8; 16]) -> [u8; 16] {
    let mut v = u128::from_le_bytes(v) & u64::MAX as u128;
    v = (v | v << 32) & 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;
    v = (v | v << 16) & 0x0000_ffff_0000_ffff_0000_ffff_0000_ffff;
    v = (v | v << 8) & 0x00ff_00ff_00ff_00ff_00ff_00ff_00ff_00ff;
    (v | v << 8).to_le_bytes()
}

/// Dequantizes a block. Every product is exact in f32, so the order of the factors does not matter.
#[inline(always)]
pub(super) fn dequantize<I: Isa, B: GridBlock>(isa: I, block: &B, y: &mut [f32]) {
    let (d, scales) = (isa.f16(block.d()) * B::UNIT, block.scales());
    let mut quants = [[0; 32]; 8];
    biased_quants(isa, block, &mut quants);
    let len = 256 / B::SUBS;
    for (i, (y, q)) in y.iter_mut().zip(quants.as_flattened()).enumerate() {
        *y = d * scales[i / len] as f32 * (*q as i32 - B::ENTRIES.bias() as i32) as f32;
    }
}
