//! Finds special tokens (`<|im_end|>`) in rendered prompts, longest match first.
//!
//! Untrusted text is never searched; [`crate::template`] describes how it is kept apart.

use aho_corasick::{AhoCorasick, Input, MatchKind};
use std::ops::Range;

/// The special tokens of a vocabulary.
#[derive(Clone, Debug)]
pub struct Specials {
    named: Vec<(String, u32)>,
    /// None without names, or if there are too many.
    search: Option<AhoCorasick>,
}

/// A run of text, or a special token between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment<'t> {
    Text(&'t str),
    Special(u32),
}

impl Specials {
    /// Builds the search from names and ids; empty names are ignored.
    pub(crate) fn new(mut named: Vec<(String, u32)>) -> Self {
        named.retain(|(name, _)| !name.is_empty());
        let names = named.iter().map(|(name, _)| name);
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(names).ok();
        Self { search: search.filter(|_| !named.is_empty()), named }
    }

    /// The id of a special token, by exact name.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.named.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    /// The name of a special token.
    pub fn name(&self, id: u32) -> Option<&str> {
        self.named.iter().find(|(_, i)| *i == id).map(|(name, _)| name.as_str())
    }

    /// The names, ordered by id.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|(name, _)| name.as_str())
    }

    /// Byte ranges of the special tokens in a text, with their ids.
    pub(crate) fn find<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (Range<usize>, u32)> + 't {
        let found = self.search.iter().flat_map(move |search| search.find_iter(text));
        found.map(|m| (m.range(), self.named[m.pattern().as_usize()].1))
    }

    /// The first special token at or after a byte of the text.
    pub(crate) fn find_from(&self, text: &str, at: usize) -> Option<(Range<usize>, u32)> {
        let found = self.search.as_ref()?.find(Input::new(text).range(at..))?;
        Some((found.range(), self.named[found.pattern().as_usize()].1))
    }

    /// Splits text at its special tokens.
    pub(crate) fn segments<'t>(&'t self, text: &'t str) -> Vec<Segment<'t>> {
        let (mut segments, mut at) = (Vec::new(), 0);
        for (range, id) in self.find(text) {
            if range.start > at {
                segments.push(Segment::Text(&text[at..range.start]));
            }
            segments.push(Segment::Special(id));
            at = range.end;
        }
        if at < text.len() {
            segments.push(Segment::Text(&text[at..]));
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_wins_and_the_rest_is_text() {
        let specials = Specials::new(vec![("<a>".into(), 7), ("<a>>".into(), 8), (String::new(), 9)]);
        let expected = [Segment::Text("x"), Segment::Special(8), Segment::Special(7), Segment::Text("<a")];
        assert_eq!(specials.segments("x<a>><a><a"), expected);
        assert_eq!(Specials::new(vec![]).segments("<a>"), [Segment::Text("<a>")]);
        assert_eq!((specials.id("<a>"), specials.id("")), (Some(7), None));
    }
}
