//! The thread that runs the model: commands arrive on one channel, events leave on another, and a flag stops the
//! current reply.
//!
//! Next: [`super::terminal`], which receives the events.

use super::chat_session::ChatPrompt;
use crate::client::{
    ChatModel, EndpointArgs, LocalModel, ModelEvent, ModelInfo, RemoteModel, ReplyOutcome, ReplyRequest,
};
use crate::generation::markup::ReplyEvent;
use crate::io::errors::one_line;
use crate::runtime::device;
use crate::runtime::handle::EngineHandle;
use crate::runtime::options::LoadOptions;
use anyhow::{Result, bail};
use kernels::cuda::DeviceFailure;
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// A command to the worker thread.
#[derive(Debug)]
pub enum WorkerCommand {
    Generate(ChatPrompt),
    /// Replaces the model by the one in this file, or of this name at the endpoint.
    LoadModel(PathBuf),
}

/// An event from the worker thread. Rates are in tokens per second, 0 while unknown.
#[derive(Debug)]
pub enum WorkerEvent {
    /// A model is loaded and accepts commands.
    Ready(ModelInfo),
    /// `done` of `total` prompt tokens are prefilled.
    Prefill { done: usize, total: usize, rate: f64 },
    /// A part of the reply, which has `tokens` tokens so far.
    Reply { event: ReplyEvent, tokens: usize, rate: f64 },
    /// The reply is complete or was stopped.
    Done(ReplyOutcome),
    /// The command failed, with the error in one line.
    Failed(String),
    /// A message for the user that belongs to no reply, such as a warning from the prefix cache.
    Note(String),
}

/// Handle to the worker thread.
pub struct ChatWorker {
    /// Returns the failure of the GPU, if there was one.
    thread: JoinHandle<Option<String>>,
    pub commands: Sender<WorkerCommand>,
    pub events: Receiver<WorkerEvent>,
    /// Set to stop the current reply.
    pub stop: Arc<AtomicBool>,
}

impl ChatWorker {
    /// Starts the thread, which first loads the model: the file, or the one of that name at an endpoint.
    pub fn start(args: LoadOptions, endpoint: EndpointArgs) -> Self {
        let (commands, inbox) = channel();
        let (outbox, events) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let state = WorkerThread { inbox, outbox, stop: stop.clone(), failure: RefCell::default() };
        let thread = std::thread::spawn(move || {
            match &endpoint.url {
                Some(url) => state.run_remote(url, &endpoint, &args),
                None => state.run_local(args),
            }
            state.failure.into_inner()
        });
        ChatWorker { thread, commands, events, stop }
    }

    /// Stops the current reply and waits until the model's state is saved.
    pub fn close(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.commands);
        match self.thread.join() {
            Ok(None) => Ok(()),
            Ok(Some(failure)) => bail!("{failure}; the chat is saved"),
            Err(_) => bail!("the engine stopped; the chat is saved"),
        }
    }
}

/// The thread's ends of the channels.
struct WorkerThread {
    inbox: Receiver<WorkerCommand>,
    outbox: Sender<WorkerEvent>,
    stop: Arc<AtomicBool>,
    /// The last failure of the GPU.
    failure: RefCell<Option<String>>,
}

impl WorkerThread {
    fn run_local(&self, args: LoadOptions) {
        let load = |path| {
            let args = LoadOptions { model: path, ..args.clone() };
            Ok((self.load(&args)?, args.name()))
        };
        let mut next = load(args.model.clone()).map(Some);
        loop {
            next = match next {
                Ok(Some((engine, name))) => {
                    let mut model = LocalModel::new(&engine, Path::new(&name));
                    Ok(self.serve(&mut model, &mut |path| load(Some(path))))
                }
                Ok(None) => return,
                Err(e) => return self.send(WorkerEvent::Failed(one_line(&e))),
            }
        }
    }

    fn run_remote(&self, url: &str, endpoint: &EndpointArgs, args: &LoadOptions) {
        let connect = |name: Option<&Path>| RemoteModel::connect(url, name, endpoint);
        let mut next = connect(args.model.as_deref()).map(Some);
        loop {
            next = match next {
                Ok(Some(mut model)) => Ok(self.serve(&mut model, &mut |path| connect(Some(&path)))),
                Ok(None) => return,
                Err(e) => return self.send(WorkerEvent::Failed(one_line(&e))),
            }
        }
    }

    /// Runs commands until the channel closes or another model is loaded, which it returns.
    fn serve<T>(&self, model: &mut dyn ChatModel, load: &mut dyn FnMut(PathBuf) -> Result<T>) -> Option<T> {
        self.send(WorkerEvent::Ready(model.info()));
        while let Ok(command) = self.inbox.recv() {
            match command {
                WorkerCommand::Generate(prompt) => self.generate(model, &prompt),
                WorkerCommand::LoadModel(path) => match load(path) {
                    Ok(other) => return Some(other),
                    Err(e) => self.send(WorkerEvent::Failed(one_line(&e))),
                },
            }
        }
        if self.failure.borrow().is_none() {
            model.save_state();
        }
        None
    }

    fn generate(&self, model: &mut dyn ChatModel, prompt: &ChatPrompt) {
        let request = ReplyRequest {
            messages: &prompt.messages(),
            max_tokens: prompt.max_tokens,
            sampling: prompt.sampling,
            given: prompt.given,
            prefix: None,
            constraint: None,
        };
        let mut on_event = |event| {
            match event {
                ModelEvent::Waiting | ModelEvent::PrefillStart { .. } => {}
                ModelEvent::Prefill { done, total, rate } => {
                    self.send(WorkerEvent::Prefill { done, total, rate })
                }
                ModelEvent::Reply { event, tokens, rate } => {
                    self.send(WorkerEvent::Reply { event, tokens, rate })
                }
            }
            if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let outcome = device::catch_failure(|| model.reply(request, &mut on_event));
        self.send(outcome.map_or_else(|e| WorkerEvent::Failed(self.explain(&e)), WorkerEvent::Done));
    }

    /// Describes the error of a reply. Later replies fail like one on a GPU that has failed.
    fn explain(&self, e: &anyhow::Error) -> String {
        let line = one_line(e);
        if !e.is::<DeviceFailure>() {
            return line;
        }
        *self.failure.borrow_mut() = Some(line.clone());
        format!("{line}; start again with --device cpu to use the CPU")
    }

    /// Loads a model that has a tokenizer; errors of its prefix cache become notes.
    fn load(&self, args: &LoadOptions) -> Result<EngineHandle> {
        let outbox = self.outbox.clone();
        let note = move |line: &str| drop(outbox.send(WorkerEvent::Note(line.to_owned())));
        let engine = device::catch_failure(|| EngineHandle::load(args, Box::new(note)))?;
        engine.tokenizer()?;
        Ok(engine)
    }

    /// Sends an event. A closed channel means that the interface is exiting, and is no error.
    fn send(&self, event: WorkerEvent) {
        let _ = self.outbox.send(event);
    }
}
