//! The server by its HTTP interface: shapes, streams, values refused, replies in company, without a socket; limits
//! on connections and bodies, with one.

#[path = "../common/mod.rs"]
mod common;
mod forms;
#[path = "../../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;
mod openapi;
mod process;
mod requests;
mod responses;
mod sockets;
mod streams;
mod support;
mod tenants;
mod turns;
