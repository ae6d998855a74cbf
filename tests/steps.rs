//! Decoded steps on the CUDA backend, by the stand-in device: what recording them takes of its memory. A process of its
//! own, as nobody else may have memory meanwhile.

mod common;
#[path = "../kernels/tests/common/stand_in.rs"]
mod stand_in;

use common::{checkpoint, convert};
use kernels::backend::{Backend, CacheFormat};
use models::gguf::read::Gguf;
use models::kimi_linear::mla::Form;
use models::kimi_linear::state::State;
use models::kimi_linear::{Model, Outputs, Sequence};

/// More states than steps are kept, so that each is recorded anew in every round.
const STATES: usize = 9;

fn decode<B: Backend>(b: &B, model: &Model<B>, state: &mut State<B>) -> Vec<f32> {
    let mut batch = [Sequence { tokens: &[5], state, outputs: Outputs::Last, form: Form::Absorbed }];
    model.forward(b, &mut batch, &mut ()).map(|logits| b.read(&logits)).unwrap()
}

#[test]
fn steps_recorded_again_and_again_take_no_more_memory() {
    let dir = tempfile::tempdir().unwrap();
    let file = Gguf::open(convert(&checkpoint(dir.path(), "tiny", 20260, &[]), "f32")).unwrap();
    let cuda = stand_in::cuda();
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
