//! Validates generation parameters and builds requests for the scheduler.

use super::api::chat::{ChatMessage, ChatRequest};
use super::api::generation::Generation;
use super::api::schemas::{MAX_STOP_BYTES, MAX_STOPS};
use super::app::{App, Ready};
use super::errors::ApiError;
use super::submit::EngineRequest;
use crate::generation::decoder::GenerationParams;
use crate::generation::grammar::Compiled;
use crate::generation::markup::ReplyParser;
use crate::generation::sample::Sampling;
use crate::prefix_cache::served::PromptOutline;
use crate::runtime::sampling_options::SamplingOptions;
use crate::scheduler::StateBytes;
use models::template::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Maximum number of replies per prompt.
pub const MAX_REPLIES: usize = 16;

/// Builds the scheduler's request for a prompt.
pub fn engine_request(
    app: &App,
    ready: &Ready,
    prompt: Vec<u32>,
    generation: &Generation,
    grammar: Option<&Arc<Compiled>>,
) -> Result<EngineRequest, ApiError> {
    ready.engine.check(&prompt).map_err(|e| match e {
        crate::runtime::session::Error::Context { .. } => ApiError::too_long(e),
        crate::runtime::session::Error::Changed(e) => ApiError::internal(e),
        e => ApiError::invalid("prompt", e),
    })?;
    let n = generation.n.unwrap_or(1);
    within("n", n, 1, MAX_REPLIES)?;
    let ignore_end = generation.ignore_eos.unwrap_or(false);
    if ignore_end && grammar.is_some() {
        return Err(ApiError::unsupported(
            "ignore_eos",
            "not supported with a grammar or a required tool call, which determine the end",
        ));
    }
    let sampling = sampling(app, ready, generation)?;
    let bias: Arc<[(u32, f32)]> = bias(generation.logit_bias.as_ref(), ready.engine.config.vocab)?.into();
    let stops = stops(generation)?;
    let max_tokens = max_tokens(app, ready, prompt.len() as u64, generation)?;
    let reply_params = (0..n as u64).map(|i| GenerationParams {
        max_tokens,
        // Each reply to a prompt has its own seed.
        sampling: Sampling {
            seed: sampling.seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            ..sampling
        },
        bias: bias.clone(),
        constraint: grammar.map(Compiled::constraint),
        stops: stops.clone(),
        ignore_end,
    });
    let retained_bytes = grammar.map_or(0, |grammar| grammar.bytes());
    Ok(EngineRequest {
        reply_params: reply_params.collect(),
        prompt: prompt.into(),
        snapshot_lengths: Vec::new(),
        question: None,
        outline: PromptOutline::default(),
        parser: ReplyParser::default(),
        logprobs: None,
        retained_bytes,
    })
}

/// Checks that a value is from `min` to `max`.
pub fn within<T: PartialOrd + Copy + std::fmt::Display>(
    param: &str,
    value: T,
    min: T,
    max: T,
) -> Result<T, ApiError> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(param, format!("expected {min} to {max}, found {value}")))
}

/// Returns the sampling parameters that a request sets.
pub fn sampling_options(generation: &Generation) -> Result<SamplingOptions, ApiError> {
    let number = |param: &str, value: Option<f32>, min: f32, max: f32| {
        value.map(|value| within(param, value, min, max)).transpose()
    };
    Ok(SamplingOptions {
        temperature: number("temperature", generation.temperature, 0.0, 2.0)?,
        top_p: number("top_p", generation.top_p, 0.0, 1.0)?,
        min_p: number("min_p", generation.min_p, 0.0, 1.0)?,
        presence_penalty: number("presence_penalty", generation.presence_penalty, -2.0, 2.0)?,
        frequency_penalty: number("frequency_penalty", generation.frequency_penalty, -2.0, 2.0)?,
        repeat_penalty: number("repeat_penalty", generation.repeat_penalty, 1.0, 100.0)?,
        repeat_last_n: None,
        top_k: generation.top_k.map(|k| k as usize),
        seed: generation.seed.map(|seed| seed as u64),
    })
}

fn sampling(app: &App, ready: &Ready, generation: &Generation) -> Result<Sampling, ApiError> {
    let (set, usual) = (sampling_options(generation)?, ready.sampling);
    Ok(Sampling {
        temperature: set.temperature.unwrap_or(usual.temperature),
        top_p: set.top_p.unwrap_or(usual.top_p),
        min_p: set.min_p.unwrap_or(usual.min_p),
        presence_penalty: set.presence_penalty.unwrap_or(usual.presence_penalty),
        frequency_penalty: set.frequency_penalty.unwrap_or(usual.frequency_penalty),
        repeat_penalty: set.repeat_penalty.unwrap_or(usual.repeat_penalty),
        repeat_last_n: usual.repeat_last_n,
        top_k: set.top_k.unwrap_or(usual.top_k),
        seed: set.seed.unwrap_or_else(|| app.next_seed(ready)),
    })
}

/// Returns the number of top log-probabilities, or None if no log-probabilities are requested.
pub fn top_logprobs(request: &ChatRequest) -> Result<Option<usize>, ApiError> {
    let top = request.top_logprobs;
    match (request.logprobs.unwrap_or(false), top) {
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "expected logprobs to be true")),
        (false, None) => Ok(None),
        (true, top) => within("top_logprobs", top.unwrap_or(0), 0, 20).map(Some),
    }
}

/// Converts the messages to the form that templates take.
pub fn messages(messages: Vec<ChatMessage>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "expected at least one, found none"));
    }
    let message = |(i, m): (usize, ChatMessage)| {
        m.into_template().map_err(|(place, why)| ApiError::invalid(&format!("messages[{i}].{place}"), why))
    };
    messages.into_iter().enumerate().map(message).collect()
}

fn bias(bias: Option<&BTreeMap<String, f32>>, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let pair = |(id, value): (&String, &f32)| {
        let param = format!("logit_bias.{id}");
        let found = || ApiError::invalid(&param, format!("expected a token id below {vocab}"));
        let id = id.parse().ok().filter(|id| (*id as usize) < vocab).ok_or_else(found)?;
        Ok((id, within(&param, *value, -100.0, 100.0)?))
    };
    bias.into_iter().flatten().map(pair).collect()
}

/// Returns the stop strings of a request.
pub fn stops(generation: &Generation) -> Result<Vec<String>, ApiError> {
    let stops = generation.stop.clone().map(|s| s.into_list()).unwrap_or_default();
    if stops.len() > MAX_STOPS {
        let why = format!("expected at most {MAX_STOPS} strings, found {}", stops.len());
        return Err(ApiError::invalid("stop", why));
    }
    if stops.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid("stop", format!("expected strings of 1 to {MAX_STOP_BYTES} bytes")));
    }
    Ok(stops)
}

/// Returns the maximum tokens of the reply. A requested value must fit the state memory, unless the request allows to reduce
/// it; the default is reduced to fit.
fn max_tokens(app: &App, ready: &Ready, prompt: u64, generation: &Generation) -> Result<usize, ApiError> {
    let requested = generation.max_completion_tokens.or(generation.max_tokens);
    let wanted = requested.unwrap_or(app.options.max_tokens);
    if wanted == 0 {
        return Err(ApiError::invalid("max_tokens", "expected at least 1, found 0"));
    }
    let (limit, bytes) = (ready.limits.bytes, StateBytes::new(&ready.engine));
    let fits =
        |reply: usize| bytes.of(prompt.saturating_add(reply as u64).min(ready.engine.context)) <= limit;
    if fits(wanted) {
        return Ok(wanted);
    }
    let may_reduce = requested.is_none_or(|limit| limit == usize::MAX || generation.limit_to_memory);
    if may_reduce && fits(1) {
        let max = (1..=wanted.ilog2()).map(|bit| 1 << bit).take_while(|n| fits(*n)).last();
        return Ok(max.unwrap_or(1));
    }
    let need = bytes.of(prompt.saturating_add(wanted as u64)) >> 20;
    let why = format!(
        "prompt and reply need {need} MiB of state memory, the limit is {} MiB (--state-memory)",
        limit >> 20
    );
    Err(ApiError::too_long(why))
}
