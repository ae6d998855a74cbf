//! Opens a Hugging Face checkpoint directory: an index with shards, or one file.
//!
//! It checks index and shard headers against each other. Next: `plan`, which checks the tensors against the config.

use crate::error::{Error, Result};
use crate::safetensors::{HeaderEntry, header_bytes, parse_header, parse_index};
use crate::source::{Coding, Source, Tensor};
use kernels::quant::Format;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Largest size of a config, index, template or tokenizer file, in bytes.
const LONGEST_TEXT: u64 = 256 << 20;

/// Opens the checkpoint in `dir`. With `headers` false, shards may be missing; the tensors then have names but no shapes.
///
/// # Errors
/// A file that is missing, invalid or contradicts the index.
pub fn open(dir: &Path, headers: bool) -> Result<Source> {
    let index_path = dir.join("model.safetensors.index.json");
    let single = dir.join("model.safetensors");
    if !index_path.exists() {
        if !single.exists() {
            let expected = "this file or model.safetensors.index.json";
            return Err(Error::bad(single.display(), "the weights", expected, "neither"));
        }
        let mut source = Source { listing: single.display().to_string(), ..Source::default() };
        read_shard(&mut source, &single)?;
        return Ok(source);
    }
    let listing = index_path.display().to_string();
    let weight_map = parse_index(&listing, &read_text(&index_path)?)?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        shards.entry(shard).or_default().push(tensor);
    }
    let mut source = Source { listing, ..Source::default() };
    if !headers && shards.keys().any(|shard| !dir.join(shard).exists()) {
        let unread = Tensor { shape: Vec::new(), coding: Coding::Unread, file: 0, offset: 0 };
        source.tensors = weight_map.into_keys().map(|name| (name, unread.clone())).collect();
        return Ok(source);
    }
    for (shard, tensors) in shards {
        let path = dir.join(shard);
        if !path.exists() {
            return Err(Error::bad(
                &source.listing,
                tensors[0],
                format_args!("its shard {shard}"),
                "no such file",
            ));
        }
        let file = source.files.len();
        read_shard(&mut source, &path)?;
        for name in tensors {
            if source.tensors.get(name).is_none_or(|t| t.file != file) {
                return Err(Error::bad(
                    path.display(),
                    name,
                    "the tensor that the index puts here",
                    "nothing",
                ));
            }
        }
    }
    if let Some(name) = source.tensors.keys().find(|name| !weight_map.contains_key(*name)) {
        let path = source.path_of(&source.tensors[name]);
        return Err(Error::bad(path, name, "only tensors that the index names", "one it does not"));
    }
    Ok(source)
}

/// Reads a small file.
///
/// # Errors
/// An I/O error, or a file above [`LONGEST_TEXT`].
pub fn read_text(path: &Path) -> Result<Vec<u8>> {
    let file = models::file::open(path)?;
    let mut text = Vec::new();
    file.take(LONGEST_TEXT + 1).read_to_end(&mut text).map_err(Error::io(path))?;
    if text.len() as u64 > LONGEST_TEXT {
        return Err(Error::bad(
            path.display(),
            "the file",
            format_args!("at most {LONGEST_TEXT} bytes"),
            "more",
        ));
    }
    Ok(text)
}

/// Reads a small text file.
///
/// # Errors
/// As [`read_text`], or no UTF-8.
pub fn read_utf8(path: &Path) -> Result<String> {
    String::from_utf8(read_text(path)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::bad(path.display(), format_args!("byte {at}"), "UTF-8", "something else")
    })
}

/// Reads a JSON file as text and parsed. None if it does not exist.
///
/// # Errors
/// As [`read_text`], or no JSON.
pub fn read_json(path: &Path) -> Result<Option<(String, Value)>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_utf8(path)?;
    let parsed = serde_json::from_str(&text)
        .map_err(|e| Error::bad(path.display(), format_args!("line {}", e.line()), "JSON", e))?;
    Ok(Some((text, parsed)))
}

fn read_shard(source: &mut Source, path: &Path) -> Result<()> {
    let shown = path.display().to_string();
    let file = source.open(path.to_owned())?;
    let total = source.files[file].bytes;
    let mut first = [0; 8];
    let start = source.read(file, 0, total.min(8))?;
    if start.len() < 8 {
        return Err(Error::bad(shown, "byte 0", "eight bytes of header length", start.len()));
    }
    first.copy_from_slice(&start);
    let head = source.read(file, 0, header_bytes(&shown, first, total)?)?;
    for entry in parse_header(&shown, &head, total)? {
        let HeaderEntry { name, dtype, shape, offset, .. } = entry;
        if let Some(other) = source.tensors.get(&name) {
            let other = source.path_of(other);
            return Err(Error::bad(
                shown,
                name,
                "each tensor in one shard",
                format_args!("it in {other} too"),
            ));
        }
        source.tensors.insert(name, Tensor { shape, coding: coding(&dtype), file, offset });
    }
    Ok(())
}

fn coding(dtype: &str) -> Coding {
    match dtype {
        "BF16" => Coding::Blocks(Format::BF16),
        "F16" => Coding::Blocks(Format::F16),
        "F32" => Coding::Blocks(Format::F32),
        "F8_E4M3" => Coding::F8E4M3,
        other => Coding::Other(other.to_owned()),
    }
}
