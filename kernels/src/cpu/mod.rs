//! The CPU: run-time choice of instructions, and in time the ops written over it.
//!
//! Next: [`isa`].

pub mod isa;
