//! Runs Kimi Linear models: engine, sessions, generation, scheduling, commands and front ends. The binary is a thin
//! `main` over this library.
//!
//! Imports point down only: `cli`, then `commands`, `chat`, `ask` and `serve`, then `args`, `scheduler` and `client`, then
//! `document_qa`, then `generation`, `runtime` and `prefix_cache`; `hub` is used by `commands`, `documents` by `chat`, `ask`,
//! `serve` and `document_qa`, `kernel_checks` by `commands` and `runtime`, and `io` is below all.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "the public items serve this package's binary and tests only")]

pub(crate) mod args;
pub mod ask;
pub(crate) mod chat;
pub mod cli;
pub(crate) mod client;
pub mod commands;
pub mod document_qa;
pub mod documents;
pub mod generation;
pub(crate) mod hub;
pub mod io;
pub(crate) mod kernel_checks;
pub mod prefix_cache;
pub mod runtime;
pub mod scheduler;
pub mod serve;

pub use generation::conversation::Conversation;
pub use generation::event::EngineEvent;
pub use generation::generate::{Request, generate};
pub use generation::sample::Sampling;
pub use runtime::handle::{EngineHandle, SessionHandle};
pub use runtime::options::LoadOptions;
