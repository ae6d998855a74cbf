//! `kimi generate`: streams the reply to one prompt to standard output, and prints token rates to standard error.
//!
//! Next: [`crate::runtime::handle`] (loads the engine), [`crate::generation::conversation`] (renders the prompt), then
//! [`crate::generation::generate`].

use crate::args::EngineArgs;
use crate::generation::conversation::Conversation;
use crate::generation::decoder::GenerationParams;
use crate::generation::event::EngineEvent;
use crate::generation::generate::{Request, generate};
use crate::generation::grammar::{Grammar, Grammars};
use crate::generation::sample::Constraint;
use crate::io::output::{Output, tell};
use crate::io::prompt::{Prompt, PromptArgs, read_text};
use crate::runtime::builtin_model;
use crate::runtime::handle::EngineHandle;
use crate::runtime::sampling_options::SamplingOptions;
use anyhow::{Context as _, Result, anyhow};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The command-line arguments of `kimi generate`.
#[derive(Clone, Debug, clap::Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Continue the prompt without the chat template (always on for token ids)
    #[arg(long)]
    raw: bool,
    /// System message
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "ids"])]
    system: Option<String>,
    /// Maximum number of tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// Stop string, which ends the reply; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Continue past end-of-generation tokens
    #[arg(long)]
    ignore_eos: bool,
    /// File with a grammar in GBNF, llama.cpp's syntax, that the reply has to match
    #[arg(long, value_name = "FILE", conflicts_with = "ignore_eos")]
    grammar_file: Option<PathBuf>,
    /// Print the token ids of the reply, one per line, instead of its text
    #[arg(long)]
    print_ids: bool,
    /// Print no progress and no statistics
    #[arg(short, long)]
    quiet: bool,
}

/// Loads the model and prints the reply.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let grammar = args.grammar_file.as_deref().map(read_grammar).transpose()?;
    let engine = EngineHandle::load(&args.engine.options(), builtin_model::log(args.quiet))?;
    let prompt = prompt_ids(&engine, args)?;
    let print_ids = args.print_ids || engine.tokenizer.is_none();
    let request = Request {
        prompt: &prompt,
        params: GenerationParams {
            stops: args.stop.clone(),
            ignore_end: args.ignore_eos,
            constraint: grammar.map(|grammar| constraint(&engine, &grammar)).transpose()?,
            ..GenerationParams::new(args.max_tokens, args.sampling.or(engine.sampling).into())
        },
    };
    let progress = !args.quiet && std::io::stderr().is_terminal();
    let mut out = Output::lock();
    let mut failed = Ok(());
    let mut session = engine.session();
    let stats = generate(&mut session, request, &mut |event| {
        let written = match event {
            EngineEvent::Prefill { done, total, .. } if progress && total > engine.batch => {
                let end = if done == total { "\r\x1b[K" } else { "" };
                let _ = write!(std::io::stderr(), "\rprefill {done}/{total} tokens{end}");
                Ok(())
            }
            EngineEvent::Token { token, .. } if print_ids => {
                token.map_or(Ok(()), |token| writeln!(out, "{token}"))
            }
            EngineEvent::Token { text, .. } if !text.is_empty() => out.say(&text),
            _ => Ok(()),
        };
        if failed.is_ok() {
            failed = written;
        }
        if failed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    failed?;
    if !print_ids {
        writeln!(out)?;
    }
    if !args.quiet {
        tell(&stats.line());
    }
    Ok(())
}

fn read_grammar(path: &Path) -> Result<Grammar> {
    let grammar = Grammar::from_gbnf(&read_text(path)?);
    grammar.map_err(|e| anyhow!("{}: {e}", path.display()))
}

fn constraint(engine: &EngineHandle, grammar: &Grammar) -> Result<Box<dyn Constraint>> {
    let grammars = Grammars::new(engine.tokenizer()?, engine.config.vocab)?;
    let compiled = grammars.compile(grammar, &|| false).context("--grammar-file")?;
    Ok(compiled.constraint())
}

fn prompt_ids(engine: &EngineHandle, args: &GenerateArgs) -> Result<Vec<u32>> {
    match args.prompt.read()? {
        Prompt::Text(text) if !args.raw => {
            engine.tokenizer_or_ids()?;
            let mut conversation = Conversation::new(args.system.as_deref());
            conversation.say("user", &text);
            conversation.prompt(engine)
        }
        prompt => engine.raw_ids(&prompt),
    }
}
