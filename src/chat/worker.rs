//! The thread that runs the model: commands arrive on one channel, events leave on another, and a flag stops the
//! current reply.
//!
//! Next: [`super::terminal`], which receives the events.

use super::chat_model::{ChatModel, ChatRequest, LocalModel, ModelInfo, Outcome, Progress};
use super::remote_model::RemoteModel;
use crate::client::{EndpointArgs, Remote};
use crate::io::errors::one_line;
use crate::runtime::handle::EngineHandle;
use crate::runtime::options::LoadOptions;
use anyhow::Result;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// A command to the worker thread.
#[derive(Debug)]
pub enum Command {
    Generate(ChatRequest),
    /// Replaces the model by the one in this file, or of this name at the endpoint.
    LoadModel(PathBuf),
}

/// An event from the worker thread. Rates are in tokens per second, 0 while unknown.
#[derive(Debug)]
pub enum Event {
    /// A model is loaded and accepts commands.
    Ready(ModelInfo),
    /// `done` of `total` prompt tokens are prefilled.
    Prefill { done: usize, total: usize, rate: f64 },
    /// More text of the reply, which has `tokens` tokens so far.
    Text { text: String, tokens: usize, rate: f64 },
    /// The reply is complete or was stopped.
    Done(Outcome),
    /// The command failed, with the error in one line.
    Failed(String),
    /// A message for the user that belongs to no reply, such as a warning from the prefix cache.
    Note(String),
}

/// Handle to the worker thread.
pub struct Worker {
    thread: JoinHandle<()>,
    pub commands: Sender<Command>,
    pub events: Receiver<Event>,
    /// Set to stop the current reply.
    pub stop: Arc<AtomicBool>,
}

impl Worker {
    /// Starts the thread, which first loads the model: the file, or the one of that name at an endpoint.
    pub fn start(args: LoadOptions, endpoint: EndpointArgs) -> Self {
        let (commands, inbox) = channel();
        let (outbox, events) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let state = WorkerThread { inbox, outbox, stop: stop.clone() };
        let thread = std::thread::spawn(move || match endpoint.url {
            Some(url) => state.run_remote(&url, endpoint.timeout, &args),
            None => state.run_local(args),
        });
        Worker { thread, commands, events, stop }
    }

    /// Stops the current reply and waits until the model's state is saved.
    pub fn close(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.commands);
        self.thread.join().map_err(|_| anyhow::anyhow!("the engine stopped; the chat is saved"))
    }
}

/// The thread's ends of the channels.
struct WorkerThread {
    inbox: Receiver<Command>,
    outbox: Sender<Event>,
    stop: Arc<AtomicBool>,
}

impl WorkerThread {
    fn run_local(&self, args: LoadOptions) {
        let load = |path| {
            let args = LoadOptions { model: path, ..args.clone() };
            Ok((self.load(&args)?, args.name()))
        };
        let mut next = load(args.model.clone());
        loop {
            match next {
                Ok((engine, name)) => {
                    let model = LocalModel::new(&engine, Path::new(&name));
                    match self.serve(model, &mut |path| load(Some(path))) {
                        Some(other) => next = Ok(other),
                        None => return,
                    }
                }
                Err(e) => return self.send(Event::Failed(one_line(&e))),
            }
        }
    }

    fn run_remote(&self, url: &str, timeout: u64, args: &LoadOptions) {
        let Some(mut name) = args.model.clone() else {
            return self.send(Event::Failed("--url also needs a model name: -m NAME".into()));
        };
        let connect = |name: &Path| RemoteModel::new(Remote::new(url, &name.to_string_lossy(), timeout)?);
        loop {
            match connect(&name) {
                Ok(model) => match self.serve(model, &mut |path| connect(&path).map(|_| path)) {
                    Some(path) => name = path,
                    None => return,
                },
                Err(e) => return self.send(Event::Failed(one_line(&e))),
            }
        }
    }

    /// Runs commands until the channel closes or another model is loaded, which it returns.
    fn serve<T>(&self, mut model: impl ChatModel, load: &mut dyn FnMut(PathBuf) -> Result<T>) -> Option<T> {
        self.send(Event::Ready(model.info()));
        while let Ok(command) = self.inbox.recv() {
            match command {
                Command::Generate(request) => self.generate(&mut model, &request),
                Command::LoadModel(path) => match load(path) {
                    Ok(other) => return Some(other),
                    Err(e) => self.send(Event::Failed(one_line(&e))),
                },
            }
        }
        model.save_state();
        None
    }

    fn generate(&self, model: &mut impl ChatModel, request: &ChatRequest) {
        let outcome = model.reply(request, &mut |progress| {
            match progress {
                Progress::Waiting => {}
                Progress::Prefill { done, total, rate } => self.send(Event::Prefill { done, total, rate }),
                Progress::Text { text, tokens, rate } => {
                    self.send(Event::Text { text: text.to_owned(), tokens, rate });
                }
            }
            if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.send(match outcome {
            Ok(outcome) => Event::Done(outcome),
            Err(e) => Event::Failed(one_line(&e)),
        });
    }

    /// Loads a model that has a tokenizer; errors of its prefix cache become notes.
    fn load(&self, args: &LoadOptions) -> Result<EngineHandle> {
        let outbox = self.outbox.clone();
        let note = move |line: &str| drop(outbox.send(Event::Note(line.to_owned())));
        let engine = EngineHandle::load(args, Box::new(note))?;
        engine.tokenizer()?;
        Ok(engine)
    }

    /// Sends an event. A closed channel means that the interface is exiting, and is no error.
    fn send(&self, event: Event) {
        let _ = self.outbox.send(event);
    }
}
