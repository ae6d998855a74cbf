//! Decode steps on the CUDA emulator: the number of launches, and the GPU memory of captured graphs. The tests have a process
//! of their own, because other launches and allocations would be counted, too.

mod common;
#[path = "../kernels/tests/common/emulator.rs"]
mod emulator;

use common::{checkpoint, convert, ling, skip};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kernels::cuda::Cuda;
use models::gguf::read::Gguf;
use models::hybrid::config::MixerKind;
use models::hybrid::mla::MlaPath;
use models::hybrid::state::State;
use models::hybrid::{Model, Outputs, Probe, Sequence};
use std::sync::Mutex;

/// Three KDA layers, one of them dense, and an MLA layer: each kind of layer with each of its neighbors.
const FIELDS: [&str; 1] = ["num_hidden_layers=4"];

/// More states than graphs are cached, so that each is captured again in every round.
const STATES: usize = 9;

fn decode<B: Backend>(b: &B, model: &Model<B>, state: &mut State<B>) -> Vec<f32> {
    let mut batch = [Sequence { tokens: &[5], state, outputs: Outputs::Last, mla_path: MlaPath::Absorbed }];
    model.forward(b, &mut batch, &mut ()).map(|logits| b.read(&logits)).unwrap()
}

/// Serializes the tests of this file.
static ALONE: Mutex<()> = Mutex::new(());

/// Counts the kernel launches of each layer.
struct Launches<'a> {
    cuda: &'a Cuda,
    before: u64,
    layers: Vec<u64>,
}

impl Probe<Cuda> for Launches<'_> {
    fn is_active(&self) -> bool {
        false
    }
    fn layer_done(&mut self) {
        let now = self.cuda.launched();
        self.layers.push(now - self.before);
        self.before = now;
    }
}

/// KDA: projections, low ranks, delta attention, output: 4. MLA: projections, append, queries, attention, values, output: 6.
/// Then two for a dense layer, and the router besides for a mixture. Norms are in the launches that add to the residual stream
/// or to the cache.
#[test]
fn a_token_is_few_launches() {
    let Some(cuda) = emulator::cuda() else { return };
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    // A mix of formats takes no more launches than one format.
    let file = Gguf::open(convert(&checkpoint(dir.path(), "tiny_d128", 20260, &[]), "q4_k_m")).unwrap();
    let model = Model::load(cuda, &file).unwrap();
    for tokens in [1, 8] {
        let mut states: Vec<_> = (0..tokens).map(|_| model.state(cuda, CacheFormat::F16)).collect();
        // Outputs of all tokens (one) keep the step from being captured, which would hide its layers from the probe.
        let sequence =
            |state| Sequence { tokens: &[5], state, outputs: Outputs::All, mla_path: MlaPath::Absorbed };
        let mut batch: Vec<_> = states.iter_mut().map(sequence).collect();
        let mut launches = Launches { cuda, before: cuda.launched(), layers: Vec::new() };
        model.forward(cuda, &mut batch, &mut launches).unwrap();
        let all = cuda.launched() - launches.before;
        launches.layers[0] -= 2; // the rows of the tokens, and their norm
        let expected = |(i, kind): (usize, &MixerKind)| {
            let mixer = if *kind == MixerKind::Kda { 4 } else { 6 };
            mixer + if i < model.config.dense_layers { 2 } else { 3 }
        };
        let expected: Vec<u64> = model.config.layers.iter().enumerate().map(expected).collect();
        assert_eq!(launches.layers, expected, "{tokens} tokens");
        assert_eq!(all, 1, "the output");
    }
}

/// Every kernel of a captured step may begin before the one before it has ended, except for the first.
#[test]
fn all_launches_of_a_captured_step_overlap() {
    let Some(cuda) = emulator::cuda() else { return };
    let _alone = ALONE.lock();
    cuda.poison(false); // its fills would separate launches
    let dir = tempfile::tempdir().unwrap();
    let file = Gguf::open(convert(&checkpoint(dir.path(), "tiny_d128", 20260, &[]), "q4_k_m")).unwrap();
    let model = Model::load(cuda, &file).unwrap();
    for (allowed, expected) in [(true, 1), (false, 0)] {
        assert!(cuda.allow_programmatic_launches(allowed), "the emulated card has them");
        let mut state = model.state(cuda, CacheFormat::F16);
        let mut logits = Vec::new();
        for step in 0..3 {
            let counts = || [cuda.launched(), cuda.overlapping_launches()];
            let before = counts();
            logits.push(decode(cuda, &model, &mut state));
            let [all, overlapping] = [0, 1].map(|i| counts()[i] - before[i]);
            let serial = all - overlapping;
            if step == 1 {
                assert!(all > 10, "{all} launches captured");
                assert_eq!(if allowed { serial } else { overlapping }, expected, "of {all}");
            }
        }
    }
    cuda.allow_programmatic_launches(true);
    cuda.poison(true);
}

#[test]
fn steps_recorded_again_and_again_take_no_more_memory() {
    let Some(cuda) = emulator::cuda() else { return };
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let file = Gguf::open(convert(&checkpoint(dir.path(), "tiny", 20260, &FIELDS), "f32")).unwrap();
    let model = Model::load(cuda, &file).unwrap();
    let mut states: Vec<_> = (0..STATES).map(|_| model.state(cuda, CacheFormat::F16)).collect();
    let mut free = Vec::new();
    for _ in 0..3 {
        let replayed = cuda.replayed();
        let logits: Vec<_> =
            states.iter_mut().map(|state| [(); 4].map(|()| decode(cuda, &model, state))).collect();
        assert!(logits.iter().all(|l| *l == logits[0]), "the same tokens after the same");
        assert_eq!(cuda.replayed() - replayed, 2 * STATES as u64, "one op by op, one recorded, two replayed");
        free.push(cuda.memory()[0]);
    }
    assert!(free[1..].iter().all(|f| *f == free[1]), "{free:?}");
}

/// The positions that rotate Ling's keys advance on the device: replayed steps agree with the CPU's.
#[test]
fn replayed_steps_of_ling_agree_with_the_cpu() {
    let Some(cuda) = emulator::cuda() else { return };
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let file = Gguf::open(ling(dir.path(), "f32")).unwrap();
    let cpu = &Cpu::detect(Some(2));
    let (on_cuda, on_cpu) = (Model::load(cuda, &file).unwrap(), Model::load(cpu, &file).unwrap());
    let (mut there, mut here) = (on_cuda.state(cuda, CacheFormat::F32), on_cpu.state(cpu, CacheFormat::F32));
    let replayed = cuda.replayed();
    for step in 0..12 {
        let (found, expected) = (decode(cuda, &on_cuda, &mut there), decode(cpu, &on_cpu, &mut here));
        let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        let apart = found.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart <= 1e-4 * largest, "{apart} of {largest} in step {step}");
    }
    assert!(cuda.replayed() >= replayed + 8, "{} replayed steps", cuda.replayed() - replayed);
}

/// Drafts between captured and replayed steps give the logits of single tokens, up to rounding, also after rejected ones.
#[test]
fn drafts_between_replayed_steps_agree_with_single_tokens() {
    let Some(cuda) = emulator::cuda() else { return };
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let file = Gguf::open(convert(&checkpoint(dir.path(), "tiny_d128", 20262, &FIELDS), "f32")).unwrap();
    let model = Model::load(cuda, &file).unwrap();
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 200).collect();
    let step = |state: &mut State<Cuda>, tokens: &[u32], outputs| -> Vec<Vec<f32>> {
        let mut batch = [Sequence { tokens, state, outputs, mla_path: MlaPath::Absorbed }];
        let logits = cuda.read(&model.forward(cuda, &mut batch, &mut ()).unwrap());
        logits.chunks(model.config.vocab).map(<[f32]>::to_vec).collect()
    };
    let mut state = model.state(cuda, CacheFormat::F32);
    let expected: Vec<_> = ids.iter().flat_map(|id| step(&mut state, &[*id], Outputs::Last)).collect();
    let (mut state, mut at, replayed) = (model.state(cuda, CacheFormat::F32), 0, cuda.replayed());
    let check = |found: Vec<Vec<f32>>, at: usize| {
        for (found, expected) in found.iter().zip(&expected[at..]) {
            let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
            let apart = found.iter().zip(expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(apart <= 1e-3 * largest, "{apart} of {largest} after token {at}");
        }
    };
    for accepted in [1, 3, 6, 2, 6] {
        for _ in 0..3 {
            check(step(&mut state, &ids[at..at + 1], Outputs::Last), at);
            at += 1;
        }
        // The tokens after the accepted ones are wrong.
        let wrong = ids[at..at + 6].iter().enumerate();
        let draft: Vec<u32> = wrong.map(|(i, id)| if i < accepted { *id } else { (id + 1) % 200 }).collect();
        let mut found = step(&mut state, &draft, Outputs::Draft);
        found.truncate(accepted);
        check(found, at);
        model.accept(cuda, &mut state, accepted);
        at += accepted;
        assert_eq!(state.position as usize, at);
    }
    assert!(cuda.replayed() > replayed + 4, "{} replayed steps", cuda.replayed() - replayed);
}
