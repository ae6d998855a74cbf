//! Where a prompt comes from: argument, file, pipe or token ids. A leaf: knows no model.

use anyhow::{Context as _, Result, bail};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// A prompt on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PromptArgs {
    /// The prompt; `-` or a pipe reads standard input
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
            (None, Some(text)) => Ok(Prompt::Text(text.to_owned())),
            (None, None) if std::io::stdin().is_terminal() => {
                bail!("prompt: expected an argument, --file, --ids or a pipe, found none")
            }
            (None, None) => read_stdin(),
        }
    }
}

/// A text file in UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    text(bytes, &path.display().to_string())
}

fn read_stdin() -> Result<Prompt> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
    not_empty(text(bytes, "standard input")?, "standard input")
}

/// A prompt that came from somewhere: an empty one is what a failed command before the pipe leaves.
fn not_empty(text: String, place: &str) -> Result<Prompt> {
    if text.trim().is_empty() {
        bail!("{place}: expected a prompt, found nothing");
    }
    Ok(Prompt::Text(text))
}

fn text(bytes: Vec<u8>, place: &str) -> Result<String> {
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let byte = e.as_bytes().get(at).copied().unwrap_or(0);
        anyhow::anyhow!("{place}: byte {at}: expected UTF-8 text, found 0x{byte:02x}")
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
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

/// Where an output is while it is not whole: its name with `.part` after it.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
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

    #[test]
    fn text_says_where_it_is_not_utf8_and_loses_its_mark() {
        let e = text(b"ab\xff".to_vec(), "x.txt").unwrap_err().to_string();
        assert_eq!(e, "x.txt: byte 2: expected UTF-8 text, found 0xff");
        assert_eq!(text("\u{feff}hi".into(), "x").unwrap(), "hi");
    }
}
