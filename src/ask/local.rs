//! A [`Model`] that runs in this process. The files are prefilled once, with snapshots for the prefix cache.

use super::prefill_progress::PrefillProgress;
use super::quote_constraint::QuoteIndex;
use super::{AskArgs, Model, SEPARATOR, joined};
use crate::generation::conversation::Conversation;
use crate::generation::event::{EngineEvent, Stats};
use crate::generation::generate::{Request, generate};
use crate::io::document::Document;
use crate::runtime::handle::{EngineHandle, SessionHandle};
use anyhow::{Result, bail};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// Tokens between a snapshot and the end of its file, as the tokens at the end depend on the next file.
const MARGIN: usize = 8;

/// An engine with one conversation about the files.
pub(super) struct LocalModel<'e> {
    engine: &'e EngineHandle,
    args: &'e AskArgs,
    session: SessionHandle<'e>,
    conversation: Conversation,
    names: Vec<String>,
    /// The common prefix of all first prompts, up to the question.
    common: Vec<u32>,
    /// Token offsets in `common` near the ends of the files.
    ends: Vec<usize>,
    /// The files are in the conversation.
    has_files: bool,
    /// The index of the files for quotes; None with `--no-quotes`.
    quote_index: Option<Arc<QuoteIndex>>,
}

impl<'e> LocalModel<'e> {
    pub(super) fn new(engine: &'e EngineHandle, documents: &[Document], args: &'e AskArgs) -> Result<Self> {
        let common = common(engine, &joined(documents))?;
        Ok(LocalModel {
            engine,
            args,
            session: engine.session(),
            conversation: Conversation::default(),
            names: documents.iter().map(|d| d.name.clone()).collect(),
            ends: ends(engine, documents, common.len())?,
            common,
            has_files: false,
            quote_index: if args.no_quotes { None } else { Some(quote_index(engine, documents)?) },
        })
    }

    fn answer(&mut self, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(String, Stats)> {
        let prompt = self.conversation.prompt(self.engine)?;
        let start = Instant::now();
        let found = self.session.restore_prefix(&prompt)?;
        let restore_time = start.elapsed();
        let mut progress = PrefillProgress::new(self.engine, prompt.len(), found, self.args.quiet);
        let same = self.common.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
        self.session.snapshot_at(&[&self.ends[..], &[same]].concat());
        self.session.question_at(same);
        if !self.has_files {
            let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
            progress.announce(&names, self.args.max_tokens, self.args.force)?;
        }
        let request = Request {
            prompt: &prompt,
            max_tokens: self.args.max_tokens,
            sampling: self.args.sampling,
            stops: &[],
            ignore_end: false,
            constraint: self.quote_index.as_ref().map(QuoteIndex::constraint),
        };
        let (mut text, mut ids) = (String::new(), Vec::new());
        let mut stats = generate(&mut self.session, request, &mut |event| match event {
            EngineEvent::Prefill { done, .. } => {
                progress.update(done);
                on_text("")
            }
            EngineEvent::Token { token, text: new, .. } => {
                ids.extend(token);
                text.push_str(&new);
                on_text(&new)
            }
            EngineEvent::Finished(_) => ControlFlow::Continue(()),
        })?;
        progress.finish();
        if stats.prefill.stopped {
            let (read, all) = (self.session.tokens().len(), prompt.len());
            let kept = self.args.asks_again() || self.engine.keeps_on_disk(read);
            let note = if kept {
                "the prefilled tokens are kept; ask again to resume"
            } else {
                "none of them are kept"
            };
            bail!("stopped after {read} of {all} tokens; {note}");
        }
        (stats.prefill.reused, stats.prefill.source) = (found.reused, found.source);
        stats.prefill_time += restore_time;
        self.conversation.reply(&text, &ids);
        Ok((text, stats))
    }
}

impl Model for LocalModel<'_> {
    fn reply(
        &mut self,
        message: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(String, Stats)> {
        self.conversation.say("user", message);
        let answer = self.answer(on_text);
        match &answer {
            Ok(_) => self.has_files = true,
            Err(_) => drop(self.conversation.undo()),
        }
        answer
    }
}

fn quote_index(engine: &EngineHandle, documents: &[Document]) -> Result<Arc<QuoteIndex>> {
    Ok(Arc::new(QuoteIndex::new(documents, engine.tokenizer()?, engine.config.vocab)))
}

/// The tokens that all prompts about a document begin with, as the common prefix of prompts with different questions.
fn common(engine: &EngineHandle, document: &str) -> Result<Vec<u32>> {
    let prompt = |question: &str| {
        let mut conversation = Conversation::default();
        conversation.say("user", &format!("{document}{SEPARATOR}{question}"));
        conversation.prompt(engine)
    };
    let mut common = prompt("Who")?;
    for question in ["1", "那", "(b"] {
        let other = prompt(question)?;
        common.truncate(common.iter().zip(&other).take_while(|(a, b)| a == b).count());
    }
    Ok(common)
}

/// Approximate token offsets of the ends of all files but the last. Snapshots there are reused when files are added.
fn ends(engine: &EngineHandle, documents: &[Document], common: usize) -> Result<Vec<usize>> {
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
