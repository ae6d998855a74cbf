//! Generates a reply on one session: prefills the prompt, then decodes token by token and streams the text. Next:
//! [`crate::runtime::session`] (runs the model), [`super::decoder`] (samples, and decides when the reply ends), then
//! [`super::draft`] (guesses the next tokens).

pub use crate::generation::decoder::FinishReason;
pub use crate::generation::event::{EngineEvent, Stats};

use crate::generation::decoder::{Choice, Decoder, GenerationParams};
use crate::generation::draft::Drafter;
use crate::generation::sample::Sampling;
use crate::runtime::handle::SessionHandle;
use crate::runtime::session::{Error, Prefill, Session};
use kernels::backend::Backend;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Time that a step waits for what the reply's constraint expects next.
const LIKELY_WAIT: Duration = Duration::from_millis(2);

/// A prompt and the parameters of its reply.
pub struct Request<'a> {
    /// The whole prompt; the cached prefix is not computed again.
    pub prompt: &'a [u32],
    pub params: GenerationParams,
}

impl<'a> Request<'a> {
    /// Creates a request for at most 1,024 tokens without stop strings or constraint.
    pub fn new(prompt: &'a [u32], sampling: Sampling) -> Self {
        Request { prompt, params: GenerationParams::new(1024, sampling) }
    }
}

/// Generates a reply to `request.prompt`. Calls `on` with each event, which may stop the reply. The session then
/// contains the prompt and the reply without its last token, and a snapshot of it is cached.
pub fn generate(
    session: &mut SessionHandle<'_>,
    request: Request<'_>,
    on: &mut dyn FnMut(EngineEvent) -> ControlFlow<()>,
) -> Result<Stats, Error> {
    match session {
        SessionHandle::Cpu(session) => generate_on(session, request, on),
        SessionHandle::Cuda(session) => generate_on(session, request, on),
    }
}

/// Does [`generate`] on a session of one backend.
pub fn generate_on<B: Backend>(
    session: &mut Session<'_, B>,
    request: Request<'_>,
    on: &mut dyn FnMut(EngineEvent) -> ControlFlow<()>,
) -> Result<Stats, Error> {
    let before = session.engine().backend.expert_cache_stats().unwrap_or_default();
    let start = Instant::now();
    let Prefill { reused, source, .. } = session.restore_prefix(request.prompt)?;
    let mut progress = |done, total| on(EngineEvent::Prefill { reused, done, total });
    let prefill = Prefill { reused, source, ..session.prefill(request.prompt, &mut progress)? };
    let prefill_time = start.elapsed();
    let start = Instant::now();
    let mut drafter = Drafter::new(session.engine(), request.prompt);
    let (generated, ended) = if prefill.stopped {
        (0, FinishReason::Cancelled)
    } else {
        reply(session, request, &mut drafter, on)?
    };
    let decode_time = start.elapsed();
    if let FinishReason::NotFinite(position) = ended {
        return Err(Error::NotFinite { position });
    }
    session.snapshot();
    let expert_cache = session.engine().backend.expert_cache_stats();
    let expert_cache = expert_cache.map(|now| now - before).filter(|expert_cache| expert_cache.lookups > 0);
    let draft = drafter.counts;
    let stats = Stats { prefill, prefill_time, generated, decode_time, draft, expert_cache, ended };
    let _ = on(EngineEvent::Finished(stats.clone())); // nothing is left to stop
    Ok(stats)
}

fn reply<B: Backend>(
    session: &mut Session<'_, B>,
    request: Request<'_>,
    drafter: &mut Drafter,
    on: &mut dyn FnMut(EngineEvent) -> ControlFlow<()>,
) -> Result<(usize, FinishReason), Error> {
    let mut reply = Decoder::new(session.engine(), request.prompt.into(), request.params);
    let mut step: Option<(usize, Instant)> = None;
    loop {
        let Choice { token, text, ended } = reply.next_token(&session.logits_row().ok_or(Error::Empty)?);
        if let Some((tokens, start)) = step.take() {
            drafter.record(tokens, start.elapsed()); // a device finishes the step when a token is sampled
        }
        let mut flow = ControlFlow::Continue(());
        if token.is_some() || !text.is_empty() {
            flow = on(EngineEvent::Token { token, text, logprobs: None });
        }
        match (token, ended) {
            (_, Some(ended)) => return Ok((reply.generated(), ended)),
            (Some(token), None) if flow.is_continue() => {
                drafter.push(token);
                drafter.count_accepted(session.has_drafted(token));
                let most = reply.remaining().saturating_sub(1); // no logits are computed after the last token
                session.decode_with(token, |predict| {
                    let draft = drafter.draft(most, 0, || reply.likely(LIKELY_WAIT), predict);
                    step = Some((1 + draft.len(), Instant::now()));
                    draft
                })?;
                if !drafter.predicts() {
                    session.unfollow();
                }
            }
            _ => break,
        }
    }
    let text = reply.rest();
    if !text.is_empty() {
        let _ = on(EngineEvent::Token { token: None, text, logprobs: None });
    }
    Ok((reply.generated(), FinishReason::Cancelled))
}
