//! `kimi serve`: an OpenAI-style HTTP server. Only this module and the client know HTTP.
//!
//! The path of a request: `listener` (connections) -> `routes` (Host, API key, path) -> `body` (JSON) -> `validate` -> `app`
//! (submission to [`crate::scheduler`]) -> `chat`, `completion` or `responses` (the response, whole or as events).

mod api;
mod app;
mod body;
mod chat;
mod completion;
mod connections;
mod errors;
mod host_check;
mod info;
mod intake;
mod json;
mod limits;
mod listener;
mod logprobs;
mod metrics;
mod openapi;
mod responses;
mod routes;
mod server;
mod sse;
mod tenant;
mod tokenize;
mod tools;
mod usage;
mod validate;

pub use app::{App, ServeOptions};
pub use host_check::HostPolicy;
pub use limits::HttpLimits;
pub use listener::listen;
pub use routes::router;
pub use server::{ServeArgs, run, spawn_scheduler};
