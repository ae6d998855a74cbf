//! Writes the Lark rules of Ling's tool calls, which name each argument between tags, required and optional ones in the
//! schema's order.

use super::{CALL_BEGIN, CALL_END, KEY, VALUE};
use crate::generation::grammar::with_white_space;
use crate::generation::markup::CallableTool;
use crate::generation::markup::grammar::{ANY, CallMarkup};
use serde_json::Value;
use std::fmt::Write;

/// The tags of calls, which may be special tokens.
pub const TAGS: [&str; 6] = [CALL_BEGIN, CALL_END, KEY[0], KEY[1], VALUE[0], VALUE[1]];

/// The calls of a reply: a call, or several if `repeat` is `+`.
pub fn section(repeat: &str) -> String {
    format!("call{repeat}")
}

/// The rule of a reply of text and optional calls, where no token marks the beginning of a call.
pub fn prose(several: bool) -> String {
    // The lexer cannot go back to a tag that text contains: text ends at the tag, which it includes.
    let more = if several { " section?" } else { "" };
    format!(
        "start: PROSE | before body{more}\nPROSE: {ANY} & ~/(.|\\n)*{CALL_BEGIN}(.|\\n)*/\n\
         before[suffix=\"{CALL_BEGIN}\"]: {ANY}"
    )
}

/// Appends the rule `call_N` of each tool.
pub fn calls(markup: &CallMarkup, tools: &[CallableTool], text: &mut String) {
    let tag = |name| markup.tag(name);
    let bodies: Vec<_> = (0..tools.len()).map(|i| format!("body_{i}")).collect();
    let _ = writeln!(text, "SPACE: /\\n?/\nbody: {}", bodies.join(" | "));
    let _ = if markup.is_special(VALUE[1]) {
        writeln!(text, "string: {ANY} {}", VALUE[1])
    } else {
        writeln!(text, "string[suffix=\"{}\"]: {ANY}", VALUE[1])
    };
    for (i, tool) in tools.iter().enumerate() {
        let parameters = tool.parameters.as_ref();
        let properties = parameters.and_then(|p| p["properties"].as_object()).into_iter().flatten();
        let required = |key: &str| {
            let list = parameters.and_then(|p| p["required"].as_array());
            list.is_some_and(|list| list.iter().any(|name| name == key))
        };
        let (mut args, mut rules) = (String::new(), String::new());
        for (j, (key, schema)) in properties.enumerate() {
            let _ = write!(args, " arg_{i}_{j}{}", if required(key) { "" } else { "?" });
            let value = if schema["type"] == "string" && schema["enum"].is_null() && schema["const"].is_null()
            {
                String::new()
            } else if let Some(words) = strings(schema) {
                words.iter().map(|word| Value::from(*word).to_string()).collect::<Vec<_>>().join(" | ")
            } else {
                format!("value_{i}_{j}")
            };
            let closed = match &value[..] {
                "" => "string".to_owned(),
                value => format!("({value}) {}", tag(VALUE[1])),
            };
            let _ = writeln!(
                rules,
                "arg_{i}_{j}: {} {} {} SPACE {} {closed} SPACE",
                tag(KEY[0]),
                Value::from(key.as_str()),
                tag(KEY[1]),
                tag(VALUE[0]),
            );
            if value.starts_with("value_") {
                let _ = writeln!(
                    rules,
                    "value_{i}_{j}: %json {}",
                    with_white_space(&with_definitions(schema, parameters))
                );
            }
        }
        let name = Value::from(tool.name.as_str());
        let [open, close] = [CALL_BEGIN, CALL_END].map(tag);
        let _ =
            write!(text, "call_{i}: SPACE {open} body_{i}\nbody_{i}: {name} SPACE{args} {close}\n{rules}");
    }
}

/// The strings that a schema lists, if it takes no other value: they are written without quotes.
fn strings(schema: &Value) -> Option<Vec<&str>> {
    match (&schema["const"], schema["enum"].as_array()) {
        (Value::String(word), _) => Some(vec![word]),
        (_, Some(list)) => list.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// The schema of an argument with the definitions of all, to which it may refer.
fn with_definitions(schema: &Value, parameters: Option<&Value>) -> Value {
    let mut schema = schema.clone();
    for key in ["$defs", "definitions"] {
        if let (Some(definitions), Some(fields)) =
            (parameters.and_then(|p| p.get(key)), schema.as_object_mut())
        {
            fields.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    schema
}
