//! A loaded model with everything it needs to run: backend, weights, tokenizer, chat template.

use super::attention_path::{self, MATERIALIZED_BATCH_FACTOR, MessageBoundaries};
use super::builtin_model;
use super::chat_template;
use super::options::EngineArgs;
use super::session;
use crate::io::host_memory;
use crate::io::log::Log;
use crate::io::output::tell;
use crate::io::prompt::Prompt;
use crate::io::units::format_size;
use crate::prefix_cache::disk::Shape;
use crate::prefix_cache::namespace::Namespace;
use crate::prefix_cache::options::StoreOptions;
use crate::prefix_cache::retokenize;
use crate::prefix_cache::{Sizes, Store};
use anyhow::{Context as _, Result};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use models::gguf::read::Gguf;
use models::kimi_linear::Model;
use models::kimi_linear::mla::MlaPath;
use models::kimi_linear::weights::NotFinite;
use models::template::{Rendered, Template};
use models::tokenizer::Vocabulary;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Once};

/// A model ready to run.
pub struct Engine<B: Backend> {
    /// Where it computes.
    pub backend: Arc<B>,
    /// The graph and its weights.
    pub model: Model<B>,
    /// Its tokenizer; None for a file usable by token ids only.
    pub tokenizer: Option<Arc<Vocabulary>>,
    /// How a conversation becomes a prompt; None without a tokenizer.
    pub template: Option<Template>,
    /// What the template writes before a reply.
    pub opening: Vec<u32>,
    /// Tokens a sequence may have.
    pub context: u64,
    /// Tokens of a prompt processed together.
    pub batch: usize,
    /// How latent caches are kept.
    pub cache: CacheFormat,
    /// Bytes that the states of all sequences may take together, where they are not in RAM.
    pub state_room: Option<u64>,
    /// What was read and may be gone on from; threads share it.
    pub store: Arc<Store<B>>,
    /// The file.
    pub file: Gguf,
    /// Takes lines about trouble.
    log: Arc<Log>,
    /// A change of the file was said.
    said: Once,
}

impl Engine<Cpu> {
    /// Loads a model on the CPU. Trouble with snapshots is told on standard error.
    pub fn open(args: &EngineArgs) -> Result<Self> {
        Engine::open_with(args, Box::new(tell))
    }

    /// Loads a model on the CPU. `log` hears of trouble with snapshots, a line each.
    pub fn open_with(args: &EngineArgs, log: Log) -> Result<Self> {
        args.announce(&log);
        Engine::load(Cpu::detect(args.threads), args, log)
    }
}

impl<B: Backend> Engine<B> {
    /// Loads a model on a backend.
    pub fn load(backend: B, args: &EngineArgs, log: Log) -> Result<Self> {
        let file = builtin_model::open(args.model.as_deref())?;
        if args.mlock {
            let needed = || {
                format!("--mlock: expected {} that may be locked (ulimit -l)", format_size(file.file_bytes()))
            };
            file.lock().with_context(needed)?;
        } else if host_memory::available(Path::new("/")).is_some_and(|free| free < file.file_bytes()) {
            backend.read_ahead();
        }
        let model = Model::load(&backend, &file)?;
        if let Some(line) = not_finite_line(&args.name(), &model.not_finite) {
            log(&line);
        }
        let log = Arc::new(log);
        let store_log = log.clone();
        let tokenizer = Vocabulary::from_metadata(&args.name(), &file.metadata)?.map(Arc::new);
        let choice = args.chat_template.as_deref();
        let template = tokenizer.as_ref().map(|t| chat_template::open(choice, &file, t)).transpose()?;
        let opening = attention_path::opening(template.as_ref(), tokenizer.as_deref());
        let context = args.ctx.unwrap_or(model.config.context);
        let (batch, cache, state_room) = (args.batch, args.cache_type.into(), args.state_room);
        let sizes = Sizes::of(&backend, &model.config, cache);
        let (backend, shape) = (Arc::new(backend), Shape { config: model.config.clone(), cache, sizes });
        let changed_opening = choice.map(|_| opening.clone());
        let options = StoreOptions { opening: changed_opening, ..args.store.clone() };
        let store_log = Box::new(move |line: &str| store_log(line));
        let store = Arc::new(options.open(&backend, &file, shape, store_log)?);
        Ok(Engine {
            backend,
            model,
            tokenizer,
            template,
            opening,
            context,
            batch,
            cache,
            state_room,
            store,
            file,
            log,
            said: Once::new(),
        })
    }

    /// Returns whether states computed up to now may be kept: not where the model's file was cut or written while in use,
    /// which is said once. Costs a system call.
    pub fn may_keep(&self) -> bool {
        let changed = self.file.check_unchanged().err();
        if let Some(e) = &changed {
            self.said.call_once(|| (self.log)(&format!("{e}: replies since then may be wrong; start again")));
        }
        changed.is_none()
    }

    /// The tokenizer, or an error that says how to do without.
    pub fn tokenizer(&self) -> Result<&Arc<Vocabulary>> {
        self.tokenizer.as_ref().context("the model file has no tokenizer: give token ids with --ids")
    }

    /// The token ids of a prompt as it is: text in which special tokens' names mean nothing.
    pub fn raw_ids(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            Prompt::Text(text) => Ok(self.tokenizer()?.encode(text)),
        }
    }

    /// The ids of a rendered conversation, by what was read or made before: [`retokenize::encode`].
    pub fn encode(&self, rendered: &Rendered, vocabulary: &Vocabulary) -> Vec<u32> {
        self.encode_within(Namespace::SHARED, rendered, vocabulary)
    }

    /// [`Engine::encode`] by what was read or made in a namespace.
    pub fn encode_within(
        &self,
        namespace: Namespace,
        rendered: &Rendered,
        vocabulary: &Vocabulary,
    ) -> Vec<u32> {
        retokenize::encode(&self.store.within(namespace), rendered, vocabulary)
    }

    /// The path of the first of these tokens of a prompt, and where those that share it end. `question`: where the
    /// question about a document begins.
    pub fn mla_path(
        &self,
        prompt: &[u32],
        tokens: Range<usize>,
        question: Option<usize>,
    ) -> (MlaPath, usize) {
        self.message_boundaries().mla_path(prompt, tokens, question)
    }

    /// Whether some of these tokens, which came one by one, would be read in expanded path: nobody else may go on from
    /// the state after them.
    pub fn is_noncanonical(&self, all: &[u32], tokens: Range<usize>) -> bool {
        self.message_boundaries().is_noncanonical(all, tokens)
    }

    fn message_boundaries(&self) -> MessageBoundaries<'_> {
        MessageBoundaries { opening: &self.opening, tokenizer: self.tokenizer.as_deref() }
    }

    /// Tokens that are read together at most: more where keys and values are made for a step, which costs the same for
    /// a few as for many.
    pub fn max_step_tokens(&self, path: MlaPath) -> usize {
        if path == MlaPath::Materialized { self.batch * MATERIALIZED_BATCH_FACTOR } else { self.batch }
    }

    /// Whether a token ends a reply.
    pub fn is_end(&self, token: u32) -> bool {
        self.tokenizer.as_ref().is_some_and(|t| t.is_end(token))
    }

    /// Checks a prompt before it is prefilled.
    ///
    /// # Errors
    /// The prompt is empty, exceeds the context or has an unknown token id, or the model file was changed while in use.
    pub fn check(&self, prompt: &[u32]) -> Result<(), session::Error> {
        self.file.check_unchanged()?;
        if prompt.is_empty() {
            return Err(session::Error::Empty);
        }
        self.check_ids(0, prompt)?;
        self.check_room(prompt.len())
    }

    pub(super) fn check_ids(&self, start: usize, ids: &[u32]) -> Result<(), session::Error> {
        let vocab = self.model.config.vocab;
        match ids.iter().position(|id| *id as usize >= vocab) {
            Some(i) => Err(session::Error::Vocabulary { index: start + i, vocab, id: ids[i] }),
            None => Ok(()),
        }
    }

    pub(super) fn check_room(&self, tokens: usize) -> Result<(), session::Error> {
        let (limit, found) = (self.context, tokens as u64);
        if found > limit { Err(session::Error::Context { limit, found }) } else { Ok(()) }
    }
}

/// One line about all small tensors that hold NaN or infinities; None where there are none.
fn not_finite_line(model: &str, found: &[NotFinite]) -> Option<String> {
    let first = found.first()?;
    let others = match found.len() - 1 {
        0 => String::new(),
        n => format!(" ({n} other tensors too)"),
    };
    Some(format!("warning: {model}: {first}{others}; replies may be void (kimi inspect --check)"))
}
