//! Stores the KV cache rows of one MLA layer of one sequence, in segments that clones share.
//!
//! A clone copies a list of pointers. The cache is append-only, so full segments are shared for good; the last segment is
//! copied on the first append to a clone. Rows are contiguous in the cache's format; a Q8_0 row is zero-padded to whole
//! blocks. Sizes are 64-bit: a million rows are four thousand segments.
//! Next: `attention`.

use crate::backend::CacheFormat;
use crate::quant::Format;
use std::ops::Range;
use std::sync::Arc;

/// Rows per segment, and per part of the attention over it.
pub(super) const SEGMENT: usize = 256;

/// The KV cache of one layer of one sequence; a clone copies one pointer per 256 rows.
#[derive(Clone)]
pub struct Cache {
    format: Format,
    width: usize,
    len: usize,
    /// `SEGMENT` rows each, used or not.
    segments: Vec<Arc<[u8]>>,
}

impl Cache {
    pub(super) fn new(format: CacheFormat, width: usize) -> Cache {
        assert!(width > 0, "cache rows without values");
        let format = match format {
            CacheFormat::F32 => Format::F32,
            CacheFormat::F16 => Format::F16,
            CacheFormat::Q8_0 => Format::Q8_0,
        };
        Cache { format, width, len: 0, segments: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Values of a stored row: `width` rounded up to whole blocks.
    pub(super) fn stored_width(&self) -> usize {
        self.width.next_multiple_of(self.format.block_len())
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.stored_width() / self.format.block_len() * self.format.block_bytes()
    }

    /// Appends a row. `scratch` has `stored_width` values.
    pub(super) fn push(&mut self, row: &[f32], scratch: &mut [f32]) {
        assert_eq!(row.len(), self.width, "values of a cache row");
        let (bytes, format) = (self.row_bytes(), self.format);
        scratch[..row.len()].copy_from_slice(row);
        scratch[row.len()..].fill(0.0);
        format.quantize_row(scratch, &mut self.free_tail()[..bytes]);
        self.len += 1;
    }

    /// The unshared free bytes after the last row: the rest of its segment, or a new segment.
    fn free_tail(&mut self) -> &mut [u8] {
        let (bytes, at) = (self.row_bytes(), self.len % SEGMENT);
        if at == 0 {
            self.segments.push(Arc::from(vec![0; SEGMENT * bytes]));
        }
        let last = self.segments.last_mut().expect("pushed above or before");
        &mut Arc::make_mut(last)[at * bytes..]
    }

    /// Appends the stored bytes of a range of rows to `out`.
    pub(super) fn export(&self, rows: Range<usize>, out: &mut Vec<u8>) {
        assert!(rows.end <= self.len, "rows {rows:?} of a cache of {}", self.len);
        let (bytes, mut next) = (self.row_bytes(), rows.start);
        while next < rows.end {
            let (segment, at) = (next / SEGMENT, next % SEGMENT);
            let n = (SEGMENT - at).min(rows.end - next);
            out.extend_from_slice(&self.segments[segment][at * bytes..(at + n) * bytes]);
            next += n;
        }
    }

    /// Appends rows that [`Cache::export`] wrote; panics if the last one is incomplete.
    pub(super) fn import(&mut self, mut rows: &[u8]) {
        let bytes = self.row_bytes();
        assert!(rows.len().is_multiple_of(bytes), "{} bytes in rows of {bytes}", rows.len());
        while !rows.is_empty() {
            if self.len.is_multiple_of(SEGMENT)
                && let Some((whole, rest)) = rows.split_at_checked(SEGMENT * bytes)
            {
                self.segments.push(Arc::from(whole)); // copied once, without zero-filling first
                self.len += SEGMENT;
                rows = rest;
                continue;
            }
            let tail = self.free_tail();
            let (new, rest) = rows.split_at(tail.len().min(rows.len()));
            tail[..new.len()].copy_from_slice(new);
            self.len += new.len() / bytes;
            rows = rest;
        }
    }

    /// Drops the rows after the first `len`. The next append copies the last segment if a clone shares it.
    pub(super) fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "{len} rows of a cache of {}", self.len);
        self.segments.truncate(len.div_ceil(SEGMENT));
        self.len = len;
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// The stored bytes of rows of one segment.
    pub(super) fn stored(&self, rows: Range<usize>) -> &[u8] {
        assert!(rows.end <= self.len, "rows {rows:?} of a cache of {}", self.len);
        let (segment, at) = (rows.start / SEGMENT, rows.start % SEGMENT);
        &self.segments[segment][at * self.row_bytes()..][..rows.len() * self.row_bytes()]
    }

    /// Rows of one segment as f32, `stored_width` values per row.
    pub(super) fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let values = &mut out[..rows.len() * self.stored_width()];
        self.format.dequantize_row(self.stored(rows), values);
    }

    /// Any rows as f32, `width` values per row.
    pub(super) fn read(&self, rows: Range<usize>) -> Vec<f32> {
        let mut row = vec![0.0; self.stored_width()];
        let mut out = Vec::with_capacity(rows.len() * self.width);
        for r in rows {
            self.dequantize_rows(r..r + 1, &mut row);
            out.extend_from_slice(&row[..self.width]);
        }
        out
    }
}
