//! `kimi ask`: questions about files. The files stand first in the prompt and never move, so they are read once;
//! the model is asked to quote, can only quote what stands there, and every quote is looked up in the files.
//!
//! Standard output is the answer. Next: [`near`] (a model here) and [`far`] (one served elsewhere), [`reading`] (what is
//! said before and while reading), [`copying`] and [`quotes`].

mod copying;
mod far;
mod near;
pub(crate) mod pace;
pub(crate) mod quotes;
mod reading;

use crate::client::EndpointArgs;
use crate::generation::generate::{FinishReason, Stats};
use crate::generation::sample::Sampling;
use crate::io::document::{self, Document};
use crate::io::errors::{Stopped, one_line};
use crate::io::line_editor::{Line, LineEditor};
use crate::io::output::{Output, tell};
use crate::prefix_cache::key::PromptLayout;
use crate::runtime::builtin_model;
use crate::runtime::on_device;
use crate::runtime::options::EngineArgs;
use anyhow::{Result, bail};
use far::Far;
use near::Near;
use quotes::{Annotated, Quote, Texts};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a question ends with to have its answer quoted.
const QUOTE: &str = " Quote the text.";

/// Arguments of `kimi ask`.
#[derive(Clone, Debug, clap::Args)]
pub struct AskArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    endpoint: EndpointArgs,
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
    /// Do not ask for quotes, and leave free what an answer quotes all the same
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
    let mut left_out = |line: &str| tell(&line.replace('\n', " "));
    let documents = document::gather(&args.file, &args.include, &mut left_out)?;
    if args.question.is_none() && documents.iter().any(|document| document.name == document::PIPE) {
        bail!("question: expected one as an argument, as standard input is the text, found none");
    }
    if let Some(url) = &args.endpoint.url {
        return ask(args, &documents, Far::new(url, args)?);
    }
    on_device!(&args.engine.with_layout(PromptLayout::Ask), builtin_model::log(args.quiet), |engine| ask(
        args,
        &documents,
        Near::new(&engine, &documents, args)?
    ))
}

fn ask(args: &AskArgs, documents: &[Document], source: impl Source) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice: at once, whatever is not written yet
        }
    })?;
    let document = Some(joined(documents));
    let mut ask = Ask { args, source, texts: Texts::new(documents), document, interrupted };
    let ended = args.question.as_ref().map(|question| ask.answer(question)).transpose()?;
    match ended {
        Some(FinishReason::Cancelled) if !args.interactive => Err(Stopped.into()),
        Some(_) if !args.interactive => Ok(()),
        _ => ask.keep_asking(),
    }
}

/// Who answers.
trait Source {
    /// Answers what is said after all that was said and answered before: the answer and what it took. `on` hears it as it
    /// comes, and nothing (an empty text) while it waits; it may stop it. What comes to nothing is forgotten.
    fn reply(&mut self, said: &str, on: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(String, Stats)>;
}

/// Questions about some files.
struct Ask<'a, S> {
    args: &'a AskArgs,
    source: S,
    texts: Texts,
    /// The files, for the first question.
    document: Option<String>,
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

impl<S: Source> Ask<'_, S> {
    /// Questions from the terminal or a pipe, until its end.
    fn keep_asking(&mut self) -> Result<()> {
        let mut editor = LineEditor::new()?;
        let (mut asked, mut failed) = (0, 0);
        loop {
            match editor.read("? ")? {
                Line::Text(line) if line.trim().is_empty() => {}
                Line::Text(line) => {
                    editor.remember(&line)?;
                    asked += 1;
                    if let Err(e) = self.answer(line.trim()) {
                        tell(&one_line(&e));
                        failed += 1;
                    }
                }
                Line::Interrupted => tell("(Ctrl-D leaves)"),
                Line::End if failed == 0 || std::io::stdin().is_terminal() => return Ok(()),
                Line::End => bail!("{failed} of {asked} questions without an answer"),
            }
        }
    }

    /// Answers a question; says how the answer ended.
    fn answer(&mut self, question: &str) -> Result<FinishReason> {
        let asked = if self.args.no_quotes { question.to_owned() } else { format!("{question}{QUOTE}") };
        let said = match &self.document {
            Some(document) => format!("{document}{BETWEEN}{asked}"),
            None => asked,
        };
        self.interrupted.store(false, Ordering::Relaxed);
        let (mut out, mut annotated) = (Output::lock(), Annotated::new(&self.texts));
        let (json, interrupted, mut failed) = (self.args.json, &self.interrupted, Ok(()));
        let (text, stats) = self.source.reply(&said, &mut |new| {
            if !new.is_empty() {
                let shown = annotated.push(new);
                failed = if json { Ok(()) } else { out.say(&shown) };
            }
            let stop = failed.is_err() || interrupted.load(Ordering::Relaxed);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        failed?;
        self.document = None; // it is in the conversation
        let last = annotated.finish();
        self.print(&mut out, (question, &text), (&last, &annotated.quotes), &stats)?;
        Ok(stats.ended)
    }

    /// The end of an answer, or all of it for programs, and what it took.
    fn print(
        &self,
        out: &mut Output,
        (question, text): (&str, &str),
        (last, quotes): (&str, &[Quote]),
        stats: &Stats,
    ) -> Result<()> {
        if self.args.json {
            let answer = self.for_programs(question, text, quotes, stats);
            writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        } else {
            out.say(last)?;
            writeln!(out, "{}", if stats.ended == FinishReason::Cancelled { " [stopped]" } else { "" })?;
        }
        if !self.args.quiet {
            tell(&stats.line());
        }
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
            complete: stats.ended == FinishReason::EndToken,
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

/// Whether a person sees what is written to standard error.
fn watched() -> bool {
    std::io::stderr().is_terminal()
}
