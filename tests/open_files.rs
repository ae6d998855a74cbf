//! GGUF files that other programs write: older layouts, other numbers of experts, splits, other architectures and types. Each
//! runs, converts and is inspected, or is refused with the reason.

mod common;

use common::{checkpoint, convert, kimi, kimi_ok, npy, text};
use kernels::quant::Format;
use models::gguf::read::Gguf;
use models::gguf::write::{Layout, Writer};
use models::gguf::{Array, Metadata, Value};
use std::path::{Path, PathBuf};

/// A tensor with its bytes.
struct Tensor {
    name: String,
    format: Format,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

fn tensors(file: &Gguf) -> Vec<Tensor> {
    let of =
        |t: &models::gguf::TensorInfo| (t.name.clone(), t.format, t.shape.clone(), file.bytes(t).to_vec());
    file.tensors
        .iter()
        .map(of)
        .map(|(name, format, shape, bytes)| Tensor { name, format, shape, bytes })
        .collect()
}

fn write(path: &Path, metadata: &Metadata, tensors: &[Tensor]) {
    let layout = tensors.iter().map(|t| (t.name.clone(), t.format, t.shape.clone())).collect();
    let mut writer = Writer::create(path, Layout::new(metadata.clone(), layout).unwrap()).unwrap();
    tensors.iter().for_each(|t| writer.write(&t.bytes).unwrap());
    writer.finish().unwrap();
}

/// Splits a file into parts with the names and keys of llama.cpp's `gguf-split`; returns the paths.
fn split(path: &Path, parts: usize) -> Vec<PathBuf> {
    let file = Gguf::open(path).unwrap();
    let all = tensors(&file);
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let of_part = |no: usize| {
        let path = path.with_file_name(format!("{stem}-{:05}-of-{parts:05}.gguf", no + 1));
        let mut metadata = if no == 0 { file.metadata.clone() } else { Metadata::default() };
        metadata.set("split.no", Value::U16(no as u16));
        metadata.set("split.count", Value::U16(parts as u16));
        metadata.set("split.tensors.count", Value::I32(all.len() as i32));
        let [start, end] = [no, no + 1].map(|n| all.len() * n / parts);
        write(&path, &metadata, &all[start..end]);
        path
    };
    (0..parts).map(of_part).collect()
}

/// Sizes of the preset `tiny`: heads, nope, pe, value, latent.
const HEADS: usize = 6;
const NOPE: usize = 32;
const PE: usize = 16;
const VALUE: usize = 32;
const LATENT: usize = 64;

/// Rewrites an F32 file of the preset `tiny` as older converters wrote it: `attn_kv_b`, here in `format`, and a cache of one
/// key and value per head.
fn older(path: &Path, out: &Path, format: Format) {
    let file = Gguf::open(path).unwrap();
    let mut metadata = file.metadata.clone();
    let layers = file.u64("kimi-linear.block_count").unwrap() as usize;
    let is_mla = |layer: usize| file.tensor(&format!("blk.{layer}.attn_k_b.weight")).is_some();
    let heads = (0..layers).map(|l| if is_mla(l) { HEADS as i32 } else { 0 }).collect();
    let key = |name: &str| format!("kimi-linear.attention.{name}");
    metadata.set(&key("head_count_kv"), Value::Array(Array::I32(heads)));
    metadata.set(&key("key_length"), Value::U32((NOPE + PE) as u32));
    metadata.set(&key("value_length"), Value::U32(VALUE as u32));
    let mut kept = Vec::new();
    for tensor in tensors(&file) {
        let Some(prefix) = tensor.name.strip_suffix("attn_k_b.weight") else {
            if !tensor.name.ends_with("attn_v_b.weight") {
                kept.push(tensor);
            }
            continue;
        };
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let keys = floats(&tensor.bytes);
        let values = floats(&file.bytes(file.tensor(&format!("{prefix}attn_v_b.weight")).unwrap()));
        let mut rows = Vec::new();
        for head in 0..HEADS {
            let key = |channel| (0..LATENT).map(move |l| (head * LATENT + l) * NOPE + channel);
            (0..NOPE).for_each(|channel| rows.extend(key(channel).map(|i| keys[i])));
            rows.extend(&values[head * VALUE * LATENT..][..VALUE * LATENT]);
        }
        let mut bytes = vec![0; format.row_bytes(rows.len() as u64).unwrap() as usize];
        format.quantize_row(&rows, &mut bytes);
        let shape = vec![LATENT as u64, (HEADS * (NOPE + VALUE)) as u64];
        kept.push(Tensor { name: format!("{prefix}attn_kv_b.weight"), format, shape, bytes });
    }
    write(out, &metadata, &kept);
}

/// The logits of a few tokens.
fn logits(file: &Path) -> Vec<f32> {
    let out = file.with_extension("npy");
    kimi_ok(&["logits", "-m", text(file), "--cache-type", "f32", "--ids", "17,30,5,41,9", "-o", text(&out)]);
    npy(&out)
}

#[test]
fn older_files_with_one_latent_projection_run_and_convert() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let fields = ["num_hidden_layers=4", "vocab_size=64"];
    let split = convert(&checkpoint(dir.path(), "tiny", 3, &fields), "f32");
    let exact = path("exact.gguf");
    older(&split, &exact, Format::F32);
    assert!(logits(&exact) == logits(&split), "F32 keeps its bits");
    // Transposed blocks become F32 at load; the same values in a file of their own give the same bits.
    let (coarse, again) = (path("coarse.gguf"), path("again.gguf"));
    older(&split, &coarse, Format::Q8_0);
    kimi_ok(&[
        "convert",
        text(&coarse),
        "--type",
        "f32",
        "--tensor-type",
        "attn_v_b=q8_0",
        "-o",
        text(&again),
    ]);
    assert!(logits(&coarse) == logits(&again) && logits(&coarse) != logits(&split));
    for kind in ["q8_0", "q4_k_m"] {
        let out = path(&format!("{kind}.gguf"));
        kimi_ok(&["convert", text(&coarse), "--type", kind, "-o", text(&out)]);
        let file = Gguf::open(&out).unwrap();
        assert_eq!(file.tensor("blk.3.attn_k_b.weight").unwrap().shape, [32, 64, 6]);
        assert!(file.tensor("blk.3.attn_kv_b.weight").is_none());
        let width = |name: &str| file.u64(&format!("kimi-linear.attention.{name}")).unwrap();
        assert_eq!((width("key_length"), width("value_length")), (80, 64));
        let kinds = file.metadata.get("kimi-linear.attention.head_count_kv");
        assert_eq!(kinds, Some(&Value::Array(Array::I32(vec![0, 0, 0, 1]))));
        assert_eq!(logits(&out).len(), 5 * 64);
    }
    let report = kimi_ok(&["inspect", text(&coarse)]);
    assert!(report.contains("\nruns here: ") && report.contains("attn_kv_b of an older file"), "{report}");
}

/// REAP removes experts: 180 of the published 256 are left in `Kimi-Linear-REAP-35B-A3B`.
#[test]
fn pruned_experts_and_splits_run_and_convert() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let file = path("reap.gguf");
    let small = ["--set", "num_experts=180", "--set", "vocab_size=512", "--layers", "4"];
    let types = ["--type", "q4_k_m", "--tensor-type", "ffn_(gate|up)_exps=iq3_xxs"];
    let synth = ["synth", text(&file), "--preset", "tiny-d128"];
    kimi_ok(&[&synth[..], &small, &types].concat());
    let generate = |file: &Path| {
        kimi_ok(&[
            "generate",
            "-m",
            text(file),
            "-q",
            "--no-cache",
            "--temp",
            "0",
            "-n",
            "8",
            "--ids",
            "1,2,3",
        ])
    };
    let (reply, report) = (generate(&file), kimi_ok(&["inspect", text(&file)]));
    assert!(report.contains("3 of experts: 8 of 180, hidden "), "{report}");
    let parts = split(&file, 3);
    for part in &parts {
        assert_eq!(generate(part), reply, "{}", part.display());
    }
    let report = kimi_ok(&["inspect", text(&parts[1])]);
    assert!(
        parts.iter().all(|part| report.contains(text(part))) && report.contains("\nruns here: "),
        "{report}"
    );
    let [whole, joined] = ["whole.gguf", "joined.gguf"].map(path);
    for (input, out) in [(&file, &whole), (&parts[2], &joined)] {
        kimi_ok(&["convert", text(input), "--type", "q8_0", "-o", text(out)]);
    }
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&joined).unwrap());
    assert_eq!(logits(&joined).len(), 5 * 512);
    let convert = ["convert", text(&parts[0]), "--type", "q4_k_m", "--tensor-type", "_exps=iq2_s", "-o"];
    let coarse = path("coarse.gguf");
    kimi_ok(&[&convert[..], &[text(&coarse)]].concat());
    assert_eq!(logits(&coarse).len(), 5 * 512);
}

#[test]
fn other_architectures_and_types_are_shown_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", Value::String("llama".into()));
    let bytes = vec![0; 34];
    let tensor = Tensor { name: "blk.0.attn_q.weight".into(), format: Format::Q8_0, shape: vec![32], bytes };
    write(&path, &metadata, &[tensor]);
    let report = kimi_ok(&["inspect", text(&path)]);
    let line = "does not run: the architecture is llama, and kimi runs kimi-linear and bailingmoe3 alone; llama.cpp runs most others";
    assert!(report.lines().any(|l| l == line), "{report}");
    // The type of the only tensor follows its one dimension, 16 bytes before the padding: 8 is Q8_0.
    let mut bytes = std::fs::read(&path).unwrap();
    let shape = [1, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0];
    let at = bytes.windows(16).position(|w| w == shape).unwrap();
    for (id, name) in [(40, "NVFP4"), (35, "TQ2_0"), (77, "type 77")] {
        bytes[at + 12] = id;
        std::fs::write(&path, &bytes).unwrap();
        let report = kimi_ok(&["inspect", "--tensors", text(&path)]);
        let row = report.lines().find(|l| l.contains("blk.0.attn_q.weight")).unwrap();
        assert!(row.contains(name), "{report}");
        let out = kimi(&["generate", "-m", text(&path), "-n", "1", "--ids", "1"]);
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(
            out.status.code() == Some(1) && error.contains(name) && error.lines().count() == 1,
            "{error}"
        );
    }
}
