//! What all requests share: the loaded model, the channel to the thread that runs it, limits, and the state the
//! server is in.

use super::errors::ApiError;
use super::host_check::HostPolicy;
use super::intake::Intake;
use super::limits::{HttpLimits, LimitEvents};
use super::metrics::Metrics;
use crate::generation::decoder::{FinishReason, GenerationParams};
use crate::generation::grammar::{Compiled, Grammar, Grammars, compile};
use crate::generation::sample::Sampling;
use crate::prefix_cache::namespace::Namespace;
use crate::runtime::engine::Engine;
use crate::runtime::session;
use crate::scheduler::{Client, Command, Gauges, Job, Limits, StateBytes, Update};
use kernels::backend::Backend;
use models::template::{Rendered, Template};
use models::tokenizer::Vocabulary;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::Instant;

/// What requests are held to.
#[derive(Clone, Debug)]
pub struct Options {
    /// How tokens are chosen where a request does not say.
    pub sampling: Sampling,
    /// Tokens of a reply where a request does not say.
    pub max_tokens: usize,
    /// Requests that may wait beside those that slots are for.
    pub queue: u64,
    /// Bytes of the prompts and grammars of all requests that run or wait.
    pub queue_bytes: u64,
    /// Time for a request.
    pub timeout: Option<Duration>,
    /// Bytes of a request.
    pub max_body: usize,
    /// Limits on connections and bodies.
    pub http: HttpLimits,
    /// Hosts whose requests are served.
    pub hosts: HostPolicy,
    /// Keys, one of which a request has to bring; none: no key is asked for.
    pub keys: Vec<String>,
    /// Whether requests with different keys reuse each other's prefixes.
    pub share_prefix_cache: bool,
    /// Origins whose pages may ask.
    pub cors: Vec<String>,
    /// The model's names.
    pub names: Vec<String>,
    /// Write prompts into the log.
    pub log_prompts: bool,
}

/// The engine as requests see it, on whatever backend.
pub trait Served: Send + Sync {
    /// Its tokenizer.
    fn tokenizer(&self) -> &Vocabulary;
    /// Its chat template.
    fn template(&self) -> &Template;
    /// The ids of a rendered conversation, by what was read in a namespace.
    fn encode(&self, namespace: Namespace, rendered: &Rendered) -> Vec<u32>;
    /// Whether a prompt can be processed.
    fn check(&self, prompt: &[u32]) -> Result<(), session::Error>;
    /// Tokens of a sequence at most.
    fn context(&self) -> u64;
    /// Ids below this exist.
    fn vocab(&self) -> usize;
    /// Memory of a sequence.
    fn state_bytes(&self) -> StateBytes;
}

impl<B: Backend> Served for Engine<B> {
    fn tokenizer(&self) -> &Vocabulary {
        self.tokenizer.as_ref().expect("`serve` refuses files without a tokenizer")
    }
    fn template(&self) -> &Template {
        self.template.as_ref().expect("an engine with a tokenizer has a template")
    }
    fn encode(&self, namespace: Namespace, rendered: &Rendered) -> Vec<u32> {
        self.encode_within(namespace, rendered, Served::tokenizer(self))
    }
    fn check(&self, prompt: &[u32]) -> Result<(), session::Error> {
        Engine::check(self, prompt)
    }
    fn context(&self) -> u64 {
        self.context
    }
    fn vocab(&self) -> usize {
        self.model.config.vocab
    }
    fn state_bytes(&self) -> StateBytes {
        StateBytes::new(self)
    }
}

/// A model that answers.
pub struct Ready {
    /// The model.
    pub engine: Arc<dyn Served>,
    /// What may run at the same time.
    pub limits: Limits,
    /// Where its thread takes commands.
    pub commands: mpsc::Sender<Command>,
    /// What its thread shows.
    pub gauges: Arc<Gauges>,
}

/// What all requests share.
pub struct App {
    /// What requests are held to.
    pub options: Options,
    /// What is counted.
    pub metrics: Metrics,
    /// Events at limits.
    pub limits: LimitEvents,
    /// Bodies on their way in.
    pub intake: Intake,
    /// When it started, in seconds of Unix time.
    pub started: u64,
    ready: OnceLock<Ready>,
    /// Made when the first request needs it.
    grammars: OnceLock<Result<Grammars, String>>,
    draining: AtomicBool,
    ended: AtomicBool,
    requests: AtomicU64,
    /// Answers that somebody waits for.
    open: watch::Sender<usize>,
    /// Requests that the engine has not answered: counted here, as what its thread shows is behind what came meanwhile.
    placed: Arc<AtomicU64>,
    /// Bytes that they hold.
    placed_bytes: Arc<AtomicU64>,
}

/// A part of what may run or wait, for a request. The next may have it when the last of its replies has ended.
struct Place {
    of: Arc<AtomicU64>,
    amount: u64,
}

impl Place {
    /// Takes an amount as long as `all` with it are not too many.
    fn take(of: &Arc<AtomicU64>, amount: u64, fits: impl Fn(u64) -> bool) -> Result<Place, u64> {
        let more = |n: u64| fits(n).then_some(n.saturating_add(amount));
        of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)?;
        Ok(Place { of: of.clone(), amount })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// What is asked of the engine: one prompt, a reply for each of the rules.
pub struct Ask {
    /// Its tokens, which all its replies share.
    pub prompt: Arc<[u32]>,
    /// Lengths of it to keep snapshots of.
    pub marks: Vec<usize>,
    /// How each reply is made.
    pub rules: Vec<GenerationParams>,
    /// Tell each token's logarithm of probability, and so many of the most likely ones'.
    pub logprobs: Option<usize>,
    /// Bytes that its grammar and what its answer repeats of the prompt take.
    pub held: usize,
}

impl Ask {
    /// Bytes that it holds while it waits.
    fn bytes(&self) -> u64 {
        let bias = self.rules.first().map_or(0, |rules| size_of_val(&*rules.bias));
        let stops = self.rules.iter().flat_map(|rules| &rules.stops).map(String::len).sum::<usize>();
        (size_of_val(&*self.prompt) + bias + stops + self.held) as u64
    }
}

impl App {
    /// A server whose model is still loading.
    pub fn new(options: Options) -> Arc<Self> {
        Arc::new(App {
            intake: Intake::new(&options.http, options.max_body),
            limits: LimitEvents::default(),
            options,
            metrics: Metrics::default(),
            started: unix_seconds(),
            ready: OnceLock::new(),
            grammars: OnceLock::new(),
            draining: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: watch::Sender::new(0),
            requests: AtomicU64::new(0),
            placed: Arc::default(),
            placed_bytes: Arc::default(),
        })
    }

    /// The model is there.
    pub fn set_ready(&self, ready: Ready) {
        let _ = self.ready.set(ready);
    }

    /// No new work from here on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends every reply where it is.
    pub fn stop(&self) {
        if let Some(ready) = self.ready.get() {
            // A thread that has ended has nothing to stop.
            let _ = ready.commands.send(Command::Stop);
        }
    }

    /// Marks, when dropped, that the model's thread has ended.
    pub fn note_end(self: &Arc<Self>) -> impl Drop + Send + use<> {
        struct End(Arc<App>);
        impl Drop for End {
            fn drop(&mut self) {
                self.0.ended.store(true, Ordering::Relaxed);
            }
        }
        End(self.clone())
    }

    /// Answers that somebody waits for.
    pub fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Until nobody waits for an answer.
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

    /// The loaded model, whatever the server is doing.
    pub fn loaded(&self) -> Option<&Ready> {
        self.ready.get()
    }

    /// The model, if it takes work.
    pub fn ready(&self) -> Result<&Ready, ApiError> {
        match (self.status(), self.ready.get()) {
            ("ready", Some(ready)) => Ok(ready),
            (status, _) => Err(ApiError::unavailable(status)),
        }
    }

    /// The name the model goes by.
    pub fn model_name(&self) -> &str {
        self.options.names.first().map_or("kimi", String::as_str)
    }

    /// Whether a request means the served model.
    pub fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if !self.options.names.iter().any(|n| n == name) => {
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
        let engine = &self.ready()?.engine;
        let make = || Grammars::new(engine.tokenizer(), engine.vocab()).map_err(|e| e.to_string());
        let grammars =
            self.grammars.get_or_init(make).as_ref().map_err(|e| ApiError::unsupported(param, e))?;
        grammars.compile(grammar, &|| gone.load(Ordering::Relaxed)).map_err(|e| match e {
            compile::Error::Busy(_) | compile::Error::Full => ApiError::compiling(e),
            e => ApiError::invalid(param, e),
        })
    }

    /// A seed for a request that names none; the server's own seed makes the series of them repeat.
    pub fn next_seed(&self) -> u64 {
        let n = self.requests.fetch_add(1, Ordering::Relaxed);
        self.options.sampling.seed.wrapping_add(n)
    }

    /// Takes a place, if one is free and there is memory for what it holds.
    fn place(&self, ready: &Ready, bytes: u64) -> Result<[Place; 2], ApiError> {
        let most = (ready.limits.slots as u64).saturating_add(self.options.queue);
        let place = Place::take(&self.placed, 1, |n| n < most).map_err(ApiError::busy)?;
        let most = self.options.queue_bytes;
        let fits = |n: u64| n == 0 || n.saturating_add(bytes) <= most;
        let memory = Place::take(&self.placed_bytes, bytes, fits).map_err(|held| {
            let [held, bytes, most] = [held, bytes, most].map(|n| n as f64 / f64::from(1 << 20));
            let mut error = ApiError::busy(0);
            error.detail.message = format!(
                "the queue holds {held:.1} MiB of prompts and grammars, this request has {bytes:.1} MiB and {most:.1} MiB are allowed \
                 (--queue-memory); try again later"
            );
            error
        })?;
        Ok([place, memory])
    }

    /// Where the prefixes of an owner's requests are: apart from others' where several keys tell owners apart.
    pub fn namespace(&self, owner: u64) -> Namespace {
        let keys = &self.options.keys;
        let several = keys.iter().any(|key| *key != keys[0]);
        if several && !self.options.share_prefix_cache { Namespace::of(owner) } else { Namespace::SHARED }
    }

    /// Why no more comes from the engine.
    fn lost(&self) -> ApiError {
        match self.draining.load(Ordering::Relaxed) {
            true => ApiError::unavailable("stopping"),
            false => ApiError::internal("the thread that runs the model has ended; the log says why"),
        }
    }

    /// Hands work to the engine.
    pub fn start(self: &Arc<Self>, asks: Vec<Ask>, owner: u64) -> Result<Answers, ApiError> {
        let ready = self.ready()?;
        let place = Arc::new(self.place(ready, asks.iter().map(Ask::bytes).sum())?);
        let namespace = self.namespace(owner);
        if self.options.log_prompts {
            let text = |ask: &Ask| ready.engine.tokenizer().decode(&ask.prompt);
            asks.iter().for_each(|ask| tracing::info!(text = text(ask), "prompt"));
        }
        let (sender, updates) = unbounded_channel();
        let mut prompt_tokens = 0;
        let mut unread = Vec::new();
        for ask in asks {
            prompt_tokens += ask.prompt.len();
            for rules in ask.rules {
                let (sender, place) = (sender.clone(), Some(place.clone()));
                let waiting = Arc::new(AtomicUsize::new(0));
                let client =
                    Box::new(Listener { index: unread.len(), sender, place, unread: waiting.clone() });
                let (prompt, marks, logprobs) = (ask.prompt.clone(), ask.marks.clone(), ask.logprobs);
                let job = Box::new(Job { prompt, marks, rules, logprobs, owner, namespace, client });
                ready.commands.send(Command::Job(job)).map_err(|_| self.lost())?;
                unread.push(waiting);
            }
        }
        self.metrics.requests.inc();
        self.open.send_modify(|open| *open += 1);
        let start = Instant::now();
        let deadline = self.options.timeout.map(|limit| start + limit);
        let app = self.clone();
        let open = unread.len();
        Ok(Answers { app, updates, open, unread, prompt_tokens, start, deadline, heard: HashMap::new() })
    }
}

/// Seconds of Unix time.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Updates of a reply that may be unread: more pause it. Most hold a token; with the 20 most likely ones 300 bytes.
const UNREAD: usize = 256;

struct Listener {
    index: usize,
    sender: UnboundedSender<(usize, Update)>,
    /// Its request's, until its reply has ended.
    place: Option<Arc<[Place; 2]>>,
    /// Updates that were sent and not read.
    unread: Arc<AtomicUsize>,
}

impl Client for Listener {
    fn hear(&mut self, update: Update) {
        // Before the client hears of it: it may ask again at once.
        if let Update::Done(stats) = &update {
            self.place = None;
            if let FinishReason::Unread(limit) = stats.ended {
                let seconds = limit.as_secs();
                tracing::warn!(
                    seconds,
                    "a client did not read its stream (--stream-timeout): the reply ended"
                );
            }
        }
        self.unread.fetch_add(1, Ordering::Relaxed);
        // Who is gone hears nothing; the next step asks.
        let _ = self.sender.send((self.index, update));
    }

    fn gone(&self) -> bool {
        self.sender.is_closed()
    }

    fn ready(&self) -> bool {
        self.unread.load(Ordering::Relaxed) < UNREAD
    }
}

/// Replies under way. Dropping it stops them.
pub struct Answers {
    app: Arc<App>,
    updates: UnboundedReceiver<(usize, Update)>,
    /// Replies that have not ended.
    open: usize,
    /// Updates of each that were sent and not read.
    unread: Vec<Arc<AtomicUsize>>,
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// When it was asked.
    pub start: Instant,
    deadline: Option<Instant>,
    /// When a reply's last token came.
    heard: HashMap<usize, Instant>,
}

impl Answers {
    /// What happens next, with the reply's number; None after the last has ended.
    pub async fn next(&mut self) -> Option<Result<(usize, Update), ApiError>> {
        if self.open == 0 {
            return None;
        }
        let next = match self.deadline {
            None => self.updates.recv().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, self.updates.recv()).await {
                Ok(next) => next,
                Err(_) => return Some(Err(self.give_up())),
            },
        };
        let Some((index, update)) = next else {
            self.open = 0;
            return Some(Err(self.app.lost()));
        };
        self.unread[index].fetch_sub(1, Ordering::Relaxed);
        self.count(index, &update);
        Some(Ok((index, update)))
    }

    fn give_up(&mut self) -> ApiError {
        self.open = 0;
        self.updates.close();
        ApiError::timeout(self.app.options.timeout.map_or(0, |t| t.as_secs()))
    }

    fn count(&mut self, index: usize, update: &Update) {
        let metrics = &self.app.metrics;
        match update {
            Update::Read { .. } => {}
            Update::Chosen { .. } => {
                let now = Instant::now();
                match self.heard.insert(index, now) {
                    None => metrics.first_token.observe((now - self.start).as_secs_f64()),
                    Some(before) => metrics.next_token.observe((now - before).as_secs_f64()),
                }
            }
            Update::Done(stats) => {
                self.open -= 1;
                metrics.count(stats);
            }
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.open > 0 {
            self.app.metrics.aborted.inc();
        }
        self.app.open.send_modify(|open| *open -= 1);
    }
}
