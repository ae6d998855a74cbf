//! The engine: a loaded model with its backend, weights, tokenizer, chat template and prefix cache. [`super::handle`] erases
//! the backend's type.

use super::attention_path::{self, MATERIALIZED_BATCH_FACTOR, MessageBoundaries};
use super::builtin_model;
use super::chat_template;
use super::errors::Error;
use super::options::{DEFAULT_BATCH, Drafting, LoadOptions};
use super::sampling_options::SamplingOptions;
use crate::io::host_memory;
use crate::io::log::Log;
use crate::io::output::tell;
use crate::io::prompt::Prompt;
use crate::io::units::{counted, format_size};
use crate::prefix_cache::disk::StateShape;
use crate::prefix_cache::namespace::Namespace;
use crate::prefix_cache::options::StoreOptions;
use crate::prefix_cache::retokenize;
use crate::prefix_cache::{Sizes, Store};
use anyhow::{Context as _, Result, anyhow};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use models::gguf::read::Gguf;
use models::hybrid::config::Config;
use models::hybrid::mla::MlaPath;
use models::hybrid::weights::NotFinite;
use models::hybrid::{Model, Outputs, Sequence};
use models::template::{Rendered, Template};
use models::tokenizer::Vocabulary;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, Once};

/// A loaded model on one backend, shared by all sessions.
pub struct Engine<B: Backend> {
    base: EngineBase,
    pub backend: Arc<B>,
    /// The model's graph and weights.
    pub model: Model<B>,
    /// The prefix cache, shared by all threads.
    pub store: Arc<Store<B>>,
}

/// The parts of an engine that do not depend on its backend.
pub struct EngineBase {
    /// The hyperparameters of the model.
    pub config: Config,
    /// The tokenizer; `None` if the model file has none.
    pub tokenizer: Option<Arc<Vocabulary>>,
    /// The chat template; `None` without a tokenizer.
    pub template: Option<Template>,
    /// The ids that the template emits before a reply.
    pub reply_prefix_ids: Vec<u32>,
    /// Maximum tokens of a sequence.
    pub context: u64,
    /// Prefill batch size in tokens.
    pub batch: usize,
    /// The data type of the KV cache.
    pub cache: CacheFormat,
    /// Maximum bytes of the states of all sequences on a GPU; `None` on the CPU.
    pub max_state_bytes: Option<u64>,
    /// Whether tokens of replies are drafted.
    pub draft: Drafting,
    /// The sampling defaults in the model file.
    pub sampling: SamplingOptions,
    pub file: Gguf,
    /// Receives warnings, one line each.
    log: Arc<Log>,
    /// Reports a change of the model file only once.
    change_reported: Once,
}

impl<B: Backend> Deref for Engine<B> {
    type Target = EngineBase;

    fn deref(&self) -> &EngineBase {
        &self.base
    }
}

impl Engine<Cpu> {
    /// Loads a model on the CPU and logs to standard error.
    pub fn open(args: &LoadOptions) -> Result<Self> {
        Engine::open_with(args, Box::new(tell))
    }

    /// Loads a model on the CPU. `log` receives warnings, one line each.
    pub fn open_with(args: &LoadOptions, log: Log) -> Result<Self> {
        args.prepare(&log)?;
        Engine::load(Cpu::detect(args.threads), args, log)
    }
}

impl<B: Backend> Engine<B> {
    /// Loads a model on a backend.
    pub fn load(backend: B, args: &LoadOptions, log: Log) -> Result<Self> {
        let file = builtin_model::open(args.model.as_deref())?;
        if args.mlock {
            let needed = || {
                format!(
                    "--mlock needs {} of lockable memory; raise `ulimit -l`",
                    format_size(file.file_bytes())
                )
            };
            file.lock().with_context(needed)?;
        } else if host_memory::available(Path::new("/")).is_some_and(|free| free < file.file_bytes()) {
            backend.read_ahead();
        }
        let model = Model::load(&backend, &file)?;
        if let Some(line) = not_finite_line(&args.name(), &model.not_finite) {
            log(&line);
        }
        let (sampling, faults) = SamplingOptions::from_metadata(&file.metadata);
        for fault in faults {
            log(&format!("warning: {}: {fault}; it is ignored", args.name()));
        }
        let log = Arc::new(log);
        let store_log = log.clone();
        let tokenizer = Vocabulary::from_metadata(&args.name(), &file.metadata)?.map(Arc::new);
        let choice = args.chat_template.as_deref();
        let template = tokenizer.as_ref().map(|t| chat_template::open(choice, &file, t)).transpose()?;
        let reply_prefix_ids = attention_path::reply_prefix(template.as_ref(), tokenizer.as_deref());
        let context = args.ctx.unwrap_or(model.config.context);
        let mla = &model.config.mla;
        let cache = args.cache_type.unwrap_or_else(|| B::default_cache_format(mla.latent_dim, mla.pe_dim));
        let (batch, max_state_bytes) = (args.batch.unwrap_or(DEFAULT_BATCH), args.max_state_bytes);
        let sizes = Sizes::of(&backend, &model.config, cache);
        let (backend, shape) = (Arc::new(backend), StateShape { config: model.config.clone(), cache, sizes });
        let changed_reply_prefix = choice.map(|_| reply_prefix_ids.clone());
        let options = StoreOptions { reply_prefix_ids: changed_reply_prefix, ..args.store.clone() };
        let store_log = Box::new(move |line: &str| store_log(line));
        let store = Arc::new(options.open(&backend, &file, shape, store_log)?);
        let (config, change_reported) = (model.config.clone(), Once::new());
        let base = EngineBase {
            config,
            tokenizer,
            template,
            reply_prefix_ids,
            context,
            batch,
            cache,
            max_state_bytes,
            draft: args.draft,
            sampling,
            file,
            log,
            change_reported,
        };
        Ok(Engine { base, backend, model, store })
    }

    /// Encodes a rendered conversation and keeps the ids of cached prefixes: [`retokenize::encode`].
    pub fn encode(&self, rendered: &Rendered, vocabulary: &Vocabulary) -> Vec<u32> {
        self.encode_within(Namespace::SHARED, rendered, vocabulary)
    }

    /// Encodes as [`Engine::encode`] does, with the cached prefixes of one namespace.
    pub fn encode_within(
        &self,
        namespace: Namespace,
        rendered: &Rendered,
        vocabulary: &Vocabulary,
    ) -> Vec<u32> {
        retokenize::encode(&self.store.within(namespace), rendered, vocabulary)
    }

    /// Describes the device that computes.
    pub fn describe(&self) -> String {
        self.backend.describe()
    }

    /// Computes the logits after each token from `start` on, from an empty state without materialized attention. Passes
    /// the rows of each batch to `on_rows`.
    pub fn logits_from(
        &self,
        tokens: &[u32],
        start: usize,
        on_rows: &mut dyn FnMut(Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        let Engine { backend, model, .. } = self;
        let mut state = model.state(backend, self.cache);
        let (head, tail) = tokens.split_at(start);
        let head = head.chunks(self.batch).map(|tokens| (tokens, Outputs::None));
        for (tokens, outputs) in head.chain(tail.chunks(self.batch).map(|tokens| (tokens, Outputs::All))) {
            let mut batch = [Sequence { tokens, state: &mut state, outputs, mla_path: MlaPath::Absorbed }];
            if let Some(logits) = model.forward(backend, &mut batch, &mut ()) {
                on_rows(backend.read(&logits))?;
            }
        }
        Ok(())
    }
}

impl EngineBase {
    /// Returns whether computed states may be cached: not if the model file was truncated or overwritten while in
    /// use, which is logged once. Costs a system call.
    pub fn may_cache(&self) -> bool {
        let changed = self.file.check_unchanged().err();
        if let Some(e) = &changed {
            self.change_reported
                .call_once(|| (self.log)(&format!("{e}; replies since then may be wrong. Restart kimi.")));
        }
        changed.is_none()
    }

    /// Returns the tokenizer.
    ///
    /// # Errors
    /// The model file has none.
    pub fn tokenizer(&self) -> Result<&Arc<Vocabulary>> {
        let file = || format!("{} has no tokenizer, so it cannot be used with text", self.file_name());
        self.tokenizer.as_ref().with_context(file)
    }

    /// Returns the tokenizer as [`EngineBase::tokenizer`] does, for commands that also take token ids.
    ///
    /// # Errors
    /// The model file has none; the message names `--ids`.
    pub fn tokenizer_or_ids(&self) -> Result<&Arc<Vocabulary>> {
        self.tokenizer().map_err(|e| anyhow!("{e}; give token ids with --ids"))
    }

    fn file_name(&self) -> String {
        self.file.paths().first().map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// Encodes a prompt without a template; names of special tokens are ordinary text.
    pub fn raw_ids(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            Prompt::Text(text) => Ok(self.tokenizer_or_ids()?.encode(text)),
        }
    }

    /// Returns the attention path of the first of these tokens of a prompt, and the end of the run of tokens that
    /// share it. `question` is the start of the question about a document.
    pub fn mla_path(
        &self,
        prompt: &[u32],
        tokens: Range<usize>,
        question: Option<usize>,
    ) -> (MlaPath, usize) {
        self.message_boundaries().mla_path(prompt, tokens, question)
    }

    /// Returns whether prefill would use materialized attention for some of these decoded tokens; the state after
    /// them is then not cached.
    pub fn is_noncanonical(&self, all: &[u32], tokens: Range<usize>) -> bool {
        self.message_boundaries().is_noncanonical(all, tokens)
    }

    fn message_boundaries(&self) -> MessageBoundaries<'_> {
        MessageBoundaries { reply_prefix_ids: &self.reply_prefix_ids, tokenizer: self.tokenizer.as_deref() }
    }

    /// Returns the maximum tokens of a batch, which is larger for materialized attention: the cost of materializing
    /// keys and values hardly depends on the batch size.
    pub fn max_step_tokens(&self, path: MlaPath) -> usize {
        if path == MlaPath::Materialized { self.batch * MATERIALIZED_BATCH_FACTOR } else { self.batch }
    }

    /// Returns whether a token is an end-of-generation token.
    pub fn is_end(&self, token: u32) -> bool {
        self.tokenizer.as_ref().is_some_and(|t| t.is_end(token))
    }

    /// Checks a prompt before it is prefilled.
    ///
    /// # Errors
    /// The prompt is empty, exceeds the context or has an unknown token id, or the model file was changed while in use.
    pub fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        self.file.check_unchanged()?;
        if prompt.is_empty() {
            return Err(Error::Empty);
        }
        self.check_ids(0, prompt)?;
        self.check_length(prompt.len())
    }

    pub(super) fn check_ids(&self, start: usize, ids: &[u32]) -> Result<(), Error> {
        let vocab = self.config.vocab;
        match ids.iter().position(|id| *id as usize >= vocab) {
            Some(i) => Err(Error::Vocabulary { index: start + i, vocab, id: ids[i] }),
            None => Ok(()),
        }
    }

    pub(super) fn check_length(&self, tokens: usize) -> Result<(), Error> {
        let (limit, found) = (self.context, tokens as u64);
        if found > limit { Err(Error::Context { limit, found }) } else { Ok(()) }
    }
}

/// Returns a warning about the small tensors with NaN or infinite values, if any.
fn not_finite_line(model: &str, found: &[NotFinite]) -> Option<String> {
    let first = found.first()?;
    let others = match found.len() - 1 {
        0 => String::new(),
        n => format!(" (and {})", counted(n, "other tensor")),
    };
    Some(format!("warning: {model}: {first}{others}; replies may be meaningless (kimi inspect --check)"))
}
