//! Forecasts the text of a reply under a grammar as far as it is not open: bytes that the grammar forces, and where it
//! leaves white space free, what the reply had between the same signs before. A forecast is a draft: it may be wrong, and
//! the mask still decides. It computes no mask: [`super::masks`] asks for a forecast where a mask allows few tokens.

use llguidance::Matcher;
use llguidance::toktrie::TokTrie;
use std::collections::HashMap;

/// A mask that allows more tokens than this is that of an open place, such as the inside of a string: there the forecast
/// is empty without a look at the grammar. Places between the parts of JSON allow some hundreds, most of them white space.
pub(super) const FEW_TOKENS: usize = 4000;
/// Bytes after which a forecast ends, more than the tokens of a draft have. A text that is forced is longer: it is computed
/// once to its end.
const MOST_BYTES: usize = 120;
/// A forecast that ended at [`MOST_BYTES`] is computed again when fewer bytes than this are left.
const ENOUGH_BYTES: usize = 60;
/// Stands for any sign after a colon.
const ANY: u8 = 0;
/// White space of a reply beyond this many bytes is not remembered.
const MOST_SPACE: usize = 64;

/// What is known of the rest of a reply.
#[derive(Debug, Default)]
pub(super) struct Forecast {
    /// The text that is expected next.
    text: Vec<u8>,
    /// Whether it ended at [`MOST_BYTES`].
    was_cut: bool,
    /// White space that the reply had between two signs, by these.
    spaces: HashMap<[u8; 2], Vec<u8>>,
    /// The last sign of the reply, and the white space since.
    last: (u8, Vec<u8>),
}

impl Forecast {
    /// The text that is expected next, as much as a draft may have.
    pub fn text(&self) -> &[u8] {
        &self.text[..self.text.len().min(MOST_BYTES)]
    }

    /// Appends the bytes of a token to the reply.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.text.starts_with(bytes) {
            self.text.drain(..bytes.len());
        } else {
            self.text.clear();
        }
        for byte in bytes {
            if !is_space(*byte) {
                let (sign, space) = std::mem::replace(&mut self.last, (*byte, Vec::new()));
                if is_sign(sign) && space.len() <= MOST_SPACE {
                    if sign == b':' {
                        self.spaces.insert([sign, ANY], space.clone());
                    }
                    self.spaces.insert([sign, *byte], space);
                }
            } else if self.last.1.len() <= MOST_SPACE {
                self.last.1.push(*byte);
            }
        }
    }

    /// Forecasts the text after the state of a matcher, unless enough is left of the last forecast.
    pub fn extend(&mut self, matcher: &Matcher) {
        if !self.text.is_empty() && (!self.was_cut || self.text.len() >= ENOUGH_BYTES) {
            return;
        }
        let Ok(env) = matcher.tok_env() else { return };
        // It shares the lexer with the reply's, whose states are those that the reply most likely visits.
        let mut ahead = Ahead { matcher: matcher.clone(), trie: env.tok_trie(), text: Vec::new() };
        while ahead.text.len() < MOST_BYTES && ahead.forced() && self.lay_out(&mut ahead) {}
        self.was_cut = ahead.text.len() >= MOST_BYTES;
        self.text = ahead.text;
    }

    /// Appends the only sign that may follow, and before it the white space that the reply had there before. Returns false
    /// if several may follow.
    fn lay_out(&self, ahead: &mut Ahead<'_>) -> bool {
        let last = ahead.text.iter().rposition(|byte| !is_space(*byte));
        let (sign, so_far) = match last {
            Some(at) => (ahead.text[at], ahead.text[at + 1..].to_vec()),
            None => (self.last.0, [&self.last.1[..], &ahead.text].concat()),
        };
        let next = ahead.only_sign();
        let usual: &[u8] = if matches!(sign, b':' | b',') { b" " } else { b"" };
        let space = self.spaces.get(&[sign, next.unwrap_or(ANY)]).map_or(usual, Vec::as_slice);
        let rest = space.strip_prefix(&so_far[..]).unwrap_or_default();
        match next {
            Some(next) => {
                ahead.push(rest);
                ahead.push(&[next])
            }
            // A value of any kind: the space before it is not open.
            None => {
                if sign == b':' {
                    ahead.push(rest);
                }
                false
            }
        }
    }
}

/// A copy of a matcher that runs ahead of the reply.
struct Ahead<'t> {
    matcher: Matcher,
    trie: &'t TokTrie,
    text: Vec<u8>,
}

impl Ahead<'_> {
    /// Appends the bytes that the grammar forces; returns false at its end, or where they are no text.
    fn forced(&mut self) -> bool {
        let forced = self.matcher.compute_ff_bytes();
        self.push(&forced) && !self.matcher.is_stopped()
    }

    /// Appends bytes, unless the grammar does not allow them.
    fn push(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            let token = self.trie.token_id(&[*byte]).filter(|_| *byte != TokTrie::SPECIAL_TOKEN_MARKER);
            let pushed =
                token.is_some_and(|token| self.matcher.try_consume_tokens(&[token]).is_ok_and(|n| n == 1));
            if !pushed {
                return false;
            }
            self.text.push(*byte);
        }
        true
    }

    /// The only byte of ASCII that may follow besides white space; none if there are several.
    fn only_sign(&mut self) -> Option<u8> {
        let mut only = None;
        for byte in 0x21..=0x7eu8 {
            let token = self.trie.token_id(&[byte])?;
            if self.matcher.validate_tokens(&[token]).ok()? == 1 && only.replace(byte).is_some() {
                return None;
            }
        }
        only
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\t' | b'\r')
}

/// Whether white space after a byte depends on how a text is laid out: words are no such place.
fn is_sign(byte: u8) -> bool {
    matches!(byte, b':' | b',' | b'{' | b'[' | b'}' | b']' | b'"')
}

#[cfg(test)]
mod tests {
    use super::*;
    use llguidance::ParserFactory;
    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::ApproximateTokEnv;
    use serde_json::{Value, json};

    /// The forecast after a text, of which each byte is a token.
    fn after(grammar: TopLevelGrammar, text: &str) -> String {
        let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        let mut forecast = Forecast::default();
        for byte in text.bytes() {
            matcher.consume_token(u32::from(byte)).unwrap();
            forecast.push(&[byte]);
        }
        forecast.extend(&matcher);
        assert!(!matcher.is_error() && matcher.compute_mask_or_eos().is_ok(), "the reply's own is unchanged");
        String::from_utf8(forecast.text).unwrap()
    }

    fn person(text: &str) -> String {
        let object = |properties: Value| {
            let required: Vec<_> = properties.as_object().unwrap().keys().cloned().collect();
            json!({ "type": "object", "properties": properties, "required": required,
                "additionalProperties": false })
        };
        let tag = object(json!({ "key": { "enum": ["of a mill"] } }));
        let schema = object(json!({ "name": { "type": "string" }, "age": { "type": "integer" },
            "tags": { "type": "array", "items": tag } }));
        after(TopLevelGrammar::from_json_schema(super::super::with_white_space(&schema)), text)
    }

    #[test]
    fn what_a_schema_leaves_open_ends_a_forecast() {
        assert_eq!(person("{"), "\"name\": \"");
        assert_eq!(person("{\"na"), "me\": \"");
        assert_eq!(person("{\"name\""), ": \"");
        assert_eq!(person("{\"name\": \"An"), "", "inside a string");
        assert_eq!(person("{\"name\": \"Anna\""), ", \"age\": ");
        assert_eq!(person("{\"name\": \"Anna\", \"age\": 3"), "", "a digit or the end of the number");
        assert_eq!(person("{\"name\": \"Anna\", \"age\": 3,"), " \"tags\": [");
        assert_eq!(person("{\"name\": \"Anna\", \"age\": 3, \"tags\": [{\"k"), "ey\": \"of a mill\"}");
        assert_eq!(person("{\"name\": \"Anna\", \"age\": 3, \"tags\": []"), "}");
    }

    #[test]
    fn white_space_is_that_of_the_reply() {
        assert_eq!(person("{\n  \"name\":\"Anna\""), ", \"age\":", "a colon without space");
        assert_eq!(person("{\n  \"name\" : \"Anna\",\n  \"age\""), " : ", "a space before the colon");
    }

    #[test]
    fn a_text_that_is_forced_is_forecast_to_its_end() {
        let text = "Anna kept the keys";
        assert_eq!(after(TopLevelGrammar::from_regex(text), "Anna "), "kept the keys");
        assert_eq!(after(TopLevelGrammar::from_regex(text), text), "");
        let long = "ab".repeat(100);
        assert_eq!(after(TopLevelGrammar::from_regex(&long), "a").len(), 199);
        assert_eq!(after(TopLevelGrammar::from_regex("a(b|c)d"), "a"), "");
    }

    #[test]
    fn a_forecast_is_used_up() {
        let mut forecast = Forecast { text: b"kept the".to_vec(), ..Forecast::default() };
        forecast.push(b"kept");
        assert_eq!(forecast.text(), b" the");
        forecast.push(b" a");
        assert_eq!(forecast.text(), b"");
    }
}
