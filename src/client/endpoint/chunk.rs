//! Parses the events of a streamed chat completion. Engines differ in the names of some fields and omit others, so that
//! nothing is required. It does no I/O.

use super::errors::{EndpointError, EndpointFault, truncate};
use serde_json::Value;
use std::time::Duration;

/// Maximum token count accepted from an endpoint, so that sums do not overflow.
const MAX_COUNT: u64 = 1 << 40;
/// Maximum milliseconds accepted from an endpoint: 30 years.
const MAX_MS: f64 = 1e12;

/// An event of a reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplyChunk {
    pub choices: Vec<ChoiceDelta>,
    /// The counts of the whole reply, in one of the last events.
    pub usage: Option<TokenCounts>,
    /// Times of prefill and decode, as llama.cpp and kimi report them.
    pub times: Option<(Duration, Duration)>,
    /// Progress of the prefill, as llama.cpp and kimi report it.
    pub progress: Option<PrefillCounts>,
}

/// The new part of one of the replies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChoiceDelta {
    pub index: usize,
    pub reasoning: String,
    pub text: String,
    pub calls: Vec<CallDelta>,
    /// Objects with `token`, `logprob`, `bytes` and `top_logprobs`.
    pub logprobs: Vec<Value>,
    /// Present in the last part.
    pub finish_reason: Option<String>,
    /// The stop string that ended the reply: `stop_reason` of vLLM and kimi, `matched_stop` of SGLang.
    pub stop: Option<String>,
}

/// The new part of a tool call; its id and name are in the first part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallDelta {
    pub index: usize,
    pub id: String,
    pub name: String,
    /// More arguments, as JSON text.
    pub arguments: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    pub prompt: usize,
    /// Tokens of the prompt that were cached.
    pub cached: usize,
    pub completion: usize,
    /// Tokens of the reasoning, if reported.
    pub reasoning: Option<usize>,
}

/// Prompt tokens restored from a cache, processed so far, and in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefillCounts {
    pub cached: usize,
    pub done: usize,
    pub total: usize,
}

impl ReplyChunk {
    /// Parses the data of an event.
    ///
    /// # Errors
    /// Data that is not JSON, and events that report an error.
    pub fn parse(data: &str, base: &str) -> Result<Self, EndpointError> {
        let event: Value = serde_json::from_str(data).map_err(|e| {
            let message = format!("{base}: expected a JSON event, found {}: {e}", truncate(data));
            EndpointError::new(EndpointFault::Response, message)
        })?;
        if let Some(error) = EndpointError::of_event(base, &event) {
            return Err(error);
        }
        let choices = event["choices"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(ReplyChunk {
            choices: choices.iter().map(ChoiceDelta::new).collect(),
            usage: counts(&event),
            times: times(&event["timings"]),
            progress: progress(&event["prompt_progress"]),
        })
    }
}

impl ChoiceDelta {
    fn new(choice: &Value) -> Self {
        let delta = &choice["delta"];
        let reasoning = [&delta["reasoning_content"], &delta["reasoning"]].map(text);
        let calls = delta["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
        let logprobs = choice.pointer("/logprobs/content").and_then(Value::as_array);
        let stop = [&choice["stop_reason"], &choice["matched_stop"]];
        ChoiceDelta {
            index: number(&choice["index"]).unwrap_or(0),
            reasoning: reasoning.into_iter().find(|text| !text.is_empty()).unwrap_or_default(),
            text: text(&delta["content"]),
            calls: calls.iter().map(CallDelta::new).collect(),
            logprobs: logprobs.cloned().unwrap_or_default(),
            finish_reason: choice["finish_reason"].as_str().map(str::to_owned),
            stop: stop.iter().find_map(|stop| stop.as_str()).map(str::to_owned),
        }
    }
}

impl CallDelta {
    fn new(call: &Value) -> Self {
        let function = &call["function"];
        let arguments = match &function["arguments"] {
            object @ Value::Object(_) => object.to_string(),
            other => text(other),
        };
        CallDelta {
            index: number(&call["index"]).unwrap_or(0),
            id: text(&call["id"]),
            name: text(&function["name"]),
            arguments,
        }
    }
}

/// Returns a string, or the texts of an array of parts.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

fn number(value: &Value) -> Option<usize> {
    value.as_u64().filter(|n| *n <= MAX_COUNT).map(|n| n as usize)
}

fn counts(event: &Value) -> Option<TokenCounts> {
    let usage = event.get("usage").filter(|usage| usage.is_object())?;
    let cached = [&usage["prompt_tokens_details"]["cached_tokens"], &event["timings"]["cache_n"]];
    Some(TokenCounts {
        prompt: number(&usage["prompt_tokens"]).unwrap_or(0),
        cached: cached.into_iter().find_map(number).unwrap_or(0),
        completion: number(&usage["completion_tokens"]).unwrap_or(0),
        reasoning: number(&usage["completion_tokens_details"]["reasoning_tokens"]),
    })
}

fn times(timings: &Value) -> Option<(Duration, Duration)> {
    let time = |name: &str| {
        let ms = timings[name].as_f64().filter(|ms| (0.0..MAX_MS).contains(ms))?;
        Some(Duration::from_secs_f64(ms / 1e3))
    };
    Some((time("prompt_ms")?, time("predicted_ms")?))
}

fn progress(progress: &Value) -> Option<PrefillCounts> {
    let count = |name: &str| number(&progress[name]);
    Some(PrefillCounts { cached: count("cache")?, done: count("processed")?, total: count("total")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &str) -> ReplyChunk {
        ReplyChunk::parse(data, "http://x/v1").unwrap()
    }

    #[test]
    fn fields_of_other_engines_are_found() {
        let chunk = parse(
            r#"{"choices":[{"index":1,"delta":{"reasoning":"hm","content":null},"finish_reason":"stop","matched_stop":"END"}],
            "usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":null},
            "timings":{"cache_n":4,"prompt_ms":1500,"predicted_ms":2.5},"prompt_progress":{"total":9,"cache":4,"processed":6}}"#,
        );
        let choice = &chunk.choices[0];
        assert_eq!((choice.index, &*choice.reasoning, &*choice.text), (1, "hm", ""));
        assert_eq!((choice.finish_reason.as_deref(), choice.stop.as_deref()), (Some("stop"), Some("END")));
        assert_eq!(chunk.usage, Some(TokenCounts { prompt: 9, cached: 4, completion: 2, reasoning: None }));
        assert_eq!(chunk.times, Some((Duration::from_millis(1500), Duration::from_micros(2500))));
        assert_eq!(chunk.progress, Some(PrefillCounts { cached: 4, done: 6, total: 9 }));
        let parts = parse(r#"{"choices":[{"delta":{"content":[{"type":"text","text":"a"},{"text":"b"}]}}]}"#);
        assert_eq!(parts.choices[0].text, "ab");
    }

    #[test]
    fn calls_come_in_parts_or_whole() {
        let calls = |data: &str| parse(data).choices.remove(0).calls;
        let first = calls(
            r#"{"choices":[{"delta":{"tool_calls":[{"index":2,"id":"c","function":{"name":"f","arguments":""}}]}}]}"#,
        );
        assert_eq!(
            first,
            [CallDelta { index: 2, id: "c".into(), name: "f".into(), arguments: String::new() }]
        );
        let whole = calls(
            r#"{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}}]}"#,
        );
        assert_eq!(whole[0].arguments, r#"{"a":1}"#);
    }

    #[test]
    fn unexpected_values_are_left_out() {
        for data in ["{}", "[]", "7", "\"x\"", r#"{"choices":7}"#, r#"{"choices":[7,null,[]],"usage":-1}"#] {
            let chunk = parse(data);
            assert!(chunk.choices.iter().all(|choice| *choice == ChoiceDelta::default()), "{data}");
            assert_eq!((chunk.usage, chunk.times, chunk.progress), (None, None, None), "{data}");
        }
        let e = ReplyChunk::parse(r#"{"error":{"message":"too long","code":400}}"#, "b").unwrap_err();
        assert_eq!(e, EndpointError::new(EndpointFault::Status(400), "b: too long".into()));
        let e = ReplyChunk::parse(r#"{"error":"gone"}"#, "b").unwrap_err();
        assert_eq!(e, EndpointError::new(EndpointFault::Response, "b: gone".into()));
    }
}
