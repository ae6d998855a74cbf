//! Reads and writes GGUF v3: a header of typed metadata and tensor descriptions, then the tensors' bytes.
//!
//! Next: [`parse`] (parses a header), [`read`] (opens and validates a file, split or not), [`mod@write`] (lays out and
//! streams a new file).

pub mod file_type;
pub mod parse;
pub mod read;
pub mod unread;
mod values;
pub mod write;

use crate::visible::{MAX_SHOWN, one_line};
use kernels::quant::Format;
use std::fmt::Display;
use std::path::Path;

/// The metadata of a file, in file order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub Vec<(String, Value)>);

/// A metadata value with its GGUF type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are GGUF's")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array of one element type, stored compactly (a vocabulary has 163,840 elements).
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are GGUF's")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// A tensor's entry in the header: name, format, shape and place of its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name; at most 63 bytes in files written here, which is llama.cpp's limit.
    pub name: String,
    /// Block format of its rows (ggml's `type`).
    pub format: Format,
    /// ggml's `ne`: 1 to 4 dimensions, fastest first.
    pub shape: Vec<u64>,
    /// Size in bytes, a whole number of blocks.
    pub bytes: u64,
    /// Offset in the tensor section of its file.
    pub offset: u64,
    /// Index of its file in a split; 0 for a single file.
    pub file: usize,
}

/// An error of a file in one line, mostly with place, expected and found. `Display` truncates names and values from the file to
/// [`MAX_SHOWN`] bytes and escapes their control characters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system could not open, read or write a file.
    #[error("{}: {source}", shown_path(path))]
    Io {
        /// Path of the file that the operation failed on.
        path: String,
        /// The error that the operating system returned.
        source: std::io::Error,
    },
    /// The contents contradict themselves, which has no expected value to name.
    #[error("{}: {}: {}", shown_path(path), shown(place), shown(problem))]
    Invalid {
        /// Path of the invalid file, for the message.
        path: String,
        /// Byte offset, key or tensor.
        place: String,
        /// The contradiction, as the end of a message.
        problem: String,
    },
    /// The path is no GGUF file.
    #[error("{} is not a GGUF file; it begins with \"{begin}\"", shown_path(path))]
    NotGguf {
        /// Path of the file, for the message.
        path: String,
        /// The first bytes of the file, escaped.
        begin: String,
    },
    /// The path is not a regular file.
    #[error("{} is {found}, not a file", shown_path(path))]
    NotRegular {
        /// Path that was to be opened.
        path: String,
        /// The type of the file.
        found: &'static str,
    },
    /// Another process wrote to the file while it was open.
    #[error("{} was overwritten while loaded ({change})", shown_path(path))]
    Overwritten {
        /// Path that the file was opened by.
        path: String,
        /// What has changed: the size or the modification time.
        change: String,
    },
    /// The device has no room for a tensor.
    #[error("{}: {}: the device cannot hold this weight: {cause}", shown_path(path), shown(tensor))]
    Device {
        /// Path of the file, for the message.
        path: String,
        /// The name of the tensor.
        tensor: String,
        /// The error of the backend.
        cause: kernels::backend::Error,
    },
    /// The contents are malformed, contradictory or unsupported.
    #[error("{}: {}: expected {}, found {}", shown_path(path), shown(place), shown(expected), shown(found))]
    Bad {
        /// Path of the invalid file, for the message.
        path: String,
        /// Byte offset, key or tensor.
        place: String,
        /// What a valid file has there.
        expected: String,
        /// What the file has there instead.
        found: String,
    },
}

fn shown(text: &str) -> String {
    one_line(text, MAX_SHOWN)
}

/// Longest path that a system opens.
const MAX_PATH: usize = 4096;

fn shown_path(path: &str) -> String {
    one_line(path, MAX_PATH)
}

impl Error {
    /// `Bad`, with text from the file truncated.
    pub fn bad(path: &str, place: impl Display, expected: impl Display, found: impl Display) -> Error {
        let line = |text: &dyn Display| shown(&text.to_string());
        let (path, place) = (path.to_owned(), line(&place));
        Error::Bad { path, place, expected: line(&expected), found: line(&found) }
    }

    /// `Invalid`, with text from the file truncated.
    pub fn invalid(path: &str, place: impl Display, problem: impl Display) -> Error {
        let line = |text: &dyn Display| shown(&text.to_string());
        Error::Invalid { path: path.to_owned(), place: line(&place), problem: line(&problem) }
    }

    /// `Io` about a path, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { path: path.display().to_string(), source }
    }
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Sets a key; an existing key keeps its position.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }
}
