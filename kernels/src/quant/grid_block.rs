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
use super::superblock::{Offset, SuperBlock, SuperBlockPanel};
use crate::simd::{Isa, PanelSimd};

/// A format of 256 weights whose quants are entries of a grid.
pub(super) trait GridBlock: Block<X = Q8x256> {
    /// Groups with a scale each: 8 or 16.
    const SUBS: usize;
    /// The unit of d, a power of two.
    const UNIT: f32;
    /// How an entry becomes quants.
    const ENTRIES: Entries;
    /// Tokens from which matrix registers pay, see [`SuperBlock::MATRIX_TOKENS`].
    const MATRIX_TOKENS: usize = 16;

    /// The scales of the first sixteen weights of each sub-block of 32, and of the second: odd and below 32.
    fn scales<I: Isa>(&self, isa: I) -> [[u8; 8]; 2];
    /// The scale of the block, a binary16.
    fn d(&self) -> [u8; 2];
    /// What a lookup needs from memory: numbers of entries, and signs that the block does not store as bits.
    type Unpacked: Copy + Default;
    /// Unpacks the numbers of entries, and signs, for the lookups of a block.
    fn unpack<I: Isa>(&self, isa: I) -> Self::Unpacked;
    /// The entries of the weights, 32 at a time.
    fn entries<I: Isa>(&self, isa: I, unpacked: &Self::Unpacked) -> [I::Bytes; 8];
    /// The signs of the weights of each sub-block, a bit each, set where negative; unused with [`Entries::Biased`].
    fn signs<'a>(&'a self, unpacked: &'a Self::Unpacked) -> &'a [[u8; 4]; 8];
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

/// Sixteen bytes of a block, from byte `AT` on.
#[inline(always)]
pub(super) fn sixteen<B: Block, const AT: usize>(block: &B) -> &[i8; 16] {
    bytemuck::cast_ref::<[u8; 16], _>(bytemuck::bytes_of(block)[AT..].first_chunk().expect("inside a block"))
}

/// The quants of a block plus the bias, at most 128, 32 at a time.
#[inline(always)]
fn biased_quants<I: Isa, B: GridBlock>(isa: I, block: &B, unpacked: &B::Unpacked, out: &mut [[u8; 32]; 8]) {
    let (entries, signs) = (block.entries(isa, unpacked), block.signs(unpacked));
    for j in 0..8 {
        let mut quants = entries[j];
        if B::ENTRIES == Entries::Magnitudes {
            quants = isa.add_bytes(isa.negate_bits(quants, signs[j]), isa.splat_byte(B::ENTRIES.bias()));
        }
        isa.store_bytes(quants, &mut out[j]);
    }
}

impl<B: GridBlock> SuperBlock for B {
    const SUBS: usize = B::SUBS;
    const OFFSET: Offset = Offset::Zero(B::ENTRIES.bias() as i32);
    const MAX_QUANT: u8 = 2 * B::ENTRIES.bias();
    const UNIT: f32 = B::UNIT;
    const MATRIX_TOKENS: usize = B::MATRIX_TOKENS;

    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&B; 16], out: &mut SuperBlockPanel<I::Panel>) {
        let l = isa.panel();
        let mut quants = [[[0; 32]; 8]; 16];
        let mut unpacked = [B::Unpacked::default(); 16];
        unpack_all(isa, rows, &mut unpacked);
        for r in 0..I::Panel::MR {
            biased_quants(isa, rows[r], &unpacked[r], &mut quants[r]);
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
            bytes[r][..16].copy_from_slice(rows[r].scales(isa).as_flattened());
            bytes[r][16..18].copy_from_slice(&rows[r].d());
        }
        let head = l.transpose(&bytes.each_ref());
        for j in 0..8 {
            let first = l.unsigned_byte(head[j / 4], j % 4);
            let second = l.unsigned_byte(head[2 + j / 4], j % 4);
            out.pairs[j] = l.pair(first, second);
            if B::SUBS == 16 {
                [out.scales[2 * j], out.scales[2 * j + 1]] = [first, second];
            } else {
                out.scales[j] = first;
            }
        }
        out.d_and_min[0] = l.mul(l.half(head[4], 0), l.splat(B::UNIT));
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &B, x: &Q8x256) -> [I::Ints; 2] {
        [sums(isa, w, &w.unpack(isa), x), isa.zeros()]
    }

    #[inline(always)]
    fn sums_x8<I: Isa>(isa: I, w: &[B; 8], x: &[Q8x256; 8]) -> [[I::Ints; 8]; 2] {
        let mut unpacked = [B::Unpacked::default(); 8];
        unpack_all(isa, &w.each_ref(), &mut unpacked);
        let mut out = [isa.zeros(); 8];
        for i in 0..8 {
            out[i] = sums(isa, &w[i], &unpacked[i], &x[i]);
        }
        [out, [isa.zeros(); 8]]
    }

    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d(), [0; 2]]
    }
}

/// Unpacks several blocks into memory: a lookup that follows the unpacking at once waits for the store of its number.
#[inline(always)]
fn unpack_all<I: Isa, B: GridBlock, const R: usize>(isa: I, blocks: &[&B; R], out: &mut [B::Unpacked; R]) {
    for r in 0..R {
        out[r] = blocks[r].unpack(isa);
    }
    // Otherwise the compiler takes the numbers from vectors again: vpextrw, two micro-operations of one port.
    std::hint::black_box(out);
}

/// Partial sums of `sum_j sc_j (q_j . x_j)`.
#[inline(always)]
fn sums<I: Isa, B: GridBlock>(isa: I, w: &B, unpacked: &B::Unpacked, x: &Q8x256) -> I::Ints {
    let ([first, second], signs) = (w.scales(isa), w.signs(unpacked));
    let (entries, s) = (w.entries(isa, unpacked), isa.scales_of_halves(first, second));
    // Two accumulators halve the dependency chain.
    let mut acc = [isa.zeros(); 2];
    for j in 0..8 {
        let x = isa.bytes(&x.q[j]);
        let x = if B::ENTRIES == Entries::Magnitudes { isa.negate_bits(x, signs[j]) } else { x };
        acc[j % 2] = isa.dot_scaled(acc[j % 2], entries[j], x, s, j);
    }
    let total = isa.add_ints(acc[0], acc[1]);
    let Entries::Biased(bias) = B::ENTRIES else { return total };
    let mut in_turn = [0; 16];
    for j in 0..8 {
        [in_turn[2 * j], in_turn[2 * j + 1]] = [first[j], second[j]];
    }
    let offset = isa.mul_ints(isa.dot_sums_16(in_turn, &x.sums), isa.splat_int(bias as i32));
    isa.sub_ints(total, offset)
}

/// Dequantizes a block. Every product is exact in f32, so the order of the factors does not matter.
#[inline(always)]
pub(super) fn dequantize<I: Isa, B: GridBlock>(isa: I, block: &B, y: &mut [f32]) {
    let (d, scales) = (isa.f16(block.d()) * B::UNIT, block.scales(isa));
    let mut quants = [[0; 32]; 8];
    biased_quants(isa, block, &block.unpack(isa), &mut quants);
    for (i, (y, q)) in y.iter_mut().zip(quants.as_flattened()).enumerate() {
        *y = d * scales[i / 16 % 2][i / 32] as f32 * (*q as i32 - B::ENTRIES.bias() as i32) as f32;
    }
}
