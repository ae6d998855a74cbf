//! A [`ChatModel`] at an OpenAI-style endpoint, which receives the whole conversation with each request.

use super::chat_model::{ChatModel, ModelEvent, ModelInfo, PromptMessage, ReplyOutcome, ReplyRequest};
use super::endpoint::{Endpoint, EndpointArgs, ReplySummary};
use crate::generation::draft::DraftCounts;
use crate::generation::event::Stats;
use crate::generation::generate::FinishReason;
use crate::generation::markup::{Markup, ReplyEvent, ReplyParser};
use crate::prefix_cache::PrefixSource;
use crate::runtime::sampling_options::SamplingOptions;
use crate::runtime::session::Prefill;
use anyhow::Result;
use models::template::Message;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

pub struct RemoteModel {
    endpoint: Endpoint,
    context_limit: Option<u64>,
}

impl RemoteModel {
    /// Connects to the endpoint at `url` for its model `name`, or the only one that it lists.
    ///
    /// # Errors
    /// An unreachable endpoint, one that lists models without this one, and no name where it lists several or none.
    pub fn connect(url: &str, name: Option<&Path>, args: &EndpointArgs) -> Result<Self> {
        let mut endpoint = Endpoint::new(url, "", args.timeout)?;
        let context_limit = endpoint.select(name.map(Path::to_string_lossy).as_deref())?.context;
        Ok(RemoteModel { endpoint, context_limit })
    }
}

/// The messages for the endpoint. Reasoning in earlier replies is omitted, as chat templates omit it.
fn messages(messages: &[PromptMessage]) -> Vec<Message> {
    let message = |m: &PromptMessage| match m.role {
        "assistant" => Message::new(m.role, m.text.trim_start()),
        role => Message::new(role, &m.text),
    };
    messages.iter().map(message).collect()
}

impl ChatModel for RemoteModel {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: self.endpoint.model.clone(),
            runs_on: self.endpoint.base().to_owned(),
            context_limit: self.context_limit,
            sampling: SamplingOptions::default(),
        }
    }

    fn reply(
        &mut self,
        request: ReplyRequest<'_>,
        on_event: &mut dyn FnMut(ModelEvent) -> ControlFlow<()>,
    ) -> Result<ReplyOutcome> {
        let messages = messages(request.messages);
        let start = Instant::now();
        let (mut first, mut tokens, mut rate) = (None, 0, 0.0);
        // Endpoints without a parser of their own send reasoning as text with markup.
        let mut parser = ReplyParser::new(Markup::Kimi, Vec::new(), true, false);
        let on = &mut |event: Option<ReplyEvent>| {
            let Some(event) = event else { return on_event(ModelEvent::Waiting) };
            tokens += 1;
            let since: Instant = *first.get_or_insert_with(Instant::now);
            rate = (tokens - 1) as f64 / since.elapsed().as_secs_f64().max(1e-9);
            let events = if let ReplyEvent::Text(text) = event { parser.push(&text) } else { vec![event] };
            if events.is_empty() {
                return on_event(ModelEvent::Waiting);
            }
            events.into_iter().try_for_each(|event| on_event(ModelEvent::Reply { event, tokens, rate }))
        };
        let summary = self.endpoint.chat(&messages, &request.given, request.max_tokens, on)?;
        for event in parser.finish() {
            let _ = on_event(ModelEvent::Reply { event, tokens, rate });
        }
        Ok(ReplyOutcome { ids: Vec::new(), stats: stats(&summary, start, first, tokens) })
    }
}

/// The statistics of a reply of which `tokens` parts arrived, the first at `first`.
fn stats(summary: &ReplySummary, start: Instant, first: Option<Instant>, tokens: usize) -> Stats {
    let first = first.unwrap_or_else(Instant::now);
    let prefill = Prefill {
        reused: summary.cached,
        source: (summary.cached > 0).then_some(PrefixSource::Live),
        computed: summary.prompt.saturating_sub(summary.cached),
        stopped: summary.stopped && tokens == 0,
    };
    let ended = match (summary.stopped, summary.cut) {
        (true, _) => FinishReason::Cancelled,
        (_, true) => FinishReason::Length,
        _ => FinishReason::EndToken,
    };
    let (prefill_time, decode_time) = (first.duration_since(start), first.elapsed());
    let generated = summary.completion.max(tokens);
    Stats {
        prefill,
        prefill_time,
        generated,
        decode_time,
        draft: DraftCounts::default(),
        expert_cache: None,
        ended,
    }
}
