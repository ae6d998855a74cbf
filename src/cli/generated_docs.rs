//! `kimi completions` and `kimi man`: shell completions and manual pages, generated from the command-line definition.

use super::Cli;
use crate::io::output::Output;
use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The command-line arguments of `kimi completions`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompletionsArgs {
    /// Shell to write completions for
    #[arg(value_enum)]
    shell: Shell,
    /// Name under which the program is installed
    #[arg(long, value_name = "NAME", default_value = "kimi")]
    name: String,
}

/// The command-line arguments of `kimi man`.
#[derive(Clone, Debug, clap::Args)]
pub struct ManArgs {
    /// Directory for the pages of all commands; without it, the page of the program goes to standard output
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Name under which the program is installed
    #[arg(long, value_name = "NAME", default_value = "kimi")]
    name: String,
}

/// Returns the definition under another program name.
fn named(name: &str) -> clap::Command {
    Cli::command().name(name.to_owned()).bin_name(name.to_owned())
}

/// Writes the completions of a shell to standard output.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut named(&args.name), args.name.clone(), &mut text);
    Ok(Output::lock().write_all(&text)?)
}

/// Writes the manual page of the program, or the pages of all commands into a directory.
pub fn man(args: &ManArgs) -> Result<()> {
    let mut command = named(&args.name);
    command.build();
    let Some(directory) = &args.directory else {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text)?;
        return Ok(Output::lock().write_all(&text)?);
    };
    write_pages(&command, &args.name, directory)
}

/// Writes `kimi.1`, `kimi-chat.1` and so on.
fn write_pages(command: &clap::Command, name: &str, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone().name(name.to_owned())).render(&mut text)?;
    let file = directory.join(format!("{name}.1"));
    std::fs::write(&file, text).with_context(|| file.display().to_string())?;
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    for subcommand in shown {
        write_pages(subcommand, &format!("{name}-{}", subcommand.get_name()), directory)?;
    }
    Ok(())
}
