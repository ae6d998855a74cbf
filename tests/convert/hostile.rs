//! Broken, contradictory and hostile checkpoints are refused with one line that names the place, and leave no file behind.

use crate::checkpoints::{Checkpoint, generate};
use convert::{Mix, Options, convert};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const SHARD: &str = "model-00002-of-00002.safetensors";
const HEAD: &str = "lm_head.weight";

/// Splits a small checkpoint into two shards and damages it. The conversion must fail with one line that starts with `file`,
/// or with the directory where it is empty, and contains `message`, and leave no file behind.
fn refused(file: &str, message: &str, tensors: impl FnOnce(&mut Checkpoint), files: impl FnOnce(&Path)) {
    static SOUND: LazyLock<(Checkpoint, Vec<u8>)> = LazyLock::new(|| {
        let source = generate("tiny", 3, &["vocab_size=64", "num_experts=2", "num_experts_per_token=2"]);
        (Checkpoint::read(source.path()), fs::read(source.path().join(CONFIG)).unwrap())
    });
    let (mut checkpoint, config) = SOUND.clone();
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join(CONFIG), config).unwrap();
    tensors(&mut checkpoint);
    checkpoint.write_shards(source.path(), 2);
    files(source.path());
    let out = tempfile::tempdir().unwrap();
    let output = Some(out.path().join("o.gguf"));
    let (input, mix) = (source.path().to_owned(), Mix::from_name("Q8_0").unwrap());
    let options = Options {
        input,
        output,
        mix,
        overrides: vec![],
        importance: None,
        refine: false,
        force: false,
        threads: Some(2),
    };
    let error = convert(&options, &mut ()).unwrap_err().to_string();
    let place = if file.is_empty() { source.path().to_owned() } else { source.path().join(file) };
    let start = place.display().to_string();
    assert!(error.starts_with(&start) && error.contains(message), "{error}");
    assert!(!error.contains('\n') && error.len() < 1000, "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "{error}");
}

fn refused_files(file: &str, message: &str, files: impl FnOnce(&Path)) {
    refused(file, message, |_| (), files);
}

fn refused_tensors(message: &str, tensors: impl FnOnce(&mut Checkpoint)) {
    refused("model", message, tensors, |_| ());
}

/// The same with a changed JSON file.
fn refused_json(file: &str, message: &str, change: impl FnOnce(&mut Value)) {
    refused_files(file, message, |dir| edit(dir, file, change));
}

fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// The same with some bytes of the second shard's header replaced by others of the same length.
fn refused_header(message: &str, from: &str, to: &str) {
    refused_files(SHARD, message, |dir| {
        let path = dir.join(SHARD);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(path, bytes).unwrap();
    });
}

/// Limits on hyperparameters give the loader's messages.
#[test]
fn what_would_not_load_is_refused() {
    let cases = [
        (
            "model_max_length",
            1_u64 << 24,
            "context_length: expected a count from 1 to 16777216, found U32(16777217)",
        ),
        ("vocab_size", 1 << 24, "vocab_size: expected a count from 1 to 16777216, found U32(16777217)"),
    ];
    for (field, value, message) in cases {
        refused_json(CONFIG, &format!("kimi-linear.{message}"), |c| c[field] = (value + 1).into());
    }
}

#[test]
#[cfg(unix)]
fn fifos_and_devices_are_not_waited_for() {
    for name in
        [CONFIG, INDEX, SHARD, "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    {
        refused_files(name, " is a FIFO, not a file", |dir| {
            let _ = fs::remove_file(dir.join(name));
            assert!(std::process::Command::new("mkfifo").arg(dir.join(name)).status().unwrap().success());
        });
        refused_files(name, " is a device, not a file", |dir| {
            let _ = fs::remove_file(dir.join(name));
            std::os::unix::fs::symlink("/dev/zero", dir.join(name)).unwrap();
        });
    }
}

#[test]
fn shards() {
    let lost = "expected its shard model-00002-of-00002.safetensors, found no such file";
    refused_files(INDEX, lost, |dir| fs::remove_file(dir.join(SHARD)).unwrap());
    refused_files(SHARD, " is a directory, not a file", |dir| {
        fs::remove_file(dir.join(SHARD)).unwrap();
        fs::create_dir(dir.join(SHARD)).unwrap();
    });
    refused_files(SHARD, "eight bytes of header length, found 0", |dir| {
        fs::write(dir.join(SHARD), "").unwrap()
    });
    refused_files(SHARD, "found 18446744073709551615", |dir| fs::write(dir.join(SHARD), [255; 64]).unwrap());
    refused_files(SHARD, "the file's length: expected", |dir| {
        let file = fs::OpenOptions::new().write(true).open(dir.join(SHARD)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    });
    refused_files(SHARD, "each tensor in one shard", |dir| {
        fs::copy(dir.join("model-00001-of-00002.safetensors"), dir.join(SHARD)).unwrap();
    });
    #[cfg(unix)]
    refused_files(INDEX, "found no such file", |dir| {
        fs::remove_file(dir.join(SHARD)).unwrap();
        std::os::unix::fs::symlink(dir.join(SHARD), dir.join(SHARD)).unwrap();
    });
}

#[test]
fn headers() {
    refused_header("expected a known dtype, found XF16", r#""dtype":"BF16""#, r#""dtype":"XF16""#);
    refused_header("a JSON object of tensors", r#"{""#, "{,");
    refused_header("expected 16 bytes for F32 [1, 1, 4, 1], found data_offsets [1, 16]", "[0,16]", "[1,16]");
    refused_header("expected data from byte 0, found 4", "[0,16]", "[4,20]");
    refused_header("key must be a string", r#""shape":["#, r#""shape":{"#);
}

#[test]
fn index() {
    refused_files(INDEX, "weight_map", |dir| fs::write(dir.join(INDEX), "{\"weight_map\": {").unwrap());
    let neither = "the weights: expected this file or model.safetensors.index.json, found neither";
    refused_files("model.safetensors", neither, |dir| fs::remove_file(dir.join(INDEX)).unwrap());
    let beside =
        "lm_head.weight: expected the name of a .safetensors file beside the index, found ../a.safetensors";
    refused_json(INDEX, beside, |json| json["weight_map"][HEAD] = json!("../a.safetensors"));
    let nothing = "more: expected the tensor that the index puts here, found nothing";
    refused_files(SHARD, nothing, |dir| {
        edit(dir, INDEX, |json| json["weight_map"]["more"] = json!(SHARD));
    });
    refused_files("model-0000", "expected only tensors that the index names", |dir| {
        edit(dir, INDEX, |json| _ = json["weight_map"].as_object_mut().unwrap().remove(HEAD).unwrap());
    });
}

#[test]
fn tensors() {
    refused_tensors(
        "lm_head.weight: expected 199 tensors that the config implies, found this one missing",
        |c| {
            c.tensors.remove(HEAD).unwrap();
        },
    );
    refused_tensors("extra: expected only tensors that the config implies, found this one unknown", |c| {
        c.tensors.insert("extra".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    refused_tensors("lm_head.weight: expected [64, 192], found [192, 64]", |c| {
        c.tensors.get_mut(HEAD).unwrap().1 = vec![192, 64];
    });
    refused_tensors("lm_head.weight: expected BF16, F16, F32 or F8_E4M3, found I16", |c| {
        c.tensors.get_mut(HEAD).unwrap().0 = Dtype::I16;
    });
    refused_tensors("lm_head.weight: expected scales in lm_head.weight_scale_inv, found none", |c| {
        *c.tensors.get_mut(HEAD).unwrap() = (Dtype::F8_E4M3, vec![64, 192], vec![0; 64 * 192]);
    });
    refused_tensors("lm_head.weight_scale_inv: expected [1, 2] block scales, found [2, 2]", |c| {
        *c.tensors.get_mut(HEAD).unwrap() = (Dtype::F8_E4M3, vec![64, 192], vec![0; 64 * 192]);
        c.tensors.insert(format!("{HEAD}_scale_inv"), (Dtype::F32, vec![2, 2], vec![0; 16]));
    });
}

#[test]
fn values_that_are_no_numbers() {
    let set = |c: &mut Checkpoint, index: usize, bytes: [u8; 2]| {
        c.tensors.get_mut(HEAD).unwrap().2[2 * index..2 * index + 2].copy_from_slice(&bytes);
    };
    let place =
        "lm_head.weight (output.weight value 5 of row 3): expected a weight that Q8_0 can hold, found ";
    for (bytes, shown) in [([0xc0, 0x7f], "NaN"), ([0x80, 0x7f], "inf"), ([0x80, 0xff], "-inf")] {
        refused_tensors(&format!("{place}{shown}"), |c| set(c, 3 * 192 + 5, bytes));
    }
    refused_tensors("can hold, found 1701411", |c| set(c, 7, [0x00, 0x7f]));
    refused_tensors(
        "A_log (blk.0.ssm_a value 0 of row 1): expected a weight that F32 can hold, found -inf",
        |c| {
            let name = "model.layers.0.self_attn.A_log";
            c.tensors.get_mut(name).unwrap().2[4..8].copy_from_slice(&1000f32.to_le_bytes());
        },
    );
}

#[test]
fn configs() {
    refused_files("", " is not a checkpoint: it has no config.json", |dir| {
        fs::remove_file(dir.join(CONFIG)).unwrap()
    });
    refused_files(CONFIG, "line 1: expected JSON", |dir| fs::write(dir.join(CONFIG), "{").unwrap());
    refused_files(CONFIG, "recursion limit", |dir| fs::write(dir.join(CONFIG), "[".repeat(1 << 20)).unwrap());
    refused_json(CONFIG, "kv_lora_rank: expected a whole number from 1 to 65536, found nothing", |json| {
        json.as_object_mut().unwrap().remove("kv_lora_rank").unwrap();
    });
    refused_json(CONFIG, "num_experts: expected at most 262144 in all layers", |json| {
        json["num_experts"] = json!(65536);
    });
    refused_json(CONFIG, "model_type: expected kimi_linear or bailing_hybrid, found deepseek_v3", |json| {
        json["model_type"] = json!("deepseek_v3");
    });
    refused_files("tokenizer.json", "", |dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap());
    let unnamed =
        "special tokens: expected their names in tokenizer_config.json beside it, found no such file";
    let ranks = |dir: &Path| fs::write(dir.join("tiktoken.model"), "YQ== 0\n").unwrap();
    refused_files("tiktoken.model", unnamed, ranks);
    refused_files("tiktoken.model", "", |dir| {
        ranks(dir);
        fs::write(dir.join("tokenizer_config.json"), "{}").unwrap();
    });
    refused_files("chat_template.jinja", "byte 1: expected UTF-8", |dir| {
        fs::write(dir.join("chat_template.jinja"), b"a\xff").unwrap();
    });
}
