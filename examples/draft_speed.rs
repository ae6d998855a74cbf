//! Measures decode with and without drafts for replies that are given: a copy of a part of the prompt with three words
//! changed, and prose that continues it. Random weights do not generate either, and the time of a step does not depend
//! on the tokens except for the experts.
//!
//! `cargo run --release --example draft_speed -- MODEL DEPTH TEXT...`: the words of the texts are the prompt.

use anyhow::{Context as _, Result};
use kernels::cpu::Cpu;
use kimi::generation::draft::Drafter;
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::LoadOptions;
use kimi::runtime::session::Session;
use std::ops::ControlFlow;
use std::time::Instant;

/// Tokens of each reply, and repetitions of the measurement.
const REPLY: usize = 192;
const REPS: usize = 5;

/// The words and signs of a text as tokens of a model with `vocab` of them.
fn tokens(text: &str, vocab: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let same = |c: char| c.is_alphanumeric() && first.is_alphanumeric() || c == ' ' && first == ' ';
        let end = rest.char_indices().find(|(at, c)| *at > 0 && !same(*c)).map_or(rest.len(), |(at, _)| at);
        let hash = rest[..end]
            .bytes()
            .fold(7u64, |hash, byte| hash.wrapping_mul(1_099_511_628_211) ^ u64::from(byte));
        if &rest[..end] != " " {
            tokens.push((hash % vocab as u64) as u32); // a single space belongs to its word
        }
        rest = &rest[end..];
    }
    tokens
}

/// Decodes a given reply; returns tokens per second, and drafted and accepted tokens.
fn decode(engine: &Engine<Cpu>, prompt: &[u32], reply: &[u32], drafts: bool) -> Result<(f64, [usize; 2])> {
    let mut session = Session::new(engine);
    session.prefill(prompt, &mut |_, _| ControlFlow::Continue(()))?;
    let start = Instant::now();
    let mut drafter = drafts.then(|| Drafter::new(engine, prompt));
    let mut step: Option<(usize, Instant)> = None;
    for (i, token) in reply.iter().enumerate() {
        std::hint::black_box(session.logits_row().and_then(|row| row.top_k(1).cloned()));
        let Some(drafter) = &mut drafter else {
            session.decode(*token)?;
            continue;
        };
        if let Some((tokens, start)) = step.take() {
            drafter.record(tokens, start.elapsed());
        }
        drafter.push(*token);
        drafter.count_accepted(session.has_drafted(*token));
        session.decode_with(*token, || {
            let draft = drafter.draft(reply.len() - i - 1, 0);
            step = Some((1 + draft.len(), Instant::now()));
            draft
        })?;
    }
    let counts = drafter.map_or([0; 2], |drafter| [drafter.counts.drafted, drafter.counts.accepted]);
    Ok((reply.len() as f64 / start.elapsed().as_secs_f64(), counts))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, depth, texts @ ..] = &args[..] else { anyhow::bail!("expected MODEL DEPTH TEXT...") };
    let depth: usize = depth.parse().context("DEPTH")?;
    let options =
        LoadOptions { model: Some(model.into()), store: StoreOptions::in_memory(), ..LoadOptions::default() };
    let engine = Engine::open(&options)?;
    let mut all = Vec::new();
    for text in texts {
        all.extend(tokens(
            &std::fs::read_to_string(text).with_context(|| text.clone())?,
            engine.config.vocab,
        ));
    }
    anyhow::ensure!(all.len() >= depth + REPLY, "expected {} tokens, found {}", depth + REPLY, all.len());
    let (prompt, prose) = (&all[..depth], &all[depth..depth + REPLY]);
    let mut copy = prompt[depth / 2..][..REPLY.min(depth - depth / 2)].to_vec();
    for at in [copy.len() / 5, copy.len() / 2, copy.len() * 4 / 5] {
        copy[at] = 17;
    }
    for (what, reply) in [("copy", &copy[..]), ("prose", prose)] {
        let mut rates = [Vec::new(), Vec::new()];
        let mut counts = [0; 2];
        for _ in 0..REPS {
            for (drafts, rates) in rates.iter_mut().enumerate() {
                let (rate, found) = decode(&engine, prompt, reply, drafts == 1)?;
                rates.push(rate);
                counts = found;
            }
        }
        let [off, auto] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[REPS / 2]
        });
        let [drafted, accepted] = counts;
        println!(
            "{what} at depth {depth}: {off:.1} tok/s without drafts, {auto:.1} with: {:.2} times; {accepted} of {drafted} accepted, {} tokens",
            auto / off,
            reply.len()
        );
    }
    Ok(())
}
