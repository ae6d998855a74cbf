//! State shared by all requests: the loaded model, the channel to its scheduler, limits, and the status of the server.
//! Next: [`super::validate`], which builds the requests submitted here.

use super::errors::ApiError;
use super::host_check::HostPolicy;
use super::intake::Intake;
use super::limits::{HttpLimits, LimitEvents};
use super::metrics::Metrics;
use super::notices::Notices;
use super::trace::{MissCell, PromptTrace, ReplyTrace};
use crate::generation::decoder::{FinishReason, GenerationParams};
use crate::generation::event::EngineEvent;
use crate::generation::grammar::{Compiled, Grammar, Grammars, compile};
use crate::generation::sample::Sampling;
use crate::prefix_cache::history::PromptHistory;
use crate::prefix_cache::namespace::Namespace;
use crate::prefix_cache::served::PromptOutline;
use crate::runtime::handle::EngineHandle;
use crate::runtime::sampling_options::SamplingOptions;
use crate::scheduler::{Client, Command, Gauges, SchedulerLimits, SequenceRequest};
use models::template::Template;
use models::tokenizer::Vocabulary;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::Instant;

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

/// State shared by all requests.
pub struct App {
    /// Limits and defaults for requests.
    pub options: ServeOptions,
    pub metrics: Metrics,
    pub limits: LimitEvents,
    /// Receives and parses request bodies.
    pub intake: Intake,
    pub notices: Notices,
    /// Unix time of the start, in seconds.
    pub started: u64,
    ready: OnceLock<Ready>,
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

/// A request's share of a bounded counter, released when the last of its replies ends.
struct Reservation {
    counter: Arc<AtomicU64>,
    amount: u64,
}

impl Reservation {
    /// Adds an amount if `fits` accepts the current value; returns that value otherwise.
    fn take(counter: &Arc<AtomicU64>, amount: u64, fits: impl Fn(u64) -> bool) -> Result<Reservation, u64> {
        let more = |n: u64| fits(n).then_some(n.saturating_add(amount));
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)?;
        Ok(Reservation { counter: counter.clone(), amount })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// A prompt for the scheduler, with one reply for each element of `reply_params`.
pub struct EngineRequest {
    /// Tokens of the prompt, shared by all its replies.
    pub prompt: Arc<[u32]>,
    /// Prompt lengths at which to insert a snapshot.
    pub snapshot_lengths: Vec<usize>,
    /// Tools and messages of the prompt.
    pub outline: PromptOutline,
    pub reply_params: Vec<GenerationParams>,
    /// Report the log-probability of each token and of this many most likely tokens.
    pub logprobs: Option<usize>,
    /// Bytes of its grammar and of the prompt text that the response echoes.
    pub retained_bytes: usize,
}

impl EngineRequest {
    /// Bytes that count against `queue_bytes`.
    fn bytes(&self) -> u64 {
        let bias = self.reply_params.first().map_or(0, |params| size_of_val(&*params.bias));
        let stops = self.reply_params.iter().flat_map(|params| &params.stops).map(String::len).sum::<usize>();
        (size_of_val(&*self.prompt) + bias + stops + self.retained_bytes) as u64
    }
}

impl App {
    /// Creates the state of a server whose model is still loading.
    pub fn new(options: ServeOptions) -> Arc<Self> {
        Arc::new(App {
            intake: Intake::new(&options.http, options.max_body),
            limits: LimitEvents::default(),
            notices: Notices::default(),
            options,
            metrics: Metrics::default(),
            started: unix_seconds(),
            ready: OnceLock::new(),
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
    pub fn set_ready(&self, ready: Ready) {
        let _ = self.ready.set(ready);
    }

    /// Refuses new requests from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub fn stop(&self) {
        if let Some(ready) = self.ready.get() {
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

    /// loading, ready, draining or failed
    pub fn status(&self) -> &'static str {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        match self.ready.get() {
            _ if is(&self.draining) => "draining",
            _ if is(&self.ended) => "failed",
            None => "loading",
            Some(_) => "ready",
        }
    }

    /// Returns the loaded model, even while draining.
    pub fn loaded(&self) -> Option<&Ready> {
        self.ready.get()
    }

    /// Returns the model if it accepts requests.
    pub fn ready(&self) -> Result<&Ready, ApiError> {
        match (self.status(), self.ready.get()) {
            ("ready", Some(ready)) => Ok(ready),
            (status, _) => Err(ApiError::unavailable(status)),
        }
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

    /// Reserves a place in the queue and memory for a request.
    fn reserve(&self, ready: &Ready, bytes: u64) -> Result<[Reservation; 2], ApiError> {
        let most = (ready.limits.slots as u64).saturating_add(self.options.queue);
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
    fn engine_stopped(&self) -> ApiError {
        match self.draining.load(Ordering::Relaxed) {
            true => ApiError::unavailable("stopping"),
            false => ApiError::internal("the thread that runs the model has ended; the log says why"),
        }
    }

    /// Compares a prompt with the recently served ones of its namespace.
    fn trace(&self, ready: &Ready, request: &mut EngineRequest, namespace: Namespace) -> PromptTrace {
        let outline = std::mem::take(&mut request.outline);
        PromptTrace {
            engine: ready.engine.clone(),
            history: ready.history.clone(),
            namespace,
            nearest: ready.history.nearest(namespace, &request.prompt, &outline),
            prompt: request.prompt.clone(),
            outline,
            snapshot_lengths: request.snapshot_lengths.clone(),
            with_texts: self.options.explain,
            misses: self.metrics.misses.clone(),
            miss: MissCell::default(),
        }
    }

    /// Submits requests to the scheduler.
    pub fn submit(
        self: &Arc<Self>,
        requests: Vec<EngineRequest>,
        tenant: u64,
    ) -> Result<RequestEvents, ApiError> {
        let ready = self.ready()?;
        let reservation = Arc::new(self.reserve(ready, requests.iter().map(EngineRequest::bytes).sum())?);
        let namespace = self.namespace(tenant);
        if self.options.log_prompts {
            let text = |request: &EngineRequest| ready.tokenizer().decode(&request.prompt);
            requests.iter().for_each(|request| tracing::info!(text = text(request), "prompt"));
        }
        let (sender, events) = unbounded_channel();
        let mut prompt_tokens = 0;
        let mut unread = Vec::new();
        let mut miss = None;
        for mut request in requests {
            prompt_tokens += request.prompt.len();
            let trace = Arc::new(self.trace(ready, &mut request, namespace));
            miss.get_or_insert_with(|| trace.miss());
            for params in request.reply_params {
                let (sender, reservation) = (sender.clone(), Some(reservation.clone()));
                let waiting = Arc::new(AtomicUsize::new(0));
                let client = Box::new(ChannelClient {
                    index: unread.len(),
                    sender,
                    reservation,
                    unread: waiting.clone(),
                    trace: ReplyTrace::new(trace.clone(), params.max_tokens),
                });
                let (prompt, snapshot_lengths, logprobs) =
                    (request.prompt.clone(), request.snapshot_lengths.clone(), request.logprobs);
                let request = Box::new(SequenceRequest {
                    prompt,
                    snapshot_lengths,
                    params,
                    logprobs,
                    tenant,
                    namespace,
                    client,
                });
                ready.commands.send(Command::Submit(request)).map_err(|_| self.engine_stopped())?;
                unread.push(waiting);
            }
        }
        self.metrics.requests.inc();
        self.open.send_modify(|open| *open += 1);
        let start = Instant::now();
        let deadline = self.options.timeout.map(|limit| start + limit);
        let app = self.clone();
        let open = unread.len();
        Ok(RequestEvents {
            app,
            events,
            open,
            unread,
            prompt_tokens,
            miss: miss.unwrap_or_default(),
            start,
            deadline,
            last_token: HashMap::new(),
        })
    }
}

pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Unread events after which a sequence pauses. An event is small: 300 bytes with 20 top log-probabilities.
const MAX_UNREAD_EVENTS: usize = 256;

struct ChannelClient {
    index: usize,
    sender: UnboundedSender<(usize, EngineEvent)>,
    /// Released when the reply has ended.
    reservation: Option<Arc<[Reservation; 2]>>,
    /// Events sent and not yet read.
    unread: Arc<AtomicUsize>,
    trace: ReplyTrace,
}

impl Client for ChannelClient {
    fn on_event(&mut self, event: EngineEvent) {
        self.trace.on_event(&event);
        // Released before the client gets the event, because it may send the next request at once.
        if let EngineEvent::Finished(stats) = &event {
            self.reservation = None;
            if let FinishReason::Unread(limit) = stats.ended {
                let seconds = limit.as_secs();
                tracing::warn!(seconds, "stream unread for too long (--stream-timeout): reply ended");
            }
        }
        self.unread.fetch_add(1, Ordering::Relaxed);
        // Fails if the client has disconnected; the next step checks that.
        let _ = self.sender.send((self.index, event));
    }

    fn is_disconnected(&self) -> bool {
        self.sender.is_closed()
    }

    fn is_ready(&self) -> bool {
        self.unread.load(Ordering::Relaxed) < MAX_UNREAD_EVENTS
    }
}

/// The events of a submitted request. Dropping it cancels the request.
pub struct RequestEvents {
    app: Arc<App>,
    events: UnboundedReceiver<(usize, EngineEvent)>,
    /// Number of replies that have not ended.
    open: usize,
    /// For each reply, events sent and not yet read.
    unread: Vec<Arc<AtomicUsize>>,
    /// Tokens of all prompts together.
    pub prompt_tokens: usize,
    /// The cause for which the first prompt was prefilled, set at the end of its first reply.
    pub miss: MissCell,
    pub start: Instant,
    deadline: Option<Instant>,
    /// Time of the last token of each reply.
    last_token: HashMap<usize, Instant>,
}

impl RequestEvents {
    /// Returns the next event with the reply's index, or None after the last reply has ended.
    pub async fn next(&mut self) -> Option<Result<(usize, EngineEvent), ApiError>> {
        if self.open == 0 {
            return None;
        }
        let next = match self.deadline {
            None => self.events.recv().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(next) => next,
                Err(_) => return Some(Err(self.time_out())),
            },
        };
        let Some((index, event)) = next else {
            self.open = 0;
            return Some(Err(self.app.engine_stopped()));
        };
        self.unread[index].fetch_sub(1, Ordering::Relaxed);
        self.count(index, &event);
        Some(Ok((index, event)))
    }

    fn time_out(&mut self) -> ApiError {
        self.open = 0;
        self.events.close();
        ApiError::timeout(self.app.options.timeout.map_or(0, |t| t.as_secs()))
    }

    fn count(&mut self, index: usize, event: &EngineEvent) {
        let metrics = &self.app.metrics;
        match event {
            EngineEvent::Prefill { .. } => {}
            EngineEvent::Token { .. } => {
                let now = Instant::now();
                match self.last_token.insert(index, now) {
                    None => metrics.time_to_first_token.observe((now - self.start).as_secs_f64()),
                    Some(before) => metrics.inter_token_latency.observe((now - before).as_secs_f64()),
                }
            }
            EngineEvent::Finished(stats) => {
                self.open -= 1;
                metrics.count(stats);
            }
        }
    }
}

impl Drop for RequestEvents {
    fn drop(&mut self) {
        if self.open > 0 {
            self.app.metrics.aborted.inc();
        }
        self.app.open.send_modify(|open| *open -= 1);
    }
}
