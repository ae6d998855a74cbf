//! The built-in calibration text: prose, code and Chinese as plain text, then conversations in the model's chat template.
//!
//! `calibration/README.md` names sources and licences.

use crate::runtime::chat_template::explain;
use crate::runtime::engine::EngineBase;
use anyhow::{Context as _, Result};
use models::template::Message;
use serde_json::Map;

/// Name of the text in files and messages.
pub const NAME: &str = "built-in calibration text 1";

const TEXTS: [&str; 3] = [
    include_str!("calibration/prose.txt"),
    include_str!("calibration/code.txt"),
    include_str!("calibration/chinese.txt"),
];
/// Conversations: lists of [role, text].
const CHATS: &str = include_str!("calibration/chats.json");
/// Tokens of a text or conversation that follow each other before the next kind of text.
const PIECE: usize = 512;

/// The text as token ids. Pieces of all kinds alternate, so that the first windows hold some of each.
pub fn ids(engine: &EngineBase) -> Result<Vec<u32>> {
    let tokenizer = engine.tokenizer()?;
    let mut kinds: Vec<Vec<u32>> = TEXTS.iter().map(|text| tokenizer.encode(text)).collect();
    kinds.push(chats(engine)?);
    let longest = kinds.iter().map(|ids| ids.len().div_ceil(PIECE)).max().unwrap_or(0);
    let piece = |i: usize| kinds.iter().filter_map(move |ids| ids.chunks(PIECE).nth(i));
    Ok((0..longest).flat_map(piece).flatten().copied().collect())
}

/// The conversations one after the other, as a template renders them.
fn chats(engine: &EngineBase) -> Result<Vec<u32>> {
    let tokenizer = engine.tokenizer()?;
    let chats: Vec<Vec<(String, String)>> = serde_json::from_str(CHATS).context("calibration/chats.json")?;
    let mut ids = Vec::new();
    for chat in chats {
        let messages: Vec<Message> = chat.iter().map(|(role, text)| Message::new(role, text)).collect();
        match &engine.template {
            Some(template) => {
                let rendered = template.render(&messages, &[], false, &Map::new()).map_err(explain)?;
                ids.extend(rendered.encode(tokenizer));
            }
            None => chat.iter().for_each(|(_, text)| ids.extend(tokenizer.encode(text))),
        }
    }
    Ok(ids)
}
