//! Compares the program's logits for random Ling files with the float64 reference (`tests/reference/ling_ref.py`).
//!
//! `gen_ling.py` writes the files, `logits.py` the expected logits. Steps of any length give the same bits. The block that
//! predicts further tokens is compared too, and drafts of its predictions change no reply. All commands run on such a model;
//! `tests/serve/ling.rs` sends requests to a server.

mod common;

use common::{close, kimi, kimi_command, kimi_ok, npy, skip, text};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use models::gguf::read::Gguf;
use models::hybrid::mla::MlaPath;
use models::hybrid::{Model, Outputs, Sequence};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a script of `tests/reference`; returns its output.
fn run(python: &str, script: &str, args: &[&str]) -> String {
    let script = format!("{}/tests/reference/{script}", env!("CARGO_MANIFEST_DIR"));
    let out = Command::new(python).arg(&script).args(args).output().unwrap();
    assert!(out.status.success(), "{script} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn floats(path: &Path) -> Vec<f64> {
    let bytes = fs::read(path).unwrap();
    bytes.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect()
}

/// Logits of a prompt of 48 tokens, in batches of 48, 5 and 1.
fn check(preset: &str, seed: &str, fields: &[&str]) {
    let Some(python) = skip::python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [file, expected, found] = ["m.gguf", "m.f64", "m.npy"].map(|name| dir.path().join(name));
    run(&python, "gen_ling.py", &[&[text(&file), preset, seed][..], fields].concat());
    let ids = run(&python, "logits.py", &[text(&file), "48", text(&expected)]).trim().replace(' ', ",");
    let mut all = Vec::new();
    for batch in ["48", "5", "1"] {
        let args = ["--cache-type", "f32", "--batch", batch, "--ids", &ids, "-o", text(&found)];
        kimi_ok(&[&["logits", "-m", text(&file)], &args[..]].concat());
        all.push(npy(&found));
    }
    close(&format!("{preset} {fields:?}"), &all[0], &floats(&expected), 2e-5);
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(all.iter().all(|logits| bits(logits) == bits(&all[0])), "{preset} {fields:?} in batches");
}

#[test]
fn low_rank_queries_and_groups() {
    check("tiny", "7", &[]);
}

#[test]
fn full_rank_queries_without_groups() {
    check("tiny", "8", &["q_lora_rank=0", "n_group=1", "topk_group=1"]);
}

#[test]
fn limits_and_a_tied_head() {
    check("tiny", "10", &["tied=1", "expert_limit=0.5", "shared_limit=0.25"]);
}

#[test]
fn two_dense_layers_and_shorter_periods() {
    check("tiny", "12", &["first_k_dense_replace=2", "layer_group_size=3"]);
}

#[test]
fn the_real_head_sizes_beside_a_block_for_further_tokens() {
    check("tiny_d128", "13", &["num_nextn_predict_layers=1"]);
}

/// Logits of two predictions after a prompt of 47 tokens and the next one.
#[test]
fn predictions_of_further_tokens() {
    let Some(python) = skip::python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [file, logits, expected] = ["m.gguf", "m.f64", "p.f64"].map(|name| dir.path().join(name));
    let fields = ["num_nextn_predict_layers=1", "expert_limit=0.5"];
    for (preset, seed) in [("tiny", "21"), ("tiny_d128", "22")] {
        run(&python, "gen_ling.py", &[&[text(&file), preset, seed][..], &fields].concat());
        let ids = run(&python, "logits.py", &[text(&file), "47", text(&logits), text(&expected)]);
        let ids: Vec<u32> = ids.trim().split(',').map(|id| id.parse().unwrap()).collect();
        let (b, cache) = (&Cpu::detect(Some(2)), CacheFormat::F32);
        let model = Model::load(b, &Gguf::open(&file).unwrap()).unwrap();
        let mut state = model.state(b, cache);
        model.follow(b, &mut state, cache);
        for tokens in ids[..47].chunks(10) {
            let sequence =
                Sequence { tokens, state: &mut state, outputs: Outputs::None, mla_path: MlaPath::Absorbed };
            model.forward(b, &mut [sequence], &mut ());
        }
        let mut found = Vec::new();
        model.predict_with(b, &mut state, ids[47], |logits| {
            found.extend(b.read(logits));
            (found.len() == model.config.vocab).then(|| b.top_k(logits, 1)[0].top[0].1)
        });
        close(preset, &found, &floats(&expected), 2e-5);
    }
}

/// A model whose drafts are often right (`follow=1`): the replies are those without drafts, of which fewer steps are needed.
#[test]
fn replies_with_predictions_equal_those_without() {
    let Some(python) = skip::python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    run(&python, "gen_ling.py", &[text(&file), "tiny_d128", "3", "num_nextn_predict_layers=1", "follow=1"]);
    let inspected = kimi_ok(&["inspect", text(&file)]);
    assert!(inspected.contains("1 block that predicts further tokens (nextn), for drafts"), "{inspected}");
    for sampling in [&["--temp", "0"][..], &["--temp", "0.7", "--seed", "5"]] {
        // The reply and the drafted tokens that were accepted.
        let reply = |draft: &str| {
            let prompt =
                ["generate", "-m", text(&file), "--raw", "abcdefghij klm", "-n", "64", "--ignore-eos"];
            let out = kimi(&[&prompt[..], &["--print-ids", "--draft", draft], sampling].concat());
            let stats = String::from_utf8(out.stderr).unwrap();
            assert!(out.status.success(), "{stats}");
            let accepted = stats.split_once(" drafted tokens accepted").map_or("0 of 0", |(head, _)| head);
            let accepted = accepted.rsplit_once("; ").map_or(accepted, |(_, counts)| counts);
            (
                String::from_utf8(out.stdout).unwrap(),
                accepted.split(' ').next().unwrap().parse::<usize>().unwrap(),
            )
        };
        let (expected, _) = reply("off");
        for draft in ["auto", "1", "4"] {
            let (found, accepted) = reply(draft);
            assert_eq!(found, expected, "{draft} {sampling:?}");
            assert!(draft == "auto" || accepted > 10, "{accepted} accepted with {draft} {sampling:?}");
        }
    }
}

/// A random model with a vocabulary, and a block that predicts further tokens.
fn with_text(dir: &Path) -> PathBuf {
    common::ling_with_text(dir, "f32", &["num_nextn_predict_layers=1"])
}

/// Runs `kimi` with its files in a home directory; returns its standard output.
fn at_home(home: &Path, args: &[&str], input: &str) -> String {
    let mut command = kimi_command();
    for variable in ["XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
        command.env(variable, home);
    }
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn chats_and_answers_about_files() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_text(dir.path());
    let model = ["-m", text(&model), "-n", "12", "--temp", "0"];
    let chat = at_home(
        dir.path(),
        &[&["chat", "--plain"][..], &model].concat(),
        "hello\n/stats\nagain\n/stats\n/quit\n",
    );
    let prompts: Vec<_> = chat.lines().filter(|line| line.starts_with("prompt: ")).collect();
    assert_eq!(prompts.len(), 2, "{chat}");
    assert!(prompts[1].contains(" cached ("), "the second turn starts from the first: {chat}");
    let file = dir.path().join("a.txt");
    fs::write(&file, "Anna keeps the keys of the mill.\nTom keeps the boat.\n").unwrap();
    let ask = ["ask", "--json", "-f", text(&file), "Who keeps the keys?"];
    let answer: Value =
        serde_json::from_str(at_home(dir.path(), &[&ask[..], &model].concat(), "").trim()).unwrap();
    assert!(answer["answer"].is_string(), "{answer}");
}

#[test]
fn rates_importance_and_smaller_files() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_text(dir.path());
    let bench: Value = serde_json::from_str(&kimi_ok(&[
        "bench",
        "-m",
        text(&model),
        "-p",
        "16",
        "-n",
        "4",
        "-r",
        "1",
        "--json",
    ]))
    .unwrap();
    assert!(bench.to_string().contains("decode"), "{bench}");
    let [prose, matrix, mixed, sized] =
        ["a.txt", "i.gguf", "q4.gguf", "sized.gguf"].map(|name| dir.path().join(name));
    fs::write(&prose, "The mill stood by the river, and nobody kept its keys. ".repeat(20)).unwrap();
    kimi_ok(&["imatrix", "-m", text(&model), "-f", text(&prose), "-w", "64", "-o", text(&matrix)]);
    let entries = convert::Imatrix::open(&matrix).unwrap().entries;
    for name in [
        "blk.0.ssm_f_a",
        "blk.0.ssm_g_a",
        "blk.3.attn_q_b",
        "blk.3.attn_gate",
        "blk.3.ffn_down_exps",
        "output",
    ] {
        assert!(entries.contains_key(&format!("{name}.weight")), "{name}");
    }
    let convert = |args: &[&str], out: &Path| {
        kimi_ok(&[&["convert", text(&model), "-o", text(out), "--imatrix", text(&matrix)], args].concat());
        kimi_ok(&["logits", "-m", text(out), "--ids", "1,2,3", "-o", text(&dir.path().join("l.npy"))]);
        fs::metadata(out).unwrap().len()
    };
    let whole = fs::metadata(&model).unwrap().len();
    assert!(convert(&["--type", "Q4_K_M"], &mixed) < whole / 3);
    let wanted = whole / 4;
    let found = convert(&["--size", &wanted.to_string()], &sized);
    assert!(found <= wanted && found > wanted * 9 / 10, "{found} bytes, wanted {wanted} of {whole}");
    assert!(Gguf::open(&sized).unwrap().tensor("blk.4.nextn.eh_proj.weight").is_some());
}
