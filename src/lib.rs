//! The runtime: engine, session, sampling, commands. The binary is a thin `main` over it.
//!
//! The way of a prompt: [`prompt`] or [`conversation`] (text to ids), [`session`] (ids to logits, over
//! [`engine`], from the nearest [`snapshot`]), [`generate`] (a reply on it, by [`reply`] and [`sample`]), [`stream`]
//! (tokens to text).
#![forbid(unsafe_code)]

pub mod ask;
pub mod batch;
pub mod bench;
pub mod chat;
pub mod chat_template;
pub mod cli;
pub mod conversation;
pub mod demo;
pub mod device;
pub mod engine;
pub mod eval;
pub mod form;
pub mod generate;
pub mod gpu_check;
pub mod grammar;
pub mod inspect;
pub mod logits;
pub mod logprobs;
pub mod output;
pub mod perplexity;
pub mod placement;
pub mod private;
pub mod profile;
pub mod prompt;
pub mod remote;
pub mod reply;
pub mod sample;
pub mod scores;
pub mod serve;
pub mod session;
pub mod snapshot;
pub mod stream;
pub mod synth;
pub mod template_worker;
pub mod text;
