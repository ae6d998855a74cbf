//! `/v1/files/{file_id}/read`: prefills a file, so that the first question about it prefills its own tokens only, and reports
//! the progress as server-sent events. A closed connection stops the prefill; what was prefilled stays cached if it is worth
//! a snapshot.

use super::routes::{PathId, named};
use super::set::FileSource;
use crate::document_qa::eta::PrefillEta;
use crate::runtime::handle::EngineHandle;
use crate::serve::api::files::FileReadEvent;
use crate::serve::api::generation::Generation;
use crate::serve::api::schemas::Refusals;
use crate::serve::app::App;
use crate::serve::errors::ApiError;
use crate::serve::reply::ParsedEvent;
use crate::serve::sse::{Outbox, StreamEncoder, respond};
use crate::serve::submit::{EngineRequest, submit};
use crate::serve::tenant::Tenant;
use crate::serve::validate;
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use models::hybrid::mla::MlaPath;
use std::sync::Arc;
use std::time::Instant;

/// Prefills a file ahead of its first question
#[utoipa::path(
    post,
    path = "/v1/files/{file_id}/read",
    params(("file_id" = String, Path, description = "Id of the file")),
    responses(
        (status = 200, description = "Events with the progress, JSON of type file.reading; the last one is file.ready or error",
            body = crate::serve::api::schemas::ServerSentEvent, content_type = "text/event-stream"),
        Refusals,
    )
)]
pub async fn read(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    id: PathId,
) -> Result<Response, ApiError> {
    let id = named(id)?;
    let (shared, file_id) = (app.clone(), id.clone());
    let request = app.intake.run(0, move |_| prepare(&shared, tenant, &file_id)).await??;
    let engine = &app.ready()?.engine;
    let encoder = ReadEncoder::new(id, request.prompt.len(), engine);
    Ok(respond(submit(&app, vec![request], tenant.id)?, encoder))
}

/// Builds the request for the tokens that all prompts about a file begin with. Its reply is one token, which is not used.
fn prepare(app: &App, tenant: Tenant, id: &str) -> Result<EngineRequest, ApiError> {
    let record = app.files.find(tenant.owner, id)?;
    let ready = app.ready()?;
    let set = app.file_sets.get(&app.files, tenant.owner, &[FileSource::Stored(record)])?;
    let tokens = set.prefix(&app.files, &ready.engine)?.tokens.clone();
    let end = tokens.len();
    let generation = Generation { max_tokens: Some(1), temperature: Some(0.0), ..Generation::default() };
    let request = validate::engine_request(app, ready, tokens, &generation, None)?;
    Ok(EngineRequest { snapshot_lengths: vec![end], question: Some(end), ..request })
}

/// Encodes the progress of a prefill.
struct ReadEncoder {
    file_id: String,
    tokens: usize,
    start: Instant,
    /// Tokens in the state at the last event, and its time.
    last: Option<(usize, Instant)>,
    eta: PrefillEta,
    reused: usize,
}

impl ReadEncoder {
    fn new(file_id: String, tokens: usize, engine: &EngineHandle) -> Self {
        let step = engine.max_step_tokens(MlaPath::Materialized);
        let eta = PrefillEta::new(&engine.config, &engine.file.tensors, Some(step));
        ReadEncoder { file_id, tokens, start: Instant::now(), last: None, eta, reused: 0 }
    }

    /// Returns the event of a prefill that has `done` tokens in its state.
    fn reading(&mut self, done: usize) -> FileReadEvent {
        let now = Instant::now();
        let (before, since) = self.last.unwrap_or((self.reused, self.start));
        let took = now - since;
        if done > before {
            self.eta.record(before, done, took);
        }
        self.last = Some((done, now));
        let measured = done > self.reused;
        let left = measured.then(|| self.eta.estimate(done, self.tokens)).flatten();
        FileReadEvent::Reading {
            file_id: self.file_id.clone(),
            tokens_read: done,
            tokens: self.tokens,
            tokens_per_second: (done - before.min(done)) as f64 / took.as_secs_f64().max(1e-9),
            seconds_left: left.map(|left| left.as_secs_f64()),
        }
    }
}

impl StreamEncoder for ReadEncoder {
    fn begin(&mut self, out: &mut Outbox) {
        out.comment();
    }

    fn on_event(&mut self, _: usize, event: ParsedEvent, out: &mut Outbox) {
        match event {
            ParsedEvent::Progress { reused, done, .. } => {
                self.reused = reused;
                out.data(&self.reading(done));
            }
            ParsedEvent::Reply(_) => {}
            ParsedEvent::Finished { stats, .. } => self.reused = stats.prefill.reused,
        }
    }

    fn end(&mut self, out: &mut Outbox) {
        let seconds = self.start.elapsed().as_secs_f64();
        let (file_id, tokens, reused) = (self.file_id.clone(), self.tokens, self.reused);
        out.data(&FileReadEvent::Ready { file_id, tokens, seconds, reused });
    }

    fn fail(&mut self, error: &ApiError, out: &mut Outbox) {
        let (code, message) = (error.detail.code, error.detail.message.clone());
        out.data(&FileReadEvent::Failed { code, message });
    }
}
