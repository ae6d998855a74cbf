//! The built-in demonstration model, which runs when no file is given. `models/demo` describes its training.

use crate::io::log::Log;
use crate::io::output::tell;
use anyhow::Result;
use bytes::Bytes;
use models::gguf::read::Gguf;
use std::path::Path;

/// The notice that is logged once at load.
pub const NOTICE: &str = "built-in demonstration model (no -m); the real one: \
    kimi pull bartowski/moonshotai_Kimi-Linear-48B-A3B-Instruct-GGUF";

/// The model's name in messages, in place of a path.
pub const NAME: &str = "demonstration model";

/// Aligns the embedded file as a mapping would be, because blocks are read in place.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/demo/kimi-demo.gguf"));

/// Returns a log that writes to standard error; with `quiet` it omits [`NOTICE`].
pub fn log(quiet: bool) -> Log {
    Box::new(move |line| {
        if !quiet || line != NOTICE {
            tell(line);
        }
    })
}

/// Opens the model file at a path, or the built-in one.
pub fn open(path: Option<&Path>) -> Result<Gguf> {
    Ok(match path {
        Some(path) => Gguf::open(path)?,
        None => Gguf::from_bytes(NAME, Bytes::from_static(&FILE.0))?,
    })
}
