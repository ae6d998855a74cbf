//! Conversations to prompts: the chat template of a model file, rendered as Python's Jinja would render it.
//!
//! It knows nothing of any model but the form in `kimi.jinja`, which serves files without a template.
//! What users typed never becomes a special token: [`protect`] says how. Ids come from
//! [`crate::tokenizer`].

mod json;
mod protect;
mod python;
#[cfg(test)]
mod tests;

use crate::gguf::Error;
use crate::tokenizer::{Segment, Specials, Vocabulary};
use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use protect::{Names, Protection};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::panic::AssertUnwindSafe;

/// Kimi's form.
const KIMI: &str = include_str!("kimi.jinja");
const NAME: &str = "chat_template";
/// Steps a rendering may take: two hundred for each of 100,000 messages. A template without end stops here.
const FUEL: u64 = 20_000_000;
/// Depth of macros calling macros.
const DEPTH: usize = 100;

/// One message of a conversation, in the form that OpenAI's interface made common. Templates see the fields
/// in this order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// system, user, assistant, tool.
    pub role: String,
    /// Text, or a list of parts; `None` when the field is absent, which is not the same as null.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// What the assistant reasoned before its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls the assistant made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Value>>,
    /// The call that a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who speaks, or which tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Every other field, for templates that know it.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Message {
    /// A message of text.
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), content: Some(Value::String(text.to_owned())), ..Self::default() }
    }
}

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct Template {
    environment: Environment<'static>,
    source: String,
    names: Names,
    /// `bos_token` and the like, by the names templates use.
    tokens: Vec<(&'static str, String)>,
}

impl Template {
    /// Compiles the file's own template, or Kimi's form when it has none.
    ///
    /// The vocabulary says what the special tokens are. A template that does not parse is an error.
    pub fn new(source: Option<&str>, vocabulary: &Vocabulary) -> Result<Self, Error> {
        let source = source.unwrap_or(KIMI).to_owned();
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failed("a Jinja template", &e))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        python::install(&mut environment);
        guarded("a Jinja template", || environment.add_template_owned(NAME, source.clone()))?;
        let roles = vocabulary.roles();
        let named = [
            ("bos_token", roles.bos),
            ("eos_token", roles.eos),
            ("pad_token", roles.pad),
            ("unk_token", roles.unk),
        ];
        let tokens = named.into_iter().filter_map(|(role, id)| {
            Some((role, String::from_utf8_lossy(vocabulary.token_bytes(id?)).into_owned()))
        });
        Ok(Self { environment, source, names: Names::new(vocabulary.specials()), tokens: tokens.collect() })
    }

    /// Whether this stands in the template's own text.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// Renders a conversation. `extra` holds further variables (`enable_thinking` ...), which do not replace
    /// the ones above; an error is what the template raised, or that it does not end.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[Value],
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<Rendered, Error> {
        let messages = serde_json::to_value(messages).map_err(|e| bad("messages", "JSON", &e.to_string()))?;
        let tools = if tools.is_empty() { Value::Null } else { Value::Array(tools.to_vec()) };
        let full = || bad("messages", "text that leaves a private character free", "all of them in use");
        let protection =
            Protection::new(&self.names, [&messages, &tools].into_iter().chain(extra.values()), &self.source);
        let protection = protection.ok_or_else(full)?;
        let mark = protection.mark;
        let mut context: Vec<(&str, minijinja::Value)> =
            extra.iter().map(|(name, value)| (name.as_str(), protection.value(value))).collect();
        context.extend(self.tokens.iter().map(|(role, name)| (*role, name.as_str().into())));
        context.push(("messages", protection.value(&messages)));
        context.push(("tools", protection.value(&tools)));
        context.push(("add_generation_prompt", add_generation_prompt.into()));
        let mut environment = self.environment.clone();
        environment.add_filter(
            "tojson",
            move |value: minijinja::Value, ascii: Option<bool>, options: Kwargs| {
                json::tojson(&value, ascii, &options, mark)
            },
        );
        let template = environment.get_template(NAME).map_err(|e| failed("a Jinja template", &e))?;
        let context = minijinja::Value::from_pairs(context);
        let marked = guarded("a conversation it accepts", || template.render(context))?;
        let mut rendered = Rendered { text: String::with_capacity(marked.len()), parts: Vec::new() };
        for segment in self.names.specials.segments(&marked) {
            rendered.push(segment, mark, &self.names.specials);
        }
        Ok(rendered)
    }
}

/// A prompt: its text, and which of it is special tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    /// End of each part in `text`, with the id if it is a special token.
    parts: Vec<(usize, Option<u32>)>,
}

impl Rendered {
    fn push(&mut self, segment: Segment, mark: char, specials: &Specials) {
        let id = match segment {
            Segment::Text(text) => {
                self.text.extend(text.chars().filter(|&c| c != mark));
                None
            }
            Segment::Special(id) => {
                self.text.push_str(specials.name(id).unwrap_or_default());
                Some(id)
            }
        };
        self.parts.push((self.text.len(), id));
    }

    /// The text, to be read: encoding it anew would not tell a user's `<|im_end|>` from the template's.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The ids in the vocabulary that the template was made with.
    pub fn encode(&self, vocabulary: &Vocabulary) -> Vec<u32> {
        self.encode_after(0, vocabulary)
    }

    /// The ids of the text after its first `seen` bytes, which end at a character and not in a special token.
    pub fn encode_after(&self, seen: usize, vocabulary: &Vocabulary) -> Vec<u32> {
        let mut ids = Vec::with_capacity((self.text.len() - seen) / 3);
        let mut start = seen;
        for &(end, id) in self.parts.iter().filter(|(end, _)| *end > seen) {
            match id {
                Some(id) => ids.push(id),
                None => vocabulary.encode_into(&self.text[start..end], &mut ids),
            }
            start = end;
        }
        ids
    }

    /// The byte that these tokens lead to from byte `at`, if they spell what stands there: special tokens as
    /// themselves, text cut in any way.
    pub fn follow(&self, at: usize, tokens: &[u32], vocabulary: &Vocabulary) -> Option<usize> {
        let mut at = at;
        let mut parts = self.parts[self.parts.partition_point(|(end, _)| *end <= at)..].iter();
        let mut part = parts.next();
        for &token in tokens {
            let &(end, id) = part?;
            let bytes = vocabulary.token_bytes(token);
            let text = &self.text.as_bytes()[at..end];
            let spelled = match id {
                Some(id) => id == token,
                None => !vocabulary.is_special(token) && !bytes.is_empty() && text.starts_with(bytes),
            };
            if !spelled {
                return None;
            }
            at += bytes.len();
            while part.is_some_and(|(end, _)| *end <= at) {
                part = parts.next();
            }
        }
        Some(at)
    }

    /// Whether a special token or the end of the text stands at this byte, or a special token ends there: what
    /// comes after is cut into tokens without regard to what was before.
    pub fn is_border(&self, at: usize) -> bool {
        at == 0 || self.parts.binary_search_by_key(&at, |(end, _)| *end).is_ok()
    }
}

fn bad(place: &str, expected: &str, found: &str) -> Error {
    Error::Bad {
        path: NAME.to_owned(),
        place: place.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}

/// Runs the template engine, which panics on some templates (`[][::-1]`): a file must not end the program.
fn guarded<T>(expected: &str, run: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T, Error> {
    std::panic::catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| bad("template", expected, "a panic of the template engine"))?
        .map_err(|e| failed(expected, &e))
}

/// The innermost cause, on one line.
fn failed(expected: &str, error: &minijinja::Error) -> Error {
    let mut inner = error;
    while let Some(cause) =
        std::error::Error::source(inner).and_then(|e| e.downcast_ref::<minijinja::Error>())
    {
        inner = cause;
    }
    let place = inner.line().or(error.line()).map_or("template".to_owned(), |line| format!("line {line}"));
    let found = inner.detail().map_or_else(|| inner.kind().to_string(), str::to_owned);
    bad(&place, expected, &found.split_whitespace().collect::<Vec<_>>().join(" "))
}
