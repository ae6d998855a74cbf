//! Loads named tensors of a file as weights on a backend, and checks their shapes.

use super::config::MlaConfig;
use super::kv_split::{UNSPLIT, f32_bytes, split};
use crate::gguf::{Error, TensorInfo, read::Gguf};
use crate::visible::{MAX_SHOWN, one_line};
use kernels::backend::{Backend, QuantTensor};
use kernels::quant::Format;
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{Display, Formatter};

/// Loads tensors of a file, or of one of its layers, by name.
pub struct Loader<'a, B: Backend> {
    /// Backend that the weights are loaded onto.
    pub backend: &'a B,
    /// Opened file that holds the tensors.
    pub file: &'a Gguf,
    /// Layer whose prefix `blk.N.` names get.
    pub layer: Option<usize>,
    /// Small tensors that hold NaN or infinities.
    pub not_finite: &'a RefCell<Vec<NotFinite>>,
}

/// A tensor with values that are NaN or infinite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// Name of the tensor in the file.
    pub tensor: String,
    /// Number of values that are NaN or infinite.
    pub count: usize,
    /// Number of all values of the tensor.
    pub of: usize,
}

impl Display for NotFinite {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let NotFinite { tensor, count, of } = self;
        write!(
            f,
            "{}: expected finite values, found {count} of {of} NaN or infinite",
            one_line(tensor, MAX_SHOWN)
        )
    }
}

impl<B: Backend> Loader<'_, B> {
    /// Loads a `[rows, cols]` matrix in any format: ggml's `{cols, rows}`.
    pub fn matrix(&self, name: &str, cols: usize, rows: usize) -> Result<B::Weight, Error> {
        self.stack(name, [cols, rows, 1])
    }

    /// Loads the first `count` rows of a `[rows, cols]` matrix in any format.
    pub fn first_rows(&self, name: &str, [cols, rows]: [usize; 2], count: usize) -> Result<B::Weight, Error> {
        let (_, stored) = self.stored(name, [cols, rows, 1])?;
        let bytes = stored.bytes.slice(..stored.bytes.len() / rows.max(1) * count);
        self.take(name, QuantTensor { rows: count, bytes, ..stored })
    }

    /// Loads a stack of `count` matrices `[rows, cols]` in any format: ggml's `{cols, rows, count}`.
    pub fn stack(&self, name: &str, [cols, rows, count]: [usize; 3]) -> Result<B::Weight, Error> {
        let (_, stored) = self.stored(name, [cols, rows, count])?;
        self.take(name, stored)
    }

    /// Returns whether the file has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.file.tensor(&self.full_name(name)).is_some()
    }

    /// Loads the left and the right half of a `[rows, 2 * cols]` matrix. Halves that are not whole blocks become F32.
    pub fn column_halves(&self, name: &str, cols: usize, rows: usize) -> Result<[B::Weight; 2], Error> {
        let (_, all) = self.stored(name, [2 * cols, rows, 1])?;
        let whole = cols.is_multiple_of(all.format.block_len());
        let format = if whole { all.format } else { Format::F32 };
        let mut halves = [Vec::new(), Vec::new()];
        for row in all.bytes.chunks_exact(all.bytes.len() / rows) {
            let row = if whole { Cow::from(row) } else { f32_bytes(all.format, row, 2 * cols).into() };
            let (left, right) = row.split_at(row.len() / 2);
            halves[0].extend_from_slice(left);
            halves[1].extend_from_slice(right);
        }
        let [left, right] = halves
            .map(|half| self.take(name, QuantTensor { format, cols, bytes: half.into(), ..all.clone() }));
        Ok([left?, right?])
    }

    /// Loads an F32 vector of `len` values.
    pub fn vector(&self, name: &str, len: usize) -> Result<B::Weight, Error> {
        self.f32_matrix(name, len, 1)
    }

    /// Loads a small F32 `[rows, cols]` matrix.
    pub fn f32_matrix(&self, name: &str, cols: usize, rows: usize) -> Result<B::Weight, Error> {
        let (info, stored) = self.stored(name, [cols, rows, 1])?;
        if stored.format != Format::F32 {
            return self.bad(&info.name, "F32", stored.format.name());
        }
        // A few hundred kilobytes per layer, which the first token reads anyway.
        let (values, _) = stored.bytes.as_chunks();
        let count = values.iter().filter(|x| !f32::from_le_bytes(**x).is_finite()).count();
        if count > 0 {
            let (tensor, of) = (info.name.clone(), values.len());
            self.not_finite.borrow_mut().push(NotFinite { tensor, count, of });
        }
        self.take(name, stored)
    }

    /// Loads the projections of q, k and v `[width, dim]`: three tensors, or their concatenation `attn_qkv`.
    pub fn qkv(&self, dim: usize, width: usize) -> Result<[B::Weight; 3], Error> {
        let joint = "attn_qkv.weight";
        if !self.has(joint) {
            let one = |name: &str| self.matrix(name, dim, width);
            return Ok([one("attn_q.weight")?, one("attn_k.weight")?, one("attn_v.weight")?]);
        }
        let (_, all) = self.stored(joint, [dim, 3 * width, 1])?;
        let third = all.bytes.len() / 3;
        let part = |i: usize| {
            let bytes = all.bytes.slice(i * third..(i + 1) * third);
            self.take(joint, QuantTensor { rows: width, bytes, ..all.clone() })
        };
        Ok([part(0)?, part(1)?, part(2)?])
    }

    /// Loads the up-projections from the latent, keys and values: two stacks, or `attn_kv_b`, which is split.
    pub fn kv_up(&self, m: &MlaConfig) -> Result<[B::Weight; 2], Error> {
        if !self.has(UNSPLIT) || self.has("attn_k_b.weight") {
            let keys = self.stack("attn_k_b.weight", [m.nope_dim, m.latent_dim, m.heads])?;
            return Ok([keys, self.stack("attn_v_b.weight", [m.latent_dim, m.value_dim, m.heads])?]);
        }
        let (_, all) = self.stored(UNSPLIT, [m.latent_dim, m.heads * (m.nope_dim + m.value_dim), 1])?;
        let [keys, values] = split(&all, m);
        Ok([self.take(UNSPLIT, keys)?, self.take(UNSPLIT, values)?])
    }

    fn full_name(&self, name: &str) -> String {
        match self.layer {
            Some(layer) => format!("blk.{layer}.{name}"),
            None => name.to_owned(),
        }
    }

    fn stored(&self, name: &str, shape: [usize; 3]) -> Result<(&TensorInfo, QuantTensor), Error> {
        let full = self.full_name(name);
        let expected = trimmed(&shape);
        let Some(info) = self.file.tensor(&full) else {
            return self.bad(&full, format!("a tensor {expected:?}"), "none");
        };
        let found: Vec<usize> =
            info.shape.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect();
        if without_ones(&found) != without_ones(&shape) {
            return self.bad(&full, format!("{expected:?}"), format!("{:?}", info.shape));
        }
        let [cols, rows, count] = shape;
        // A shape may omit dimensions of 1, so a row of the file may be a column here: 64 weights in blocks of 32 are not
        // 64 rows.
        let bytes = info.format.row_bytes(cols as u64).and_then(|row| row.checked_mul((rows * count) as u64));
        if bytes != Some(info.bytes) {
            let name = info.format.name();
            let blocks =
                format!("{expected:?} in rows of whole {name} blocks of {}", info.format.block_len());
            return self.bad(&full, blocks, format!("{:?} in rows of {cols}", info.shape));
        }
        let (name, bytes) = (full.into(), self.file.bytes(info));
        Ok((info, QuantTensor { name, format: info.format, count, rows, cols, bytes }))
    }

    fn take(&self, name: &str, stored: QuantTensor) -> Result<B::Weight, Error> {
        let full = self.full_name(name);
        self.backend.weight(stored).map_err(|cause| {
            let path = self.file.paths().first().map(|p| p.display().to_string()).unwrap_or_default();
            Error::Device { path, tensor: full, cause }
        })
    }

    fn bad<T>(&self, place: &str, expected: impl Display, found: impl Display) -> Result<T, Error> {
        let path = self.file.paths().first().map(|p| p.display().to_string()).unwrap_or_default();
        Err(Error::bad(&path, place, expected, found))
    }
}

/// A shape without dimensions of 1, which files may omit.
fn without_ones(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|n| *n != 1).collect()
}

/// A shape without trailing ones.
fn trimmed(shape: &[usize]) -> &[usize] {
    let len = shape.iter().rposition(|n| *n != 1).map_or(1, |last| last + 1);
    &shape[..len]
}
