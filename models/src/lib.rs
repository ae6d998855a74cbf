//! What a model is: its file, tokenizer, chat template, hyperparameters, graph and state.
//!
//! It knows no instruction set, no thread and no device: arithmetic goes through `kernels::backend`.
//! Next: [`gguf`] (the file), then [`kimi_linear`] (the graph).

pub mod file;
pub mod gguf;
pub mod kimi_linear;
pub mod template;
pub mod tokenizer;
pub mod visible;
