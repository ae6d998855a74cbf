//! State shared by all requests: the source of replies (a loaded model and its scheduler, or an upstream server), limits, and
//! the status of the server. Next: [`super::reservation`] and [`super::upstream`].

use super::errors::ApiError;
use super::files::set::FileSets;
use super::files::store::{FileOptions, FileStore};
use super::host_check::HostPolicy;
use super::intake::Intake;
use super::limits::{HttpLimits, LimitEvents};
use super::metrics::Metrics;
use super::notices::Notices;
use super::reservation::{Places, Reservation};
use super::upstream::UpstreamModel;
use crate::generation::grammar::{Compiled, Grammar, Grammars, compile};
use crate::generation::sample::Sampling;
use crate::prefix_cache::history::PromptHistory;
use crate::prefix_cache::namespace::Namespace;
use crate::runtime::handle::EngineHandle;
use crate::runtime::sampling_options::SamplingOptions;
use crate::scheduler::{Command, Gauges, SchedulerLimits};
use models::template::Template;
use models::tokenizer::Vocabulary;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Limits and defaults for requests.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Sampling parameters for requests that name none, before those of the model file.
    pub sampling: SamplingOptions,
    /// Maximum tokens of a reply for requests that name none.
    pub max_tokens: usize,
    /// Maximum number of requests that wait for a slot.
    pub queue: u64,
    /// Maximum bytes of prompts and grammars of all running and waiting requests.
    pub queue_bytes: u64,
    /// Maximum duration of a request.
    pub timeout: Option<Duration>,
    /// Maximum bytes of a request body.
    pub max_body: usize,
    pub http: HttpLimits,
    /// Checks of Host and Origin headers.
    pub hosts: HostPolicy,
    /// Accepted API keys; if empty, no key is required.
    pub keys: Vec<String>,
    /// Lets requests with different keys share cached prefixes.
    pub share_prefix_cache: bool,
    /// Origins allowed by CORS, or `*`.
    pub cors: Vec<String>,
    /// The model's name and its aliases.
    pub names: Vec<String>,
    /// Refuse requests for models of other names.
    pub strict_model: bool,
    /// Write prompts into the log.
    pub log_prompts: bool,
    /// Log both texts where a prompt first differs from the nearest served one.
    pub explain: bool,
    /// Where uploaded files are stored.
    pub files: FileOptions,
}

/// A loaded model and its scheduler.
pub struct Ready {
    pub engine: EngineHandle,
    /// Sampling parameters for requests that name none.
    pub sampling: Sampling,
    /// Limits on concurrency and state memory.
    pub limits: SchedulerLimits,
    /// Sends commands to the scheduler's thread.
    pub commands: mpsc::Sender<Command>,
    /// Values that the scheduler updates after each step.
    pub gauges: Arc<Gauges>,
    /// Recently served prompts, for explanations of cache misses.
    pub history: Arc<PromptHistory>,
}

impl Ready {
    pub fn tokenizer(&self) -> &Arc<Vocabulary> {
        self.engine.tokenizer.as_ref().expect("`serve` refuses files without a tokenizer")
    }

    pub fn template(&self) -> &Template {
        self.engine.template.as_ref().expect("an engine with a tokenizer has a template")
    }
}

/// The model that generates all replies.
pub enum ReplySource {
    /// A model loaded in this process.
    Local(Ready),
    /// A model of another server.
    Upstream(Box<UpstreamModel>),
}

/// State shared by all requests.
pub struct App {
    /// Limits and defaults for requests.
    pub options: ServeOptions,
    pub metrics: Metrics,
    pub limits: LimitEvents,
    /// Receives and parses request bodies.
    pub intake: Intake,
    pub notices: Notices,
    /// Uploaded files, and the sets of them in recent requests.
    pub files: FileStore,
    pub file_sets: FileSets,
    /// Unix time of the start, in seconds.
    pub started: u64,
    source: OnceLock<ReplySource>,
    /// The same model on the CPU, after the GPU has failed.
    fallback: OnceLock<ReplySource>,
    /// Set once the GPU has failed.
    degraded: AtomicBool,
    /// Created by the first request that needs a grammar.
    grammars: OnceLock<Result<Grammars, String>>,
    draining: AtomicBool,
    ended: AtomicBool,
    requests: AtomicU64,
    /// Number of responses under way.
    open: watch::Sender<usize>,
    /// Unfinished requests, counted here because the gauges lag behind submissions.
    in_flight: Arc<AtomicU64>,
    /// Bytes of their prompts and grammars.
    in_flight_bytes: Arc<AtomicU64>,
}

impl App {
    /// Creates the state of a server whose model is still loading.
    pub fn new(options: ServeOptions) -> Arc<Self> {
        Arc::new(App {
            intake: Intake::new(&options.http, options.max_body),
            limits: LimitEvents::default(),
            notices: Notices::default(),
            files: FileStore::new(options.files.clone()),
            file_sets: FileSets::default(),
            options,
            metrics: Metrics::default(),
            started: unix_seconds(),
            source: OnceLock::new(),
            fallback: OnceLock::new(),
            degraded: AtomicBool::new(false),
            grammars: OnceLock::new(),
            draining: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: watch::Sender::new(0),
            requests: AtomicU64::new(0),
            in_flight: Arc::default(),
            in_flight_bytes: Arc::default(),
        })
    }

    /// Accepts requests from now on.
    pub fn set_ready(&self, source: ReplySource) {
        let _ = self.source.set(source);
    }

    /// Reports from now on that the GPU has failed. Requests wait for [`App::set_fallback`].
    pub fn degrade(&self) {
        self.degraded.store(true, Ordering::Relaxed);
    }

    /// Sends requests to the same model on the CPU from now on.
    pub fn set_fallback(&self, ready: Ready) {
        let _ = self.fallback.set(ReplySource::Local(ready));
    }

    /// The source of replies, even while draining.
    fn current(&self) -> Option<&ReplySource> {
        self.fallback.get().or_else(|| self.source.get())
    }

    /// Refuses new requests from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub fn stop(&self) {
        if let Some(ready) = self.loaded() {
            // Fails only if the thread has ended, which leaves nothing to stop.
            let _ = ready.commands.send(Command::Stop);
        }
    }

    /// Returns a guard that marks the model's thread as ended when dropped.
    pub fn mark_ended_on_drop(self: &Arc<Self>) -> impl Drop + Send + use<> {
        struct End(Arc<App>);
        impl Drop for End {
            fn drop(&mut self) {
                self.0.ended.store(true, Ordering::Relaxed);
            }
        }
        End(self.clone())
    }

    /// Number of responses under way.
    pub fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Waits until no response is under way.
    pub async fn idle(&self) {
        // The sender lives as long as the server.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// loading, ready, degraded (ready, but on the CPU because the GPU has failed), draining or failed
    pub fn status(&self) -> &'static str {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        match self.current() {
            _ if is(&self.draining) => "draining",
            _ if is(&self.ended) => "failed",
            None => "loading",
            Some(_) if is(&self.degraded) => "degraded",
            Some(_) => "ready",
        }
    }

    /// Returns the model loaded in this process, even while draining.
    pub fn loaded(&self) -> Option<&Ready> {
        match self.current()? {
            ReplySource::Local(ready) => Some(ready),
            ReplySource::Upstream(_) => None,
        }
    }

    /// Returns the upstream server, if there is one.
    pub fn upstream(&self) -> Option<&UpstreamModel> {
        match self.current()? {
            ReplySource::Local(_) => None,
            ReplySource::Upstream(upstream) => Some(&**upstream),
        }
    }

    /// Returns the source of replies if it accepts requests.
    pub fn source(&self) -> Result<&ReplySource, ApiError> {
        match (self.status(), self.current()) {
            ("ready" | "degraded", Some(source)) => Ok(source),
            (status, _) => Err(ApiError::unavailable(status)),
        }
    }

    /// Returns the model loaded in this process if it accepts requests.
    pub fn ready(&self) -> Result<&Ready, ApiError> {
        match self.source()? {
            ReplySource::Local(ready) => Ok(ready),
            ReplySource::Upstream(_) => Err(ApiError::needs_local_model()),
        }
    }

    /// Returns the context length in tokens, if it is known.
    pub fn context_length(&self) -> Result<Option<u64>, ApiError> {
        Ok(match self.source()? {
            ReplySource::Local(ready) => Some(ready.engine.context),
            ReplySource::Upstream(upstream) => upstream.context,
        })
    }

    /// Returns whether prefilled prompts are known to stay in a prefix cache.
    pub fn keeps_prompts(&self) -> bool {
        self.loaded().is_some_and(|ready| ready.engine.keeps_prompts())
    }

    /// Number of requests that run or wait.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns the first name of the model.
    pub fn model_name(&self) -> &str {
        self.options.names.first().map_or("kimi", String::as_str)
    }

    /// Refuses a request for another model, if the server is strict about names.
    pub fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if self.options.strict_model && !self.options.names.iter().any(|n| n == name) => {
                Err(ApiError::no_model(name, &self.options.names.join(" or ")))
            }
            _ => Ok(()),
        }
    }

    /// Compiles what a reply has to match, unless `gone` says that the client has left; `param` is the field that holds it.
    pub fn compile(
        &self,
        grammar: &Grammar,
        param: &str,
        gone: &AtomicBool,
    ) -> Result<Arc<Compiled>, ApiError> {
        let ready = self.ready()?;
        let make = || Grammars::new(ready.tokenizer(), ready.engine.config.vocab).map_err(|e| e.to_string());
        let grammars =
            self.grammars.get_or_init(make).as_ref().map_err(|e| ApiError::unsupported(param, e))?;
        grammars.compile(grammar, &|| gone.load(Ordering::Relaxed)).map_err(|e| match e {
            compile::CompileError::Busy(_) | compile::CompileError::Full => ApiError::compiling(e),
            e => ApiError::invalid(param, e),
        })
    }

    /// Returns a seed for a request that names none; the series follows from the server's seed.
    pub fn next_seed(&self, ready: &Ready) -> u64 {
        let n = self.requests.fetch_add(1, Ordering::Relaxed);
        ready.sampling.seed.wrapping_add(n)
    }

    /// Reserves a place in the queue and memory for a request, beside `slots` that are processed at the same time.
    pub fn reserve(&self, slots: usize, bytes: u64) -> Result<Places, ApiError> {
        let most = (slots as u64).saturating_add(self.options.queue);
        let reservation = Reservation::take(&self.in_flight, 1, |n| n < most).map_err(ApiError::busy)?;
        let most = self.options.queue_bytes;
        let fits = |n: u64| n == 0 || n.saturating_add(bytes) <= most;
        let memory = Reservation::take(&self.in_flight_bytes, bytes, fits).map_err(|held| {
            let [held, bytes, most] = [held, bytes, most].map(|n| n as f64 / f64::from(1 << 20));
            let mut error = ApiError::busy(0);
            error.detail.message = format!(
                "the queue holds {held:.1} MiB of prompts and grammars, this request has {bytes:.1} MiB and {most:.1} MiB are allowed \
                 (--queue-memory); try again later"
            );
            error
        })?;
        Ok([reservation, memory])
    }

    /// Returns the prefix-cache namespace of a tenant: its own if there are several API keys.
    pub fn namespace(&self, tenant: u64) -> Namespace {
        let keys = &self.options.keys;
        let several = keys.iter().any(|key| *key != keys[0]);
        if several && !self.options.share_prefix_cache { Namespace::of(tenant) } else { Namespace::SHARED }
    }

    /// Returns the error for a scheduler that has ended.
    pub fn engine_stopped(&self) -> ApiError {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        match (is(&self.draining), is(&self.degraded)) {
            (true, _) => ApiError::unavailable("stopping"),
            (false, true) => ApiError::device_failed("the log says how"),
            (false, false) => {
                ApiError::internal("the thread that runs the model has ended; the log says why")
            }
        }
    }

    /// Adds a response under way; it is removed by [`App::response_ended`].
    pub fn response_started(&self) {
        self.open.send_modify(|open| *open += 1);
    }

    pub fn response_ended(&self) {
        self.open.send_modify(|open| *open -= 1);
    }
}

pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
