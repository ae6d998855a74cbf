//! `kimi ask`: questions about files. The files come first in the prompt, so that later questions reuse their prefix. The
//! prompt asks for quotes, decoding is constrained to quote the files verbatim, and every quote is located in them.
//!
//! Answers go to standard output, everything else to standard error. Next: [`local`] and [`remote`] (the models),
//! [`prefill_progress`], [`quote_constraint`] and [`quotes`].

pub(crate) mod eta;
mod local;
mod prefill_progress;
mod quote_constraint;
pub(crate) mod quotes;
mod remote;

use crate::args::EngineArgs;
use crate::client::EndpointArgs;
use crate::generation::generate::{FinishReason, Stats};
use crate::generation::sample::Sampling;
use crate::io::document::{self, Document};
use crate::io::errors::{Stopped, one_line};
use crate::io::line_editor::{Line, LineEditor};
use crate::io::output::{Output, tell};
use crate::prefix_cache::key::PromptLayout;
use crate::runtime::builtin_model;
use crate::runtime::handle::EngineHandle;
use anyhow::{Result, bail};
use local::LocalModel;
use quotes::{Annotated, Quote, Texts};
use remote::RemoteModel;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Suffix of a question that asks for quotes.
const QUOTE: &str = " Quote the text.";

#[derive(Clone, Debug, clap::Args)]
pub struct AskArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub endpoint: EndpointArgs,
    /// File or directory to ask about, `-` for standard input; may be repeated
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Read only matching files of directories: `*.md`, `src/**`, `!*.min.js`; may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// The question; without it, questions are read line by line
    question: Option<String>,
    /// Read further questions after the first answer
    #[arg(short, long)]
    interactive: bool,
    /// Do not ask for quotes, and do not constrain them to the files
    #[arg(long)]
    no_quotes: bool,
    /// Maximum number of tokens to generate per answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// Print one JSON object per answer
    #[arg(long)]
    json: bool,
    /// Prefill prompts that do not fit into memory
    #[arg(long)]
    force: bool,
    /// Print answers and errors only
    #[arg(short, long)]
    quiet: bool,
}

impl AskArgs {
    /// Returns whether the process reads further questions after a failed one.
    fn asks_again(&self) -> bool {
        self.question.is_none()
    }
}

/// Reads the files, loads the model and answers the questions.
pub fn run(args: &AskArgs) -> Result<()> {
    let mut note = |line: &str| tell(&line.replace('\n', " "));
    let documents = document::gather(&args.file, &args.include, &mut note)?;
    if args.question.is_none() && documents.iter().any(|document| document.name == document::PIPE) {
        bail!("no question: give it as an argument, because standard input is the text");
    }
    if let Some(url) = &args.endpoint.url {
        return ask(args, &documents, RemoteModel::new(url, args)?);
    }
    let options = args.engine.options().with_layout(PromptLayout::Ask);
    let engine = EngineHandle::load(&options, builtin_model::log(args.quiet))?;
    ask(args, &documents, LocalModel::new(&engine, &documents, args)?)
}

fn ask(args: &AskArgs, documents: &[Document], model: impl Model) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // second Ctrl-C: exit at once
        }
    })?;
    let document = Some(joined(documents));
    let mut ask = Ask { args, model, texts: Texts::new(documents), document, interrupted };
    let ended = args.question.as_ref().map(|question| ask.answer(question)).transpose()?;
    match ended {
        Some(FinishReason::Cancelled) if !args.interactive => Err(Stopped.into()),
        Some(_) if !args.interactive => Ok(()),
        _ => ask.answer_lines(),
    }
}

/// A model that answers questions in one conversation.
trait Model {
    /// Adds a message to the conversation and generates the reply. Passes text to `on_text` as it is generated, and an
    /// empty text during prefill; `on_text` can stop the reply. A failed message is removed from the conversation.
    fn reply(
        &mut self,
        message: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(String, Stats)>;
}

/// The questions about a set of files.
struct Ask<'a, M> {
    args: &'a AskArgs,
    model: M,
    texts: Texts,
    /// The text of the files until the first question sends it.
    document: Option<String>,
    interrupted: Arc<AtomicBool>,
}

/// An answer in the `--json` output.
#[derive(Serialize)]
struct Answer<'a> {
    question: &'a str,
    answer: &'a str,
    quotes: &'a [Quote],
    files: Vec<&'a str>,
    prompt_tokens: usize,
    reused_tokens: usize,
    /// "live" (the session), "ram" (memory), "disk" or null.
    reused_from: Option<String>,
    prefilled_tokens: usize,
    prefill_seconds: f64,
    /// The former name of `prefilled_tokens`.
    read_tokens: usize,
    /// The former name of `prefill_seconds`.
    read_seconds: f64,
    answer_tokens: usize,
    answer_seconds: f64,
    /// Whether the model ended the answer itself.
    complete: bool,
}

impl<M: Model> Ask<'_, M> {
    /// Answers questions from the terminal or a pipe until its end.
    fn answer_lines(&mut self) -> Result<()> {
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
                Line::Interrupted => tell("(Ctrl-D quits)"),
                Line::End if failed == 0 || std::io::stdin().is_terminal() => return Ok(()),
                Line::End => bail!("{failed} of {asked} questions failed"),
            }
        }
    }

    /// Answers a question and prints the answer.
    fn answer(&mut self, question: &str) -> Result<FinishReason> {
        let asked = if self.args.no_quotes { question.to_owned() } else { format!("{question}{QUOTE}") };
        let message = match &self.document {
            Some(document) => format!("{document}{SEPARATOR}{asked}"),
            None => asked,
        };
        self.interrupted.store(false, Ordering::Relaxed);
        let (mut out, mut annotated) = (Output::lock(), Annotated::new(&self.texts));
        let (json, interrupted, mut failed) = (self.args.json, &self.interrupted, Ok(()));
        let (text, stats) = self.model.reply(&message, &mut |new| {
            if !new.is_empty() {
                let shown = annotated.push(new);
                failed = if json { Ok(()) } else { out.say(&shown) };
            }
            let stop = failed.is_err() || interrupted.load(Ordering::Relaxed);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        failed?;
        self.document = None; // now part of the conversation
        let last = annotated.finish();
        self.print(&mut out, (question, &text), (&last, &annotated.quotes), &stats)?;
        Ok(stats.ended)
    }

    /// Prints the rest of an answer, or all of it as JSON, and its statistics.
    fn print(
        &self,
        out: &mut Output,
        (question, text): (&str, &str),
        (last, quotes): (&str, &[Quote]),
        stats: &Stats,
    ) -> Result<()> {
        if self.args.json {
            let answer = self.json_answer(question, text, quotes, stats);
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

    fn json_answer<'a>(
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
            prefilled_tokens: stats.prefill.computed,
            prefill_seconds: stats.prefill_time.as_secs_f64(),
            read_tokens: stats.prefill.computed,
            read_seconds: stats.prefill_time.as_secs_f64(),
            answer_tokens: stats.generated,
            answer_seconds: stats.decode_time.as_secs_f64(),
            complete: stats.ended == FinishReason::EndToken,
        }
    }
}

/// Separates files from each other and from the question.
const SEPARATOR: &str = "\n\n";

/// Joins the files: a single one as it is, several each after its name.
fn joined(documents: &[Document]) -> String {
    match documents {
        [one] => one.text.trim_end().to_owned(),
        several => {
            let named = several.iter().map(|d| format!("{}:{SEPARATOR}{}", d.name, d.text.trim_end()));
            named.collect::<Vec<_>>().join(SEPARATOR)
        }
    }
}

/// Whether standard error is a terminal.
fn is_interactive() -> bool {
    std::io::stderr().is_terminal()
}
