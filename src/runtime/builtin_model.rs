//! The demonstration model in the program: what runs when no file is given. How it came to be: `models/demo`.

use crate::io::log::Log;
use crate::io::output::tell;
use anyhow::Result;
use bytes::Bytes;
use models::gguf::read::Gguf;
use std::path::Path;

/// Said once, before the first use.
pub const NOTICE: &str = "no model given (-m FILE): this is the built-in demonstration model, 9.5 M parameters, which answers \
    short questions about a text you give it; `kimi convert` makes the real model's file";

/// Its name where a path would stand.
pub const NAME: &str = "demonstration model";

/// Blocks are read in place, so the file starts where a mapped one would: at a boundary of any element.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/demo/kimi-demo.gguf"));

/// Tells people on standard error what there is to tell; with `quiet`, not what the model is.
pub fn log(quiet: bool) -> Log {
    Box::new(move |line| {
        if !quiet || line != NOTICE {
            tell(line);
        }
    })
}

/// The file of a path, or the built-in one.
pub fn open(path: Option<&Path>) -> Result<Gguf> {
    Ok(match path {
        Some(path) => Gguf::open(path)?,
        None => Gguf::from_bytes(NAME, Bytes::from_static(&FILE.0))?,
    })
}
