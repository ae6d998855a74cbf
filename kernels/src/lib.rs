//! Arithmetic of hybrid linear-attention mixtures of experts: block formats, ops, backends.
//!
//! All intrinsics and all unsafe code are here, except for one memory mapping in `models`. It knows no model and no
//! file.
//! Next: [`backend`] (the list of ops, a formula each), then [`quant`] (the stored formats), then `reference` (the ops as
//! plain loops) and `cpu` (the same, fast).

pub mod backend;
pub mod composed;
pub mod cpu;
pub mod cuda;
pub mod heap;
mod matmul;
pub mod quant;
pub mod reference;
pub mod simd;
