//! Explains why a prompt was not wholly restored: compares it with the nearest of the recently served prompts
//! ([`super::history`]) and names the cause of the first difference.

use super::cause::MissCause;
use super::served::{PartKind, PromptOutline, PromptPart, ServedPrompt};
use models::tokenizer::Vocabulary;
use std::collections::HashSet;
use std::sync::Arc;

/// Characters of each text on either side of the first difference.
const WINDOW: usize = 60;
/// Tokens decoded on either side of it.
const WINDOW_TOKENS: usize = 64;
/// The shortest block, in bytes, that counts as moved and not as a coincidence.
const MIN_BLOCK: usize = 16;

/// The maximum number of places at which a trimmed history is assumed to continue.
const MAX_STARTS: usize = 64;

/// The explanation of a cache miss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMiss {
    pub cause: MissCause,
    /// The number of leading tokens that equal those of the nearest prompt.
    pub common: usize,
    /// The message of the first difference: its index and role.
    pub message: Option<(usize, String)>,
    /// The texts around the first difference: of this prompt and of the nearest one.
    pub texts: Option<[String; 2]>,
}

/// The nearest of the recently served prompts.
#[derive(Clone, Debug)]
pub struct Nearest {
    /// The prompt, and the number of leading tokens in common.
    pub nearest: Option<(Arc<ServedPrompt>, usize)>,
    /// The length of the longest prefix of which a snapshot was inserted.
    pub restorable: usize,
}

impl Nearest {
    /// Explains why only `reused` tokens of a prompt were restored.
    pub fn explain(
        &self,
        prompt: &[u32],
        outline: &PromptOutline,
        reused: usize,
        vocabulary: &Vocabulary,
    ) -> CacheMiss {
        let new = CacheMiss { cause: MissCause::New, common: 0, message: None, texts: None };
        let Some((served, common)) = &self.nearest else { return new };
        let (served, common) = (&**served, *common);
        let pair = PromptPair {
            now: (prompt, outline),
            before: (&served.tokens, &served.outline),
            common,
            vocabulary,
        };
        let extends = common == prompt.len() || common == served.tokens.len();
        let message = pair.place().or_else(|| outline.parts.last()).and_then(|part| match &part.kind {
            PartKind::Message { index, role } => Some((*index, role.clone())),
            PartKind::Tools => None,
        });
        let cause = match () {
            () if reused < self.restorable => MissCause::Evicted,
            () if !extends => pair.cause(served.prompt),
            () if reused + 1 < common => MissCause::Interval,
            () => MissCause::Continued,
        };
        let message = message.filter(|_| !extends && !matches!(cause, MissCause::New | MissCause::Tools));
        CacheMiss { cause, common, message, texts: (!extends).then(|| pair.windows()) }
    }
}

/// A prompt and the nearest one, which differ after `common` tokens.
struct PromptPair<'a> {
    now: (&'a [u32], &'a PromptOutline),
    before: (&'a [u32], &'a PromptOutline),
    common: usize,
    vocabulary: &'a Vocabulary,
}

impl<'a> PromptPair<'a> {
    /// The part of the prompt with the first difference.
    fn place(&self) -> Option<&'a PromptPart> {
        self.now.1.parts.iter().find(|part| part.end > self.common)
    }

    fn cause(&self, before_prompt: usize) -> MissCause {
        if self.is_other_tokenization() {
            return MissCause::Tokenization;
        }
        let (now, before) = (self.now.1, self.before.1);
        if now.parts.is_empty() || before.parts.is_empty() {
            return if self.common * 2 >= self.now.0.len().min(before_prompt) {
                MissCause::Text
            } else {
                MissCause::New
            };
        }
        let [a, b] = [now, before].map(|outline| messages(outline));
        let shared = shares_message(&a, &b);
        let first = first_difference(&a, &b);
        let in_head = self
            .place()
            .is_none_or(|part| matches!(&part.kind, PartKind::Tools | PartKind::Message { index: 0, .. }));
        if now.tools != before.tools && in_head {
            return if shared || self.is_similar() { MissCause::Tools } else { MissCause::New };
        }
        let Some(at) = first else {
            // The messages agree as far as both have them.
            return if self.common < before_prompt { MissCause::Template } else { MissCause::Message };
        };
        let is_system =
            |m: &&PromptPart| matches!(&m.kind, PartKind::Message { role, .. } if role == "system");
        if self.common + 1 < a[..at].last().map_or(0, |part| part.end) {
            return MissCause::Template;
        }
        let head =
            a.iter().take_while(|m| is_system(m)).count().max(b.iter().take_while(|m| is_system(m)).count());
        if self.is_moved(at, &a, &b) {
            return MissCause::Reminder;
        }
        if at < head {
            return if shared || self.is_similar() { MissCause::System } else { MissCause::New };
        }
        if is_trimmed(&a[at..], &b[at..]) {
            return MissCause::Trimmed;
        }
        let later = shares_message(&a[at..], &b[at..]);
        if at > head || later || self.is_similar() { MissCause::Message } else { MissCause::New }
    }

    /// Whether at least half of the part with the difference agrees.
    fn is_similar(&self) -> bool {
        let parts = &self.now.1.parts;
        let Some(at) = parts.iter().position(|part| part.end > self.common) else { return true };
        let start = at.checked_sub(1).map_or(0, |before| parts[before].end);
        self.common.saturating_sub(start) * 2 >= parts[at].end - start
    }

    /// Whether both have the same text after the first difference, up to a place where tokens of both end.
    fn is_other_tokenization(&self) -> bool {
        let (mut a, mut b) = (self.now.0[self.common..].iter(), self.before.0[self.common..].iter());
        let (mut now, mut before): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        for _ in 0..2 * WINDOW_TOKENS {
            let (text, tokens) =
                if now.len() <= before.len() { (&mut now, &mut a) } else { (&mut before, &mut b) };
            let Some(token) = tokens.next() else { return false };
            if self.vocabulary.is_special(*token) {
                return false;
            }
            text.extend(self.vocabulary.token_bytes(*token));
            let both = now.len().min(before.len());
            if now[..both] != before[..both] {
                return false;
            }
            if both > 0 && now.len() == before.len() {
                return true;
            }
        }
        false
    }

    /// Whether the messages at the first difference differ by a block that is elsewhere in the other prompt.
    fn is_moved(&self, at: usize, a: &[&PromptPart], b: &[&PromptPart]) -> bool {
        let system = |m: &PromptPart| matches!(&m.kind, PartKind::Message { role, .. } if role == "system");
        let moved = |from: &[&PromptPart], to: &[&PromptPart]| {
            let part = from.get(at).filter(|part| system(part));
            at > 0 && part.is_some_and(|part| to.iter().skip(at + 1).any(|m| m.digest == part.digest))
        };
        if moved(a, b) || moved(b, a) {
            return true;
        }
        let (now, before) = (self.text(self.now, at), self.text(self.before, at));
        let common = now.iter().zip(&before).take_while(|(x, y)| x == y).count();
        let (now_rest, before_rest) = (&now[common..], &before[common..]);
        let end = now_rest.iter().rev().zip(before_rest.iter().rev()).take_while(|(x, y)| x == y).count();
        let [inserted, removed] = [now_rest, before_rest].map(|rest| &rest[..rest.len() - end]);
        let elsewhere = |block: &[u8], (tokens, outline): (&[u32], &PromptOutline)| {
            let after = messages(outline).get(at).map_or(0, |part| part.end);
            let text = self.bytes(&tokens[after.min(tokens.len())..]);
            let block = String::from_utf8_lossy(block);
            // The texts around the block may begin or end like it, which moves its ends by some characters.
            let block = block.trim_matches(|c: char| c.is_whitespace() || "<>\u{fffd}".contains(c));
            block.len() >= MIN_BLOCK && String::from_utf8_lossy(&text).contains(block)
        };
        (inserted.is_empty() && elsewhere(removed, self.now))
            || (removed.is_empty() && elsewhere(inserted, self.before))
    }

    /// The text of a message.
    fn text(&self, (tokens, outline): (&[u32], &PromptOutline), at: usize) -> Vec<u8> {
        let Some(part) = messages(outline).get(at).copied() else { return Vec::new() };
        let start = outline.parts.iter().map(|p| p.end).filter(|end| *end < part.end).max().unwrap_or(0);
        self.bytes(&tokens[start..part.end.min(tokens.len())])
    }

    fn bytes(&self, tokens: &[u32]) -> Vec<u8> {
        tokens.iter().flat_map(|token| self.vocabulary.token_bytes(*token)).copied().collect()
    }

    /// Both texts around the first difference, each on one line.
    fn windows(&self) -> [String; 2] {
        [self.now.0, self.before.0].map(|tokens| {
            let start = self.common.saturating_sub(WINDOW_TOKENS);
            let end = tokens.len().min(self.common + WINDOW_TOKENS);
            let before = self.vocabulary.decode(&tokens[start..self.common]);
            let after = self.vocabulary.decode(&tokens[self.common..end]);
            let skipped = before.chars().count().saturating_sub(WINDOW);
            let before: String = before.chars().skip(skipped).collect();
            let after: String = after.chars().take(WINDOW).collect();
            format!("{}|{}", before.escape_debug(), after.escape_debug())
        })
    }
}

/// The messages of a prompt without its tools.
fn messages(outline: &PromptOutline) -> Vec<&PromptPart> {
    outline.parts.iter().filter(|part| part.kind != PartKind::Tools).collect()
}

/// The index of the first message that differs, if both have it.
fn first_difference(a: &[&PromptPart], b: &[&PromptPart]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a.digest != b.digest)
}

/// Whether the messages from `now` on follow some removed ones in `before`.
fn is_trimmed(now: &[&PromptPart], before: &[&PromptPart]) -> bool {
    let Some(first) = now.first() else { return false };
    let starts = (1..before.len()).filter(|at| before[*at].digest == first.digest).take(MAX_STARTS);
    starts.into_iter().any(|at| now.iter().zip(&before[at..]).all(|(a, b)| a.digest == b.digest))
}

/// Whether both have a message in common.
fn shares_message(a: &[&PromptPart], b: &[&PromptPart]) -> bool {
    let digests: HashSet<u64> = a.iter().map(|part| part.digest).collect();
    b.iter().any(|part| digests.contains(&part.digest))
}
