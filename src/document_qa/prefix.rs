//! The tokens of documents that all prompts about them begin with, and where snapshots of them are taken.

use super::{SEPARATOR, joined};
use crate::documents::Document;
use crate::generation::conversation::Conversation;
use crate::runtime::engine::EngineBase;
use anyhow::Result;

/// Tokens between a snapshot and the end of its file, as the tokens at the end depend on the next file.
const MARGIN: usize = 8;

/// Tokens that several prompts of a caller begin with.
#[derive(Clone, Debug, Default)]
pub struct DocumentPrefix {
    pub tokens: Vec<u32>,
    /// Offsets of further snapshots in `tokens`, besides the one at its end.
    pub snapshots: Vec<usize>,
}

impl DocumentPrefix {
    /// Encodes the documents after a system message.
    ///
    /// # Errors
    /// The model has no tokenizer, or its chat template fails.
    pub fn new(engine: &EngineBase, system: Option<&str>, documents: &[Document]) -> Result<Self> {
        let tokens = common_prefix(engine, system, &joined(documents))?;
        let snapshots = file_ends(engine, documents, tokens.len())?;
        Ok(DocumentPrefix { tokens, snapshots })
    }

    /// Returns the start of the question in a prompt about the documents: the length of the part that the prompt shares with
    /// other prompts about them. `None` for a prompt that does not begin with the documents, such as one with tools.
    pub fn question_in(&self, prompt: &[u32]) -> Option<usize> {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        (same + MARGIN >= self.tokens.len()).then_some(same)
    }
}

/// The tokens that all prompts about a document begin with, as the common prefix of prompts with different questions.
fn common_prefix(engine: &EngineBase, system: Option<&str>, document: &str) -> Result<Vec<u32>> {
    let prompt = |question: &str| {
        let mut conversation = Conversation::new(system);
        conversation.say("user", &format!("{document}{SEPARATOR}{question}"));
        conversation.prompt(engine)
    };
    let mut common = prompt("Who")?;
    for question in ["1", "那", "(b"] {
        let other = prompt(question)?;
        common.truncate(common.iter().zip(&other).take_while(|(a, b)| a == b).count());
    }
    Ok(common)
}

/// Approximate token offsets of the ends of all files but the last. Snapshots there are reused when files are added.
fn file_ends(engine: &EngineBase, documents: &[Document], total: usize) -> Result<Vec<usize>> {
    let tokenizer = engine.tokenizer()?;
    let (mut end, mut ends) = (total, Vec::new());
    for document in documents.iter().skip(1).rev() {
        let name = tokenizer.encode(&document.name).len();
        end = end.saturating_sub(tokenizer.encode(&document.text).len() + name + 2);
        ends.push(end.saturating_sub(MARGIN));
    }
    ends.reverse();
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_starts_where_prompts_differ() {
        let prefix = DocumentPrefix { tokens: (0..100).collect(), snapshots: Vec::new() };
        let prompt = |own: u32| (0..own).chain([7, 7, 7]).collect::<Vec<u32>>();
        assert_eq!(prefix.question_in(&prompt(100)), Some(100));
        assert_eq!(prefix.question_in(&prompt(98)), Some(98));
        assert_eq!(prefix.question_in(&prompt(20)), None);
    }
}
