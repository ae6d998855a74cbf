//! Random checkpoints, cut into shards, quantized or damaged.

use crate::common::{random_checkpoint, tiktoken_bytes};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A random checkpoint of a preset; `fields` are `FIELD=VALUE`.
pub fn generate(preset: &str, seed: u32, fields: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    random_checkpoint::write(dir.path(), preset, seed, fields);
    dir
}

/// A directory with the published config and an index of the published tensor names, without weights.
pub fn official_index() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = fs::read(random_checkpoint::OFFICIAL_CONFIG).unwrap();
    let tensors = random_checkpoint::tensor_specs(&serde_json::from_slice(&config).unwrap());
    let shard = |i: usize| format!("model-{:05}-of-00020.safetensors", i * 20 / tensors.len() + 1);
    let map: BTreeMap<_, _> = tensors.iter().enumerate().map(|(i, (name, ..))| (name, shard(i))).collect();
    let index = serde_json::json!({ "weight_map": map });
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

/// Writes a vocabulary of the 256 bytes, with `<e>` as end token four ids before the last, and a chat template.
pub fn write_tokenizer(dir: &Path, vocab: u32) {
    fs::write(dir.join("tiktoken.model"), tiktoken_bytes()).unwrap();
    let id = (vocab - 4).to_string();
    let added = serde_json::json!({ id: { "content": "<e>", "special": true } });
    let config = serde_json::json!({ "eos_token": "<e>", "added_tokens_decoder": added });
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    fs::write(dir.join("chat_template.jinja"), "{{ messages }}").unwrap();
}

/// The tensors of a `model.safetensors`.
#[derive(Clone)]
pub struct Checkpoint {
    /// Dtype, shape and bytes by name.
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Checkpoint {
    /// Reads the tensors of `model.safetensors` in `dir`.
    pub fn read(dir: &Path) -> Checkpoint {
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter();
        let tensors = tensors.map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
        Checkpoint { tensors: tensors.collect() }
    }

    /// The values of a BF16 or F32 tensor.
    pub fn values(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = &self.tensors[name];
        match dtype {
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Writes all tensors to `model.safetensors` in `dir`.
    pub fn write(&self, dir: &Path) {
        write_some(&dir.join("model.safetensors"), self.tensors.iter());
    }

    /// Writes the tensors to `count` shards in round-robin order, and their index.
    pub fn write_shards(&self, dir: &Path, count: usize) {
        let shard = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i % count + 1);
        for number in 0..count {
            let some = self.tensors.iter().enumerate().filter(|(i, _)| i % count == number).map(|(_, t)| t);
            write_some(&dir.join(shard(number)), some);
        }
        let map: BTreeMap<_, _> = self.tensors.keys().enumerate().map(|(i, name)| (name, shard(i))).collect();
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    /// Replaces three tensors by random FP8 bytes: one with block scales, one with a scale per row, one with a single scale.
    /// Writes the file and returns the values of the three tensors.
    pub fn quantize_fp8(mut self, dir: &Path, names: [&str; 3]) -> [Vec<f32>; 3] {
        let mut seed = 1u32;
        let values = [0, 1, 2].map(|i| {
            let [rows, cols] = self.shape(names[i]);
            let (suffix, tile, scales) = match i {
                0 => return self.quantize_blocks(names[i], &mut seed),
                1 => ("_scale", [1, cols], vec![rows, 1]),
                _ => ("_scale", [rows, cols], vec![]),
            };
            self.quantize(names[i], suffix, (tile, scales), &mut seed)
        });
        self.write(dir);
        values
    }

    /// Replaces tensors by random FP8 bytes with block scales. Writes the file and returns their values.
    pub fn quantize_fp8_blocks<const N: usize>(mut self, dir: &Path, names: [&str; N]) -> [Vec<f32>; N] {
        let mut seed = 1u32;
        let values = names.map(|name| self.quantize_blocks(name, &mut seed));
        self.write(dir);
        values
    }

    fn quantize_blocks(&mut self, name: &str, seed: &mut u32) -> Vec<f32> {
        let scales = self.shape(name).map(|n| n.div_ceil(128)).to_vec();
        self.quantize(name, "_scale_inv", ([128, 128], scales), seed)
    }

    fn shape(&self, name: &str) -> [usize; 2] {
        self.tensors[name].1[..].try_into().unwrap()
    }

    /// Replaces a tensor by random FP8 bytes, whose scales cover tiles and have this shape. Returns its values.
    fn quantize(
        &mut self,
        name: &str,
        suffix: &str,
        (tile, scales): ([usize; 2], Vec<usize>),
        seed: &mut u32,
    ) -> Vec<f32> {
        let [rows, cols] = self.shape(name);
        let count: usize = scales.iter().product();
        let scale: Vec<f32> = (0..count).map(|i| 0.5 + i as f32 / 64.0).collect();
        let bytes: Vec<u8> = (0..rows * cols).map(|_| random_e4m3(seed)).collect();
        let across = cols.div_ceil(tile[1]);
        let value = |i: usize| e4m3(bytes[i]) * scale[i / cols / tile[0] * across + i % cols / tile[1]];
        let values = (0..bytes.len()).map(value).collect();
        let scale_bytes = scale.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.insert(format!("{name}{suffix}"), (Dtype::F32, scales, scale_bytes));
        self.tensors.insert(name.to_owned(), (Dtype::F8_E4M3, vec![rows, cols], bytes));
        values
    }
}

fn write_some<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a String, &'a (Dtype, Vec<usize>, Vec<u8>))>,
) {
    let view = |(dtype, shape, bytes): &'a (Dtype, Vec<usize>, Vec<u8>)| {
        TensorView::new(*dtype, shape.clone(), bytes)
    };
    let views = tensors.map(|(name, tensor)| (name, view(tensor).unwrap()));
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// A random byte that is not one of the two NaN.
fn random_e4m3(seed: &mut u32) -> u8 {
    *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    let byte = (*seed >> 24) as u8;
    if byte & 0x7f == 0x7f { 0 } else { byte }
}

/// The value of an E4M3 byte: sign, 4 bits of exponent with bias 7, 3 bits of mantissa.
fn e4m3(byte: u8) -> f32 {
    let (sign, exponent) = (if byte > 127 { -1.0 } else { 1.0 }, i32::from(byte >> 3 & 15));
    let mantissa = f32::from(byte & 7) / 8.0;
    match exponent {
        0 => sign * mantissa * 2f32.powi(-6),
        _ => sign * (1.0 + mantissa) * 2f32.powi(exponent - 7),
    }
}
