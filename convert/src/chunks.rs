//! Splits a conversion into chunks of rows, each of which is read, decoded, transformed, checked and quantized.
//!
//! Chunks follow the order of the output's bytes and depend on the plan alone, so an interrupted conversion can resume
//! between two of them. Next: `run`, which processes them in parallel.

use crate::error::{Error, Result};
use crate::importance::Importance;
use crate::names::{RowRange, Transform};
use crate::plan::{Planned, scales};
use crate::source::{Coding, Scales, Source, f8_e4m3};
use kernels::quant::Format;
use rayon::prelude::*;
use std::sync::{Arc, Mutex};

/// Largest number of values in a chunk of several rows: 16 MiB of F32.
const CHUNK_VALUES: u64 = 4 << 20;
/// Smallest number of values per parallel task.
const SHARE_VALUES: usize = 32 << 10;

/// A run of rows of one part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chunk<'a> {
    /// Index of the output tensor in the plan.
    pub tensor: usize,
    /// The part it belongs to.
    pub part: &'a RowRange,
    /// First row to read, counted in the source tensor.
    pub first: u64,
    /// Number of rows to read.
    pub rows: u64,
    /// Byte offset in the output tensor.
    pub offset: u64,
    /// Size in bytes in the output.
    pub bytes: u64,
}

/// A chunk with its source rows in memory.
#[derive(Debug)]
pub struct LoadedChunk<'a> {
    /// The chunk that these rows belong to.
    pub chunk: Chunk<'a>,
    /// Source rows in their stored encoding.
    pub stored: Vec<u8>,
    /// Encoding of `stored`, as the input has it.
    coding: Coding,
    scales: Option<Arc<Scales>>,
}

/// All chunks of a plan, in the order of the output.
pub fn chunks(plan: &[Planned]) -> impl Iterator<Item = Chunk<'_>> {
    plan.iter().enumerate().flat_map(|(tensor, planned)| {
        let row_bytes = planned.format.row_bytes(planned.shape[0]).expect("checked by the plan");
        let mut offset = 0;
        planned.parts.iter().flat_map(move |part| {
            let step = match part.map {
                Transform::Transpose => part.rows.max(1),
                _ => (CHUNK_VALUES / part.cols()).max(1),
            };
            let cuts = (part.first..part.first + part.rows).step_by(step as usize);
            let made: Vec<_> = cuts
                .map(|first| {
                    let rows = step.min(part.first + part.rows - first);
                    let out_rows = if part.map == Transform::Transpose { part.cols() } else { rows };
                    let bytes = out_rows * row_bytes;
                    offset += bytes;
                    Chunk { tensor, part, first, rows, offset: offset - bytes, bytes }
                })
                .collect();
            made
        })
    })
}

/// Buffers that were used and may be again: fresh ones cost a page fault every 4 KiB, a quarter of the CPU time
/// where nothing is quantized.
#[derive(Default)]
pub struct ChunkBuffers(Mutex<Vec<Vec<u8>>>);

impl ChunkBuffers {
    /// A buffer of this length with anything in it.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.0.lock().expect("no panic while the lock is held").pop().unwrap_or_default();
        buffer.resize(bytes, 0);
        buffer
    }

    /// Returns a buffer for reuse by [`ChunkBuffers::take`].
    pub fn give(&self, buffer: Vec<u8>) {
        self.0.lock().expect("no panic while the lock is held").push(buffer);
    }
}

/// Reads chunks in order; caches the scales of the last FP8 tensor.
pub struct ChunkLoader<'a> {
    source: &'a Source,
    buffers: &'a ChunkBuffers,
    fp8_block: [u64; 2],
    last: Option<(&'a str, Option<Arc<Scales>>)>,
}

impl<'a> ChunkLoader<'a> {
    /// Reads from `source`, whose FP8 scales cover blocks of this size.
    pub fn new(source: &'a Source, fp8_block: [u64; 2], buffers: &'a ChunkBuffers) -> ChunkLoader<'a> {
        ChunkLoader { source, buffers, fp8_block, last: None }
    }

    /// Reads a chunk.
    ///
    /// # Errors
    /// An I/O error, or invalid FP8 scales.
    pub fn load(&mut self, chunk: Chunk<'a>) -> Result<LoadedChunk<'a>> {
        let part = chunk.part;
        let tensor = &self.source.tensors[&part.source];
        let scales = match &self.last {
            Some((name, scales)) if *name == part.source => scales.clone(),
            _ => scales(part, tensor, self.source, self.fp8_block)?.map(Arc::new),
        };
        self.last = Some((&part.source, scales.clone()));
        let rows = chunk.first..chunk.first + chunk.rows;
        let stored = self.source.rows(tensor, part.cols(), rows, |bytes| self.buffers.take(bytes))?;
        Ok(LoadedChunk { chunk, stored, coding: tensor.coding.clone(), scales })
    }
}

/// How quantizers search the scales of blocks.
#[derive(Clone, Copy)]
pub struct ScaleSearch<'a> {
    /// The importance of columns; all are equal without.
    pub importance: Option<&'a Importance>,
    /// Refine the scales after ggml's search.
    pub refine: bool,
}

/// Encodes a chunk in the output's format on the threads of the current rayon pool. `path` names the input in messages.
///
/// # Errors
/// A weight that is not finite or too large for the format.
pub fn encode(
    loaded: LoadedChunk,
    (planned, search): (&Planned, ScaleSearch<'_>),
    buffers: &ChunkBuffers,
    path: impl Fn() -> String + Sync,
) -> Result<Vec<u8>> {
    let part = loaded.chunk.part;
    let format = planned.format;
    let untouched = loaded.coding == Coding::Blocks(format) && part.map == Transform::Copy;
    if untouched && format.block_len() > 1 {
        return Ok(loaded.stored);
    }
    let whole = match part.map {
        Transform::Transpose => Some(transposed(&loaded)),
        _ => None,
    };
    let cols = planned.shape[0] as usize;
    let row_bytes = format.row_bytes(planned.shape[0]).expect("checked by the plan") as usize;
    let first = loaded.chunk.offset as usize / row_bytes;
    let mut out = buffers.take(loaded.chunk.bytes as usize);
    let share = (SHARE_VALUES / cols).max(1);
    out.par_chunks_mut(share * row_bytes).enumerate().try_for_each(|(i, rows)| {
        let mut values = vec![0.0; cols];
        for (row, out) in (i * share..).zip(rows.chunks_exact_mut(row_bytes)) {
            match &whole {
                Some(all) => values.copy_from_slice(&all[row * cols..][..cols]),
                None => loaded.decode(row, &mut values),
            }
            if let Transform::Exp | Transform::NegExp = part.map {
                let sign = if part.map == Transform::Exp { 1.0 } else { -1.0 };
                // Through f64: the nearest f32, whatever the platform's expf does.
                values.iter_mut().for_each(|x| *x = (sign * f64::from(*x).exp()) as f32);
            }
            if let Some(at) = values.iter().position(|x| !fits(*x, format)) {
                let place = format!("{} value {at} of row {}", planned.name, first + row);
                let expected = format!("a weight that {} can hold", format.name());
                return Err(Error::bad(
                    path(),
                    format_args!("{} ({place})", part.source),
                    expected,
                    values[at],
                ));
            }
            let importance = search.importance.and_then(|importance| importance.of_row(planned, first + row));
            match importance {
                _ if search.refine => format.quantize_row_refined(&values, importance, out),
                Some(importance) => format.quantize_row_weighted(&values, importance, out),
                None => format.quantize_row(&values, out),
            }
        }
        Ok(())
    })?;
    buffers.give(loaded.stored);
    Ok(out)
}

/// The rows of a chunk as the output holds them, before they are quantized.
pub fn output_rows(loaded: &LoadedChunk) -> Vec<f32> {
    let (rows, cols) = (loaded.chunk.rows as usize, loaded.chunk.part.cols() as usize);
    if loaded.chunk.part.map == Transform::Transpose {
        return transposed(loaded);
    }
    let mut values = vec![0.0; rows * cols];
    values.chunks_exact_mut(cols).enumerate().for_each(|(row, values)| loaded.decode(row, values));
    values
}

/// Returns whether a value is finite and small enough for the format: no f16 value or block scale overflows.
fn fits(x: f32, format: Format) -> bool {
    let largest = match format {
        Format::F32 => f32::MAX,
        Format::BF16 => f32::from_bits(0x7f7f_7fff),
        _ => 65504.0,
    };
    x.abs() <= largest
}

/// Transposes the chunk from `[rows, cols]` to `[cols, rows]`.
fn transposed(loaded: &LoadedChunk) -> Vec<f32> {
    let (rows, cols) = (loaded.chunk.rows as usize, loaded.chunk.part.cols() as usize);
    let mut out = vec![0.0; rows * cols];
    let mut values = vec![0.0; cols];
    for row in 0..rows {
        loaded.decode(row, &mut values);
        for (col, value) in values.iter().enumerate() {
            out[col * rows + row] = *value;
        }
    }
    out
}

impl LoadedChunk<'_> {
    /// Decodes a row of the chunk.
    fn decode(&self, row: usize, values: &mut [f32]) {
        let row_bytes = self.coding.row_bytes(values.len() as u64).expect("checked by the plan") as usize;
        let stored = &self.stored[row * row_bytes..][..row_bytes];
        match &self.coding {
            Coding::Blocks(format) => format.dequantize_row(stored, values),
            _ => values.iter_mut().zip(stored).for_each(|(x, byte)| *x = f8_e4m3(*byte)),
        }
        if let Some(scales) = &self.scales {
            scales.apply(self.chunk.first + row as u64, values);
        }
    }
}
