//! The thread that answers: asks come in by one channel, reports go out by another, a flag stops the reply.
//!
//! Next: [`super::terminal`], which reads the reports.

use super::far::Far as Elsewhere;
use super::reply::{About, Ask, Local, Outcome, Replier, Step};
use crate::client::{EndpointArgs, Remote};
use crate::io::errors::one_line;
use crate::runtime::engine::Engine;
use crate::runtime::on_device;
use crate::runtime::options::EngineArgs;
use anyhow::Result;
use kernels::backend::Backend;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What the thread is asked for.
#[derive(Debug)]
pub enum Order {
    /// A reply.
    Ask(Ask),
    /// Another model.
    Open(PathBuf),
}

/// What it tells.
#[derive(Debug)]
pub enum Report {
    /// This is being talked to.
    Ready(About),
    /// So much of the prompt is read.
    Reading {
        /// Tokens in.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens a second; 0 while unknown.
        rate: f64,
    },
    /// Text of the reply.
    Text {
        /// What came.
        text: String,
        /// Tokens so far.
        tokens: usize,
        /// Tokens a second; 0 while unknown.
        rate: f64,
    },
    /// The reply is finished.
    Done(Outcome),
    /// It failed, in one line.
    Failed(String),
    /// Something else that a person should know.
    Note(String),
}

/// The near end of the channels.
pub struct Worker {
    thread: JoinHandle<()>,
    /// Where orders go.
    pub orders: Sender<Order>,
    /// Where reports come from.
    pub reports: Receiver<Report>,
    /// Set to stop the reply under way.
    pub stop: Arc<AtomicBool>,
}

impl Worker {
    /// Starts the thread, which opens the model first: the file, or its namesake at an endpoint.
    pub fn start(args: EngineArgs, endpoint: EndpointArgs) -> Self {
        let (orders, inbox) = channel();
        let (outbox, reports) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let far = Far { inbox, outbox, stop: stop.clone() };
        let thread = std::thread::spawn(move || match endpoint.url {
            Some(url) => far.run_elsewhere(&url, endpoint.timeout, &args),
            None => far.run(args),
        });
        Worker { thread, orders, reports, stop }
    }

    /// Stops what is under way and waits until what was read is kept.
    pub fn close(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.orders);
        self.thread.join().map_err(|_| anyhow::anyhow!("the engine stopped; the chat is saved"))
    }
}

/// An opened model, on whatever device.
trait Model {
    /// Answers until nobody asks, or gives the model that was opened instead.
    fn talk(&self, far: &Far) -> Option<Box<dyn Model>>;
}

struct Open<B: Backend> {
    engine: Engine<B>,
    args: EngineArgs,
}

impl<B: Backend> Model for Open<B> {
    fn talk(&self, far: &Far) -> Option<Box<dyn Model>> {
        let replier = Local::new(&self.engine, Path::new(&self.args.name()));
        far.serve(replier, &mut |path| far.open(EngineArgs { model: Some(path), ..self.args.clone() }))
    }
}

/// The far end.
struct Far {
    inbox: Receiver<Order>,
    outbox: Sender<Report>,
    stop: Arc<AtomicBool>,
}

impl Far {
    fn run(&self, args: EngineArgs) {
        let mut next = self.open(args).map(Some);
        loop {
            next = match next {
                Ok(Some(model)) => Ok(model.talk(self)),
                Ok(None) => return,
                Err(e) => return self.tell(Report::Failed(one_line(&e))),
            }
        }
    }

    fn run_elsewhere(&self, url: &str, timeout: u64, args: &EngineArgs) {
        let Some(mut model) = args.model.clone() else {
            return self.tell(Report::Failed(
                "--url: expected the endpoint's name of a model with -m, found none".into(),
            ));
        };
        let elsewhere = |model: &Path| Elsewhere::new(Remote::new(url, &model.to_string_lossy(), timeout)?);
        loop {
            let far = elsewhere(&model);
            match far {
                Ok(replier) => match self.serve(replier, &mut |path| elsewhere(&path).map(|_| path)) {
                    Some(path) => model = path,
                    None => return,
                },
                Err(e) => return self.tell(Report::Failed(one_line(&e))),
            }
        }
    }

    /// Answers until nobody asks or another model is opened.
    fn serve<T>(&self, mut replier: impl Replier, open: &mut dyn FnMut(PathBuf) -> Result<T>) -> Option<T> {
        self.tell(Report::Ready(replier.about()));
        while let Ok(order) = self.inbox.recv() {
            match order {
                Order::Ask(ask) => self.answer(&mut replier, &ask),
                Order::Open(path) => match open(path) {
                    Ok(other) => return Some(other),
                    Err(e) => self.tell(Report::Failed(one_line(&e))),
                },
            }
        }
        replier.leave();
        None
    }

    fn answer(&self, replier: &mut impl Replier, ask: &Ask) {
        let outcome = replier.reply(ask, &mut |step| {
            match step {
                Step::Waiting => {}
                Step::Reading { done, total, rate } => self.tell(Report::Reading { done, total, rate }),
                Step::Text { text, tokens, rate } => {
                    self.tell(Report::Text { text: text.to_owned(), tokens, rate });
                }
            }
            if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.tell(match outcome {
            Ok(outcome) => Report::Done(outcome),
            Err(e) => Report::Failed(one_line(&e)),
        });
    }

    /// A model that one can talk with; trouble with its snapshots becomes notes.
    fn open(&self, args: EngineArgs) -> Result<Box<dyn Model>> {
        let outbox = self.outbox.clone();
        let note = move |line: &str| drop(outbox.send(Report::Note(line.to_owned())));
        on_device!(&args, Box::new(note), |engine| {
            engine.tokenizer()?;
            Ok(Box::new(Open { engine, args: args.clone() }))
        })
    }

    /// Whoever no longer listens is leaving, and the thread ends with the process.
    fn tell(&self, report: Report) {
        let _ = self.outbox.send(report);
    }
}
