//! Parses Ling's markup: reasoning until `</think>`, and tool calls with each argument between tags:
//! ```text
//! <tool_call>NAME<arg_key>city</arg_key>
//! <arg_value>Rome</arg_value>
//! </tool_call>
//! ```
//! White space between tags is free. Values are text; those that the function's schema does not require to be strings are
//! read as JSON. Models also call before they close their reasoning, which ends it, and write a JSON object with name and
//! arguments instead of the tags. A call is emitted when it is complete; an invalid one is emitted as text.
//! Next: [`grammar`].

pub mod grammar;

use super::reply_text::ReplyText;
use super::{CallSyntax, CallableTool, ReplyEvent};
use crate::generation::detokenizer::overlap;
use serde_json::{Map, Value};

const CALL_BEGIN: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const KEY: [&str; 2] = ["<arg_key>", "</arg_key>"];
const VALUE: [&str; 2] = ["<arg_value>", "</arg_value>"];

/// The progress of a parser of Ling's calls.
#[derive(Clone, Debug, Default)]
pub(super) struct LingCalls {
    call: Option<CallScan>,
    /// Number of the next call; ids count the calls of a conversation.
    pub next_call: usize,
    /// The reply has a call.
    called: bool,
}

/// Progress of the search for the end of a call in the pending text, which follows [`CALL_BEGIN`].
#[derive(Clone, Debug, Default)]
struct CallScan {
    /// White space before the call, which belongs to the text if the call is invalid.
    space: String,
    at: usize,
    in_value: bool,
}

impl CallScan {
    /// Returns the start of [`CALL_END`] outside values, if the text has it. The time of all calls is linear in the text.
    fn end(&mut self, text: &str) -> Option<usize> {
        loop {
            let rest = &text[self.at..];
            let markers: &[&str] = if self.in_value { &VALUE[1..] } else { &[VALUE[0], CALL_END] };
            let found = markers.iter().filter_map(|m| Some((rest.find(m)?, *m))).min();
            let Some((at, marker)) = found else {
                let partial = markers.iter().map(|m| overlap(rest, m)).max().unwrap_or(0);
                self.at = text.len() - partial;
                return None;
            };
            if marker == CALL_END {
                return Some(self.at + at);
            }
            self.at += at + marker.len();
            self.in_value = !self.in_value;
        }
    }
}

impl CallSyntax for LingCalls {
    fn parse_next(&mut self, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) -> bool {
        if let Some(mut scan) = self.call.take() {
            let Some(at) = scan.end(&reply.pending) else {
                self.call = Some(scan);
                return false;
            };
            let call = reply.take_through(at, CALL_END);
            self.end_call(&scan.space, &call, CALL_END, reply, events);
            return true;
        }
        let call_marker = (!reply.tools.is_empty()).then_some(CALL_BEGIN);
        let markers = || reply.reasoning_marker().into_iter().chain(call_marker);
        let Some((at, marker)) = markers().filter_map(|m| Some((reply.pending.find(m)?, m))).min() else {
            let partial = markers().map(|m| overlap(&reply.pending, m)).max().unwrap_or(0);
            let certain = &reply.pending[..reply.pending.len() - partial];
            // White space before a call is part of the markup.
            let certain = if reply.tools.is_empty() { certain } else { certain.trim_end() };
            let rest = reply.pending.split_off(certain.len());
            let text = std::mem::replace(&mut reply.pending, rest);
            reply.emit(&text, events);
            return false;
        };
        let before = reply.take_through(at, marker);
        if marker == CALL_BEGIN {
            let text = before.trim_end();
            reply.emit(text, events);
            self.call = Some(CallScan { space: before[text.len()..].to_owned(), ..Default::default() });
        } else {
            reply.emit(&before, events);
            reply.enter_reasoning(marker);
        }
        true
    }

    fn finish(&mut self, rest: &str, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) {
        match self.call.take() {
            Some(scan) => self.end_call(&scan.space, rest, "", reply, events),
            None if self.called && rest.trim().is_empty() => {}
            None => reply.emit(rest, events),
        }
    }
}

impl LingCalls {
    /// Emits a call, or its text including the marker `end` if it is invalid.
    fn end_call(
        &mut self,
        space: &str,
        call: &str,
        end: &str,
        reply: &mut ReplyText,
        events: &mut Vec<ReplyEvent>,
    ) {
        let Some((name, arguments)) = parse_call(call, reply) else {
            return reply.emit(&format!("{space}{CALL_BEGIN}{call}{end}"), events);
        };
        let id = format!("functions.{name}:{}", self.next_call);
        events.push(ReplyEvent::ToolCallBegin { id, name });
        events.push(ReplyEvent::ToolCallArguments(Value::Object(arguments).to_string()));
        events.push(ReplyEvent::ToolCallEnd);
        self.next_call += 1;
        self.called = true;
        (reply.in_reasoning, reply.begun) = (false, true);
    }
}

/// The name and arguments of a valid call.
fn parse_call(call: &str, reply: &ReplyText) -> Option<(String, Map<String, Value>)> {
    if call.trim_start().starts_with('{') {
        return parse_json_call(call, reply);
    }
    let (name, mut rest) = call.split_at(call.find(KEY[0]).unwrap_or(call.len()));
    let tool = reply.tool(name.trim())?;
    let mut arguments = Map::new();
    while !rest.trim_start().is_empty() {
        let (key, after) = between(rest, KEY)?;
        let (value, after) = between(after, VALUE)?;
        arguments.insert(key.trim().to_owned(), tool.argument(key.trim(), value));
        rest = after;
    }
    Some((tool.name.clone(), arguments))
}

fn parse_json_call(call: &str, reply: &ReplyText) -> Option<(String, Map<String, Value>)> {
    let mut call: Map<String, Value> = serde_json::from_str(call.trim()).ok()?;
    let name = reply.tool(call.get("name")?.as_str()?)?.name.clone();
    match call.remove("arguments").unwrap_or_else(|| Map::new().into()) {
        Value::Object(arguments) => Some((name, arguments)),
        _ => None,
    }
}

/// The text between two tags after white space, and the text after them.
fn between<'t>(text: &'t str, [begin, end]: [&str; 2]) -> Option<(&'t str, &'t str)> {
    text.trim_start().strip_prefix(begin)?.split_once(end)
}

impl CallableTool {
    /// The value of an argument that the model wrote as text.
    fn argument(&self, key: &str, text: &str) -> Value {
        let schema = self.parameters.as_ref().and_then(|all| all.get("properties")?.get(key));
        match schema.map(takes) {
            Some(Takes { strings: true, others: false }) => text.into(),
            _ => serde_json::from_str(text.trim()).unwrap_or_else(|_| text.into()),
        }
    }
}

/// The JSON types of values that a schema accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Takes {
    strings: bool,
    others: bool,
}

impl Takes {
    fn any_of(list: impl Iterator<Item = Takes>) -> Takes {
        list.fold(Takes { strings: false, others: false }, |all, one| Takes {
            strings: all.strings || one.strings,
            others: all.others || one.others,
        })
    }
}

fn takes(schema: &Value) -> Takes {
    let of = |is_string| Takes { strings: is_string, others: !is_string };
    if let Some(kind) = schema["type"].as_str() {
        return of(kind == "string");
    }
    if let Some(kinds) = schema["type"].as_array() {
        return Takes::any_of(kinds.iter().map(|kind| of(kind == "string")));
    }
    if let Some(values) = schema["enum"].as_array() {
        return Takes::any_of(values.iter().map(|value| of(value.is_string())));
    }
    match ["anyOf", "oneOf"].iter().find_map(|key| schema[*key].as_array()) {
        Some(schemas) => Takes::any_of(schemas.iter().map(takes)),
        None => Takes { strings: true, others: true },
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rendered;
    use super::super::{Markup, ReplyParser};
    use super::*;
    use serde_json::json;

    fn parser(in_reasoning: bool) -> ReplyParser {
        let parameters = json!({"properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "when": {"type": ["string", "null"]},
            "where": {"anyOf": [{"type": "object"}, {"type": "string"}]}, "unit": {"enum": ["1", "2"]},
        }});
        let tool = CallableTool { name: "weather".into(), parameters: Some(parameters) };
        ReplyParser::new(
            Markup::Ling,
            vec![tool, CallableTool { name: "now".into(), parameters: None }],
            true,
            in_reasoning,
        )
    }

    /// Parses the text in chunks of several sizes, which must not change the result.
    fn check_in(in_reasoning: bool, text: &str, expected: &str) {
        for step in [1, 2, 3, 7, 1000] {
            let mut parser = parser(in_reasoning);
            let chars: Vec<char> = text.chars().collect();
            let mut events = Vec::new();
            for part in chars.chunks(step) {
                events.extend(parser.push(&part.iter().collect::<String>()));
            }
            events.extend(parser.finish());
            assert_eq!(rendered(events).replace(")(", ""), expected, "{text} in steps of {step}");
        }
    }

    fn check(text: &str, expected: &str) {
        check_in(false, text, expected);
    }

    #[test]
    fn calls_are_parsed_with_any_white_space() {
        let [key, value] = ["<arg_key>city</arg_key>", "<arg_value>Köln</arg_value>"];
        for call in [
            format!("<tool_call>weather{key}\n{value}\n</tool_call>"),
            format!("<tool_call>weather\n{key}{value}</tool_call>"),
            format!("<tool_call> weather \n\n{key} {value} </tool_call>\n"),
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>"
                .to_owned(),
            format!("<tool_call>weather{key}{value}"),
        ] {
            check(&format!("Yes.\n{call}"), "Yes.[functions.weather:0 weather {\"city\":\"Köln\"}]");
        }
        let two = "a\n<tool_call>now\n</tool_call>\n<tool_call>now</tool_call>\nb";
        check(two, "a[functions.now:0 now {}][functions.now:1 now {}]\nb");
        let mut later = parser(false).numbered_from(7);
        assert_eq!(rendered(later.push("<tool_call>now</tool_call>")), "[functions.now:7 now {}]");
    }

    #[test]
    fn values_have_the_types_of_the_schema() {
        for (key, value, expected) in [
            ("city", "12", "\"12\""),
            ("city", " \"a\"\n", "\" \\\"a\\\"\\n\""),
            ("city", "a </tool_call> <tool_call> <b", "\"a </tool_call> <tool_call> <b\""),
            ("days", " 12 ", "12"),
            ("days", "twelve", "\"twelve\""),
            ("when", "null", "null"),
            ("when", "noon", "\"noon\""),
            ("where", "{\"a\": [1]}", "{\"a\":[1]}"),
            ("where", "here", "\"here\""),
            ("unit", "1", "\"1\""),
            ("other", "[1, 2]", "[1,2]"),
            ("other", "x y", "\"x y\""),
        ] {
            let call = format!(
                "<tool_call>weather<arg_key>{key}</arg_key><arg_value>{value}</arg_value></tool_call>"
            );
            check(&call, &format!("[functions.weather:0 weather {{\"{key}\":{expected}}}]"));
        }
    }

    #[test]
    fn reasoning_ends_at_its_tag_or_at_a_call() {
        check("<think>hm <b></think>so", "(hm <b>)so");
        check("\n<think></think>so", "\nso");
        check_in(true, "hm</think>\nso", "(hm)\nso");
        check_in(true, "hm\n<tool_call>now</tool_call>\nso", "(hm)[functions.now:0 now {}]\nso");
        check_in(
            true,
            "hm\n<tool_call>none</tool_call> yes</think>so",
            "(hm\n<tool_call>none</tool_call> yes)so",
        );
        check("the tag <think>x</think>", "the tag <think>x</think>");
        check_in(true, "never ends \n", "(never ends \n)");
    }

    #[test]
    fn invalid_calls_are_text() {
        for text in [
            "x\n<tool_call>none</tool_call>\ny",
            "x <tool_call>now<arg_key>a</arg_key></tool_call>",
            "x <tool_call>now<arg_key>a</arg_key>b<arg_value>c</arg_value></tool_call>",
            "<tool_call>now<arg_key>a</arg_key><arg_value>never ends</tool_call>",
            "<tool_call>{\"name\": \"now\", \"arguments\": 1}</tool_call>",
            "<tool_call>",
            "a < b <tool_ca \n ",
        ] {
            check(text, text);
        }
        let mut none = ReplyParser::new(Markup::Ling, vec![], false, false);
        let text = "<think>a\n<tool_call>now</tool_call>";
        assert_eq!(rendered(none.push(text)), text);
    }

    #[test]
    fn a_long_argument_is_scanned_once() {
        let mut parser = parser(false);
        parser.push("<tool_call>weather<arg_key>city</arg_key><arg_value>");
        for _ in 0..400_000 {
            assert!(parser.push("</arg ").is_empty());
        }
        let events = parser.push("</arg_value></tool_call>");
        assert_eq!(events.len(), 3);
    }
}
