//! Prevents text of users from becoming special tokens.
//!
//! Before rendering, a sentinel character that occurs neither in the input nor in the template is inserted in values:
//! after the first character of every special token's name (`<` SENTINEL `|im_end|>`), at an end that could be part of a
//! name, and in a value that is the middle of a name (`EOS`, for a template that writes `[{{ name }}]`). Neither a value
//! nor its concatenation with neighboring text then contains a name. The sentinel is no white space, so `strip` keeps
//! it; `in`, `split` and comparisons see ordinary text unchanged, and no names of special tokens. After rendering, special
//! tokens are searched for with the sentinels in place; then the sentinels are removed and the rest is encoded as text.
//!
//! Middle parts under `role` and `type` and keys that are words stay unchanged, because templates compare them or build
//! tokens from them (`<|{{ role }}|>`). A server validates roles before rendering.

use crate::tokenizer::Specials;
use rustc_hash::FxHashSet;
use serde_json::Value;
use std::collections::HashSet;

/// The first of [`candidates`], for values that contain none of them.
pub(super) const UNUSED: char = '\u{fdd0}';

/// Candidate sentinels: Unicode noncharacters, then private-use characters.
fn candidates() -> impl Iterator<Item = char> {
    ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}')
}

fn is_candidate(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}' | '\u{f0000}'..='\u{ffffd}')
}

/// The names of special tokens and their proper prefixes and suffixes.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) specials: Specials,
    heads: FxHashSet<String>,
    tails: FxHashSet<String>,
    /// Length of the longest part in bytes.
    longest: usize,
}

impl Names {
    pub(super) fn new(specials: &Specials) -> Self {
        let cuts = |name: &str| name.char_indices().skip(1).map(|(at, _)| at).collect::<Vec<_>>();
        let parts = specials.names().flat_map(|name| cuts(name).into_iter().map(|at| name.split_at(at)));
        let (heads, tails): (FxHashSet<_>, FxHashSet<_>) =
            parts.map(|(head, tail)| (head.to_owned(), tail.to_owned())).unzip();
        let longest = heads.iter().chain(&tails).map(String::len).max().unwrap_or(0);
        Self { specials: specials.clone(), heads, tails, longest }
    }

    /// Returns whether the text starts with a suffix of a name, which preceding text could complete.
    fn tail_at_start(&self, text: &str) -> bool {
        let ends = 1..=self.longest.min(text.len());
        ends.filter_map(|end| text.get(..end)).any(|part| self.tails.contains(part))
    }

    /// Returns whether the text ends with a prefix of a name.
    fn head_at_end(&self, text: &str) -> bool {
        let lengths = 1..=self.longest.min(text.len());
        lengths.filter_map(|length| text.get(text.len() - length..)).any(|part| self.heads.contains(part))
    }

    /// Returns whether the text is part of a name.
    fn within(&self, text: &str) -> bool {
        !text.is_empty()
            && text.len() <= self.longest
            && self.specials.names().any(|name| name.contains(text))
    }
}

/// Inserts sentinels in the values of one rendering.
pub(super) struct Guard<'s> {
    names: &'s Names,
    pub(super) sentinel: char,
}

impl<'s> Guard<'s> {
    /// Chooses a sentinel that occurs in none of the values or texts. None if all 65,000 candidates occur.
    pub(super) fn new<'v>(
        names: &'s Names,
        values: impl Iterator<Item = &'v Value>,
        source: &str,
    ) -> Option<Self> {
        let mut used: HashSet<char> = source.chars().filter(|&c| is_candidate(c)).collect();
        values.for_each(|value| collect(value, &mut used));
        Some(Self { names, sentinel: candidates().find(|c| !used.contains(c))? })
    }

    /// Inserts sentinels in every text and key of a value.
    pub(super) fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text, true)),
            Value::Array(list) => list.into_iter().map(|item| self.value(item)).collect(),
            Value::Object(map) => map.into_iter().map(|(k, v)| self.field(k, v)).collect(),
            other => other,
        }
    }

    fn field(&self, key: String, value: Value) -> (String, Value) {
        let value = match value {
            Value::String(text) if matches!(&*key, "role" | "type") => Value::String(self.text(text, false)),
            other => self.value(other),
        };
        let word = key.chars().all(|c| c.is_alphanumeric() || c == '_');
        (self.text(key, !word), value)
    }

    /// Inserts sentinels in a text; with `middle`, also in a text that is the middle of a name.
    fn text(&self, text: String, middle: bool) -> String {
        let inside = text.trim();
        let start = text.len() - text.trim_start().len();
        let mut places = Vec::new();
        if self.names.tail_at_start(inside) {
            places.push(start);
        }
        if middle && self.names.within(inside) {
            places.push(start + first(inside));
        }
        let mut at = 0;
        while let Some((range, _)) = self.names.specials.find_from(&text, at) {
            at = range.start + first(&text[range.start..]);
            places.push(at);
        }
        if self.names.head_at_end(inside) {
            places.push(start + inside.len());
        }
        if places.is_empty() { text } else { self.insert(&text, &places) }
    }

    /// Inserts the sentinel at ascending byte positions.
    fn insert(&self, text: &str, places: &[usize]) -> String {
        let mut marked = String::with_capacity(text.len() + 4 * places.len());
        let mut at = 0;
        for &place in places {
            marked.push_str(&text[at..place]);
            marked.push(self.sentinel);
            at = place;
        }
        marked + &text[at..]
    }
}

/// Length of the first character in bytes.
fn first(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

fn collect(value: &Value, used: &mut HashSet<char>) {
    match value {
        Value::String(text) => used.extend(text.chars().filter(|&c| is_candidate(c))),
        Value::Array(list) => list.iter().for_each(|item| collect(item, used)),
        Value::Object(map) => {
            for (key, value) in map {
                used.extend(key.chars().filter(|&c| is_candidate(c)));
                collect(value, used);
            }
        }
        _ => {}
    }
}
