//! Converts tokens to final text: whole characters that cannot begin a stop string.

use models::tokenizer::{Utf8Stream, Vocabulary};

/// A streaming detokenizer that withholds incomplete characters and possible beginnings of stop strings.
pub struct Detokenizer<'a> {
    tokenizer: &'a Vocabulary,
    decoder: Utf8Stream,
    stops: Vec<String>,
    pending: String,
    ready: usize,
}

impl<'a> Detokenizer<'a> {
    /// Creates a detokenizer whose text ends before the first of `stops`.
    pub fn new(tokenizer: &'a Vocabulary, stops: Vec<String>) -> Self {
        Detokenizer { tokenizer, decoder: Utf8Stream::new(), stops, pending: String::new(), ready: 0 }
    }

    /// Appends a token. Returns the index of the stop string that has appeared, if any; the text before it is then ready.
    pub fn push(&mut self, token: u32) -> Option<usize> {
        let fresh = self.decoder.push(self.tokenizer.token_bytes(token));
        self.pending.push_str(&fresh);
        self.scan_stops()
    }

    fn scan_stops(&mut self) -> Option<usize> {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = stops.filter_map(|(index, stop)| Some((self.pending.find(stop.as_str())?, index)));
        if let Some((at, index)) = found.min() {
            self.pending.truncate(at);
            self.ready = at;
            return Some(index);
        }
        self.ready =
            self.pending.len() - self.stops.iter().map(|s| overlap(&self.pending, s)).max().unwrap_or(0);
        None
    }

    /// Returns the text that is ready and removes it.
    pub fn take(&mut self) -> String {
        let rest = self.pending.split_off(self.ready);
        self.ready = 0;
        std::mem::replace(&mut self.pending, rest)
    }

    /// Returns the pending text after the last token.
    pub fn finish(mut self) -> String {
        self.pending.push_str(&self.decoder.finish());
        self.pending
    }
}

/// The number of bytes at the end of `text` that begin `stop`, without being all of it.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    let begins = |n: &usize| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]);
    (1..stop.len()).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_the_longest_prefix_of_a_stop_string_at_the_end() {
        assert_eq!(overlap("hello <|im", "<|im_end|>"), 4);
        assert_eq!(overlap("aab", "abab"), 2);
        assert_eq!(overlap("x", "stop"), 0);
        assert_eq!(overlap("日", "日本"), 3);
        assert_eq!(overlap("", "a"), 0);
    }
}
