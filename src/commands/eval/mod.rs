//! `kimi eval`: measures the accuracy of answers to questions about texts of given lengths, by kind, and the perplexity
//! of held-out prose.
//!
//! The question set is generated from a seed by [`text`], with words held out from the demonstration model's training
//! data; it works with any model. A reply is correct if it equals the expected answer. Next: [`spec`], `chart` (the output).

mod chart;
mod spec;
mod text;

use crate::args::EngineArgs;
use crate::commands::perplexity;
use crate::commands::plot::PlotFile;
use crate::commands::plot::bars::BarStyle;
use crate::generation::conversation::Conversation;
use crate::generation::decoder::GenerationParams;
use crate::generation::event::EngineEvent;
use crate::generation::generate::{Request, generate};
use crate::generation::sample::Sampling;
use crate::io::output::Output;
use crate::runtime::handle::EngineHandle;
use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use spec::Spec;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use text::{Question, Text};

/// The command-line arguments of `kimi eval`.
#[derive(Clone, Debug, clap::Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Text lengths in tokens
    #[arg(short, long, value_delimiter = ',', default_value = "1024,4096,16384")]
    lengths: Vec<usize>,
    /// Number of questions per length
    #[arg(short, long, default_value_t = 200)]
    questions: usize,
    /// Number of questions per text (default: grows with the length)
    #[arg(long)]
    per_text: Option<usize>,
    /// Number of windows of 512 tokens of held-out prose for perplexity (0: none)
    #[arg(long, default_value_t = 64)]
    windows: usize,
    /// Seed of the question set
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write each question with prompt ids, expected answer and reply as JSON lines
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Draw the accuracy by kind and length as a picture (SVG)
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Counts of correct answers and of questions.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Tally {
    right: usize,
    asked: usize,
}

/// A question with its reply, as saved by `--save`.
#[derive(Debug, Serialize)]
struct Answered<'a> {
    tokens: usize,
    kind: &'a str,
    question: &'a str,
    expected: &'a str,
    reply: &'a str,
    prompt: &'a [u32],
    reply_ids: &'a [u32],
    limit: usize,
}

/// The reply of the model to one question.
struct Reply {
    prompt: Vec<u32>,
    ids: Vec<u32>,
    text: String,
}

/// Maximum tokens of a reply.
const LIMIT: usize = 64;

#[derive(Debug, Serialize)]
struct EvalReport {
    lengths: BTreeMap<usize, BTreeMap<String, Tally>>,
    perplexity: Option<f64>,
    perplexity_error: Option<f64>,
}

/// Runs all questions and prints the results.
pub fn run(args: &EvalArgs) -> Result<()> {
    ensure!(args.lengths.iter().all(|l| *l >= 64), "--lengths: expected at least 64 tokens each");
    ensure!(args.per_text != Some(0), "--per-text: expected at least 1, found 0");
    let plot = args.plot.as_deref().map(PlotFile::create).transpose()?;
    let engine = EngineHandle::open(&args.engine.options().in_memory())?;
    let mut save = match &args.save {
        Some(path) => Some(BufWriter::new(File::create(path).with_context(|| path.display().to_string())?)),
        None => None,
    };
    let spec = Spec::built_in();
    let mut report = EvalReport { lengths: BTreeMap::new(), perplexity: None, perplexity_error: None };
    for &length in &args.lengths {
        let kinds = ask_length(&engine, args, &spec, length, &mut save)?;
        report.lengths.insert(length, kinds);
    }
    if args.windows > 0 {
        let ids = engine.tokenizer()?.encode(text::PROSE);
        let (value, error) = perplexity::of(&engine, &ids, 512, args.windows)?;
        (report.perplexity, report.perplexity_error) = (Some(value), Some(error));
    }
    save.map_or(Ok(()), |mut file| file.flush())?;
    let mut out = Output::lock();
    if args.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        report.lines(BarStyle::detect()).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    plot.map_or(Ok(()), |file| file.write(&report.picture(&args.engine.options().name())))
}

/// Runs the questions of one text length.
fn ask_length(
    engine: &EngineHandle,
    args: &EvalArgs,
    spec: &Spec,
    length: usize,
    save: &mut Option<BufWriter<File>>,
) -> Result<BTreeMap<String, Tally>> {
    let tokenizer = engine.tokenizer()?;
    let size = |s: &str| tokenizer.encode(s).len();
    let per_text = args.per_text.unwrap_or((length / 256).clamp(4, 50));
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut asked = 0;
    for number in 0.. {
        if asked >= args.questions {
            break;
        }
        let seed = args.seed.wrapping_mul(1_000_003).wrapping_add((length * 10_007 + number) as u64);
        let mut text = Text::new(spec, seed, length);
        let body = text.lay_out(length, &size);
        let questions: Vec<Question> =
            (0..per_text.min(args.questions - asked)).map(|_| text.ask()).collect();
        asked += questions.len();
        for (question, reply) in questions.iter().zip(answers(engine, &body, &questions)?) {
            let tally = tallies.entry(question.kind.clone()).or_default();
            tally.asked += 1;
            tally.right += usize::from(reply.text.trim() == question.answer);
            let Some(save) = save else { continue };
            let line = Answered {
                tokens: length,
                kind: &question.kind,
                question: &question.text,
                expected: &question.answer,
                reply: &reply.text,
                prompt: &reply.prompt,
                reply_ids: &reply.ids,
                limit: LIMIT,
            };
            serde_json::to_writer(&mut *save, &line)?;
            writeln!(save)?;
        }
        if std::io::stderr().is_terminal() {
            let right: usize = tallies.values().map(|t| t.right).sum();
            eprint!("\r\x1b[K{length} tokens: {right} of {asked} right");
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    Ok(tallies)
}

/// Answers each question as the first one about the text, which is prefilled once.
fn answers(engine: &EngineHandle, body: &str, questions: &[Question]) -> Result<Vec<Reply>> {
    let mut session = engine.session();
    let mut prompts = Vec::new();
    for question in questions {
        let mut conversation = Conversation::new(None);
        conversation.say("user", &format!("{body}\n\n{}", question.text));
        prompts.push(conversation.prompt(engine)?);
    }
    let shared = prompts.iter().fold(prompts[0].len() - 1, |n, p| {
        prompts[0][..n].iter().zip(&p[..p.len() - 1]).take_while(|(a, b)| a == b).count()
    });
    session.prefill(&prompts[0][..shared], &mut |_, _| ControlFlow::Continue(()))?;
    let mut replies = Vec::new();
    for prompt in prompts {
        session.question_at(shared);
        let params = GenerationParams::new(LIMIT, Sampling::greedy());
        let request = Request { prompt: &prompt, params };
        let (mut ids, mut text) = (Vec::new(), String::new());
        generate(&mut session, request, &mut |event| {
            if let EngineEvent::Token { token, text: more, .. } = event {
                ids.extend(token);
                text += &more;
            }
            ControlFlow::Continue(())
        })?;
        replies.push(Reply { prompt, ids, text });
    }
    Ok(replies)
}
