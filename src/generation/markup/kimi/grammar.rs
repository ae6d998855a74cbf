//! Writes the Lark rules of Kimi's tool calls, whose arguments are one JSON object each.

use crate::generation::grammar::with_white_space;
use crate::generation::markup::CallableTool;
use serde_json::{Value, json};
use std::fmt::Write;

/// The calls of a reply: a call, or several if `repeat` is `+`.
pub fn section(repeat: &str) -> String {
    format!("<|tool_calls_section_begin|> call{repeat} <|tool_calls_section_end|>")
}

/// Appends the rule `call_N` of each tool.
pub fn calls(tools: &[CallableTool], text: &mut String) {
    for (i, tool) in tools.iter().enumerate() {
        let any = json!({ "type": "object" });
        let schema = with_white_space(tool.parameters.as_ref().unwrap_or(&any));
        let head = Value::String(format!("functions.{}:", tool.name));
        let _ = writeln!(
            text,
            "call_{i}: <|tool_call_begin|> {head} /[0-9]{{1,3}}/ <|tool_call_argument_begin|> args_{i} <|tool_call_end|>\n\
             args_{i}: %json {schema}"
        );
    }
}
