//! The server by its HTTP interface, without a socket: shapes, streams, values refused, replies in company.

#[path = "../common/mod.rs"]
mod common;
mod forms;
#[path = "../../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;
mod openapi;
mod requests;
mod responses;
mod streams;
mod support;
mod tenants;
mod turns;
