//! A loaded model on the selected device, without the type of its backend: [`EngineHandle`] and its [`SessionHandle`]s.
//!
//! The engine, sessions and the scheduler are generic over the backend, so that the forward pass has no virtual calls; the
//! code above them uses these handles. A command that needs a backend itself matches on the handle.
//! Next: [`super::device`].

use super::device::{self, Chosen};
use super::engine::{Engine, EngineBase};
use super::errors::Error;
use super::options::LoadOptions;
use super::session::{Prefill, Session};
use crate::io::log::Log;
use crate::io::output::tell;
use crate::prefix_cache::Sizes;
use crate::prefix_cache::cause::MissCause;
use crate::prefix_cache::namespace::Namespace;
use anyhow::Result;
use kernels::cpu::Cpu;
use kernels::cuda::Cuda;
use models::template::Rendered;
use models::tokenizer::Vocabulary;
use std::ops::Deref;
use std::sync::Arc;

/// A loaded model. Clones share it.
#[derive(Clone)]
pub enum EngineHandle {
    Cpu(Arc<Engine<Cpu>>),
    Cuda(Arc<Engine<Cuda>>),
}

/// A session of a loaded model.
pub enum SessionHandle<'e> {
    Cpu(Session<'e, Cpu>),
    Cuda(Session<'e, Cuda>),
}

/// Evaluates an expression with the engine or session of either backend.
macro_rules! on_backend {
    ($handle:expr, $kind:ident, $inner:ident => $body:expr) => {
        match $handle {
            $kind::Cpu($inner) => $body,
            $kind::Cuda($inner) => $body,
        }
    };
}

impl EngineHandle {
    /// Loads a model on the device of the options and logs to standard error.
    pub fn open(options: &LoadOptions) -> Result<Self> {
        EngineHandle::load(options, Box::new(tell))
    }

    /// Loads a model on the device of the options. Without `--device cuda` a model that does not load on the GPU is loaded on
    /// the CPU. `log` receives notices and warnings, one line each.
    pub fn load(options: &LoadOptions, log: Log) -> Result<Self> {
        options.prepare(&log)?;
        let (backend, planned) = match device::choose(options, &log)? {
            Chosen::Cpu(backend) => return EngineHandle::load_on_cpu(backend, options, log),
            Chosen::Cuda(backend, planned) => (backend, planned),
        };
        let log = Arc::new(log);
        let shared = || -> Log {
            let log = log.clone();
            Box::new(move |line: &str| log(line))
        };
        match device::catch_failure(|| Engine::load(*backend, &planned, shared())) {
            Ok(engine) => Ok(EngineHandle::Cuda(Arc::new(engine))),
            Err(e) if device::may_use_cpu_after(&e, options) => {
                log(&format!("warning: the model does not load on the GPU: {e:#}; computing on the CPU"));
                EngineHandle::load_on_cpu(Cpu::detect(options.threads), options, shared())
            }
            Err(e) => Err(e),
        }
    }

    fn load_on_cpu(backend: Cpu, options: &LoadOptions, log: Log) -> Result<Self> {
        Ok(EngineHandle::Cpu(Arc::new(Engine::load(backend, options, log)?)))
    }

    pub fn session(&self) -> SessionHandle<'_> {
        self.session_within(Namespace::SHARED)
    }

    /// Creates a session that uses this namespace of the prefix cache.
    pub fn session_within(&self, namespace: Namespace) -> SessionHandle<'_> {
        match self {
            EngineHandle::Cpu(engine) => SessionHandle::Cpu(Session::within(engine, namespace)),
            EngineHandle::Cuda(engine) => SessionHandle::Cuda(Session::within(engine, namespace)),
        }
    }

    /// Describes the device that computes.
    pub fn describe(&self) -> String {
        on_backend!(self, EngineHandle, engine => engine.describe())
    }

    /// Bytes of a snapshot's parts in the prefix cache.
    pub fn sizes(&self) -> Sizes {
        on_backend!(self, EngineHandle, engine => engine.store.sizes())
    }

    /// Returns whether the prefix cache keeps the states after prefilled prompts in memory.
    pub fn keeps_prompts(&self) -> bool {
        on_backend!(self, EngineHandle, engine => engine.store.fits_in_memory() && engine.may_cache())
    }

    /// Returns whether a prefix of this many tokens is cached beyond the end of the process.
    pub fn keeps_on_disk(&self, tokens: usize) -> bool {
        on_backend!(self, EngineHandle, engine => engine.store.keeps_on_disk(tokens))
    }

    /// Does [`Engine::encode_within`] on this engine.
    pub fn encode_within(
        &self,
        namespace: Namespace,
        rendered: &Rendered,
        vocabulary: &Vocabulary,
    ) -> Vec<u32> {
        on_backend!(self, EngineHandle, engine => engine.encode_within(namespace, rendered, vocabulary))
    }

    /// Records the names of the documents that a prefix consists of, for `ask --list`.
    pub fn name_prefix(&self, namespace: Namespace, names: &[String], model: &str, tokens: &[u32]) {
        on_backend!(self, EngineHandle, engine => engine.store.within(namespace).name_prefix(names, model, tokens));
    }

    /// Removes the states of documents, and of questions about them, from the prefix cache.
    pub fn forget(&self, namespace: Namespace, tokens: &[u32]) {
        on_backend!(self, EngineHandle, engine => engine.store.within(namespace).forget(tokens));
    }

    /// Returns the length of the longest cached prefix of a prompt, without restoring it.
    pub fn cached_len(&self, namespace: Namespace, prompt: &[u32]) -> usize {
        on_backend!(self, EngineHandle, engine => engine.store.within(namespace).cached_len(prompt))
    }

    /// Returns the cause for which a prefix of a prompt that is cached on disk under another key is not used.
    pub fn other_key(&self, namespace: Namespace, prompt: &[u32]) -> Option<MissCause> {
        on_backend!(self, EngineHandle, engine => engine.store.within(namespace).other_key(&engine.backend, prompt))
    }

    /// Does [`Engine::logits_from`] on this engine.
    pub fn logits_from(
        &self,
        tokens: &[u32],
        start: usize,
        on_rows: &mut dyn FnMut(Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        on_backend!(self, EngineHandle, engine => engine.logits_from(tokens, start, on_rows))
    }
}

impl Deref for EngineHandle {
    type Target = EngineBase;

    fn deref(&self) -> &EngineBase {
        on_backend!(self, EngineHandle, engine => engine)
    }
}

/// Each method does what the one of [`Session`] with its name does.
impl SessionHandle<'_> {
    pub fn tokens(&self) -> &[u32] {
        on_backend!(self, SessionHandle, session => session.tokens())
    }

    pub fn snapshot_at(&mut self, lengths: &[usize]) {
        on_backend!(self, SessionHandle, session => session.snapshot_at(lengths));
    }

    pub fn question_at(&mut self, length: usize) {
        on_backend!(self, SessionHandle, session => session.question_at(length));
    }

    pub fn snapshot_to_disk(&mut self) {
        on_backend!(self, SessionHandle, session => session.snapshot_to_disk());
    }

    pub fn restore_prefix(&mut self, prompt: &[u32]) -> Result<Prefill, Error> {
        on_backend!(self, SessionHandle, session => session.restore_prefix(prompt))
    }

    pub fn prefill(
        &mut self,
        prompt: &[u32],
        progress: &mut dyn FnMut(usize, usize) -> std::ops::ControlFlow<()>,
    ) -> Result<Prefill, Error> {
        on_backend!(self, SessionHandle, session => session.prefill(prompt, progress))
    }
}
