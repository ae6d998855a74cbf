//! `kimi ask`: questions about files. The files stand first in the prompt and never move, so they are read once;
//! the model is asked to quote, and every quote is looked up in the files.
//!
//! Standard output is the answer. Next: [`reading`] (what is said before and while reading), [`quotes`].

pub mod document;
pub mod pace;
pub mod quotes;
mod reading;

use crate::conversation::Conversation;
use crate::engine::{Engine, EngineArgs};
use crate::generate::{Ended, Event, Request, Stats, generate};
use crate::on_device;
use crate::sample::Sampling;
use crate::session::Session;
use anyhow::{Result, bail};
use document::Document;
use kernels::backend::Backend;
use quotes::{Annotated, Quote, Texts};
use reading::Reading;
use rustyline::error::ReadlineError;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a question ends with to have its answer quoted.
const QUOTE: &str = " Quote the text.";
/// Tokens before the end of an earlier file that the next file cannot change.
const MARGIN: usize = 8;

/// Arguments of `kimi ask`.
#[derive(Clone, Debug, clap::Args)]
pub struct AskArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// A file or directory the question is about, `-` for standard input; may be given several times
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Of directories only files that match: `*.md`, `src/**`, `!*.min.js`; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// The question; without one, questions are read line by line
    question: Option<String>,
    /// Go on asking after the first answer
    #[arg(short, long)]
    interactive: bool,
    /// Do not ask for quotes
    #[arg(long)]
    no_quotes: bool,
    /// Tokens of an answer at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// Print a JSON object an answer
    #[arg(long)]
    json: bool,
    /// Read what does not fit into memory all the same
    #[arg(long)]
    force: bool,
    /// Say nothing but answers and errors
    #[arg(short, long)]
    quiet: bool,
}

/// Loads, reads, answers.
pub fn run(args: &AskArgs) -> Result<()> {
    let mut left_out = |line: &str| eprintln!("{line}");
    let documents = document::gather(&args.file, &args.include, &mut left_out)?;
    on_device!(&args.engine, |engine| run_on(&engine, args, &documents))
}

fn run_on<B: Backend>(engine: &Engine<B>, args: &AskArgs, documents: &[Document]) -> Result<()> {
    engine.tokenizer()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice: at once, whatever is not written yet
        }
    })?;
    let mut ask = Ask::new(engine, documents, args, interrupted)?;
    if let Some(question) = &args.question {
        ask.answer(question)?;
    }
    if args.question.is_none() || args.interactive { ask.keep_asking() } else { Ok(()) }
}

/// Questions about some files.
struct Ask<'e, B: Backend> {
    engine: &'e Engine<B>,
    args: &'e AskArgs,
    session: Session<'e, B>,
    conversation: Conversation,
    texts: Texts,
    /// The files, for the first question.
    document: Option<String>,
    /// The tokens that all first questions begin with.
    common: Vec<u32>,
    /// Ends of the files in them.
    ends: Vec<usize>,
    interrupted: Arc<AtomicBool>,
}

/// An answer for programs.
#[derive(Serialize)]
struct Answer<'a> {
    question: &'a str,
    answer: &'a str,
    quotes: &'a [Quote],
    files: Vec<&'a str>,
    prompt_tokens: usize,
    reused_tokens: usize,
    /// live, ram, disk, or null.
    reused_from: Option<String>,
    read_tokens: usize,
    read_seconds: f64,
    answer_tokens: usize,
    answer_seconds: f64,
    /// Whether the model ended it.
    complete: bool,
}

impl<'e, B: Backend> Ask<'e, B> {
    fn new(
        engine: &'e Engine<B>,
        documents: &[Document],
        args: &'e AskArgs,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Self> {
        let document = joined(documents);
        let common = common(engine, &document)?;
        Ok(Ask {
            engine,
            args,
            session: Session::new(engine),
            conversation: Conversation::default(),
            texts: Texts::new(documents),
            ends: ends(engine, documents, common.len())?,
            document: Some(document),
            common,
            interrupted,
        })
    }

    /// Questions from the terminal or a pipe, until its end.
    fn keep_asking(&mut self) -> Result<()> {
        let mut editor = rustyline::DefaultEditor::new()?;
        loop {
            match editor.readline("? ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    editor.add_history_entry(&line)?;
                    if let Err(e) = self.answer(line.trim()) {
                        eprintln!("{e:#}");
                    }
                }
                Err(ReadlineError::Interrupted) => eprintln!("(Ctrl-D leaves)"),
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Answers a question. One that comes to nothing is forgotten.
    fn answer(&mut self, question: &str) -> Result<()> {
        let asked = if self.args.no_quotes { question.to_owned() } else { format!("{question}{QUOTE}") };
        let said = match &self.document {
            Some(document) => format!("{document}{BETWEEN}{asked}"),
            None => asked,
        };
        self.conversation.say("user", &said);
        let answered = self.reply(question);
        match answered {
            Ok(()) => self.document = None, // it is in the conversation
            Err(_) => drop(self.conversation.undo()),
        }
        answered
    }

    fn reply(&mut self, question: &str) -> Result<()> {
        let prompt = self.conversation.prompt(self.engine)?;
        let start = Instant::now();
        let found = self.session.resume(&prompt)?;
        let resumed = start.elapsed();
        let mut reading = Reading::new(self.engine, prompt.len(), found, self.args.quiet);
        if self.document.is_some() {
            let same = self.common.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
            self.session.mark(&[&self.ends[..], &[same]].concat());
            reading.announce(&self.texts.names(), self.args.max_tokens, self.args.force)?;
        }
        let request = Request {
            prompt: &prompt,
            max_tokens: self.args.max_tokens,
            sampling: self.args.sampling,
            stops: &[],
            ignore_end: false,
        };
        self.interrupted.store(false, Ordering::Relaxed);
        let (mut text, mut ids, mut out) = (String::new(), Vec::new(), std::io::stdout().lock());
        let mut annotated = Annotated::new(&self.texts);
        let (json, interrupted, mut failed) = (self.args.json, self.interrupted.clone(), Ok(()));
        let mut stats = generate(&mut self.session, &request, &mut |event| {
            match event {
                Event::Prefill { done, .. } => reading.progress(done),
                Event::Token(id) => ids.push(id),
                Event::Text(new) => {
                    text.push_str(new);
                    let shown = annotated.push(new);
                    failed = if json { Ok(()) } else { write!(out, "{shown}").and_then(|()| out.flush()) };
                }
            }
            let stop = failed.is_err() || interrupted.load(Ordering::Relaxed);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        reading.finish();
        failed?;
        if stats.prefill.stopped {
            let (read, all) = (self.session.tokens().len(), prompt.len());
            bail!(
                "stopped after {read} of {all} tokens; what was read is kept, the same question goes on from it"
            );
        }
        (stats.prefill.reused, stats.prefill.source) = (found.reused, found.source);
        stats.prefill_time += resumed;
        let last = annotated.finish();
        if json {
            let answer = self.for_programs(question, &text, &annotated.quotes, &stats);
            writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        } else {
            writeln!(out, "{last}{}", if stats.ended == Ended::Cancelled { " [stopped]" } else { "" })?;
        }
        if !self.args.quiet {
            eprintln!("{}", stats.line());
        }
        self.conversation.reply(&text, &ids);
        Ok(())
    }

    fn for_programs<'a>(
        &'a self,
        question: &'a str,
        answer: &'a str,
        quotes: &'a [Quote],
        stats: &Stats,
    ) -> Answer<'a> {
        Answer {
            question,
            answer,
            quotes,
            files: self.texts.names(),
            prompt_tokens: stats.prefill.reused + stats.prefill.computed,
            reused_tokens: stats.prefill.reused,
            reused_from: stats.prefill.source.map(|source| format!("{source:?}").to_lowercase()),
            read_tokens: stats.prefill.computed,
            read_seconds: stats.prefill_time.as_secs_f64(),
            answer_tokens: stats.generated,
            answer_seconds: stats.decode_time.as_secs_f64(),
            complete: stats.ended == Ended::EndToken,
        }
    }
}

/// Between files, and between them and the question.
const BETWEEN: &str = "\n\n";

/// One file as it is; several each under its name.
fn joined(documents: &[Document]) -> String {
    match documents {
        [one] => one.text.trim_end().to_owned(),
        several => {
            let named = several.iter().map(|d| format!("{}:{BETWEEN}{}", d.name, d.text.trim_end()));
            named.collect::<Vec<_>>().join(BETWEEN)
        }
    }
}

/// The tokens that every question about a document begins with: what prompts of unlike questions share.
fn common<B: Backend>(engine: &Engine<B>, document: &str) -> Result<Vec<u32>> {
    let prompt = |question: &str| {
        let mut conversation = Conversation::default();
        conversation.say("user", &format!("{document}{BETWEEN}{question}"));
        conversation.prompt(engine)
    };
    let mut common = prompt("Who")?;
    for question in ["1", "那", "(b"] {
        let other = prompt(question)?;
        common.truncate(common.iter().zip(&other).take_while(|(a, b)| a == b).count());
    }
    Ok(common)
}

/// About where each file but the last ends: a directory with another file more is then read from there.
fn ends<B: Backend>(engine: &Engine<B>, documents: &[Document], common: usize) -> Result<Vec<usize>> {
    let tokenizer = engine.tokenizer()?;
    let (mut end, mut ends) = (common, Vec::new());
    for document in documents.iter().skip(1).rev() {
        let name = tokenizer.encode(&document.name).len();
        end = end.saturating_sub(tokenizer.encode(&document.text).len() + name + 2);
        ends.push(end.saturating_sub(MARGIN));
    }
    ends.reverse();
    Ok(ends)
}

/// Whether a person sees what is written to standard error.
fn watched() -> bool {
    std::io::stderr().is_terminal()
}
