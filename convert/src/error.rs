//! What can go wrong in a conversion, in one line each. Not a report of what was done: see `Summary`.

use models::visible::{MAX_SHOWN, one_line};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A conversion that did not happen: file, place, expected and found in one line. Shown, names and values from files are cut
/// and their control characters are visible.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system's word about a file.
    #[error("{}: {source}", shown_path(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// A file's contents are not what they should be.
    #[error(
        "{}: {}: expected {}, found {}",
        one_line(path, MAX_PATH),
        shown(place),
        shown(expected),
        shown(found)
    )]
    Bad {
        /// The file.
        path: String,
        /// Tensor, key or byte offset.
        place: String,
        /// What should stand there.
        expected: String,
        /// What does.
        found: String,
    },
    /// An option that cannot be followed.
    #[error("{0}")]
    Option(String),
    /// Something stands under the output's name already.
    #[error("{} exists; --force replaces it", shown_path(.0))]
    Exists(PathBuf),
    /// The output does not fit on its disk.
    #[error("{}: {needed} bytes are needed there, {free} are free", shown_path(path))]
    NoSpace {
        /// The output's directory.
        path: PathBuf,
        /// Bytes still to be written, with a reserve.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// From the GGUF reader or writer.
    #[error(transparent)]
    Gguf(#[from] models::gguf::Error),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `Bad`, with what may come from the file cut before it is kept.
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

/// The longest path that a system opens.
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
