//! `kimi config`: shows the values of options and where they come from, as TOML.

use super::Cli;
use super::config_file::{self, is_settable};
use super::option_values::{configured_values, is_secret};
use super::suggest::did_you_mean;
use crate::io::output::Output;
use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use std::io::Write;

/// The command-line arguments of `kimi config`.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// Show all options of this command, with their defaults (default: the values set for each command)
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Prints the values of one command, or those that are set for all commands.
pub fn run(args: &ConfigArgs) -> Result<()> {
    let program = Cli::command();
    let mut text = String::new();
    match &args.command {
        Some(name) => {
            let command = program.find_subcommand(name).filter(|sub| sub.get_arguments().any(is_settable));
            let known = program.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name);
            let command = command.with_context(|| {
                format!("expected a command with options, found {name:?}{}", did_you_mean(name, known))
            })?;
            section(&program, command, true, &mut text)?;
        }
        None => {
            for command in program.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                section(&program, command, false, &mut text)?;
            }
        }
    }
    let mut out = Output::lock();
    if let Some(path) = config_file::path() {
        let state = if path.exists() { "" } else { " (does not exist)" };
        writeln!(out, "# configuration file: {}{state}", path.display())?;
    }
    if text.is_empty() {
        writeln!(out, "# no option is set; `kimi config COMMAND` shows the options and their defaults")?;
    }
    Ok(out.say(&text)?)
}

/// Appends the options of a command; those with default values only if `all`.
fn section(program: &Command, command: &Command, all: bool, text: &mut String) -> Result<()> {
    let configured = configured_values(program, command, None)?;
    let mut lines = Vec::new();
    for arg in command.get_arguments().filter(|arg| is_settable(arg)) {
        let name = arg.get_long().unwrap_or_default();
        match configured.iter().find(|value| value.id == arg.get_id().as_str()) {
            Some(value) => {
                lines.push((format!("{name} = {}", shown(arg, &value.values)), value.origin.clone()))
            }
            None if all => lines.push((default_line(arg, name), "default".to_owned())),
            None => {}
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let width = lines.iter().map(|(setting, _)| setting.chars().count()).max().unwrap_or(0).min(40);
    *text += &format!("[{}]\n", command.get_name());
    for (setting, origin) in lines {
        *text += &format!("{setting:<width$}  # {origin}\n");
    }
    Ok(())
}

/// The line of an option that is not set; one without a fixed default is a comment.
fn default_line(arg: &Arg, name: &str) -> String {
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    match arg.get_action() {
        ArgAction::SetTrue => format!("{name} = false"),
        _ if defaults.is_empty() || arg.is_hide_default_value_set() => format!("# {name}"),
        _ => format!("{name} = {}", shown(arg, &defaults)),
    }
}

/// Formats the values as TOML, without secrets.
fn shown(arg: &Arg, values: &[String]) -> String {
    let one = |value: &String| match value.parse::<f64>() {
        _ if is_secret(arg) => "\"***\"".to_owned(),
        Ok(number) if number.is_finite() => value.clone(),
        _ if matches!(arg.get_action(), ArgAction::SetTrue) => value.clone(),
        _ => format!("{value:?}"),
    };
    match values {
        [value] => one(value),
        _ => format!("[{}]", values.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}
