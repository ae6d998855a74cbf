//! Measures the error of a format on rows of a tensor, weighted by the importance of their columns.

use kernels::quant::Format;

/// A row of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct SampledRow<'a> {
    /// The weights of the row.
    pub values: &'a [f32],
    /// The mean square of the input of each column; all count the same without.
    pub importance: Option<&'a [f32]>,
    /// Factor on the importance: how often the row is used, for experts.
    pub factor: f32,
}

/// An error in relation to the squared outputs that the weights make.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Error {
    /// Weighted sum of squared errors.
    pub error: f64,
    /// Weighted sum of squared weights.
    pub power: f64,
}

impl Error {
    /// The error as a part of the power.
    pub fn relative(self) -> f64 {
        if self.power > 0.0 { self.error / self.power } else { 0.0 }
    }

    /// The sum of two errors of parts of a tensor.
    pub fn plus(self, other: Error) -> Error {
        Error { error: self.error + other.error, power: self.power + other.power }
    }
}

/// Quantizes a row into `out`, with refined scales, and returns its error.
///
/// # Panics
/// If the row is not whole blocks, or `out` has another length than the blocks.
pub fn quantize(format: Format, row: SampledRow<'_>, out: &mut [u8]) -> Error {
    format.quantize_row_refined(row.values, row.importance, out);
    let mut back = vec![0.0; row.values.len()];
    format.dequantize_row(out, &mut back);
    let (mut error, mut power) = (0.0, 0.0);
    for (i, (x, y)) in row.values.iter().zip(&back).enumerate() {
        let weight = f64::from(row.factor) * row.importance.map_or(1.0, |w| f64::from(w[i]));
        error += weight * f64::from(x - y).powi(2);
        power += weight * f64::from(*x).powi(2);
    }
    Error { error, power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_count_by_importance() {
        let values: Vec<f32> = (0..32).map(|i| i as f32 - 15.3).collect();
        let mut out = vec![0; Format::Q4_0.block_bytes()];
        let of = |importance: Option<&[f32]>, factor, out: &mut [u8]| {
            quantize(Format::Q4_0, SampledRow { values: &values, importance, factor }, out)
        };
        let plain = of(None, 1.0, &mut out);
        let power: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((plain.power / power - 1.0).abs() < 1e-12 && plain.error > 0.0);
        assert!(plain.relative() > 1e-4 && plain.relative() < 0.01, "{plain:?}");
        assert_eq!(of(Some(&[0.0; 32]), 1.0, &mut out), Error::default());
        let twice = of(None, 2.0, &mut out);
        assert_eq!((twice.error, twice.power), (2.0 * plain.error, 2.0 * plain.power));
        assert_eq!(plain.plus(plain).relative(), plain.relative());
        assert_eq!(Error::default().relative(), 0.0);
    }
}
