//! Keeps what a user typed from becoming a special token.
//!
//! Values are marked before the template sees them, with one character that stands nowhere in the input or
//! the template: after the first character of every special token's name in them (`<` MARK `|im_end|>`), at
//! an end that could be a part of a name, and in a value that is a middle part (`EOS`, for a template that
//! writes `[{{ name }}]`). So neither a value nor a value joined to what stands beside it spells a name. The
//! sentinel is no white space, so `strip` keeps it; `in`, `split` and comparison see ordinary text as it is, and
//! special tokens' names as not there. After rendering, special tokens are looked for with the marks in
//! place; then the marks are taken out and the rest is encoded as ordinary text.
//!
//! Left as they are, because templates compare them or build tokens from them (`<|{{ role }}|>`): middle parts
//! under `role` and `type`, and keys that are words. A server checks roles before it comes here.

use crate::tokenizer::Specials;
use rustc_hash::FxHashSet;
use serde_json::Value;
use std::collections::HashSet;

/// The first of [`candidates`], for values that hold none.
pub(super) const UNUSED: char = '\u{fdd0}';

/// Characters that mean nothing in Unicode, and then private ones.
fn candidates() -> impl Iterator<Item = char> {
    ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}')
}

fn is_candidate(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}' | '\u{f0000}'..='\u{ffffd}')
}

/// The names of special tokens and their proper parts, looked up for every value.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) specials: Specials,
    heads: FxHashSet<String>,
    tails: FxHashSet<String>,
    /// Bytes of the longest part.
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

    /// Whether the text begins with the end of a name: what a template writes before it could complete it.
    fn tail_at_start(&self, text: &str) -> bool {
        let ends = 1..=self.longest.min(text.len());
        ends.filter_map(|end| text.get(..end)).any(|part| self.tails.contains(part))
    }

    /// Whether the text ends with the beginning of a name.
    fn head_at_end(&self, text: &str) -> bool {
        let lengths = 1..=self.longest.min(text.len());
        lengths.filter_map(|length| text.get(text.len() - length..)).any(|part| self.heads.contains(part))
    }

    /// Whether the text is a part of a name.
    fn within(&self, text: &str) -> bool {
        !text.is_empty()
            && text.len() <= self.longest
            && self.specials.names().any(|name| name.contains(text))
    }
}

/// Marks values of one rendering.
pub(super) struct Guard<'s> {
    names: &'s Names,
    pub(super) sentinel: char,
}

impl<'s> Guard<'s> {
    /// Chooses a sentinel that is not in any of the values or texts; `None` if all of 65,000 are.
    pub(super) fn new<'v>(
        names: &'s Names,
        values: impl Iterator<Item = &'v Value>,
        source: &str,
    ) -> Option<Self> {
        let mut used: HashSet<char> = source.chars().filter(|&c| is_candidate(c)).collect();
        values.for_each(|value| collect(value, &mut used));
        Some(Self { names, sentinel: candidates().find(|c| !used.contains(c))? })
    }

    /// The value for the template, with every text and key in it marked.
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

    /// Marks a text; `middle` says whether a middle part of a name is marked too.
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

    /// The text with the sentinel at these bytes, which ascend.
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

/// Bytes of the first character.
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
