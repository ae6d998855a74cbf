//! The effective values of options: from the command line, else an environment variable (`KIMI_THREADS` for `--threads`),
//! else the [configuration file](super::config_file), else the default.
//!
//! Values from outside the command line become defaults of their options, so that an option on the command line overrides
//! all options that it conflicts with.

use super::config_file::{ConfigFile, has_name, is_settable, path};
use anyhow::{Result, anyhow, bail};
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::ffi::OsString;

/// The variable of Moonshot AI's client for the key of its service, which is not the key of this server.
const FOREIGN_VARIABLE: &str = "KIMI_API_KEY";

/// A value from outside the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfiguredValue {
    /// The id of the option in its command.
    pub id: String,
    pub values: Vec<String>,
    /// The variable, or the file and line.
    pub origin: String,
    /// Whether it is an environment variable.
    from_environment: bool,
}

/// Parses a command line; fills options that it lacks from the environment and the configuration file.
pub fn matches(program: &Command, args: &[OsString]) -> Result<Result<ArgMatches, clap::Error>> {
    let matches = match program.clone().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(e) => return Ok(Err(e)),
    };
    let Some((name, given)) = matches.subcommand() else { return Ok(Ok(matches)) };
    let Some(command) = program.find_subcommand(name).filter(|sub| reads_configuration(sub)) else {
        return Ok(Ok(matches));
    };
    let configured = configured_values(program, command, Some(given))?;
    if configured.is_empty() {
        return Ok(Ok(matches));
    }
    let filled = program.clone().mut_subcommand(name, |sub| {
        configured
            .iter()
            .fold(sub, |sub, value| sub.mut_arg(&value.id, |arg| arg.default_values(value.values.clone())))
    });
    let matches = filled.try_get_matches_from(args).map_err(|e| wrong_value(&e, command, &configured))?;
    Ok(Ok(matches))
}

/// Commands that must work with any environment and file do not read them.
fn reads_configuration(command: &Command) -> bool {
    !command.is_hide_set() && !matches!(command.get_name(), "completions" | "man" | "config")
}

/// Returns the values of a command's options from the environment and the file, except those that `given` overrides.
pub fn configured_values(
    program: &Command,
    command: &Command,
    given: Option<&ArgMatches>,
) -> Result<Vec<ConfiguredValue>> {
    let file = path().map_or(Ok(ConfigFile::default()), |path| ConfigFile::read(&path, program))?;
    let explicit = |arg: &Arg| {
        given.is_some_and(|given| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine))
    };
    let on_line: Vec<&Arg> = command.get_arguments().filter(|arg| explicit(arg)).collect();
    let mut taken: Vec<(&Arg, ConfiguredValue)> = Vec::new();
    let options = || command.get_arguments().filter(|arg| is_settable(arg));
    for from_environment in [true, false] {
        for arg in options() {
            let value = if from_environment { variable(arg)? } else { file_value(&file, command, arg) };
            let Some(value) = value else { continue };
            let overridden = |other: &Arg| other.get_id() == arg.get_id() || conflict(command, arg, other);
            if on_line.iter().any(|other| overridden(other)) {
                continue;
            }
            match taken.iter().find(|(other, _)| overridden(other)) {
                None => taken.push((arg, value)),
                Some((_, other)) if other.from_environment != from_environment => {}
                Some((_, other)) => bail!("{}: cannot be used with {}", value.origin, other.origin),
            }
        }
    }
    Ok(taken.into_iter().map(|(_, value)| value).collect())
}

fn conflict(command: &Command, a: &Arg, b: &Arg) -> bool {
    let excludes =
        |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).iter().any(|other| other.get_id() == b.get_id());
    excludes(a, b) || excludes(b, a)
}

/// The variables of an option: those of its name and of its aliases.
fn variable_names(arg: &Arg) -> impl Iterator<Item = String> {
    let names = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
    let names: Vec<String> =
        names.map(|name| format!("KIMI_{}", name.to_uppercase().replace('-', "_"))).collect();
    names.into_iter().filter(|name| name != FOREIGN_VARIABLE)
}

/// The value of an option's environment variable; an empty variable counts as unset.
fn variable(arg: &Arg) -> Result<Option<ConfiguredValue>> {
    for name in variable_names(arg) {
        let Some(value) = std::env::var_os(&name).filter(|value| !value.is_empty()) else { continue };
        let Ok(value) = value.into_string() else { bail!("{name}: expected UTF-8, found other bytes") };
        let value = match (arg.get_action(), &*value.to_lowercase()) {
            (ArgAction::SetTrue, "1" | "true" | "yes" | "on") => "true".to_owned(),
            (ArgAction::SetTrue, "0" | "false" | "no" | "off") => "false".to_owned(),
            (ArgAction::SetTrue, _) => bail!("{name}: expected true or false, found {value:?}"),
            _ => value,
        };
        let id = arg.get_id().to_string();
        return Ok(Some(ConfiguredValue { id, values: vec![value], origin: name, from_environment: true }));
    }
    Ok(None)
}

fn file_value(file: &ConfigFile, command: &Command, arg: &Arg) -> Option<ConfiguredValue> {
    let entry = file.entry(command.get_name(), arg)?;
    let mut values = entry.values.clone();
    if let Some(delimiter) = arg.get_value_delimiter() {
        values = vec![values.join(&delimiter.to_string())];
    }
    let origin = entry.place.clone();
    Some(ConfiguredValue { id: arg.get_id().to_string(), values, origin, from_environment: false })
}

/// Names the variable or the line of a value that its option refuses.
fn wrong_value(e: &clap::Error, command: &Command, configured: &[ConfiguredValue]) -> anyhow::Error {
    let text = e.to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let Some(ContextValue::String(shown)) = e.get(ContextKind::InvalidArg) else { return anyhow!(line) };
    let long = shown.trim_start_matches('-').split(' ').next();
    let arg = command.get_arguments().find(|arg| arg.get_long() == long);
    let origin = configured.iter().find(|value| arg.is_some_and(|arg| arg.get_id().as_str() == value.id));
    origin.map_or_else(|| anyhow!("{line}"), |value| anyhow!("{}: {line}", value.origin))
}

/// Returns whether an option's value must not be shown.
pub fn is_secret(arg: &Arg) -> bool {
    has_name(arg, "api-key") || has_name(arg, "upstream-key")
}
