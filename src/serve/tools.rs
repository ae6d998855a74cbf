//! Converts a request's tools and response format to template variables, functions for the parser, and a grammar.

use super::api::chat::ChatRequest;
use super::api::tools::{FunctionSpec, GuidedDecoding, ResponseFormat, Tool, ToolChoice};
use super::errors::{ApiError, quoted};
use super::notices::Notices;
use crate::generation::grammar::bounds::Totals;
use crate::generation::grammar::{self, Grammar};
use crate::generation::markup::CallableTool;
use crate::generation::markup::grammar::{CallMarkup, Calls, lark};
use serde_json::{Value, json};

/// Maximum number of tools per request.
const MAX_TOOLS: usize = 128;

/// The tools and the grammar of a request.
#[derive(Debug, Default)]
pub struct Plan {
    /// Tool declarations for the chat template.
    pub declared: Vec<Value>,
    /// The callable functions, for the parser of the reply.
    pub callable: Vec<CallableTool>,
    /// Grammar that the reply must match.
    pub grammar: Option<Grammar>,
    /// The grammar guarantees that calls are valid.
    pub constrained: bool,
}

impl Plan {
    pub fn new(request: &ChatRequest, notices: &Notices, markup: &CallMarkup) -> Result<Self, ApiError> {
        let mut raw = request.tools.clone().unwrap_or_default();
        super::validate::within("tools", raw.len(), 0, MAX_TOOLS)?;
        if !matches!(&request.tool_choice, Some(ToolChoice::Mode(mode)) if mode == "required") {
            leave_out_other_kinds(&mut raw, notices);
        }
        let mut functions: Vec<FunctionSpec> = Vec::new();
        for (i, tool) in raw.iter().enumerate() {
            let function = function(i, tool)?;
            if functions.iter().any(|f| f.name == function.name) {
                let why = format!("expected each name once, found {} again", function.name);
                return Err(ApiError::invalid(&format!("tools[{i}].function.name"), why));
            }
            functions.push(function);
        }
        let calls = calls(request.tool_choice.as_ref(), &mut functions)?;
        let format = required_format(request.response_format.as_ref(), &request.constraint)?;
        if calls == Calls::None {
            return Ok(Plan { grammar: format, ..Plan::default() });
        }
        let several = request.parallel_tool_calls.unwrap_or(true);
        let bound = calls == Calls::Some || !several || functions.iter().any(|f| f.strict == Some(true));
        let callable =
            |f: &FunctionSpec| CallableTool { name: f.name.clone(), parameters: f.parameters.clone() };
        let callable: Vec<_> = functions.iter().map(callable).collect();
        let constrained = bound || format.is_some();
        if constrained {
            check_parameters(&raw, &functions)?;
        }
        let lark = || {
            let why = "a grammar is not supported with tools; remove one or set tool_choice to none";
            let lark = lark(markup, &callable, (&calls, several), format.as_ref());
            lark.map(Grammar::Lark).ok_or_else(|| ApiError::unsupported("response_format", why))
        };
        let grammar = constrained.then(lark).transpose()?;
        Ok(Plan { declared: raw, callable, grammar, constrained })
    }
}

/// Removes the tools that this server cannot offer, such as web search. The model may call others, or none.
fn leave_out_other_kinds(tools: &mut Vec<Value>, notices: &Notices) {
    tools.retain(|tool| match tool.get("type").and_then(Value::as_str) {
        Some(kind) if kind != "function" => {
            notices.once(&format!("tools: only functions can be called; left out: {}", quoted(kind)));
            false
        }
        _ => true,
    });
}

/// Checks the limits of the parameter schemas that go into the grammar.
fn check_parameters(raw: &[Value], functions: &[FunctionSpec]) -> Result<(), ApiError> {
    let mut totals = Totals::default();
    for function in functions {
        let Some(schema) = &function.parameters else { continue };
        let at = raw.iter().position(|tool| tool["function"]["name"] == function.name.as_str()).unwrap_or(0);
        let place = format!("tools[{at}].function.parameters");
        grammar::count_schema(schema, &mut totals).map_err(|e| ApiError::invalid(&place, e))?;
    }
    Ok(())
}

fn function(i: usize, tool: &Value) -> Result<FunctionSpec, ApiError> {
    let place = |field: &str| format!("tools[{i}]{field}");
    let wrong = |under: &str, e: serde_path_to_error::Error<serde_json::Error>| {
        ApiError::invalid(&place(&format!("{under}.{}", e.path())), e.inner())
    };
    let tool: Tool = serde_path_to_error::deserialize(tool).map_err(|e| wrong("", e))?;
    if tool.kind != "function" {
        let why = format!("only functions can be called, found {}", tool.kind);
        return Err(ApiError::unsupported(&place(".type"), why));
    }
    let function =
        tool.function.ok_or_else(|| ApiError::invalid(&place(".function"), "expected a function"))?;
    let function: FunctionSpec =
        serde_path_to_error::deserialize(function).map_err(|e| wrong(".function", e))?;
    let spelled = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !(1..=128).contains(&function.name.len()) || !function.name.chars().all(spelled) {
        let why = format!("expected 1 to 128 letters, digits, _, - and ., found {:?}", function.name);
        return Err(ApiError::invalid(&place(".function.name"), why));
    }
    Ok(function)
}

/// Evaluates `tool_choice`; a named function removes all others.
fn calls(choice: Option<&ToolChoice>, functions: &mut Vec<FunctionSpec>) -> Result<Calls, ApiError> {
    let calls = match choice {
        None if functions.is_empty() => Calls::None,
        None => Calls::Free,
        Some(ToolChoice::Mode(mode)) => match mode.as_str() {
            "none" => Calls::None,
            "auto" => Calls::Free,
            "required" => Calls::Some,
            other => {
                let why = format!("expected none, auto, required or a function, found {other}");
                return Err(ApiError::invalid("tool_choice", why));
            }
        },
        Some(ToolChoice::Named(named)) => {
            if named.kind != "function" {
                return Err(ApiError::unsupported("tool_choice.type", "only functions can be chosen"));
            }
            functions.retain(|f| f.name == named.function.name);
            if functions.is_empty() {
                let why = format!("expected one of tools, found {}", named.function.name);
                return Err(ApiError::invalid("tool_choice.function.name", why));
            }
            Calls::Some
        }
    };
    match calls {
        Calls::Some if functions.is_empty() => {
            Err(ApiError::invalid("tool_choice", "expected tools to be set"))
        }
        Calls::Free if functions.is_empty() => Ok(Calls::None),
        calls => Ok(calls),
    }
}

/// Returns the grammar of `response_format` or of a field that other engines have for it.
pub fn required_format(
    response_format: Option<&ResponseFormat>,
    guided: &GuidedDecoding,
) -> Result<Option<Grammar>, ApiError> {
    let mut grammars = vec![response_format.map(format).transpose()?.flatten()];
    let object_of = |schema: &Value, place: &str| match schema {
        Value::String(text) => serde_json::from_str(text).map_err(|e| ApiError::invalid(place, e)),
        schema => Ok(schema.clone()),
    };
    for (place, schema) in [("guided_json", &guided.guided_json), ("json_schema", &guided.json_schema)] {
        if let Some(schema) = schema {
            grammars.push(bounded(Grammar::Schema(object_of(schema, place)?), place)?);
        }
    }
    if let Some(regex) = &guided.guided_regex {
        grammars.push(bounded(Grammar::Regex(regex.clone()), "guided_regex")?);
    }
    if let Some(text) = guided.grammar.as_ref().filter(|text| !text.is_empty()) {
        grammars.push(gbnf(text, "grammar")?);
    }
    let mut grammars = grammars.into_iter().flatten();
    match (grammars.next(), grammars.next()) {
        (_, Some(_)) => Err(ApiError::invalid("response_format", "expected one format, found several")),
        (grammar, None) => Ok(grammar),
    }
}

/// Converts `response_format` to a grammar, or None for plain text.
pub fn format(format: &ResponseFormat) -> Result<Option<Grammar>, ApiError> {
    let missing =
        |field: &str| ApiError::invalid(&format!("response_format.{field}"), "expected for this type");
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => match &format.schema {
            None => Ok(Some(Grammar::Schema(json!({ "type": "object" })))),
            Some(schema) => bounded(Grammar::Schema(schema.clone()), "response_format.schema"),
        },
        "json_schema" => {
            if let Some(schema) = &format.schema {
                return bounded(Grammar::Schema(schema.clone()), "response_format.schema");
            }
            let schema = format.json_schema.as_ref().ok_or_else(|| missing("json_schema"))?;
            let schema = schema.schema.clone().unwrap_or_else(|| json!({ "type": "object" }));
            bounded(Grammar::Schema(schema), "response_format.json_schema.schema")
        }
        "grammar" => {
            let text = format.grammar.clone().ok_or_else(|| missing("grammar"))?;
            match format.syntax.as_deref().unwrap_or("lark") {
                "lark" => bounded(Grammar::Lark(text), "response_format.grammar"),
                "regex" => bounded(Grammar::Regex(text), "response_format.grammar"),
                "gbnf" => gbnf(&text, "response_format.grammar"),
                other => {
                    let why = format!("expected lark, gbnf or regex, found {other}");
                    Err(ApiError::invalid("response_format.syntax", why))
                }
            }
        }
        other => {
            let why = format!("expected text, json_object, json_schema or grammar, found {other}");
            Err(ApiError::invalid("response_format.type", why))
        }
    }
}

fn gbnf(text: &str, place: &str) -> Result<Option<Grammar>, ApiError> {
    bounded(Grammar::from_gbnf(text).map_err(|e| ApiError::invalid(place, e))?, place)
}

fn bounded(grammar: Grammar, place: &str) -> Result<Option<Grammar>, ApiError> {
    grammar.check().map_err(|e| ApiError::invalid(place, e))?;
    Ok(Some(grammar))
}
