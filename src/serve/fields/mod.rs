//! Lists the fields of request bodies and what happens with each. Fields that have no effect are accepted if that cannot
//! mislead a client, and refused by name otherwise. `docs/fields.md` is [`table`].

mod lists;
pub mod ollama;

use super::body::RequestBody;
use super::errors::{ApiError, quoted};
use super::notices::Notices;
use std::fmt::Write;

/// An interface with its own request bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    Chat,
    Completions,
    Responses,
    Messages,
}

/// What happens with a field of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Handling {
    /// The field has this effect.
    Used(&'static str),
    /// The field is accepted and has no effect, for this reason.
    Ignored(&'static str),
    /// The field is refused unless it is null or has one of these values (as JSON), for this reason.
    Refused(&'static [&'static str], &'static str),
}

/// A field with what happens with it.
pub type FieldRule = (&'static str, Handling);

impl Interface {
    /// All interfaces, in the order of the table.
    pub const ALL: [Interface; 4] =
        [Interface::Chat, Interface::Completions, Interface::Responses, Interface::Messages];

    /// The path of the endpoint.
    pub fn path(self) -> &'static str {
        match self {
            Interface::Chat => "/v1/chat/completions",
            Interface::Completions => "/v1/completions",
            Interface::Responses => "/v1/responses",
            Interface::Messages => "/v1/messages",
        }
    }

    /// Returns the fields with their handling.
    pub fn fields(self) -> Vec<FieldRule> {
        let own: &[&[FieldRule]] = match self {
            Interface::Chat => &[lists::CHAT, lists::GENERATION, lists::GUIDED, lists::OPENAI],
            Interface::Completions => &[lists::COMPLETIONS, lists::GENERATION, lists::GUIDED, lists::OPENAI],
            Interface::Responses => &[lists::RESPONSES, lists::OPENAI],
            Interface::Messages => &[lists::MESSAGES],
        };
        let mut fields: Vec<FieldRule> = own.concat();
        for rule in lists::FOREIGN {
            if !fields.iter().any(|(name, _)| *name == rule.0) {
                fields.push(*rule);
            }
        }
        fields
    }
}

/// Checks the names of a request's fields and the values of those that are not supported.
///
/// # Errors
/// A field that would have to change the reply, or the likely misspelling of one.
pub fn check(interface: Interface, body: &RequestBody, notices: &Notices) -> Result<(), ApiError> {
    let rules = interface.fields();
    for (name, value) in body.fields() {
        let rule = rules.iter().find(|(known, _)| *known == name);
        match rule.map(|(_, handling)| handling) {
            Some(Handling::Used(_) | Handling::Ignored(_)) => {}
            Some(Handling::Refused(harmless, why)) => {
                if !value.is_null() && !harmless.contains(&value.to_string().as_str()) {
                    return Err(ApiError::unsupported(name, why));
                }
            }
            None => {
                let similar = rules.iter().find(|(known, _)| is_misspelling(name, known));
                if let Some((known, _)) = similar {
                    return Err(ApiError::unsupported(name, format!("unknown field; did you mean {known}?")));
                }
                notices.once(&format!("{}: unknown field {}: ignored", interface.path(), quoted(name)));
            }
        }
    }
    Ok(())
}

/// Returns true if two names differ in case and separators only, or in one or two letters of many.
fn is_misspelling(name: &str, known: &str) -> bool {
    let letters = |text: &str| -> Vec<u8> {
        text.bytes().filter(u8::is_ascii_alphanumeric).map(|b| b.to_ascii_lowercase()).collect()
    };
    let (a, b) = (letters(name), letters(known));
    let allowed = match b.len() {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    };
    a.len().abs_diff(b.len()) <= allowed && distance(&a, &b) <= allowed
}

/// Number of letters to insert, remove or replace, or of neighbours to swap, between two short names.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Returns the table of all fields in Markdown.
pub fn table() -> String {
    let mut text = String::from(HEAD);
    for interface in Interface::ALL {
        let own = interface.fields();
        let own = own.iter().filter(|rule| !lists::FOREIGN.contains(rule));
        section(&mut text, &format!("POST {}", interface.path()), own);
    }
    for (title, rules) in ollama::sections() {
        section(&mut text, title, rules.iter());
    }
    section(&mut text, "Fields of other engines, for all interfaces but Ollama's", lists::FOREIGN.iter());
    text
}

const HEAD: &str = "# Fields of requests

For the endpoints below, each field of a request body has an effect, is accepted without one, or is refused with status 400 and
its name. A field is accepted without effect only if the reply is still what the client expects. Unknown fields are ignored, which
the log notes once; an unknown field that resembles a known one is refused as a misspelling. `/tokenize` and `/detokenize` ignore
unknown fields. This table is generated from
`src/serve/fields/lists.rs` (`UPDATE_FIELDS=1 cargo test --test serve fields`).
";

fn section<'r>(text: &mut String, title: &str, rules: impl Iterator<Item = &'r FieldRule>) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "\n## {title}\n\n| field | | |\n|---|---|---|");
    for (name, handling) in rules {
        let _ = match handling {
            Handling::Used(effect) => writeln!(text, "| `{name}` | used | {effect} |"),
            Handling::Ignored(why) => writeln!(text, "| `{name}` | ignored | {why} |"),
            Handling::Refused([], why) => writeln!(text, "| `{name}` | refused | {why} |"),
            Handling::Refused(values, why) => {
                writeln!(text, "| `{name}` | refused unless `{}` | {why} |", values.join("` or `"))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_are_found() {
        for (name, known) in [
            ("maxTokens", "max_tokens"),
            ("max-tokens", "max_tokens"),
            ("max_token", "max_tokens"),
            ("temprature", "temperature"),
            ("tempearture", "temperature"),
            ("stops", "stop"),
            ("reponse_format", "response_format"),
        ] {
            assert!(is_misspelling(name, known), "{name}");
        }
        for (name, known) in
            [("no_such_field", "messages"), ("k", "n"), ("user_id", "user"), ("top", "stop_token")]
        {
            assert!(!is_misspelling(name, known), "{name}");
        }
    }

    #[test]
    fn each_name_is_listed_once() {
        for interface in Interface::ALL {
            let mut names: Vec<&str> = interface.fields().iter().map(|(name, _)| *name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{interface:?}");
        }
    }
}
