//! Random small models: each is refused with a one-line error, or runs and agrees with the reference. More of them:
//! `cargo run -p models --example random_configs -- --count 3000 --seed 1`.

#[path = "support/random_model.rs"]
mod random_model;

use kernels::backend::Backend;
use kernels::cpu::Cpu;
use models::hybrid::mla::MlaPath;
use models::hybrid::mtp::WINDOW;
use models::hybrid::state::State;
use models::hybrid::{Model, Outputs, Sequence};
use random_model::{ModelOutcome, RandomModel, predictions};

/// Checks 240 random models of an architecture.
fn check(random: fn(u64) -> RandomModel) {
    let cpu = Cpu::detect(Some(2));
    let (mut refused, mut agreed) = (0, 0);
    for seed in 0..240 {
        match random(seed).check(&cpu) {
            ModelOutcome::Refused(_) => refused += 1,
            ModelOutcome::Agreed(_) => agreed += 1,
            ModelOutcome::RoundedApart(_) | ModelOutcome::Ran => {}
        }
    }
    assert!(refused >= 40 && agreed >= 120, "{refused} refused, {agreed} agreed: both have to happen");
}

#[test]
fn random_models_are_refused_in_a_line_or_agree_with_the_reference() {
    check(RandomModel::new);
}

#[test]
fn random_ling_models_are_refused_in_a_line_or_agree_with_the_reference() {
    check(RandomModel::ling);
}

/// In this model k . q of a first token is close to 0 and rounding flips its sign: the CPU backend agrees with the reference
/// that rounds activations, not with the one that does not.
#[test]
fn logits_that_rounding_changes_agree_with_the_rounded_reference() {
    let outcome = RandomModel::new(4_265_788_412).check(&Cpu::detect(Some(2)));
    assert!(matches!(outcome, ModelOutcome::RoundedApart(error) if error > 0.5), "{outcome:?}");
}

/// The bits of logits, which are equal for equal results.
fn bits(logits: Vec<f32>) -> Vec<u32> {
    logits.into_iter().map(f32::to_bits).collect()
}

/// The bits of a sequence's state and its rows.
fn state_bits(b: &Cpu, state: &State<Cpu>) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.export_rows(b, 0..state.position as usize, &mut bytes);
    state.export_recurrent(b, &mut bytes);
    bytes
}

/// Runs steps of one batch: tokens and outputs of each sequence. Returns the bits of each row of logits.
fn step(
    b: &Cpu,
    model: &Model<Cpu>,
    states: &mut [State<Cpu>],
    tokens: &[(&[u32], Outputs)],
) -> Vec<Vec<u32>> {
    let mut batch = Vec::new();
    for (state, (tokens, outputs)) in states.iter_mut().zip(tokens) {
        batch.push(Sequence { tokens, state, outputs: *outputs, mla_path: MlaPath::Absorbed });
    }
    let logits = model.forward(b, &mut batch, &mut ()).map_or(Vec::new(), |logits| b.read(&logits));
    logits.chunks(model.config.vocab).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

/// A draft, alone and in a batch with a prompt, a decoded token and another draft, gives the logits of single tokens and,
/// whatever number of tokens is accepted, their state.
#[test]
fn drafts_give_the_bits_of_single_tokens() {
    let b = &Cpu::detect(Some(2));
    let mut ran = 0;
    for seed in 0..160 {
        let random = if seed < 100 { RandomModel::new(seed) } else { RandomModel::ling(seed) };
        let Ok(model) = Model::load(b, &random.file) else { continue };
        let vocab = model.config.vocab as u32;
        let ids: Vec<u32> = (0..20).map(|i| (i * 7 + seed as u32) % vocab).collect();
        let mut prompt = model.state(b, random.cache);
        step(b, &model, std::slice::from_mut(&mut prompt), &[(&ids[..3], Outputs::None)]);
        // Token by token: the logits after each, and the states.
        let (mut single, mut logits, mut states) = ([prompt.copy(b)], Vec::new(), Vec::new());
        for id in &ids[3..11] {
            logits.extend(step(b, &model, &mut single, &[(&[*id], Outputs::Last)]));
            states.push(state_bits(b, &single[0]));
        }
        for accepted in [1, 2, 5, 8] {
            let others =
                [(&ids[..7], Outputs::Last), (&ids[3..4], Outputs::Last), (&ids[3..6], Outputs::Draft)];
            let draft = (&ids[3..11], Outputs::Draft);
            for batch in [&[draft][..], &[others[0], others[1], draft, others[2]]] {
                let at = batch.len() / 2;
                let mut all: Vec<_> = batch.iter().map(|_| prompt.copy(b)).collect();
                let rows = step(b, &model, &mut all, batch);
                let what = format!("seed {seed}, {accepted} accepted of {} sequences", batch.len());
                assert!(rows[at..at + 8] == logits, "logits of {what}");
                assert!(at == 0 || rows[1] == logits[0], "a decoded token beside {what}");
                model.accept(b, &mut all[at], accepted);
                assert!(state_bits(b, &all[at]) == states[accepted - 1], "state of {what}");
            }
        }
        ran += 1;
    }
    assert!(ran >= 80, "{ran} models ran");
}

/// Predictions of further tokens have the same bits whatever steps the tokens came in: one, a few at a time with predictions
/// between them, or drafts of which a part is accepted.
#[test]
fn predictions_do_not_depend_on_steps() {
    let b = &Cpu::detect(Some(2));
    let mut ran = 0;
    for seed in 0..120 {
        let random = RandomModel::ling(seed);
        let Ok(model) = Model::load(b, &random.file) else { continue };
        if !model.predicts() {
            continue;
        }
        let ids: Vec<u32> = (0..24).map(|i| (i * 7 + seed as u32) % model.config.vocab as u32).collect();
        let follow = || {
            let mut state = [model.state(b, random.cache)];
            model.follow(b, &mut state[0], random.cache);
            state
        };
        let mut whole = follow();
        assert_eq!(predictions(b, &model, &mut whole[0], &ids[..1]), [0.0; 0], "nothing is known yet");
        step(b, &model, &mut whole, &[(&ids[..20], Outputs::None)]);
        let expected = bits(predictions(b, &model, &mut whole[0], &ids[20..]));
        assert_eq!(expected.len(), 4 * model.config.vocab);
        let mut steps = follow();
        for (i, end) in [3, 4, 5, 12, 20].into_iter().enumerate() {
            let tokens = &ids[steps[0].position as usize..end];
            if i % 2 == 0 {
                step(b, &model, &mut steps, &[(tokens, Outputs::Last)]);
            } else {
                let wrong = [tokens, &ids[..3]].concat();
                step(b, &model, &mut steps, &[(&wrong, Outputs::Draft)]);
                model.accept(b, &mut steps[0], tokens.len());
            }
            if i != 1 {
                predictions(b, &model, &mut steps[0], &[ids[end], 0, 0]);
            }
        }
        // The next token is the same one as before: its row is there already.
        step(b, &model, &mut steps, &[(&ids[20..21], Outputs::Last)]);
        step(b, &model, &mut whole, &[(&ids[20..21], Outputs::Last)]);
        let [found, expected] =
            [&mut steps[0], &mut whole[0]].map(|state| bits(predictions(b, &model, state, &ids[21..])));
        assert!(found == expected, "seed {seed}");
        ran += 1;
    }
    assert!(ran >= 30, "{ran} models ran");
}

/// A sequence whose predictions pause for long is followed from its last tokens on, as after a long prompt.
#[test]
fn predictions_start_anew_after_a_pause() {
    let b = &Cpu::detect(Some(2));
    let predicts = |seed: &u64| Model::load(b, &RandomModel::ling(*seed).file).is_ok_and(|m| m.predicts());
    let random = RandomModel::ling((0..).find(predicts).unwrap());
    let model = Model::load(b, &random.file).unwrap();
    let ids: Vec<u32> = (0..3 * WINDOW as u32).map(|i| i * i % model.config.vocab as u32).collect();
    let [mut prompt, mut steps] = [(); 2].map(|()| [model.state(b, random.cache)]);
    model.follow(b, &mut prompt[0], random.cache);
    model.follow(b, &mut steps[0], random.cache);
    step(b, &model, &mut prompt, &[(&ids[..], Outputs::None)]);
    for (i, tokens) in ids.chunks(WINDOW / 4).enumerate() {
        step(b, &model, &mut steps, &[(tokens, Outputs::None)]);
        if i == 1 {
            predictions(b, &model, &mut steps[0], &[ids[WINDOW / 2]]);
        }
    }
    let [found, expected] =
        [&mut steps[0], &mut prompt[0]].map(|state| bits(predictions(b, &model, state, &[0, 0])));
    assert!(!found.is_empty() && found == expected);
}
