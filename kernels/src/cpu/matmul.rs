//! Multiplies stored weights with activations: reads blocks straight from the mapped file, rows split over threads.
//!
//! Activations are quantized once to the format's activation type (`quant::Activation`). A chunk of weight rows is read
//! from memory once and multiplied with all tokens while it is in cache. An output is one dot product whose summation
//! order depends on the format alone, not on the batch or the threads. Decode reads every weight once and is
//! memory-bound. Next: `crate::matmul`, then `experts`.

use super::memory::{Buffer, Tensor};
use super::pool::Parts;
use super::{Cpu, Weight};
use crate::matmul::gemv::PREFETCH_BYTES;
use crate::quant::{self, Activation};
use crate::simd::{Isa, Kernel};

/// Weight rows and tokens per tile: its results (16 KiB) and activations stay in L1 and L2.
pub(super) const TILE: usize = 64;
/// Results of a tile, `[tokens, rows]`.
pub(super) type ResultTile = [f32; TILE * TILE];
/// Cost of starting a chunk in decode, in bytes of memory traffic: its first cache lines are not prefetched, and the
/// hardware prefetcher has not detected the stream yet.
const CHUNK_STARTUP_BYTES: usize = 14 * 1024;

/// Contiguous activation rows of one activation type.
pub(super) enum Activations<'a> {
    Floats(&'a [f32]),
    Blocks(Buffer, usize),
}

impl Activations<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Activations::Floats(x) => bytemuck::cast_slice(x),
            Activations::Blocks(buffer, bytes) => &buffer.values_ref()[..*bytes],
        }
    }
}

/// Quantizes rows of `cols` values.
pub(super) fn activations<'a>(cpu: &Cpu, form: Activation, x: &'a [f32], cols: usize) -> Activations<'a> {
    if form == Activation::F32 || cols == 0 {
        return Activations::Floats(x);
    }
    let (rows, row_bytes) = (x.len() / cols, form.row_bytes(cols));
    let mut buffer = cpu.buffers.bytes(rows * row_bytes);
    let at_once = (8 * 1024 / cols).max(1);
    cpu.pool.for_chunks(&mut buffer.values_mut()[..rows * row_bytes], at_once * row_bytes, |i, out| {
        let x = &x[i * at_once * cols..][..out.len() / row_bytes * cols];
        form.quantize_row(cpu.level, x, out);
    });
    Activations::Blocks(buffer, rows * row_bytes)
}

/// `out[t][r] = W_r x_t` for at most `TILE` rows and tokens.
pub(super) fn tile<'a>(cpu: &Cpu, w: &Weight, rows: &[u8], x: &[u8], out: &'a mut ResultTile) -> &'a [f32] {
    let tokens = x.len() / w.format.activation().row_bytes(w.cols);
    let y = &mut out[..tokens * (rows.len() / w.row_bytes)];
    quant::matmul_tile(cpu.level, w.format, rows, w.cols, x, y);
    y
}

/// Rows of a GEMM panel, which prefetches the next panel.
const PANEL_ROWS: usize = 16;
/// Prefetches the start of a chunk of rows, which no earlier chunk has prefetched.
pub(super) fn prefetch_rows(cpu: &Cpu, w: &Weight, rows: &[u8], tokens: usize) {
    let first = if tokens == 1 { PREFETCH_BYTES } else { PANEL_ROWS * w.row_bytes };
    cpu.level.run(PrefetchRows(&rows[..rows.len().min(first)]));
}

struct PrefetchRows<'a>(&'a [u8]);

impl Kernel for PrefetchRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for line in self.0.as_chunks::<64>().0 {
            isa.prefetch_l2(line, 0);
        }
    }
}

/// Multiplies rows of matrix `m` with all tokens of `x`; passes results to `put(token, first_row, values)`.
fn multiply_rows(
    cpu: &Cpu,
    w: &Weight,
    m: usize,
    rows: std::ops::Range<usize>,
    x: &[u8],
    put: impl Fn(usize, usize, &[f32]),
) {
    let mut out = [0.0; TILE * TILE];
    let x_bytes = w.format.activation().row_bytes(w.cols);
    let (all, at_once) = (rows, if x.len() > x_bytes { TILE } else { TILE * TILE });
    for first in all.clone().step_by(at_once) {
        let rows = first..all.end.min(first + at_once);
        let weights = w.matrix_rows(m, rows.clone());
        if x.len() > x_bytes || rows.start == all.start {
            prefetch_rows(cpu, w, weights, x.len() / x_bytes.max(1));
        }
        for (i, x) in x.chunks(TILE * x_bytes).enumerate() {
            let y = &mut out[..x.len() / x_bytes * rows.len()];
            quant::matmul_tile(cpu.level, w.format, weights, w.cols, x, y);
            y.chunks_exact(rows.len()).enumerate().for_each(|(t, y)| put(i * TILE + t, first, y));
        }
    }
}

/// Chunk size in bytes for decode, when all threads together read `bytes`: balances the start-up cost of chunks with
/// the idle time at the end.
pub(super) fn chunk_bytes(bytes: usize) -> usize {
    (CHUNK_STARTUP_BYTES * bytes).isqrt()
}

/// Rows per chunk, a multiple of 8: four chunks per thread for balance, at most [`chunk_bytes`] for one token and
/// [`TILE`] rows for more.
fn chunk_rows(cpu: &Cpu, w: &Weight, all_rows: usize, tokens: usize) -> usize {
    let (even, row) = (all_rows.div_ceil(cpu.pool.threads() * 4), w.row_bytes.max(1));
    let most = if tokens == 1 { chunk_bytes(all_rows * row) / row } else { TILE };
    even.clamp(8, most.max(8)).next_multiple_of(8)
}

/// y_i = x W_i^T for several weights in one parallel region.
pub(super) fn matmuls<const N: usize>(cpu: &Cpu, w: [&Weight; N], x: &Tensor) -> [Tensor; N] {
    for w in w {
        assert_eq!((w.count, w.cols), (1, x.cols), "a product: matrices, columns");
    }
    let mut y = w.map(|w| cpu.buffers.tensor(x.rows, w.rows));
    if x.cols == 0 || x.rows == 0 {
        y.iter_mut().for_each(|y| y.values_mut().fill(0.0));
        return y;
    }
    let forms = [Activation::F32, Activation::Q8x32, Activation::Q8x256];
    let prepared = forms.map(|form| {
        let wanted = w.iter().any(|w| w.format.activation() == form);
        wanted.then(|| activations(cpu, form, x.values(), x.cols))
    });
    let of = |w: &Weight| {
        let form = forms.iter().position(|form| *form == w.format.activation());
        prepared[form.expect("all forms are listed")].as_ref().expect("prepared above").bytes()
    };
    let all_rows = w.iter().map(|w| w.rows).sum();
    let rows = w.map(|w| chunk_rows(cpu, w, all_rows, x.rows));
    let chunks: [usize; N] = std::array::from_fn(|i| w[i].rows.div_ceil(rows[i]));
    let parts = y.each_mut().map(|y| Parts::new(y.values_mut()));
    cpu.pool.parallel_for(chunks.iter().sum(), |mut chunk| {
        let mut i = 0;
        while chunk >= chunks[i] {
            chunk -= chunks[i];
            i += 1;
        }
        let range = chunk * rows[i]..w[i].rows.min((chunk + 1) * rows[i]);
        multiply_rows(cpu, w[i], 0, range, of(w[i]), |t, first, values| {
            let at = t * w[i].rows + first;
            // SAFETY: each weight row belongs to one chunk, and its result for a token to that row.
            unsafe { parts[i].get(at..at + values.len()) }.copy_from_slice(values);
        });
    });
    y
}

/// Per head: [W_h x_h[..cols] | x_h[cols..]].
pub(super) fn matmul_heads(cpu: &Cpu, w: &Weight, x: &Tensor) -> Tensor {
    assert!(w.count > 0 && x.cols.is_multiple_of(w.count), "{} columns in {} heads", x.cols, w.count);
    let width = x.cols / w.count;
    assert!(w.cols <= width, "heads of {width} columns, matrices of {}", w.cols);
    let (rest, tokens) = (width - w.cols, x.rows);
    let y_width = w.rows + rest;
    let mut y = cpu.buffers.tensor(tokens, w.count * y_width);
    let form = w.format.activation();
    let row_bytes = form.row_bytes(w.cols);
    // Head-major, so that a head's tokens are contiguous.
    let mut heads = cpu.buffers.bytes(w.count * tokens * row_bytes);
    let heads = Parts::new(&mut heads.values_mut::<u8>()[..w.count * tokens * row_bytes]);
    let parts = Parts::new(y.values_mut());
    cpu.pool.parallel_for(w.count, |h| {
        let of = |t: usize| &x.row(t)[h * width..][..width];
        // SAFETY: this head's rows, and each head is one chunk.
        let prepared = unsafe { heads.get(h * tokens * row_bytes..(h + 1) * tokens * row_bytes) };
        for (t, out) in prepared.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            form.quantize_row(cpu.level, &of(t)[..w.cols], out);
        }
        // SAFETY: columns of this head, and each head is one chunk.
        let out = |t: usize, from: usize, len: usize| unsafe {
            let at = (t * w.count + h) * y_width + from;
            parts.get(at..at + len)
        };
        multiply_rows(cpu, w, h, 0..w.rows, prepared, |t, first, values| {
            out(t, first, values.len()).copy_from_slice(values);
        });
        (0..tokens).for_each(|t| out(t, w.rows, rest).copy_from_slice(&of(t)[w.cols..]));
    });
    y
}

/// Dequantizes one row of a table per id, `[ids, cols]`.
pub(super) fn embed(cpu: &Cpu, table: &Weight, ids: &[u32]) -> Tensor {
    let mut y = cpu.buffers.tensor(ids.len(), table.cols);
    cpu.pool.for_chunks(y.values_mut(), table.cols, |t, y| {
        let id = ids[t] as usize;
        assert!(id < table.rows, "row {id} of a table of {}", table.rows);
        table.format.dequantize_row(table.matrix_rows(0, id..id + 1), y);
    });
    y
}
