//! Chooses the chat template: the model file's own, the built-in one, or a file of the user's. Next:
//! [`crate::runtime::template_worker`] (where it renders).

use crate::runtime::template_worker;
use anyhow::{Context as _, Error, Result, anyhow, bail};
use models::gguf::read::Gguf;
use models::template::bounds::MAX_SOURCE_BYTES;
use models::template::{Failure, Template};
use models::tokenizer::Vocabulary;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The value of `--chat-template` that selects the built-in template.
const BUILTIN: &str = "builtin";

/// Returns the template of a model file.
pub fn source(file: &Gguf) -> Option<&str> {
    file.metadata.str("tokenizer.chat_template")
}

/// Opens the template that `choice`, the value of `--chat-template`, selects. An unusable template of the model file
/// fails only when a conversation is rendered, because token ids need no template.
///
/// # Errors
/// The file given by the user cannot be read or used.
pub fn open(choice: Option<&Path>, file: &Gguf, vocabulary: &Vocabulary) -> Result<Template> {
    let new = |source: Option<&str>| Template::new(source, vocabulary, template_worker::sandbox());
    match choice {
        None => Ok(new(source(file))),
        Some(path) if path == Path::new(BUILTIN) => Ok(new(None)),
        Some(path) => {
            let place = || format!("--chat-template {}", path.display());
            let template = new(Some(&read(path).with_context(place)?));
            match template.fault() {
                Some(fault) => bail!("{}: {fault}", place()),
                None => Ok(template),
            }
        }
    }
}

/// Reads a template file up to the maximum length.
fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_SOURCE_BYTES as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Converts a failure to an error for users, with a hint if the template can be replaced.
pub fn explain(failure: Failure) -> Error {
    match failure {
        Failure::Refused(_) => failure.into(),
        Failure::Unusable(_) => anyhow!("{failure}; use --chat-template {BUILTIN}"),
    }
}

/// Returns a warning if the template of a file is unusable.
pub fn warning(file: &Gguf) -> Option<String> {
    let failure = models::template::check(source(file)?, &*template_worker::sandbox()).err()?;
    Some(explain(failure).to_string())
}
