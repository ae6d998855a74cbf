//! The server through its HTTP interface: response shapes, streams, refused values and concurrent replies without a socket;
//! limits on connections and bodies over sockets.

mod bodies;
#[path = "../common/mod.rs"]
mod common;
mod fake_engine;
mod fields;
mod file_inputs;
mod files;
mod forms;
#[allow(dead_code, reason = "only the tools are of use here")]
#[path = "../grammars/generate.rs"]
mod generate;
mod hostile_forms;
#[path = "../../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;
mod ling;
mod masks;
mod messages;
mod misses;
mod ollama;
mod openapi;
mod process;
mod requests;
mod responses;
mod sockets;
mod streams;
mod support;
mod tenants;
#[allow(dead_code, reason = "other tests use all formats")]
#[path = "../../src/documents/test_files.rs"]
mod test_files;
mod turns;
mod upstream;
mod upstream_faults;
