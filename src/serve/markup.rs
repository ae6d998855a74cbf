//! Kimi's markup in a reply, parsed while it streams: reasoning between `<think>` and `</think>`, and calls:
//! ```text
//! <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>
//! <|tool_calls_section_end|>
//! ```
//! Models also write the section's tokens in the singular, leave the section out, and call inside their reasoning.
//! A call is told when it is whole: what has been told cannot be taken back, and a call that turns out to be none
//! (no such tool, arguments that are no JSON object, no end) is text, as it was written. Where a grammar makes sure of
//! calls, their arguments are told as they come. A leaf: pure.

use super::api::chat::{FunctionCall, ToolCall};
use serde_json::{Map, Value};

const SECTION_BEGIN: [&str; 2] = ["<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"];
const SECTION_END: [&str; 2] = ["<|tool_calls_section_end|>", "<|tool_call_section_end|>"];
const CALL_BEGIN: &str = "<|tool_call_begin|>";
const ARGUMENTS: &str = "<|tool_call_argument_begin|>";
const CALL_END: &str = "<|tool_call_end|>";
const THINK_BEGIN: &str = "<think>";
const THINK_END: &str = "</think>";

/// What a reply consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// More of what is said.
    Text(String),
    /// More of what is reasoned.
    Reasoning(String),
    /// A call: whole, or with its arguments to come.
    Call(ToolCall),
    /// More arguments of the last call.
    Arguments(String),
}

/// A parser in the middle of a reply.
#[derive(Clone, Debug, Default)]
pub struct Markup {
    /// Names of the tools that may be called; none: calls are text.
    tools: Vec<String>,
    /// Whether a grammar makes sure that calls are right.
    sure: bool,
    /// Whether reasoning is marked.
    thinks: bool,
    thinking: bool,
    place: Place,
    /// The section's first token, until a call or text of the section is told.
    opened: Option<&'static str>,
    /// Whether the section is told as text.
    as_text: bool,
    held: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Prose,
    Section,
    /// In a call; whether it stands in a section.
    Call(bool),
    /// In the arguments of a call that is told as it comes.
    Arguments(bool),
}

impl Markup {
    /// At the beginning of a reply. `thinks`: reasoning is marked; `thinking`: the prompt has opened it already.
    pub fn new(tools: Vec<String>, thinks: bool, thinking: bool) -> Self {
        Markup { tools, thinks, thinking, ..Default::default() }
    }

    /// The same where a grammar makes sure that calls are right.
    pub fn sure(self, sure: bool) -> Self {
        Markup { sure, ..self }
    }

    /// Takes more text; returns what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.go_on(&mut pieces) {}
        pieces
    }

    /// The reply has ended: what is held was no markup.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let rest = std::mem::take(&mut self.held);
        match self.place {
            Place::Prose => self.say(&rest, &mut pieces),
            Place::Section => self.between(&rest, &mut pieces),
            Place::Call(_) => self.close(&rest, "", &mut pieces),
            Place::Arguments(_) => add_arguments(&rest, &mut pieces),
        }
        pieces
    }

    /// Parses up to and with the next mark; false when more text is needed.
    fn go_on(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let marks = self.marks();
        let found = marks.iter().filter_map(|m| Some((self.held.find(m)?, *m))).min_by_key(|(at, _)| *at);
        let Some((at, mark)) = found else {
            if matches!(self.place, Place::Prose | Place::Arguments(_)) {
                let held = marks.iter().map(|m| overlap(&self.held, m)).max().unwrap_or(0);
                let rest = self.held.split_off(self.held.len() - held);
                let text = std::mem::replace(&mut self.held, rest);
                match self.place {
                    Place::Prose => self.say(&text, pieces),
                    _ => add_arguments(&text, pieces),
                }
            }
            return false;
        };
        let before: String = self.held.drain(..at + mark.len()).collect();
        let before = &before[..at];
        match self.place {
            Place::Prose => self.say(before, pieces),
            Place::Section => self.between(before, pieces),
            Place::Arguments(_) => add_arguments(before, pieces),
            Place::Call(_) if mark == ARGUMENTS => self.open(before, pieces),
            Place::Call(_) => self.close(before, if mark == CALL_END { mark } else { "" }, pieces),
        }
        self.pass(mark, pieces);
        true
    }

    /// The marks that mean something here.
    fn marks(&self) -> Vec<&'static str> {
        let mut marks = Vec::new();
        match self.place {
            Place::Prose => {
                if self.thinks {
                    marks.push(if self.thinking { THINK_END } else { THINK_BEGIN });
                }
                if !self.tools.is_empty() {
                    marks.extend(SECTION_BEGIN);
                    marks.push(CALL_BEGIN);
                }
            }
            Place::Section => {
                marks.extend(SECTION_END);
                marks.push(CALL_BEGIN);
            }
            Place::Call(_) | Place::Arguments(_) => {
                marks.extend(SECTION_END);
                marks.extend([CALL_BEGIN, CALL_END]);
                marks.extend((self.sure && matches!(self.place, Place::Call(_))).then_some(ARGUMENTS));
            }
        }
        marks
    }

    fn pass(&mut self, mark: &'static str, pieces: &mut Vec<Piece>) {
        let in_section = matches!(self.place, Place::Section | Place::Call(true) | Place::Arguments(true));
        match mark {
            THINK_BEGIN => self.thinking = true,
            THINK_END => self.thinking = false,
            CALL_BEGIN => self.place = Place::Call(in_section),
            ARGUMENTS => self.place = Place::Arguments(in_section),
            CALL_END => self.place = if in_section { Place::Section } else { Place::Prose },
            _ if SECTION_BEGIN.contains(&mark) => {
                (self.place, self.opened, self.as_text) = (Place::Section, Some(mark), false);
            }
            _ => {
                if self.as_text {
                    self.say(mark, pieces);
                }
                (self.place, self.opened, self.as_text) = (Place::Prose, None, false);
            }
        }
    }

    fn say(&self, text: &str, pieces: &mut Vec<Piece>) {
        if text.is_empty() {
            return;
        }
        match pieces.last_mut() {
            Some(Piece::Reasoning(said)) if self.thinking => said.push_str(text),
            Some(Piece::Text(said)) if !self.thinking => said.push_str(text),
            _ if self.thinking => pieces.push(Piece::Reasoning(text.to_owned())),
            _ => pieces.push(Piece::Text(text.to_owned())),
        }
    }

    /// Text in a section, outside its calls: white space says nothing.
    fn between(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        if !text.trim().is_empty() {
            self.say_in_section(text, pieces);
        }
    }

    fn say_in_section(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        if let Some(mark) = self.opened.take() {
            self.say(mark, pieces);
            self.as_text = true;
        }
        self.say(text, pieces);
    }

    /// The arguments of a call begin that is told as it comes.
    fn open(&mut self, id: &str, pieces: &mut Vec<Piece>) {
        self.opened = None;
        let (id, name) = named(id);
        let function = FunctionCall { name: name.to_owned(), arguments: String::new() };
        pieces.push(Piece::Call(ToolCall { id: id.to_owned(), kind: "function".to_owned(), function }));
    }

    /// A call's text has ended, with `end` if that was written.
    fn close(&mut self, text: &str, end: &str, pieces: &mut Vec<Piece>) {
        match self.call(text) {
            Some(call) => {
                self.opened = None;
                pieces.push(Piece::Call(call));
            }
            None => self.say_in_section(&format!("{CALL_BEGIN}{text}{end}"), pieces),
        }
    }

    /// `functions.NAME:IDX ARGUMENTS {...}`
    fn call(&self, text: &str) -> Option<ToolCall> {
        let (id, arguments) = text.split_once(ARGUMENTS)?;
        let (id, name) = named(id);
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

/// A call's id and the function's name in it: `functions.NAME:IDX`.
fn named(id: &str) -> (&str, &str) {
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

/// Bytes at the end of `text` that begin `mark`.
fn overlap(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|n| text.ends_with(&mark[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str =
        "<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|>";

    fn shown(pieces: Vec<Piece>) -> String {
        let show = |piece| match piece {
            Piece::Text(text) => text,
            Piece::Reasoning(text) => format!("({text})"),
            Piece::Call(call) => format!("[{} {} {}]", call.id, call.function.name, call.function.arguments),
            Piece::Arguments(text) => format!("<{text}>"),
        };
        pieces.into_iter().map(show).collect()
    }

    /// However the text is cut, it is parsed the same; cuts in text make no difference to what is shown.
    fn check(text: &str, expected: &str) {
        for step in [1, 2, 3, 7, 1000] {
            let mut markup = Markup::new(vec!["add".into()], true, false);
            let chars: Vec<char> = text.chars().collect();
            let mut pieces = Vec::new();
            for part in chars.chunks(step) {
                pieces.extend(markup.push(&part.iter().collect::<String>()));
            }
            pieces.extend(markup.finish());
            assert_eq!(shown(pieces).replace(")(", ""), expected, "{text} in steps of {step}");
        }
    }

    #[test]
    fn calls_in_every_spelling() {
        let told = "[functions.add:0 add {\"a\": 1}]";
        let section = |name: &str| format!("Yes.<|{name}_begin|>\n{CALL}\n<|{name}_end|>Bye");
        check(&section("tool_calls_section"), &format!("Yes.{told}Bye"));
        check(&section("tool_call_section"), &format!("Yes.{told}Bye"));
        check(&format!("a{CALL}b"), &format!("a{told}b"));
        check(&format!("<|tool_calls_section_begin|>{CALL}{CALL}"), &format!("{told}{told}"));
        let open = CALL.trim_end_matches(CALL_END);
        check(&format!("<|tool_calls_section_begin|>{open}<|tool_calls_section_end|>x"), &format!("{told}x"));
        check(&CALL.replace("functions.", ""), "[add:0 add {\"a\": 1}]");
        check(&CALL.replace("{\"a\": 1}", ""), "[functions.add:0 add {}]");
    }

    #[test]
    fn sure_calls_are_told_as_they_come() {
        let told = |markup: &mut Markup, text: &str| shown(markup.push(text));
        let mut markup = Markup::new(vec!["add".into()], false, false).sure(true);
        assert_eq!(told(&mut markup, "x<|tool_calls_section_begin|><|tool_call_begin|>functions.a"), "x");
        assert_eq!(
            told(&mut markup, "dd:0<|tool_call_argument_begin|>{\"a\""),
            "[functions.add:0 add ]<{\"a\">"
        );
        assert_eq!(told(&mut markup, ": 1}<|tool_"), "<: 1}>");
        assert_eq!(told(&mut markup, "call_end|><|tool_calls_section_end|>y"), "y");
        let text = format!("a<|tool_calls_section_begin|>{CALL}{CALL}<|tool_calls_section_end|>b");
        for cut in 0..text.len() {
            let mut markup = Markup::new(vec!["add".into()], false, false).sure(true);
            let all = told(&mut markup, &text[..cut]) + &told(&mut markup, &text[cut..]);
            let call = "[functions.add:0 add ]<{\"a\": 1}>";
            assert_eq!(all.replace("><", ""), format!("a{call}{call}b"), "cut at {cut}");
        }
    }

    #[test]
    fn reasoning_and_calls_inside_it() {
        check("<think>hm <b></think>so", "(hm <b>)so");
        check(&format!("<think>a{CALL}b</think>c"), "(a)[functions.add:0 add {\"a\": 1}](b)c");
        check("<think>never ends", "(never ends)");
        let mut open = Markup::new(vec![], true, true);
        assert_eq!(shown(open.push("x</think>y")), "(x)y");
    }

    #[test]
    fn what_is_no_call_is_text_as_it_was_written() {
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
        let mut none = Markup::new(vec![], false, false);
        assert_eq!(shown(none.push(&format!("<think>{CALL}"))), format!("<think>{CALL}"));
    }
}
