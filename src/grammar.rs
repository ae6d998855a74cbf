//! What a reply has to match, as masks over the vocabulary: JSON schemas, grammars in Lark's syntax and regular
//! expressions, by llguidance. It chooses nothing: [`crate::sample`] draws among what a mask leaves.

use crate::sample::Constraint;
use anyhow::{Context as _, Result};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use models::tokenizer::Vocabulary;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Tokens longer than this many bytes no grammar allows; the trie has no room for them.
const LONGEST: usize = 1000;
/// Between the parts of JSON: nothing, a space, or a new line with its indentation. Without a bound a model may fill
/// a reply with white space.
const WHITE_SPACE: &str = r"( |\n[ \t]{0,64})";

/// What a text has to match.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON by a schema.
    Schema(Value),
    /// A grammar in llguidance's variant of Lark's syntax.
    Lark(String),
    /// A regular expression.
    Regex(String),
}

/// A vocabulary made ready for grammars.
pub struct Grammars(ParserFactory);

/// A grammar made ready for replies.
pub struct Compiled(Matcher);

impl Grammars {
    /// For a model with so many logits.
    pub fn new(vocabulary: &Vocabulary, vocab: usize) -> Result<Self> {
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie(vocabulary, vocab)?));
        let mut factory = ParserFactory::new_simple(&env)?;
        factory.quiet();
        Ok(Grammars(factory))
    }

    /// Makes a grammar ready.
    ///
    /// # Errors
    /// What is wrong with it, or not supported.
    pub fn compile(&self, grammar: &Grammar) -> Result<Compiled> {
        let grammar = match grammar {
            Grammar::Schema(schema) => TopLevelGrammar::from_json_schema(with_white_space(schema)),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
        };
        let matcher = Matcher::new(self.0.create_parser(grammar));
        match matcher.get_error() {
            Some(why) => anyhow::bail!(first_line(&why)),
            None => Ok(Compiled(matcher)),
        }
    }
}

/// A vocabulary's tokens by their bytes, for a model with so many logits.
pub fn trie(vocabulary: &Vocabulary, vocab: usize) -> Result<TokTrie> {
    let word = |id: u32| {
        let bytes = vocabulary.token_bytes(id);
        match bytes.len() {
            1..=LONGEST if vocabulary.is_special(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
            1..=LONGEST => bytes.to_vec(),
            _ => Vec::new(),
        }
    };
    let words: Vec<Vec<u8>> = (0..vocab as u32).map(word).collect();
    let ends: Vec<u32> = vocabulary.ends().iter().copied().filter(|id| (*id as usize) < vocab).collect();
    let end = *ends.first().context("grammars: expected a token that ends a reply, found none")?;
    Ok(TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words).with_eos_tokens(&ends))
}

impl Compiled {
    /// For one reply.
    pub fn constraint(&self) -> Box<dyn Constraint> {
        Box::new(Masks { matcher: self.0.deep_clone(), mask: SimpleVob::new() })
    }
}

/// The schema, with bounded white space.
pub fn with_white_space(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(fields) => fields.clone(),
        // `true` allows everything, and so does no field at all; `false` allows nothing and stays.
        Value::Bool(true) => Map::new(),
        other => return other.clone(),
    };
    schema.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": WHITE_SPACE }));
    Value::Object(schema)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("").to_owned()
}

struct Masks {
    matcher: Matcher,
    mask: SimpleVob,
}

impl Constraint for Masks {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        self.mask = self.matcher.compute_mask_or_eos().map_err(|e| first_line(&e.to_string()))?;
        Ok(Some(self.mask.as_slice()))
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if self.matcher.is_stopped() {
            // The mask left nothing but the tokens that end a reply.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|e| first_line(&e.to_string()))
    }
}
