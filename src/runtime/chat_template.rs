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

/// The value of `--chat-template` that names the built-in one.
const BUILTIN: &str = "builtin";

/// The template of a model file.
pub fn source(file: &Gguf) -> Option<&str> {
    file.metadata.str("tokenizer.chat_template")
}

/// The template that `choice`, the value of `--chat-template`, names. A model file's own may be unusable, and then says
/// so when a conversation is rendered: token ids need no template.
///
/// # Errors
/// The user's own file cannot be read or used.
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

/// A text file of at most the length that a template may have.
fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_SOURCE_BYTES as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// A failure as users see it: an unusable template can be replaced.
pub fn explain(failure: Failure) -> Error {
    match failure {
        Failure::Refused(_) => failure.into(),
        Failure::Unusable(_) => anyhow!("{failure}; use --chat-template {BUILTIN}"),
    }
}

/// The line about an unusable template in a file, if its template is that.
pub fn warning(file: &Gguf) -> Option<String> {
    let failure = models::template::check(source(file)?, &*template_worker::sandbox()).err()?;
    Some(explain(failure).to_string())
}
