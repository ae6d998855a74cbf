//! Rotates queries and cache rows by their positions (RoPE).
//!
//! Angles are computed in f64, once per token for all heads: in f32 an angle at position 100,000 is off by 0.004.
//! Next: `attention`.

use super::Cpu;
use super::cache::Cache;
use super::memory::Tensor;
use super::pool::Parts;
use crate::backend::{Rope, Span};

/// Largest number of rotated pairs per head.
pub(super) const PAIRS: usize = 256;

pub(super) fn rotate(cpu: &Cpu, spans: &mut [Span<'_, Cache>], q: &mut Tensor, kv: &mut Tensor, rope: Rope) {
    let [width, kv_width] = [q.cols / rope.heads, kv.cols];
    assert!(rope.dims.is_multiple_of(2) && rope.dims / 2 <= PAIRS, "{} rotated columns", rope.dims);
    assert!(
        q.cols.is_multiple_of(rope.heads) && rope.dims <= width.min(kv_width),
        "columns of heads and rows"
    );
    let [heads_width, pairs] = [q.cols, rope.dims / 2];
    let mut speeds = [0.0; PAIRS];
    for (i, speed) in speeds[..pairs].iter_mut().enumerate() {
        *speed = f64::from(rope.base).powf(-2.0 * i as f64 / rope.dims as f64);
    }
    let (q, kv) = (Parts::new(q.values_mut()), Parts::new(kv.values_mut()));
    for span in spans {
        let (first, before) = (span.rows.start, span.state.len());
        cpu.pool.parallel_for(span.rows.len(), |i| {
            let mut turns = [(0.0, 0.0); PAIRS];
            for (turn, speed) in turns[..pairs].iter_mut().zip(&speeds) {
                let (sin, cos) = ((before + i) as f64 * speed).sin_cos();
                *turn = (sin as f32, cos as f32);
            }
            let t = first + i;
            // SAFETY: each row is one chunk, and spans of a batch have no row in common.
            let (q, kv) = unsafe {
                (q.get(t * heads_width..(t + 1) * heads_width), kv.get(t * kv_width..(t + 1) * kv_width))
            };
            for row in q.chunks_exact_mut(width).chain([kv]) {
                let rotated = row.len() - rope.dims;
                for (pair, (sin, cos)) in row[rotated..].chunks_exact_mut(2).zip(&turns) {
                    let (x, y) = (pair[0], pair[1]);
                    pair[0] = x * cos - y * sin;
                    pair[1] = x * sin + y * cos;
                }
            }
        });
    }
}
