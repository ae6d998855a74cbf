//! Finds the tools and messages of a rendered prompt, for snapshots where clients cut conversations and for explanations of
//! cache misses.

use crate::prefix_cache::retokenize::ids_within;
use crate::prefix_cache::served::{PartKind, PromptOutline, PromptPart};
use models::template::{Message, Rendered};
use models::tokenizer::Vocabulary;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

/// Distance in tokens below which two ends of messages share a snapshot: a snapshot costs more than their prefill.
const MIN_SNAPSHOT_DISTANCE: usize = 128;
/// Length in bytes from which a user message gets snapshots at its last reminder and its last paragraph break.
const LONG_MESSAGE: usize = 1024;
/// The tags in which coding agents put notes before a question.
const REMINDER: &str = "<system-reminder>";
const REMINDER_END: &str = "</system-reminder>";

/// Borders, bytes of space and bytes of other text that a search for a message skips at most: the time of a search must not
/// depend on the length of the prompt.
const MAX_BORDERS: usize = 64;
const MAX_SPACES: usize = 64;
const MAX_DISTANCE: usize = 4096;

/// A rendered prompt whose parts are being found.
pub struct PromptText<'a> {
    pub rendered: &'a Rendered,
    pub messages: &'a [Message],
    pub tools: &'a [Value],
    /// The end of the tools in the text, if the template renders them first.
    pub tools_end: Option<usize>,
}

/// The parts of a prompt and the lengths at which clients cut it, in tokens.
#[derive(Debug, Default)]
pub struct FoundParts {
    pub outline: PromptOutline,
    pub cuts: Vec<usize>,
}

impl PromptText<'_> {
    /// Finds the parts of a prompt with these tokens. A message whose text the template changes belongs to the next part.
    pub fn find(&self, tokens: &[u32], vocabulary: &Vocabulary) -> FoundParts {
        let mut parts: Vec<(PartKind, usize, u64)> = Vec::new();
        let tools = if self.tools.is_empty() { 0 } else { digest(&self.tools) };
        let mut at = 0;
        if let Some(end) = self.tools_end.filter(|_| tools != 0) {
            parts.push((PartKind::Tools, end, tools));
            at = end;
        }
        let mut breaks = Vec::new();
        for (index, message) in self.messages.iter().enumerate() {
            let Some((start, end)) = self.locate(message, at) else { continue };
            let role = message.role.clone();
            if role == "user" && end - start >= LONG_MESSAGE {
                breaks.extend(self.breaks(start, end));
            }
            at = self.border_after(end);
            parts.push((PartKind::Message { index, role }, at, digest(message)));
        }
        let ends: Vec<usize> = parts.iter().map(|(_, end, _)| *end).collect();
        let ends = ids_within(tokens, &ends, vocabulary);
        let parts = parts.into_iter().zip(&ends);
        let parts = parts.map(|((kind, _, digest), end)| PromptPart { kind, end: *end, digest }).collect();
        breaks.sort_unstable();
        let mut cuts = spaced(&ends);
        cuts.extend(spaced(&ids_within(tokens, &breaks, vocabulary)));
        FoundParts { outline: PromptOutline { tools, parts }, cuts }
    }

    /// Returns the start and end of a message's text after byte `from`.
    fn locate(&self, message: &Message, from: usize) -> Option<(usize, usize)> {
        let content = content_text(message);
        let last_call = message.tool_calls.as_ref().and_then(|calls| calls.last());
        let arguments =
            last_call.and_then(|call| call.pointer("/function/arguments")).and_then(Value::as_str);
        let start = self.position(content.trim(), from);
        let end = start.map_or(from, |start| start + content.trim().len());
        match arguments.and_then(|arguments| Some((self.position(arguments.trim(), end)?, arguments))) {
            Some((at, arguments)) => Some((start.unwrap_or(at), at + arguments.trim().len())),
            None => start.map(|start| (start, end)),
        }
    }

    /// Finds a text shortly after byte `from`, at the start of a part of the prompt if it is there.
    fn position(&self, wanted: &str, from: usize) -> Option<usize> {
        let text = self.rendered.text();
        if wanted.is_empty() {
            return None;
        }
        let start = |border: usize| {
            let spaces = text.as_bytes()[border..]
                .iter()
                .take(MAX_SPACES)
                .take_while(|byte| byte.is_ascii_whitespace());
            border + spaces.count()
        };
        let mut starts = self.rendered.borders_from(from).take(MAX_BORDERS).map(start);
        let at_border = starts.find(|at| text.as_bytes()[*at..].starts_with(wanted.as_bytes()));
        let end = text.floor_char_boundary(from.saturating_add(wanted.len()).saturating_add(MAX_DISTANCE));
        at_border.or_else(|| text[from..end].find(wanted).map(|at| from + at))
    }

    /// The end of the special token that follows byte `end`, or of the text.
    fn border_after(&self, end: usize) -> usize {
        let mut borders = self.rendered.borders_from(end);
        let text_end = borders.next().unwrap_or(end);
        borders.next().unwrap_or(text_end)
    }

    /// The places in a message where clients cut it: around its last reminder, which agents leave out in the next request,
    /// and at its last paragraph break, after which another question may follow.
    fn breaks(&self, start: usize, end: usize) -> impl Iterator<Item = usize> {
        let text = &self.rendered.text()[start..end];
        let after = |mark: &str| Some(text.rfind(mark)? + mark.len());
        let found = [text.rfind(REMINDER), after(REMINDER_END), after("\n\n")];
        found.into_iter().flatten().map(move |at| start + at)
    }
}

/// The text of a message without its other parts.
fn content_text(message: &Message) -> String {
    match &message.content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect()
        }
        _ => String::new(),
    }
}

fn digest(value: &(impl serde::Serialize + ?Sized)) -> u64 {
    xxh3_64(&serde_json::to_vec(value).unwrap_or_default()).max(1)
}

/// Leaves out ends that follow the one before too closely.
fn spaced(ends: &[usize]) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for end in ends {
        if kept.last().is_none_or(|last| end - last >= MIN_SNAPSHOT_DISTANCE) {
            kept.push(*end);
        }
    }
    kept
}
