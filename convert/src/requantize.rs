//! Opens a GGUF file as the input of a conversion: each tensor is the only part of an output tensor.
//!
//! Metadata is copied; only the keys that describe formats change.

use crate::error::{Error, Result};
use crate::metadata::ARCHITECTURE;
use crate::names::{RowRange, TensorSpec, Transform};
use crate::progress::Progress;
use crate::source::{Coding, Source, Tensor};
use models::gguf::Metadata;
use models::gguf::read::Gguf;
use std::path::Path;

/// Opens the file and returns its tensors as sources and as specs of the output.
///
/// # Errors
/// An invalid file, or another architecture.
pub fn open(path: &Path, progress: &mut dyn Progress) -> Result<(Source, Vec<TensorSpec>, Metadata)> {
    let gguf = Gguf::open(path)?;
    let shown = path.display().to_string();
    let architecture = gguf.str("general.architecture")?;
    if architecture != ARCHITECTURE {
        return Err(Error::bad(shown, "general.architecture", ARCHITECTURE, architecture));
    }
    let mut source = Source { listing: shown.clone(), ..Source::default() };
    for path in gguf.paths() {
        source.open(path.clone())?;
    }
    let mut specs = Vec::with_capacity(gguf.tensors.len());
    let mut coarse = 0;
    for tensor in &gguf.tensors {
        coarse += usize::from(tensor.format.block_len() > 1);
        let dims: Vec<u64> = tensor.shape.iter().rev().copied().collect();
        if dims.contains(&0) {
            return Err(Error::bad(
                shown,
                &tensor.name,
                "dimensions of at least 1",
                format!("{:?}", tensor.shape),
            ));
        }
        let offset = gguf.offset_in_file(tensor);
        let stored =
            Tensor { shape: dims.clone(), coding: Coding::Blocks(tensor.format), file: tensor.file, offset };
        source.tensors.insert(tensor.name.clone(), stored);
        let rows = dims[..dims.len() - 1].iter().product();
        let part = RowRange { source: tensor.name.clone(), dims, first: 0, rows, map: Transform::Copy };
        specs.push(TensorSpec { name: tensor.name.clone(), shape: tensor.shape.clone(), parts: vec![part] });
    }
    if coarse > 0 {
        let all = gguf.tensors.len();
        progress.warn(&format!("{coarse} of {all} tensors are quantized already: their errors will add up"));
    }
    Ok((source, specs, gguf.metadata))
}

/// The number of layers in the metadata.
///
/// # Errors
/// The key is missing or out of range.
pub fn layers(path: &Path, metadata: &Metadata) -> Result<u64> {
    let key = format!("{ARCHITECTURE}.block_count");
    let value = metadata.get(&key).and_then(|v| v.as_u64()).filter(|n| (1..=4096).contains(n));
    value.ok_or_else(|| Error::bad(path.display(), key, "1 to 4096 layers", "another value or none"))
}
