//! Parses and validates the header of a `.safetensors` file and the index of a sharded checkpoint.
//!
//! A file is eight bytes of header length, the header as JSON, then the tensors' bytes without gaps. [`parse_header`]
//! accepts untrusted bytes. Next: `source`, which reads weights.

use crate::error::{Error, Result};
use safetensors::tensor::Metadata;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// Longest header in bytes; the `safetensors` crate has the same limit.
pub const LONGEST_HEADER: u64 = 100_000_000;

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEntry {
    /// Name of the tensor, its key in the header.
    pub name: String,
    /// Element type as the header spells it: `BF16`, `F32`, `F8_E4M3`, ...
    pub dtype: String,
    /// Dimensions in PyTorch's order, slowest first.
    pub shape: Vec<u64>,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Size of the values in bytes.
    pub bytes: u64,
}

/// Number of leading bytes that [`parse_header`] needs, from the first eight.
///
/// # Errors
/// A length that the file cannot hold or that exceeds [`LONGEST_HEADER`].
pub fn header_bytes(path: &str, first: [u8; 8], file_bytes: u64) -> Result<u64> {
    let length = u64::from_le_bytes(first);
    let limit = file_bytes.saturating_sub(8).min(LONGEST_HEADER);
    if length > limit {
        return Err(Error::bad(path, "byte 0", format_args!("a header of at most {limit} bytes"), length));
    }
    Ok(8 + length)
}

/// Parses the tensors of a file, in the order of their bytes, from its leading bytes and total length.
///
/// # Errors
/// An invalid header, or tensors that do not fill the file exactly, without gap or overlap.
pub fn parse_header(path: &str, head: &[u8], file_bytes: u64) -> Result<Vec<HeaderEntry>> {
    let Some(first) = head.first_chunk::<8>() else {
        return Err(Error::bad(
            path,
            "byte 0",
            "eight bytes of header length",
            format_args!("{}", head.len()),
        ));
    };
    let start = header_bytes(path, *first, file_bytes)?;
    let Some(json) = head.get(8..start as usize) else {
        return Err(Error::bad(path, "byte 8", format_args!("{start} bytes of header"), head.len()));
    };
    let mut entries = raw_entries(path, json)?;
    for (entry, end) in &mut entries {
        check_entry(path, entry, *end, start)?;
    }
    entries.sort_by_key(|(e, end)| (e.offset, *end));
    let mut at = start;
    for (entry, _) in &entries {
        if entry.offset != at {
            let found = entry.offset - start;
            return Err(Error::bad(path, &entry.name, format_args!("data from byte {}", at - start), found));
        }
        at += entry.bytes;
    }
    if at != file_bytes {
        return Err(Error::bad(path, "the file's length", format_args!("{at} bytes"), file_bytes));
    }
    // Whatever is accepted here must be accepted by the reference implementation too.
    serde_json::from_slice::<Metadata>(json)
        .map_err(|e| Error::bad(path, "header", "a header that the safetensors crate accepts", e))?;
    Ok(entries.into_iter().map(|(entry, _)| entry).collect())
}

/// Entries whose offset and end are relative to the start of the data.
fn raw_entries(path: &str, json: &[u8]) -> Result<Vec<(HeaderEntry, u64)>> {
    #[derive(serde::Deserialize)]
    struct Described {
        dtype: String,
        shape: Vec<u64>,
        data_offsets: (u64, u64),
    }
    let tensors: Unique<serde_json::Value> = serde_json::from_slice(json).map_err(|e| {
        Error::bad(path, format_args!("header byte {}", 8 + e.column()), "a JSON object of tensors", e)
    })?;
    let mut entries = Vec::with_capacity(tensors.0.len());
    for (name, value) in tensors.0 {
        if name == "__metadata__" {
            continue;
        }
        let d: Described = serde_json::from_value(value)
            .map_err(|e| Error::bad(path, &name, "dtype, shape and data_offsets", e))?;
        let (begin, end) = d.data_offsets;
        entries.push((HeaderEntry { name, dtype: d.dtype, shape: d.shape, offset: begin, bytes: 0 }, end));
    }
    Ok(entries)
}

fn check_entry(path: &str, entry: &mut HeaderEntry, end: u64, start: u64) -> Result<()> {
    let Some(width) = dtype_bytes(&entry.dtype) else {
        return Err(Error::bad(path, &entry.name, "a known dtype", &entry.dtype));
    };
    let bytes = entry.shape.iter().try_fold(width, |n, d| n.checked_mul(*d));
    let (begin, span) = (entry.offset, end.checked_sub(entry.offset));
    if span.is_none() || span != bytes {
        let expected = match bytes {
            Some(n) => format!("{n} bytes for {} {:?}", entry.dtype, entry.shape),
            None => format!("a size below 2^64 bytes for {:?}", entry.shape),
        };
        return Err(Error::bad(path, &entry.name, expected, format_args!("data_offsets [{begin}, {end}]")));
    }
    let offset = start.checked_add(begin).filter(|_| start.checked_add(end).is_some());
    entry.offset = offset.ok_or_else(|| Error::bad(path, &entry.name, "offsets inside the file", end))?;
    entry.bytes = end - begin;
    Ok(())
}

fn dtype_bytes(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "F32" | "I32" | "U32" => 4,
        "F64" | "I64" | "U64" => 8,
        _ => return None,
    })
}

/// Parses the map from tensor to shard in a `model.safetensors.index.json`.
///
/// # Errors
/// Invalid JSON, a duplicate tensor, or a shard name that is a path.
pub fn parse_index(path: &str, text: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Unique<String>,
    }
    let index: Index = serde_json::from_slice(text)
        .map_err(|e| Error::bad(path, format_args!("line {}", e.line()), "weight_map, tensor to shard", e))?;
    for (tensor, shard) in &index.weight_map.0 {
        let plain = !shard.contains(['/', '\\', ':', '\0']) && !shard.starts_with('.');
        if !plain || !shard.ends_with(".safetensors") {
            return Err(Error::bad(path, tensor, "the name of a .safetensors file beside the index", shard));
        }
    }
    Ok(index.weight_map.0)
}

/// A JSON object with unique keys; serde_json alone silently keeps the last duplicate.
struct Unique<V>(BTreeMap<String, V>);

impl<'de, V: serde::Deserialize<'de>> serde::Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<V>(std::marker::PhantomData<V>);
        impl<'de, V: serde::Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
                let mut seen = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if seen.contains_key(&key) {
                        map.next_value::<IgnoredAny>()?;
                        return Err(serde::de::Error::custom(format_args!("{key} twice")));
                    }
                    let value = map.next_value()?;
                    seen.insert(key, value);
                }
                Ok(Unique(seen))
            }
        }
        deserializer.deserialize_map(Keys(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this header and this many bytes of data.
    fn parse(json: &str, data: u64) -> Result<Vec<HeaderEntry>> {
        let mut head = (json.len() as u64).to_le_bytes().to_vec();
        head.extend_from_slice(json.as_bytes());
        let total = head.len() as u64 + data;
        parse_header("f", &head, total)
    }

    fn refused(json: &str, data: u64, message: &str) {
        let error = parse(json, data).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn reads_what_is_there() {
        let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#;
        let b = r#""b":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}"#;
        let json = format!(r#"{{"__metadata__":{{"format":"pt"}},{a},{b}}}"#);
        let entries = parse(&json, 12).unwrap();
        let start = 8 + json.len() as u64;
        let seen: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.offset - start, e.bytes)).collect();
        assert_eq!(seen, [("b", 0, 4), ("a", 4, 8)]);
        refused(&json, 11, "the file's length: expected");
        refused(&json, 13, "the file's length: expected");
        refused(&format!("{{{a},{a}}}"), 12, "a twice");
        refused(&format!("{{{a}}}"), 12, "a: expected data from byte 0, found 4");
        let overlap = r#""c":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}"#;
        refused(&format!("{{{b},{overlap}}}"), 6, "c: expected data from byte 4, found 2");
    }

    #[test]
    fn hostile_headers() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        refused(&one("F32", "[2]", "[0,4]"), 4, "a: expected 8 bytes for F32 [2], found data_offsets [0, 4]");
        refused(&one("F32", "[2]", "[8,0]"), 4, "found data_offsets [8, 0]");
        refused(&one("F33", "[1]", "[0,4]"), 4, "a: expected a known dtype, found F33");
        let huge = "[4294967296,4294967296]";
        refused(&one("F32", huge, "[0,0]"), 0, "a: expected a size below 2^64 bytes");
        refused(
            &one("U8", "[18446744073709551615]", "[0,18446744073709551615]"),
            4,
            "offsets inside the file",
        );
        refused(&one("F32", "[-1]", "[0,4]"), 4, "a: expected dtype, shape and data_offsets");
        refused("[]", 0, "a JSON object of tensors");
        refused("{\"a\":", 0, "header byte");
        refused(r#"{"a":{"dtype":"F32"}}"#, 0, "missing field");
        let length = parse_header("f", &u64::MAX.to_le_bytes(), 100).unwrap_err().to_string();
        assert_eq!(length, "f: byte 0: expected a header of at most 92 bytes, found 18446744073709551615");
        assert!(parse_header("f", b"abc", 3).is_err());
    }

    #[test]
    fn index_names_files_not_paths() {
        let index =
            |shard: &str| parse_index("i", format!(r#"{{"weight_map":{{"t":"{shard}"}}}}"#).as_bytes());
        assert_eq!(index("a-1.safetensors").unwrap()["t"], "a-1.safetensors");
        for shard in ["../a.safetensors", "/a.safetensors", "a\\\\b.safetensors", "c:a.safetensors", "a.bin"]
        {
            let error = index(shard).unwrap_err().to_string();
            assert!(error.starts_with("i: t: expected the name of a .safetensors file beside"), "{error}");
        }
        assert!(
            parse_index("i", br#"{"weight_map":{"t":"a","t":"b"}}"#)
                .unwrap_err()
                .to_string()
                .contains("t twice")
        );
        assert!(parse_index("i", b"{}").is_err());
    }
}
