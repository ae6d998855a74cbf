//! The command line: one variant a command, each handled by the module of its name.

use crate::commands::{bench, convert, eval, generate, gpu_check, inspect, logits, perplexity, synth};
use crate::io::errors::{CAUSE_CHARS, shortened};
use crate::io::output::tell;
use crate::runtime::template_worker;
use crate::{ask, chat, serve};
use anyhow::Result;
use clap::{Parser, Subcommand};
use models::visible::is_control;
use std::process::ExitCode;

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
    /// Render chat templates for another process of this program
    #[command(hide = true)]
    TemplateWorker,
}

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
        Command::TemplateWorker => template_worker::worker::run(),
    }
}

/// Characters of an argument that a message about wrong usage shows at most.
const ARGUMENT_CHARS: usize = 200;

/// Prints help, or what is wrong with the arguments; returns the exit code. Arguments in a message are shown with their
/// control characters visible, and cut where they are long.
pub fn usage(e: &clap::Error) -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let harmless = |arg: &String| arg.chars().count() <= ARGUMENT_CHARS && !arg.contains(is_control);
    if !e.use_stderr() || args.iter().all(harmless) {
        // Colours and all; a reader that left is no error.
        let _ = e.print();
    } else {
        tell(wrong_usage(&e.render().to_string(), &args).trim_end());
    }
    ExitCode::from(e.exit_code() as u8)
}

/// A message with long arguments cut, on lines of its own.
fn wrong_usage(message: &str, args: &[String]) -> String {
    let mut message = message.to_owned();
    let values = args.iter().flat_map(|arg| [Some(&arg[..]), arg.split_once('=').map(|(_, value)| value)]);
    let mut values: Vec<&str> = values.flatten().filter(|v| v.chars().count() > ARGUMENT_CHARS).collect();
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values {
        message = message.replace(value, &shortened(value, ARGUMENT_CHARS));
    }
    // What is left is made of parts of an argument.
    let lines: Vec<String> = message.lines().map(|line| shortened(line, CAUSE_CHARS)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_arguments_are_cut_in_a_message() {
        let long = format!("{}\u{1b}]0;x\u{7}{}", "a".repeat(100_000), "z".repeat(1000));
        let args = [format!("--threads={long}"), long.clone()];
        let message = format!("error: invalid value '{long}' for '--threads <N>': no number\n\nsee --help\n");
        let shown = wrong_usage(&message, &args);
        assert!(shown.starts_with("error: invalid value 'aaaa"), "{shown}");
        assert!(shown.ends_with("zz' for '--threads <N>': no number\n\nsee --help"), "{shown}");
        assert!(shown.len() < 400, "{shown}");
        let part = format!("error: {}", "b".repeat(5000));
        assert!(wrong_usage(&part, &args).chars().count() <= CAUSE_CHARS);
    }
}
