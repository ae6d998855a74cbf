//! A loaded model with everything it needs to run: backend, weights, tokenizer, chat template.

use crate::io::host_memory;
use crate::io::log::Log;
use crate::io::output::tell;
use crate::io::prompt::Prompt;
use crate::io::units::format_size;
use crate::prefix_cache::disk::Shape;
use crate::prefix_cache::options::StoreOptions;
use crate::prefix_cache::{Sizes, Store};
use crate::runtime::attention_path::{self, Reader};
use crate::runtime::builtin_model;
use crate::runtime::chat_template;
use crate::runtime::device::DeviceArgs;
use anyhow::{Context as _, Result};
use clap::builder::RangedU64ValueParser;
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use models::gguf::read::Gguf;
use models::kimi_linear::Model;
use models::kimi_linear::weights::NotFinite;
use models::template::Template;
use models::tokenizer::Vocabulary;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

/// Which model to load, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineArgs {
    /// The model file (GGUF, architecture kimi-linear; default: a small demonstration model in the program)
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Threads that compute (default: all cores this process may use)
    #[arg(short, long, value_name = "N", value_parser = threads())]
    pub threads: Option<usize>,
    /// Tokens of context at most (default: what the model was made for)
    #[arg(short, long, value_name = "TOKENS")]
    pub ctx: Option<u64>,
    /// Tokens of a prompt processed together, twice as many far inside a long text; more is faster and takes more memory
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512, value_parser = at_least_one())]
    pub batch: usize,
    /// How the latent cache is kept
    #[arg(long, value_enum, default_value_t = CacheType::F16)]
    pub cache_type: CacheType,
    /// Chat template to use instead of the model file's: a file, or `builtin`
    #[arg(long, visible_alias = "chat-template-file", value_name = "FILE|builtin")]
    pub chat_template: Option<PathBuf>,
    /// Read the whole model file now and keep it in memory
    #[arg(long)]
    pub mlock: bool,
    /// Where it computes
    #[command(flatten)]
    pub device: DeviceArgs,
    /// What is kept of what was read
    #[command(flatten)]
    pub store: StoreOptions,
    /// Bytes that the states of all sequences may take together, where they are not in RAM: the device's plan says so
    #[arg(skip)]
    pub state_room: Option<u64>,
}

/// A number of threads. The most is far above any machine; beyond the system's limit a thread's start aborts the process.
pub fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}

/// A number of things of which none would be nothing to do.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// How the latent cache is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheType {
    /// Exact, 4 bytes a value
    F32,
    /// 2 bytes a value
    F16,
    /// 34 bytes for 32 values
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<CacheType> for CacheFormat {
    fn from(t: CacheType) -> Self {
        match t {
            CacheType::F32 => CacheFormat::F32,
            CacheType::F16 => CacheFormat::F16,
            CacheType::Q8_0 => CacheFormat::Q8_0,
        }
    }
}

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

impl EngineArgs {
    /// The model's name for messages: its path, or what the built-in one is called.
    pub fn name(&self) -> String {
        self.model.as_ref().map_or(builtin_model::NAME.into(), |path| path.display().to_string())
    }

    /// Says so where the model is the built-in one.
    pub fn announce(&self, log: &Log) {
        if self.model.is_none() {
            log(builtin_model::NOTICE);
        }
    }

    /// The same for another reader.
    pub fn read_by(&self, reader: Reader) -> EngineArgs {
        EngineArgs { store: StoreOptions { reader, ..self.store.clone() }, ..self.clone() }
    }

    /// The same, keeping what is read in memory only.
    pub fn in_memory(&self) -> EngineArgs {
        EngineArgs { store: StoreOptions::in_memory(), ..self.clone() }
    }

    /// The same, keeping nothing of what is read: for measurements.
    pub fn without_snapshots(&self) -> EngineArgs {
        EngineArgs { store: StoreOptions::nothing(), ..self.clone() }
    }
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

    /// Whether a token ends a reply.
    pub fn is_end(&self, token: u32) -> bool {
        self.tokenizer.as_ref().is_some_and(|t| t.is_end(token))
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
