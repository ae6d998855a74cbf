//! Reads the prompt of a command from an argument, a file, a pipe or a list of token ids. Next: [`crate::io::text`].

use crate::io::output::tell;
use crate::io::text::{self, MAX_BYTES};
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Command-line arguments that give a prompt.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PromptArgs {
    /// The prompt; `-` or none reads standard input. Piped or redirected text is put before the prompt; a pipe without data
    /// for 3 seconds is ignored
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Token ids instead of text: 1,2,3
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file"])]
    pub ids: Option<String>,
}

/// A prompt as given by the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text that is still to be tokenized.
    Text(String),
    /// Token ids, used without change.
    Ids(Vec<u32>),
}

impl PromptArgs {
    /// Reads the prompt from the source that the arguments select.
    pub fn read(&self) -> Result<Prompt> {
        if let Some(ids) = &self.ids {
            return Ok(Prompt::Ids(parse_ids(ids)?));
        }
        match (&self.file, self.prompt.as_deref()) {
            (Some(path), _) => not_empty(read_text(path)?, &path.display().to_string()),
            (None, Some("-")) => read_stdin(),
            (None, Some(text)) => Ok(Prompt::Text(after_piped_text(text)?)),
            (None, None) if io::stdin().is_terminal() => {
                bail!("no prompt: give it as an argument, with --file or --ids, or by a pipe")
            }
            (None, None) => read_stdin(),
        }
    }
}

/// Reads a text file of at most [`MAX_BYTES`].
pub fn read_text(path: &Path) -> Result<String> {
    let place = path.display().to_string();
    let file = File::open(path).with_context(|| place.clone())?;
    text::read(&place, file, MAX_BYTES)
}

const INPUT: &str = "standard input";

fn read_stdin() -> Result<Prompt> {
    not_empty(text::read(INPUT, io::stdin().lock(), MAX_BYTES)?, INPUT)
}

/// Puts piped text and a blank line before the prompt, as a document before a question.
fn after_piped_text(prompt: &str) -> Result<String> {
    let input = piped()?;
    Ok(match input.trim_end() {
        "" => prompt.to_owned(),
        input => format!("{input}\n\n{prompt}"),
    })
}

/// Longest wait for the first data of a pipe. A pipe that a script or service hands down can stay open without data.
const PIPE_TIMEOUT: Duration = Duration::from_secs(3);

/// The text of a pipe or file on standard input. Terminals, sockets and devices are ignored.
fn piped() -> Result<String> {
    let Some(input) = pipe_or_file().context(INPUT)? else { return Ok(String::new()) };
    let (first_data, is_ready) = sync_channel(1);
    let reader = std::thread::spawn(move || {
        let mut input = BufReader::new(input);
        let first = input.fill_buf().map(|_| ()).context(INPUT);
        // After the timeout the receiver is gone.
        let _ = first_data.send(());
        first.and_then(|()| text::read(INPUT, input, MAX_BYTES))
    });
    if is_ready.recv_timeout(PIPE_TIMEOUT).is_err() {
        tell(&format!("{INPUT}: no data for {} s, ignored (`-` waits for data)", PIPE_TIMEOUT.as_secs()));
        return Ok(String::new());
    }
    reader.join().map_err(|_| anyhow::anyhow!("{INPUT}: the reader thread panicked"))?
}

/// A second handle of standard input if it is a pipe or a file.
#[cfg(unix)]
fn pipe_or_file() -> io::Result<Option<File>> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let kind = input.metadata()?.file_type();
    Ok((kind.is_fifo() || kind.is_file()).then_some(input))
}

/// A second handle of standard input unless it is a console. The null device and a closed pipe end at once.
#[cfg(windows)]
fn pipe_or_file() -> io::Result<Option<File>> {
    use std::os::windows::io::AsHandle;
    if io::stdin().is_terminal() {
        return Ok(None);
    }
    Ok(Some(File::from(io::stdin().as_handle().try_clone_to_owned()?)))
}

/// Rejects an empty prompt, as a failed command before a pipe leaves it.
fn not_empty(text: String, place: &str) -> Result<Prompt> {
    if text.trim().is_empty() {
        bail!("{place} contains no text");
    }
    Ok(Prompt::Text(text))
}

/// Parses token ids: `1,2,3`, `1 2 3`, or `@FILE` with such a list.
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
    fn token_ids_are_parsed() {
        assert_eq!(parse_ids("1,2, 3\n4").unwrap(), [1, 2, 3, 4]);
        assert_eq!(parse_ids("").unwrap(), [0; 0]);
        assert!(parse_ids("1,x").unwrap_err().to_string().contains("found \"x\""));
        assert!(parse_ids("-1").is_err());
        assert!(parse_ids("4294967296").is_err());
    }
}
