//! Checks of a GPU's kernels: each op with random inputs against the reference.
//!
//! `kimi gpu-check` runs [`ops`], [`fused`], [`residual`] and [`best`] at many sizes; the self-check at the first start on a card
//! ([`crate::runtime::self_check`]) runs [`model`], the same ops with the formats and sizes of one model. Next: [`ops`].

pub mod best;
pub mod fused;
pub mod model;
pub mod ops;
pub mod residual;
pub mod rng;

/// One line of the results table.
pub struct CheckRow {
    /// The name of the check or measurement.
    pub what: String,
    /// The largest difference relative to the largest value, or the measured value.
    pub found: String,
    /// Whether the check passed; `None` for measurements.
    pub passed: Option<bool>,
}
