//! Compares quantized blocks with ggml's: the same bytes from the same floats, the same floats from the same bytes.
//!
//! `data/make_quant_goldens.py` makes the files in `data/quant` with ggml. Formats whose search for scales is not ggml's
//! ([`SEARCHED`]) are compared by the values of random blocks.

use kernels::quant::Format;
use std::path::Path;

const GENERATED: usize = 512;

/// Formats that `quantize_row` writes with other scales and entries than ggml.
const SEARCHED: [Format; 7] = [
    Format::IQ1_S,
    Format::IQ1_M,
    Format::IQ2_XXS,
    Format::IQ2_XS,
    Format::IQ2_S,
    Format::IQ3_XXS,
    Format::IQ3_S,
];

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quant").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(name: &str) -> Vec<f32> {
    read(name).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn quantized(format: Format, x: &[f32]) -> Vec<u8> {
    let mut out = vec![0xA5; format.row_bytes(x.len() as u64).expect("whole blocks") as usize];
    format.quantize_row(x, &mut out);
    out
}

fn dequantized(format: Format, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / format.block_bytes() * format.block_len()];
    format.dequantize_row(bytes, &mut out);
    out
}

/// The script's generated input: sums of four 16-bit numbers, scaled by a power of two per super-block.
fn generated() -> Vec<f32> {
    let mut state = 88172645463325252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (0..4).map(|i| (state >> (16 * i) & 0xffff) as i32 - 0x8000).sum::<i32>() as f32
    };
    let block = |b: usize| (0..256).map(move |_| b);
    (0..GENERATED).flat_map(block).map(|b| next() * 2_f32.powi(-17 - (b % 13) as i32)).collect()
}

fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf29ce484222325, |h, b| (h ^ b as u64).wrapping_mul(0x100000001b3))
}

/// The first block that differs from ggml's, if any.
fn first_difference(format: Format, ours: &[u8], theirs: &[u8]) -> Option<String> {
    let size = format.block_bytes();
    let block = ours.iter().zip(theirs).position(|(a, b)| a != b)? / size;
    let at = block * size..(block + 1) * size;
    Some(format!("{} block {block}:\nours  {:?}\nggml  {:?}", format.name(), &ours[at.clone()], &theirs[at]))
}

fn packed() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|&f| f != Format::F32)
}

/// Formats that `quantize_row` writes as ggml does.
fn written() -> impl Iterator<Item = Format> {
    packed().filter(|f| !SEARCHED.contains(f))
}

#[test]
fn bytes_are_those_of_ggml() {
    let input = floats("input.f32");
    let different: Vec<_> = written()
        .filter_map(|f| first_difference(f, &quantized(f, &input), &read(&format!("{}.bin", f.name()))))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn values_are_those_of_ggml() {
    for format in packed() {
        let ours = dequantized(format, &read(&format!("{}.bin", format.name())));
        let theirs = floats(&format!("{}.f32", format.name()));
        assert_eq!(ours.len(), theirs.len());
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{} value {i}: {a} is not {b}", format.name());
        }
    }
}

#[test]
fn longer_input_gives_the_same_hashes() {
    let input = generated();
    let ours: String = written()
        .map(|f| {
            let bytes = quantized(f, &input);
            let values = dequantized(f, &bytes).into_iter().flat_map(f32::to_le_bytes);
            format!("{} {:016x} {:016x}\n", f.name(), fnv1a(bytes.iter().copied()), fnv1a(values))
        })
        .collect();
    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let theirs = String::from_utf8(read("hashes.txt")).expect("text");
    assert_eq!(sorted(ours), sorted(theirs));
}

/// Formats that an importance matrix changes and that ggml's search gives the same bytes for.
const WEIGHTED: [Format; 11] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q2_K,
    Format::Q3_K,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::IQ4_NL,
    Format::IQ4_XS,
];

/// Rows of the script's lengths, quantized with the importance of their columns.
fn weighted(format: Format, x: &[f32], importance: &[f32]) -> Vec<u8> {
    let cols = if format.block_len() == 32 { 320 } else { 1280 };
    let mut out =
        vec![0xA5; format.row_bytes((x.len() / cols * cols) as u64).expect("whole blocks") as usize];
    let bytes = format.row_bytes(cols as u64).expect("whole blocks") as usize;
    for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(bytes)) {
        format.quantize_row_weighted(x, &importance[..cols], out);
    }
    out
}

#[test]
fn weighted_bytes_are_those_of_ggml() {
    let (input, importance) = (floats("input.f32"), floats("importance.f32"));
    let different: Vec<_> = WEIGHTED
        .into_iter()
        .filter_map(|f| {
            let theirs = read(&format!("weighted/{}.bin", f.name()));
            first_difference(f, &weighted(f, &input, &importance), &theirs)
        })
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
    let longer = generated();
    let hash = |f: Format| format!("{} {:016x}\n", f.name(), fnv1a(weighted(f, &longer, &importance)));
    let ours: String = WEIGHTED.into_iter().map(hash).collect();
    assert_eq!(ours, String::from_utf8(read("weighted/hashes.txt")).expect("text"));
}

#[test]
fn importance_changes_nothing_where_no_scale_is_searched() {
    let (input, importance) = (floats("input.f32"), floats("importance.f32"));
    for format in [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::MXFP4] {
        assert_eq!(weighted(format, &input, &importance), quantized(format, &input), "{}", format.name());
    }
}

#[test]
fn error_is_no_worse_than_that_of_ggml() {
    let input = floats("input.f32");
    let squares =
        |y: &[f32]| -> f64 { input.iter().zip(y).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum() };
    for format in written() {
        let ours = squares(&dequantized(format, &quantized(format, &input)));
        let theirs = squares(&floats(&format!("{}.f32", format.name())));
        assert!(ours <= theirs, "{}: {ours} is more than {theirs}", format.name());
    }
}

/// The mean over blocks of the error relative to the block's norm, for a distribution like a Gaussian's.
#[test]
fn searched_formats_keep_most_of_gaussian_weights() {
    let input = generated();
    for (format, most) in SEARCHED.into_iter().zip([0.5, 0.46, 0.38, 0.34, 0.29, 0.21, 0.16]) {
        let values = dequantized(format, &quantized(format, &input));
        let mut errors: Vec<f64> = Vec::new();
        for (x, y) in input.chunks(256).zip(values.chunks(256)) {
            let square = |of: &dyn Fn(usize) -> f32| (0..256).map(|i| (of(i) as f64).powi(2)).sum::<f64>();
            errors.push((square(&|i| x[i] - y[i]) / square(&|i| x[i])).sqrt());
        }
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        assert!(mean < most, "{}: {mean}", format.name());
    }
}

#[test]
fn f32_is_kept_as_it_is() {
    let input = floats("input.f32");
    let bytes = quantized(Format::F32, &input);
    assert_eq!(bytes, read("input.f32"));
    assert_eq!(dequantized(Format::F32, &bytes), input);
}
