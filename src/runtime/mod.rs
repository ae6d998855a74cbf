//! Loads a model and runs it: [`engine`] (weights, tokenizer, template and prefix cache on a backend), [`session`]
//! (token ids to [`logits`]), the device, its memory plan and the attention path. It does not sample.
//!
//! Chat templates are part of this module ([`chat_template`], [`template_worker`]): the engine renders one at load to
//! find the tokens that open a reply, on which the attention path of a prompt depends.

pub(crate) mod attention_path;
pub(crate) mod builtin_model;
pub(crate) mod chat_template;
pub(crate) mod device;
pub mod engine;
mod errors;
pub mod handle;
pub(crate) mod logits;
pub(crate) mod memory_estimate;
pub(crate) mod model_fit;
pub mod options;
pub(crate) mod placement;
pub(crate) mod prefill;
pub mod sampling_options;
pub mod self_check;
pub mod session;
pub mod template_worker;
