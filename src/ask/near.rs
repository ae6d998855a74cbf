//! A model here answers: the files are read once, and what was read is kept on the way.

use super::copying::Copies;
use super::reading::Reading;
use super::{AskArgs, BETWEEN, Source, joined};
use crate::generation::conversation::Conversation;
use crate::generation::generate::{Event, Request, Stats, generate};
use crate::io::document::Document;
use crate::runtime::engine::Engine;
use crate::runtime::session::Session;
use anyhow::{Result, bail};
use kernels::backend::Backend;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// Tokens before the end of an earlier file that the next file cannot change.
const MARGIN: usize = 8;

/// A model here.
pub(super) struct Near<'e, B: Backend> {
    engine: &'e Engine<B>,
    args: &'e AskArgs,
    session: Session<'e, B>,
    conversation: Conversation,
    /// The files' names.
    names: Vec<String>,
    /// The tokens that all first questions begin with.
    common: Vec<u32>,
    /// Ends of the files in them.
    ends: Vec<usize>,
    /// The files stand in the conversation.
    read: bool,
    /// What quotes are copied from; none where none are asked for.
    copies: Option<Arc<Copies>>,
}

impl<'e, B: Backend> Near<'e, B> {
    pub(super) fn new(engine: &'e Engine<B>, documents: &[Document], args: &'e AskArgs) -> Result<Self> {
        let common = common(engine, &joined(documents))?;
        Ok(Near {
            engine,
            args,
            session: Session::new(engine),
            conversation: Conversation::default(),
            names: documents.iter().map(|d| d.name.clone()).collect(),
            ends: ends(engine, documents, common.len())?,
            common,
            read: false,
            copies: if args.no_quotes { None } else { Some(copies(engine, documents)?) },
        })
    }

    fn answer(&mut self, on: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(String, Stats)> {
        let prompt = self.conversation.prompt(self.engine)?;
        let start = Instant::now();
        let found = self.session.restore_prefix(&prompt)?;
        let resumed = start.elapsed();
        let mut reading = Reading::new(self.engine, prompt.len(), found, self.args.quiet);
        let same = self.common.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
        self.session.checkpoint_at(&[&self.ends[..], &[same]].concat());
        self.session.question_at(same);
        if !self.read {
            let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
            reading.announce(&names, self.args.max_tokens, self.args.force)?;
        }
        let request = Request {
            prompt: &prompt,
            max_tokens: self.args.max_tokens,
            sampling: self.args.sampling,
            stops: &[],
            ignore_end: false,
            constraint: self.copies.as_ref().map(Copies::constraint),
        };
        let (mut text, mut ids) = (String::new(), Vec::new());
        let mut stats = generate(&mut self.session, request, &mut |event| match event {
            Event::Prefill { done, .. } => {
                reading.progress(done);
                on("")
            }
            Event::Token(id) => {
                ids.push(id);
                on("")
            }
            Event::Text(new) => {
                text.push_str(new);
                on(new)
            }
        })?;
        reading.finish();
        if stats.prefill.stopped {
            let (read, all) = (self.session.tokens().len(), prompt.len());
            bail!(
                "stopped after {read} of {all} tokens; what was read is kept, the same question goes on from it"
            );
        }
        (stats.prefill.reused, stats.prefill.source) = (found.reused, found.source);
        stats.prefill_time += resumed;
        self.conversation.reply(&text, &ids);
        Ok((text, stats))
    }
}

impl<B: Backend> Source for Near<'_, B> {
    fn reply(&mut self, said: &str, on: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(String, Stats)> {
        self.conversation.say("user", said);
        let answered = self.answer(on);
        match &answered {
            Ok(_) => self.read = true,
            Err(_) => drop(self.conversation.undo()),
        }
        answered
    }
}

fn copies<B: Backend>(engine: &Engine<B>, documents: &[Document]) -> Result<Arc<Copies>> {
    Ok(Arc::new(Copies::new(documents, engine.tokenizer()?, engine.model.config.vocab)))
}

/// The tokens that every question about a document begins with: what prompts of unlike questions share.
fn common<B: Backend>(engine: &Engine<B>, document: &str) -> Result<Vec<u32>> {
    let prompt = |question: &str| {
        let mut conversation = Conversation::default();
        conversation.say("user", &format!("{document}{BETWEEN}{question}"));
        conversation.prompt(engine)
    };
    let mut common = prompt("Who")?;
    for question in ["1", "那", "(b"] {
        let other = prompt(question)?;
        common.truncate(common.iter().zip(&other).take_while(|(a, b)| a == b).count());
    }
    Ok(common)
}

/// About where each file but the last ends: a directory with another file more is then read from there.
fn ends<B: Backend>(engine: &Engine<B>, documents: &[Document], common: usize) -> Result<Vec<usize>> {
    let tokenizer = engine.tokenizer()?;
    let (mut end, mut ends) = (common, Vec::new());
    for document in documents.iter().skip(1).rev() {
        let name = tokenizer.encode(&document.name).len();
        end = end.saturating_sub(tokenizer.encode(&document.text).len() + name + 2);
        ends.push(end.saturating_sub(MARGIN));
    }
    ends.reverse();
    Ok(ends)
}
