//! Computes the gated delta rule token by token, at every length.
//!
//! A column block of S is read and written once per token: the write of one token is fused with the decay and the two
//! reads of the next. S is 64 KiB per head, so decode moves 4 MiB per layer and is memory-bound. Columns of S are
//! independent; heads and column blocks are split over the threads. Scratch is O(dk) per thread and token, for at most
//! 64 tokens.
//!
//! The chunkwise form was slower: 256 tokens of 8 heads of 128 x 128 on one Zen 5 core took 3.7 ms with AVX-512 and with
//! AVX2, against 2.7 and 3.3 ms token by token. S stays in L1 either way, and chunks need more arithmetic, which would pay
//! only with registers wider than 8 floats.
//!
//! Column blocks are read 128 bytes per row, too short for the hardware prefetcher: while the first token updates a block, the
//! block of the next head is prefetched, which is the thread's next chunk.
//!
//! The tokens of a draft after the first run on a copy of a column block, which stays in L1, so that the state moves once
//! for the first token and once more for the accepted ones. Next: `attention`.

use super::Cpu;
use super::autovec::{AutovecKernel, dot, exp, run};
use super::f32_gemm::{load, store};
use super::memory::Tensor;
use super::pool::Parts;
use crate::backend::{DeltaRule, MAX_DRAFT_ROWS, Span};
use crate::simd::{Isa, Kernel};
use std::ops::Range;

/// Tokens whose decays are buffered.
const GROUP: usize = MAX_DRAFT_ROWS;

/// The rows of a span that its state advances past.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Advance {
    All,
    /// The first alone: the others are a draft.
    First,
}

/// One head of a span: where its values are in the batch.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub x: &'a DeltaRule<'a, Tensor>,
    pub h: usize,
    pub dk: usize,
    pub dv: usize,
}

impl<'a> Head<'a> {
    #[inline(always)]
    pub(super) fn q(self, t: usize) -> &'a [f32] {
        &self.x.q.row(t)[self.h * self.dk..][..self.dk]
    }
    #[inline(always)]
    pub(super) fn k(self, t: usize) -> &'a [f32] {
        &self.x.k.row(t)[self.h * self.dk..][..self.dk]
    }
    #[inline(always)]
    pub(super) fn g(self, t: usize) -> &'a [f32] {
        &self.x.g.row(t)[self.h * self.dk..][..self.dk]
    }
    #[inline(always)]
    pub(super) fn v(self, t: usize) -> &'a [f32] {
        &self.x.v.row(t)[self.h * self.dv..][..self.dv]
    }
    #[inline(always)]
    pub(super) fn beta(self, t: usize) -> f32 {
        self.x.beta.row(t)[self.h]
    }
}

/// `o: [tokens, heads * dv]` of a batch; the states advance.
pub(super) fn delta_rule(
    cpu: &Cpu,
    spans: &mut [Span<'_, Tensor>],
    x: &DeltaRule<'_, Tensor>,
    advance: Advance,
) -> Tensor {
    let (tokens, heads) = (x.beta.rows, x.beta.cols);
    assert!(heads > 0, "a delta rule without heads");
    let (dk, dv) = (x.q.cols / heads, x.v.cols / heads);
    for (name, m, cols) in
        [("q", x.q, heads * dk), ("k", x.k, heads * dk), ("g", x.g, heads * dk), ("v", x.v, heads * dv)]
    {
        assert_eq!(m.shape(), [tokens, cols], "shape of {name}");
    }
    let mut o = cpu.spanned(tokens, heads * dv, spans);
    for span in spans {
        assert_eq!(span.state.shape(), [heads * dk, dv], "shape of S");
        if span.rows.is_empty() {
            continue;
        }
        let most = if advance == Advance::All { usize::MAX } else { MAX_DRAFT_ROWS };
        assert!(span.rows.len() <= most, "a draft of {} rows", span.rows.len());
        let state = Parts::new(span.state.values_mut());
        let o = Parts::new(o.values_mut());
        let part = |h: usize| Head { x, h, dk, dv };
        recurrent(cpu, heads, (span.rows.clone(), advance), part, [&state, &o]);
    }
    o
}

/// Splits the column blocks of each head over the threads.
fn recurrent<'a>(
    cpu: &Cpu,
    heads: usize,
    (rows, advance): (Range<usize>, Advance),
    part: impl Fn(usize) -> Head<'a> + Sync,
    [state, o]: [&Parts<'_, f32>; 2],
) {
    let Head { dk, dv, .. } = part(0);
    // A head at a time where there are heads enough: its decays are then computed once.
    let width = if heads >= 4 * cpu.pool.threads() { dv.max(1) } else { BLOCK };
    let blocks = dv.div_ceil(width);
    cpu.pool.parallel_for(heads * blocks, |i| {
        let (head, first) = (part(i / blocks), i % blocks * width);
        let end = dv.min(first + width);
        let mut scratch = cpu.buffers.floats(GROUP * (dk + 1));
        let mut copy = (advance == Advance::First).then(|| cpu.buffers.floats(dk * BLOCK));
        for from in rows.clone().step_by(GROUP) {
            let tokens = from..rows.end.min(from + GROUP);
            let (alpha, kq) = scratch.floats_mut()[..GROUP * (dk + 1)].split_at_mut(GROUP * dk);
            run(cpu.level, Decays { head, tokens: tokens.clone(), alpha, kq });
            for c in (first..end).step_by(BLOCK) {
                let cols = c..end.min(c + BLOCK);
                let at = |i: usize| (head.h * dk + i) * dv + c;
                let columns = StateColumns { head, tokens: tokens.clone(), cols, alpha, kq, state, at, o };
                match &mut copy {
                    None => cpu.level.run(columns),
                    Some(copy) => draft(cpu, columns, copy.floats_mut()),
                }
            }
        }
    });
}

/// The columns after the first token; the outputs of the others, on a copy of the columns.
fn draft<F: Fn(usize) -> usize>(cpu: &Cpu, columns: StateColumns<'_, F>, copy: &mut [f32]) {
    let StateColumns { head, tokens, cols, alpha, kq, state, at, o } = columns;
    let (first, width) = (tokens.start..tokens.start + 1, cols.len());
    cpu.level.run(StateColumns { head, tokens: first, cols: cols.clone(), alpha, kq, state, at: &at, o });
    if tokens.len() == 1 {
        return;
    }
    for (i, row) in copy.chunks_exact_mut(width).enumerate().take(head.dk) {
        // SAFETY: these columns of this head's S are this chunk's alone.
        row.copy_from_slice(unsafe { state.get(at(i)..at(i) + width) });
    }
    let (tokens, state, at) = (tokens.start + 1..tokens.end, &Parts::new(copy), |i: usize| i * width);
    let (alpha, kq) = (&alpha[head.dk..], &kq[1..]);
    cpu.level.run(StateColumns { head, tokens, cols, alpha, kq, state, at, o });
}

/// Columns of S per block: 16 KiB for 128 rows, which stay in L1.
const BLOCK: usize = 32;

/// alpha = e^g and k . q of some tokens.
struct Decays<'a> {
    head: Head<'a>,
    tokens: Range<usize>,
    alpha: &'a mut [f32],
    kq: &'a mut [f32],
}

impl AutovecKernel for Decays<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let dk = self.head.dk;
        for (i, t) in self.tokens.enumerate() {
            self.kq[i] = dot::<FMA>(self.head.k(t), self.head.q(t));
            for (alpha, g) in self.alpha[i * dk..][..dk].iter_mut().zip(self.head.g(t)) {
                *alpha = exp::<FMA>(*g);
            }
        }
    }
}

/// Some tokens through some columns of a head's S.
struct StateColumns<'a, F> {
    head: Head<'a>,
    tokens: Range<usize>,
    cols: Range<usize>,
    /// The decay e^g of each token and key channel, `[tokens, dk]`.
    alpha: &'a [f32],
    kq: &'a [f32],
    state: &'a Parts<'a, f32>,
    /// Offset of these columns in row i of this head's S.
    at: F,
    o: &'a Parts<'a, f32>,
}

impl<F: Fn(usize) -> usize> Kernel for StateColumns<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        if self.cols.len() == BLOCK {
            return self.columns::<I, { BLOCK / 8 }>(isa, self.cols.clone());
        }
        for c in self.cols.clone().step_by(8) {
            self.columns::<I, 1>(isa, c..self.cols.end.min(c + 8));
        }
    }
}

impl<F: Fn(usize) -> usize> StateColumns<'_, F> {
    /// `V` registers of columns (the only one may be partly filled).
    ///
    /// S lacks its newest write k d^T, which the next token applies:
    /// S' = Diag(alpha) (S + k_before d_before^T), d = beta (v - S'^T k), o = S'^T q + (k . q) d.
    #[inline(always)]
    fn columns<I: Isa, const V: usize>(&self, isa: I, cols: Range<usize>) {
        let (head, dk) = (self.head, self.head.dk);
        let at = |i: usize| (self.at)(i) + cols.start - self.cols.start;
        let mut d = [isa.splat(0.0); V];
        let mut k_before = head.k(self.tokens.start);
        for (n, t) in self.tokens.clone().enumerate() {
            let (k, q, alpha) = (head.k(t), head.q(t), &self.alpha[n * dk..][..dk]);
            let (mut sk, mut sq) = ([isa.splat(0.0); V], [isa.splat(0.0); V]);
            for i in 0..dk {
                // SAFETY: these columns of this head's S are this chunk's alone.
                let row = unsafe { self.state.get(at(i)..at(i) + cols.len()) };
                if let (0, Some(row)) = (n, row.first_chunk::<BLOCK>()) {
                    isa.prefetch_l2(row, size_of::<f32>() * dk * head.dv); // the same columns of the next head
                }
                let (before, alpha) = (isa.splat(k_before[i]), isa.splat(alpha[i]));
                let (k, q) = (isa.splat(k[i]), isa.splat(q[i]));
                for (v, s) in row.chunks_mut(8).enumerate().take(V) {
                    let new = isa.mul(alpha, isa.fma(before, d[v], load(isa, s)));
                    sk[v] = isa.fma(k, new, sk[v]);
                    sq[v] = isa.fma(q, new, sq[v]);
                    store(isa, new, s);
                }
            }
            let (beta, kq) = (isa.splat(head.beta(t)), isa.splat(self.kq[n]));
            let at = (t * head.x.beta.cols + head.h) * head.dv;
            // SAFETY: these columns of this head's o are this chunk's alone.
            let o = unsafe { self.o.get(at + cols.start..at + cols.end) };
            for (v, (o, x)) in o.chunks_mut(8).zip(head.v(t)[cols.clone()].chunks(8)).enumerate().take(V) {
                d[v] = isa.mul(beta, isa.sub(load(isa, x), sk[v]));
                store(isa, isa.fma(kq, d[v], sq[v]), o);
            }
            k_before = k;
        }
        for (i, k) in k_before.iter().enumerate() {
            // SAFETY: as above.
            let row = unsafe { self.state.get(at(i)..at(i) + cols.len()) };
            for (v, s) in row.chunks_mut(8).enumerate().take(V) {
                store(isa, isa.fma(isa.splat(*k), d[v], load(isa, s)), s);
            }
        }
    }
}
