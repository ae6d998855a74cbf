//! Compares the gated delta rule with float64 goldens and the reference: whole, cut anywhere, and with several sequences
//! in a batch, at every SIMD level.

mod common;

use common::{Numbers, close, cpus, emulator::cuda, error, spans};
use kernels::backend::{Backend, DeltaRule};
use kernels::cpu::Cpu;
use safetensors::SafeTensors;

/// Inputs of the rule: q, k, v, g `[tokens, heads, dim]`, beta `[tokens, heads]`, S `[heads, dk, dv]`.
struct DeltaInputs {
    tokens: usize,
    heads: usize,
    dk: usize,
    dv: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
    s: Vec<f32>,
}

impl DeltaInputs {
    /// Random inputs; a token decays the state by at most e^-`decay`.
    fn random(seed: u64, [tokens, heads, dk, dv]: [usize; 4], decay: f32) -> DeltaInputs {
        let mut n = Numbers(seed);
        let g = (0..tokens * heads * dk).map(|_| -n.uniform(0.0, 1.0).powi(4) * decay).collect();
        DeltaInputs {
            q: n.unit_rows(tokens * heads, dk),
            k: n.unit_rows(tokens * heads, dk),
            v: n.vec(tokens * heads * dv),
            beta: (0..tokens * heads).map(|_| n.uniform(0.0, 1.0)).collect(),
            s: n.vec(heads * dk * dv),
            g,
            tokens,
            heads,
            dk,
            dv,
        }
    }

    /// o and the state after tokens `from..to`, given the state before, computed as `rule` does.
    fn part<B: Backend>(
        &self,
        b: &B,
        (from, to): (usize, usize),
        s: &mut B::Tensor,
        rule: impl Fn(&mut [kernels::backend::Span<'_, B::Tensor>], DeltaRule<'_, B::Tensor>) -> B::Tensor,
    ) -> Vec<f32> {
        let rows = |x: &[f32], dim: usize| {
            let cols = self.heads * dim;
            b.tensor(to - from, cols, &x[from * cols..to * cols])
        };
        let [q, k, g] = [&self.q, &self.k, &self.g].map(|x| rows(x, self.dk));
        let (v, beta) = (rows(&self.v, self.dv), rows(&self.beta, 1));
        let x = DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta };
        let mut spans = [kernels::backend::Span { rows: 0..to - from, state: s }];
        b.read(&rule(&mut spans, x))
    }

    /// Compares o and the state of a whole span on a backend with the expected ones.
    fn close_on<B: Backend>(&self, what: &str, b: &B, expected: &[Vec<f32>]) {
        let mut s = b.tensor(self.heads * self.dk, self.dv, &self.s);
        let o = self.part(b, (0, self.tokens), &mut s, |spans, x| b.delta_rule(spans, x));
        close(&format!("{what}, {}", b.describe()), &[o, b.read(&s)], expected);
    }

    /// o and the states of sequences of some lengths in one batch, each from the same state.
    fn together<B: Backend>(&self, lens: &[usize], b: &B) -> Vec<Vec<f32>> {
        self.batch(lens, b, |spans, x| b.delta_rule(spans, x))
    }

    /// o and the states of a batch, computed as `rule` does.
    fn batch<B: Backend>(
        &self,
        lens: &[usize],
        b: &B,
        rule: impl Fn(&mut [kernels::backend::Span<'_, B::Tensor>], DeltaRule<'_, B::Tensor>) -> B::Tensor,
    ) -> Vec<Vec<f32>> {
        let (rows, dv) = (self.heads * self.dk, self.dv);
        let mut states: Vec<_> = lens.iter().map(|_| b.tensor(rows, dv, &self.s)).collect();
        let [q, k, g] = [&self.q, &self.k, &self.g].map(|x| b.tensor(self.tokens, rows, x));
        let (v, beta) =
            (b.tensor(self.tokens, self.heads * dv, &self.v), b.tensor(self.tokens, self.heads, &self.beta));
        let inputs = DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta };
        let o = rule(&mut spans(lens, &mut states), inputs);
        [vec![b.read(&o)], states.iter().map(|s| b.read(s)).collect()].concat()
    }

    /// [`DeltaInputs::together`], in which each sequence is a draft.
    fn drafted<B: Backend>(&self, lens: &[usize], b: &B) -> Vec<Vec<f32>> {
        self.batch(lens, b, |spans, x| b.delta_rule_draft(spans, x))
    }

    /// o and the state on a CPU, cut at `cuts`.
    fn on(&self, b: &Cpu, cuts: &[usize]) -> [Vec<f32>; 2] {
        let mut s = b.tensor(self.heads * self.dk, self.dv, &self.s);
        let ends: Vec<usize> = [0].iter().chain(cuts).chain(&[self.tokens]).copied().collect();
        let part = |w: &[usize]| self.part(b, (w[0], w[1]), &mut s, |spans, x| b.delta_rule(spans, x));
        let o = ends.windows(2).flat_map(part).collect();
        [o, b.read(&s)]
    }
}

/// Compares the rule on each CPU, in one call and cut, with the expected result.
fn check_cuts(what: &str, x: &DeltaInputs, expected: &[Vec<f32>], cuts: &[&[usize]]) {
    for b in cpus() {
        for cuts in cuts {
            let what = format!("{what} cut at {cuts:?}, {}", b.describe());
            close(&what, &x.on(&b, cuts), expected);
        }
    }
}

#[test]
fn goldens() {
    let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kda_op.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    for case in ["tiny.layer1", "tiny_d128.layer1", "slow", "harsh", "one", "same_key"] {
        let shape = |name: &str| file.tensor(&format!("{case}.{name}")).unwrap().shape().to_vec();
        let floats = |name: &str| -> Vec<f32> {
            let tensor = file.tensor(&format!("{case}.{name}")).unwrap();
            tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let [q, k, v, g, beta, s] = ["q", "k", "v", "g", "beta", "S0"].map(floats);
        let (tokens, heads, dk, dv) = (shape("q")[0], shape("q")[1], shape("q")[2], shape("v")[2]);
        let x = DeltaInputs { tokens, heads, dk, dv, q, k, v, g, beta, s };
        let cuts: &[&[usize]] = if tokens > 100 { &[&[], &[1, 17, 97]] } else { &[&[]] };
        check_cuts(case, &x, &[floats("o"), floats("S")], cuts);

        let expected = [floats("o"), floats("S")];
        x.close_on(case, &kernels::reference::Reference, &expected);
        if let Some(cuda) = cuda() {
            x.close_on(case, cuda, &expected);
        }
    }
}

#[test]
fn odd_sizes() {
    for (shape, decay) in [
        ([1, 1, 1, 1], 1.0),
        ([2, 3, 5, 7], 0.1),
        ([17, 2, 33, 31], 30.0),
        ([64, 1, 16, 65], 1.0),
        ([65, 9, 8, 32], 0.0),
        ([129, 1, 40, 24], 1000.0),
    ] {
        let x = DeltaInputs::random(1, shape, decay);
        let b = kernels::reference::Reference;
        let mut s = b.tensor(x.heads * x.dk, x.dv, &x.s);
        let o = x.part(&b, (0, x.tokens), &mut s, |spans, x| b.delta_rule(spans, x));
        let expected = [o, b.read(&s)];
        check_cuts(&format!("{shape:?}"), &x, &expected, &[&[], &[x.tokens / 2], &[0, x.tokens]]);
        if let Some(cuda) = cuda() {
            x.close_on(&format!("{shape:?}"), cuda, &expected);
        }
    }
}

/// A prefill chunk of one sequence in a batch with single tokens of others gives the results of each alone.
#[test]
fn several_sequences() {
    let lens = [1, 70, 0, 3, 1];
    let x = DeltaInputs::random(2, [75, 2, 24, 40], 3.0);
    check!("several sequences", |b| x.together(&lens, b));
    // Head sizes that the GPU computes in chunks: more tokens than a slab, one chunk and a token, one token too few.
    let lens = [1, 545, 0, 65, 63];
    let x = DeltaInputs::random(4, [674, 1, 128, 128], 3.0);
    if let Some(cuda) = cuda() {
        close("in chunks", &x.together(&lens, cuda), &x.together(&lens, &kernels::reference::Reference));
    }
}

/// Decays to zero at once, and none at all, over a long span: nothing overflows and no precision is lost.
#[test]
fn extreme_decays() {
    for g in [0.0, -1e-7, -88.0, -1e4, -3e38, f32::NEG_INFINITY] {
        let mut x = DeltaInputs::random(3, [130, 1, 16, 16], 1.0);
        x.g.fill(g);
        let all: Vec<_> = cpus().iter().map(|b| x.on(b, &[])).collect();
        assert!(all[0].iter().flatten().all(|v| v.is_finite()), "g = {g}");
        for [o, s] in &all {
            assert!(error(o, &all[0][0]) < 2e-5 && error(s, &all[0][1]) < 2e-5, "g = {g}");
        }
        let Some(cuda) = cuda() else { continue };
        x.close_on(&format!("g = {g}"), cuda, &all[0]);
        // A head size that the GPU computes in chunks.
        let mut x = DeltaInputs::random(5, [97, 1, 128, 128], 1.0);
        x.g.fill(g);
        x.close_on(&format!("g = {g}"), cuda, &x.on(&cpus()[0], &[]));
    }
}

/// Several drafts in one batch: the outputs of all rows, and the states after the first.
#[test]
fn drafts() {
    let lens = [1, 16, 0, 2, 64];
    let x = DeltaInputs::random(6, [83, 2, 24, 40], 3.0);
    check!("drafts", |b| x.drafted(&lens, b));
}

/// Outputs and states of drafts have the bits of the rule, token by token, whatever number of tokens is accepted.
#[test]
fn drafts_have_the_bits_of_the_rule() {
    for shape in [[8, 3, 128, 128], [5, 9, 33, 31], [1, 2, 8, 8], [64, 1, 16, 65]] {
        let x = DeltaInputs::random(7, shape, 3.0);
        let accepted = [1, 2, x.tokens / 2, x.tokens];
        for (b, accepted) in cpus().iter().flat_map(|b| accepted.map(|n| (b, n.clamp(1, x.tokens)))) {
            let state = || b.tensor(x.heads * x.dk, x.dv, &x.s);
            let [mut s, mut expected] = [state(), state()];
            let o = x.part(b, (0, x.tokens), &mut s, |spans, x| b.delta_rule_draft(spans, x));
            let rule = |from, to, s: &mut _| x.part(b, (from, to), s, |spans, x| b.delta_rule(spans, x));
            assert!(o == rule(0, x.tokens, &mut state()), "outputs of {shape:?}, {}", b.describe());
            rule(1, accepted, &mut s);
            (0..accepted).for_each(|t| drop(rule(t, t + 1, &mut expected)));
            assert!(b.read(&s) == b.read(&expected), "state of {shape:?}, {accepted}, {}", b.describe());
        }
    }
}
