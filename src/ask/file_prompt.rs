//! What a local model needs besides the question: the tokens of the files, which all prompts share, with snapshots for
//! the prefix cache, the constraint of the quotes, and the progress of the prefill.

use super::prefill_progress::{PrefillPlan, PrefillProgress};
use super::quote_constraint::QuoteIndex;
use super::{AskArgs, SEPARATOR, instructions, joined};
use crate::client::SharedPrefix;
use crate::documents::Document;
use crate::generation::conversation::Conversation;
use crate::runtime::handle::EngineHandle;
use crate::runtime::session::Prefill;
use anyhow::Result;
use std::sync::Arc;

/// Tokens between a snapshot and the end of its file, as the tokens at the end depend on the next file.
const MARGIN: usize = 8;

/// The files as the prefix of prompts.
pub(super) struct FilePrompt<'e> {
    engine: &'e EngineHandle,
    pub prefix: SharedPrefix,
    /// The index of the files for quotes; None with `--no-quotes`.
    pub quote_index: Option<Arc<QuoteIndex>>,
    names: Vec<String>,
    plan: PrefillPlan,
}

impl<'e> FilePrompt<'e> {
    pub(super) fn new(engine: &'e EngineHandle, documents: &[Document], args: &AskArgs) -> Result<Self> {
        let tokens = common_prefix(engine, instructions(args), &joined(documents))?;
        let snapshots = file_ends(engine, documents, tokens.len())?;
        Ok(FilePrompt {
            engine,
            prefix: SharedPrefix { tokens, snapshots },
            quote_index: if args.no_quotes { None } else { Some(quote_index(engine, documents)?) },
            names: documents.iter().map(|d| d.name.clone()).collect(),
            plan: PrefillPlan::new(engine),
        })
    }

    /// Starts the progress of a prompt of `total` tokens; reports tokens and memory if the prompt has the files.
    ///
    /// # Errors
    /// The state does not fit into memory, unless `--force` is set.
    pub(super) fn begin(
        &self,
        (total, found): (usize, Prefill),
        has_files: bool,
        args: &AskArgs,
    ) -> Result<PrefillProgress<'_>> {
        let progress = PrefillProgress::new(&self.plan, total, found, args.quiet);
        if has_files {
            let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
            progress.announce(&names, args.max_tokens, args.force)?;
        }
        Ok(progress)
    }

    /// Whether a later process can resume a prefill that was stopped after this many tokens.
    pub(super) fn keeps_on_disk(&self, tokens: usize) -> bool {
        self.engine.keeps_on_disk(tokens)
    }
}

fn quote_index(engine: &EngineHandle, documents: &[Document]) -> Result<Arc<QuoteIndex>> {
    Ok(Arc::new(QuoteIndex::new(documents, engine.tokenizer()?, engine.config.vocab)))
}

/// The tokens that all prompts about a document begin with, as the common prefix of prompts with different questions.
fn common_prefix(engine: &EngineHandle, system: Option<&str>, document: &str) -> Result<Vec<u32>> {
    let prompt = |question: &str| {
        let mut conversation = Conversation::new(system);
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
fn file_ends(engine: &EngineHandle, documents: &[Document], total: usize) -> Result<Vec<usize>> {
    let tokenizer = engine.tokenizer()?;
    let (mut end, mut ends) = (total, Vec::new());
    for document in documents.iter().skip(1).rev() {
        let name = tokenizer.encode(&document.name).len();
        end = end.saturating_sub(tokenizer.encode(&document.text).len() + name + 2);
        ends.push(end.saturating_sub(MARGIN));
    }
    ends.reverse();
    Ok(ends)
}
