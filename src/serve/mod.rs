//! `kimi serve`: the model behind OpenAI's HTTP interface. The only module that knows HTTP.
//!
//! A request's way: `listener` (connections) -> `routes` (Host, key, path) -> `body` (JSON in parts) -> `prepare` (values checked) -> `app`
//! (handed to the thread of [`crate::scheduler`]) -> `chat`, `completion` or `responses` (what came back, whole or as events).

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
pub mod markup;
mod metrics;
mod openapi;
mod outcome;
mod owner;
mod prepare;
mod responses;
mod routes;
mod sse;
mod start;
mod token;
mod tokenize;
mod tools;

pub use app::{App, Options};
pub use host_check::HostPolicy;
pub use limits::HttpLimits;
pub use listener::listen;
pub use routes::router;
pub use start::{ServeArgs, host, run};
