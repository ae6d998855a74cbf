//! Defines the GGUF block formats: how weights are stored, one file per format.
//!
//! `formats!` is the one table of formats: the [`Format`] enum, the names and sizes, dispatch and the CUDA lists
//! follow from it. A row is a whole number of blocks. This module knows no tensor and no thread. Next: `q8_0`, the
//! plainest format, then `q4_k` (256 weights), `iq4_xs` (a codebook), `iq3_s` (a codebook of vectors).

#![allow(clippy::needless_range_loop, reason = "plain loops over lanes and tokens keep vectors in registers")]

mod activation;
mod bf16;
pub(crate) mod block;
mod block32;
mod cast;
mod f16;
mod f32;
mod float_rows;
mod grid_block;
mod grid_neighbours;
mod grid_search;
mod grids;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_search;
mod iq4_xs;
mod k_scales;
mod minmax;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod refine;
mod scale_rounding;
mod scale_search;
mod superblock;
pub mod unsupported;

pub use activation::Activation;
pub(crate) use activation::{CopyBlocks, Int8Block, Q8x32};
pub(crate) use q8_0::Q8_0;

use crate::simd::{Isa, Kernel, SimdLevel};
use activation::ActivationBlock;
use block::{Block, Tile};
use std::ops::Range;

/// Expands the table of formats into [`Format`], its constants and `with_block!`.
macro_rules! formats {
    ($d:tt $($name:ident = $id:literal => $block:ty,)*) => {
        /// A stored format, with ggml's type id as discriminant (GGUF `tensor_info.type`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types, reason = "ggml's names")]
        #[allow(missing_docs, reason = "each format's file documents it")]
        #[repr(u32)]
        pub enum Format {
            $($name = $id,)*
        }

        impl Format {
            /// Every format, in the order of ggml's ids.
            pub const ALL: [Format; [$($id),*].len()] = [$(Format::$name),*];

            /// ggml's name, as `llama-quantize` prints it: `Q4_K`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Format::$name => stringify!($name),)*
                }
            }
        }

        /// Binds `$B` to the block type of a format.
        macro_rules! with_block {
            ($d format:expr, $d B:ident => $d body:expr) => {
                match $d format {
                    $(Format::$name => {
                        type $d B = $block;
                        $d body
                    })*
                }
            };
        }
    };
}

formats! { $
    F32 = 0 => f32::F32,
    F16 = 1 => f16::F16,
    Q4_0 = 2 => q4_0::Q4_0,
    Q4_1 = 3 => q4_1::Q4_1,
    Q5_0 = 6 => q5_0::Q5_0,
    Q5_1 = 7 => q5_1::Q5_1,
    Q8_0 = 8 => q8_0::Q8_0,
    Q2_K = 10 => q2_k::Q2K,
    Q3_K = 11 => q3_k::Q3K,
    Q4_K = 12 => q4_k::Q4K,
    Q5_K = 13 => q5_k::Q5K,
    Q6_K = 14 => q6_k::Q6K,
    IQ2_XXS = 16 => iq2_xxs::Iq2Xxs,
    IQ2_XS = 17 => iq2_xs::Iq2Xs,
    IQ3_XXS = 18 => iq3_xxs::Iq3Xxs,
    IQ1_S = 19 => iq1_s::Iq1S,
    IQ4_NL = 20 => iq4_nl::Iq4Nl,
    IQ3_S = 21 => iq3_s::Iq3S,
    IQ2_S = 22 => iq2_s::Iq2S,
    IQ4_XS = 23 => iq4_xs::Iq4Xs,
    IQ1_M = 29 => iq1_m::Iq1M,
    BF16 = 30 => bf16::BF16,
    MXFP4 = 39 => mxfp4::Mxfp4,
}

impl Format {
    /// The format with ggml's type id, if this crate reads it.
    pub fn from_ggml(id: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|f| *f as u32 == id)
    }

    /// The format with this name, case-insensitive.
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name))
    }

    /// Weights per block, of which a row holds a whole number: 1, 32 or 256.
    pub const fn block_len(self) -> usize {
        with_block!(self, B => B::LEN)
    }

    /// Bytes per block, as stored in the file.
    pub const fn block_bytes(self) -> usize {
        with_block!(self, B => size_of::<B>())
    }

    /// Bytes of a row of `cols` weights, or None where `cols` is not whole blocks or the size overflows.
    pub fn row_bytes(self, cols: u64) -> Option<u64> {
        let len = self.block_len() as u64;
        cols.is_multiple_of(len).then(|| (cols / len).checked_mul(self.block_bytes() as u64)).flatten()
    }

    /// The activation type that [`matmul_tile`] multiplies this format with (ggml's `vec_dot_type`).
    pub const fn activation(self) -> Activation {
        with_block!(self, B => <<B as Block>::X as ActivationBlock>::ACTIVATION)
    }

    /// The byte ranges of a block that a GPU stores as separate planes, quants first.
    pub(crate) const fn cuda_planes(self) -> &'static [Range<usize>] {
        with_block!(self, B => B::CUDA_PLANES)
    }

    /// Quantizes a row, byte for byte as ggml does.
    ///
    /// # Panics
    /// If `x` is not whole blocks, or `out` has another length.
    pub fn quantize_row(self, x: &[f32], out: &mut [u8]) {
        self.check(x.len(), out.len());
        with_block!(self, B => {
            SimdLevel::detect().run(Quantize::<B> { x, importance: None, out: cast::many_mut(out) });
        });
    }

    /// Quantizes one row so that errors weighted by `importance` are small. It has a finite number of at least 0 per
    /// column: the mean square of the activations that the column is multiplied with. Floats, Q8_0 and MXFP4 ignore it.
    ///
    /// # Panics
    /// If `x` is not whole blocks, or `importance` or `out` has another length.
    pub fn quantize_row_weighted(self, x: &[f32], importance: &[f32], out: &mut [u8]) {
        self.check(x.len(), out.len());
        assert_eq!(x.len(), importance.len(), "importance of each column");
        with_block!(self, B => {
            let importance = Some(importance);
            SimdLevel::detect().run(Quantize::<B> { x, importance, out: cast::many_mut(out) });
        });
    }

    /// Quantizes a row as [`Format::quantize_row_weighted`] does, or [`Format::quantize_row`] without `importance`, then refines the
    /// scales: the squared error of each block, weighted by `importance`, is at most that of ggml's block. This takes two to three times as
    /// long. Formats with codebooks and grids, floats, Q8_0 and MXFP4 are not refined.
    ///
    /// # Panics
    /// If `x` is not whole blocks, or `importance` or `out` has another length.
    pub fn quantize_row_refined(self, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        match importance {
            Some(importance) => self.quantize_row_weighted(x, importance, out),
            None => self.quantize_row(x, out),
        }
        let ones = if importance.is_none() { vec![1.0; x.len()] } else { Vec::new() };
        let weight = importance.unwrap_or(&ones);
        with_block!(self, B => {
            SimdLevel::detect().run(Refine::<B> { x, weight, blocks: cast::many_mut(out) });
        });
    }

    /// Dequantizes a row.
    ///
    /// # Panics
    /// If `out` is not whole blocks, or `bytes` has another length.
    pub fn dequantize_row(self, bytes: &[u8], out: &mut [f32]) {
        self.check(out.len(), bytes.len());
        with_block!(self, B => SimdLevel::detect().run(Dequantize::<B> { w: cast::many(bytes), out }));
    }

    fn check(self, cols: usize, bytes: usize) {
        assert_eq!(self.row_bytes(cols as u64), Some(bytes as u64), "bytes of {cols} x {}", self.name());
    }
}

/// `y[t][r] = W_r x_t`: stored rows times activation rows, both contiguous. `y` is `[tokens, rows]`.
///
/// `weights` is rows of `format` with `cols` weights each, `x` rows of `format.activation()`. The result for a token is
/// the same bits at every [`SimdLevel`] and for any number of tokens.
///
/// # Panics
/// If a length is wrong.
pub fn matmul_tile(level: SimdLevel, format: Format, weights: &[u8], cols: usize, x: &[u8], y: &mut [f32]) {
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

struct Quantize<'a, B> {
    x: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [B],
}

impl<B: Block> Kernel for Quantize<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.importance {
            Some(importance) => B::quantize_weighted(isa, self.x, importance, self.out),
            None => B::quantize_all(isa, self.x, self.out),
        }
    }
}

struct Refine<'a, B> {
    x: &'a [f32],
    weight: &'a [f32],
    blocks: &'a mut [B],
}

impl<B: Block> Kernel for Refine<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut refined = self.blocks.to_vec();
        B::refine_all(isa, self.x, self.weight, &mut refined);
        let rows = self.x.chunks_exact(B::LEN).zip(self.weight.chunks_exact(B::LEN));
        for ((block, refined), (x, weight)) in self.blocks.iter_mut().zip(refined).zip(rows) {
            if error(isa, &refined, x, weight) < error(isa, block, x, weight) {
                *block = refined;
            }
        }
    }
}

/// The weighted squared error of a block.
#[inline(always)]
fn error<I: Isa, B: Block>(isa: I, block: &B, x: &[f32], weight: &[f32]) -> f64 {
    let mut back = [0.0; 256];
    let back = &mut back[..B::LEN];
    block.dequantize(isa, back);
    let term = |((x, y), w): ((&f32, &f32), &f32)| f64::from(*w) * (f64::from(*x) - f64::from(*y)).powi(2);
    x.iter().zip(&*back).zip(weight).map(term).sum()
}

struct Dequantize<'a, B> {
    w: &'a [B],
    out: &'a mut [f32],
}

impl<B: Block> Kernel for Dequantize<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        B::dequantize_all(isa, self.w, self.out);
    }
}

#[cfg(test)]
mod tests {
    use super::Format;

    #[test]
    fn sizes_are_those_of_ggml() {
        let sizes = Format::ALL.map(|f| (f.block_len(), f.block_bytes()));
        let floats = [(1, 4), (1, 2)];
        let of_32 = [(32, 18), (32, 20), (32, 22), (32, 24), (32, 34)];
        let of_256 = [(256, 84), (256, 110), (256, 144), (256, 176), (256, 210)];
        let iq = [
            (256, 66),
            (256, 74),
            (256, 98),
            (256, 50),
            (32, 18),
            (256, 110),
            (256, 82),
            (256, 136),
            (256, 56),
        ];
        let others = [(1, 2), (32, 17)];
        assert_eq!(sizes.to_vec(), [&floats[..], &of_32, &of_256, &iq, &others].concat());
    }

    #[test]
    fn rows_are_whole_blocks() {
        for format in Format::ALL {
            let (len, bytes) = (format.block_len() as u64, format.block_bytes() as u64);
            assert_eq!(format.row_bytes(3 * len), Some(3 * bytes));
            assert_eq!(format.row_bytes(3 * len + 1).is_some(), len == 1);
            assert_eq!(format.row_bytes(u64::MAX / len * len).is_some(), bytes <= len);
        }
    }
}
