//! Parses Ling's markup: reasoning until `</think>`, and tool calls with each argument between tags:
//! ```text
//! <tool_call>NAME<arg_key>city</arg_key>
//! <arg_value>Rome</arg_value>
//! </tool_call>
//! ```
//! White space between tags is free. Values are text; those that the function's schema does not require to be strings are
//! read as JSON. Models also call before they close their reasoning, which ends it, and write a JSON object with name and
//! arguments instead of the tags. A call is emitted when it is complete; an invalid one is emitted as text.

use super::{CallableTool, ReplyEvent, THINK_BEGIN, THINK_END, emit};
use crate::generation::detokenizer::overlap;
use serde_json::{Map, Value};

const CALL_BEGIN: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const KEY: [&str; 2] = ["<arg_key>", "</arg_key>"];
const VALUE: [&str; 2] = ["<arg_value>", "</arg_value>"];

/// An incremental parser of a reply in Ling's markup.
#[derive(Clone, Debug, Default)]
pub struct LingParser {
    /// If empty, calls are text.
    tools: Vec<CallableTool>,
    has_reasoning: bool,
    in_reasoning: bool,
    /// The reply has text, reasoning or a call, so that a reasoning tag is text.
    begun: bool,
    call: Option<CallScan>,
    /// Number of the next call; ids count the calls of a conversation.
    next_call: usize,
    /// The reply has a call.
    called: bool,
    pending: String,
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

impl LingParser {
    pub(super) fn new(tools: Vec<CallableTool>, has_reasoning: bool, in_reasoning: bool) -> Self {
        LingParser { tools, has_reasoning, in_reasoning, begun: in_reasoning, ..Default::default() }
    }

    /// Sets the number of the next call.
    pub(super) fn numbered_from(self, next_call: usize) -> Self {
        LingParser { next_call, ..self }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        self.pending.push_str(text);
        let mut events = Vec::new();
        while self.parse_next(&mut events) {}
        events
    }

    pub(super) fn finish(&mut self) -> Vec<ReplyEvent> {
        let mut events = Vec::new();
        let rest = std::mem::take(&mut self.pending);
        match self.call.take() {
            Some(scan) => self.end_call(&scan.space, &rest, "", &mut events),
            None if self.called && rest.trim().is_empty() => {}
            None => self.text(&rest, &mut events),
        }
        events
    }

    /// Parses through the next marker; returns false if more text is needed.
    fn parse_next(&mut self, events: &mut Vec<ReplyEvent>) -> bool {
        if let Some(mut scan) = self.call.take() {
            let Some(at) = scan.end(&self.pending) else {
                self.call = Some(scan);
                return false;
            };
            let call: String = self.pending.drain(..at + CALL_END.len()).collect();
            self.end_call(&scan.space, &call[..at], CALL_END, events);
            return true;
        }
        let markers = self.markers();
        let found = markers.iter().filter_map(|m| Some((self.pending.find(m)?, *m))).min();
        let Some((at, marker)) = found else {
            let partial = markers.iter().map(|m| overlap(&self.pending, m)).max().unwrap_or(0);
            let certain = &self.pending[..self.pending.len() - partial];
            // White space before a call is part of the markup.
            let certain = if self.tools.is_empty() { certain } else { certain.trim_end() };
            let rest = self.pending.split_off(certain.len());
            let text = std::mem::replace(&mut self.pending, rest);
            self.text(&text, events);
            return false;
        };
        let before: String = self.pending.drain(..at + marker.len()).collect();
        let before = &before[..at];
        match marker {
            CALL_BEGIN => {
                let text = before.trim_end();
                self.text(text, events);
                self.call = Some(CallScan { space: before[text.len()..].to_owned(), ..Default::default() });
            }
            THINK_BEGIN => {
                self.text(before, events);
                (self.in_reasoning, self.begun) = (true, true);
            }
            _ => {
                self.text(before, events);
                self.in_reasoning = false;
            }
        }
        true
    }

    /// Returns the markers that are valid outside calls.
    fn markers(&self) -> Vec<&'static str> {
        let mut markers = Vec::new();
        if self.in_reasoning {
            markers.push(THINK_END);
        } else if self.has_reasoning && !self.begun && super::may_open_reasoning(&self.pending) {
            markers.push(THINK_BEGIN);
        }
        markers.extend((!self.tools.is_empty()).then_some(CALL_BEGIN));
        markers
    }

    fn text(&mut self, text: &str, events: &mut Vec<ReplyEvent>) {
        self.begun |= !text.trim().is_empty();
        emit(text, self.in_reasoning, events);
    }

    /// Emits a call, or its text including the marker `end` if it is invalid.
    fn end_call(&mut self, space: &str, call: &str, end: &str, events: &mut Vec<ReplyEvent>) {
        let Some((name, arguments)) = self.parse_call(call) else {
            return self.text(&format!("{space}{CALL_BEGIN}{call}{end}"), events);
        };
        let id = format!("functions.{name}:{}", self.next_call);
        events.push(ReplyEvent::ToolCallBegin { id, name });
        events.push(ReplyEvent::ToolCallArguments(Value::Object(arguments).to_string()));
        events.push(ReplyEvent::ToolCallEnd);
        self.next_call += 1;
        (self.in_reasoning, self.begun, self.called) = (false, true, true);
    }

    /// The name and arguments of a valid call.
    fn parse_call(&self, call: &str) -> Option<(String, Map<String, Value>)> {
        if call.trim_start().starts_with('{') {
            return self.parse_json_call(call);
        }
        let (name, mut rest) = call.split_at(call.find(KEY[0]).unwrap_or(call.len()));
        let tool = self.tool(name.trim())?;
        let mut arguments = Map::new();
        while !rest.trim_start().is_empty() {
            let (key, after) = between(rest, KEY)?;
            let (value, after) = between(after, VALUE)?;
            arguments.insert(key.trim().to_owned(), tool.argument(key.trim(), value));
            rest = after;
        }
        Some((tool.name.clone(), arguments))
    }

    fn parse_json_call(&self, call: &str) -> Option<(String, Map<String, Value>)> {
        let mut call: Map<String, Value> = serde_json::from_str(call.trim()).ok()?;
        let name = self.tool(call.get("name")?.as_str()?)?.name.clone();
        match call.remove("arguments").unwrap_or_else(|| Map::new().into()) {
            Value::Object(arguments) => Some((name, arguments)),
            _ => None,
        }
    }

    fn tool(&self, name: &str) -> Option<&CallableTool> {
        self.tools.iter().find(|tool| tool.name == name)
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
    use super::*;
    use serde_json::json;

    fn parser(in_reasoning: bool) -> LingParser {
        let parameters = json!({"properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "when": {"type": ["string", "null"]},
            "where": {"anyOf": [{"type": "object"}, {"type": "string"}]}, "unit": {"enum": ["1", "2"]},
        }});
        let tool = CallableTool { name: "weather".into(), parameters: Some(parameters) };
        LingParser::new(vec![tool, CallableTool { name: "now".into(), parameters: None }], true, in_reasoning)
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
        let mut none = LingParser::new(vec![], false, false);
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
