//! Parses the input as the text of a reply with reasoning and tool calls. The first byte chooses the mode and the markup,
//! the second the length of the chunks. The events must not depend on the chunks; without markup to parse they are the text itself.

use kimi::generation::markup::{CallableTool, Markup, ReplyEvent, ReplyParser};
use serde_json::json;

/// Tests one input, and panics if a property does not hold.
pub fn run(input: &[u8]) {
    let Some(([mode, step], text)) = input.split_first_chunk::<2>() else { return };
    let text = String::from_utf8_lossy(text);
    let [thinks, thinking, constrained, has_tools, is_ling] = [1, 2, 4, 8, 16].map(|bit| mode & bit != 0);
    let properties = json!({ "a": { "type": "integer" }, "city": { "type": "string" } });
    let tool = |name: &str| CallableTool {
        name: name.to_owned(),
        parameters: Some(json!({ "type": "object", "properties": properties })),
    };
    let tools = if has_tools { vec![tool("add"), tool("get_weather")] } else { Vec::new() };
    let markup = if is_ling { Markup::Ling } else { Markup::Kimi };
    let parser = ReplyParser::new(markup, tools, thinks, thinks && thinking).constrained(constrained);
    let whole = parse(parser.clone(), [&text[..]]);
    let chunks: Vec<String> =
        text.chars().collect::<Vec<_>>().chunks(usize::from(*step).max(1)).map(String::from_iter).collect();
    assert_eq!(parse(parser, chunks.iter().map(String::as_str)), whole);
    if !thinks && !has_tools {
        let expected = if text.is_empty() { Vec::new() } else { vec![ReplyEvent::Text(text.into_owned())] };
        assert_eq!(whole, expected);
    }
}

/// The events of a reply, with adjacent ones of a kind joined.
fn parse<'a>(mut parser: ReplyParser, chunks: impl IntoIterator<Item = &'a str>) -> Vec<ReplyEvent> {
    let mut events: Vec<ReplyEvent> = chunks.into_iter().flat_map(|chunk| parser.push(chunk)).collect();
    events.extend(parser.finish());
    let mut joined: Vec<ReplyEvent> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(ReplyEvent::Text(all)), ReplyEvent::Text(more))
            | (Some(ReplyEvent::Reasoning(all)), ReplyEvent::Reasoning(more))
            | (Some(ReplyEvent::ToolCallArguments(all)), ReplyEvent::ToolCallArguments(more)) => {
                all.push_str(&more)
            }
            (_, event) => joined.push(event),
        }
    }
    joined
}
