//! Renders conversations to prompts by the chat template of a model file, as Python's Jinja does.
//!
//! Files without a template use that of their vocabulary's [`TextSpec`]. Text of users never becomes a special token
//! ([`special_token_guard`]). A file's template is untrusted: a [`Sandbox`], which the caller supplies, parses and renders it.
//! Next: [`message_form`], [`sandbox`], [`compiled`], [`bounds`].

pub mod bounds;
mod compiled;
mod json;
pub mod message_form;
mod python;
mod rendered;
pub mod sandbox;
mod special_token_guard;
#[cfg(test)]
mod tests;

pub use compiled::{Budget, CompiledTemplate, InProcess};
pub use rendered::Rendered;
pub use sandbox::{Failure, RenderJob, Sandbox};

use crate::architecture::TEXT_SPECS;
use crate::text_spec::TextSpec;
use crate::tokenizer::Vocabulary;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use special_token_guard::{Guard, Names};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// The chat template of a text format, for files without one.
struct Builtin {
    format: &'static TextSpec,
    /// Parsed on first use; it renders without a sandbox.
    compiled: OnceLock<Result<CompiledTemplate, Failure>>,
}

/// The built-in templates; the first is the default.
static BUILTINS: LazyLock<Vec<Builtin>> =
    LazyLock::new(|| TEXT_SPECS.iter().map(|format| Builtin { format, compiled: OnceLock::new() }).collect());

impl Builtin {
    fn of_vocabulary(vocabulary: &Vocabulary) -> &'static Builtin {
        BUILTINS.iter().find(|builtin| builtin.format.pre == vocabulary.pre()).unwrap_or(&BUILTINS[0])
    }

    fn of_source(source: &str) -> Option<&'static Builtin> {
        BUILTINS.iter().find(|builtin| builtin.format.chat_template == source)
    }

    fn compiled(&self) -> &Result<CompiledTemplate, Failure> {
        self.compiled.get_or_init(|| CompiledTemplate::new(self.format.chat_template))
    }
}

const NAME: &str = "chat_template";

/// One message of a conversation, as in OpenAI's API. Templates see the fields in this order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Author of the message: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text, or a list of parts. None if the field is absent, which differs from null.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// The assistant's reasoning before its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Tool calls of the assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Value>>,
    /// The call that a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Name of the speaker or the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All other fields, for templates that use them.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Message {
    /// Creates a message whose content is plain text.
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), content: Some(Value::String(text.to_owned())), ..Self::default() }
    }
}

/// A chat template for one vocabulary.
#[derive(Clone)]
pub struct Template {
    source: String,
    /// Renders `source`; None for a built-in template.
    sandbox: Option<Arc<dyn Sandbox>>,
    names: Names,
    /// `bos_token` and the like, by the names templates use.
    tokens: Vec<(&'static str, String)>,
    fault: Option<Failure>,
}

impl Template {
    /// Uses a file's template, which `sandbox` parses and renders, or the built-in one if `source` is None.
    ///
    /// The vocabulary defines the special tokens. A template that fails [`check`] is no error here, since a model also runs
    /// on token ids; every rendering returns the failure.
    pub fn new(source: Option<&str>, vocabulary: &Vocabulary, sandbox: Arc<dyn Sandbox>) -> Self {
        let source = source.unwrap_or(Builtin::of_vocabulary(vocabulary).format.chat_template);
        let fault = check(source, &*sandbox).err();
        let ids = vocabulary.special_ids();
        let named =
            [("bos_token", ids.bos), ("eos_token", ids.eos), ("pad_token", ids.pad), ("unk_token", ids.unk)];
        let tokens = named.into_iter().filter_map(|(role, id)| {
            Some((role, String::from_utf8_lossy(vocabulary.token_bytes(id?)).into_owned()))
        });
        Self {
            source: source.to_owned(),
            sandbox: Builtin::of_source(source).is_none().then_some(sandbox),
            names: Names::new(vocabulary.specials()),
            tokens: tokens.collect(),
            fault,
        }
    }

    /// The failure of an unusable template.
    pub fn fault(&self) -> Option<&Failure> {
        self.fault.as_ref()
    }

    /// The template in Jinja's syntax.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns whether the template's source contains this text.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// Renders a conversation. `extra` holds further variables (`enable_thinking` ...), which do not override the others.
    ///
    /// # Errors
    /// The template raised an error for this conversation, does not parse, or exceeded a limit.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[Value],
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<Rendered, Failure> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let mut messages =
            serde_json::to_value(messages).map_err(|e| Failure::refused("messages", "JSON", e))?;
        message_form::convert(&mut messages, &self.source, &self.names.specials);
        let tools = if tools.is_empty() { Value::Null } else { Value::Array(tools.to_vec()) };
        let values = [&messages, &tools].into_iter().chain(extra.values());
        let guard = Guard::new(&self.names, values, &self.source).ok_or_else(|| {
            Failure::refused("messages", "text that leaves a private character free", "all of them in use")
        })?;
        let sentinel = guard.sentinel;
        let mut context: Map<String, Value> =
            extra.iter().map(|(name, value)| (name.clone(), guard.value(value.clone()))).collect();
        context.extend(self.tokens.iter().map(|(role, name)| ((*role).to_owned(), name.as_str().into())));
        context.insert("messages".to_owned(), guard.value(messages));
        context.insert("tools".to_owned(), guard.value(tools));
        context.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        let marked =
            run(&RenderJob { source: &self.source, sentinel, context: &context }, self.sandbox.as_deref())?;
        let specials = &self.names.specials;
        let mut rendered = Rendered::with_capacity(marked.len());
        specials.segments(&marked).into_iter().for_each(|segment| rendered.push(segment, sentinel, specials));
        Ok(rendered)
    }
}

fn run(job: &RenderJob, sandbox: Option<&dyn Sandbox>) -> Result<String, Failure> {
    let builtin = Builtin::of_source(job.source).unwrap_or(&BUILTINS[0]);
    match (sandbox, builtin.compiled()) {
        (Some(sandbox), _) => sandbox.run(job),
        (None, Ok(builtin)) => builtin.render(job.sentinel, job.context, &mut Budget::none()),
        (None, Err(failure)) => Err(failure.clone()),
    }
}

/// Longest rendering of a one-word conversation. A reply renders several times, and a slow template would delay each.
const CHECK_TIME: Duration = Duration::from_millis(1500);

/// Renders a one-word conversation to check whether a template is usable.
///
/// # Errors
/// The source is too long or too deeply nested, does not parse, exceeds a limit, or takes more than 1.5 s. A template that
/// refuses this conversation is usable.
pub fn check(source: &str, sandbox: &dyn Sandbox) -> Result<(), Failure> {
    if Builtin::of_source(source).is_some() {
        return Ok(());
    }
    let mut context = Map::new();
    context.insert("messages".to_owned(), serde_json::json!([{"role": "user", "content": "x"}]));
    context.insert("tools".to_owned(), Value::Null);
    context.insert("add_generation_prompt".to_owned(), true.into());
    for token in ["bos_token", "eos_token", "pad_token", "unk_token"] {
        context.insert(token.to_owned(), "".into());
    }
    let start = Instant::now();
    match sandbox.run(&RenderJob { source, sentinel: special_token_guard::UNUSED, context: &context }) {
        Err(failure @ Failure::Unusable { .. }) => Err(failure),
        _ if start.elapsed() > CHECK_TIME => {
            let (most, found) = (CHECK_TIME.as_secs_f64(), start.elapsed().as_secs_f64());
            let expected = format!("a one-word conversation within {most} s");
            Err(Failure::unusable("rendering", &expected, format!("{found:.1} s")))
        }
        Ok(_) | Err(Failure::Refused { .. }) => Ok(()),
    }
}
