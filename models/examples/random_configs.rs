//! Loads and runs random small models of odd and broken shapes, and counts the outcomes. Each model is checked as in
//! `tests/random_configs.rs`.
//!
//! usage: random_configs [--count N] [--seed FIRST] [--verbose]

#[path = "../tests/support/random_model.rs"]
mod random_model;

use kernels::cpu::Cpu;
use random_model::{ModelOutcome, RandomModel};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::exit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A model that takes longer is reported as hanging.
const LONGEST: Duration = Duration::from_secs(10);

/// Seed of the current model.
static SEED: AtomicU64 = AtomicU64::new(0);
static SINCE: AtomicU64 = AtomicU64::new(0);

/// Models of both architectures in turn.
fn random_model(seed: u64) -> RandomModel {
    if seed.is_multiple_of(2) { RandomModel::new(seed) } else { RandomModel::ling(seed) }
}

fn main() {
    let (mut count, mut seed, mut verbose) = (3000, 0, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| usage());
        match arg.as_str() {
            "--count" => count = number(),
            "--seed" => seed = number(),
            "--verbose" => verbose = true,
            _ => usage(),
        }
    }
    let start = Instant::now();
    std::thread::spawn(move || watch(start));
    let cpu = Cpu::detect(Some(2));
    let [mut refused, mut agreed, mut rounded, mut ran, mut failed] = [0; 5];
    let (mut worst, mut slowest) = ((0.0, 0), (Duration::ZERO, 0));
    for seed in seed..seed + count {
        SINCE.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
        SEED.store(seed, Ordering::Relaxed);
        let began = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| random_model(seed).check(&cpu))) {
            Ok(ModelOutcome::Refused(line)) => {
                refused += 1;
                if verbose {
                    println!("{seed}: {line}");
                }
            }
            Ok(ModelOutcome::Agreed(error)) => {
                agreed += 1;
                if verbose {
                    println!("{seed}: agrees, relative error {error:.2e}");
                }
                if error > worst.0 {
                    worst = (error, seed);
                }
            }
            Ok(ModelOutcome::RoundedApart(error)) => {
                rounded += 1;
                println!("{seed}: differs by rounding, relative error {error:.2e}");
            }
            Ok(ModelOutcome::Ran) => ran += 1,
            Err(_) => {
                failed += 1;
                println!("seed {seed} failed");
            }
        }
        if began.elapsed() > slowest.0 {
            slowest = (began.elapsed(), seed);
        }
    }
    println!(
        "{count} random models: {refused} refused in a line, {agreed} agree with the reference (worst {:.2e}, seed {}), \
         {rounded} differ by rounding alone, {ran} ran where nothing can be compared, {failed} failed; \
         slowest {:.1?} (seed {})",
        worst.0, worst.1, slowest.0, slowest.1
    );
    exit(i32::from(failed > 0));
}

fn usage() -> ! {
    eprintln!("usage: random_configs [--count N] [--seed FIRST] [--verbose]");
    exit(2)
}

/// Exits when a model hangs.
fn watch(start: Instant) {
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let since = Duration::from_millis(SINCE.load(Ordering::Relaxed));
        if start.elapsed().saturating_sub(since) > LONGEST {
            println!("seed {} takes more than {LONGEST:?}", SEED.load(Ordering::Relaxed));
            exit(1);
        }
    }
}
