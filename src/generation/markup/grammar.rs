//! Writes Lark grammars for replies with tool calls, in the markup of the model. Arguments match the functions' schemas.
//!
//! The rules of the calls themselves are each family's. Next: [`super::kimi::grammar`], [`super::ling::grammar`].

use super::{CallableTool, Markup, kimi, ling};
use crate::generation::grammar::{Grammar, with_white_space};
use models::template::Template;
use models::tokenizer::Specials;
use serde_json::Value;
use std::fmt::Write;

/// The calls that a reply may or must have.
#[derive(Clone, Debug, PartialEq)]
pub enum Calls {
    None,
    /// The model decides whether to call.
    Free,
    Some,
}

/// The markup of calls, and which of its tags are special tokens of the vocabulary.
#[derive(Clone, Debug, Default)]
pub struct CallMarkup {
    pub markup: Markup,
    special_tags: Vec<&'static str>,
}

/// A regular expression for any text; no text contains a special token.
pub(super) const ANY: &str = "/(.|\\n)*/";

impl CallMarkup {
    /// The markup of a model's template, for its vocabulary.
    pub fn of(template: &Template, specials: &Specials) -> Self {
        let special_tags = ling::grammar::TAGS.into_iter().filter(|tag| specials.id(tag).is_some()).collect();
        CallMarkup { markup: Markup::of(template), special_tags }
    }

    /// A tag in a grammar: the special token, or its text.
    pub(super) fn tag(&self, tag: &str) -> String {
        if self.is_special(tag) { tag.to_owned() } else { Value::from(tag).to_string() }
    }

    pub(super) fn is_special(&self, tag: &str) -> bool {
        self.special_tags.contains(&tag)
    }

    /// Returns whether a special token, which no text contains, marks the beginning of a call.
    fn has_begin_token(&self) -> bool {
        match self.markup {
            Markup::Kimi => true,
            Markup::Ling => self.is_special(ling::grammar::TAGS[0]),
        }
    }
}

/// Returns a grammar for a reply with calls, with text or JSON as an alternative if they are optional. `several`: the reply
/// may have more than one. None if `format` is a grammar that is no schema, which cannot be combined with calls.
pub fn lark(
    markup: &CallMarkup,
    tools: &[CallableTool],
    (calls, several): (&Calls, bool),
    format: Option<&Grammar>,
) -> Option<String> {
    let mut text = String::new();
    let schema = match format {
        None => None,
        Some(Grammar::Schema(schema)) => Some(schema),
        Some(_) => return None,
    };
    let start = match (calls, schema) {
        (Calls::Some, _) => "start: section".to_owned(),
        (_, None) if markup.has_begin_token() => format!("start: prose section?\nprose: {ANY}"),
        (_, None) => ling::grammar::prose(several),
        (_, Some(schema)) => format!("start: section | json\njson: %json {}", with_white_space(schema)),
    };
    let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
    let repeat = if several { "+" } else { "" };
    let section = match markup.markup {
        Markup::Kimi => kimi::grammar::section(repeat),
        Markup::Ling => ling::grammar::section(repeat),
    };
    // Writing to a String does not fail.
    let _ = writeln!(text, "{start}\nsection: {section}\ncall: {}", names.join(" | "));
    match markup.markup {
        Markup::Kimi => kimi::grammar::calls(tools, &mut text),
        Markup::Ling => ling::grammar::calls(markup, tools, &mut text),
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::ApproximateTokEnv;
    use llguidance::{Matcher, ParserFactory};
    use serde_json::json;

    fn ling() -> CallMarkup {
        CallMarkup { markup: Markup::Ling, special_tags: Vec::new() }
    }

    fn functions() -> Vec<CallableTool> {
        let parameters = json!({"type": "object", "required": ["city", "days"], "properties": {
            "city": {"type": "string"}, "days": {"$ref": "#/$defs/count"}, "unit": {"enum": ["C", "F"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        }, "$defs": {"count": {"type": "integer"}}});
        let tool = |name: &str, parameters| CallableTool { name: name.to_owned(), parameters };
        vec![tool("weather", Some(parameters)), tool("now", None)]
    }

    /// Returns whether a reply matches a grammar, of which each byte is a token.
    fn matches(grammar: &str, reply: &str) -> bool {
        let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
        let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned())));
        assert!(!matcher.is_error(), "{:?}", matcher.get_error());
        reply.bytes().all(|byte| matcher.consume_token(u32::from(byte)).is_ok())
            && matcher.is_accepting().is_ok_and(|accepts| accepts)
    }

    fn argument(key: &str, value: &str) -> String {
        format!("<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>")
    }

    fn call(arguments: &[(&str, &str)]) -> String {
        let arguments: Vec<_> = arguments.iter().map(|(key, value)| argument(key, value)).collect();
        format!("<tool_call>weather\n{}\n</tool_call>", arguments.join("\n"))
    }

    #[test]
    fn arguments_of_ling_match_the_schema() {
        let grammar = lark(&ling(), &functions(), (&Calls::Some, true), None).unwrap();
        let check = |reply: &str, expected: bool| assert_eq!(matches(&grammar, reply), expected, "{reply}");
        let [city, days] = [("city", "Köln <b> \n"), ("days", "12")];
        check(&call(&[city, days]), true);
        check(&call(&[city, days, ("unit", "C"), ("tags", "[\"a\", \"b\"]")]), true);
        check(&call(&[city, days, ("tags", "[]")]), true);
        check(&format!("{}\n<tool_call>now</tool_call>", call(&[city, days])), true);
        check("<tool_call>now</tool_call>\n<tool_call>now\n</tool_call>", true);
        check(&call(&[city]), false);
        check(&call(&[days, city]), false);
        check(&call(&[city, ("days", "twelve")]), false);
        check(&call(&[city, days, ("unit", "\"C\"")]), false);
        check(&call(&[city, days, ("tags", "[1]")]), false);
        check("<tool_call>other</tool_call>", false);
        check("text", false);
    }

    #[test]
    fn text_is_free_before_optional_calls() {
        let free = |several| lark(&ling(), &functions(), (&Calls::Free, several), None).unwrap();
        assert!(matches(&free(true), "Any text < <tool> \n"));
        assert!(matches(&free(true), "Text\n<tool_call>now</tool_call>\n<tool_call>now</tool_call>"));
        assert!(!matches(&free(false), "<tool_call>now</tool_call>\n<tool_call>now</tool_call>"));
        assert!(!matches(&free(true), "Text <tool_call>later</tool_call>"));
        let schema = Grammar::Schema(json!({"type": "object"}));
        let json = lark(&ling(), &functions(), (&Calls::Free, true), Some(&schema)).unwrap();
        assert!(matches(&json, "{\"a\": 1}") && matches(&json, "<tool_call>now</tool_call>"));
        assert!(!matches(&json, "a"));
    }

    #[test]
    fn tags_that_are_special_tokens_are_written_as_such() {
        let special_tags = vec!["<tool_call>", "</tool_call>", "</arg_value>"];
        let markup = CallMarkup { special_tags, ..ling() };
        let grammar = lark(&markup, &functions(), (&Calls::Free, false), None).unwrap();
        let lines: Vec<_> = grammar.lines().collect();
        for line in [
            "start: prose section?",
            "prose: /(.|\\n)*/",
            "string: /(.|\\n)*/ </arg_value>",
            "call_1: SPACE <tool_call> body_1",
            "body_1: \"now\" SPACE </tool_call>",
            "arg_0_0: \"<arg_key>\" \"city\" \"</arg_key>\" SPACE \"<arg_value>\" string SPACE",
        ] {
            assert!(lines.contains(&line), "{line} in {grammar}");
        }
        assert_eq!(Grammar::Lark(grammar).check(), Ok(()));
        let text = lark(&ling(), &functions(), (&Calls::Free, true), None).unwrap();
        assert_eq!(Grammar::Lark(text).check(), Ok(()));
    }
}
