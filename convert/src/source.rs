//! The tensors of the input, wherever they are: found by name, read in chunks, decoded row by row.
//!
//! A checkpoint's BF16, F16 and F32 are GGUF formats too, so both kinds of input look the same from here
//! on; only FP8 with its scales is special. Nothing is mapped or kept: a chunk is read when it is wanted.

use crate::error::{Error, Result};
use kernels::quant::Format;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

/// An input of some files.
#[derive(Debug, Default)]
pub struct Source {
    /// The files that hold weights.
    pub files: Vec<SourceFile>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Where names stand, for messages: the index, the one shard or the GGUF file.
    pub listing: String,
}

/// A file with weights in it.
#[derive(Debug)]
pub struct SourceFile {
    /// Its path.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// When it was last written, in nanoseconds since 1970; 0 where the system does not say.
    pub modified: u128,
    file: ReadAt,
}

/// A tensor of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Slowest dimension first.
    pub shape: Vec<u64>,
    /// How its values are stored.
    pub coding: Coding,
    /// Index of its file.
    pub file: usize,
    /// Its first byte in that file.
    pub offset: u64,
}

/// How values are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coding {
    /// A format of GGUF.
    Blocks(Format),
    /// Bytes of sign, 4 exponent and 3 mantissa bits, times a scale from another tensor.
    F8E4M3,
    /// Something this crate does not convert, by name.
    Other(String),
    /// Only an index was read.
    Unread,
}

impl Coding {
    /// Bytes of a row of `cols` values; None where they are not known or not whole blocks.
    pub fn row_bytes(&self, cols: u64) -> Option<u64> {
        match self {
            Coding::Blocks(format) => format.row_bytes(cols),
            Coding::F8E4M3 => Some(cols),
            Coding::Other(_) | Coding::Unread => None,
        }
    }
}

impl Source {
    /// Opens a file and gives its index.
    ///
    /// # Errors
    /// Whatever the system says; no regular file.
    pub fn open(&mut self, path: PathBuf) -> Result<usize> {
        let file = models::file::open(&path)?;
        let about = file.metadata().map_err(Error::io(&path))?;
        let since = about.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let modified = since.map_or(0, |d| d.as_nanos());
        self.files.push(SourceFile { path, bytes: about.len(), modified, file: ReadAt::new(file) });
        Ok(self.files.len() - 1)
    }

    /// `bytes` bytes of a file.
    ///
    /// # Errors
    /// The system's, and a file that ends before them.
    pub fn read(&self, file: usize, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes as usize];
        self.read_into(file, offset, &mut out)?;
        Ok(out)
    }

    fn read_into(&self, file: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let from = &self.files[file];
        from.file.read_exact_at(out, offset).map_err(Error::io(&from.path))
    }

    /// Some rows of `cols` values of a tensor, as stored, in a buffer that `buffer` makes of a length.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn rows(
        &self,
        tensor: &Tensor,
        cols: u64,
        rows: std::ops::Range<u64>,
        buffer: impl FnOnce(usize) -> Vec<u8>,
    ) -> Result<Vec<u8>> {
        let row_bytes = tensor.coding.row_bytes(cols).expect("the plan was checked against the input");
        let mut out = buffer(((rows.end - rows.start) * row_bytes) as usize);
        self.read_into(tensor.file, tensor.offset + rows.start * row_bytes, &mut out)?;
        Ok(out)
    }

    /// The path of a tensor's file, for messages.
    pub fn path_of(&self, tensor: &Tensor) -> String {
        self.files[tensor.file].path.display().to_string()
    }
}

/// The scales of an FP8 tensor: one for each tile of `rows` x `cols` values.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Row by row of tiles.
    pub values: Vec<f32>,
    /// `[rows, columns]` of a tile.
    pub tile: [u64; 2],
    /// Values of a row of the tensor.
    pub cols: u64,
}

impl Scales {
    /// Multiplies a row by its scales.
    pub fn apply(&self, row: u64, values: &mut [f32]) {
        let across = self.cols.div_ceil(self.tile[1]);
        let first = (row / self.tile[0] * across) as usize;
        for (tile, scale) in values.chunks_mut(self.tile[1] as usize).zip(&self.values[first..]) {
            tile.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// Values of E4M3 (no infinities; S.1111.111 is NaN).
pub fn f8_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        15 if byte & 7 == 7 => f32::NAN,
        0 => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Reads at a place without moving anybody's cursor.
#[derive(Debug)]
struct ReadAt(#[cfg(unix)] File, #[cfg(not(unix))] std::sync::Mutex<File>);

impl ReadAt {
    #[cfg(unix)]
    fn new(file: File) -> ReadAt {
        ReadAt(file)
    }

    #[cfg(unix)]
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, out, offset)
    }

    #[cfg(not(unix))]
    fn new(file: File) -> ReadAt {
        ReadAt(std::sync::Mutex::new(file))
    }

    #[cfg(not(unix))]
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.0.lock().expect("a reader that panicked has ended the conversion");
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3() {
        let cases = [(0, 0.0), (1, 0.001953125), (0x38, 1.0), (0xb8, -1.0), (0x7e, 448.0), (0x08, 0.015625)];
        for (byte, value) in cases {
            assert_eq!(f8_e4m3(byte), value, "{byte:#x}");
        }
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan());
    }

    #[test]
    fn scales_by_tile() {
        let scales = Scales { values: vec![1.0, 2.0, 3.0, 4.0], tile: [2, 2], cols: 3 };
        let scaled = |row| {
            let mut values = [1.0; 3];
            scales.apply(row, &mut values);
            values
        };
        assert_eq!((scaled(1), scaled(2)), ([1.0, 1.0, 2.0], [3.0, 3.0, 4.0]));
    }
}
