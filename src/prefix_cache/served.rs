//! A served prompt with its parts, an entry of [`super::history`].

use std::sync::Arc;

/// The tools and messages of a prompt. It is empty for a prompt without a template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptOutline {
    /// A hash of the list of tools; 0 without tools.
    pub tools: u64,
    /// The parts in the order of the prompt.
    pub parts: Vec<PromptPart>,
}

/// A part of a prompt, which begins where the part before it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptPart {
    pub kind: PartKind,
    /// The number of tokens up to the end of the part.
    pub end: usize,
    /// A hash of the message or the list of tools.
    pub digest: u64,
}

/// The source of a part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartKind {
    Tools,
    Message { index: usize, role: String },
}

/// A prompt with its reply, and the lengths at which snapshots were inserted.
#[derive(Debug)]
pub struct ServedPrompt {
    /// The tokens of the prompt and of its reply.
    pub tokens: Arc<[u32]>,
    /// The length of the prompt in tokens.
    pub prompt: usize,
    pub outline: PromptOutline,
    pub snapshots: Vec<usize>,
}

impl ServedPrompt {
    /// The length of the longest prefix of at most `common` tokens of which a snapshot was inserted.
    pub fn snapshot_within(&self, common: usize) -> usize {
        self.snapshots.iter().copied().filter(|length| *length <= common).max().unwrap_or(0)
    }

    /// The memory of the prompt in units of one token.
    pub fn size(&self) -> usize {
        self.tokens.len() + self.outline.parts.len() * (size_of::<PromptPart>() + 16) / size_of::<u32>()
    }

    /// The number of leading tokens that equal those of `prompt`.
    pub fn common(&self, prompt: &[u32]) -> usize {
        self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count()
    }
}
