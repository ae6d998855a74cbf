//! Where a prompt comes from: argument, file, pipe or token ids. Knows no model. Next: [`crate::io::text`].

use crate::io::output::tell;
use crate::io::text::{self, MAX_BYTES};
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// A prompt on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PromptArgs {
    /// The prompt; `-` or none reads standard input. A text piped or redirected there comes before a prompt; a pipe that is
    /// silent for 3 seconds is left out
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Token ids instead of text: 1,2,3
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file"])]
    pub ids: Option<String>,
}

/// What was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text to be tokenized.
    Text(String),
    /// Token ids as they are.
    Ids(Vec<u32>),
}

impl PromptArgs {
    /// Reads the prompt from where the arguments say.
    pub fn read(&self) -> Result<Prompt> {
        if let Some(ids) = &self.ids {
            return Ok(Prompt::Ids(parse_ids(ids)?));
        }
        match (&self.file, self.prompt.as_deref()) {
            (Some(path), _) => not_empty(read_text(path)?, &path.display().to_string()),
            (None, Some("-")) => read_stdin(),
            (None, Some(text)) => Ok(Prompt::Text(after_input(text)?)),
            (None, None) if io::stdin().is_terminal() => {
                bail!("prompt: expected an argument, --file, --ids or a pipe, found none")
            }
            (None, None) => read_stdin(),
        }
    }
}

/// A text file.
pub fn read_text(path: &Path) -> Result<String> {
    let place = path.display().to_string();
    let file = File::open(path).with_context(|| place.clone())?;
    text::read(&place, file, MAX_BYTES)
}

const INPUT: &str = "standard input";

fn read_stdin() -> Result<Prompt> {
    not_empty(text::read(INPUT, io::stdin().lock(), MAX_BYTES)?, INPUT)
}

/// What standard input brings, a blank line, and the prompt: a text, then what is asked about it.
fn after_input(prompt: &str) -> Result<String> {
    let input = piped()?;
    Ok(match input.trim_end() {
        "" => prompt.to_owned(),
        input => format!("{input}\n\n{prompt}"),
    })
}

/// How long a pipe may be silent at first. What stands before a pipe on a command line mostly begins at once; a pipe that a
/// script or a service handed down may stay open without a word for ever.
const PATIENCE: Duration = Duration::from_secs(3);

/// All that a pipe or a file brings on standard input. Terminals, sockets and devices were not put there for the prompt.
fn piped() -> Result<String> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().context(INPUT)?);
    let kind = input.metadata().context(INPUT)?.file_type();
    if !kind.is_fifo() && !kind.is_file() {
        return Ok(String::new());
    }
    let (begun, beginning) = sync_channel(1);
    let reading = std::thread::spawn(move || {
        let mut input = BufReader::new(input);
        let first = input.fill_buf().map(|_| ()).context(INPUT);
        // Nobody waits any longer where it came too late.
        let _ = begun.send(());
        first.and_then(|()| text::read(INPUT, input, MAX_BYTES))
    });
    if beginning.recv_timeout(PATIENCE).is_err() {
        tell(&format!("{INPUT}: nothing for {} s: left out (`-` waits for it)", PATIENCE.as_secs()));
        return Ok(String::new());
    }
    reading.join().map_err(|_| anyhow::anyhow!("{INPUT}: the reading panicked"))?
}

/// A prompt that came from somewhere: an empty one is what a failed command before the pipe leaves.
fn not_empty(text: String, place: &str) -> Result<Prompt> {
    if text.trim().is_empty() {
        bail!("{place}: expected a prompt, found nothing");
    }
    Ok(Prompt::Text(text))
}

/// `1,2,3` or `1 2 3`, or `@FILE` with such a list.
pub fn parse_ids(list: &str) -> Result<Vec<u32>> {
    let owned;
    let list = match list.strip_prefix('@') {
        Some(path) => {
            owned = read_text(Path::new(path))?;
            &owned
        }
        None => list,
    };
    let words = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
    let id = |w: &str| w.parse().with_context(|| format!("--ids: expected token ids, found {w:?}"));
    words.map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_lists_of_numbers() {
        assert_eq!(parse_ids("1,2, 3\n4").unwrap(), [1, 2, 3, 4]);
        assert_eq!(parse_ids("").unwrap(), [0; 0]);
        assert!(parse_ids("1,x").unwrap_err().to_string().contains("found \"x\""));
        assert!(parse_ids("-1").is_err());
        assert!(parse_ids("4294967296").is_err());
    }
}
