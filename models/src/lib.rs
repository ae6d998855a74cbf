//! Defines a model: its file, tokenizer, chat template, hyperparameters, graph and state.
//!
//! It contains no instruction sets, threads or devices: arithmetic goes through `kernels::backend`.
//! Next: [`gguf`] (the file), [`hybrid`] (the graph), then [`kimi_linear`] and [`ling`] (the mixers of its layers).

pub mod architecture;
pub mod file;
pub mod gguf;
pub mod hybrid;
pub mod kimi_linear;
pub mod ling;
pub mod template;
pub mod text_spec;
pub mod tokenizer;
pub mod visible;
