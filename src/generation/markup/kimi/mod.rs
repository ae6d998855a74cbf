//! Parses Kimi's markup: reasoning between `<think>` and `</think>`, and tool calls:
//! ```text
//! <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>
//! <|tool_calls_section_end|>
//! ```
//! Models also write the section's tokens in the singular, omit the section, and call inside their reasoning. A call is
//! emitted when it is complete, because events cannot be retracted: an invalid call (unknown tool, arguments that are not
//! a JSON object, no end) is emitted as text. If a grammar guarantees valid calls, their arguments are emitted as they
//! arrive. Next: [`grammar`].

pub mod grammar;

use super::reply_text::ReplyText;
use super::{CallSyntax, ReplyEvent};
use crate::generation::detokenizer::overlap;
use serde_json::{Map, Value};

const SECTION_BEGIN: [&str; 2] = ["<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"];
const SECTION_END: [&str; 2] = ["<|tool_calls_section_end|>", "<|tool_call_section_end|>"];
const CALL_BEGIN: &str = "<|tool_call_begin|>";
const ARGUMENTS: &str = "<|tool_call_argument_begin|>";
const CALL_END: &str = "<|tool_call_end|>";

/// The progress of a parser of Kimi's calls.
#[derive(Clone, Debug, Default)]
pub(super) struct KimiCalls {
    /// A grammar guarantees that calls are valid.
    pub constrained: bool,
    state: MarkupState,
    /// The section's begin marker, until a call or text of the section is emitted.
    opened: Option<&'static str>,
    /// The section is emitted as text because it has no valid call.
    as_text: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum MarkupState {
    #[default]
    Prose,
    Section,
    /// In a call; true inside a section.
    Call(bool),
    /// In arguments that are emitted as they arrive; true inside a section.
    Arguments(bool),
}

impl CallSyntax for KimiCalls {
    fn parse_next(&mut self, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) -> bool {
        let markers = self.markers(reply);
        let found =
            markers.iter().filter_map(|m| Some((reply.pending.find(m)?, *m))).min_by_key(|(at, _)| *at);
        let Some((at, marker)) = found else {
            if matches!(self.state, MarkupState::Prose | MarkupState::Arguments(_)) {
                let pending = markers.iter().map(|m| overlap(&reply.pending, m)).max().unwrap_or(0);
                let rest = reply.pending.split_off(reply.pending.len() - pending);
                let text = std::mem::replace(&mut reply.pending, rest);
                match self.state {
                    MarkupState::Prose => reply.emit(&text, events),
                    _ => add_arguments(&text, events),
                }
            }
            return false;
        };
        let before = reply.take_through(at, marker);
        match self.state {
            MarkupState::Prose => reply.emit(&before, events),
            MarkupState::Section => self.section_text(&before, reply, events),
            MarkupState::Arguments(_) => {
                add_arguments(&before, events);
                events.push(ReplyEvent::ToolCallEnd);
            }
            MarkupState::Call(_) if marker == ARGUMENTS => self.begin_arguments(&before, events),
            MarkupState::Call(_) => {
                self.end_call(&before, if marker == CALL_END { marker } else { "" }, reply, events)
            }
        }
        self.enter(marker, reply, events);
        true
    }

    fn finish(&mut self, rest: &str, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) {
        match self.state {
            MarkupState::Prose => reply.emit(rest, events),
            MarkupState::Section => self.section_text(rest, reply, events),
            MarkupState::Call(_) => self.end_call(rest, "", reply, events),
            MarkupState::Arguments(_) => add_arguments(rest, events),
        }
    }
}

impl KimiCalls {
    /// Returns the markers that are valid in this state.
    fn markers(&self, reply: &ReplyText) -> Vec<&'static str> {
        let mut markers = Vec::new();
        match self.state {
            MarkupState::Prose => {
                markers.extend(reply.reasoning_marker());
                if !reply.tools.is_empty() {
                    markers.extend(SECTION_BEGIN);
                    markers.push(CALL_BEGIN);
                }
            }
            MarkupState::Section => {
                markers.extend(SECTION_END);
                markers.push(CALL_BEGIN);
            }
            MarkupState::Call(_) | MarkupState::Arguments(_) => {
                markers.extend(SECTION_END);
                markers.extend([CALL_BEGIN, CALL_END]);
                markers.extend(
                    (self.constrained && matches!(self.state, MarkupState::Call(_))).then_some(ARGUMENTS),
                );
            }
        }
        markers
    }

    fn enter(&mut self, marker: &'static str, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) {
        let in_section = matches!(
            self.state,
            MarkupState::Section | MarkupState::Call(true) | MarkupState::Arguments(true)
        );
        match marker {
            _ if reply.enter_reasoning(marker) => {}
            CALL_BEGIN => (self.state, reply.begun) = (MarkupState::Call(in_section), true),
            ARGUMENTS => self.state = MarkupState::Arguments(in_section),
            CALL_END => self.state = if in_section { MarkupState::Section } else { MarkupState::Prose },
            _ if SECTION_BEGIN.contains(&marker) => {
                (self.state, self.opened, self.as_text) = (MarkupState::Section, Some(marker), false);
            }
            _ => {
                if self.as_text {
                    reply.emit(marker, events);
                }
                (self.state, self.opened, self.as_text) = (MarkupState::Prose, None, false);
            }
        }
    }

    /// Handles text of a section outside its calls; white space is dropped.
    fn section_text(&mut self, text: &str, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) {
        if !text.trim().is_empty() {
            self.emit_in_section(text, reply, events);
        }
    }

    fn emit_in_section(&mut self, text: &str, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) {
        if let Some(marker) = self.opened.take() {
            reply.emit(marker, events);
            self.as_text = true;
        }
        reply.emit(text, events);
    }

    /// Emits the start of a call whose arguments are emitted as they arrive.
    fn begin_arguments(&mut self, id: &str, events: &mut Vec<ReplyEvent>) {
        self.opened = None;
        let (id, name) = split_id(id);
        events.push(ReplyEvent::ToolCallBegin { id: id.to_owned(), name: name.to_owned() });
    }

    /// Emits a complete call, or its text including the marker `end` if it is invalid.
    fn end_call(&mut self, text: &str, end: &str, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) {
        match parse_call(text, reply) {
            Some((id, name, arguments)) => {
                events.push(ReplyEvent::ToolCallBegin { id: id.to_owned(), name: name.to_owned() });
                events.push(ReplyEvent::ToolCallArguments(arguments.to_owned()));
                events.push(ReplyEvent::ToolCallEnd);
                self.opened = None;
            }
            None => self.emit_in_section(&format!("{CALL_BEGIN}{text}{end}"), reply, events),
        }
    }
}

/// The id, name and arguments of a valid call.
fn parse_call<'t>(text: &'t str, reply: &ReplyText) -> Option<(&'t str, &'t str, &'t str)> {
    let (id, arguments) = text.split_once(ARGUMENTS)?;
    let (id, name) = split_id(id);
    let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
    let whole = serde_json::from_str::<Map<String, Value>>(arguments).is_ok();
    (reply.tool(name).is_some() && whole).then_some((id, name, arguments))
}

/// Splits `functions.NAME:IDX` into the id and the function's name.
fn split_id(id: &str) -> (&str, &str) {
    let id = id.trim();
    let path = id.rsplit_once(':').map_or(id, |(path, _)| path);
    (id, path.strip_prefix("functions.").unwrap_or(path))
}

fn add_arguments(text: &str, events: &mut Vec<ReplyEvent>) {
    match events.last_mut() {
        _ if text.is_empty() => {}
        Some(ReplyEvent::ToolCallArguments(more)) => more.push_str(text),
        _ => events.push(ReplyEvent::ToolCallArguments(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rendered;
    use super::super::{CallableTool, Markup, ReplyParser};
    use super::*;

    const CALL: &str =
        "<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|>";

    fn add() -> Vec<CallableTool> {
        vec![CallableTool { name: "add".into(), parameters: None }]
    }

    /// Parses the text in chunks of several sizes, which must not change the result.
    fn check(text: &str, expected: &str) {
        for step in [1, 2, 3, 7, 1000] {
            let mut parser = ReplyParser::new(Markup::Kimi, add(), true, false);
            let chars: Vec<char> = text.chars().collect();
            let mut events = Vec::new();
            for part in chars.chunks(step) {
                events.extend(parser.push(&part.iter().collect::<String>()));
            }
            events.extend(parser.finish());
            assert_eq!(rendered(events).replace(")(", ""), expected, "{text} in steps of {step}");
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
        let rendered_call = |parser: &mut ReplyParser, text: &str| rendered(parser.push(text));
        let mut parser = ReplyParser::new(Markup::Kimi, add(), false, false).constrained(true);
        assert_eq!(
            rendered_call(&mut parser, "x<|tool_calls_section_begin|><|tool_call_begin|>functions.a"),
            "x"
        );
        assert_eq!(
            rendered_call(&mut parser, "dd:0<|tool_call_argument_begin|>{\"a\""),
            "[functions.add:0 add {\"a\""
        );
        assert_eq!(rendered_call(&mut parser, ": 1}<|tool_"), ": 1}");
        assert_eq!(rendered_call(&mut parser, "call_end|><|tool_calls_section_end|>y"), "]y");
        let text = format!("a<|tool_calls_section_begin|>{CALL}{CALL}<|tool_calls_section_end|>b");
        for cut in 0..text.len() {
            let mut parser = ReplyParser::new(Markup::Kimi, add(), false, false).constrained(true);
            let all = rendered_call(&mut parser, &text[..cut]) + &rendered_call(&mut parser, &text[cut..]);
            let call = "[functions.add:0 add {\"a\": 1}]";
            assert_eq!(all, format!("a{call}{call}b"), "cut at {cut}");
        }
    }

    #[test]
    fn calls_inside_reasoning_are_parsed() {
        check("<think>hm <b></think>so", "(hm <b>)so");
        check(&format!("<think>a{CALL}b</think>c"), "(a)[functions.add:0 add {\"a\": 1}](b)c");
        check("<think>never ends", "(never ends)");
        check(" \n<think>a</think> b", " \n(a) b");
        check("the tag <think>x</think>", "the tag <think>x</think>");
        check("<think>a</think><think>b</think>", "(a)<think>b</think>");
        let mut open = ReplyParser::new(Markup::Kimi, vec![], true, true);
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
        let mut none = ReplyParser::new(Markup::Kimi, vec![], false, false);
        assert_eq!(rendered(none.push(&format!("<think>{CALL}"))), format!("<think>{CALL}"));
    }
}
