//! The command line: one variant a command, each handled by the module of its name.

mod convert;
mod generate;

use crate::{ask, bench, chat, eval, gpu_check, inspect, logits, perplexity, serve, synth};
use anyhow::Result;
use clap::{Parser, Subcommand};
use models::visible::visible;

/// Run Kimi Linear on your own machine.
#[derive(Parser)]
#[command(name = "kimi", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turn a Hugging Face checkpoint (or another GGUF) into one quantised file
    Convert(convert::ConvertArgs),
    /// Show what is in a file, and what memory it takes to run
    Inspect(inspect::InspectArgs),
    /// Generate text from a prompt
    Generate(generate::GenerateArgs),
    /// Ask about files, with quotes that are copied from them
    #[command(mut_arg("temperature", |arg| arg.default_value("0")))]
    Ask(ask::AskArgs),
    /// Talk with a model in the terminal
    Chat(chat::ChatArgs),
    /// Serve a model to other programs over HTTP, as OpenAI's interface
    Serve(serve::ServeArgs),
    /// Measure prefill and decode rates
    Bench(bench::BenchArgs),
    /// Measure how well a model predicts a text, and its distance from a baseline
    Perplexity(perplexity::PerplexityArgs),
    /// Ask questions about texts of given lengths and count the right answers
    Eval(eval::EvalArgs),
    /// Write the logits of a prompt as a NumPy file
    Logits(logits::LogitsArgs),
    /// Check and measure the GPU: every op, whole models, the real shape
    GpuCheck(gpu_check::GpuCheckArgs),
    /// Write a model of random weights, for tests and benches
    Synth(synth::SynthArgs),
}

/// Ctrl-C ended the work, and what was done of it is told: nothing more is to be said.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// Runs the command.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Convert(args) => convert::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Ask(args) => ask::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::GpuCheck(args) => gpu_check::run(&args),
        Command::Synth(args) => synth::run(&args),
    }
}

/// The causes in a line, without those that the one before them already tells. Names of files may stand in it, and are
/// shown, not obeyed.
pub fn one_line(e: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in e.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line += if line.is_empty() { "" } else { ": " };
            line += &cause;
        }
    }
    visible(&line.replace('\n', " ")).into_owned()
}
