//! Converts a chat request to one for an upstream server. The fields that the client did not set are left to the upstream
//! server's defaults, unless an option of this server sets them.

use super::UpstreamModel;
use super::reply::{ExpectedReply, UpstreamRequest};
use crate::client::endpoint::stream::max_stream_bytes;
use crate::generation::grammar::Grammar;
use crate::generation::markup::grammar::CallMarkup;
use crate::generation::markup::{Markup, ReplyParser};
use crate::io::units::shortest_decimal;
use crate::serve::api::chat::ChatRequest;
use crate::serve::api::generation::Generation;
use crate::serve::api::tools::ToolChoice;
use crate::serve::app::App;
use crate::serve::errors::{ApiError, quoted};
use crate::serve::{tools, validate};
use serde_json::{Map, Value, json};

/// Tokens of a reply without a limit, of a model whose context length is not known.
const UNLIMITED_TOKENS: usize = 1 << 20;
/// Engines that pass `chat_template_kwargs` to the template.
const TEMPLATE_ENGINES: [&str; 4] = ["kimi", "llamacpp", "vllm", "sglang"];
/// Values of `reasoning_effort` that every engine with the field has.
const EFFORTS: [&str; 3] = ["low", "medium", "high"];

/// Validates a chat request and builds the request to the upstream server.
pub fn prepare(
    app: &App,
    upstream: &UpstreamModel,
    request: &mut ChatRequest,
    generation: &Generation,
) -> Result<UpstreamRequest, ApiError> {
    app.check_model(request.model.as_deref())?;
    let replies = validate::within("n", generation.n.unwrap_or(1), 1, validate::MAX_REPLIES)?;
    let stops = validate::stops(generation)?;
    let top = validate::top_logprobs(request)?;
    let plan = tools::Plan::new(request, &app.notices, &CallMarkup::default())?;
    let mut body = Map::new();
    body.insert("model".to_owned(), upstream.name().into());
    let messages = validate::messages(std::mem::take(&mut request.messages))?;
    body.insert("messages".to_owned(), json!(messages));
    body.insert("stream".to_owned(), true.into());
    body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
    if !plan.declared.is_empty() {
        add_tools(plan.declared, request, &mut body);
    }
    if let Some(format) = response_format(upstream, request)? {
        body.insert("response_format".to_owned(), format);
    }
    add_reasoning(app, upstream, request, &mut body);
    add_sampling(app, upstream, generation, &mut body)?;
    let limit = generation.max_completion_tokens.or(generation.max_tokens).unwrap_or(app.options.max_tokens);
    if limit == 0 {
        return Err(ApiError::invalid("max_tokens", "expected at least 1, found 0"));
    }
    let limit = Some(limit).filter(|limit| *limit != usize::MAX);
    let context = upstream.context.and_then(|tokens| usize::try_from(tokens).ok());
    let max_tokens = limit.unwrap_or_else(|| context.unwrap_or(UNLIMITED_TOKENS));
    for (name, value) in [
        ("max_tokens", limit.map(Value::from)),
        ("n", (replies > 1).then(|| replies.into())),
        ("stop", (!stops.is_empty()).then(|| stops.clone().into())),
        ("logprobs", top.map(|_| true.into())),
        ("top_logprobs", top.map(Value::from)),
        // Gives the cached tokens before the first token.
        ("return_progress", upstream.endpoint.is_like_llama_cpp().then(|| true.into())),
    ] {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    }
    // This server's own replies have no markup left.
    let parser = match upstream.engine() {
        "kimi" => ReplyParser::default(),
        _ => ReplyParser::new(Markup::Kimi, plan.callable, true, false),
    };
    Ok(UpstreamRequest {
        body: Value::Object(body).to_string(),
        max_bytes: max_stream_bytes(max_tokens).saturating_mul(replies as u64),
        expected: ExpectedReply { replies, parser, stops, max_tokens },
    })
}

fn add_tools(declared: Vec<Value>, request: &ChatRequest, body: &mut Map<String, Value>) {
    body.insert("tools".to_owned(), declared.into());
    let choice = match &request.tool_choice {
        Some(ToolChoice::Mode(mode)) => Some(json!(mode)),
        Some(ToolChoice::Named(named)) => {
            Some(json!({ "type": "function", "function": { "name": named.function.name } }))
        }
        None => None,
    };
    body.extend(choice.map(|choice| ("tool_choice".to_owned(), choice)));
    let several = request.parallel_tool_calls;
    body.extend(several.map(|several| ("parallel_tool_calls".to_owned(), several.into())));
}

/// Returns the required format in OpenAI's form. Other servers have no Lark grammars.
fn response_format(upstream: &UpstreamModel, request: &ChatRequest) -> Result<Option<Value>, ApiError> {
    let (format, constraint) = (request.response_format.as_ref(), &request.constraint);
    let Some(grammar) = tools::required_format(format, constraint)? else { return Ok(None) };
    if format.is_some_and(|format| format.kind == "json_object" && format.schema.is_none()) {
        return Ok(Some(json!({ "type": "json_object" })));
    }
    let (text, syntax) = match grammar {
        Grammar::Schema(schema) => {
            let schema = json!({ "name": "reply", "strict": true, "schema": schema });
            return Ok(Some(json!({ "type": "json_schema", "json_schema": schema })));
        }
        Grammar::Lark(text) => (text, "lark"),
        Grammar::Regex(text) => (text, "regex"),
    };
    if upstream.engine() != "kimi" {
        let param = match () {
            () if constraint.guided_regex.is_some() => "guided_regex",
            () if constraint.grammar.is_some() => "grammar",
            () => "response_format.type",
        };
        let why = "grammars are not supported with this upstream server; use json_schema";
        return Err(ApiError::unsupported(param, why));
    }
    Ok(Some(json!({ "type": "grammar", "grammar": text, "syntax": syntax })))
}

/// Adds the variables of the chat template, with those for the reasoning effort.
fn add_reasoning(
    app: &App,
    upstream: &UpstreamModel,
    request: &mut ChatRequest,
    body: &mut Map<String, Value>,
) {
    let mut variables = Map::new();
    match request.reasoning_effort.take() {
        Some(effort) if TEMPLATE_ENGINES.contains(&upstream.engine()) => {
            variables.insert("enable_thinking".to_owned(), (effort != "none").into());
            variables.insert("thinking".to_owned(), (effort != "none").into());
            variables.insert("reasoning_effort".to_owned(), effort.into());
        }
        Some(effort) if EFFORTS.contains(&effort.as_str()) => {
            body.insert("reasoning_effort".to_owned(), effort.into());
        }
        Some(effort) => {
            let effort = quoted(&effort);
            app.notices.once(&format!("reasoning effort {effort}: not passed to the upstream server"));
        }
        None => {}
    }
    variables.extend(request.chat_template_kwargs.take().unwrap_or_default());
    if !variables.is_empty() {
        body.insert("chat_template_kwargs".to_owned(), variables.into());
    }
}

/// Adds the parameters that the client or an option of this server sets.
fn add_sampling(
    app: &App,
    upstream: &UpstreamModel,
    generation: &Generation,
    body: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    let set = validate::sampling_options(generation)?.or(app.options.sampling);
    let number = |value: Option<f32>| value.map(|value| json!(shortest_decimal(value)));
    let fields = [
        ("temperature", number(set.temperature)),
        ("top_p", number(set.top_p)),
        ("top_k", set.top_k.map(Value::from)),
        ("min_p", number(set.min_p)),
        ("presence_penalty", number(set.presence_penalty)),
        ("frequency_penalty", number(set.frequency_penalty)),
        (upstream.endpoint.repeat_penalty_name(), number(set.repeat_penalty)),
        // This server's own seed would give all clients the same replies.
        ("seed", generation.seed.map(Value::from)),
        ("logit_bias", generation.logit_bias.as_ref().map(|bias| json!(bias))),
        ("ignore_eos", generation.ignore_eos.map(Value::from)),
    ];
    body.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    Ok(())
}
