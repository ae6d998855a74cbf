//! Reads the input's tensors: by name, in chunks of rows.
//!
//! BF16, F16 and F32 of a checkpoint are GGUF formats as well, so both kinds of input are handled alike from here on; only
//! FP8 with its scales is special. Files are neither mapped nor cached: each chunk is read on use.

use crate::error::{Error, Result};
use kernels::quant::Format;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::RwLock;

/// An input of one or more files.
#[derive(Debug, Default)]
pub struct Source {
    /// The files that hold weights.
    pub files: Vec<SourceFile>,
    /// The tensors of all files, by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The file that lists the tensors, for messages: the index, the only shard or the GGUF file.
    pub listing: String,
}

/// A file that holds weights.
#[derive(Debug)]
pub struct SourceFile {
    /// Path that the file was opened by.
    pub path: PathBuf,
    /// Length in bytes when it was opened.
    pub bytes: u64,
    /// Modification time in nanoseconds since 1970; 0 if unknown.
    pub modified: u128,
    file: RwLock<ReadAt>,
}

/// A tensor of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Dimensions in PyTorch's order, slowest first; empty if only an index was read.
    pub shape: Vec<u64>,
    /// Encoding of its values, which determines the bytes of a row.
    pub coding: Coding,
    /// Index of its file in [`Source::files`].
    pub file: usize,
    /// Offset of its first byte in that file.
    pub offset: u64,
}

/// The encoding of a tensor's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Blocks of a GGUF format, unquantized floats included.
    Blocks(Format),
    /// One byte per value (sign, 4 exponent and 3 mantissa bits), times a scale from another tensor.
    F8E4M3,
    /// An encoding that this crate does not convert, by name.
    Other(String),
    /// Unknown: only an index was read.
    Unread,
}

impl Coding {
    /// Bytes of a row of `cols` values. None if unknown or not whole blocks.
    pub fn row_bytes(&self, cols: u64) -> Option<u64> {
        match self {
            Coding::Blocks(format) => format.row_bytes(cols),
            Coding::F8E4M3 => Some(cols),
            Coding::Other(_) | Coding::Unread => None,
        }
    }
}

impl Source {
    /// Opens a file and returns its index.
    ///
    /// # Errors
    /// An I/O error, or not a regular file.
    pub fn open(&mut self, path: PathBuf) -> Result<usize> {
        let file = models::file::open(&path)?;
        let about = file.metadata().map_err(Error::io(&path))?;
        let since = about.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let modified = since.map_or(0, |d| d.as_nanos());
        self.files.push(SourceFile {
            path,
            bytes: about.len(),
            modified,
            file: RwLock::new(ReadAt::new(file)),
        });
        Ok(self.files.len() - 1)
    }

    /// Opens a file again after another one of the same length was put in its place.
    ///
    /// # Errors
    /// An I/O error, or another length.
    pub fn reopen(&self, file: usize) -> Result<()> {
        let SourceFile { path, bytes, file, .. } = &self.files[file];
        let opened = models::file::open(path)?;
        let found = opened.metadata().map_err(Error::io(path))?.len();
        if found != *bytes {
            return Err(Error::bad(
                path.display(),
                "the file's length",
                format_args!("{bytes} bytes"),
                found,
            ));
        }
        *file.write().expect("no panic while the lock is held") = ReadAt::new(opened);
        Ok(())
    }

    /// Reads `bytes` bytes of a file.
    ///
    /// # Errors
    /// An I/O error, or the end of the file.
    pub fn read(&self, file: usize, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes as usize];
        self.read_into(file, offset, &mut out)?;
        Ok(out)
    }

    fn read_into(&self, file: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let from = &self.files[file];
        let file = from.file.read().expect("no panic while the lock is held");
        file.read_exact_at(out, offset).map_err(Error::io(&from.path))
    }

    /// Reads rows of `cols` values of a tensor in their stored encoding, into a buffer that `buffer` allocates.
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

/// The scales of an FP8 tensor, one per tile.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Scales of the tiles, in row-major order.
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

/// Decodes an E4M3 value (there are no infinities; S.1111.111 is NaN).
pub fn f8_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        15 if byte & 7 == 7 => f32::NAN,
        0 => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Reads at an offset without moving a shared cursor.
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
