//! `kimi imatrix` on a random model: its sums, resumption, and `convert --imatrix`. `tests/imatrix.py` compares it with llama.cpp.

mod common;

use common::{checkpoint, convert, kimi, kimi_command, kimi_ok, text};
use convert::Imatrix;
use models::gguf::read::Gguf;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A random model and 1,600 token ids.
struct Fixture {
    dir: tempfile::TempDir,
    model: PathBuf,
    ids: Vec<u32>,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let model = convert(&checkpoint(dir.path(), "tiny", 5, &["num_experts=24"]), "f32");
    let vocab = Gguf::open(&model).unwrap().u64("kimi-linear.vocab_size").unwrap() as u32;
    let ids: Vec<u32> = (0..1600u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
    let list: Vec<String> = ids.iter().map(u32::to_string).collect();
    fs::write(dir.path().join("ids"), list.join(",")).unwrap();
    Fixture { dir, model, ids }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self, output: &Path, more: &[&str]) -> Vec<String> {
        let ids = format!("@{}", self.path("ids").display());
        let args = ["imatrix", "-m", text(&self.model), "--ids", &ids, "-w", "32", "-o", text(output)];
        args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }

    fn run(&self, name: &str, more: &[&str]) -> Imatrix {
        let output = self.path(name);
        let args = self.args(&output, more);
        kimi_ok(&args.iter().map(|arg| &**arg).collect::<Vec<_>>());
        Imatrix::open(&output).unwrap()
    }
}

fn floats(file: &Gguf, name: &str) -> Vec<f32> {
    let bytes = file.bytes(file.tensor(name).unwrap());
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn sums_are_those_of_the_inputs() {
    let f = fixture();
    let found = f.run("i.gguf", &[]);
    assert_eq!((found.chunk_count, found.chunk_size), (Some(50), Some(32)));
    // The first layer's input is known: the normalized rows of the token embedding.
    let file = Gguf::open(&f.model).unwrap();
    let (table, norm) = (floats(&file, "token_embd.weight"), floats(&file, "blk.0.attn_norm.weight"));
    let mut expected = vec![0.0f64; norm.len()];
    for id in &f.ids {
        let row = &table[*id as usize * norm.len()..][..norm.len()];
        let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / norm.len() as f64;
        for ((sum, x), w) in expected.iter_mut().zip(row).zip(&norm) {
            *sum += (f64::from(*x) * f64::from(*w)).powi(2) / (mean + 1e-5);
        }
    }
    for name in ["attn_q", "attn_k", "attn_v", "ssm_f_a", "ssm_g_a", "ssm_beta"] {
        let entry = &found.entries[&format!("blk.0.{name}.weight")];
        common::close(name, &entry.sums, &expected, 1e-5);
        assert_eq!(entry.counts, [1600.0]);
    }
    let has = |name: &str| found.entries.contains_key(name);
    assert!(has("output.weight") && has("blk.1.ffn_gate_inp.weight") && has("blk.0.ssm_f_b.weight"));
    assert!(!has("token_embd.weight") && !has("blk.0.attn_norm.weight") && !has("blk.0.ssm_conv1d_q.weight"));
    // Experts: each token has as many as the model chooses, and gate and up have the same input.
    let top_k = file.u64("kimi-linear.expert_used_count").unwrap() as f32;
    let [gate, up, down] =
        ["gate", "up", "down"].map(|name| &found.entries[&format!("blk.1.ffn_{name}_exps.weight")]);
    assert_eq!(gate, up);
    assert_eq!(gate.counts, down.counts);
    assert_eq!((gate.counts.len(), gate.counts.iter().sum::<f32>()), (24, 1600.0 * top_k));
    let reached = |(count, sums): (&f32, &[f32])| (*count > 0.0) == sums.iter().any(|x| *x > 0.0);
    assert!(gate.counts.iter().zip(gate.sums.chunks_exact(gate.sums.len() / 24)).all(reached));
    // All experts of a token see the shared expert's input: the sums of its rows, weighted by how many experts it has.
    let shared = &found.entries["blk.1.ffn_up_shexp.weight"].sums;
    let mut all = vec![0.0f64; shared.len()];
    for expert in gate.sums.chunks_exact(shared.len()) {
        all.iter_mut().zip(expert).for_each(|(sum, x)| *sum += f64::from(*x) / f64::from(top_k));
    }
    common::close("experts", shared, &all, 1e-4);
    // Heads: the keys' input is the first part of each head's query.
    let heads = file.tensor("blk.3.attn_k_b.weight").unwrap().shape.clone();
    let keys = &found.entries["blk.3.attn_k_b.weight"];
    assert_eq!((keys.sums.len() as u64, &keys.counts[..]), (heads[0] * heads[2], &[1600.0][..]));
}

#[test]
fn sums_do_not_depend_on_how_windows_are_batched() {
    let f = fixture();
    let (together, apart) = (f.run("a.gguf", &[]), f.run("b.gguf", &["-b", "20", "-t", "1"]));
    assert_eq!(together.entries.len(), apart.entries.len());
    for (name, entry) in &together.entries {
        let expected: Vec<f64> = apart.entries[name].sums.iter().map(|x| f64::from(*x)).collect();
        common::close(name, &entry.sums, &expected, 1e-5);
        assert_eq!(entry.counts, apart.entries[name].counts, "{name}");
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let f = fixture();
    f.run("whole.gguf", &["-b", "32"]);
    let output = f.path("resumed.gguf");
    let sums = f.path("resumed.gguf.sums");
    let args = f.args(&output, &["-b", "32", "--save-interval", "0"]);
    let mut child = kimi_command().args(&args).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !sums.exists() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "no sums are saved");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(sums.exists() && !output.exists(), "the run ended before it was killed");
    let out = kimi(&args.iter().map(|arg| &**arg).collect::<Vec<_>>());
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && log.contains("resuming after "), "{log}");
    assert_eq!(fs::read(&output).unwrap(), fs::read(f.path("whole.gguf")).unwrap());
    assert!(!sums.exists());
    // Sums of another text are not continued.
    fs::copy(f.path("whole.gguf"), &sums).unwrap();
    let again = f.args(&output, &["-b", "32", "--windows", "3", "--force"]);
    let out = kimi(&again.iter().map(|arg| &**arg).collect::<Vec<_>>());
    assert!(out.status.success() && !String::from_utf8_lossy(&out.stderr).contains("resuming"));
}

/// Runs `convert --imatrix` and expects one line of error that ends like this, and nothing left behind.
fn refused(f: &Fixture, imatrix: &Path, end: &str) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("o.gguf");
    let args = ["convert", text(&f.model), "--type", "q8_0", "-o", text(&output), "--imatrix", text(imatrix)];
    let out = kimi(&args);
    let log = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success() && log.lines().count() == 1, "{log}");
    let expected = format!("{}{end}", imatrix.display());
    assert!(log.trim_end().ends_with(&expected), "expected {expected}\nfound {log}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn files_name_the_matrix_and_bad_ones_are_refused() {
    let f = fixture();
    let imatrix = f.run("i.gguf", &["--windows", "2"]);
    let (path, output) = (f.path("i.gguf"), f.path("o.gguf"));
    kimi_ok(&["convert", text(&f.model), "--type", "q8_0", "-o", text(&output), "--imatrix", text(&path)]);
    let file = Gguf::open(&output).unwrap();
    assert_eq!(file.str("quantize.imatrix.file").unwrap(), text(&path));
    assert_eq!(file.str("quantize.imatrix.dataset").unwrap(), "token ids");
    assert_eq!(file.u64("quantize.imatrix.entries_count").unwrap(), imatrix.entries.len() as u64);
    assert_eq!(file.u64("quantize.imatrix.chunks_count").unwrap(), 2);
    let changed = |name: &str, change: &dyn Fn(&mut Imatrix)| {
        let mut other = imatrix.clone();
        change(&mut other);
        other.write(&f.path(name)).unwrap();
        f.path(name)
    };
    let q = "blk.0.attn_q.weight";
    let nan = changed("nan", &|i| i.entries.get_mut(q).unwrap().sums[3] = f32::NAN);
    refused(&f, &nan, &format!(": {q}, sums: expected finite numbers of at least 0, found NaN at 3"));
    let negative = changed("negative", &|i| i.entries.get_mut(q).unwrap().counts[0] = -1.0);
    refused(&f, &negative, &format!(": {q}, counts: expected finite numbers of at least 0, found -1 at 0"));
    let zero = changed("zero", &|i| i.entries.get_mut(q).unwrap().counts[0] = 0.0);
    refused(&f, &zero, &format!(": {q}, counts: expected at least 1 token, found 0"));
    let cols = imatrix.entries[q].sums.len();
    let narrow = changed("narrow", &|i| i.entries.get_mut(q).unwrap().sums.truncate(cols / 2));
    refused(&f, &narrow, &format!(": {q}: expected {cols} numbers, found {}", cols / 2));
    let other = changed("other", &|i| {
        let entry = i.entries[q].clone();
        i.entries.insert("blk.99.attn_q.weight".into(), entry);
    });
    refused(&f, &other, ": blk.99.attn_q.weight: expected a tensor of this model, found none of that name");
    refused(&f, &f.model, ": general.type: expected imatrix, found model");
    fs::write(f.path("cut"), &fs::read(&path).unwrap()[..5000]).unwrap();
    let out = kimi(&["convert", text(&f.model), "--imatrix", text(&f.path("cut"))]);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).lines().count() == 1);
    refused(&f, &f.path("none"), ": No such file or directory (os error 2)");
}
