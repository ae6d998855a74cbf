//! Random small models: each is refused with a one-line error, or runs and agrees with the reference. More of them:
//! `cargo run -p models --example random_configs -- --count 3000 --seed 1`.

#[path = "support/random_model.rs"]
mod random_model;

use kernels::cpu::Cpu;
use random_model::{ModelOutcome, RandomModel};

#[test]
fn random_models_are_refused_in_a_line_or_agree_with_the_reference() {
    let cpu = Cpu::detect(Some(2));
    let (mut refused, mut agreed) = (0, 0);
    for seed in 0..240 {
        match RandomModel::new(seed).check(&cpu) {
            ModelOutcome::Refused(_) => refused += 1,
            ModelOutcome::Agreed(_) => agreed += 1,
            ModelOutcome::RoundedApart(_) | ModelOutcome::Ran => {}
        }
    }
    assert!(refused >= 40 && agreed >= 120, "{refused} refused, {agreed} agreed: both have to happen");
}

/// In this model k . q of a first token is close to 0 and rounding flips its sign: the CPU backend agrees with the reference
/// that rounds activations, not with the one that does not.
#[test]
fn logits_that_rounding_changes_agree_with_the_rounded_reference() {
    let outcome = RandomModel::new(4_265_788_412).check(&Cpu::detect(Some(2)));
    assert!(matches!(outcome, ModelOutcome::RoundedApart(error) if error > 0.5), "{outcome:?}");
}
