//! Collects the text of a document and the starts of its parts, up to a maximum length.

use super::place::{Part, PartStart};
use crate::io::text::MAX_BYTES;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The text of a document with its parts.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extracted {
    pub text: String,
    pub parts: Vec<PartStart>,
}

#[derive(Default)]
pub(super) struct TextBuilder {
    extracted: Extracted,
    /// The number of line ends in the text.
    line_ends: usize,
}

impl TextBuilder {
    /// Starts a part at the next line.
    pub fn start(&mut self, part: Part) {
        let line = self.line_ends + 1;
        self.extracted.parts.push(PartStart { line, part });
    }

    /// Appends a line, or several. Control characters are removed.
    ///
    /// # Errors
    /// The text exceeds [`MAX_BYTES`].
    pub fn line(&mut self, line: &str) -> Result<()> {
        let text = &mut self.extracted.text;
        if text.len() + line.len() >= MAX_BYTES as usize {
            bail!("expected at most {MAX_BYTES} bytes of text, found more");
        }
        let kept = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
        text.extend(line.chars().filter(kept));
        text.push('\n');
        self.line_ends += 1 + line.matches('\n').count();
        Ok(())
    }

    /// The number of complete lines.
    pub fn lines(&self) -> usize {
        self.line_ends
    }

    /// The text without empty lines at its end, and the parts that start in it.
    pub fn finish(self) -> Extracted {
        let Extracted { mut text, mut parts } = self.extracted;
        text.truncate(text.trim_end().len());
        if !text.is_empty() {
            text.push('\n');
        }
        let lines = text.matches('\n').count();
        parts.retain(|part| part.line <= lines);
        Extracted { text, parts }
    }
}
