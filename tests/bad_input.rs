//! Broken files and prompts are refused with one line that names place, expected and found, with exit code 1, and leave
//! no file behind.

mod common;

use common::{checkpoint, convert, kimi, kimi_ok, text};
use models::gguf::read::Gguf;
use models::gguf::write::{Layout, Writer};
use models::gguf::{Array, Value};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

/// The key and the value of a metadata entry.
type Pair = (String, Value);
/// Name, format and shape of a tensor.
type Tensor = (String, kernels::quant::Format, Vec<u64>);

/// A valid file, of which each test damages a copy.
static GOOD: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let file = convert(&checkpoint(dir.path(), "tiny", 1, &["num_hidden_layers=4", "vocab_size=64"]), "q8_0");
    (dir, file)
});

/// Runs a command that must fail with one line that contains all of `words`.
fn refused(args: &[&str], words: &[&str]) {
    let out = kimi(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    let lines: Vec<&str> = stderr.lines().filter(|l| !l.starts_with("warning: ")).collect();
    assert_eq!((out.status.code(), lines.len()), (Some(1), 1), "kimi {args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "kimi {args:?}: no {word:?} in {stderr}");
    }
    assert!(out.stdout.is_empty(), "kimi {args:?} wrote to standard output");
}

/// A copy of the valid file with other metadata or another shape of one tensor.
fn rewritten(dir: &Path, change: impl Fn(&mut Vec<Pair>, &mut Vec<Tensor>)) -> PathBuf {
    let good = Gguf::open(&GOOD.1).unwrap();
    let mut metadata = good.metadata.clone();
    let mut tensors: Vec<_> =
        good.tensors.iter().map(|t| (t.name.clone(), t.format, t.shape.clone())).collect();
    change(&mut metadata.0, &mut tensors);
    let path = dir.join("changed.gguf");
    let layout = Layout::new(metadata, tensors).unwrap();
    let sizes: Vec<u64> = layout.tensors().iter().map(|t| t.bytes).collect();
    let mut writer = Writer::create(&path, layout).unwrap();
    sizes.iter().for_each(|n| writer.write(&vec![0; *n as usize]).unwrap());
    writer.finish().unwrap();
    path
}

fn set(key: &str, value: Value) -> impl Fn(&mut Vec<Pair>, &mut Vec<Tensor>) {
    move |metadata, _| {
        metadata.retain(|(k, _)| k != key);
        metadata.push((key.to_owned(), value.clone()));
    }
}

#[test]
fn an_empty_prompt_from_a_pipe_or_a_file_is_refused() {
    let model = text(&GOOD.1);
    let empty = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(empty.path(), " \n").unwrap();
    refused(&["generate", "-m", model, "-f", text(empty.path())], &[" contains no text"]);
    refused(&["generate", "-m", model, "-"], &["standard input contains no text"]);
}

/// A copy whose output matrix has NaN scales, which makes every logit NaN.
#[test]
fn logits_that_are_no_numbers_end_the_reply() {
    let dir = tempfile::tempdir().unwrap();
    let good = Gguf::open(&GOOD.1).unwrap();
    let path = dir.path().join("nan.gguf");
    let tensors = good.tensors.iter().map(|t| (t.name.clone(), t.format, t.shape.clone())).collect();
    let mut writer = Writer::create(&path, Layout::new(good.metadata.clone(), tensors).unwrap()).unwrap();
    for tensor in &good.tensors {
        let mut bytes = good.bytes(tensor).to_vec();
        if tensor.name == "output.weight" {
            bytes = vec![0xff; bytes.len()];
        }
        writer.write(&bytes).unwrap();
    }
    writer.finish().unwrap();
    for how in [&["--temp", "0"][..], &["--top-k", "4"], &["--temp", "1"], &["--repeat-penalty", "2"]] {
        let args = ["generate", "-m", text(&path), "--no-cache", "-q", "-n", "9", "--ids", "1,2,3"];
        refused(
            &[&args[..], how].concat(),
            &["all logits at position 2 are NaN; check the model file with kimi inspect --check"],
        );
    }
}

#[test]
fn metadata_that_makes_no_sense_is_refused_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let key = |k: &str| format!("kimi-linear.{k}");
    let cases = [
        ("general.architecture".to_owned(), Value::String("llama".into()), "\"llama\""),
        (key("block_count"), Value::U32(0), "found U32(0)"),
        (key("block_count"), Value::U32(u32::MAX), "found U32(4294967295)"),
        (key("embedding_length"), Value::U32(193), "193"),
        (key("attention.head_count"), Value::String("six".into()), "\"six\""),
        (key("attention.head_count_kv"), Value::Array(Array::I32(vec![0; 7])), "found 7"),
        (key("attention.key_length_mla"), Value::U32(3), "found 3"),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(f32::NAN), "NaN"),
        (key("expert_used_count"), Value::U32(17), "at most 16"),
        (key("expert_gating_func"), Value::U32(1), "2 (sigmoid)"),
        (key("kda.head_dim"), Value::U64(1 << 63), "kda.head_dim"),
        (key("vocab_size"), Value::U32(65), "token_embd.weight"),
    ];
    for (key, value, found) in cases {
        let path = rewritten(dir.path(), set(&key, value));
        refused(&["generate", "-m", text(&path), "--ids", "1"], &["changed.gguf", found]);
    }
}

#[test]
fn tensors_of_another_shape_or_missing_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["output.weight", "blk.1.attn_q.weight", "blk.3.attn_k_b.weight", "blk.2.ffn_up_exps.weight"]
    {
        let path = rewritten(dir.path(), |_, tensors| {
            let t = tensors.iter_mut().find(|t| t.0 == name).unwrap();
            t.2[1] += 1;
        });
        refused(&["generate", "-m", text(&path), "--ids", "1"], &[name, "expected", "found"]);
        let path = rewritten(dir.path(), |_, tensors| tensors.retain(|t| t.0 != name));
        refused(&["generate", "-m", text(&path), "--ids", "1"], &[name, "none"]);
    }
}

#[test]
fn truncated_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(&GOOD.1).unwrap();
    let path = dir.path().join("cut.gguf");
    let header = Gguf::open(&GOOD.1).unwrap().headers().next().unwrap().len();
    for length in [0, 3, 23, 24, 100, 5000, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let words = match length < header {
            true => ["cut.gguf: byte ", "expected", "found"],
            false => ["cut.gguf: tensor ", ": expected ", " bytes of tensor data"],
        };
        refused(&["generate", "-m", text(&path), "--ids", "1"], &words);
    }
    std::fs::write(&path, b"PK\x03\x04 something else entirely, long enough to have a header").unwrap();
    refused(
        &["generate", "-m", text(&path), "--ids", "1"],
        &[r#"cut.gguf is not a GGUF file; it begins with "PK\x03\x04""#],
    );
    refused(&["generate", "-m", "/nowhere.gguf", "--ids", "1"], &["/nowhere.gguf", "No such file"]);
    refused(&["generate", "-m", text(dir.path()), "--ids", "1"], &[" is a directory, not a file"]);
}

#[test]
fn prompts_that_cannot_run_are_refused() {
    let model = text(&GOOD.1);
    refused(&["generate", "-m", model, "--ids", "1,64"], &["token 1", "below 64", "64"]);
    refused(&["generate", "-m", model, "--ids", "1,x"], &["\"x\""]);
    refused(&["generate", "-m", model, "--ids", ""], &["at least one token"]);
    refused(&["generate", "-m", model, "--ids", "1,2,3", "--ctx", "2"], &["at most 2", "found 3"]);
    refused(
        &["generate", "-m", model, "hello"],
        &[" has no tokenizer, so it cannot be used with text; give token ids with --ids"],
    );
    let dir = tempfile::tempdir().unwrap();
    refused(&["generate", "-m", model, "-f", text(&dir.path().join("none.txt"))], &["none.txt"]);
    std::fs::write(dir.path().join("bad.txt"), b"ok\xff").unwrap();
    refused(&["generate", "-m", model, "-f", text(&dir.path().join("bad.txt"))], &["byte 2", "UTF-8"]);
    let out = dir.path().join("no/such/dir.npy");
    refused(&["logits", "-m", model, "--ids", "1", "-o", text(&out)], &["dir.npy"]);
    refused(&["perplexity", "-m", model, "--ids", "1,2,3,64", "--window", "2"], &["window 1", "below 64"]);
    refused(&["bench", "-m", model, "--depth", "99999999999"], &["context", "at most"]);
    assert_eq!(kimi(&["generate", "--nonsense"]).status.code(), Some(2), "wrong usage");
}

#[test]
fn greedy_repeats_itself_whatever_the_threads_and_batches() {
    let model = text(&GOOD.1);
    let ids: Vec<String> = (0..50).map(|i| (i * 7 % 60).to_string()).collect();
    let run = |more: &[&str]| {
        let args =
            ["generate", "-m", model, "--ids", &ids.join(","), "-n", "20", "--temp", "0", "--ignore-eos"];
        kimi_ok(&[&args, more].concat())
    };
    let first = run(&[]);
    assert_eq!(first.lines().count(), 20);
    assert_eq!(run(&["--threads", "1"]), first);
    assert_eq!(run(&["--batch", "7"]), first);
}

#[test]
#[cfg(unix)]
fn what_is_no_regular_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name)).to_owned();
    assert!(std::process::Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    for (name, found) in [
        (path("fifo"), "a FIFO"),
        (path("socket"), "a socket"),
        (path(""), "a directory"),
        ("/dev/zero".to_owned(), "a device"),
    ] {
        let words = [&*format!("{name} is {found}, not a file")];
        refused(&["generate", "-m", &name, "--ids", "1"], &words);
        refused(&["inspect", &name], &words);
        if !name.ends_with('/') {
            refused(&["convert", &name, "-o", &path("out.gguf")], &words);
        }
    }
}

/// Text from a file is truncated and free of terminal control sequences in every error message.
#[test]
fn values_of_a_file_are_shown_short_and_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = "\u{1b}]52;c;aGk=\u{7}\u{9b}31m\u{202e}\n".repeat(10_000);
    let keys = ["general.architecture", "kimi-linear.block_count", "kimi-linear.attention.head_count_kv"];
    for key in keys.into_iter().chain(["tokenizer.ggml.model", "kimi-linear.expert_gating_func"]) {
        let path = rewritten(dir.path(), set(key, Value::String(hostile.clone())));
        let out = kimi(&["generate", "-m", text(&path), "--ids", "1"]);
        let line = String::from_utf8(out.stderr).unwrap();
        assert_eq!((out.status.code(), line.lines().count()), (Some(1), 1), "{key}: {line}");
        assert!(line.len() < 1000 && line.contains("expected"), "{key}: {} bytes: {line}", line.len());
        assert!(!line.trim_end().contains(models::visible::is_control), "{key}: {line:?}");
    }
    let path = rewritten(dir.path(), set("general.name", Value::String(hostile.clone())));
    for args in [&["inspect", text(&path)][..], &["inspect", text(&path), "--json"]] {
        let shown = kimi_ok(args);
        assert!(!shown.contains(|c| c != '\n' && models::visible::is_control(c)), "{args:?}");
    }
}

#[test]
fn weights_that_are_not_finite_are_reported_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nan.gguf");
    let mut bytes = std::fs::read(&GOOD.1).unwrap();
    let good = Gguf::open(&GOOD.1).unwrap();
    for name in ["blk.1.attn_norm.weight", "output_norm.weight"] {
        let at = good.offset_in_file(good.tensor(name).unwrap()) as usize;
        bytes[at + 4..at + 8].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let out = kimi(&["generate", "-m", text(&path), "--ids", "1", "-n", "1"]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    let expected = "nan.gguf: blk.1.attn_norm.weight: expected finite values, found 1 of 192 NaN or infinite \
        (and 1 other tensor); replies may be meaningless (kimi inspect --check)";
    assert_eq!(stderr.lines().filter(|line| line.ends_with(expected)).count(), 1, "{stderr}");
    let out = kimi(&["inspect", "--check", text(&path)]);
    let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert_eq!((out.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    for name in ["blk.1.attn_norm.weight", "output_norm.weight"] {
        let line = format!("{name}: expected finite values, found 1 of 192 NaN or infinite");
        assert!(stdout.lines().any(|l| l == line), "{stdout}");
    }
    kimi_ok(&["inspect", "--check", text(&GOOD.1)]);
}

/// 64 weights in blocks of 32 are two blocks, not 64 rows of one weight, although a shape may omit extents of 1.
#[test]
fn rows_that_are_not_whole_blocks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let name = "blk.0.ffn_down.weight";
    let path = rewritten(dir.path(), |metadata, tensors| {
        let width = "kimi-linear.feed_forward_length";
        metadata.iter_mut().find(|(key, _)| key == width).unwrap().1 = Value::U32(1);
        for t in tensors.iter_mut().filter(|t| t.0.starts_with("blk.0.ffn_")) {
            match t.0.as_str() {
                "blk.0.ffn_down.weight" => t.2 = vec![192],
                "blk.0.ffn_norm.weight" => {}
                _ => t.2[1] = 1,
            }
        }
    });
    let words = [name, "expected [1, 192] in rows of whole Q8_0 blocks of 32, found [192] in rows of 1"];
    refused(&["generate", "-m", text(&path), "--ids", "1"], &words);
}
