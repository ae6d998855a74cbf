//! Converts a Hugging Face checkpoint, or another GGUF file, to one quantized GGUF file. It never runs a model.
//!
//! `config` reads the hyperparameters, `names` derives the tensors from them, and `mix` chooses their formats. `plan`
//! checks the result against the input (a `source`, opened by `checkpoint` or `requantize`), and `job` adds the metadata.
//! `run` writes the file chunk by chunk (`chunks`). Start reading at [`run`].
#![forbid(unsafe_code)]

pub mod allocate;
pub mod checkpoint;
mod chunks;
pub mod config;
mod error;
pub mod imatrix;
mod importance;
pub mod job;
pub mod metadata;
pub mod mix;
pub mod mix_rules;
pub mod names;
pub mod plan;
mod progress;
mod requantize;
mod resume;
pub mod run;
pub mod safetensors;
pub mod sampling;
pub mod shards;
pub mod source;
pub mod vocabulary;

pub use error::{Error, Result};
pub use imatrix::Imatrix;
pub use importance::Importance;
pub use job::{Options, OutputTensor};
pub use mix::Mix;
pub use plan::Override;
pub use progress::Progress;
pub use run::{Summary, convert, convert_shards, dry_run};
pub use shards::ShardStore;
