//! Converts messages of OpenAI's API to the form that a template reads.
//!
//! Templates that write arguments one by one, between `<arg_key>` and `<arg_value>`, read them as an object; the API has JSON
//! text. Where `</think>` is a special token, no text of a message contains it ([`super::special_token_guard`]), so
//! reasoning at the start of a reply becomes a field of its own.

use crate::tokenizer::Specials;
use serde_json::{Map, Value};

const THINK_BEGIN: &str = "<think>";
const THINK_END: &str = "</think>";

/// Returns whether a template reads the arguments of calls as an object.
pub fn reads_argument_objects(source: &str) -> bool {
    source.contains("<arg_key>")
}

/// Converts the messages in place; `source` is the template.
pub(super) fn convert(messages: &mut Value, source: &str, specials: &Specials) {
    let objects = reads_argument_objects(source);
    let splits = specials.id(THINK_END).is_some() && source.contains("reasoning_content");
    for message in messages.as_array_mut().into_iter().flatten() {
        if objects && let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) {
            calls.iter_mut().for_each(parse_arguments);
        }
        if splits && message["role"] == "assistant" && message["reasoning_content"].is_null() {
            split_reasoning(message);
        }
    }
}

fn parse_arguments(call: &mut Value) {
    let function = if call.get("function").is_some() { &mut call["function"] } else { call };
    let parsed = function["arguments"].as_str().map(serde_json::from_str::<Map<String, Value>>);
    if let Some(Ok(arguments)) = parsed {
        function["arguments"] = Value::Object(arguments);
    }
}

fn split_reasoning(message: &mut Value) {
    let Some(content) = message["content"].as_str() else { return };
    let Some(rest) = content.trim_start().strip_prefix(THINK_BEGIN) else { return };
    let (reasoning, text) = rest.split_once(THINK_END).unwrap_or((rest, ""));
    let (reasoning, text) = (reasoning.to_owned(), text.to_owned());
    message["reasoning_content"] = reasoning.into();
    message["content"] = text.into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(source: &str, special: &str, messages: &Value, expected: &Value) {
        let mut found = messages.clone();
        convert(&mut found, source, &Specials::new(vec![(special.to_owned(), 1)]));
        assert_eq!(found, *expected);
    }

    #[test]
    fn arguments_become_objects_only_for_templates_that_read_them() {
        let with = |arguments: Value| {
            let call = json!({"id": "a", "function": {"name": "f", "arguments": arguments}});
            json!([{"role": "assistant", "content": null, "tool_calls": [call, {"name": "g", "arguments": "no JSON"}]}])
        };
        let text = with(json!("{\"b\": [1], \"a\": \"x\"}"));
        check("<arg_key>", "", &text, &with(json!({"b": [1], "a": "x"})));
        check("arguments", "", &text, &text);
    }

    #[test]
    fn reasoning_becomes_a_field_where_its_tag_is_a_token() {
        let message = |content: &str| json!([{"role": "assistant", "content": content}]);
        let text = message("\n<think>a</think>\nb</think>");
        let split = json!([{"role": "assistant", "reasoning_content": "a", "content": "\nb</think>"}]);
        check("reasoning_content", "</think>", &text, &split);
        check("reasoning_content", "<|im_end|>", &text, &text);
        check("content", "</think>", &text, &text);
        check("reasoning_content", "</think>", &message("a <think>b"), &message("a <think>b"));
        let user = json!([{"role": "user", "content": "<think>a</think>"}]);
        check("reasoning_content", "</think>", &user, &user);
    }
}
