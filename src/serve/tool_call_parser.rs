//! Parses Kimi's markup while a reply streams: reasoning between `<think>` and `</think>`, and tool calls:
//! ```text
//! <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>
//! <|tool_calls_section_end|>
//! ```
//! Models also write the section's tokens in the singular, omit the section, and call inside their reasoning. A call is
//! emitted when it is complete, because emitted pieces cannot be retracted: an invalid call (unknown tool, arguments that
//! are not a JSON object, no end) is emitted as text. If a grammar guarantees valid calls, their arguments are emitted as
//! they arrive. This module does no I/O.

use super::api::chat::{FunctionCall, ToolCall};
use serde_json::{Map, Value};

const SECTION_BEGIN: [&str; 2] = ["<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"];
const SECTION_END: [&str; 2] = ["<|tool_calls_section_end|>", "<|tool_call_section_end|>"];
const CALL_BEGIN: &str = "<|tool_call_begin|>";
const ARGUMENTS: &str = "<|tool_call_argument_begin|>";
const CALL_END: &str = "<|tool_call_end|>";
const THINK_BEGIN: &str = "<think>";
const THINK_END: &str = "</think>";

/// A parsed part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// More text of the answer.
    Text(String),
    /// More text of the reasoning.
    Reasoning(String),
    /// A tool call, complete or followed by its arguments.
    Call(ToolCall),
    /// More arguments of the last tool call.
    Arguments(String),
}

/// An incremental parser of a reply.
#[derive(Clone, Debug, Default)]
pub struct ToolCallParser {
    /// Names of callable tools; if empty, calls are text.
    tools: Vec<String>,
    /// A grammar guarantees that calls are valid.
    constrained: bool,
    /// The model marks its reasoning with tags.
    has_reasoning: bool,
    in_reasoning: bool,
    position: Position,
    /// The section's begin marker, until a call or text of the section is emitted.
    opened: Option<&'static str>,
    /// The section is emitted as text because it has no valid call.
    as_text: bool,
    pending: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    #[default]
    Prose,
    Section,
    /// In a call; true inside a section.
    Call(bool),
    /// In arguments that are emitted as they arrive; true inside a section.
    Arguments(bool),
}

impl ToolCallParser {
    /// Starts a reply. `in_reasoning`: the prompt already opened the reasoning tag.
    pub fn new(tools: Vec<String>, has_reasoning: bool, in_reasoning: bool) -> Self {
        ToolCallParser { tools, has_reasoning, in_reasoning, ..Default::default() }
    }

    /// Sets whether a grammar guarantees valid calls.
    pub fn constrained(self, constrained: bool) -> Self {
        ToolCallParser { constrained, ..self }
    }

    /// Parses more text and returns the pieces that are certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.pending.push_str(text);
        let mut pieces = Vec::new();
        while self.parse_next(&mut pieces) {}
        pieces
    }

    /// Ends the reply and returns pending text.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let rest = std::mem::take(&mut self.pending);
        match self.position {
            Position::Prose => self.emit(&rest, &mut pieces),
            Position::Section => self.section_text(&rest, &mut pieces),
            Position::Call(_) => self.end_call(&rest, "", &mut pieces),
            Position::Arguments(_) => add_arguments(&rest, &mut pieces),
        }
        pieces
    }

    /// Parses through the next marker; returns false if more text is needed.
    fn parse_next(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let markers = self.markers();
        let found =
            markers.iter().filter_map(|m| Some((self.pending.find(m)?, *m))).min_by_key(|(at, _)| *at);
        let Some((at, marker)) = found else {
            if matches!(self.position, Position::Prose | Position::Arguments(_)) {
                let pending = markers.iter().map(|m| overlap(&self.pending, m)).max().unwrap_or(0);
                let rest = self.pending.split_off(self.pending.len() - pending);
                let text = std::mem::replace(&mut self.pending, rest);
                match self.position {
                    Position::Prose => self.emit(&text, pieces),
                    _ => add_arguments(&text, pieces),
                }
            }
            return false;
        };
        let before: String = self.pending.drain(..at + marker.len()).collect();
        let before = &before[..at];
        match self.position {
            Position::Prose => self.emit(before, pieces),
            Position::Section => self.section_text(before, pieces),
            Position::Arguments(_) => add_arguments(before, pieces),
            Position::Call(_) if marker == ARGUMENTS => self.begin_arguments(before, pieces),
            Position::Call(_) => self.end_call(before, if marker == CALL_END { marker } else { "" }, pieces),
        }
        self.enter(marker, pieces);
        true
    }

    /// Returns the markers that are valid at this position.
    fn markers(&self) -> Vec<&'static str> {
        let mut markers = Vec::new();
        match self.position {
            Position::Prose => {
                if self.has_reasoning {
                    markers.push(if self.in_reasoning { THINK_END } else { THINK_BEGIN });
                }
                if !self.tools.is_empty() {
                    markers.extend(SECTION_BEGIN);
                    markers.push(CALL_BEGIN);
                }
            }
            Position::Section => {
                markers.extend(SECTION_END);
                markers.push(CALL_BEGIN);
            }
            Position::Call(_) | Position::Arguments(_) => {
                markers.extend(SECTION_END);
                markers.extend([CALL_BEGIN, CALL_END]);
                markers.extend(
                    (self.constrained && matches!(self.position, Position::Call(_))).then_some(ARGUMENTS),
                );
            }
        }
        markers
    }

    fn enter(&mut self, marker: &'static str, pieces: &mut Vec<Piece>) {
        let in_section =
            matches!(self.position, Position::Section | Position::Call(true) | Position::Arguments(true));
        match marker {
            THINK_BEGIN => self.in_reasoning = true,
            THINK_END => self.in_reasoning = false,
            CALL_BEGIN => self.position = Position::Call(in_section),
            ARGUMENTS => self.position = Position::Arguments(in_section),
            CALL_END => self.position = if in_section { Position::Section } else { Position::Prose },
            _ if SECTION_BEGIN.contains(&marker) => {
                (self.position, self.opened, self.as_text) = (Position::Section, Some(marker), false);
            }
            _ => {
                if self.as_text {
                    self.emit(marker, pieces);
                }
                (self.position, self.opened, self.as_text) = (Position::Prose, None, false);
            }
        }
    }

    fn emit(&self, text: &str, pieces: &mut Vec<Piece>) {
        if text.is_empty() {
            return;
        }
        match pieces.last_mut() {
            Some(Piece::Reasoning(last)) if self.in_reasoning => last.push_str(text),
            Some(Piece::Text(last)) if !self.in_reasoning => last.push_str(text),
            _ if self.in_reasoning => pieces.push(Piece::Reasoning(text.to_owned())),
            _ => pieces.push(Piece::Text(text.to_owned())),
        }
    }

    /// Handles text of a section outside its calls; white space is dropped.
    fn section_text(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        if !text.trim().is_empty() {
            self.emit_in_section(text, pieces);
        }
    }

    fn emit_in_section(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        if let Some(marker) = self.opened.take() {
            self.emit(marker, pieces);
            self.as_text = true;
        }
        self.emit(text, pieces);
    }

    /// Emits the start of a call whose arguments are emitted as they arrive.
    fn begin_arguments(&mut self, id: &str, pieces: &mut Vec<Piece>) {
        self.opened = None;
        let (id, name) = split_id(id);
        let function = FunctionCall { name: name.to_owned(), arguments: String::new() };
        pieces.push(Piece::Call(ToolCall { id: id.to_owned(), kind: "function".to_owned(), function }));
    }

    /// Emits a complete call, or its text including the marker `end` if it is invalid.
    fn end_call(&mut self, text: &str, end: &str, pieces: &mut Vec<Piece>) {
        match self.parse_call(text) {
            Some(call) => {
                self.opened = None;
                pieces.push(Piece::Call(call));
            }
            None => self.emit_in_section(&format!("{CALL_BEGIN}{text}{end}"), pieces),
        }
    }

    fn parse_call(&self, text: &str) -> Option<ToolCall> {
        let (id, arguments) = text.split_once(ARGUMENTS)?;
        let (id, name) = split_id(id);
        let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
        let known = self.tools.iter().any(|tool| tool == name);
        let whole = serde_json::from_str::<Map<String, Value>>(arguments).is_ok();
        (known && whole).then(|| ToolCall {
            id: id.to_owned(),
            kind: "function".to_owned(),
            function: FunctionCall { name: name.to_owned(), arguments: arguments.to_owned() },
        })
    }
}

/// Splits `functions.NAME:IDX` into the id and the function's name.
fn split_id(id: &str) -> (&str, &str) {
    let id = id.trim();
    let path = id.rsplit_once(':').map_or(id, |(path, _)| path);
    (id, path.strip_prefix("functions.").unwrap_or(path))
}

fn add_arguments(text: &str, pieces: &mut Vec<Piece>) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Arguments(more)) => more.push_str(text),
        _ => pieces.push(Piece::Arguments(text.to_owned())),
    }
}

/// Length of the longest suffix of `text` that is a proper prefix of `marker`.
fn overlap(text: &str, marker: &str) -> usize {
    (1..marker.len()).rev().find(|n| text.ends_with(&marker[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str =
        "<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|>";

    fn rendered(pieces: Vec<Piece>) -> String {
        let show = |piece| match piece {
            Piece::Text(text) => text,
            Piece::Reasoning(text) => format!("({text})"),
            Piece::Call(call) => format!("[{} {} {}]", call.id, call.function.name, call.function.arguments),
            Piece::Arguments(text) => format!("<{text}>"),
        };
        pieces.into_iter().map(show).collect()
    }

    /// Parses the text in chunks of several sizes, which must not change the result.
    fn check(text: &str, expected: &str) {
        for step in [1, 2, 3, 7, 1000] {
            let mut parser = ToolCallParser::new(vec!["add".into()], true, false);
            let chars: Vec<char> = text.chars().collect();
            let mut pieces = Vec::new();
            for part in chars.chunks(step) {
                pieces.extend(parser.push(&part.iter().collect::<String>()));
            }
            pieces.extend(parser.finish());
            assert_eq!(rendered(pieces).replace(")(", ""), expected, "{text} in steps of {step}");
        }
    }

    #[test]
    fn calls_are_parsed_in_every_spelling() {
        let rendered_call = "[functions.add:0 add {\"a\": 1}]";
        let section = |name: &str| format!("Yes.<|{name}_begin|>\n{CALL}\n<|{name}_end|>Bye");
        check(&section("tool_calls_section"), &format!("Yes.{rendered_call}Bye"));
        check(&section("tool_call_section"), &format!("Yes.{rendered_call}Bye"));
        check(&format!("a{CALL}b"), &format!("a{rendered_call}b"));
        check(
            &format!("<|tool_calls_section_begin|>{CALL}{CALL}"),
            &format!("{rendered_call}{rendered_call}"),
        );
        let open = CALL.trim_end_matches(CALL_END);
        check(
            &format!("<|tool_calls_section_begin|>{open}<|tool_calls_section_end|>x"),
            &format!("{rendered_call}x"),
        );
        check(&CALL.replace("functions.", ""), "[add:0 add {\"a\": 1}]");
        check(&CALL.replace("{\"a\": 1}", ""), "[functions.add:0 add {}]");
    }

    #[test]
    fn arguments_of_constrained_calls_are_streamed() {
        let rendered_call = |parser: &mut ToolCallParser, text: &str| rendered(parser.push(text));
        let mut parser = ToolCallParser::new(vec!["add".into()], false, false).constrained(true);
        assert_eq!(
            rendered_call(&mut parser, "x<|tool_calls_section_begin|><|tool_call_begin|>functions.a"),
            "x"
        );
        assert_eq!(
            rendered_call(&mut parser, "dd:0<|tool_call_argument_begin|>{\"a\""),
            "[functions.add:0 add ]<{\"a\">"
        );
        assert_eq!(rendered_call(&mut parser, ": 1}<|tool_"), "<: 1}>");
        assert_eq!(rendered_call(&mut parser, "call_end|><|tool_calls_section_end|>y"), "y");
        let text = format!("a<|tool_calls_section_begin|>{CALL}{CALL}<|tool_calls_section_end|>b");
        for cut in 0..text.len() {
            let mut parser = ToolCallParser::new(vec!["add".into()], false, false).constrained(true);
            let all = rendered_call(&mut parser, &text[..cut]) + &rendered_call(&mut parser, &text[cut..]);
            let call = "[functions.add:0 add ]<{\"a\": 1}>";
            assert_eq!(all.replace("><", ""), format!("a{call}{call}b"), "cut at {cut}");
        }
    }

    #[test]
    fn calls_inside_reasoning_are_parsed() {
        check("<think>hm <b></think>so", "(hm <b>)so");
        check(&format!("<think>a{CALL}b</think>c"), "(a)[functions.add:0 add {\"a\": 1}](b)c");
        check("<think>never ends", "(never ends)");
        let mut open = ToolCallParser::new(vec![], true, true);
        assert_eq!(rendered(open.push("x</think>y")), "(x)y");
    }

    #[test]
    fn invalid_calls_are_text() {
        for bad in [
            CALL.replace("add", "sub"),
            CALL.replace("{\"a\": 1}", "{\"a\": "),
            CALL.replace("{\"a\": 1}", "[1]"),
            CALL.replace(ARGUMENTS, ""),
            CALL.trim_end_matches("1}<|tool_call_end|>").to_owned(),
            "<|tool_call_begin|>".to_owned(),
            "a <| b <|tool_ca".to_owned(),
        ] {
            check(&bad, &bad);
            let section = format!("x<|tool_calls_section_begin|>{bad}<|tool_calls_section_end|>y");
            check(&section, &section);
        }
        check(
            "<|tool_calls_section_begin|>hm<|tool_calls_section_end|>",
            "<|tool_calls_section_begin|>hm<|tool_calls_section_end|>",
        );
        let mut none = ToolCallParser::new(vec![], false, false);
        assert_eq!(rendered(none.push(&format!("<think>{CALL}"))), format!("<think>{CALL}"));
    }
}
