//! The commands except `chat`, `ask` and `serve`: each module has the arguments of one command and its `run`.

pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod gpu_check;
pub(crate) mod imatrix;
pub(crate) mod inspect;
pub(crate) mod launch;
pub(crate) mod logits;
pub(crate) mod models;
pub(crate) mod perplexity;
mod plot;
pub mod profiler;
pub(crate) mod pull;
pub(crate) mod synth;
