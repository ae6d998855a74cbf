//! `kimi ask`: questions about files. The files come first in the prompt, so that later questions reuse their prefix. The
//! prompt asks for quotes before the answer, decoding is constrained to quote the files verbatim, every quote is located
//! in them, and numbers and names of the answer that the files lack are marked.
//!
//! The model is a [`crate::client::ChatModel`]. Answers go to standard output, everything else to standard error. Next:
//! [`file_prompt`] (what a local model needs of the files), [`cached`], [`prefill_progress`], [`answer`] (the order of quotes and
//! answer), [`marked`] and [`crate::document_qa`] (the layout of the prompt, quotes).

mod answer;
mod cached;
mod claims;
mod file_prompt;
mod marked;
mod prefill_progress;
mod unquoted;

use crate::args::EngineArgs;
use crate::client::{
    ChatModel, EndpointArgs, LocalModel, ModelInfo, PromptMessage, RemoteModel, ReplyOutcome, ReplyRequest,
};
use crate::document_qa::quote_constraint::QuoteIndex;
use crate::document_qa::quotes::{FoldedTexts, Quote};
use crate::document_qa::{INSTRUCTIONS, QUOTE, SEPARATOR, joined};
use crate::documents::{Document, gather};
use crate::generation::event::Stats;
use crate::generation::generate::FinishReason;
use crate::generation::sample::Sampling;
use crate::io::errors::{Stopped, one_line};
use crate::io::line_editor::{Line, LineEditor};
use crate::io::output::tell;
use crate::io::units::{counted, grouped};
use crate::prefix_cache::namespace::{Namespace, PromptLayout};
use crate::runtime::builtin_model;
use crate::runtime::handle::EngineHandle;
use crate::runtime::sampling_options::SamplingOptions;
use answer::AnswerView;
use anyhow::{Context as _, Result, bail};
use claims::{FileEvidence, Unsupported};
use file_prompt::FilePrompt;
use marked::unsupported_line;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use unquoted::{denies_its_quotes, unquoted};

/// Prefix of a question that is repeated after its quotes.
const ANSWER: &str = "Please answer: ";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kimi ask -f report.txt \"Who signed it, and when?\"
  kimi ask -f docs/ --include '*.md' -i \"Which options does serve have?\"
  git log -p | kimi ask \"What changed in the parser?\" --json")]
pub struct AskArgs {
    /// File or directory to ask about, `-` for standard input; may be repeated. Text, PDF, DOCX, PPTX, XLSX, EPUB, HTML
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// List the files in the prefix cache on disk: tokens, disk space, time
    #[arg(long, conflicts_with_all = ["file", "question", "interactive", "url"])]
    list: bool,
    /// Remove a file or the files of a directory from the prefix cache on disk; may be repeated
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "question", "interactive", "list", "url"])]
    forget: Vec<PathBuf>,
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
    /// Fail if an answer has numbers, names or quotes that are not in the files
    #[arg(long)]
    strict: bool,
    /// Maximum number of tokens to generate per answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// Print one JSON object per answer
    #[arg(long)]
    json: bool,
    /// Prefill prompts that do not fit into memory
    #[arg(long)]
    force: bool,
    /// Print answers and errors only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub endpoint: EndpointArgs,
}

impl AskArgs {
    /// Returns whether the process reads further questions after a failed one.
    fn asks_again(&self) -> bool {
        self.question.is_none()
    }

    /// The sampling parameters of answers. Greedy answers ignore the model's: a repetition penalty would distort quotes.
    fn sampling(&self, model: &ModelInfo) -> Sampling {
        let is_greedy = self.sampling.temperature == Some(0.0);
        if is_greedy { self.sampling.into() } else { self.sampling.or(model.sampling).into() }
    }
}

/// Reads the files, loads the model and answers the questions.
pub fn run(args: &AskArgs) -> Result<()> {
    if args.list || !args.forget.is_empty() {
        return cached::run(args);
    }
    let mut left_out = Vec::new();
    let documents = gather::gather(&args.file, &args.include, &mut |line| left_out.push(line.to_owned()));
    report_left_out(&left_out);
    let documents = documents?;
    if !args.quiet {
        report_read(&args.file, &documents);
    }
    if args.question.is_none() && documents.iter().any(|document| document.name == gather::PIPE) {
        bail!("no question: give it as an argument, because standard input is the text");
    }
    if let Some(url) = &args.endpoint.url {
        let mut model = RemoteModel::connect(url, args.engine.model.as_deref(), &args.endpoint)?;
        return ask(args, &documents, &mut model, None);
    }
    let options = args.engine.options();
    let engine = EngineHandle::load(&options, builtin_model::log(args.quiet))?;
    let file_prompt = FilePrompt::new(&engine, &documents, args)?;
    let namespace = Namespace::SHARED.with_layout(PromptLayout::Ask);
    let mut model = LocalModel::within(&engine, Path::new(&options.name()), namespace);
    let asked = ask(args, &documents, &mut model, Some(&file_prompt));
    file_prompt.name_in_cache(namespace, &options.name());
    asked
}

/// Most files of a directory that are reported by name.
const MAX_REPORTED: usize = 8;

/// Reports the files that were read of each directory, in a line each.
fn report_read(files: &[PathBuf], documents: &[Document]) {
    for dir in files.iter().filter(|path| path.is_dir()) {
        let inside = documents.iter().filter_map(|document| Path::new(&document.name).strip_prefix(dir).ok());
        let names: Vec<String> = inside.map(|path| path.display().to_string()).collect();
        let more = match names.len().saturating_sub(MAX_REPORTED) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let shown = names[..names.len().min(MAX_REPORTED)].join(", ");
        tell(&format!("{}: {}: {shown}{more}", dir.display(), counted(names.len(), "file")));
    }
}

/// Reports the entries of directories that are not read, in one line.
fn report_left_out(notes: &[String]) {
    match notes {
        [] => {}
        [one] => tell(&one.replace('\n', " ")),
        [first, ..] => {
            let first = first.replace('\n', " ");
            tell(&format!(
                "{} files left out; the first: {}",
                notes.len(),
                first.trim_end_matches(": left out")
            ));
        }
    }
}

fn ask(
    args: &AskArgs,
    documents: &[Document],
    model: &mut dyn ChatModel,
    file_prompt: Option<&FilePrompt<'_>>,
) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // second Ctrl-C: exit at once
        }
    })?;
    let document = Some(joined(documents));
    let texts = FoldedTexts::new(documents);
    let evidence = FileEvidence::new(documents);
    let messages = instructions(args).map(|text| PromptMessage::new("system", text)).into_iter().collect();
    let mut ask = Ask {
        args,
        model,
        file_prompt,
        messages,
        texts: &texts,
        evidence: &evidence,
        questions: Vec::new(),
        document,
        interrupted,
    };
    let ended = args.question.as_ref().map(|question| ask.answer(question)).transpose();
    match ended {
        Ok(Some(FinishReason::Cancelled)) if !args.interactive => Err(Stopped.into()),
        Ok(Some(_)) if !args.interactive => Ok(()),
        Ok(_) => ask.answer_lines(),
        Err(e) => {
            if e.is::<Stopped>() {
                tell(&format!("kimi: {}", one_line(&e)));
            }
            Err(e)
        }
    }
}

/// The questions about a set of files, in one conversation.
struct Ask<'a> {
    args: &'a AskArgs,
    model: &'a mut dyn ChatModel,
    /// None for remote models, which get the files as text only.
    file_prompt: Option<&'a FilePrompt<'a>>,
    messages: Vec<PromptMessage>,
    texts: &'a FoldedTexts,
    evidence: &'a FileEvidence<'a>,
    /// The questions so far, the current one included.
    questions: Vec<String>,
    /// The text of the files until the first question sends it.
    document: Option<String>,
    interrupted: Arc<AtomicBool>,
}

/// An answer in the `--json` output.
#[derive(Serialize)]
struct JsonAnswer<'a> {
    question: &'a str,
    answer: &'a str,
    quotes: &'a [Quote],
    /// Numbers, dates, names, identifiers and quotations of the answer that are not in the files.
    unsupported: &'a [Unsupported],
    /// Numbers and dates of the answer that the files have, but none of its quotes.
    unquoted: Vec<String>,
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

impl Ask<'_> {
    /// Answers questions from the terminal or a pipe until its end.
    fn answer_lines(&mut self) -> Result<()> {
        if std::io::stdin().is_terminal() && !self.args.quiet {
            tell("Ask about the files. Ctrl-D quits.");
        }
        let mut editor = LineEditor::new()?;
        let (mut questions, mut failed) = (0, 0);
        loop {
            match editor.read("? ")? {
                Line::Text(line) if line.trim().is_empty() => {}
                Line::Text(line) if matches!(line.trim(), "exit" | "quit" | "/exit" | "/quit") => {
                    return Ok(());
                }
                Line::Text(line) => {
                    editor.remember(&line)?;
                    questions += 1;
                    if let Err(e) = self.answer(line.trim()) {
                        tell(&one_line(&e));
                        failed += 1;
                    }
                }
                Line::Interrupted => tell("(Ctrl-D quits)"),
                Line::End if failed == 0 || std::io::stdin().is_terminal() => return Ok(()),
                Line::End => bail!("{failed} of {questions} questions failed"),
            }
        }
    }

    /// Answers a question and prints the answer. A failed question is removed from the conversation.
    fn answer(&mut self, question: &str) -> Result<FinishReason> {
        let suffix = if self.args.no_quotes { "" } else { QUOTE };
        let message = match &self.document {
            Some(document) => format!("{document}{SEPARATOR}{question}{suffix}"),
            None => format!("{question}{suffix}"),
        };
        if self.file_prompt.is_none() && self.document.is_some() && !self.args.quiet {
            tell(&format!("sending {} bytes to {}", grouped(message.len()), self.model.info().runs_on));
        }
        self.questions.push(question.to_owned());
        self.interrupted.store(false, Ordering::Relaxed);
        let before = self.messages.len();
        self.messages.push(PromptMessage::new("user", message));
        let mut view = AnswerView::new(self);
        let stats = match self.replies(question, &mut view) {
            Ok(stats) => stats,
            Err(e) => {
                self.messages.truncate(before);
                return Err(e);
            }
        };
        self.document = None; // now part of the conversation
        let ended = stats.ended.clone();
        self.print(&mut view, question, &stats)?;
        let (unsupported, unlocated) = (view.marked.unsupported.len(), view.unlocated_quotes());
        if self.args.strict && unsupported + unlocated > 0 {
            bail!("--strict: {} of the answer are not in the files", count(unsupported, unlocated));
        }
        Ok(ended)
    }

    /// Generates the reply to a question. If the model answers before it quotes, or only quotes, it is asked to answer after
    /// its quotes.
    fn replies(&mut self, question: &str, view: &mut AnswerView<'_>) -> Result<Stats> {
        let first = self.reply(view)?;
        let Some(quotes) = view.end_of_quotes(&first)? else {
            self.messages.push(PromptMessage { ids: first.ids, ..view.take_message() });
            return Ok(first.stats);
        };
        self.messages.push(quotes);
        self.messages.push(PromptMessage::new("user", format!("{ANSWER}{question}")));
        let second = self.reply(view)?;
        self.messages.push(PromptMessage { ids: second.ids, ..view.take_message() });
        Ok(first.stats.followed_by(second.stats))
    }

    /// Generates the reply to the last message and shows it.
    fn reply(&mut self, view: &mut AnswerView<'_>) -> Result<ReplyOutcome> {
        let quote_index = self.file_prompt.and_then(|prompt| prompt.quote_index.as_ref());
        let request = ReplyRequest {
            messages: &self.messages,
            max_tokens: self.args.max_tokens,
            sampling: self.args.sampling(&self.model.info()),
            given: self.args.sampling,
            prefix: self.file_prompt.map(|prompt| &prompt.prefix),
            constraint: quote_index.map(QuoteIndex::constraint),
        };
        let (interrupted, mut shown) = (&self.interrupted, Ok(()));
        let outcome = self.model.reply(request, &mut |event| {
            if shown.is_ok() {
                shown = view.on_event(event);
            }
            let stop = shown.is_err() || interrupted.load(Ordering::Relaxed);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        shown?;
        view.end_progress();
        let prefill = &outcome.stats.prefill;
        match (prefill.stopped, view.prompt_tokens) {
            (false, _) => Ok(outcome),
            (true, 0) => Err(Stopped).context("stopped before the answer"),
            (true, all) => {
                let read = prefill.reused + prefill.computed;
                let on_disk = self.file_prompt.is_some_and(|prompt| prompt.keeps_on_disk(read));
                let kept = self.args.asks_again() || on_disk;
                let note = if kept {
                    "the prefilled tokens are kept; ask again to resume"
                } else {
                    "none of them are kept"
                };
                Err(Stopped).context(format!("stopped after {read} of {all} tokens; {note}"))
            }
        }
    }

    /// Prints the rest of an answer, or all of it as JSON, and its statistics.
    fn print(&self, view: &mut AnswerView<'_>, question: &str, stats: &Stats) -> Result<()> {
        view.finish()?;
        if self.args.json {
            let answer = self.json_answer(question, view, stats);
            writeln!(view.out, "{}", serde_json::to_string(&answer)?)?;
        } else {
            let stopped = if stats.ended == FinishReason::Cancelled { " [stopped]" } else { "" };
            writeln!(view.out, "{stopped}")?;
            if let Some(line) = unsupported_line(&view.marked.unsupported) {
                view.out.say_line(&line)?;
            }
            let unquoted = self.unquoted(view);
            if !unquoted.is_empty() {
                view.out.say_line(&format!("in no quote: {}", unquoted.join("; ")))?;
            }
            if denies_its_quotes(&view.text, view.marked.quotes()) {
                view.out.say_line("note: the quote may answer the question all the same; read it")?;
            }
        }
        if !self.args.quiet {
            tell(&stats.line());
        }
        Ok(())
    }

    /// The numbers and dates of the answer that the files have, but none of its quotes.
    fn unquoted(&self, view: &AnswerView<'_>) -> Vec<String> {
        let names = self.texts.names().into_iter().map(str::to_owned);
        let known: Vec<String> = names.chain(self.questions.iter().cloned()).collect();
        unquoted(&view.text, view.marked.quotes(), &known, &view.marked.unsupported)
    }

    fn json_answer<'a>(
        &'a self,
        question: &'a str,
        view: &'a AnswerView<'_>,
        stats: &Stats,
    ) -> JsonAnswer<'a> {
        JsonAnswer {
            question,
            answer: &view.text,
            quotes: view.marked.quotes(),
            unsupported: &view.marked.unsupported,
            unquoted: self.unquoted(view),
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

/// The system message: how to quote; None without quotes.
fn instructions(args: &AskArgs) -> Option<&'static str> {
    (!args.no_quotes).then_some(INSTRUCTIONS)
}

/// `2 numbers or names and 1 quote`
fn count(claims: usize, quotes: usize) -> String {
    let of = |n: usize, one: &str, many: &str| match n {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {many}")),
    };
    let parts = [of(claims, "number or name", "numbers or names"), of(quotes, "quote", "quotes")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

/// Whether standard error is a terminal.
fn is_interactive() -> bool {
    std::io::stderr().is_terminal()
}
