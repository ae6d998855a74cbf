//! Opens a GGUF file as the input of a conversion: each tensor is the only part of an output tensor, except `attn_kv_b` of
//! older files, which becomes `attn_k_b` and `attn_v_b`.
//!
//! Metadata is copied; only the keys that describe formats change, and those that describe a split `attn_kv_b`.

use crate::error::{Error, Result};
use crate::names::{LatentProjection, RowRange, TensorSpec, Transform};
use crate::progress::Progress;
use crate::source::{Coding, Source, Tensor};
use models::architecture::ARCHITECTURES;
use models::gguf::read::Gguf;
use models::gguf::{Array, Metadata, Value};
use models::hybrid::config::{Config, MixerKind};
use models::hybrid::kv_split::UNSPLIT;
use std::path::Path;

/// Opens the file and returns its tensors as sources and as specs of the output.
///
/// # Errors
/// An invalid file, or another architecture.
pub fn open(path: &Path, progress: &mut dyn Progress) -> Result<(Source, Vec<TensorSpec>, Metadata)> {
    let gguf = Gguf::open(path)?;
    let shown = path.display().to_string();
    let architecture = gguf.str("general.architecture")?;
    if !ARCHITECTURES.contains(&architecture) {
        return Err(Error::bad(shown, "general.architecture", ARCHITECTURES.join(" or "), architecture));
    }
    let mut source = Source { listing: shown.clone(), ..Source::default() };
    for path in gguf.paths() {
        source.open(path.clone())?;
    }
    let mut specs = Vec::with_capacity(gguf.tensors.len());
    let (mut coarse, mut metadata) = (0, gguf.metadata.clone());
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
        if let Some(layer) = tensor.name.strip_suffix(UNSPLIT) {
            let config = Config::from_metadata(&shown, &gguf.metadata)?;
            let m = &config.mla;
            let [heads, nope, v_dim, kv_lora] =
                [m.heads, m.nope_dim, m.value_dim, m.latent_dim].map(|n| n as u64);
            specs.extend(LatentProjection { heads, nope, v_dim, kv_lora }.split(layer, &tensor.name));
            describe_latent_cache(&mut metadata, &config);
            continue;
        }
        let rows = dims[..dims.len() - 1].iter().product();
        let part = RowRange { source: tensor.name.clone(), dims, first: 0, rows, map: Transform::Copy };
        specs.push(TensorSpec { name: tensor.name.clone(), shape: tensor.shape.clone(), parts: vec![part] });
    }
    if coarse > 0 {
        let all = gguf.tensors.len();
        progress.warn(&format!("{coarse} of {all} tensors are quantized already: their errors will add up"));
    }
    Ok((source, specs, metadata))
}

/// Sets the keys of llama.cpp's cache for split projections: one row of latent and positional key, which all heads share.
fn describe_latent_cache(metadata: &mut Metadata, c: &Config) {
    let key = |name: &str| format!("{}.attention.{name}", c.architecture);
    let heads = c.layers.iter().map(|kind| i32::from(*kind == MixerKind::Mla)).collect();
    metadata.set(&key("head_count_kv"), Value::Array(Array::I32(heads)));
    let width = |n: usize| Value::U32(u32::try_from(n).expect("bounded by Config::from_metadata"));
    metadata.set(&key("key_length"), width(c.cache_width()));
    metadata.set(&key("value_length"), width(c.mla.latent_dim));
}

/// The number of layers in the metadata.
///
/// # Errors
/// The key is missing or out of range.
pub fn layers(path: &Path, metadata: &Metadata) -> Result<u64> {
    let architecture = metadata.str("general.architecture").unwrap_or_default();
    let key = format!("{architecture}.block_count");
    let value = metadata.get(&key).and_then(|v| v.as_u64()).filter(|n| (1..=4096).contains(n));
    value.ok_or_else(|| Error::bad(path.display(), key, "1 to 4096 layers", "another value or none"))
}
