//! Tests of the chat without a terminal and without a model.

mod persistence;
mod screens;
