//! From what a request says to what the engine is asked: every value is checked here, and what cannot be done is
//! refused by name.

use super::api::generation::Generation;
use super::api::schemas::{LONGEST_STOP, MOST_STOPS};
use super::app::{App, Ask, Ready};
use super::body::Body;
use super::errors::ApiError;
use crate::generation::decoder::GenerationParams;
use crate::generation::grammar::Compiled;
use crate::generation::sample::Sampling;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Replies to one prompt at most.
const MOST_REPLIES: usize = 16;

/// Fields that would change what is done, and values of them that change nothing; null is one of them.
const REFUSED: [(&str, &[&str], &str); 12] = [
    ("modalities", &["[\"text\"]"], "only text comes out"),
    ("audio", &[], "only text comes out"),
    ("functions", &[], "say it with tools"),
    ("function_call", &["\"none\""], "say it with tool_choice"),
    ("web_search_options", &[], "nothing is searched for here"),
    ("store", &["false"], "answers are not stored"),
    ("background", &["false"], "answers are not stored"),
    ("reasoning_effort", &["\"none\""], "the model reasons as its template says; see chat_template_kwargs"),
    ("verbosity", &["\"medium\""], "the model is as brief as it is asked to be in words"),
    ("truncation", &["\"disabled\""], "a conversation that does not fit is refused, not cut"),
    ("previous_response_id", &[], "answers are not stored: send the conversation"),
    ("conversation", &[], "conversations are not stored: send the messages"),
];

/// Refuses what is asked for and would not be done.
pub fn refuse_undone(body: &Body) -> Result<(), ApiError> {
    for (field, harmless, why) in REFUSED {
        let asked = body.field(field).map(ToString::to_string);
        if asked.is_some_and(|value| !harmless.contains(&value.as_str())) {
            return Err(ApiError::unsupported(field, why));
        }
    }
    Ok(())
}

/// The replies that `how` asks for to this prompt.
pub fn ask(
    app: &App,
    ready: &Ready,
    prompt: Vec<u32>,
    how: &Generation,
    grammar: Option<&Arc<Compiled>>,
) -> Result<Ask, ApiError> {
    ready.engine.check(&prompt).map_err(|e| match e {
        crate::runtime::session::Error::Context { .. } => ApiError::too_long(e),
        crate::runtime::session::Error::Changed(e) => ApiError::internal(e),
        e => ApiError::invalid("prompt", e),
    })?;
    let n = how.n.unwrap_or(1);
    within("n", n, 1, MOST_REPLIES)?;
    let ignore_end = how.ignore_eos.unwrap_or(false);
    if ignore_end && grammar.is_some() {
        return Err(ApiError::unsupported(
            "ignore_eos",
            "what has to match a grammar or a tool ends where that ends",
        ));
    }
    let sampling = sampling(app, how)?;
    let bias: Arc<[(u32, f32)]> = bias(how.logit_bias.as_ref(), ready.engine.vocab())?.into();
    let stops = stops(how)?;
    let max_tokens = max_tokens(app, ready, prompt.len() as u64, how)?;
    let rules = (0..n as u64).map(|i| GenerationParams {
        max_tokens,
        // Replies to the same prompt are to differ.
        sampling: Sampling {
            seed: sampling.seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            ..sampling
        },
        bias: bias.clone(),
        constraint: grammar.map(Compiled::constraint),
        stops: stops.clone(),
        ignore_end,
    });
    let held = grammar.map_or(0, |grammar| grammar.bytes());
    Ok(Ask { rules: rules.collect(), prompt: prompt.into(), marks: Vec::new(), logprobs: None, held })
}

/// A value that is to be from `least` to `most`.
pub fn within<T: PartialOrd + Copy + std::fmt::Display>(
    param: &str,
    value: T,
    least: T,
    most: T,
) -> Result<T, ApiError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(param, format!("expected {least} to {most}, found {value}")))
}

fn sampling(app: &App, how: &Generation) -> Result<Sampling, ApiError> {
    let mut s = app.options.sampling;
    let number = |param: &str, value: Option<f32>, least: f32, most: f32, into: &mut f32| {
        if let Some(value) = value {
            *into = within(param, value, least, most)?;
        }
        Ok(())
    };
    number("temperature", how.temperature, 0.0, 2.0, &mut s.temperature)?;
    number("top_p", how.top_p, 0.0, 1.0, &mut s.top_p)?;
    number("min_p", how.min_p, 0.0, 1.0, &mut s.min_p)?;
    number("presence_penalty", how.presence_penalty, -2.0, 2.0, &mut s.presence_penalty)?;
    number("frequency_penalty", how.frequency_penalty, -2.0, 2.0, &mut s.frequency_penalty)?;
    number("repeat_penalty", how.repeat_penalty, 1.0, 100.0, &mut s.repeat_penalty)?;
    s.top_k = how.top_k.map_or(s.top_k, |k| k as usize);
    s.seed = how.seed.map_or_else(|| app.next_seed(), |seed| seed as u64);
    Ok(s)
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

fn stops(how: &Generation) -> Result<Vec<String>, ApiError> {
    let stops = how.stop.clone().map(|s| s.into_list()).unwrap_or_default();
    if stops.len() > MOST_STOPS {
        let why = format!("expected at most {MOST_STOPS} strings, found {}", stops.len());
        return Err(ApiError::invalid("stop", why));
    }
    if stops.iter().any(|s| s.is_empty() || s.len() > LONGEST_STOP) {
        return Err(ApiError::invalid("stop", format!("expected strings of 1 to {LONGEST_STOP} bytes")));
    }
    Ok(stops)
}

/// Tokens of the reply: as asked if there is memory for them; else as many as there is.
fn max_tokens(app: &App, ready: &Ready, prompt: u64, how: &Generation) -> Result<usize, ApiError> {
    let asked = how.max_completion_tokens.or(how.max_tokens);
    let wanted = asked.unwrap_or(app.options.max_tokens);
    if wanted == 0 {
        return Err(ApiError::invalid("max_tokens", "expected at least 1, found 0"));
    }
    let (limit, bytes) = (ready.limits.bytes, ready.engine.state_bytes());
    let fits =
        |reply: usize| bytes.of(prompt.saturating_add(reply as u64).min(ready.engine.context())) <= limit;
    if fits(wanted) {
        return Ok(wanted);
    }
    if asked.is_none() && fits(1) {
        let most = (1..=wanted.ilog2()).map(|bit| 1 << bit).take_while(|n| fits(*n)).last();
        return Ok(most.unwrap_or(1));
    }
    let need = bytes.of(prompt.saturating_add(wanted as u64)) >> 20;
    let why = format!("prompt and reply need {need} MiB of state, the server has {} (--memory)", limit >> 20);
    Err(ApiError::too_long(why))
}
