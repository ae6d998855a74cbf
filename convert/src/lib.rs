//! From a Hugging Face checkpoint (or another GGUF file) to one quantised GGUF file. Never runs a model.
//!
//! `config` -> hyperparameters, `names` -> the tensors they imply, `mix` -> their formats, `plan` -> all of
//! it against the input (`checkpoint` or `requantise`, both a `source`), `job` -> that and the metadata,
//! `run` -> the file, chunk by chunk (`chunks`). Start reading at [`run`].
#![forbid(unsafe_code)]

pub mod checkpoint;
mod chunks;
pub mod config;
mod error;
pub mod job;
pub mod metadata;
pub mod mix;
pub mod names;
pub mod plan;
mod progress;
mod requantise;
mod resume;
pub mod run;
pub mod safetensors;
pub mod source;
pub mod vocabulary;

pub use error::{Error, Result};
pub use job::{Options, Row};
pub use mix::Mix;
pub use plan::Override;
pub use progress::Progress;
pub use run::{Summary, convert, dry_run};
