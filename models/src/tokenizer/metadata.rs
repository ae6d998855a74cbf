//! Reads and writes a vocabulary as GGUF metadata, with llama.cpp's `tokenizer.ggml.*` keys.

use super::builder::{Kind, VocabularyBuilder, bad};
use super::pretokenizer::Pattern;
use super::{SpecialIds, Vocabulary, byte_level};
use crate::gguf::{Array, Error, Metadata, Value};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const PAD: &str = "tokenizer.ggml.padding_token_id";
const UNK: &str = "tokenizer.ggml.unknown_token_id";

impl Vocabulary {
    /// Reads the metadata of the file `path`. None for a file without a tokenizer, which takes token ids only.
    pub fn from_metadata(path: &str, metadata: &Metadata) -> Result<Option<Self>, Error> {
        match string(path, metadata, MODEL)? {
            None | Some("none" | "no_vocab") => return Ok(None),
            Some("gpt2") => {}
            Some(other) => return Err(bad(path, MODEL, "gpt2 or none", other)),
        }
        let Some(pre) = string(path, metadata, PRE)? else {
            return Err(bad(path, PRE, Pattern::known(), "nothing"));
        };
        let unknown = || bad(path, PRE, format_args!("one of: {}", Pattern::known()), pre);
        let pattern = Pattern::named(pre).ok_or_else(unknown)?;
        let builder = read_tokens(path, strings(path, metadata, TOKENS)?, types(path, metadata)?)?;
        let merges = read_merges(path, &builder, strings(path, metadata, MERGES)?)?;
        let special_ids = SpecialIds {
            bos: id(path, metadata, BOS)?,
            eos: id(path, metadata, EOS)?,
            pad: id(path, metadata, PAD)?,
            unk: id(path, metadata, UNK)?,
        };
        builder.finish(merges, pattern, special_ids).map(Some)
    }

    /// The metadata of this vocabulary, for [`Self::from_metadata`].
    pub fn to_metadata(&self) -> Vec<(String, Value)> {
        let spelled = |id: u32| match self.kinds[id as usize] {
            Kind::Normal => byte_level::encode(self.tokens.get(id)),
            Kind::Byte => format!("<0x{:02X}>", self.tokens.get(id)[0]),
            _ => String::from_utf8_lossy(self.tokens.get(id)).into_owned(),
        };
        let bytes = |id| byte_level::encode(self.tokens.get(id));
        let merges = self.merges.list().iter().map(|&(left, right)| bytes(left) + " " + &bytes(right));
        let tokens = (0..self.len() as u32).map(spelled).collect();
        let types = self.kinds.iter().map(|&kind| kind as i32).collect();
        let mut metadata = vec![
            (MODEL, Value::String("gpt2".to_owned())),
            (PRE, Value::String(self.pre().to_owned())),
            (TOKENS, Value::Array(Array::String(tokens))),
            (TYPES, Value::Array(Array::I32(types))),
            (MERGES, Value::Array(Array::String(merges.collect()))),
        ];
        let special_ids = [
            (BOS, self.special_ids.bos),
            (EOS, self.special_ids.eos),
            (PAD, self.special_ids.pad),
            (UNK, self.special_ids.unk),
        ];
        metadata.extend(special_ids.into_iter().filter_map(|(key, id)| Some((key, Value::U32(id?)))));
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

fn read_tokens<'p>(path: &'p str, tokens: &[String], types: &[i32]) -> Result<VocabularyBuilder<'p>, Error> {
    if types.len() != tokens.len() {
        return Err(bad(path, TYPES, format_args!("{} of them, one per token", tokens.len()), types.len()));
    }
    let mut builder = VocabularyBuilder::new(path, tokens.len())?;
    let mut bytes = Vec::new();
    for (index, (token, &number)) in tokens.iter().zip(types).enumerate() {
        let place = || format!("{TOKENS} {index}");
        match Kind::of(number) {
            None => return Err(bad(path, format_args!("{TYPES} {index}"), "1 to 6", number)),
            Some(Kind::Normal) => {
                let found = |_| bad(path, place(), "bytes in GPT-2's byte-level alphabet", token);
                byte_level::decode(token, &mut bytes).map_err(found)?;
                builder.push(Kind::Normal, &bytes)?;
            }
            Some(Kind::Byte) => {
                let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
                builder.push(
                    Kind::Byte,
                    &[byte.ok_or_else(|| bad(path, place(), "<0x00> to <0xFF>", token))?],
                )?;
            }
            Some(kind) => builder.push(kind, token.as_bytes())?,
        }
    }
    Ok(builder)
}

fn read_merges(path: &str, builder: &VocabularyBuilder, list: &[String]) -> Result<super::Merges, Error> {
    let mut merges = builder.new_merges(list.len())?;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for (index, merge) in list.iter().enumerate() {
        let found = || {
            bad(path, format_args!("{MERGES} {index}"), "two tokens in GPT-2's byte-level alphabet", merge)
        };
        let (a, b) = merge.split_once(' ').ok_or_else(found)?;
        byte_level::decode(a, &mut left).map_err(|_| found())?;
        byte_level::decode(b, &mut right).map_err(|_| found())?;
        builder.merge(&mut merges, index, &left, &right)?;
    }
    Ok(merges)
}

fn string<'m>(path: &str, metadata: &'m Metadata, key: &str) -> Result<Option<&'m str>, Error> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(bad(path, key, "a string", "another type")),
    }
}

fn strings<'m>(path: &str, metadata: &'m Metadata, key: &str) -> Result<&'m [String], Error> {
    match metadata.get(key) {
        Some(Value::Array(Array::String(list))) => Ok(list),
        Some(_) => Err(bad(path, key, "an array of strings", "another type")),
        None => Err(bad(path, key, "an array of strings", "nothing")),
    }
}

fn types<'m>(path: &str, metadata: &'m Metadata) -> Result<&'m [i32], Error> {
    match metadata.get(TYPES) {
        Some(Value::Array(Array::I32(list))) => Ok(list),
        Some(_) => Err(bad(path, TYPES, "an array of i32", "another type")),
        None => Err(bad(path, TYPES, "an array of i32", "nothing")),
    }
}

fn id(path: &str, metadata: &Metadata, key: &str) -> Result<Option<u32>, Error> {
    let id = match metadata.get(key) {
        None => return Ok(None),
        Some(Value::U32(id)) => Some(*id),
        Some(Value::I32(id)) => u32::try_from(*id).ok(),
        Some(Value::U64(id)) => u32::try_from(*id).ok(),
        Some(_) => None,
    };
    id.map(Some).ok_or_else(|| bad(path, key, "an id", "another type or size"))
}
