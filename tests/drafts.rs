//! Drafted tokens change no reply: tokens, text, end and state with drafts equal those without, to the bit; greedy and
//! sampled, under stop strings, limits, grammars and quotes, alone and in a batch.

mod common;

use common::{kimi_ok, text};
use kernels::cpu::Cpu;
use kimi::document_qa::quote_constraint::QuoteIndex;
use kimi::documents::Document;
use kimi::generation::decoder::{FinishReason, GenerationParams};
use kimi::generation::event::{EngineEvent, Stats};
use kimi::generation::generate::{Request, generate_on};
use kimi::generation::grammar::{Compiled, Grammar, Grammars};
use kimi::generation::sample::Sampling;
use kimi::prefix_cache::namespace::Namespace;
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::{Drafting, LoadOptions};
use kimi::runtime::session::Session;
use kimi::scheduler::{Client, Scheduler, SchedulerLimits, SequenceRequest};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use tempfile::TempDir;

/// A random model of 4 layers, whose replies soon repeat themselves.
static RANDOM: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.gguf");
    kimi_ok(&["synth", text(&file), "--preset", "tiny", "--type", "q8_0", "--layers", "4"]);
    (dir, file)
});

/// The model with drafts as given; `None` for the demonstration model.
fn engine(model: Option<PathBuf>, draft: Drafting) -> Engine<Cpu> {
    let (threads, store) = (Some(2), StoreOptions::in_memory());
    let options = LoadOptions { model, threads, batch: Some(64), draft, store, ..LoadOptions::default() };
    Engine::open_with(&options, Box::new(|_| ())).unwrap()
}

fn random(draft: Drafting) -> Engine<Cpu> {
    engine(Some(RANDOM.1.clone()), draft)
}

const MODES: [Drafting; 3] = [Drafting::Auto, Drafting::Tokens(3), Drafting::Tokens(15)];

/// Greedy, plain, with filters, and with all penalties.
fn samplings() -> [Sampling; 4] {
    let greedy = Sampling::greedy();
    let warm = Sampling { temperature: 0.7, seed: 5, ..greedy };
    [
        greedy,
        warm,
        Sampling { top_k: 20, top_p: 0.9, min_p: 0.05, ..warm },
        Sampling {
            repeat_penalty: 1.05,
            repeat_last_n: 32,
            presence_penalty: 0.1,
            frequency_penalty: 0.02,
            ..warm
        },
    ]
}

/// Prompts of the random model: a period of 1 to 40 tokens, more or less disturbed.
fn prompt(i: u32) -> Vec<u32> {
    let period = 1 + i * 7 % 40;
    let token = |at: u32| {
        let disturbed = if (at + i).is_multiple_of(5 + i % 30) { at } else { 0 };
        (at % period * 37 + i * 11 + disturbed * 13) % 1500
    };
    (0..20 + i % 60).map(token).collect()
}

/// All that a caller sees of a reply, and the bits of the logits after more tokens on its state.
#[derive(PartialEq, Debug)]
struct Seen {
    tokens: Vec<u32>,
    text: String,
    ended: FinishReason,
    after: [Vec<u32>; 2],
}

/// Generates a reply and stops it from outside after `cancel` tokens.
fn reply(engine: &Engine<Cpu>, prompt: &[u32], params: GenerationParams, cancel: usize) -> (Seen, Stats) {
    let (mut session, mut tokens, mut text) = (Session::new(engine), Vec::new(), String::new());
    let stats = generate_on(&mut session, Request { prompt, params }, &mut |event| {
        if let EngineEvent::Token { token, text: more, .. } = event {
            tokens.extend(token);
            text += &more;
        }
        if tokens.len() >= cancel { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let stats = stats.unwrap();
    // A continuation of the session, and one of the snapshot after its reply.
    let room = (engine.context as usize).saturating_sub(prompt.len() + tokens.len()).min(3);
    let next = [prompt, &tokens, &[7, 9, 11][..room]].concat();
    let next = &next[..next.len().min(engine.context as usize)];
    let bits = |session: &mut Session<'_, Cpu>| -> Vec<u32> {
        session.prefill(next, &mut |_, _| ControlFlow::Continue(())).unwrap();
        session.logits().iter().map(|x| x.to_bits()).collect()
    };
    let mut other = Session::new(engine);
    let restored = other.restore_prefix(next).unwrap().reused;
    assert!(restored + 1 >= prompt.len() + tokens.len().min(1), "the reply's state is cached: {restored}");
    let after = [bits(&mut session), bits(&mut other)];
    (Seen { tokens, text, ended: stats.ended.clone(), after }, stats)
}

fn params(max_tokens: usize, sampling: Sampling) -> GenerationParams {
    GenerationParams { ignore_end: true, ..GenerationParams::new(max_tokens, sampling) }
}

/// Parameters under which the random model chooses among 2 to 4 tokens, so that its replies repeat themselves more or less.
fn few(i: u32, max_tokens: usize, sampling: Sampling) -> GenerationParams {
    let bias = (0..2 + i % 3).map(|token| (5 + token, 60.0)).collect();
    GenerationParams { bias, ..params(max_tokens, sampling) }
}

#[test]
fn replies_equal_those_without_drafts() {
    let off = random(Drafting::Off);
    let engines = MODES.map(random);
    let (mut drafted, mut accepted) = ([0; 3], [0; 3]);
    for i in 0..500 {
        let (prompt, sampling) = (prompt(i), samplings()[i as usize % 4]);
        let (expected, stats) = reply(&off, &prompt, few(i, 24, sampling), usize::MAX);
        assert_eq!((stats.generated, stats.draft.drafted), (24, 0));
        let mode = i as usize / 4 % 3;
        let (seen, stats) = reply(&engines[mode], &prompt, few(i, 24, sampling), usize::MAX);
        assert!(seen == expected, "{:?}, prompt {i}, {sampling:?}", MODES[mode]);
        drafted[mode] += stats.draft.drafted;
        accepted[mode] += stats.draft.accepted;
    }
    let some = |mode: usize| accepted[mode] > 50 && accepted[mode] < drafted[mode];
    assert!((0..3).all(some), "{accepted:?} accepted of {drafted:?}");
}

#[test]
fn replies_of_ling_equal_those_without_drafts() {
    let dir = tempfile::tempdir().unwrap();
    let model = common::ling(dir.path(), "q8_0");
    let off = engine(Some(model.clone()), Drafting::Off);
    let on = engine(Some(model), Drafting::Tokens(7));
    let mut accepted = 0;
    for i in 0..60 {
        let (prompt, sampling) = (prompt(i), samplings()[i as usize % 4]);
        let (expected, _) = reply(&off, &prompt, few(i, 24, sampling), usize::MAX);
        let (seen, stats) = reply(&on, &prompt, few(i, 24, sampling), usize::MAX);
        assert!(seen == expected, "prompt {i}, {sampling:?}");
        accepted += stats.draft.accepted;
    }
    assert!(accepted > 20, "{accepted} accepted");
}

/// A random Ling model with a block that predicts further tokens, and so few ids that some predictions are right.
#[test]
fn replies_of_ling_with_predictions_equal_those_without_drafts() {
    let dir = tempfile::tempdir().unwrap();
    let fields = ["num_nextn_predict_layers=1", "vocab_size=13"];
    let model = common::ling_with(dir.path(), "q8_0", &fields);
    let engines =
        [Drafting::Off, Drafting::Auto, Drafting::Tokens(3)].map(|mode| engine(Some(model.clone()), mode));
    let mut counts = [[0; 3]; 3];
    for i in 0..60 {
        let prompt: Vec<u32> = prompt(i).into_iter().map(|token| token % 13).collect();
        let replies = engines
            .each_ref()
            .map(|engine| reply(engine, &prompt, params(24, samplings()[i as usize % 4]), usize::MAX));
        for ((seen, stats), counts) in replies.iter().zip(&mut counts) {
            assert!(*seen == replies[0].0, "prompt {i}");
            let found = [stats.generated, stats.draft.drafted, stats.draft.accepted];
            counts.iter_mut().zip(found).for_each(|(sum, n)| *sum += n);
        }
    }
    let [off, auto, fixed] = counts;
    assert_eq!(off[1], 0);
    assert!(auto[1] > 0 && auto[1] < auto[0], "random predictions are soon given up: {auto:?}");
    assert!(fixed[2] > 60 && fixed[1] > 2 * (fixed[0] - fixed[2]), "each step has a draft: {fixed:?}");
    let [alone, batched] =
        [(&engines[0], 1), (&engines[2], 8)].map(|(engine, slots)| scheduled(engine, slots, 24));
    let tokens =
        |replies: &[(Vec<u32>, Stats)]| replies.iter().map(|(tokens, _)| tokens.clone()).collect::<Vec<_>>();
    assert!(tokens(&alone) == tokens(&batched), "in a batch of eight");
    assert!(batched.iter().any(|(_, stats)| stats.draft.accepted > 0));
}

#[test]
fn texts_of_the_demonstration_model_equal_those_without_drafts() {
    let off = engine(None, Drafting::Off);
    let drafts = engine(None, Drafting::Auto);
    let tokenizer = off.tokenizer().unwrap();
    let file = "The mill stood by the river. Anna kept the keys of the mill, and Tom kept the boat.\n";
    let mut accepted = 0;
    for (i, question) in
        ["Anna kept the", "Tom kept", "The mill stood", "The keys of"].into_iter().enumerate()
    {
        let prompt = tokenizer.encode(&format!("{file}{file}{question}"));
        for sampling in samplings() {
            let stops = ["boat.".to_owned(), "\n\n".to_owned()];
            let params =
                || GenerationParams { stops: stops[..i % 3 % 2 * 2].to_vec(), ..params(40, sampling) };
            let (expected, _) = reply(&off, &prompt, params(), usize::MAX);
            let (seen, stats) = reply(&drafts, &prompt, params(), usize::MAX);
            assert_eq!(seen, expected, "{question}");
            accepted += stats.draft.accepted;
        }
    }
    assert!(accepted > 20, "{accepted} accepted");
}

/// A schema, a grammar with forced parts, and a regular expression.
fn grammars_of_replies() -> [Grammar; 3] {
    let key = json!({ "type": "object", "properties": { "key of": { "enum": ["mill", "boat"] }, "count": { "type": "integer" } },
        "required": ["key of", "count"], "additionalProperties": false });
    let properties = json!({ "keeper": { "type": "string", "maxLength": 8 }, "keys": { "type": "array", "items": key, "maxItems": 3 } });
    [
        Grammar::Schema(json!({ "type": "object", "properties": properties, "required": ["keeper", "keys"],
            "additionalProperties": false })),
        Grammar::Lark(
            "start: line line line\nline: \"The keeper of \" /[a-z]{1,8}/ \" has the keys of the mill.\\n\""
                .into(),
        ),
        Grammar::Regex(
            "(Anna|Tom) kept the (keys of the mill|boat on the river), and nobody else did.".into(),
        ),
    ]
}

/// Greedy and sampled replies that a grammar or a file constrains, with the drafts that these expect.
#[test]
fn replies_under_constraints_equal_those_without_drafts() {
    let off = engine(None, Drafting::Off);
    let engines = MODES.map(|mode| engine(None, mode));
    let tokenizer = off.tokenizer.as_ref().unwrap();
    let grammars = Grammars::new(tokenizer, off.config.vocab).unwrap();
    let compiled = grammars_of_replies().map(|grammar| grammars.compile(&grammar, &|| false).unwrap());
    let text = "The mill stood by the river. Anna kept the keys of the mill, and Tom kept the boat.\n";
    let file = Document::plain("mill", text);
    let quotes = Arc::new(QuoteIndex::new(&[file], tokenizer, off.config.vocab));
    let mut accepted = [0; 4];
    for sampling in samplings() {
        for (kind, accepted) in accepted.iter_mut().enumerate() {
            let constraint = || compiled.get(kind).map_or_else(|| quotes.constraint(), Compiled::constraint);
            // Each line of a reply that begins as a quote is one.
            let bias = tokenizer.encode(">").iter().map(|token| (*token, 8.0)).collect();
            let params = || GenerationParams {
                constraint: Some(constraint()),
                bias: Arc::clone(&bias),
                ..params(60, sampling)
            };
            let prompt = tokenizer.encode("Who kept what? ");
            let (expected, stats) = reply(&off, &prompt, params(), usize::MAX);
            assert_eq!(stats.draft.drafted, 0);
            for (engine, mode) in engines.iter().zip(MODES) {
                let (seen, stats) = reply(engine, &prompt, params(), usize::MAX);
                assert_eq!(seen, expected, "constraint {kind}, {mode:?}, {sampling:?}");
                *accepted += stats.draft.accepted;
            }
        }
    }
    assert!(accepted.iter().all(|n| *n > 10), "{accepted:?} accepted");
}

/// A reply that repeats itself ends at every place of a draft: by its limit, the context's, a stop string, an end token
/// or its caller.
#[test]
fn ends_inside_a_draft_are_those_without() {
    let (off, drafts) = (random(Drafting::Off), random(Drafting::Tokens(15)));
    let prompt = [5, 6, 7, 8].repeat(10);
    let sampling = samplings()[1];
    let (_, stats) = reply(&drafts, &prompt, few(0, 60, sampling), usize::MAX);
    assert!((10..60).contains(&stats.draft.accepted) && stats.generated == 60, "{:?}", stats.draft);
    for n in 1..40 {
        let of = |engine, max, cancel| reply(engine, &prompt, few(0, max, sampling), cancel);
        let (expected, (seen, stats)) = (of(&off, n, usize::MAX).0, of(&drafts, n, usize::MAX));
        assert_eq!(seen, expected, "a limit of {n} tokens");
        assert!(stats.draft.drafted <= 15 * n && stats.draft.accepted < n.max(1), "{n}: {:?}", stats.draft);
        assert_eq!(of(&drafts, 60, n).0, of(&off, 60, n).0, "cancelled after {n} tokens");
        let context = |draft| {
            let options = LoadOptions {
                model: Some(RANDOM.1.clone()),
                threads: Some(2),
                ctx: Some((prompt.len() + n) as u64),
                draft,
                store: StoreOptions::in_memory(),
                ..LoadOptions::default()
            };
            let engine = Engine::open_with(&options, Box::new(|_| ())).unwrap();
            reply(&engine, &prompt, few(0, 60, sampling), usize::MAX).0
        };
        if n % 8 == 1 {
            assert_eq!(context(Drafting::Tokens(15)), context(Drafting::Off), "a context of {n} more tokens");
        }
    }
}

/// Collects the tokens of a request.
struct Collector(Arc<Mutex<(Vec<u32>, Option<Stats>)>>);

impl Client for Collector {
    fn on_event(&mut self, event: EngineEvent) {
        let mut seen = self.0.lock().unwrap();
        match event {
            EngineEvent::Token { token, .. } => seen.0.extend(token),
            EngineEvent::Finished(stats) => seen.1 = Some(stats),
            EngineEvent::Prefill { .. } => {}
        }
    }

    fn is_disconnected(&self) -> bool {
        false
    }
}

/// Runs requests on one scheduler, `slots` at a time, and returns their tokens and statistics.
fn scheduled(engine: &Engine<Cpu>, slots: usize, requests: u32) -> Vec<(Vec<u32>, Stats)> {
    let mut scheduler = Scheduler::new(engine, SchedulerLimits::new(slots, 1 << 30));
    let mut seen = Vec::new();
    for i in 0..requests {
        let one = Arc::new(Mutex::new((Vec::new(), None)));
        scheduler.submit(SequenceRequest {
            prompt: prompt(i).into_iter().map(|token| token % engine.config.vocab as u32).collect(),
            snapshot_lengths: Vec::new(),
            question: None,
            params: few(i, 10 + i as usize % 30, samplings()[i as usize % 4]),
            logprobs: (i % 5 == 0).then_some(2),
            tenant: u64::from(i % 3),
            namespace: Namespace::SHARED,
            client: Box::new(Collector(one.clone())),
        });
        seen.push(one);
    }
    while !scheduler.idle() {
        scheduler.step(&mut |_| ());
    }
    let taken = |one: Arc<Mutex<(Vec<u32>, Option<Stats>)>>| {
        let (tokens, stats) = std::mem::take(&mut *one.lock().unwrap());
        (tokens, stats.expect("a finished request"))
    };
    seen.into_iter().map(taken).collect()
}

#[test]
fn a_batch_of_eight_gives_the_replies_of_each_alone() {
    let alone = scheduled(&random(Drafting::Off), 1, 64);
    for mode in MODES {
        let engine = random(mode);
        let batched = scheduled(&engine, 8, 64);
        for (i, ((expected, without), (tokens, stats))) in alone.iter().zip(&batched).enumerate() {
            assert_eq!((tokens, &stats.ended), (expected, &without.ended), "{mode:?}, request {i}");
            assert!(stats.draft.accepted <= stats.draft.drafted && without.draft.drafted == 0);
        }
        let accepted: usize = batched.iter().map(|(_, stats)| stats.draft.accepted).sum();
        let least = if mode == Drafting::Auto { 5 } else { 30 };
        assert!(accepted > least, "{mode:?}: {accepted} accepted");
        // The states after the replies are those of an engine without drafts.
        for (i, (tokens, _)) in batched.iter().enumerate().filter(|(i, _)| i % 7 == 0) {
            let all = [&prompt(i as u32)[..], tokens, &[3]].concat();
            let bits = |engine: &Engine<Cpu>| -> Vec<u32> {
                let mut session = Session::new(engine);
                session.prefill(&all, &mut |_, _| ControlFlow::Continue(())).unwrap();
                session.logits().iter().map(|x| x.to_bits()).collect()
            };
            assert!(bits(&engine) == bits(&random(Drafting::Off)), "{mode:?}, state after reply {i}");
        }
    }
}
