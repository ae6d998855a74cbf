//! Runs the tokenizer on a file of texts, so that `tests/tokenizer_diff.py` can compare and time it against another.
//!
//! `tokenize ranks OUT` writes Kimi's `tiktoken.model`. `tokenize encode TEXTS IDS` reads texts, each a little-endian u32
//! length followed by the bytes. For each line on stdin it encodes all texts once and prints the seconds taken; at the end
//! of stdin it writes to IDS a u32 count and u32 ids per text. `tokenize load` prints the load time of the vocabulary.

#[path = "../tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

use models::gguf::Metadata;
use models::tokenizer::Vocabulary;
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

const CONFIG: &str = include_str!("../tests/data/tokenizer_config.json");

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ranks", out] => Ok(std::fs::write(out, kimi_vocabulary::tiktoken_model())?),
        ["encode", texts, ids] => encode(texts, ids),
        ["load"] => load(),
        _ => Err("usage: tokenize ranks OUT | encode TEXTS IDS | load".into()),
    }
}

fn kimi() -> Result<Vocabulary, Box<dyn Error>> {
    Ok(Vocabulary::from_tiktoken("tiktoken.model", &kimi_vocabulary::tiktoken_model(), CONFIG, None)?)
}

fn encode(texts: &str, out: &str) -> Result<(), Box<dyn Error>> {
    let file = std::fs::read(texts)?;
    let (mut texts, mut rest) = (Vec::new(), &file[..]);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (text, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        texts.push(text);
        rest = after;
    }
    let (kimi, mut ids) = (kimi()?, Vec::new());
    for line in std::io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        ids = texts.iter().map(|text| kimi.encode_bytes(text)).collect();
        writeln!(std::io::stdout(), "{}", start.elapsed().as_secs_f64())?;
    }
    let mut file = std::io::BufWriter::new(std::fs::File::create(out)?);
    for ids in &ids {
        file.write_all(&(ids.len() as u32).to_le_bytes())?;
        for id in ids {
            file.write_all(&id.to_le_bytes())?;
        }
    }
    Ok(file.flush()?)
}

fn load() -> Result<(), Box<dyn Error>> {
    let model = kimi_vocabulary::tiktoken_model();
    let start = Instant::now();
    let kimi = Vocabulary::from_tiktoken("tiktoken.model", &model, CONFIG, None)?;
    let tiktoken = start.elapsed();
    let start = Instant::now();
    let metadata = Metadata(kimi.to_metadata());
    let written = start.elapsed();
    let start = Instant::now();
    let back = Vocabulary::from_metadata("metadata", &metadata)?.ok_or("no tokenizer")?;
    let read = start.elapsed();
    let start = Instant::now();
    let ids = back.encode("The first sentence, 第一句话, is the slowest.");
    let first = start.elapsed();
    writeln!(
        std::io::stdout(),
        "from tiktoken.model {tiktoken:.1?}, to metadata {written:.1?}, from metadata {read:.1?}, first {} ids {first:.1?}",
        ids.len()
    )?;
    Ok(())
}
