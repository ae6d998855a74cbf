//! Computes the gated delta rule in chunks of 64 tokens: a few matrix products instead of 64 passes over S.
//!
//! With G the cumulative log-decay inside a chunk, and rows r, s of it:
//! ```text
//! A_rs = sum_d k_rd k_sd e^(G_rd - G_sd)  (s < r)      P_rs = sum_d q_rd k_sd e^(G_rd - G_sd)  (s <= r)
//! Vn_r = beta_r (v_r - (K e^G)_r S - sum_(s<r) A_rs Vn_s)
//! O    = (Q e^G) S + P Vn                              S <- Diag(e^G_C) S + (K e^(G_C - G))^T Vn
//! ```
//! Every factor e^(G_r - G_s) is a product of the decays alpha = e^g <= 1 of the tokens between, never a quotient: e^-G
//! would overflow. Sub-chunks of 16 split it at the first row n of the later one, e^(G_r - G_n) e^(G_n - G_s); inside a
//! sub-chunk the products are computed pair by pair. (I + A) is solved by forward substitution per sub-chunk. Scratch is
//! 64 * (6 dk + 2 dv) floats per thread. Compute-bound.

use super::Cpu;
use super::autovec::{AutovecKernel, exp, run};
use super::f32_gemm::{Left, View, gemm_accumulate, load, matmul_nt, store};
use super::kda::Head;
use crate::simd::{Isa, Kernel};
use std::ops::Range;

const CHUNK: usize = 64;
const SUB: usize = 16;

/// Scratch of a chunk. Rows are tokens of the chunk, `dk` or `dv` columns.
struct Scratch<'a> {
    alpha: &'a mut [f32],
    /// K e^G and Q e^G.
    kg: &'a mut [f32],
    qg: &'a mut [f32],
    /// k_r e^(G_r - G_n) and q_r e^(G_r - G_n), n the first row of r's sub-chunk.
    kn: &'a mut [f32],
    qn: &'a mut [f32],
    /// k_s e^(G_n - G_s) of all rows before n.
    kd: &'a mut [f32],
    /// One row.
    w: &'a mut [f32],
    vn: &'a mut [f32],
    o: &'a mut [f32],
    /// `[CHUNK, CHUNK]`
    a: &'a mut [f32],
    p: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn len(dk: usize, dv: usize) -> usize {
        CHUNK * (6 * dk + 2 * dv + 2 * CHUNK) + dk
    }

    fn new(mut floats: &'a mut [f32], dk: usize, dv: usize) -> Scratch<'a> {
        let mut take = |len: usize| floats.split_off_mut(..len).expect("Scratch::len");
        let (dk, dv) = (CHUNK * dk, CHUNK * dv);
        Scratch {
            alpha: take(dk),
            kg: take(dk),
            qg: take(dk),
            kn: take(dk),
            qn: take(dk),
            kd: take(dk),
            vn: take(dv),
            o: take(dv),
            a: take(CHUNK * CHUNK),
            p: take(CHUNK * CHUNK),
            w: take(dk / CHUNK),
        }
    }
}

/// One head of a span. `s` is its S, `out(t)` its o of token t.
pub(super) fn head<'o>(
    cpu: &Cpu,
    head: Head<'_>,
    rows: Range<usize>,
    s: &mut [f32],
    out: impl Fn(usize) -> &'o mut [f32],
) {
    let (dk, dv) = (head.dk, head.dv);
    let mut buffer = cpu.buffers.floats(Scratch::len(dk, dv));
    let mut scratch = Scratch::new(buffer.floats_mut(), dk, dv);
    for from in rows.clone().step_by(CHUNK) {
        let tokens = from..rows.end.min(from + CHUNK);
        run(cpu.level, Decayed { head, tokens: tokens.clone(), scratch: &mut scratch });
        for n in (0..tokens.len()).step_by(SUB) {
            if n > 0 {
                let (earlier, n0) = (n - SUB, from);
                run(cpu.level, Advance { head, from: n0, rows: earlier..n, to: n, scratch: &mut scratch });
            }
            let sub = n..tokens.len().min(n + SUB);
            cpu.level.run(Inside { head, from, rows: sub.clone(), scratch: &mut scratch });
            cpu.level.run(Between { dk, rows: sub, scratch: &mut scratch });
        }
        let last = tokens.len() - 1;
        run(
            cpu.level,
            Advance { head, from, rows: last / SUB * SUB..last + 1, to: last, scratch: &mut scratch },
        );
        cpu.level.run(Apply { head, tokens: tokens.clone(), scratch: &mut scratch, s });
        for (t, o) in tokens.zip(scratch.o.chunks_exact(dv.max(1))) {
            out(t).copy_from_slice(o);
        }
    }
}

/// alpha, K e^G and Q e^G, and the same from the first row of each sub-chunk.
struct Decayed<'a, 's> {
    head: Head<'a>,
    tokens: Range<usize>,
    scratch: &'a mut Scratch<'s>,
}

impl AutovecKernel for Decayed<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let (dk, x) = (self.head.dk, self.scratch);
        for (r, t) in self.tokens.enumerate() {
            let at = r * dk..(r + 1) * dk;
            let alpha = &mut x.alpha[at.clone()];
            alpha.iter_mut().zip(self.head.g(t)).for_each(|(alpha, g)| *alpha = exp::<FMA>(*g));
            let (k, q) = (self.head.k(t), self.head.q(t));
            // w and kd's row hold e^G and e^(G - G_n) here; kd's rows are written later.
            let since = &mut x.kd[..dk];
            for i in 0..dk {
                x.w[i] = if r == 0 { alpha[i] } else { x.w[i] * alpha[i] };
                since[i] = if r.is_multiple_of(SUB) { 1.0 } else { since[i] * alpha[i] };
            }
            let (kg, qg) = (&mut x.kg[at.clone()], &mut x.qg[at.clone()]);
            let (kn, qn) = (&mut x.kn[at.clone()], &mut x.qn[at]);
            for i in 0..dk {
                kg[i] = k[i] * x.w[i];
                qg[i] = q[i] * x.w[i];
                kn[i] = k[i] * since[i];
                qn[i] = q[i] * since[i];
            }
        }
    }
}

/// Brings the rows before `to` (and `to`, if it is among `rows`) to k_s e^(G_to - G_s): `rows` anew, those
/// before them from what they were for the first of `rows`.
struct Advance<'a, 's> {
    head: Head<'a>,
    from: usize,
    rows: Range<usize>,
    to: usize,
    scratch: &'a mut Scratch<'s>,
}

impl AutovecKernel for Advance<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let (dk, x) = (self.head.dk, self.scratch);
        let w = &mut x.w[..dk];
        w.fill(1.0);
        for s in self.rows.clone().rev() {
            if s < self.to {
                let alpha = &x.alpha[(s + 1) * dk..][..dk];
                w.iter_mut().zip(alpha).for_each(|(w, alpha)| *w *= alpha);
            }
            let kd = &mut x.kd[s * dk..][..dk];
            kd.iter_mut().zip(self.head.k(self.from + s)).zip(&*w).for_each(|((kd, k), w)| *kd = k * w);
        }
        for kd in x.kd[..self.rows.start * dk].chunks_exact_mut(dk.max(1)) {
            kd.iter_mut().zip(&*w).for_each(|(kd, w)| *kd *= w);
        }
    }
}

/// A and P inside one sub-chunk, pair by pair.
struct Inside<'a, 's> {
    head: Head<'a>,
    from: usize,
    rows: Range<usize>,
    scratch: &'a mut Scratch<'s>,
}

impl Kernel for Inside<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (head, dk, x) = (self.head, self.head.dk, self.scratch);
        let w = &mut x.w[..dk];
        for s in self.rows.clone() {
            w.copy_from_slice(head.k(self.from + s));
            (self.rows.start..s).for_each(|r| x.p[r * CHUNK + s] = 0.0);
            for r in s..self.rows.end {
                // w = k_s e^(G_r - G_s)
                if r > s {
                    multiply(isa, w, &x.alpha[r * dk..][..dk]);
                }
                let (a, p) = two_dots(isa, head.k(self.from + r), head.q(self.from + r), w);
                x.a[r * CHUNK + s] = a;
                x.p[r * CHUNK + s] = p;
            }
        }
    }
}

/// w *= x
#[inline(always)]
fn multiply<I: Isa>(isa: I, w: &mut [f32], x: &[f32]) {
    for (w, x) in w.chunks_mut(8).zip(x.chunks(8)) {
        store(isa, isa.mul(load(isa, w), load(isa, x)), w);
    }
}

/// a . w and b . w
#[inline(always)]
fn two_dots<I: Isa>(isa: I, a: &[f32], b: &[f32], w: &[f32]) -> (f32, f32) {
    let zero = isa.splat(0.0);
    let (mut sum_a, mut sum_b) = ([zero; 2], [zero; 2]);
    for (i, w) in w.chunks(16).enumerate() {
        let ([a, b], mid) = ([&a[16 * i..][..w.len()], &b[16 * i..][..w.len()]], w.len().min(8));
        let (low, high) = (load(isa, &w[..mid]), load(isa, &w[mid..]));
        sum_a = [isa.fma(load(isa, &a[..mid]), low, sum_a[0]), isa.fma(load(isa, &a[mid..]), high, sum_a[1])];
        sum_b = [isa.fma(load(isa, &b[..mid]), low, sum_b[0]), isa.fma(load(isa, &b[mid..]), high, sum_b[1])];
    }
    (isa.reduce_add(isa.add(sum_a[0], sum_a[1])), isa.reduce_add(isa.add(sum_b[0], sum_b[1])))
}

/// A and P of one sub-chunk with all rows before it.
struct Between<'a, 's> {
    dk: usize,
    rows: Range<usize>,
    scratch: &'a mut Scratch<'s>,
}

impl Kernel for Between<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (dk, x, n) = (self.dk, self.scratch, self.rows.start);
        if n == 0 {
            return;
        }
        let view = |values| View { values, step: dk };
        let later = n * dk..self.rows.end * dk;
        let size = [self.rows.len(), n, dk];
        let (kd, out) = (view(&*x.kd), n * CHUNK..self.rows.end * CHUNK);
        matmul_nt(isa, size, view(&x.kn[later.clone()]), kd, &mut x.a[out.clone()], CHUNK);
        matmul_nt(isa, size, view(&x.qn[later]), kd, &mut x.p[out], CHUNK);
    }
}

/// Vn, O and the new S.
struct Apply<'a, 's> {
    head: Head<'a>,
    tokens: Range<usize>,
    scratch: &'a mut Scratch<'s>,
    s: &'a mut [f32],
}

impl Kernel for Apply<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (Head { dk, dv, .. }, x, c) = (self.head, self.scratch, self.tokens.len());
        let rows = |values, cols| Left { values, row: cols, col: 1 };
        let add = (dv, |_| 1.0);

        // Vn = (K e^G) S and O = (Q e^G) S, to begin with
        let s = View { values: &*self.s, step: dv };
        x.vn[..c * dv].fill(0.0);
        x.o[..c * dv].fill(0.0);
        gemm_accumulate(isa, [c, dv, dk], rows(&*x.kg, dk), s, x.vn, add);
        gemm_accumulate(isa, [c, dv, dk], rows(&*x.qg, dk), s, x.o, add);

        // Vn_r = beta_r (v_r - (K e^G)_r S - sum_(s<r) A_rs Vn_s), then O += P Vn
        for n in (0..c).step_by(SUB) {
            let end = c.min(n + SUB);
            let (before, sub) = x.vn.split_at_mut(n * dv);
            let vn = View { values: &*before, step: dv };
            gemm_accumulate(isa, [end - n, dv, n], rows(&x.a[n * CHUNK..], CHUNK), vn, sub, add);
            for r in n..end {
                let (done, row) = sub.split_at_mut((r - n) * dv);
                let a = rows(&x.a[r * CHUNK + n..], CHUNK);
                gemm_accumulate(isa, [1, dv, r - n], a, View { values: &*done, step: dv }, row, add);
                let (v, beta) = (self.head.v(self.tokens.start + r), self.head.beta(self.tokens.start + r));
                row.iter_mut().zip(v).for_each(|(vn, v)| *vn = beta * (v - *vn));
            }
            let (p, vn) = (rows(&x.p[n * CHUNK..], CHUNK), View { values: &*x.vn, step: dv });
            gemm_accumulate(isa, [end - n, dv, end], p, vn, &mut x.o[n * dv..], add);
        }

        // S <- Diag(e^G_C) S + (K e^(G_C - G))^T Vn;  w = alpha, multiplied up, is e^G_C
        let w = &mut x.w[..dk];
        w.fill(1.0);
        for alpha in x.alpha[..c * dk].chunks_exact(dk.max(1)) {
            w.iter_mut().zip(alpha).for_each(|(w, alpha)| *w *= alpha);
        }
        let (decay, kd) = (&*w, Left { values: &*x.kd, row: 1, col: dk });
        let vn = View { values: &*x.vn, step: dv };
        gemm_accumulate(isa, [dk, dv, c], kd, vn, self.s, (dv, |i| decay[i]));
    }
}
