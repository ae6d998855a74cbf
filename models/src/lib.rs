//! Defines a model: its file, tokenizer, chat template, hyperparameters, graph and state.
//!
//! It contains no instruction sets, threads or devices: arithmetic goes through `kernels::backend`.
//! Next: [`gguf`] (the file), then [`kimi_linear`] (the graph).

pub mod file;
pub mod gguf;
pub mod kimi_linear;
pub mod template;
pub mod tokenizer;
pub mod visible;
