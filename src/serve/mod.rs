//! `kimi serve`: an HTTP server with the interfaces of OpenAI, Anthropic and Ollama. Only this module, `client` and `hub`
//! know HTTP.
//!
//! The path of a request: `listener` (connections) -> `routes` (Host, API key, path) -> `body` (JSON) -> `validate` -> `submit`
//! (to [`crate::scheduler`] or an `upstream` server) -> `events` -> `chat`, `completion`, `responses`, `messages` or `ollama` (the
//! response, whole or as events). `files` has uploaded files, and moves those of a request to the start of its prompt.

mod api;
mod app;
mod body;
mod chat;
mod clock;
mod completion;
mod connections;
mod error_form;
mod errors;
mod events;
pub mod fields;
mod files;
mod host_check;
mod info;
mod intake;
mod json;
mod limits;
mod listener;
mod logprobs;
mod messages;
mod metrics;
mod notices;
mod ollama;
mod openapi;
mod outline;
mod page;
mod reply;
mod reservation;
mod responses;
mod routes;
mod server;
mod signals;
mod sse;
mod submit;
mod tenant;
mod tokenize;
mod tools;
mod trace;
mod upstream;
mod usage;
mod validate;

pub use app::{App, ReplySource, ServeOptions};
pub use files::store::FileOptions;
pub use host_check::HostPolicy;
pub use limits::HttpLimits;
pub use listener::listen;
pub use routes::router;
pub use server::{ServeArgs, run, spawn_scheduler};
pub use upstream::{UpstreamArgs, UpstreamModel};
