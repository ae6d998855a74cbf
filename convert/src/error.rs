//! Errors of a conversion, one line each.

use models::visible::{MAX_SHOWN, one_line};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// An error with file, place, expected and found in one line. `Display` truncates names and values from files and escapes
/// their control characters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system could not open, read or write a file.
    #[error("{}: {source}", shown_path(path))]
    Io {
        /// Path that the operation failed on.
        path: PathBuf,
        /// The error that the operating system returned.
        source: std::io::Error,
    },
    /// Invalid contents of a file.
    #[error(
        "{}: {}: expected {}, found {}",
        one_line(path, MAX_PATH),
        shown(place),
        shown(expected),
        shown(found)
    )]
    Bad {
        /// Path of the invalid file, or the option.
        path: String,
        /// Tensor, key or byte offset.
        place: String,
        /// What valid input has there.
        expected: String,
        /// What was found there instead.
        found: String,
    },
    /// A shard that cannot be fetched or deleted during the conversion.
    #[error("{0}")]
    Shard(String),
    /// An option's value that this machine cannot satisfy.
    #[error("{0}")]
    Option(String),
    /// The output exists and [`Options::force`](crate::Options::force) is not set.
    #[error("{} exists; --force replaces it", shown_path(.0))]
    Exists(PathBuf),
    /// Too little free disk space.
    #[error("{}: {needed} bytes are needed there, {free} are free", shown_path(path))]
    NoSpace {
        /// Directory of the output, on the full disk.
        path: PathBuf,
        /// Bytes still to write, with a reserve.
        needed: u64,
        /// Bytes available on that disk.
        free: u64,
    },
    /// An error of the GGUF reader or writer.
    #[error(transparent)]
    Gguf(#[from] models::gguf::Error),
}

/// The result of this crate's functions, with [`Error`] by default.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `Bad`, with text from the file truncated.
    pub fn bad(
        path: impl Display,
        place: impl Display,
        expected: impl Display,
        found: impl Display,
    ) -> Error {
        let line = |text: &dyn Display| shown(&text.to_string());
        Error::Bad {
            path: path.to_string(),
            place: line(&place),
            expected: line(&expected),
            found: line(&found),
        }
    }

    /// `Io` about a path, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { path: path.to_owned(), source }
    }
}

fn shown(text: &str) -> String {
    one_line(text, MAX_SHOWN)
}

/// Longest path that a system opens.
const MAX_PATH: usize = 4096;

fn shown_path(path: &Path) -> String {
    one_line(&path.display().to_string(), MAX_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_on_one_short_line() {
        let e = Error::bad("f", "a\nb\u{1b}[31m".repeat(1000), 1, 2).to_string();
        assert!(e.starts_with(r"f: a\nb\u{1b}[31ma\nb") && e.ends_with("...: expected 1, found 2"), "{e}");
        assert!(!e.contains('\n') && e.len() < 400, "{e}");
    }
}
