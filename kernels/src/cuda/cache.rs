//! Stores the KV cache rows of one MLA layer of one sequence on the device, in segments that clones share.
//!
//! Kernels address rows through a header in device memory and advance its length themselves, so that a captured graph can
//! be replayed for the next token. The host mirrors the length, allocates segments before an append, and rewrites the
//! header after a clone or an import. Full segments are never copied; the last one is copied on the first
//! append to a clone. Exported rows have the CPU's layout.
//! Next: `attention`.

use super::driver::Address;
use super::memory::{DeviceBuffer, DevicePool};
use crate::backend::CacheFormat;
use crate::quant::Format;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::sync::Arc;

/// Rows per segment, as in kernels/cuda/cache.cuh.
const SEGMENT: usize = 256;
/// Values and stored bytes of a Q8_0 block.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 34;

/// The KV cache of one layer of one sequence in device memory; clones share its segments.
pub struct Cache {
    format: CacheFormat,
    width: usize,
    len: usize,
    segments: Vec<Arc<DeviceBuffer>>,
    /// The device-side header and segment table.
    header: Option<DeviceHeader>,
    buffers: DevicePool,
}

/// The row layout that kernels receive.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct CacheShape {
    format: i32,
    width: i32,
    pub(super) blocks: i32,
    row_bytes: i32,
}

impl CacheShape {
    /// Bytes of a row on the device.
    pub(super) fn row_bytes(&self) -> usize {
        self.row_bytes as usize
    }
}

struct DeviceHeader {
    /// Length, and the address of the table.
    own: DeviceBuffer,
    /// The address of each segment.
    table: DeviceBuffer,
    /// Capacity of the table and the segments in it.
    capacity: usize,
    written: usize,
    /// The length in the device-side header.
    len: usize,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct HeaderBytes {
    len: i32,
    unused: i32,
    segments: Address,
}

impl Clone for Cache {
    fn clone(&self) -> Cache {
        let (segments, buffers) = (self.segments.clone(), self.buffers.clone());
        Cache { segments, header: None, buffers, ..*self }
    }
}

impl Cache {
    pub(super) fn new(buffers: &DevicePool, format: CacheFormat, width: usize) -> Cache {
        assert!(width > 0, "cache rows without values");
        Cache { format, width, len: 0, segments: Vec::new(), header: None, buffers: buffers.clone() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn format(&self) -> CacheFormat {
        self.format
    }

    fn blocks(&self) -> usize {
        self.width.div_ceil(BLOCK)
    }

    pub(super) fn shape(&self) -> CacheShape {
        let format = match self.format {
            CacheFormat::F32 => 0,
            CacheFormat::F16 => 1,
            CacheFormat::Q8_0 => 2,
        };
        let [width, blocks, row_bytes] = [self.width, self.blocks(), self.device_row()].map(|n| n as i32);
        CacheShape { format, width, blocks, row_bytes }
    }

    /// Bytes of a row on the device.
    fn device_row(&self) -> usize {
        let bytes = match self.format {
            CacheFormat::F32 => 4 * self.width,
            CacheFormat::F16 => 2 * self.width,
            CacheFormat::Q8_0 => BLOCK_BYTES * self.blocks(),
        };
        bytes.next_multiple_of(16)
    }

    /// Bytes of an exported row.
    pub(super) fn row_bytes(&self) -> usize {
        match self.format {
            CacheFormat::F32 => 4 * self.width,
            CacheFormat::F16 => 2 * self.width,
            CacheFormat::Q8_0 => BLOCK_BYTES * self.blocks(),
        }
    }

    /// Allocates `rows` more rows in unshared segments.
    fn reserve_rows(&mut self, rows: usize) {
        let (row, at) = (self.device_row(), self.len % SEGMENT);
        if rows > 0 && at > 0 {
            let last = self.segments.last_mut().expect("rows are in segments");
            if Arc::get_mut(last).is_none() {
                let own = self.buffers.exactly(SEGMENT * row);
                self.buffers.driver.copy(own.at, last.at, at * row);
                *last = Arc::new(own);
                self.forget_table();
            }
        }
        while self.segments.len() * SEGMENT < self.len + rows {
            self.segments.push(Arc::new(self.buffers.exactly(SEGMENT * row)));
        }
    }

    /// Marks the table stale: the next use rewrites it.
    fn forget_table(&mut self) {
        if let Some(header) = &mut self.header {
            header.written = 0;
        }
    }

    /// Reserves `rows` more rows and uploads the header.
    pub(super) fn prepare(&mut self, rows: usize) {
        self.reserve_rows(rows);
        let needed = self.segments.len();
        if self.header.as_ref().is_none_or(|h| h.capacity < needed) {
            let capacity = needed.next_power_of_two().max(16);
            let (own, table) =
                (self.buffers.bytes(size_of::<HeaderBytes>()), self.buffers.bytes(8 * capacity));
            self.header = Some(DeviceHeader { own, table, capacity, written: 0, len: usize::MAX });
        }
        let header = self.header.as_mut().expect("made above");
        let driver = &self.buffers.driver;
        if header.written < needed {
            let addresses: Vec<Address> = self.segments[header.written..].iter().map(|s| s.at).collect();
            driver.upload(header.table.at + 8 * header.written as u64, bytemuck::cast_slice(&addresses));
            header.written = needed;
        }
        if header.len != self.len {
            let bytes = HeaderBytes { len: self.len as i32, unused: 0, segments: header.table.at };
            driver.upload(header.own.at, bytemuck::bytes_of(&bytes));
            header.len = self.len;
        }
    }

    /// The address of the header, which [`Cache::prepare`] wrote.
    pub(super) fn header(&self) -> Address {
        self.header.as_ref().expect("a prepared cache").own.at
    }

    /// Counts rows that a kernel has appended.
    pub(super) fn advance(&mut self, rows: usize) {
        self.len += rows;
        self.header.as_mut().expect("a prepared cache").len = self.len;
    }

    /// Drops the rows after the first `len`; the next use uploads the length. Kernels that still run keep their segments,
    /// because freed memory is reused in the order of the stream.
    pub(super) fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "{len} rows of a cache of {}", self.len);
        self.segments.truncate(len.div_ceil(SEGMENT));
        self.len = len;
        if let Some(header) = &mut self.header {
            header.written = header.written.min(self.segments.len());
        }
    }

    /// Appends rows to `out` in the CPU's layout.
    pub(super) fn export(&self, rows: Range<usize>, out: &mut Vec<u8>) {
        assert!(rows.end <= self.len, "rows {rows:?} of a cache of {}", self.len);
        let (device, mut next) = (self.device_row(), rows.start);
        let mut bytes = vec![0; SEGMENT * device];
        while next < rows.end {
            let (segment, at) = (next / SEGMENT, next % SEGMENT);
            let n = (SEGMENT - at).min(rows.end - next);
            let part = &mut bytes[..n * device];
            self.buffers.driver.download(self.segments[segment].at + (at * device) as u64, part);
            part.chunks_exact(device).for_each(|row| self.leave(row, out));
            next += n;
        }
    }

    /// Appends rows that [`Cache::export`] wrote; panics if the last one is incomplete.
    pub(super) fn import(&mut self, rows: &[u8]) {
        let (bytes, device) = (self.row_bytes(), self.device_row());
        assert!(rows.len().is_multiple_of(bytes), "{} bytes in rows of {bytes}", rows.len());
        let n = rows.len() / bytes;
        self.reserve_rows(n);
        let mut own = vec![0; rows.len() / bytes * device];
        for (own, row) in own.chunks_exact_mut(device).zip(rows.chunks_exact(bytes)) {
            self.enter(row, own);
        }
        let mut rest = &own[..];
        while !rest.is_empty() {
            let (segment, at) = (self.len / SEGMENT, self.len % SEGMENT);
            let (part, after) = rest.split_at(rest.len().min((SEGMENT - at) * device));
            self.buffers.driver.upload(self.segments[segment].at + (at * device) as u64, part);
            self.len += part.len() / device;
            rest = after;
        }
    }

    /// Converts a device row to the CPU's layout: for Q8_0 each scale precedes its block.
    fn leave(&self, row: &[u8], out: &mut Vec<u8>) {
        if self.format != CacheFormat::Q8_0 {
            return out.extend_from_slice(&row[..self.row_bytes()]);
        }
        let (levels, scales) = row.split_at(BLOCK * self.blocks());
        for (levels, scale) in levels.chunks_exact(BLOCK).zip(scales.chunks_exact(2)) {
            out.extend_from_slice(scale);
            out.extend_from_slice(levels);
        }
    }

    /// Converts a row from the CPU's layout to the device's, the inverse of [`Cache::leave`].
    fn enter(&self, row: &[u8], own: &mut [u8]) {
        if self.format != CacheFormat::Q8_0 {
            return own[..row.len()].copy_from_slice(row);
        }
        let (levels, scales) = own.split_at_mut(BLOCK * self.blocks());
        let blocks = levels.chunks_exact_mut(BLOCK).zip(scales.chunks_exact_mut(2));
        for ((levels, scale), block) in blocks.zip(row.chunks_exact(BLOCK_BYTES)) {
            scale.copy_from_slice(&block[..2]);
            levels.copy_from_slice(&block[2..]);
        }
    }

    /// Any rows as f32, `width` values per row.
    pub(super) fn read(&self, rows: Range<usize>) -> Vec<f32> {
        let format = match self.format {
            CacheFormat::F32 => Format::F32,
            CacheFormat::F16 => Format::F16,
            CacheFormat::Q8_0 => Format::Q8_0,
        };
        let mut bytes = Vec::new();
        self.export(rows, &mut bytes);
        let mut row = vec![0.0; self.row_bytes() / format.block_bytes() * format.block_len()];
        let mut out = Vec::new();
        for bytes in bytes.chunks_exact(self.row_bytes()) {
            format.dequantize_row(bytes, &mut row);
            out.extend_from_slice(&row[..self.width]);
        }
        out
    }
}
