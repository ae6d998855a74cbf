//! The command line: one variant per command, each dispatched to the module of its name. Next:
//! [`crate::commands::generate`], the shortest way to a reply.

mod config;
mod config_file;
mod generated_docs;
mod option_values;
mod suggest;

use crate::commands::pull::resolve::resolve;
use crate::commands::{
    bench, convert, eval, generate, gpu_check, imatrix, inspect, launch, logits, models, perplexity, pull,
    synth,
};
use crate::documents;
use crate::io::errors::{CAUSE_CHARS, one_line, shortened};
use crate::io::output::tell;
use crate::runtime::{device, self_check, template_worker};
use crate::{ask, chat, serve};
use ::models::visible::is_control;
use anyhow::Result;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// The end of the program's help.
const OPTIONS_ELSEWHERE: &str =
    "Options can also be set as KIMI_OPTION in the environment or in a file; see `kimi config`.";

/// Run Kimi Linear on your own machine.
#[derive(Parser)]
#[command(name = "kimi", version, about, arg_required_else_help = true, after_help = OPTIONS_ELSEWHERE)]
pub struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Subcommand)]
enum CliCommand {
    /// Convert a Hugging Face checkpoint or a GGUF file to a quantized GGUF file
    Convert(convert::ConvertArgs),
    /// Download a model from Hugging Face
    Pull(pull::PullArgs),
    /// List, locate or delete downloaded models
    Models(models::ModelsArgs),
    /// Show the contents of a model file and its memory requirements
    Inspect(inspect::InspectArgs),
    /// Generate text from a prompt
    Generate(generate::GenerateArgs),
    /// Answer questions about files, with verbatim quotes
    #[command(mut_arg("temperature", |arg| arg.default_value("0").help("Sampling temperature; 0 selects the most likely token")))]
    Ask(ask::AskArgs),
    /// Chat with a model in the terminal
    Chat(chat::ChatArgs),
    /// Serve a model over the HTTP APIs of OpenAI, Anthropic and Ollama
    Serve(serve::ServeArgs),
    /// Start a coding agent or another client on a local model
    Launch(launch::LaunchArgs),
    /// Measure prefill and decode throughput
    Bench(bench::BenchArgs),
    /// Measure the perplexity of a text, and the KL divergence from a baseline
    #[command(mut_arg("prompt", |arg| arg.help("Text to score; `-` or none reads standard input").value_name("TEXT")))]
    #[command(mut_arg("file", |arg| arg.help("Read the text from a file")))]
    Perplexity(perplexity::PerplexityArgs),
    /// Compute an importance matrix from a text, for `convert --imatrix`
    #[command(mut_arg("batch", |arg| {
        arg.default_value("2048").help("Tokens of the text processed per step; larger is faster and uses more memory")
    }))]
    Imatrix(imatrix::ImatrixArgs),
    /// Measure the accuracy of answers to questions about texts of given lengths
    Eval(eval::EvalArgs),
    /// Write the logits of a prompt as a NumPy file
    #[command(mut_arg("prompt", |arg| arg.help("Text to process; `-` or none reads standard input").value_name("TEXT")))]
    #[command(mut_arg("file", |arg| arg.help("Read the text from a file")))]
    Logits(logits::LogitsArgs),
    /// Test and benchmark the GPU: every op, whole models, the real model's shape
    GpuCheck(gpu_check::GpuCheckArgs),
    /// Write a model with random weights, for tests and benchmarks
    Synth(synth::SynthArgs),
    /// Show the values of options that the environment and the configuration file set
    Config(config::ConfigArgs),
    /// Write completions for a shell to standard output
    Completions(generated_docs::CompletionsArgs),
    /// Write the manual pages of the program and its commands
    Man(generated_docs::ManArgs),
    /// Render chat templates for another process of this program
    #[command(hide = true)]
    TemplateWorker,
    /// Extract the text of documents for another process of this program
    #[command(hide = true)]
    DocumentWorker,
    /// Check the GPU for another process of this program
    #[command(hide = true, name = self_check::COMMAND)]
    GpuWorker(self_check::worker::WorkerArgs),
}

/// Parses the command line of this process, the environment and the configuration file. Prints help and errors itself and
/// returns their exit code.
pub fn parse() -> Result<Cli, ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let matches = option_values::matches(&Cli::command(), &args).map_err(|e| {
        tell(&format!("kimi: {}", one_line(&e)));
        ExitCode::FAILURE
    })?;
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|e| usage(&e))
}

pub fn run(mut cli: Cli) -> Result<()> {
    resolve_model(&mut cli.command)?;
    device::catch_failure(|| dispatch(cli.command))
}

fn dispatch(command: CliCommand) -> Result<()> {
    match command {
        CliCommand::Pull(args) => pull::run(&args),
        CliCommand::Models(args) => models::run(&args),
        CliCommand::Convert(args) => convert::run(&args),
        CliCommand::Inspect(args) => inspect::run(&args),
        CliCommand::Generate(args) => generate::run(&args),
        CliCommand::Ask(args) => ask::run(&args),
        CliCommand::Chat(args) => chat::run(&args),
        CliCommand::Serve(args) => serve::run(&args),
        CliCommand::Launch(args) => launch::run(&args),
        CliCommand::Bench(args) => bench::run(&args),
        CliCommand::Perplexity(args) => perplexity::run(&args),
        CliCommand::Imatrix(args) => imatrix::run(&args),
        CliCommand::Eval(args) => eval::run(&args),
        CliCommand::Logits(args) => logits::run(&args),
        CliCommand::GpuCheck(args) => gpu_check::run(&args),
        CliCommand::Synth(args) => synth::run(&args),
        CliCommand::Config(args) => config::run(&args),
        CliCommand::Completions(args) => generated_docs::completions(&args),
        CliCommand::Man(args) => generated_docs::man(&args),
        CliCommand::TemplateWorker => template_worker::worker::run(),
        CliCommand::DocumentWorker => documents::worker::run(),
        CliCommand::GpuWorker(args) => self_check::worker::run(&args),
    }
}

/// Replaces a model's name on Hugging Face by the path of its file, in every command that loads a model.
fn resolve_model(command: &mut CliCommand) -> Result<()> {
    let engine = match command {
        CliCommand::Inspect(args) => {
            resolve(&mut args.file, args.yes)?;
            return resolve(&mut args.model, args.yes);
        }
        CliCommand::Generate(args) => &mut args.engine,
        // The endpoint knows the model by this name.
        CliCommand::Ask(args) if args.endpoint.url.is_some() => return Ok(()),
        CliCommand::Chat(args) if args.endpoint.url.is_some() => return Ok(()),
        CliCommand::Ask(args) => &mut args.engine,
        CliCommand::Chat(args) => {
            resolve(&mut args.file, args.engine.yes)?;
            &mut args.engine
        }
        CliCommand::Serve(args) => &mut args.engine,
        CliCommand::Bench(args) => &mut args.engine,
        CliCommand::Perplexity(args) => &mut args.engine,
        CliCommand::Imatrix(args) => &mut args.engine,
        CliCommand::Eval(args) => &mut args.engine,
        CliCommand::Logits(args) => &mut args.engine,
        _ => return Ok(()),
    };
    resolve(&mut engine.model, engine.yes)
}

/// Maximum characters of an argument in a usage error.
const ARGUMENT_CHARS: usize = 200;

/// Prints help or a usage error; returns the exit code. Control characters of arguments are escaped, and long
/// arguments are truncated.
fn usage(e: &clap::Error) -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let harmless = |arg: &String| arg.chars().count() <= ARGUMENT_CHARS && !arg.contains(is_control);
    if !e.use_stderr() || args.iter().all(harmless) {
        // With colors; a closed pipe is no error.
        let _ = e.print();
    } else {
        tell(wrong_usage(&e.render().to_string(), &args).trim_end());
    }
    ExitCode::from(e.exit_code() as u8)
}

/// Returns the message with long arguments and lines truncated.
fn wrong_usage(message: &str, args: &[String]) -> String {
    let mut message = message.to_owned();
    let values = args.iter().flat_map(|arg| [Some(&arg[..]), arg.split_once('=').map(|(_, value)| value)]);
    let mut values: Vec<&str> = values.flatten().filter(|v| v.chars().count() > ARGUMENT_CHARS).collect();
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values {
        message = message.replace(value, &shortened(value, ARGUMENT_CHARS));
    }
    // Remaining long lines contain parts of an argument.
    let lines: Vec<String> = message.lines().map(|line| shortened(line, CAUSE_CHARS)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_arguments_are_truncated_in_a_message() {
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
