//! Measures decode with and without drafts for replies that are given, since random weights generate none of them: a copy
//! of a part of the prompt with three words changed, a whole file with three changes, prose that continues the prompt,
//! quotes of `ask`, and JSON by a schema. The time of a step does not depend on the tokens except for the experts.
//!
//! `cargo run --release --example draft_speed -- MODEL DEPTH FILE TEXT...`: the prompt is DEPTH tokens of the texts and
//! the file. A model with a tokenizer: `kimi synth MODEL --tokenizer DIRECTORY`.

use anyhow::{Context as _, Result};
use kernels::cpu::Cpu;
use kimi::document_qa::quote_constraint::QuoteIndex;
use kimi::documents::Document;
use kimi::generation::decoder::GenerationParams;
use kimi::generation::event::Stats;
use kimi::generation::generate::{Request, generate_on};
use kimi::generation::grammar::{Grammar, Grammars};
use kimi::generation::sample::{Constraint, Sampling};
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::{Drafting, LoadOptions};
use kimi::runtime::session::Session;
use models::tokenizer::Vocabulary;
use serde_json::json;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// Tokens of a copy and of prose, and repetitions of the measurement.
const REPLY: usize = 192;
const REPS: usize = 5;

/// Leaves the given reply as the only choice, under the constraint that a reply of its kind has.
struct Given {
    inner: Option<Box<dyn Constraint>>,
    reply: Vec<u32>,
    at: usize,
    mask: Vec<u32>,
}

impl Constraint for Given {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        let token = self.reply[self.at] as usize;
        let allowed = self.inner.as_mut().map_or(Ok(None), |inner| inner.allowed())?;
        if allowed.is_some_and(|mask| mask[token / 32] >> (token % 32) & 1 == 0) {
            return Err(format!("token {} of the given reply is not allowed", self.at));
        }
        self.mask.fill(0);
        self.mask[token / 32] = 1 << (token % 32);
        Ok(Some(&self.mask))
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.at += 1;
        self.inner.as_mut().map_or(Ok(()), |inner| inner.accept(token))
    }

    fn wait(&mut self, limit: Duration) -> bool {
        self.inner.as_mut().is_none_or(|inner| inner.wait(limit))
    }

    fn likely(&mut self, limit: Duration) -> Vec<u8> {
        self.inner.as_mut().map_or(Vec::new(), |inner| inner.likely(limit))
    }
}

/// A reply, what it follows, and how it is constrained.
struct Case<'a> {
    name: &'a str,
    prompt: Vec<u32>,
    reply: Vec<u32>,
    constraint: Box<dyn Fn() -> Option<Box<dyn Constraint>> + 'a>,
}

impl Case<'_> {
    /// Decodes the reply; returns tokens per second and the statistics.
    fn decode(&self, engine: &Engine<Cpu>) -> Result<(f64, Stats)> {
        let given = Given {
            inner: (self.constraint)(),
            reply: self.reply.clone(),
            at: 0,
            mask: vec![0; engine.config.vocab.div_ceil(32)],
        };
        let params = GenerationParams {
            constraint: Some(Box::new(given)),
            ignore_end: true,
            ..GenerationParams::new(self.reply.len(), Sampling::greedy())
        };
        let mut session = Session::new(engine);
        let request = Request { prompt: &self.prompt, params };
        let stats = generate_on(&mut session, request, &mut |_| ControlFlow::Continue(()))?;
        anyhow::ensure!(stats.generated == self.reply.len(), "{}: {:?}", self.name, stats.ended);
        Ok((stats.generated as f64 / stats.decode_time.as_secs_f64(), stats))
    }

    /// Decodes with both engines in turn and prints medians.
    fn measure(&self, [off, auto]: &[Engine<Cpu>; 2]) -> Result<()> {
        let mut rates = [Vec::new(), Vec::new()];
        let mut counts = Default::default();
        for rep in 0..=REPS {
            for (engine, rates) in [off, auto].into_iter().zip(&mut rates) {
                let (rate, stats) = self.decode(engine)?;
                // The first repetition prefills the prompt and reads weights from the disk.
                rates.extend((rep > 0).then_some(rate));
                counts = stats.draft;
            }
        }
        let [off, auto] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[REPS / 2]
        });
        println!(
            "{} at depth {}: {off:.1} tok/s without drafts, {auto:.1} with: {:.2} times; {} of {} accepted, {} tokens",
            self.name,
            self.prompt.len(),
            auto / off,
            counts.accepted,
            counts.drafted,
            self.reply.len()
        );
        Ok(())
    }
}

/// A text with three of its words changed.
fn changed(text: &str) -> String {
    let words: Vec<&str> = text.split_inclusive(' ').collect();
    let at = [1, 2, 4].map(|fifth| words.len() * fifth / 5);
    words.iter().enumerate().map(|(i, word)| if at.contains(&i) { "otherwise " } else { word }).collect()
}

/// Sentences of a text as an answer of `ask` quotes them, and the answer.
fn quoting(text: &str) -> String {
    let text: Vec<&str> = text.split_whitespace().collect();
    let text = text.join(" ");
    let sentences: Vec<&str> = text.split_inclusive(". ").map(str::trim).collect();
    let whole =
        |s: &&&str| s.ends_with('.') && (60..300).contains(&s.len()) && s.starts_with(char::is_alphabetic);
    let quotes: Vec<&str> = sentences.iter().filter(whole).step_by(7).take(2).copied().collect();
    format!(
        "> {}\n\nThe text says so in these two sentences, as far as it says anything about it.",
        quotes.join("\n> ")
    )
}

/// Records of a schema, and a reply that matches it.
fn records() -> (Grammar, String) {
    let string = json!({ "type": "string" });
    let properties = json!({ "title": string, "language": string, "license": string, "lines_of_code": { "type": "integer" },
        "maintainer": string, "email": string, "is_archived": { "type": "boolean" }, "latest_release": string });
    let required: Vec<_> = properties.as_object().unwrap().keys().cloned().collect();
    let schema = json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
    let reply = r#"{"title": "A runtime for linear attention", "language": "Rust", "license": "MIT", "lines_of_code": 48210, "maintainer": "Anna Velt", "email": "anna@example.com", "is_archived": false, "latest_release": "0.2.0 of November"}"#;
    (Grammar::Schema(schema), reply.to_owned())
}

/// A prompt of about `depth` tokens, the texts and then the file, and the prose that follows in the texts.
fn split(tokenizer: &Vocabulary, file: &str, texts: &[String], depth: usize) -> Result<[Vec<u32>; 2]> {
    let mut all = Vec::new();
    for text in texts {
        all.extend(tokenizer.encode(&std::fs::read_to_string(text).with_context(|| text.clone())?));
    }
    let file = tokenizer.encode(file);
    let len = depth.saturating_sub(file.len());
    anyhow::ensure!(all.len() >= len + REPLY, "expected {} tokens, found {}", len + REPLY, all.len());
    Ok([[&all[..len], &file].concat(), all[len..len + REPLY].to_vec()])
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, depth, file, texts @ ..] = &args[..] else {
        anyhow::bail!("expected MODEL DEPTH FILE TEXT...")
    };
    let open = |draft| {
        let store = StoreOptions::in_memory();
        Engine::open(&LoadOptions { model: Some(model.into()), draft, store, ..LoadOptions::default() })
    };
    let engines = [open(Drafting::Off)?, open(Drafting::Auto)?];
    let (tokenizer, vocab) = (engines[0].tokenizer.clone().context("no tokenizer")?, engines[0].config.vocab);
    let file = std::fs::read_to_string(file).context("FILE")?;
    let [prompt, prose] = split(&tokenizer, &file, texts, depth.parse().context("DEPTH")?)?;
    let text = |tokens: &[u32]| {
        let bytes: Vec<u8> = tokens.iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let edited = changed(&file);
    let mut copy = prompt[prompt.len() / 2..][..REPLY].to_vec();
    for at in [copy.len() / 5, copy.len() / 2, copy.len() * 4 / 5] {
        copy[at] = 17;
    }
    let document = Document::plain("text", &text(&prompt));
    let quotes = quoting(&document.text);
    let quote_index = Arc::new(QuoteIndex::new(&[document], &tokenizer, vocab));
    let grammars = Grammars::new(&tokenizer, vocab)?;
    let (schema, json) = records();
    let recorded = Grammar::Lark(format!("start: {}", serde_json::to_string(&edited)?));
    let [schema, recorded] = [schema, recorded].map(|grammar| grammars.compile(&grammar, &|| false));
    let (schema, recorded) = (schema?, recorded?);
    let case = |name, reply, constraint| Case { name, prompt: prompt.clone(), reply, constraint };
    for case in [
        case("copy", copy, Box::new(|| None)),
        case("whole-file edit", tokenizer.encode(&edited), Box::new(|| None)),
        case(
            "whole-file edit by its grammar",
            tokenizer.encode(&edited),
            Box::new(|| Some(recorded.constraint())),
        ),
        case("quotes", tokenizer.encode(&quotes), Box::new(|| Some(quote_index.constraint()))),
        case("quotes, copied only", tokenizer.encode(&quotes), Box::new(|| None)),
        case("JSON by schema", tokenizer.encode(&json), Box::new(|| Some(schema.constraint()))),
        case("prose", prose, Box::new(|| None)),
    ] {
        case.measure(&engines)?;
    }
    Ok(())
}
