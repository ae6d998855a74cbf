//! What a local model needs besides the question: the tokens of the files, which all prompts share, with snapshots for
//! the prefix cache, the constraint of the quotes, and the progress of the prefill.

use super::prefill_progress::{PrefillPlan, PrefillProgress};
use super::{AskArgs, instructions};
use crate::document_qa::prefix::DocumentPrefix;
use crate::document_qa::quote_constraint::QuoteIndex;
use crate::documents::{Document, gather};
use crate::prefix_cache::namespace::Namespace;
use crate::runtime::handle::EngineHandle;
use crate::runtime::session::Prefill;
use anyhow::Result;
use std::sync::Arc;

/// The files as the prefix of prompts.
pub(super) struct FilePrompt<'e> {
    engine: &'e EngineHandle,
    pub prefix: DocumentPrefix,
    /// The index of the files for quotes; None with `--no-quotes`.
    pub quote_index: Option<Arc<QuoteIndex>>,
    names: Vec<String>,
    plan: PrefillPlan,
}

impl<'e> FilePrompt<'e> {
    pub(super) fn new(engine: &'e EngineHandle, documents: &[Document], args: &AskArgs) -> Result<Self> {
        Ok(FilePrompt {
            engine,
            prefix: DocumentPrefix::new(engine, instructions(args), documents)?,
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

    /// Records the paths of the files beside their cached prefix. Standard input has none.
    pub(super) fn name_in_cache(&self, namespace: Namespace, model: &str) {
        let path = |name: &String| {
            std::path::absolute(name).map_or_else(|_| name.clone(), |p| p.display().to_string())
        };
        let name = |name: &String| if name == gather::PIPE { name.clone() } else { path(name) };
        let names: Vec<String> = self.names.iter().map(name).collect();
        self.engine.name_prefix(namespace, &names, model, &self.prefix.tokens);
    }

    /// Whether a later process can resume a prefill that was stopped after this many tokens.
    pub(super) fn keeps_on_disk(&self, tokens: usize) -> bool {
        self.engine.keeps_on_disk(tokens)
    }
}

fn quote_index(engine: &EngineHandle, documents: &[Document]) -> Result<Arc<QuoteIndex>> {
    Ok(Arc::new(QuoteIndex::new(documents, engine.tokenizer()?, engine.config.vocab)))
}
