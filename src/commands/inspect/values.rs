//! Checks all weights of a file, including block scales, for NaN and infinite values: `kimi inspect --check`.
//!
//! The check is bound by the disk; loading a model checks only small tensors ([`models::hybrid::weights`]).

use models::gguf::TensorInfo;
use models::gguf::read::Gguf;
use models::hybrid::weights::NotFinite;
use rayon::prelude::*;

/// Values per task: whole blocks of every format.
const AT_ONCE: usize = 1 << 16;

/// Returns one line per tensor with NaN or infinite values.
pub fn not_finite(file: &Gguf) -> Vec<String> {
    file.tensors.iter().filter_map(|t| in_tensor(file, t)).map(|found| found.to_string()).collect()
}

fn in_tensor(file: &Gguf, t: &TensorInfo) -> Option<NotFinite> {
    let bytes = file.bytes(t);
    let (block_len, block_bytes) = (t.format.block_len(), t.format.block_bytes());
    let counts = bytes.par_chunks(AT_ONCE / block_len * block_bytes).map_init(
        || vec![0.0; AT_ONCE],
        |values, stored| {
            let values = &mut values[..stored.len() / block_bytes * block_len];
            t.format.dequantize_row(stored, values);
            values.iter().filter(|x| !x.is_finite()).count()
        },
    );
    let count = counts.sum();
    let of = bytes.len() / block_bytes * block_len;
    (count > 0).then(|| NotFinite { tensor: t.name.clone(), count, of })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::quant::Format;
    use models::gguf::Metadata;
    use models::gguf::write::Layout;

    #[test]
    fn values_and_scales_that_are_not_finite_are_counted() {
        let tensor = |name: &str, format: Format, rows| (name.to_owned(), format, vec![256, rows]);
        let tensors = vec![
            tensor("good", Format::F32, 1000),
            tensor("values", Format::BF16, 1000),
            tensor("scales", Format::Q4_K, 1000),
        ];
        let layout = Layout::new(Metadata::default(), tensors).unwrap();
        let mut bytes = layout.header().to_vec();
        let start = bytes.len() as u64;
        bytes.resize(layout.total_bytes() as usize, 0);
        let mut put = |i: usize, at: u64, two: [u8; 2]| {
            let at = (start + layout.tensors()[i].offset + at) as usize;
            bytes[at..at + 2].copy_from_slice(&two);
        };
        put(1, 0, [0x80, 0x7f]); // infinity
        put(1, 511_998, [0xc1, 0xff]); // NaN, the last value
        put(2, 144 * 700, [0x00, 0x7c]); // d of a super-block
        let file = Gguf::from_bytes("x", bytes.into()).unwrap();
        let expected = [
            "values: expected finite values, found 2 of 256000 NaN or infinite",
            "scales: expected finite values, found 256 of 256000 NaN or infinite",
        ];
        assert_eq!(not_finite(&file), expected);
    }
}
