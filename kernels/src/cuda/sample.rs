//! Launches top-k over each row's logits and copies the result to the host for sampling.
//!
//! The arithmetic is in kernels/cuda/sample.cu. Next: `graph`.

use super::memory::{DeviceBuffer, Tensor};
use super::{Cuda, Grid, arg};
use crate::backend::{MAX_TOP_K, TopK};

/// Columns per block, and keys per merging block, as in sample.cu.
const PART_COLUMNS: usize = 1024;
const MERGE: usize = 4096;
/// Shared memory beside the keys, in bytes.
const SCRATCH: usize = 33 * 4;

/// Top-k key lists in descending order, `parts` per row, each with a sum.
struct Lists {
    keys: DeviceBuffer,
    sums: DeviceBuffer,
    parts: usize,
}

impl Cuda {
    pub(super) fn top_k_rows(&self, x: &Tensor, n: usize) -> Vec<TopK> {
        assert!((1..=MAX_TOP_K).contains(&n), "top-{n}: n must be 1 to {MAX_TOP_K}");
        if x.len() == 0 {
            return vec![TopK { top: Vec::new(), complete: true, sum_exp: 0.0 }; x.rows];
        }
        let bits = n.next_power_of_two().ilog2();
        let mut lists = self.lists(x.rows, x.cols.div_ceil(PART_COLUMNS), bits);
        let grid =
            Grid { blocks: [x.rows, lists.parts, 1], threads: 256, shared: 8 * PART_COLUMNS + SCRATCH };
        let addresses = [x.at(), lists.keys.at, lists.sums.at].map(arg);
        let sizes = [x.cols as i32, bits as i32].map(arg);
        self.driver.launch(["best_of_part", ""], grid, &[&addresses[..], &sizes].concat());
        while lists.parts > 1 {
            lists = self.merge_lists(&lists, x.rows, bits);
        }
        let (mut keys, mut sums) = (vec![0; x.rows << bits], vec![0.0; x.rows]);
        let [to_keys, to_sums] = [bytemuck::cast_slice_mut(&mut keys), bytemuck::cast_slice_mut(&mut sums)];
        self.driver.downloads(&mut [(lists.keys.at, to_keys), (lists.sums.at, to_sums)]);
        keys.chunks_exact(1 << bits).zip(sums).map(|(keys, sum)| decode(&keys[..n], sum, x.cols)).collect()
    }

    fn lists(&self, rows: usize, parts: usize, bits: u32) -> Lists {
        let bytes = |size: usize| self.buffers.bytes(rows * parts * size);
        Lists { keys: bytes(8 << bits), sums: bytes(4), parts }
    }

    /// Merges each group of `MERGE >> bits` lists into one.
    fn merge_lists(&self, from: &Lists, rows: usize, bits: u32) -> Lists {
        let to = self.lists(rows, from.parts.div_ceil(MERGE >> bits), bits);
        let grid = Grid { blocks: [rows, to.parts, 1], threads: 1024, shared: 8 * MERGE + SCRATCH };
        let addresses = [&from.keys, &from.sums, &to.keys, &to.sums].map(|buffer| arg(buffer.at));
        let sizes = [from.parts as i32, bits as i32].map(arg);
        self.driver.launch(["best_of_parts", ""], grid, &[&addresses[..], &sizes].concat());
        to
    }
}

/// Decodes keys to values and columns; a key of 0 terminates the list.
fn decode(keys: &[u64], sum_exp: f32, cols: usize) -> TopK {
    let numbers = keys.iter().take_while(|key| **key != 0);
    let top: Vec<(f32, u32)> = numbers.map(|key| (value_of((key >> 32) as u32), !(*key as u32))).collect();
    let complete = top.len() < keys.len() || keys.len() >= cols;
    TopK { top, complete, sum_exp }
}

/// Decodes an order-preserving key to its value.
fn value_of(bits: u32) -> f32 {
    f32::from_bits(if bits >> 31 == 1 { bits ^ 1 << 31 } else { !bits })
}
