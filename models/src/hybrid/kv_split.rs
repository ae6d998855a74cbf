//! Splits `attn_kv_b`, the one up-projection from the latent in older GGUF files, into the keys' and the values' stack that
//! [`super::mla`] uses (`attn_k_b` and `attn_v_b` of newer files).
//!
//! `attn_kv_b` is `[head * (nope + value), latent]`: per head the rows of keys, then those of values. The values' rows are
//! copied as they are. Absorbed attention needs the keys transposed, a row per latent channel, and blocks of a quantized row
//! cannot be transposed: such keys become F32, which keeps every value. That takes 8 MiB per MLA layer of the 48B model
//! (56 MiB in all, 3 % of the bytes of a decoded token); requantizing them to Q8_0 would add a rounding error to save 6 of 8.

use super::config::{Config, MixerKind, MlaConfig};
use crate::gguf::read::Gguf;
use bytes::Bytes;
use kernels::backend::QuantTensor;
use kernels::quant::Format;

/// The name in a layer of the tensor that holds both projections.
pub const UNSPLIT: &str = "attn_kv_b.weight";

/// Splits `attn_kv_b` into the stack of keys `[head, latent, nope]` and that of values `[head, value, latent]`.
///
/// # Panics
/// If the tensor is not `[head * (nope + value), latent]`.
pub(super) fn split(all: &QuantTensor, m: &MlaConfig) -> [QuantTensor; 2] {
    assert_eq!([all.rows, all.cols], [m.heads * (m.nope_dim + m.value_dim), m.latent_dim], "attn_kv_b");
    let row_bytes = all.format.row_bytes(all.cols as u64).expect("rows of whole blocks") as usize;
    let heads = || all.bytes.chunks_exact((m.nope_dim + m.value_dim) * row_bytes);
    let values: Vec<u8> = heads().flat_map(|head| &head[m.nope_dim * row_bytes..]).copied().collect();
    let format = key_format(all.format);
    let mut keys = Vec::with_capacity(m.heads * m.nope_dim * m.latent_dim * format.block_bytes());
    for head in heads() {
        let rows = head[..m.nope_dim * row_bytes].chunks_exact(row_bytes);
        let rows: Vec<Vec<u8>> = rows.map(|row| elements(all.format, row, m.latent_dim)).collect();
        for latent in 0..m.latent_dim {
            let at = latent * format.block_bytes()..(latent + 1) * format.block_bytes();
            rows.iter().for_each(|row| keys.extend_from_slice(&row[at.clone()]));
        }
    }
    let stack = |part: &str, format, [rows, cols]: [usize; 2], bytes: Vec<u8>| QuantTensor {
        name: all.name.replace("attn_kv_b", part).into(),
        format,
        count: m.heads,
        rows,
        cols,
        bytes: Bytes::from(bytes),
    };
    let keys = stack("attn_k_b", format, [m.latent_dim, m.nope_dim], keys);
    [keys, stack("attn_v_b", all.format, [m.value_dim, m.latent_dim], values)]
}

/// Bytes of memory that the split projections of a file take besides its mapping; 0 for files that hold them split.
pub fn split_bytes(file: &Gguf, c: &Config) -> u64 {
    let m = &c.mla;
    let layers = c.layers.iter().chain(c.mtp.then_some(&MixerKind::Mla)).enumerate();
    let layers = layers.filter(|(_, kind)| **kind == MixerKind::Mla);
    let layers = layers.filter(|(i, _)| file.tensor(&format!("blk.{i}.attn_k_b.weight")).is_none());
    let unsplit = layers.filter_map(|(i, _)| file.tensor(&format!("blk.{i}.{UNSPLIT}")));
    let bytes = unsplit.map(|t| {
        let keys =
            (m.heads * m.nope_dim) as u64 * m.latent_dim as u64 * key_format(t.format).block_bytes() as u64;
        let rows = (m.heads * m.value_dim) as u64;
        keys.saturating_add(t.format.row_bytes(m.latent_dim as u64).unwrap_or(0).saturating_mul(rows))
    });
    bytes.fold(0, u64::saturating_add)
}

/// The format of transposed keys: the stored one where a block is one value, else F32.
fn key_format(stored: Format) -> Format {
    if stored.block_len() == 1 { stored } else { Format::F32 }
}

/// The values of a row in [`key_format`].
fn elements(stored: Format, row: &[u8], cols: usize) -> Vec<u8> {
    if stored.block_len() == 1 {
        return row.to_vec();
    }
    f32_bytes(stored, row, cols)
}

/// The values of a row as F32.
pub(super) fn f32_bytes(stored: Format, row: &[u8], cols: usize) -> Vec<u8> {
    let mut values = vec![0.0; cols];
    stored.dequantize_row(row, &mut values);
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: MlaConfig = MlaConfig { heads: 2, nope_dim: 3, pe_dim: 1, value_dim: 2, latent_dim: 32 };

    /// The value of a row and a latent channel, exact in every format tried.
    fn value(row: usize, latent: usize) -> f32 {
        (row * 4) as f32 - latent as f32
    }

    #[test]
    fn every_value_keeps_its_bits_and_finds_its_place() {
        for format in [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0] {
            let rows: Vec<Vec<f32>> = (0..10).map(|r| (0..32).map(|l| value(r, l)).collect()).collect();
            let row_bytes = format.row_bytes(32).unwrap() as usize;
            let mut bytes = vec![0; 10 * row_bytes];
            for (row, out) in rows.iter().zip(bytes.chunks_exact_mut(row_bytes)) {
                format.quantize_row(row, out);
            }
            let stored = |row: usize| {
                let mut values = vec![0.0; 32];
                format.dequantize_row(&bytes[row * row_bytes..][..row_bytes], &mut values);
                values
            };
            let all = QuantTensor {
                name: "blk.3.attn_kv_b.weight".into(),
                format,
                count: 1,
                rows: 10,
                cols: 32,
                bytes: bytes.clone().into(),
            };
            let [keys, values] = split(&all, &M);
            assert_eq!([&*keys.name, &*values.name], ["blk.3.attn_k_b.weight", "blk.3.attn_v_b.weight"]);
            assert_eq!([keys.count, keys.rows, keys.cols], [2, 32, 3]);
            assert_eq!(
                [values.count, values.rows, values.cols, values.bytes.len()],
                [2, 2, 32, 4 * row_bytes]
            );
            let mut of_keys = vec![0.0; 2 * 32 * 3];
            keys.format.dequantize_row(&keys.bytes, &mut of_keys);
            for head in 0..2 {
                for (channel, latent) in (0..3).flat_map(|c| (0..32).map(move |l| (c, l))) {
                    let found = of_keys[(head * 32 + latent) * 3 + channel];
                    assert_eq!(found.to_bits(), stored(head * 5 + channel)[latent].to_bits(), "{format:?}");
                }
                let rows = &values.bytes[head * 2 * row_bytes..][..2 * row_bytes];
                assert_eq!(rows, &bytes[(head * 5 + 3) * row_bytes..][..2 * row_bytes], "{format:?}");
            }
        }
    }
}
