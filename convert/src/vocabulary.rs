//! Adds the tokenizer and chat template of a checkpoint directory to the metadata.
//!
//! It finds the files and handles missing ones; `models::tokenizer` parses them.

use crate::checkpoint::{read_json, read_text, read_utf8};
use crate::config::CheckpointConfig;
use crate::error::{Error, Result};
use crate::progress::Progress;
use models::gguf::{Metadata, Value};
use models::tokenizer::Vocabulary;
use serde_json::Value as Json;
use std::path::Path;

const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Adds the `tokenizer.` keys.
///
/// # Errors
/// An invalid tokenizer file, more tokens than the config's `vocab_size`, or `tiktoken.model` without
/// `tokenizer_config.json`.
pub fn add(
    metadata: &mut Metadata,
    dir: &Path,
    config: &CheckpointConfig,
    progress: &mut dyn Progress,
) -> Result<()> {
    let tokenizer_config = read_json(&dir.join("tokenizer_config.json"))?;
    match read(dir, config, tokenizer_config.as_ref().map(|(text, _)| text.as_str()))? {
        Some(vocabulary) => {
            for (key, value) in vocabulary.to_metadata() {
                metadata.set(&key, value);
            }
        }
        None => {
            progress.warn(&format!(
                "{}: no tiktoken.model and no tokenizer.json: the file will take token ids only",
                dir.display()
            ));
            metadata.set("tokenizer.ggml.model", Value::String("none".into()));
        }
    }
    let roles = [("bos", config.bos), ("eos", config.eos), ("padding", config.pad)];
    for (role, id) in roles {
        let key = format!("tokenizer.ggml.{role}_token_id");
        if let (None, Some(id)) = (metadata.get(&key), id) {
            metadata.set(&key, Value::U32(id));
        }
    }
    add_end_of_turn(metadata, dir, config)?;
    match template(dir, tokenizer_config.as_ref().map(|(_, json)| json))? {
        Some(template) => metadata.set(TEMPLATE, Value::String(template)),
        None => progress.warn(&format!("{}: no chat template: the built-in one will be used", dir.display())),
    }
    Ok(())
}

fn read(dir: &Path, config: &CheckpointConfig, tokenizer_config: Option<&str>) -> Result<Option<Vocabulary>> {
    let (tiktoken, tokenizer) = (dir.join("tiktoken.model"), dir.join("tokenizer.json"));
    let size = Some(config.vocab as usize);
    let vocabulary = if tiktoken.exists() {
        // The ranks alone are a vocabulary without the names of the chat tokens, which no chat could use.
        let text = tokenizer_config.ok_or_else(|| {
            let expected = "their names in tokenizer_config.json beside it";
            Error::bad(tiktoken.display(), "special tokens", expected, "no such file")
        })?;
        Vocabulary::from_tiktoken(&tiktoken.display().to_string(), &read_text(&tiktoken)?, text, size)?
    } else if tokenizer.exists() {
        let text = read_utf8(&tokenizer)?;
        Vocabulary::from_json(
            &tokenizer.display().to_string(),
            &text,
            tokenizer_config.unwrap_or_default(),
            size,
        )?
    } else {
        return Ok(None);
    };
    Ok(Some(vocabulary))
}

/// Adds the second end token: Kimi stops at the tokenizer's EOS and at the end-of-turn id of the configs.
fn add_end_of_turn(metadata: &mut Metadata, dir: &Path, config: &CheckpointConfig) -> Result<()> {
    let path = dir.join("generation_config.json");
    let named = read_json(&path)?.and_then(|(_, json)| json.get("eos_token_id").cloned());
    let list = match named {
        Some(Json::Array(list)) => list,
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let below = |id: u64| u32::try_from(id).ok().filter(|id| u64::from(*id) < config.vocab);
    let mut ends: Vec<u32> = config.eos.into_iter().collect();
    for value in list.iter().filter(|value| !value.is_null()) {
        let expected = format_args!("ids below vocab_size {}", config.vocab);
        let id = value.as_u64().and_then(below);
        ends.push(id.ok_or_else(|| Error::bad(path.display(), "eos_token_id", expected, value))?);
    }
    let other = ends.into_iter().find(|id| metadata.get(EOS) != Some(&Value::U32(*id)));
    if let (None, Some(id)) = (metadata.get(EOT), other) {
        metadata.set(EOT, Value::U32(id));
    }
    Ok(())
}

fn template(dir: &Path, tokenizer_config: Option<&Json>) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    if path.exists() {
        return read_utf8(&path).map(Some);
    }
    let inside = tokenizer_config.and_then(|json| json.get("chat_template"));
    let named = inside.and_then(Json::as_array).and_then(|list| {
        let default = |t: &&Json| t.get("name").and_then(Json::as_str) == Some("default");
        list.iter().find(default)?.get("template")?.as_str()
    });
    Ok(inside.and_then(Json::as_str).or(named).map(str::to_owned))
}
