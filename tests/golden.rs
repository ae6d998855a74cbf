//! Compares the model with the published code: logits, experts and states on two random checkpoints, and results that do not
//! depend on how a prompt is cut. `tests/data/make_goldens.py` makes the goldens.

mod common;
#[path = "../kernels/tests/common/emulator.rs"]
mod emulator;

use common::{checkpoint, close, convert, skip, values};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kernels::reference::Reference;
use kernels::simd::SimdLevel;
use models::gguf::read::Gguf;
use models::hybrid::mla::MlaPath;
use models::hybrid::state::{LayerState, State};
use models::hybrid::{Model, Outputs, Probe, Sequence};
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::Path;

const PROMPTS: [usize; 5] = [1, 7, 64, 65, 300];
const LOGITS: f64 = 5e-5;
const OPS: f64 = 2e-5;

/// Records what a forward pass shows its probe.
struct ProbeRecorder<'b, B> {
    backend: &'b B,
    tensors: HashMap<(usize, &'static str), Vec<f32>>,
    experts: HashMap<usize, Vec<u32>>,
}

impl<B: Backend> Probe<B> for ProbeRecorder<'_, B> {
    fn tensor(&mut self, layer: usize, name: &'static str, x: &B::Tensor) {
        self.tensors.insert((layer, name), self.backend.read(x));
    }

    fn routed(&mut self, layer: usize, routed: &B::Routed) {
        self.experts.insert(layer, self.backend.routed(routed).0);
    }
}

/// A loaded model and its goldens.
struct GoldenModel<'a, B: Backend> {
    backend: &'a B,
    model: Model<B>,
    golden: &'a SafeTensors<'a>,
}

impl<'a, B: Backend> GoldenModel<'a, B> {
    fn run(&self, ids: &[u32], state: &mut State<B>, outputs: Outputs) -> Vec<f32> {
        let mut batch = [Sequence { tokens: ids, state, outputs, mla_path: MlaPath::Absorbed }];
        let logits = self.model.forward(self.backend, &mut batch, &mut ());
        logits.map(|l| self.backend.read(&l)).unwrap_or_default()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        values(self.golden, name).into_iter().map(|id| id as u32).collect()
    }

    fn state(&self) -> State<B> {
        self.model.state(self.backend, CacheFormat::F32)
    }

    /// Compares all positions of a prompt in one pass: logits, arg-max, experts, intermediate results and states.
    fn prompt(&self, n: usize) {
        let ids = self.ids(&format!("p{n}.input_ids"));
        let (mut state, backend) = (self.state(), self.backend);
        let mut seen = ProbeRecorder { backend, tensors: HashMap::new(), experts: HashMap::new() };
        let mut batch = [Sequence {
            tokens: &ids,
            state: &mut state,
            outputs: Outputs::All,
            mla_path: MlaPath::Absorbed,
        }];
        let logits = self.model.forward(backend, &mut batch, &mut seen).expect("logits");
        self.check_logits(&format!("p{n}.logits"), &backend.read(&logits));
        let top_k = self.model.config.moe.routing.top_k;
        for (layer, experts) in &seen.experts {
            let expected = values(self.golden, &format!("p{n}.layers.{layer}.experts"));
            for (found, expected) in experts.chunks(top_k).zip(expected.chunks(top_k)) {
                let mut found: Vec<f64> = found.iter().map(|e| f64::from(*e)).collect();
                found.sort_by(f64::total_cmp);
                assert_eq!(found, expected, "experts of layer {layer}");
            }
        }
        for ((layer, name), found) in &seen.tensors {
            let key = format!("p{n}.layers.{layer}.{name}");
            if *name != "latent" && self.golden.tensor(&key).is_ok() {
                close(&key, found, &values(self.golden, &key), LOGITS);
            }
        }
        self.check_state(n, &state);
    }

    fn check_logits(&self, name: &str, found: &[f32]) {
        let expected = values(self.golden, name);
        close(name, found, &expected, LOGITS);
        let vocab = self.model.config.vocab;
        for (found, expected) in found.chunks(vocab).zip(expected.chunks(vocab)) {
            let best = (0..vocab).max_by(|a, b| expected[*a].total_cmp(&expected[*b])).unwrap();
            assert_eq!(kimi::generation::sample::argmax(found) as usize, best, "{name}: arg-max");
        }
    }

    /// Compares S and the convolutions' tails, if the goldens have them.
    fn check_state(&self, n: usize, state: &State<B>) {
        for (i, layer) in state.layers.iter().enumerate() {
            let key = |name: &str| format!("p{n}.layers.{i}.{name}");
            let LayerState::Kda(kda) = layer else { continue };
            if self.golden.tensor(&key("state")).is_err() {
                continue;
            }
            close(&key("state"), &self.backend.read(&kda.s), &values(self.golden, &key("state")), LOGITS);
            // The golden is [q | k | v channels, taps - 1]; the state has a [taps - 1, channels] for each of them.
            let taps = self.model.config.kda.conv_taps - 1;
            let parts = kda.conv.iter().flat_map(|tail| {
                let tail = self.backend.read(tail);
                let width = tail.len() / taps;
                (0..width * taps).map(move |j| tail[j % taps * width + j / taps]).collect::<Vec<_>>()
            });
            let found: Vec<f32> = parts.collect();
            close(&key("conv_state"), &found, &values(self.golden, &key("conv_state")), LOGITS);
        }
    }

    /// Compares the logits of materialized attention, in two steps and in a batch with a sequence of absorbed attention.
    fn materialized(&self, n: usize) {
        let ids = self.ids(&format!("p{n}.input_ids"));
        let (mut state, mut other) = (self.state(), self.state());
        let mut found = Vec::new();
        for tokens in [&ids[..n / 2], &ids[n / 2..]].into_iter().filter(|t| !t.is_empty()) {
            let outputs = Outputs::None;
            let beside =
                Sequence { tokens: &ids[..1], state: &mut other, outputs, mla_path: MlaPath::Absorbed };
            let outputs = Outputs::All;
            let materialized =
                Sequence { tokens, state: &mut state, outputs, mla_path: MlaPath::Materialized };
            let logits = self.model.forward(self.backend, &mut [beside, materialized], &mut ());
            found.extend(logits.map(|l| self.backend.read(&l)).unwrap_or_default());
        }
        self.check_logits(&format!("p{n}.logits"), &found);
    }

    /// Compares the greedy continuation of the published code, token by token.
    fn continuation(&self, n: usize) {
        let ids = self.ids(&format!("p{n}.decode_ids"));
        let mut state = self.state();
        self.run(&ids[..n], &mut state, Outputs::None);
        let rows = ids[n..].iter().flat_map(|id| self.run(&[*id], &mut state, Outputs::Last));
        self.check_logits(&format!("p{n}.decode_logits"), &rows.collect::<Vec<_>>());
    }

    /// The last logits do not depend on how the prompt is cut, also in a batch with other sequences.
    fn cuts(&self, n: usize) {
        let ids = self.ids(&format!("p{n}.input_ids"));
        let whole: Vec<f64> =
            self.run(&ids, &mut self.state(), Outputs::Last).into_iter().map(f64::from).collect();
        for cut in [1, 15, 16, 17, 63, 64, 65, 100, n - 1].into_iter().filter(|c| (1..n).contains(c)) {
            let mut state = self.state();
            self.run(&ids[..cut], &mut state, Outputs::None);
            let mut other = self.state();
            let rest = Sequence {
                tokens: &ids[cut..],
                state: &mut state,
                outputs: Outputs::Last,
                mla_path: MlaPath::Absorbed,
            };
            let beside = Sequence {
                tokens: &ids[..3],
                state: &mut other,
                outputs: Outputs::None,
                mla_path: MlaPath::Absorbed,
            };
            let logits = self.model.forward(self.backend, &mut [beside, rest], &mut ());
            let logits = self.backend.read(&logits.expect("logits"));
            close(&format!("p{n} cut at {cut}"), &logits, &whole, OPS);
        }
        let mut state = self.state();
        let mut last = Vec::new();
        ids.iter().for_each(|id| last = self.run(&[*id], &mut state, Outputs::Last));
        close(&format!("p{n} token by token"), &last, &whole, OPS);
    }
}

/// Compares prompts in one pass and materialized; the `decoded` ones also continued and cut, which runs them many times.
fn check<B: Backend>(
    backend: &B,
    file: &Gguf,
    golden: &SafeTensors<'_>,
    prompts: &[usize],
    decoded: &[usize],
) {
    let model = Model::load(backend, file).expect("the converted file loads");
    let case = GoldenModel { backend, model, golden };
    for &n in prompts {
        case.prompt(n);
        case.materialized(n);
    }
    for &n in decoded {
        case.continuation(n);
        case.cuts(n);
    }
}

fn check_preset(preset: &str) {
    let dir = tempfile::tempdir().unwrap();
    let golden = std::fs::read(Path::new("tests/data/golden").join(format!("{preset}.safetensors"))).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let source = checkpoint(dir.path(), preset, 20260, &[]);
    let open = |kind| Gguf::open(convert(&source, kind)).unwrap();
    let file = open("f32");
    check(&Reference, &file, &golden, &[7, 65], &[7, 65]);
    // Without SIMD a fused multiply-add is a function call: the scalar level runs the short prompts only.
    let levels = SimdLevel::available();
    let (best, others) = levels.split_last().unwrap();
    others.iter().for_each(|level| check(&Cpu::new(2, *level), &file, &golden, &[1, 7], &[7]));
    check(&Cpu::new(2, *best), &file, &golden, &PROMPTS, &PROMPTS);
    if let Some(cuda) = emulator::cuda() {
        let replayed = cuda.replayed();
        check(cuda, &file, &golden, &[1, 7], &[7]);
        assert!(cuda.replayed() > replayed, "no decoded token was replayed");
    }
    // The checkpoint is BF16, so a BF16 file holds the same weights as an F32 one.
    check(&Cpu::new(2, *best), &open("bf16"), &golden, &PROMPTS, &[65]);
}

#[test]
fn tiny_equals_the_published_code() {
    check_preset("tiny");
}

#[test]
fn tiny_d128_equals_the_published_code() {
    check_preset("tiny_d128");
}
