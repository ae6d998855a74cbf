//! An upstream server: another engine behind an OpenAI-style API, to which chat requests of all interfaces are forwarded with
//! their messages and tools. Next: [`reply`] (reads replies) and [`request`] (builds requests).
//!
//! A request takes a thread of the blocking [`Endpoint`] while it runs, `--parallel` at most; more wait without one.

mod args;
mod reply;
mod request;

use super::errors::ApiError;
use super::reservation::Places;
use crate::client::endpoint::Endpoint;
use crate::client::endpoint::stream::StreamItem;
use anyhow::Result;
use reply::ThreadMessage;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

pub use args::UpstreamArgs;
pub use reply::{UpstreamReply, UpstreamRequest};
pub use request::prepare;

/// Events buffered ahead of a client. A thread that is ahead waits, and so does the upstream server.
const BUFFERED_EVENTS: usize = 64;
/// Time for the list of models in a check of the upstream server, and the time for which its result holds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// A model of an upstream server.
pub struct UpstreamModel {
    endpoint: Endpoint,
    /// Context length in tokens, if the server reports it.
    pub context: Option<u64>,
    /// Maximum number of requests at the same time.
    pub parallel: usize,
    permits: Arc<Semaphore>,
    /// Time without data after which a request fails.
    silence: Duration,
    /// The result of the last check and its time.
    reachable: Mutex<Option<(Instant, bool)>>,
}

impl UpstreamModel {
    /// Selects the model of an upstream server that `args` name, or the only one. None if they name no server.
    ///
    /// # Errors
    /// An invalid URL, a server that does not answer, and one that lacks the model.
    pub fn connect(args: &UpstreamArgs, parallel: usize) -> Result<Option<Self>> {
        let Some(mut endpoint) = args.endpoint()? else { return Ok(None) };
        let model = endpoint.select(args.upstream_model.as_deref())?;
        let parallel = parallel.min(Semaphore::MAX_PERMITS);
        Ok(Some(UpstreamModel {
            endpoint,
            context: model.context,
            parallel,
            permits: Arc::new(Semaphore::new(parallel)),
            silence: Duration::from_secs(args.upstream_timeout),
            reachable: Mutex::new(None),
        }))
    }

    /// The name of the model at the upstream server.
    pub fn name(&self) -> &str {
        &self.endpoint.model
    }

    pub fn url(&self) -> &str {
        self.endpoint.base()
    }

    /// The name that the engine gives itself; empty if it has none.
    pub fn engine(&self) -> &str {
        &self.endpoint.owner
    }

    /// Number of requests that are at the upstream server.
    pub fn running(&self) -> usize {
        self.parallel - self.permits.available_permits()
    }

    /// Counts the tokens of a request of Anthropic's interface, where the server can.
    pub fn count_tokens(&self, body: &str) -> Result<usize, ApiError> {
        let count = self.endpoint.count_tokens(body);
        let count = count.map_err(|e| ApiError::upstream(e, self.url()))?;
        count.ok_or_else(ApiError::needs_local_model)
    }

    /// Returns whether the upstream server lists its models.
    pub async fn is_reachable(&self) -> bool {
        let mut last = self.reachable.lock().await;
        if let Some((at, reachable)) = *last
            && at.elapsed() < PROBE_INTERVAL
        {
            return reachable;
        }
        let endpoint = self.endpoint.clone();
        let probe = tokio::task::spawn_blocking(move || endpoint.list(PROBE_TIMEOUT).is_ok());
        let reachable = probe.await.unwrap_or(false);
        *last = Some((Instant::now(), reachable));
        reachable
    }

    /// Sends a request as soon as fewer than `parallel` others run. Dropping the reply cancels it at the upstream server.
    pub fn send(&self, request: UpstreamRequest, places: Places) -> UpstreamReply {
        let (sender, received) = mpsc::channel(BUFFERED_EVENTS);
        let (alive, mut dropped) = oneshot::channel::<()>();
        let (endpoint, permits) = (self.endpoint.clone(), self.permits.clone());
        let UpstreamRequest { body, max_bytes, expected } = request;
        tokio::spawn(async move {
            let permit = tokio::select! {
                permit = permits.acquire_owned() => permit,
                _ = &mut dropped => return,
            };
            let Ok(permit) = permit else { return };
            if sender.send(ThreadMessage::Sent).await.is_err() {
                return;
            }
            let on_item = move |item: StreamItem| {
                // Held until the thread ends.
                let _permit = &permit;
                match sender.blocking_send(ThreadMessage::Item(item)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            };
            let guard = endpoint.stream(body, max_bytes, on_item);
            let _ = dropped.await;
            drop(guard);
        });
        UpstreamReply::new(self, expected, places, (received, alive))
    }
}
