//! Writes Lark grammars for tool calls, in the markup of the model.
//!
//! Arguments match the functions' schemas. Kimi's calls hold them as one JSON object; Ling's name each between tags, required
//! and optional ones in the schema's order.

use super::api::tools::FunctionSpec;
use super::errors::ApiError;
use crate::generation::grammar::{Grammar, with_white_space};
use crate::generation::reply_parser::Markup;
use models::template::Template;
use models::tokenizer::Specials;
use serde_json::{Value, json};
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
const ANY: &str = "/(.|\\n)*/";
const CALL: [&str; 2] = ["<tool_call>", "</tool_call>"];
const KEY: [&str; 2] = ["<arg_key>", "</arg_key>"];
const VALUE: [&str; 2] = ["<arg_value>", "</arg_value>"];

impl CallMarkup {
    /// The markup of a model's template, for its vocabulary.
    pub fn of(template: &Template, specials: &Specials) -> Self {
        let tags = [CALL, KEY, VALUE].into_iter().flatten();
        let special_tags = tags.filter(|tag| specials.id(tag).is_some()).collect();
        CallMarkup { markup: Markup::of(template), special_tags }
    }

    /// A tag in a grammar: the special token, or its text.
    fn tag(&self, tag: &str) -> String {
        if self.is_special(tag) { tag.to_owned() } else { Value::from(tag).to_string() }
    }

    fn is_special(&self, tag: &str) -> bool {
        self.special_tags.contains(&tag)
    }
}

/// Returns a grammar for a reply with calls, with text or JSON as an alternative if they are optional. `several`: the reply
/// may have more than one.
pub fn lark(
    markup: &CallMarkup,
    functions: &[FunctionSpec],
    (calls, several): (&Calls, bool),
    format: Option<&Grammar>,
) -> Result<String, ApiError> {
    let mut text = String::new();
    let answer = match format {
        None => "prose",
        Some(Grammar::Schema(_)) => "json",
        Some(_) => {
            let why = "a grammar is not supported with tools; remove one or set tool_choice to none";
            return Err(ApiError::unsupported("response_format", why));
        }
    };
    // Writing to a String does not fail.
    let _ = match (calls, answer) {
        (Calls::Some, _) => writeln!(text, "start: section"),
        (_, "prose") if markup.markup == Markup::Kimi || markup.is_special(CALL[0]) => {
            writeln!(text, "start: prose section?\nprose: {ANY}")
        }
        // The lexer cannot go back to a tag that text contains: text ends at the tag, which it includes.
        (_, "prose") => {
            let [tag, more] = [CALL[0], if several { " section?" } else { "" }];
            writeln!(
                text,
                "start: PROSE | before body{more}\nPROSE: {ANY} & ~/(.|\\n)*{tag}(.|\\n)*/\n\
                 before[suffix=\"{tag}\"]: {ANY}"
            )
        }
        _ => writeln!(text, "start: section | json"),
    };
    if let (false, Some(Grammar::Schema(schema))) = (*calls == Calls::Some, format) {
        let _ = writeln!(text, "json: %json {}", with_white_space(schema));
    }
    let names: Vec<String> = (0..functions.len()).map(|i| format!("call_{i}")).collect();
    let repeat = if several { "+" } else { "" };
    let section = match markup.markup {
        Markup::Kimi => format!("<|tool_calls_section_begin|> call{repeat} <|tool_calls_section_end|>"),
        Markup::Ling => format!("call{repeat}"),
    };
    let _ = writeln!(text, "section: {section}\ncall: {}", names.join(" | "));
    match markup.markup {
        Markup::Kimi => kimi_calls(functions, &mut text),
        Markup::Ling => ling_calls(markup, functions, &mut text),
    }
    Ok(text)
}

fn kimi_calls(functions: &[FunctionSpec], text: &mut String) {
    for (i, function) in functions.iter().enumerate() {
        let any = json!({ "type": "object" });
        let schema = with_white_space(function.parameters.as_ref().unwrap_or(&any));
        let head = Value::String(format!("functions.{}:", function.name));
        let _ = writeln!(
            text,
            "call_{i}: <|tool_call_begin|> {head} /[0-9]{{1,3}}/ <|tool_call_argument_begin|> args_{i} <|tool_call_end|>\n\
             args_{i}: %json {schema}"
        );
    }
}

fn ling_calls(markup: &CallMarkup, functions: &[FunctionSpec], text: &mut String) {
    let tag = |name| markup.tag(name);
    let bodies: Vec<_> = (0..functions.len()).map(|i| format!("body_{i}")).collect();
    let _ = writeln!(text, "SPACE: /\\n?/\nbody: {}", bodies.join(" | "));
    let _ = if markup.is_special(VALUE[1]) {
        writeln!(text, "string: {ANY} {}", VALUE[1])
    } else {
        writeln!(text, "string[suffix=\"{}\"]: {ANY}", VALUE[1])
    };
    for (i, function) in functions.iter().enumerate() {
        let parameters = function.parameters.as_ref();
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
        let name = Value::from(function.name.as_str());
        let [open, close] = CALL.map(tag);
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

#[cfg(test)]
mod tests {
    use super::*;
    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::ApproximateTokEnv;
    use llguidance::{Matcher, ParserFactory};

    fn ling() -> CallMarkup {
        CallMarkup { markup: Markup::Ling, special_tags: Vec::new() }
    }

    fn functions() -> Vec<FunctionSpec> {
        let parameters = json!({"type": "object", "required": ["city", "days"], "properties": {
            "city": {"type": "string"}, "days": {"$ref": "#/$defs/count"}, "unit": {"enum": ["C", "F"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        }, "$defs": {"count": {"type": "integer"}}});
        let spec = |json| serde_json::from_value(json).unwrap();
        vec![spec(json!({"name": "weather", "parameters": parameters})), spec(json!({"name": "now"}))]
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
        let special_tags = vec![CALL[0], CALL[1], VALUE[1]];
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
