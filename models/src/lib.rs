//! What a model is: its file, tokenizer, chat template, hyperparameters, graph and state.
//!
//! It knows no instruction set, no thread and no device: arithmetic goes through `kernels::backend`.
pub mod gguf;
pub mod tokenizer;
