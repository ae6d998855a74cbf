//! Chooses the attention path of each token of a prompt: materialized attention for tokens far inside a long message,
//! absorbed attention for all others.
//!
//! A token's path depends on the tokens before it and on the start of the question, never on later tokens or on how a
//! prompt is cut into batches: a restored prefix gives the same bits as uninterrupted prefill. A message begins after a
//! special token or with the question about a document, so that a question costs no more than its own tokens. Replies
//! use absorbed attention, because they are decoded token by token.

use models::hybrid::mla::MlaPath;
use models::template::{Message, Template};
use models::tokenizer::Vocabulary;
use serde_json::Map;
use std::ops::Range;

/// Tokens at the start of a message that use absorbed attention. Materializing keys and values pays off from batches
/// of about 170 tokens on.
pub const MATERIALIZE_AFTER: usize = 1024;

/// Factor by which batches are larger in materialized attention. The memory plan counts these larger batches.
pub const MATERIALIZED_BATCH_FACTOR: usize = 2;

/// The position of a token: the start of its message, and whether that is a reply.
#[derive(Clone, Copy)]
struct Position {
    message_start: usize,
    reply: bool,
}

impl Position {
    fn mla_path(self, token: usize) -> MlaPath {
        if self.reply || token - self.message_start < MATERIALIZE_AFTER {
            MlaPath::Absorbed
        } else {
            MlaPath::Materialized
        }
    }
}

/// Finds the boundaries of messages and replies by the special tokens and the ids that open a reply.
pub struct MessageBoundaries<'a> {
    /// The ids that the chat template emits before a reply.
    pub reply_prefix_ids: &'a [u32],
    /// Identifies special tokens; `None` for a model file that has no tokenizer.
    pub tokenizer: Option<&'a Vocabulary>,
}

impl MessageBoundaries<'_> {
    /// Returns the path of the first of these tokens of a prompt, and the end of the run of tokens that share it.
    /// `question` is the start of the question about a document.
    pub fn mla_path(
        &self,
        prompt: &[u32],
        tokens: Range<usize>,
        question: Option<usize>,
    ) -> (MlaPath, usize) {
        let mut position = self.position(prompt, tokens.start, question);
        let path = position.mla_path(tokens.start);
        let mut end = tokens.start + 1;
        while end < tokens.end {
            if self.is_special(prompt[end - 1]) || question == Some(end) {
                position = self.position(prompt, end, question);
            }
            if position.mla_path(end) != path {
                break;
            }
            end += 1;
        }
        (path, end.min(tokens.end))
    }

    /// Returns whether prefill would use materialized attention for some of these tokens, which were decoded one by
    /// one. The state after them is then not cached: it differs from the prefilled one by rounding.
    pub fn is_noncanonical(&self, all: &[u32], tokens: Range<usize>) -> bool {
        let mut at = tokens.start;
        while at < tokens.end {
            let (path, end) = self.mla_path(all, at..tokens.end, None);
            if path == MlaPath::Materialized {
                return true;
            }
            at = end;
        }
        false
    }

    fn position(&self, prompt: &[u32], token: usize, question: Option<usize>) -> Position {
        let mut start = question.filter(|question| *question <= token).unwrap_or(0);
        let mut reply = false;
        // Scans back to the end of the previous message: a reply may contain special tokens itself.
        for at in (0..token).rev().filter(|at| self.is_special(prompt[*at])) {
            start = start.max(at + 1);
            reply = self.opens(&prompt[..=at], &prompt[at + 1..]);
            if reply || self.is_end(prompt[at]) {
                break;
            }
        }
        Position { message_start: start, reply }
    }

    /// Returns whether a reply opens here: `before` ends with the opening up to its last special token, and `after`
    /// starts with the remaining ordinary tokens.
    fn opens(&self, before: &[u32], after: &[u32]) -> bool {
        let special =
            self.reply_prefix_ids.iter().rposition(|id| self.is_special(*id)).map_or(0, |at| at + 1);
        let (head, tail) = self.reply_prefix_ids.split_at(special);
        special > 0 && before.ends_with(head) && after.starts_with(tail)
    }

    fn is_end(&self, id: u32) -> bool {
        self.tokenizer.is_some_and(|t| t.is_end(id))
    }

    fn is_special(&self, id: u32) -> bool {
        self.tokenizer.is_some_and(|t| t.is_special(id))
    }
}

/// Returns the ids that a template emits before a reply; empty if they cannot be determined.
pub fn reply_prefix(template: Option<&Template>, tokenizer: Option<&Vocabulary>) -> Vec<u32> {
    let (Some(template), Some(tokenizer)) = (template, tokenizer) else { return Vec::new() };
    let render = |open| template.render(&[Message::new("user", "x")], &[], open, &Map::new()).ok();
    let Some(history) = render(false) else { return Vec::new() };
    match render(true) {
        Some(prompt) if prompt.text().starts_with(history.text()) => {
            prompt.encode_after(history.text().len(), tokenizer)
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix_cache::options::StoreOptions;
    use crate::runtime::engine::Engine;
    use crate::runtime::options::LoadOptions;
    use kernels::cpu::Cpu;

    fn demo() -> Engine<Cpu> {
        let args = LoadOptions { threads: Some(1), store: StoreOptions::nothing(), ..LoadOptions::default() };
        Engine::open_with(&args, Box::new(|_| ())).unwrap()
    }

    /// Returns the path of every token, computed in batches of at most `most` tokens.
    fn forms(engine: &Engine<Cpu>, prompt: &[u32], question: Option<usize>, most: usize) -> Vec<MlaPath> {
        let mut forms = Vec::new();
        while forms.len() < prompt.len() {
            let at = forms.len();
            let (path, end) = engine.mla_path(prompt, at..prompt.len().min(at + most), question);
            assert!(end > at && end <= at + most);
            forms.resize(end, path);
        }
        forms
    }

    fn expanded(forms: &[MlaPath]) -> Vec<usize> {
        (0..forms.len()).filter(|i| forms[*i] == MlaPath::Materialized).collect()
    }

    #[test]
    fn far_inside_a_long_message_and_nowhere_else() {
        let engine = demo();
        let tokenizer = engine.tokenizer().unwrap();
        let long = "word ".repeat(1500);
        let text = |role: &str, content: &str| format!("<|im_{role}|>{role}<|im_middle|>{content}<|im_end|>");
        let call = format!("Let me see. <|tool_calls_section_begin|>{long}");
        let messages =
            [("user", long.as_str()), ("assistant", &long), ("user", "Who?"), ("assistant", &call)];
        let prompt: String = messages.iter().map(|(role, content)| text(role, content)).collect();
        let prompt = tokenizer.encode_with_specials(&prompt);
        let middle = tokenizer.specials().id("<|im_middle|>").unwrap();
        let start = 1 + prompt.iter().position(|id| *id == middle).unwrap();
        let end = 1 + prompt.iter().position(|id| tokenizer.is_end(*id)).unwrap();
        assert!(end - start > MATERIALIZE_AFTER + 300 && prompt.len() > 2 * end);
        let all = forms(&engine, &prompt, None, prompt.len());
        assert_eq!(expanded(&all), (start + MATERIALIZE_AFTER..end).collect::<Vec<_>>());
        for most in [1, 7, 512] {
            assert_eq!(forms(&engine, &prompt, None, most), all, "pieces of {most}");
        }
        let cut = forms(&engine, &prompt[..end - 100], None, 512);
        assert_eq!(cut, all[..end - 100], "what comes after does not matter");
        let question = start + MATERIALIZE_AFTER + 50;
        let found = expanded(&forms(&engine, &prompt, Some(question), 512));
        assert_eq!(found, (start + MATERIALIZE_AFTER..question).collect::<Vec<_>>());
    }

    #[test]
    fn a_prompt_without_messages_is_one() {
        let engine = demo();
        let forms = forms(&engine, &[70; MATERIALIZE_AFTER + 9], None, 100);
        assert_eq!(expanded(&forms), (MATERIALIZE_AFTER..MATERIALIZE_AFTER + 9).collect::<Vec<_>>());
        let is_noncanonical = |tokens| engine.is_noncanonical(&[70; MATERIALIZE_AFTER + 9], tokens);
        assert!(
            !is_noncanonical(0..MATERIALIZE_AFTER)
                && !is_noncanonical(MATERIALIZE_AFTER..MATERIALIZE_AFTER)
                && is_noncanonical(MATERIALIZE_AFTER - 1..MATERIALIZE_AFTER + 1)
                && is_noncanonical(MATERIALIZE_AFTER + 3..MATERIALIZE_AFTER + 4)
        );
    }
}
