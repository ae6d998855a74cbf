//! Shows one answer while it is generated: the progress of its prefill, then its text with the locations of the quotes.

use super::file_prompt::FilePrompt;
use super::prefill_progress::PrefillProgress;
use super::quotes::{Annotated, FoldedTexts};
use super::{Ask, AskArgs};
use crate::client::{ModelEvent, PromptMessage};
use crate::generation::reply_parser::ReplyEvent;
use crate::io::output::Output;
use anyhow::Result;

/// An answer that is being generated.
pub(super) struct AnswerView<'a> {
    args: &'a AskArgs,
    file_prompt: Option<&'a FilePrompt<'a>>,
    /// Whether the prompt contains the files.
    has_files: bool,
    progress: Option<PrefillProgress<'a>>,
    pub out: Output,
    pub annotated: Annotated<'a>,
    /// The reply as the conversation continues with it.
    pub message: PromptMessage,
    /// The answer as it is printed, without the empty lines after reasoning.
    pub text: String,
    /// Tokens of the prompt; 0 before the prefill and for remote models.
    pub prompt_tokens: usize,
}

impl<'a> AnswerView<'a> {
    pub(super) fn new(ask: &Ask<'a>, texts: &'a FoldedTexts) -> Self {
        AnswerView {
            args: ask.args,
            file_prompt: ask.file_prompt,
            has_files: ask.document.is_some(),
            progress: None,
            out: Output::lock(),
            annotated: Annotated::new(texts),
            message: PromptMessage::new("assistant", ""),
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
                    self.show(&text)?;
                }
            }
        }
        Ok(())
    }

    fn show(&mut self, text: &str) -> Result<()> {
        let follows_reasoning = self.text.is_empty() && !self.message.reasoning.is_empty();
        let text = if follows_reasoning { text.trim_start() } else { text };
        self.text.push_str(text);
        let annotated = self.annotated.push(text);
        if !self.args.json {
            self.out.say(&annotated)?;
        }
        Ok(())
    }

    /// Ends the progress bar if the prefill was stopped.
    pub(super) fn end_progress(&self) {
        self.progress.iter().for_each(PrefillProgress::finish);
    }
}
