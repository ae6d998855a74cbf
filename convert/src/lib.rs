//! From a Hugging Face checkpoint (or another GGUF file) to one quantised GGUF file. Never runs a model.
//!
//! `config` -> hyperparameters, `names` -> the tensors they imply, `mix` -> their formats, `plan` -> all of
//! it against the input (`checkpoint`, `source`), `run` -> the file. Start reading at [`run`].
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
mod error;
pub mod metadata;
pub mod mix;
pub mod names;
pub mod plan;
pub mod safetensors;
pub mod source;

pub use error::{Error, Result};
