//! Compares replies with drafts to those without, token for token: greedy and sampled, free, by schema, by grammar and in quotes,
//! each alone (a session) and in a batch of 8 (the scheduler).
//!
//! `cargo run --release --example draft_equality -- [PROMPTS] [MODEL]`: 500 prompts about held-out prose, by default on the
//! demonstration model. Fails at the first reply that differs. tests/drafts.rs has shorter forms on random weights.

use anyhow::{Context as _, Result, ensure};
use kernels::cpu::Cpu;
use kimi::Conversation;
use kimi::document_qa::quote_constraint::QuoteIndex;
use kimi::documents::Document;
use kimi::generation::decoder::GenerationParams;
use kimi::generation::event::{EngineEvent, Stats};
use kimi::generation::generate::{Request, generate_on};
use kimi::generation::grammar::{Compiled, Grammar, Grammars};
use kimi::generation::sample::{Constraint, Sampling};
use kimi::prefix_cache::namespace::Namespace;
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::{Drafting, LoadOptions};
use kimi::runtime::session::Session;
use kimi::scheduler::{Client, Scheduler, SchedulerLimits, SequenceRequest};
use serde_json::json;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The maximum length of a reply in tokens.
const REPLY: usize = 64;
/// Sentences of prose in a document; a document has five prompts in turn.
const SENTENCES: usize = 12;
/// The kinds of prompts in turn.
const KINDS: [&str; 5] = ["copy", "question", "JSON by schema", "grammar", "quotes"];

/// A prompt, the sampling of its reply and its constraint.
struct Case {
    kind: usize,
    prompt: Arc<[u32]>,
    sampling: Sampling,
    bias: Arc<[(u32, f32)]>,
    compiled: Option<Arc<Compiled>>,
    quotes: Option<Arc<QuoteIndex>>,
}

/// The tokens of a reply, and its end and drafts.
type Seen = (Vec<u32>, Stats);

impl Case {
    fn params(&self) -> GenerationParams {
        let constraint: Option<Box<dyn Constraint>> = match (&self.compiled, &self.quotes) {
            (Some(compiled), _) => Some(compiled.constraint()),
            (_, Some(quotes)) => Some(quotes.constraint()),
            _ => None,
        };
        let bias = Arc::clone(&self.bias);
        let ignore_end = self.quotes.is_some();
        GenerationParams { constraint, bias, ignore_end, ..GenerationParams::new(REPLY, self.sampling) }
    }

    /// The reply of a session of its own.
    fn alone(&self, engine: &Engine<Cpu>) -> Result<Seen> {
        let (mut session, mut tokens) = (Session::new(engine), Vec::new());
        let request = Request { prompt: &self.prompt, params: self.params() };
        let stats = generate_on(&mut session, request, &mut |event| {
            if let EngineEvent::Token { token, .. } = event {
                tokens.extend(token);
            }
            ControlFlow::Continue(())
        })?;
        Ok((tokens, stats))
    }
}

/// Collects the tokens and the end of a request.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<(Vec<u32>, Option<Stats>)>>);

impl Client for Collector {
    fn on_event(&mut self, event: EngineEvent) {
        let mut seen = self.0.lock().expect("no panic while the lock is held");
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

/// The replies of the scheduler, with `slots` sequences at a time.
fn batched(engine: &Engine<Cpu>, cases: &[Case], slots: usize) -> Result<Vec<Seen>> {
    let mut scheduler = Scheduler::new(engine, SchedulerLimits::new(slots, 4 << 30));
    let submit = |(i, case): (usize, &Case)| {
        let client = Collector::default();
        scheduler.submit(SequenceRequest {
            prompt: case.prompt.clone(),
            snapshot_lengths: Vec::new(),
            question: None,
            params: case.params(),
            logprobs: None,
            tenant: i as u64 % 3,
            namespace: Namespace::SHARED,
            client: Box::new(client.clone()),
        });
        client
    };
    let clients: Vec<Collector> = cases.iter().enumerate().map(submit).collect();
    while !scheduler.idle() {
        scheduler.step(&mut |_| ());
    }
    let seen = |client: Collector| {
        let (tokens, stats) = std::mem::take(&mut *client.0.lock().expect("no panic while the lock is held"));
        Ok((tokens, stats.context("an unfinished request")?))
    };
    clients.into_iter().map(seen).collect()
}

/// Greedy, plain, with filters, and with penalties.
fn sampling(i: usize) -> Sampling {
    let greedy = Sampling::greedy();
    let warm = Sampling { temperature: 0.8, seed: i as u64, ..greedy };
    match i % 4 {
        0 => greedy,
        1 => warm,
        2 => Sampling { top_k: 20, top_p: 0.9, min_p: 0.05, ..warm },
        _ => Sampling { repeat_penalty: 1.05, repeat_last_n: 64, presence_penalty: 0.1, ..warm },
    }
}

/// Prompts of all kinds about documents of held-out prose.
fn cases(engine: &Engine<Cpu>, n: usize) -> Result<Vec<Case>> {
    let tokenizer = engine.tokenizer.as_ref().context("no tokenizer")?;
    let grammars = Grammars::new(tokenizer, engine.config.vocab)?;
    let string = json!({ "type": "string", "maxLength": 24 });
    let properties = json!({ "subject": string, "places": { "type": "array", "items": string, "maxItems": 3 },
        "is_known": { "type": "boolean" }, "year": { "type": "integer" } });
    let schema = Grammar::Schema(json!({ "type": "object", "properties": properties,
        "required": ["subject", "places", "is_known", "year"], "additionalProperties": false }));
    let lark = "start: line line\nline: \"The text says about \" /[a-z ]{1,16}/ \" that it is known, and nothing more.\\n\"";
    let compile = |grammar| grammars.compile(&grammar, &|| false);
    let (schema, lark) = (compile(schema)?, compile(Grammar::Lark(lark.into()))?);
    let prose: Vec<&str> = include_str!("../models/demo/prose/heldout.txt").lines().collect();
    let mut cases = Vec::new();
    for document in 0..n.div_ceil(KINDS.len()) {
        let start = document * SENTENCES % (prose.len() - SENTENCES);
        let sentences = &prose[start..start + SENTENCES];
        let text = sentences.join(" ");
        let first: Vec<&str> = sentences[document % SENTENCES].split(' ').take(3).collect();
        let index = QuoteIndex::new(&[Document::plain("text", &text)], tokenizer, engine.config.vocab);
        let (index, quote) = (Arc::new(index), tokenizer.encode(">"));
        for kind in 0..KINDS.len() {
            let question = format!("{text}\n\nWhat does the text say about {}?", first.join(" "));
            let prompt = match kind {
                0 => tokenizer.encode(&format!("{text}\n\n{text}\n\n{}", first.join(" "))),
                4 => tokenizer.encode(&format!("{question}\n")),
                _ => {
                    let mut conversation = Conversation::new(None);
                    conversation.say("user", &question);
                    conversation.prompt(engine)?
                }
            };
            // Each line of a reply that begins as a quote is one.
            let bias =
                if kind == 4 { quote.iter().map(|token| (*token, 12.0)).collect() } else { Arc::default() };
            cases.push(Case {
                kind,
                prompt: prompt.into(),
                sampling: sampling(cases.len() / KINDS.len() + kind),
                bias,
                compiled: [None, None, Some(&schema), Some(&lark), None][kind].cloned(),
                quotes: (kind == 4).then(|| index.clone()),
            });
        }
    }
    cases.truncate(n);
    Ok(cases)
}

/// Compares replies and prints a line per kind.
fn compare(name: &str, cases: &[Case], expected: &[Seen], found: &[Seen]) -> Result<()> {
    for (kind, kind_name) in KINDS.iter().enumerate() {
        let (mut replies, mut tokens, mut drafted, mut accepted) = (0, 0, 0, 0);
        for (i, case) in cases.iter().enumerate().filter(|(_, case)| case.kind == kind) {
            let ((expected, without), (seen, with)) = (&expected[i], &found[i]);
            let at =
                expected.iter().zip(seen).position(|(a, b)| a != b).unwrap_or(expected.len().min(seen.len()));
            ensure!(
                (seen, &with.ended) == (expected, &without.ended),
                "{name}, prompt {i} ({kind_name}, {:?}): token {at} differs of {} and {}, {:?} instead of {:?}",
                case.sampling,
                seen.len(),
                expected.len(),
                with.ended,
                without.ended
            );
            replies += 1;
            tokens += seen.len();
            drafted += with.draft.drafted;
            accepted += with.draft.accepted;
        }
        println!(
            "{name:<28} {kind_name:<16} {replies:>4} replies {tokens:>6} tokens {drafted:>6} drafted {accepted:>6} accepted"
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let n = args.next().map_or(Ok(500), |n| n.parse()).context("PROMPTS")?;
    let model = args.next().map(Into::into);
    let open = |draft| {
        let store = StoreOptions::in_memory();
        Engine::open(&LoadOptions { model: model.clone(), draft, store, ..LoadOptions::default() })
    };
    let off = open(Drafting::Off)?;
    let cases = cases(&off, n)?;
    let alone =
        |engine: &Engine<Cpu>| cases.iter().map(|case| case.alone(engine)).collect::<Result<Vec<Seen>>>();
    let start = Instant::now();
    let expected = alone(&off)?;
    compare("no drafts, alone", &cases, &expected, &expected)?;
    compare("no drafts, batch of 8", &cases, &expected, &batched(&off, &cases, 8)?)?;
    for (name, draft) in [("auto", Drafting::Auto), ("7", Drafting::Tokens(7)), ("15", Drafting::Tokens(15))]
    {
        let engine = open(draft)?;
        compare(&format!("--draft {name}, alone"), &cases, &expected, &alone(&engine)?)?;
        compare(&format!("--draft {name}, batch of 8"), &cases, &expected, &batched(&engine, &cases, 8)?)?;
    }
    println!(
        "{} prompts, 7 runs each: all replies equal; {:.0} s",
        cases.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
