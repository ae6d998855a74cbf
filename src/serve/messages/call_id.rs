//! Converts the ids of tool calls. Models of this family number their calls as `functions.NAME:INDEX`, often from zero in
//! every turn; clients of Anthropic's API need an id that is unique in the conversation.

use crate::generation::sample::random_seed;
use std::collections::HashMap;

/// Start of the ids that clients receive: `toolu_` and 16 hexadecimal digits, `_`, the name, `_`, the index.
const PREFIX: &str = "toolu_";
const UNIQUE_DIGITS: usize = 16;

/// Returns a unique id, from which [`CallIds`] restores the model's id of the call.
pub fn unique(id: &str, name: &str) -> String {
    let index = id.strip_prefix("functions.").and_then(|id| id.strip_prefix(name)?.strip_prefix(':'));
    match index.filter(|index| is_index(index)) {
        Some(index) => format!("{PREFIX}{:016x}_{name}_{index}", random_seed()),
        None => id.to_owned(),
    }
}

fn is_index(text: &str) -> bool {
    (1..=6).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// Restores the model's id of a call.
fn restored(id: &str) -> Option<String> {
    let rest = id.strip_prefix(PREFIX)?;
    let (digits, rest) = (rest.get(..UNIQUE_DIGITS)?, rest.get(UNIQUE_DIGITS..)?);
    let (name, index) = rest.strip_prefix('_')?.rsplit_once('_')?;
    let known = digits.bytes().all(|b| b.is_ascii_hexdigit()) && !name.is_empty() && is_index(index);
    known.then(|| format!("functions.{name}:{index}"))
}

/// The ids of a conversation's calls in the model's form.
#[derive(Default)]
pub struct CallIds {
    calls: usize,
    /// Ids of other servers, with the ids that replace them.
    foreign: HashMap<String, String>,
}

impl CallIds {
    /// Returns the model's id of a call. A call of another model is numbered by its place in the conversation.
    pub fn called(&mut self, id: &str, name: &str) -> String {
        let index = self.calls;
        self.calls += 1;
        if id.starts_with("functions.") {
            return id.to_owned();
        }
        restored(id).unwrap_or_else(|| {
            let own = format!("functions.{name}:{index}");
            self.foreign.insert(id.to_owned(), own.clone());
            own
        })
    }

    /// Returns the model's id of the call that a result answers.
    pub fn answered(&self, id: &str) -> String {
        self.foreign.get(id).cloned().or_else(|| restored(id)).unwrap_or_else(|| id.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_restored() {
        for (id, name) in
            [("functions.add:0", "add"), ("functions.a_b_2:17", "a_b_2"), ("functions.a-b:3", "a-b")]
        {
            let (one, other) = (unique(id, name), unique(id, name));
            assert_ne!(one, other);
            assert!(one.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{one}");
            let mut ids = CallIds::default();
            assert_eq!((ids.called(&one, name), ids.answered(&one)), (id.to_owned(), id.to_owned()));
        }
        assert_eq!(unique("add:0", "add"), "add:0");
    }

    #[test]
    fn foreign_ids_are_numbered() {
        let mut ids = CallIds::default();
        assert_eq!(ids.called("toolu_01A", "read"), "functions.read:0");
        assert_eq!(ids.called("é", "write"), "functions.write:1");
        assert_eq!(ids.called("functions.read:0", "read"), "functions.read:0");
        assert_eq!(ids.answered("é"), "functions.write:1");
        assert_eq!(ids.answered("toolu_00000000000000é"), "toolu_00000000000000é");
    }
}
