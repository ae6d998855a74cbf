//! Encodes which rows of a batch belong to which state as kernel arguments, up to [`SPANS`] per launch.
//!
//! Next: `elementwise`.

use super::driver::Address;
use super::memory::Tensor;
use super::{Cuda, Grid, arg};
use crate::backend::Span;
use bytemuck::{Pod, Zeroable};

/// Largest number of spans per launch, as in kernels/cuda/common.cuh.
pub(super) const SPANS: usize = 32;

/// One sequence's rows and the address of its state.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SpanOf {
    pub(super) state: Address,
    pub(super) first: i32,
    pub(super) rows: i32,
}

/// The spans of a launch.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Spans {
    of: [SpanOf; SPANS],
}

/// A launch's worth of spans.
pub(super) struct Group {
    pub(super) spans: Spans,
    pub(super) n: usize,
    /// Rows of the longest span.
    pub(super) longest: usize,
}

/// Groups non-empty spans into launches.
pub(super) fn groups<S>(spans: &[Span<'_, S>], state: impl Fn(&S) -> Address) -> Vec<Group> {
    let with_rows = spans.iter().filter(|span| !span.rows.is_empty());
    let all: Vec<SpanOf> = with_rows
        .map(|span| SpanOf {
            state: state(span.state),
            first: span.rows.start as i32,
            rows: span.rows.len() as i32,
        })
        .collect();
    let group = |part: &[SpanOf]| {
        let mut spans = Spans::zeroed();
        spans.of[..part.len()].copy_from_slice(part);
        let longest = part.iter().map(|span| span.rows as usize).max().unwrap_or(0);
        Group { spans, n: part.len(), longest }
    };
    all.chunks(SPANS).map(group).collect()
}

impl Cuda {
    /// A result tensor for the rows of spans; rows outside every span are zero.
    pub(super) fn spanned<S>(&self, rows: usize, cols: usize, spans: &[Span<'_, S>]) -> Tensor {
        let y = self.buffers.tensor(rows, cols);
        let covered: usize = spans.iter().map(|span| span.rows.len()).sum();
        let inside = spans.iter().all(|span| span.rows.end <= rows);
        assert!(covered <= rows && inside, "spans of a batch of {rows}");
        if covered < rows {
            self.driver.fill(y.at(), 0, 4 * y.len());
        }
        y
    }

    /// Runs a kernel with one value per thread.
    pub(super) fn each(&self, name: &'static str, n: usize, arguments: &[super::driver::Argument<'_>]) {
        if n > 0 {
            let count = n as i64;
            let grid = Grid { blocks: [n.div_ceil(256), 1, 1], threads: 256, shared: 0 };
            self.driver.launch([name, ""], grid, &[arguments, &[arg(count)]].concat());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_spans_are_several_launches_and_empty_ones_none() {
        let mut states: Vec<u64> = (0..40).collect();
        let span = |(i, state)| Span { rows: if i == 3 { 9..9 } else { i..i + 1 }, state };
        let spans: Vec<_> = states.iter_mut().enumerate().map(span).collect();
        let groups = groups(&spans, |s| *s);
        assert_eq!(groups.iter().map(|g| g.n).collect::<Vec<_>>(), [32, 7]);
        assert_eq!((groups[0].spans.of[3].state, groups[0].spans.of[3].first), (4, 4));
        assert_eq!(groups[1].longest, 1);
    }
}
