//! Measures how much an error in each weight changes the logits, for `convert --size`.
//!
//! One tensor at a time is quantized coarsely in memory; the KL divergence of the model's predictions from those of the unchanged
//! model, divided by the tensor's relative error (weighted by the importance of its columns), is its sensitivity. It is measured
//! twice: alone in the unchanged model, and as the increase in a model whose other tensors are all quantized, too. If divergence
//! is quadratic in the errors, the mean of the two is the tensor's Shapley value: its share in the divergence of all errors
//! together. They differ much: most tensors of the demonstration model cost two to five times as much alone, the last layer and
//! the output the same. This takes three prefills of the windows per tensor, and disk space for the model in [`FINE`].

use crate::commands::perplexity::log_softmax;
use anyhow::{Context, Result};
use bytes::Bytes;
use convert::Importance;
use convert::allocate::errors::{Error, SampledRow, quantize};
use convert::mix::quantizable;
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kernels::quant::Format;
use models::gguf::TensorInfo;
use models::gguf::read::{Gguf, map_scratch};
use models::hybrid::mla::MlaPath;
use models::hybrid::{Model, Outputs, Sequence};
use rayon::prelude::*;
use std::io::Write;
use std::path::Path;

/// Format of tensors whose rows are whole blocks of 256: its error is in the middle of those of 2 to 5 bits.
const COARSE: Format = Format::Q3_K;
/// Format of tensors whose rows are whole blocks of 32 only: the coarsest one.
const COARSE_32: Format = Format::Q4_0;

/// Format of tensors in the model that is quantized as a whole. Its products round activations as those of the coarse one do.
const FINE: Format = Format::Q5_K;
/// The same for tensors whose rows are whole blocks of 32 only.
const FINE_32: Format = Format::Q5_1;

/// Windows of tokens with the log-probabilities that the unchanged model gives.
pub struct SensitivityProbe<'a> {
    cpu: Cpu,
    cache: CacheFormat,
    batch: usize,
    windows: Vec<&'a [u32]>,
    /// For each window `[tokens, vocabulary]`.
    expected: Vec<Vec<f32>>,
    /// The model with all measured tensors in [`FINE`].
    quantized: Gguf,
    /// Its divergence in nats per token.
    joint: f64,
}

/// The names of the tensors whose sensitivity is measured, in the order of the file.
pub fn names(file: &Gguf) -> Vec<String> {
    let measured = |t: &&TensorInfo| quantizable(&t.name, &t.shape) && coarse(t.shape[0]).is_some();
    file.tensors.iter().filter(measured).map(|t| t.name.clone()).collect()
}

fn coarse(cols: u64) -> Option<Format> {
    [COARSE, COARSE_32].into_iter().find(|format| cols.is_multiple_of(format.block_len() as u64))
}

fn fine(cols: u64) -> Option<Format> {
    coarse(cols).map(|format| if format == COARSE { FINE } else { FINE_32 })
}

/// Replaces all measured tensors of a file by quantized ones, in unnamed files in `folder`.
///
/// # Errors
/// A file cannot be written, for example because the disk is full.
pub fn quantize_all(file: &mut Gguf, importance: &Importance, folder: &Path) -> Result<()> {
    for name in names(file) {
        let Some((tensor, format)) = file.tensor(&name).and_then(|t| Some((t.clone(), fine(t.shape[0])?)))
        else {
            continue;
        };
        let bytes = on_disk(&quantized(file, &tensor, format, importance).0, folder);
        let bytes = bytes.with_context(|| format!("{}: {name} of the quantized model", folder.display()))?;
        file.replace(&name, format, bytes)?;
    }
    Ok(())
}

/// Writes bytes to an unnamed file and maps it, so that a model larger than RAM can be measured.
fn on_disk(bytes: &[u8], folder: &Path) -> std::io::Result<Bytes> {
    let mut file = tempfile::tempfile_in(folder)?;
    file.write_all(bytes)?;
    map_scratch(&file)
}

impl<'a> SensitivityProbe<'a> {
    /// Runs the unchanged model and the one of [`quantize_all`] on the windows.
    pub fn new(
        cpu: Cpu,
        file: &Gguf,
        quantized: Gguf,
        cache: CacheFormat,
        batch: usize,
        windows: Vec<&'a [u32]>,
    ) -> Result<SensitivityProbe<'a>> {
        let mut probe =
            SensitivityProbe { cpu, cache, batch, windows, expected: Vec::new(), quantized, joint: 0.0 };
        let model = Model::load(&probe.cpu, file)?;
        let vocab = model.config.vocab;
        for window in &probe.windows {
            let mut logits = probe.logits(&model, window);
            logits.par_chunks_exact_mut(vocab).for_each(|row| row.copy_from_slice(&log_softmax(row)));
            probe.expected.push(logits);
        }
        probe.joint = probe.divergence(&probe.quantized)?;
        Ok(probe)
    }

    /// The logits after every token of a window, from an empty state.
    fn logits(&self, model: &Model<Cpu>, window: &[u32]) -> Vec<f32> {
        let mut state = model.state(&self.cpu, self.cache);
        let mut all = Vec::new();
        for tokens in window.chunks(self.batch) {
            let mla_path = MlaPath::Absorbed;
            let mut batch = [Sequence { tokens, state: &mut state, outputs: Outputs::All, mla_path }];
            let logits = model.forward(&self.cpu, &mut batch, &mut ());
            all.extend(logits.iter().flat_map(|logits| self.cpu.read(logits)));
        }
        all
    }

    /// The mean KL divergence of a changed model from the unchanged one.
    fn divergence(&self, file: &Gguf) -> Result<f64> {
        let model = Model::load(&self.cpu, file)?;
        let vocab = model.config.vocab;
        let (mut sum, mut count) = (0.0, 0);
        for (window, expected) in self.windows.iter().zip(&self.expected) {
            let logits = self.logits(&model, window);
            let rows = logits.par_chunks_exact(vocab).zip(expected.par_chunks_exact(vocab));
            let each: Vec<f64> =
                rows.map(|(row, expected)| kl_divergence(expected, &log_softmax(row))).collect();
            count += each.len();
            sum += each.iter().sum::<f64>();
        }
        Ok(sum / count.max(1) as f64)
    }

    /// The sensitivity of a tensor. The file is the same afterwards.
    ///
    /// Products with quantized weights round their activations, too, which costs the same in every format: alone, the divergence
    /// in Q8_0 is subtracted; the other model rounds them already.
    pub fn measure(&mut self, file: &mut Gguf, name: &str, importance: &Importance) -> Result<f32> {
        let Some(tensor) = file.tensor(name).cloned() else { return Ok(0.0) };
        let (Some(coarse), Some(fine)) = (coarse(tensor.shape[0]), fine(tensor.shape[0])) else {
            return Ok(0.0);
        };
        let [(coarse_bytes, error), (_, fine_error), (least_bytes, least_error)] =
            [coarse, fine, Format::Q8_0].map(|format| quantized(file, &tensor, format, importance));
        let (error, fine_error, least_error) =
            (error.relative(), fine_error.relative(), least_error.relative());
        let floor = self.with(file, name, Format::Q8_0, least_bytes)?;
        let alone = self.with(file, name, coarse, coarse_bytes.clone())? - floor;
        let fine_bytes = self.quantized.tensor(name).map_or_else(Bytes::new, |t| self.quantized.bytes(t));
        self.quantized.replace(name, coarse, coarse_bytes)?;
        let among_others = self.divergence(&self.quantized)? - self.joint;
        self.quantized.replace(name, fine, fine_bytes)?;
        let slopes = [slope(alone, error - least_error), slope(among_others, error - fine_error)];
        Ok(((slopes[0] + slopes[1]) / 2.0) as f32)
    }

    /// The divergence of a file with one tensor replaced. The file is the same afterwards.
    fn with(&self, file: &mut Gguf, name: &str, format: Format, bytes: Bytes) -> Result<f64> {
        file.replace(name, format, bytes)?;
        let divergence = self.divergence(file);
        file.restore(name);
        divergence
    }
}

/// The increase of the divergence per relative error; noise below 0 counts as 0.
fn slope(divergence: f64, error: f64) -> f64 {
    if error > 0.0 { (divergence / error).max(0.0) } else { 0.0 }
}

/// D(expected || found) of two rows of log-probabilities.
fn kl_divergence(expected: &[f32], found: &[f32]) -> f64 {
    let term = |(p, q): (&f32, &f32)| f64::from(p.exp()) * (f64::from(*p) - f64::from(*q));
    expected.iter().zip(found).map(term).sum::<f64>().max(0.0)
}

/// Quantizes a tensor of the file in memory; returns its error, too.
fn quantized(file: &Gguf, tensor: &TensorInfo, format: Format, importance: &Importance) -> (Bytes, Error) {
    let (stored, cols) = (file.bytes(tensor), tensor.shape[0] as usize);
    let rows_of_matrix = tensor.shape[1] as usize;
    let bytes_of = |format: Format| format.row_bytes(cols as u64).expect("whole blocks") as usize;
    let (from, to) = (bytes_of(tensor.format), bytes_of(format));
    let mut out = vec![0; stored.len() / from * to];
    let rows = out.par_chunks_exact_mut(to).zip(stored.par_chunks_exact(from)).enumerate();
    let error = rows.map(|(row, (out, stored))| {
        let mut values = vec![0.0; cols];
        tensor.format.dequantize_row(stored, &mut values);
        let (weights, factor) = importance.of_matrix(&tensor.name, cols, row / rows_of_matrix);
        quantize(format, SampledRow { values: &values, importance: weights, factor }, out)
    });
    // In the order of the rows: the sum does not depend on threads.
    let errors: Vec<Error> = error.collect();
    let error = errors.into_iter().fold(Error::default(), Error::plus);
    (Bytes::from(out), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_never_negative() {
        assert_eq!([slope(0.5, 0.25), slope(-0.5, 0.25), slope(0.5, 0.0)], [2.0, 0.0, 0.0]);
    }

    #[test]
    fn divergence_of_equal_rows_is_zero() {
        let (p, q) = (log_softmax(&[0.0, 1.0, 2.0]), log_softmax(&[2.0, 1.0, 0.0]));
        assert_eq!(kl_divergence(&p, &p), 0.0);
        let expected = 2.0 * f64::from(p[2].exp() - p[0].exp());
        assert!((kl_divergence(&p, &q) - expected).abs() < 1e-6);
    }
}
