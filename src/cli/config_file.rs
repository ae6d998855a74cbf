//! The configuration file: TOML whose keys are long options. Keys before the first section apply to every command that has
//! the option; a section `[serve]` applies to one command.

use super::suggest::did_you_mean;
use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Arg, ArgAction, Command};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest configuration file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The settings of a configuration file.
#[derive(Debug, Default)]
pub struct ConfigFile {
    entries: Vec<ConfigEntry>,
}

/// A key with its value or values.
#[derive(Debug)]
pub struct ConfigEntry {
    /// The command of the section; `None` for all commands.
    command: Option<String>,
    key: String,
    pub values: Vec<String>,
    /// The file and the line, for messages.
    pub place: String,
}

/// Returns whether an option may be set outside the command line.
pub fn is_settable(arg: &Arg) -> bool {
    arg.get_long().is_some() && !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version")
}

/// Returns whether an option has this long name or alias.
pub fn has_name(arg: &Arg, name: &str) -> bool {
    is_settable(arg)
        && (arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name)))
}

impl ConfigFile {
    /// Reads a file for the options of `program`. A missing file has no settings.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has a key that is no option.
    pub fn read(path: &Path, program: &Command) -> Result<ConfigFile> {
        let shown = || path.display().to_string();
        let about = match std::fs::metadata(path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(ConfigFile::default());
            }
            about => about.with_context(shown)?,
        };
        if !about.is_file() || about.len() > MAX_BYTES {
            bail!("{}: expected a regular file of at most 1 MiB, found another", path.display());
        }
        let text = std::fs::read_to_string(path).with_context(shown)?;
        ConfigFile::parse(&text, path, program)
    }

    fn parse(text: &str, path: &Path, program: &Command) -> Result<ConfigFile> {
        let mut reader = EntryReader { text, path, program, entries: Vec::new() };
        let table = DeTable::parse(text).map_err(|e| {
            let start = e.span().map_or(0, |span| span.start);
            anyhow!("{}: {}", reader.place(start), e.message())
        })?;
        for (key, value) in table.get_ref() {
            reader.root_key(key.span().start, key.get_ref(), value)?;
        }
        Ok(ConfigFile { entries: reader.entries })
    }

    /// Returns the entry for an option of a command: that of its section, else that of all commands.
    pub fn entry(&self, command: &str, arg: &Arg) -> Option<&ConfigEntry> {
        let find = |section: Option<&str>| {
            self.entries.iter().find(|e| e.command.as_deref() == section && has_name(arg, &e.key))
        };
        find(Some(command)).or_else(|| find(None))
    }
}

/// Reads and checks the entries of a file.
struct EntryReader<'a> {
    text: &'a str,
    path: &'a Path,
    program: &'a Command,
    entries: Vec<ConfigEntry>,
}

impl EntryReader<'_> {
    fn place(&self, offset: usize) -> String {
        let line = self.text[..offset.min(self.text.len())].matches('\n').count() + 1;
        format!("{}:{line}", self.path.display())
    }

    fn root_key(&mut self, start: usize, key: &str, value: &Spanned<DeValue<'_>>) -> Result<()> {
        let DeValue::Table(section) = value.get_ref() else {
            let commands = self.program.get_subcommands().filter(|sub| !sub.is_hide_set());
            let found = commands.flat_map(Command::get_arguments).find(|arg| has_name(arg, key));
            return self.option(None, start, key, found, value);
        };
        let command = self.program.find_subcommand(key).filter(|sub| sub.get_arguments().any(is_settable));
        let Some(command) = command else {
            let known =
                self.program.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name);
            let hint = did_you_mean(key, known);
            bail!("{}: expected a command with options, found [{key}]{hint}", self.place(start));
        };
        for (name, value) in section {
            let name: &Spanned<_> = name;
            let found = command.get_arguments().find(|arg| has_name(arg, name.get_ref()));
            self.option(Some(command.get_name()), name.span().start, name.get_ref(), found, value)?;
        }
        Ok(())
    }

    fn option(
        &mut self,
        command: Option<&str>,
        start: usize,
        key: &str,
        arg: Option<&Arg>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<()> {
        let place = self.place(start);
        let Some(arg) = arg else {
            let whose = command.map_or("kimi".to_owned(), |command| format!("kimi {command}"));
            let commands = self.program.get_subcommands().filter(|sub| !sub.is_hide_set());
            let commands = commands.filter(|sub| command.is_none_or(|name| sub.get_name() == name));
            let options = commands.flat_map(Command::get_arguments).filter(|arg| is_settable(arg));
            let hint = did_you_mean(key, options.filter_map(Arg::get_long));
            bail!("{place}: expected a long option of {whose} without its dashes, found {key:?}{hint}");
        };
        let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
        let is_list = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
        let values = match value.get_ref() {
            DeValue::Boolean(value) if is_flag => Some(vec![value.to_string()]),
            DeValue::Array(values) if is_list => values.iter().map(|value| scalar(value.get_ref())).collect(),
            other if !is_flag => scalar(other).map(|value| vec![value]),
            _ => None,
        };
        let values = values.with_context(|| {
            let expected = if is_flag { "true or false" } else { "a string or a number" };
            format!("{place}: {key}: expected {expected}, found another value")
        })?;
        let (command, key) = (command.map(str::to_owned), key.to_owned());
        self.entries.push(ConfigEntry { command, key, values, place });
        Ok(())
    }
}

/// The text of a string or number, as on the command line.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().replace('_', "")),
        DeValue::Float(number) => Some(number.as_str().replace('_', "")),
        _ => None,
    }
}

/// Returns the path of the user's configuration file.
pub fn path() -> Option<PathBuf> {
    Some(crate::io::user_dirs::config()?.join("config.toml"))
}
