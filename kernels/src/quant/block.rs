//! Rows of blocks: what a format has to say about one block, and the entry points that make rows of it.
//!
//! A product with stored rows is dispatched once: the loop over rows is inside the function that is compiled for
//! the instruction set, so all of it is one loop. It knows no format but in [`with_block`].

use super::{Activation, Format, cast};
use super::{bf16::BF16, f16::F16, f32::F32, mxfp4::Mxfp4};
use super::{iq4_nl::Iq4Nl, iq4_xs::Iq4Xs, q4_0::Q4_0, q4_1::Q4_1, q5_0::Q5_0, q5_1::Q5_1, q8_0::Q8_0};
use super::{q2_k::Q2K, q3_k::Q3K, q4_k::Q4K, q5_k::Q5K, q6_k::Q6K};
use crate::cpu::isa::{Isa, Kernel, Level};
use bytemuck::Pod;

/// How far before its use a block of weights is asked for when one token meets a row: bytes.
const AHEAD: usize = 4096;

/// One block of a format.
pub(super) trait Block: Pod {
    /// The activations that meet one block.
    type X: Pod;
    /// Weights in a block.
    const LEN: usize;

    /// The block of `LEN` weights, as ggml would make it.
    fn quantise<I: Isa>(isa: I, x: &[f32]) -> Self;
    /// The `LEN` weights of a block.
    fn dequantise<I: Isa>(&self, isa: I, y: &mut [f32]);

    /// Many blocks, for a format whose search is faster over several at once.
    #[inline(always)]
    fn quantise_all<I: Isa>(isa: I, x: &[f32], out: &mut [Self]) {
        for (x, out) in x.chunks_exact(Self::LEN).zip(out) {
            *out = Self::quantise(isa, x);
        }
    }

    /// Many blocks, for a format of which several are faster at once.
    #[inline(always)]
    fn dequantise_all<I: Isa>(isa: I, w: &[Self], out: &mut [f32]) {
        for (w, out) in w.iter().zip(out.chunks_exact_mut(Self::LEN)) {
            w.dequantise(isa, out);
        }
    }

    /// All rows times all tokens.
    #[inline(always)]
    fn product<I: Isa>(isa: I, tile: &mut Tile<'_, Self>) {
        tile.row_by_row(isa);
    }

    /// Adds the products of a block and the activations of `T` tokens to eight partial sums each. The block is
    /// unpacked once; what a token gets does not depend on `T`.
    #[inline(always)]
    fn accumulate<I: Isa, const T: usize>(_: I, _: &mut [I::Floats; T], _: &Self, _: [&Self::X; T]) {}

    /// A row times the activations of `T` tokens. Even and odd blocks have their own sums, so that one does not
    /// wait for the other.
    #[inline(always)]
    fn dot<I: Isa, const T: usize>(isa: I, w: &[Self], x: [&[Self::X]; T]) -> [f32; T] {
        let mut acc = [[isa.splat(0.0); T]; 2];
        let (pairs, rest) = w.as_chunks::<2>();
        for (i, [first, second]) in pairs.iter().enumerate() {
            if T == 1 {
                isa.prefetch(&pairs[i], AHEAD);
            }
            Self::accumulate(isa, &mut acc[0], first, nth(&x, 2 * i));
            Self::accumulate(isa, &mut acc[1], second, nth(&x, 2 * i + 1));
        }
        if let [last] = rest {
            Self::accumulate(isa, &mut acc[0], last, nth(&x, w.len() - 1));
        }
        let mut sums = [0.0; T];
        for t in 0..T {
            sums[t] = isa.total(isa.add(acc[0][t], acc[1][t]));
        }
        sums
    }
}

/// Block i of each token.
#[inline(always)]
fn nth<'a, X, const T: usize>(x: &[&'a [X]; T], i: usize) -> [&'a X; T] {
    let mut blocks = [&x[0][i]; T];
    for t in 1..T {
        blocks[t] = &x[t][i];
    }
    blocks
}

/// Binds `$B` to the block type of a format.
macro_rules! with_block {
    ($format:expr, $B:ident => $body:expr) => {
        match $format {
            Format::F32 => {
                type $B = F32;
                $body
            }
            Format::F16 => {
                type $B = F16;
                $body
            }
            Format::BF16 => {
                type $B = BF16;
                $body
            }
            Format::Q4_0 => {
                type $B = Q4_0;
                $body
            }
            Format::Q4_1 => {
                type $B = Q4_1;
                $body
            }
            Format::Q5_0 => {
                type $B = Q5_0;
                $body
            }
            Format::Q5_1 => {
                type $B = Q5_1;
                $body
            }
            Format::Q8_0 => {
                type $B = Q8_0;
                $body
            }
            Format::Q2_K => {
                type $B = Q2K;
                $body
            }
            Format::Q3_K => {
                type $B = Q3K;
                $body
            }
            Format::Q4_K => {
                type $B = Q4K;
                $body
            }
            Format::Q5_K => {
                type $B = Q5K;
                $body
            }
            Format::Q6_K => {
                type $B = Q6K;
                $body
            }
            Format::IQ4_NL => {
                type $B = Iq4Nl;
                $body
            }
            Format::IQ4_XS => {
                type $B = Iq4Xs;
                $body
            }
            Format::MXFP4 => {
                type $B = Mxfp4;
                $body
            }
        }
    };
}

impl Format {
    /// Stores a row as ggml's own quantiser would, byte for byte.
    ///
    /// # Panics
    /// If `x` is not whole blocks, or `out` is not as long as they are.
    pub fn quantise_row(self, x: &[f32], out: &mut [u8]) {
        self.check(x.len(), out.len());
        with_block!(self, B => Level::detect().run(Quantise::<B> { x, out: cast::many_mut(out) }));
    }

    /// Reads a row.
    ///
    /// # Panics
    /// If `out` is not whole blocks, or `bytes` is not as long as they are.
    pub fn dequantise_row(self, bytes: &[u8], out: &mut [f32]) {
        self.check(out.len(), bytes.len());
        with_block!(self, B => Level::detect().run(Dequantise::<B> { w: cast::many(bytes), out }));
    }

    /// The form in which activations meet this format in [`dot_rows`].
    pub const fn activation(self) -> Activation {
        match self.block_len() {
            1 => Activation::F32,
            32 => Activation::Q8x32,
            _ => Activation::Q8x256,
        }
    }

    fn check(self, cols: usize, bytes: usize) {
        assert_eq!(self.row_bytes(cols as u64), Some(bytes as u64), "bytes of {cols} x {}", self.name());
    }
}

/// y_r = W_r x for `y.len()` stored rows of `cols` weights and one activation row.
///
/// `weights` is `y.len()` rows of `format`, `x` one row of `format.activation()`. The same bits at every level.
///
/// # Panics
/// If a length is wrong.
#[inline]
pub fn dot_rows(level: Level, format: Format, weights: &[u8], cols: usize, x: &[u8], y: &mut [f32]) {
    assert_eq!(x.len(), format.activation().row_bytes(cols), "bytes of {cols} activations");
    dot_tile(level, format, weights, cols, x, y);
}

/// `y[t][r] = W_r x_t`: the same rows times several activation rows, back to back. `y` is `[tokens, rows]`.
///
/// A token's result is that of [`dot_rows`], bit for bit, however many tokens there are.
///
/// # Panics
/// If a length is wrong.
pub fn dot_tile(level: Level, format: Format, weights: &[u8], cols: usize, x: &[u8], y: &mut [f32]) {
    if cols == 0 || x.is_empty() {
        assert!(weights.is_empty() || x.is_empty() && y.is_empty(), "no columns or no tokens");
        return y.fill(0.0);
    }
    let (x_bytes, w_bytes) = (format.activation().row_bytes(cols), format.row_bytes(cols as u64));
    let w_bytes = w_bytes.expect("whole blocks") as usize;
    let (tokens, rows) = (x.len() / x_bytes, weights.len() / w_bytes);
    assert_eq!(x.len(), tokens * x_bytes, "bytes of {tokens} x {cols} activations");
    assert_eq!(weights.len(), rows * w_bytes, "bytes of {rows} x {cols} {}", format.name());
    assert_eq!(y.len(), tokens * rows, "{tokens} x {rows} results");
    if rows == 0 {
        return;
    }
    with_block!(format, B => {
        let blocks = cols / B::LEN;
        level.run(Tile::<B> { w: cast::many(weights), x: cast::many(x), blocks, rows, y });
    });
}

struct Quantise<'a, B> {
    x: &'a [f32],
    out: &'a mut [B],
}

impl<B: Block> Kernel for Quantise<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        B::quantise_all(isa, self.x, self.out);
    }
}

struct Dequantise<'a, B> {
    w: &'a [B],
    out: &'a mut [f32],
}

impl<B: Block> Kernel for Dequantise<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        B::dequantise_all(isa, self.w, self.out);
    }
}

/// Some rows and tokens.
pub(super) struct Tile<'a, B: Block> {
    /// Row after row.
    pub(super) w: &'a [B],
    /// Token after token.
    pub(super) x: &'a [B::X],
    /// Blocks of a row, at least one.
    pub(super) blocks: usize,
    pub(super) rows: usize,
    /// `[tokens, rows]`
    pub(super) y: &'a mut [f32],
}

impl<B: Block> Tile<'_, B> {
    pub(super) fn tokens(&self) -> usize {
        self.x.len() / self.blocks
    }

    /// All rows times `T` tokens from token `first` on.
    #[inline(always)]
    fn group<I: Isa, const T: usize>(&mut self, isa: I, first: usize) {
        let (blocks, rows) = (self.blocks, self.rows);
        let mut x = [&self.x[first * blocks..][..blocks]; T];
        for t in 1..T {
            x[t] = &self.x[(first + t) * blocks..][..blocks];
        }
        let y = &mut self.y[first * rows..][..T * rows];
        for (row, w) in self.w.chunks_exact(blocks).enumerate() {
            let sums = B::dot(isa, w, x);
            for t in 0..T {
                y[t * rows + row] = sums[t];
            }
        }
    }
}

impl<B: Block> Tile<'_, B> {
    /// A few tokens stay in the nearest cache while all rows meet them: two, of floats, which have nothing to unpack and
    /// four sums a token.
    #[inline(always)]
    fn row_by_row<I: Isa>(&mut self, isa: I) {
        let tokens = self.tokens();
        let mut first = 0;
        while first < tokens {
            if tokens - first >= 2 {
                self.group::<I, 2>(isa, first);
                first += 2;
            } else {
                self.group::<I, 1>(isa, first);
                first += 1;
            }
        }
    }
}

impl<B: Block> Kernel for Tile<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        B::product(isa, &mut self);
    }
}
