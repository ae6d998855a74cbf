//! Multiplies quantized weight rows with quantized activations: GEMV for one token, GEMM for several.
//!
//! A format implements [`block_dot::BlockDot`] through `quant::superblock` (256 weights) or `quant::block32` (32 weights). The
//! result for a token is the same bits with either kernel. Next: [`gemv`] (decode), [`gemm`] (prefill), [`matrix`] and [`matrix32`].

pub(crate) mod block_dot;
pub(crate) mod gemm;
pub(crate) mod gemv;
pub(crate) mod matrix;
pub(crate) mod matrix32;

use std::marker::PhantomData;

/// GEMV and GEMM of a format with integer quants, whose blocks `D` multiplies.
pub(crate) struct IntegerDot<D>(PhantomData<D>);
