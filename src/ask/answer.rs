//! Shows one answer while it is generated: the progress of its prefill, then its quotes with their locations, then its text
//! with marks at the parts that the files lack.
//!
//! Quotes come first. A reply that begins with anything else is withheld: if it quotes the files later, only its quotes
//! are shown, and the model answers again after them. Next: [`super::marked`].

use super::claims::ClaimChecker;
use super::file_prompt::FilePrompt;
use super::marked::{AnswerPiece, MarkedAnswer};
use super::prefill_progress::PrefillProgress;
use super::{Ask, AskArgs};
use crate::client::{ModelEvent, PromptMessage, ReplyOutcome};
use crate::document_qa::quotes::{FoldedTexts, quoted};
use crate::generation::generate::FinishReason;
use crate::generation::markup::ReplyEvent;
use crate::io::output::Output;
use anyhow::Result;
use std::io::{IsTerminal, Write};

/// Bytes of a reply without a quote that are withheld. A longer one is shown as it is.
const MAX_DRAFT_BYTES: usize = 400;

/// An answer that is being generated.
pub(super) struct AnswerView<'a> {
    args: &'a AskArgs,
    file_prompt: Option<&'a FilePrompt<'a>>,
    texts: &'a FoldedTexts,
    /// Whether the prompt contains the files.
    has_files: bool,
    progress: Option<PrefillProgress<'a>>,
    pub out: Output,
    pub marked: MarkedAnswer<'a>,
    /// The reply as the conversation continues with it.
    message: PromptMessage,
    /// The start of a reply that does not begin with a quote; None once the reply is shown.
    draft: Option<String>,
    /// The answer as it is printed, without the empty lines after reasoning.
    pub text: String,
    /// Tokens of the prompt; 0 before the prefill and for remote models.
    pub prompt_tokens: usize,
}

impl<'a> AnswerView<'a> {
    pub(super) fn new(ask: &Ask<'a>) -> Self {
        let checker = ClaimChecker::new(ask.evidence, &ask.questions);
        let colors = std::io::stdout().is_terminal() && !ask.args.json;
        AnswerView {
            args: ask.args,
            file_prompt: ask.file_prompt,
            texts: ask.texts,
            has_files: ask.document.is_some(),
            progress: None,
            out: Output::lock(),
            marked: MarkedAnswer::new(ask.texts, checker, colors),
            message: PromptMessage::new("assistant", ""),
            draft: (!ask.args.no_quotes).then(String::new),
            text: String::new(),
            prompt_tokens: 0,
        }
    }

    /// Shows an event of the model.
    ///
    /// # Errors
    /// The prompt does not fit into memory, or standard output cannot be written.
    pub(super) fn on_event(&mut self, event: ModelEvent) -> Result<()> {
        match event {
            ModelEvent::Waiting => {}
            ModelEvent::PrefillStart { total, found } => {
                self.prompt_tokens = total;
                if let Some(file_prompt) = self.file_prompt {
                    self.progress = Some(file_prompt.begin((total, found), self.has_files, self.args)?);
                }
            }
            ModelEvent::Prefill { done, .. } => {
                self.progress.iter_mut().for_each(|progress| progress.update(done));
            }
            ModelEvent::Reply { event, .. } => {
                event.append_to(&mut self.message.reasoning, &mut self.message.text);
                if let ReplyEvent::Text(text) = event {
                    self.receive(&text)?;
                }
            }
        }
        Ok(())
    }

    /// Shows text of the reply, or withholds it.
    fn receive(&mut self, text: &str) -> Result<()> {
        let Some(draft) = &mut self.draft else { return self.show(text) };
        draft.push_str(text);
        let start = draft.trim_start();
        let has_quote = draft.lines().any(|line| line.trim_start().starts_with('>'));
        if start.starts_with('>') || draft.len() > MAX_DRAFT_BYTES && !has_quote {
            self.release()?;
        }
        Ok(())
    }

    /// Shows the withheld text and ends the withholding.
    fn release(&mut self) -> Result<()> {
        self.draft.take().map_or(Ok(()), |draft| self.show(&draft))
    }

    fn show(&mut self, text: &str) -> Result<()> {
        let follows_reasoning = self.text.is_empty() && !self.message.reasoning.is_empty();
        let text = if follows_reasoning || self.text.ends_with("\n\n") { text.trim_start() } else { text };
        self.text.push_str(text);
        let pieces = self.marked.push(text);
        self.say(&pieces)
    }

    fn say(&mut self, pieces: &[AnswerPiece]) -> Result<()> {
        if self.args.json {
            return Ok(());
        }
        for piece in pieces {
            if piece.unsupported {
                let color =
                    if std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) { "" } else { ";33" };
                write!(self.out, "\x1b[4{color}m")?;
                self.out.say(&piece.text)?;
                self.out.write_all(b"\x1b[0m")?;
            } else {
                self.out.say(&piece.text)?;
            }
        }
        Ok(())
    }

    /// Ends a reply. Returns the message with its quotes if the answer has to follow them: if the model answered first, or
    /// only quoted. The quotes are then shown.
    pub(super) fn end_of_quotes(&mut self, reply: &ReplyOutcome) -> Result<Option<PromptMessage>> {
        let is_complete = reply.stats.ended == FinishReason::EndToken && !self.args.no_quotes;
        let located = |line: &&str| quoted(line).is_some_and(|quote| !self.texts.find(quote).is_empty());
        let message = match &self.draft {
            Some(draft) if is_complete => {
                let quotes: Vec<&str> = draft.lines().filter(located).map(str::trim).collect();
                (!quotes.is_empty()).then(|| PromptMessage::new("assistant", quotes.join("\n")))
            }
            None if is_complete
                && self.text.lines().any(|line| located(&line))
                && self.text.lines().all(|line| line.trim().is_empty() || located(&line)) =>
            {
                Some(PromptMessage { ids: reply.ids.clone(), ..self.message.clone() })
            }
            _ => None,
        };
        let Some(message) = message else {
            self.release()?;
            return Ok(None);
        };
        if self.draft.take().is_some() {
            self.show(&message.text)?;
        }
        self.show(if self.text.ends_with('\n') { "\n" } else { "\n\n" })?;
        self.message = PromptMessage::new("assistant", "");
        (self.has_files, self.progress) = (false, None);
        Ok(Some(message))
    }

    /// The reply for the conversation.
    pub(super) fn take_message(&mut self) -> PromptMessage {
        std::mem::replace(&mut self.message, PromptMessage::new("assistant", ""))
    }

    /// Shows what is still withheld.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.release()?;
        let pieces = self.marked.finish();
        self.say(&pieces)
    }

    pub(super) fn unlocated_quotes(&self) -> usize {
        self.marked.quotes().iter().filter(|quote| quote.places.is_empty()).count()
    }

    /// Ends the progress bar if the prefill was stopped.
    pub(super) fn end_progress(&self) {
        self.progress.iter().for_each(PrefillProgress::finish);
    }
}
