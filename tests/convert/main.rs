//! Converts random checkpoints to GGUF; broken input is refused in one line. `tests/golden.rs` tests what the files compute.

mod checkpoints;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
#[path = "../../models/tests/support/rounded.rs"]
mod rounded;

use checkpoints::{Checkpoint, generate};
use convert::{
    Error, Importance, Mix, Options, Override, Progress, ShardStore, Summary, convert, convert_shards,
    dry_run,
};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kernels::quant::Format;
use kernels::reference::Reference;
use kernels::simd::SimdLevel;
use models::gguf::read::Gguf;
use models::hybrid::mla::MlaPath;
use models::hybrid::{Model, Outputs, Sequence};
use models::tokenizer::Vocabulary;
use rounded::Rounded;
use serde_json::{Value, json};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

fn options(input: &Path, output: &Path, mix: &str) -> Options {
    let output = Some(output.to_owned());
    let mix = Mix::from_name(mix).unwrap();
    Options {
        input: input.to_owned(),
        output,
        mix,
        overrides: vec![],
        importance: None,
        refine: false,
        force: false,
        threads: Some(2),
    }
}

fn run(input: &Path, output: &Path, mix: &str) -> Result<Summary, Error> {
    convert(&options(input, output, mix), &mut ())
}

/// The values of a GGUF file's tensor.
fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.tensor(name).unwrap_or_else(|| panic!("{name} is missing"));
    let (bytes, cols) = (gguf.bytes(tensor), tensor.shape[0]);
    let row_bytes = tensor.format.row_bytes(cols).unwrap() as usize;
    let mut out = vec![0.0; bytes.len() / row_bytes * cols as usize];
    let rows = out.chunks_exact_mut(cols as usize);
    rows.zip(bytes.chunks_exact(row_bytes)).for_each(|(out, row)| tensor.format.dequantize_row(row, out));
    out
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn f32_keeps_every_bit() {
    let source = generate("tiny", 7, &["num_experts=24"]);
    let file = source.path().join("o.gguf");
    let summary = run(source.path(), &file, "F32").unwrap();
    assert_eq!((summary.tensors.len(), summary.bytes), (180, fs::metadata(&file).unwrap().len()));
    let (gguf, checkpoint) = (Gguf::open(&file).unwrap(), Checkpoint::read(source.path()));
    let same = |name: &str, source: &[f32]| assert!(same_bits(&values(&gguf, name), source), "{name}");
    same("token_embd.weight", &checkpoint.values("model.embed_tokens.weight"));
    same("output.weight", &checkpoint.values("lm_head.weight"));
    for (name, from) in [
        ("attn_norm.weight", "input_layernorm.weight"),
        ("attn_k.weight", "self_attn.k_proj.weight"),
        ("ssm_conv1d_v.weight", "self_attn.v_conv1d.weight"),
        ("ssm_dt.bias", "self_attn.dt_bias"),
        ("ssm_beta.weight", "self_attn.b_proj.weight"),
        ("ssm_f_a.weight", "self_attn.f_a_proj.weight"),
        ("ssm_g_b.weight", "self_attn.g_b_proj.weight"),
        ("ffn_gate_inp.weight", "block_sparse_moe.gate.weight"),
        ("exp_probs_b.bias", "block_sparse_moe.gate.e_score_correction_bias"),
        ("ffn_down_shexp.weight", "block_sparse_moe.shared_experts.down_proj.weight"),
    ] {
        same(&format!("blk.1.{name}"), &checkpoint.values(&format!("model.layers.1.{from}")));
    }
    for (name, from) in [("gate", "w1"), ("down", "w2"), ("up", "w3")] {
        let expert =
            |e| checkpoint.values(&format!("model.layers.6.block_sparse_moe.experts.{e}.{from}.weight"));
        same(&format!("blk.6.ffn_{name}_exps.weight"), &(0..24).flat_map(expert).collect::<Vec<_>>());
    }
}

#[test]
fn decay_and_latent_projections_are_transformed() {
    let source = generate("tiny", 7, &["num_experts=24"]);
    let file = source.path().join("transforms.gguf");
    run(source.path(), &file, "F32").unwrap();
    let (gguf, checkpoint) = (Gguf::open(&file).unwrap(), Checkpoint::read(source.path()));
    let decay = checkpoint.values("model.layers.0.self_attn.A_log");
    let expected: Vec<f32> = decay.iter().map(|a| -f64::from(*a).exp() as f32).collect();
    assert!(same_bits(&values(&gguf, "blk.0.ssm_a"), &expected));
    // tiny: 6 heads, 32 rows of k and 32 of v each, latent 64.
    let kv = checkpoint.values("model.layers.3.self_attn.kv_b_proj.weight");
    let (k, v) = (values(&gguf, "blk.3.attn_k_b.weight"), values(&gguf, "blk.3.attn_v_b.weight"));
    for (head, channel, latent) in
        (0..6).flat_map(|h| (0..32).flat_map(move |c| (0..64).map(move |l| (h, c, l))))
    {
        let source = |row| kv[(head * 64 + row) * 64 + latent];
        assert_eq!(k[(head * 64 + latent) * 32 + channel], source(channel));
        assert_eq!(v[(head * 32 + channel) * 64 + latent], source(32 + channel));
    }
}

#[test]
fn importance_weighs_the_rows_of_each_expert() {
    let source = generate("tiny", 7, &["num_experts=24"]);
    let [exact, weighted] = ["exact.gguf", "weighted.gguf"].map(|name| source.path().join(name));
    run(source.path(), &exact, "F32").unwrap();
    let (exact, name) = (Gguf::open(&exact).unwrap(), "blk.6.ffn_up_exps.weight");
    let [cols, rows] = [0, 1].map(|i| exact.tensor(name).unwrap().shape[i] as usize);
    let numbers: Vec<f32> = (0..cols * 24).map(|i| (1 + i % 7 * i % 11) as f32).collect();
    let importance = Importance {
        listing: "i".into(),
        tensors: [(name.to_owned(), numbers.clone())].into(),
        ..Importance::default()
    };
    let options = Options { importance: Some(importance), ..options(source.path(), &weighted, "Q4_0") };
    convert(&options, &mut ()).unwrap();
    let file = Gguf::open(&weighted).unwrap();
    let tensor = file.tensor(name).unwrap();
    let exact = values(&exact, name);
    let expected = exact.chunks_exact(cols).enumerate().flat_map(|(row, x)| {
        let mut out = vec![0; tensor.format.row_bytes(cols as u64).unwrap() as usize];
        tensor.format.quantize_row_weighted(x, &numbers[row / rows * cols..][..cols], &mut out);
        out
    });
    assert!(file.bytes(tensor).iter().copied().eq(expected));
}

#[test]
fn shards_make_the_same_file() {
    let source = generate("tiny", 7, &["num_experts=24"]);
    let sharded = tempfile::tempdir().unwrap();
    Checkpoint::read(source.path()).write_shards(sharded.path(), 3);
    fs::copy(source.path().join("config.json"), sharded.path().join("config.json")).unwrap();
    let (one, many) = (source.path().join("one.gguf"), sharded.path().join("many.gguf"));
    run(source.path(), &one, "Q8_0").unwrap();
    run(sharded.path(), &many, "Q8_0").unwrap();
    let (one, many) = (Gguf::open(&one).unwrap(), Gguf::open(&many).unwrap());
    assert_eq!(one.tensors, many.tensors);
    for tensor in &one.tensors {
        assert_eq!(one.bytes(tensor), many.bytes(tensor), "{}", tensor.name);
    }
}

/// Panics after a number of bytes, as a kill would end the conversion, and counts the resumed bytes.
#[derive(Default)]
struct Killer {
    after: Option<u64>,
    seen: u64,
    resumed: u64,
}

impl Progress for Killer {
    fn start(&mut self, _total: u64, done: u64) {
        self.resumed = done;
    }

    fn advance(&mut self, bytes: u64) {
        self.seen += bytes;
        if self.after.is_some_and(|after| self.seen > after) {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

#[test]
fn a_stopped_conversion_resumes_to_the_same_bytes() {
    let source = generate("tiny", 7, &["num_experts=24"]);
    let dir = tempfile::tempdir().unwrap();
    let (whole, file) = (dir.path().join("whole.gguf"), dir.path().join("o.gguf"));
    run(source.path(), &whole, "Q8_0").unwrap();
    let gguf = Gguf::open(&whole).unwrap();
    let first_tensor = gguf.offset_in_file(&gguf.tensors[1]);
    let whole = fs::read(&whole).unwrap();
    let options = options(source.path(), &file, "Q8_0");
    let part = dir.path().join("o.gguf.part");
    for after in [0, 3_000_000, 9_000_000] {
        let mut killer = Killer { after: Some(after), ..Killer::default() };
        catch_unwind(AssertUnwindSafe(|| convert(&options, &mut killer))).unwrap_err();
        assert!(!file.exists() && part.exists());
        let written = fs::metadata(&part).unwrap().len();
        // SIGKILL may cut the written file anywhere, including in the header.
        for cut in [written, written.saturating_sub(1), written / 2, 100] {
            fs::write(&part, &whole[..cut as usize]).unwrap();
            let mut killer = Killer { after: Some(1_000_000), ..Killer::default() };
            catch_unwind(AssertUnwindSafe(|| convert(&options, &mut killer))).unwrap_err();
            assert_eq!(killer.resumed > 0, cut >= first_tensor, "cut at {cut}");
        }
    }
    convert(&options, &mut ()).unwrap();
    assert!(fs::read(&file).unwrap() == whole);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn another_input_starts_again() {
    let source = generate("tiny", 8, &[]);
    let file = source.path().join("o.gguf");
    let options = options(source.path(), &file, "Q8_0");
    let stop = |after| {
        let mut killer = Killer { after: Some(after), ..Killer::default() };
        catch_unwind(AssertUnwindSafe(|| convert(&options, &mut killer))).unwrap_err();
        killer.resumed
    };
    assert_eq!(stop(9_000_000), 0);
    assert!(stop(0) > 0);
    let weights = source.path().join("model.safetensors");
    fs::write(&weights, fs::read(&weights).unwrap()).unwrap();
    assert_eq!(stop(0), 0);
}

#[test]
fn an_existing_file_stays_unless_forced() {
    let source = generate("tiny", 8, &[]);
    let file = source.path().join("there.gguf");
    fs::write(&file, "mine").unwrap();
    let message = run(source.path(), &file, "F16").unwrap_err().to_string();
    assert_eq!(message, format!("{} exists; --force replaces it", file.display()));
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let message = run(source.path(), source.path(), "F16").unwrap_err().to_string();
    assert!(message.ends_with("the output: expected the name of a file, found a directory"), "{message}");
    convert(&Options { force: true, ..options(source.path(), &file, "F16") }, &mut ()).unwrap();
    assert_eq!(Gguf::open(&file).unwrap().tensor("output.weight").unwrap().format, Format::F16);
}

/// Collects the warnings of a conversion.
#[derive(Default)]
struct CollectedWarnings(Vec<String>);

impl Progress for CollectedWarnings {
    fn warn(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

#[test]
fn tokenizer_and_template_come_along_or_are_missed() {
    let source = generate("tiny", 8, &[]);
    let path = |name: &str| source.path().join(name);
    let mut bare = CollectedWarnings::default();
    convert(&options(source.path(), &path("bare.gguf"), "Q8_0"), &mut bare).unwrap();
    let missed = ["no tiktoken.model and no tokenizer.json", "no chat template", "llama.cpp cannot load"];
    assert!(bare.0.len() == 3 && bare.0.iter().zip(missed).all(|(w, m)| w.contains(m)), "{:?}", bare.0);
    let gguf = Gguf::open(path("bare.gguf")).unwrap();
    assert_eq!(gguf.str("tokenizer.ggml.model").unwrap(), "none");
    assert_eq!(gguf.u64("tokenizer.ggml.eos_token_id").unwrap(), 1533);

    checkpoints::write_tokenizer(source.path(), 1536);
    let mut whole = CollectedWarnings::default();
    convert(&options(source.path(), &path("whole.gguf"), "Q8_0"), &mut whole).unwrap();
    assert_eq!(whole.0.len(), 1, "{:?}", whole.0);
    let gguf = Gguf::open(path("whole.gguf")).unwrap();
    let vocabulary = Vocabulary::from_metadata("whole", &gguf.metadata).unwrap().unwrap();
    assert_eq!((vocabulary.len(), vocabulary.encode("hi<e>")), (1536, b"hi<e>".map(u32::from).to_vec()));
    assert_eq!(vocabulary.encode_with_specials("h<e>"), [104, 1532]);
    assert_eq!(gguf.u64("tokenizer.ggml.eos_token_id").unwrap(), 1532);
    assert_eq!(gguf.u64("tokenizer.ggml.eot_token_id").unwrap(), 1533);
    assert_eq!(gguf.str("tokenizer.chat_template").unwrap(), "{{ messages }}");
}

#[test]
fn requantizing_equals_converting() {
    let source = generate("tiny", 8, &[]);
    let path = |name: &str| source.path().join(name);
    run(source.path(), &path("wide.gguf"), "F32").unwrap();
    run(&path("wide.gguf"), &path("again.gguf"), "Q8_0").unwrap();
    run(source.path(), &path("direct.gguf"), "Q8_0").unwrap();
    let (again, direct) = (Gguf::open(path("again.gguf")).unwrap(), Gguf::open(path("direct.gguf")).unwrap());
    assert_eq!(again.tensors, direct.tensors);
    assert!(again.tensors.iter().all(|t| again.bytes(t) == direct.bytes(t)));
    assert_eq!(again.u64("general.file_type").unwrap(), 7);
    assert_eq!(again.u64("kimi-linear.kda.head_count").unwrap(), 4);
}

/// Matrices of `tiny_d128` whose rows are whole blocks of 256.
const WIDE_ROWS: &str = r"blk\..*(attn_(q|k|v|output)|ffn_(gate|up|down)(_exps|_shexp)?)\.weight";

/// The largest relative error between implementations that round the same activations to eight bits: sums in another order
/// move single quants by one (`models/tests/support/random_model.rs`).
const SAME_ROUNDING: f32 = 0.05;

#[test]
fn codebook_formats_convert_to_their_values_and_give_their_logits() {
    let source = generate("tiny_d128", 8, &["num_hidden_layers=4"]);
    let path = |name: String| source.path().join(name);
    for format in Format::ALL.into_iter().filter(|f| f.name().starts_with("IQ") && f.block_len() == 256) {
        let (stored, wide) =
            (path(format!("{}.gguf", format.name())), path(format!("{}.f32.gguf", format.name())));
        let mut options = options(source.path(), &stored, "Q8_0");
        options.overrides = vec![Override::parse(&format!("{WIDE_ROWS}={}", format.name())).unwrap()];
        convert(&options, &mut ()).unwrap();
        run(&stored, &wide, "F32").unwrap();
        let (stored, wide) = (Gguf::open(&stored).unwrap(), Gguf::open(&wide).unwrap());
        assert!(stored.tensors.iter().filter(|t| t.format == format).count() >= 20, "{}", format.name());
        for tensor in &stored.tensors {
            let (a, b) = (values(&stored, &tensor.name), values(&wide, &tensor.name));
            assert!(same_bits(&a, &b), "{}: {}", format.name(), tensor.name);
        }
        let exact = logits(&Reference, &wide);
        assert!(same_bits(&logits(&Reference, &stored), &exact), "{}", format.name());
        // The CPU rounds activations to eight bits, which may choose another expert; the reference rounds them too.
        let (found, expected) =
            (logits(&Cpu::new(2, SimdLevel::detect()), &stored), logits(&Rounded(CacheFormat::F32), &stored));
        let square = |of: &dyn Fn(usize) -> f32| (0..found.len()).map(|i| of(i).powi(2)).sum::<f32>();
        let apart = (square(&|i| found[i] - expected[i]) / square(&|i| expected[i])).sqrt();
        assert!(apart < SAME_ROUNDING, "{}: {apart}", format.name());
    }
}

/// The logits after a few tokens.
fn logits<B: Backend>(backend: &B, file: &Gguf) -> Vec<f32> {
    let model = Model::load(backend, file).expect("the file loads");
    let mut state = model.state(backend, CacheFormat::F32);
    let (tokens, outputs) = (&[17, 300, 5, 411, 90][..], Outputs::Last);
    let mut batch = [Sequence { tokens, state: &mut state, outputs, mla_path: MlaPath::Absorbed }];
    backend.read(&model.forward(backend, &mut batch, &mut ()).expect("logits were requested"))
}

#[test]
fn overrides_and_dry_run_agree_with_the_file() {
    let source = generate("tiny", 8, &[]);
    let file = source.path().join("rules.gguf");
    let mut options = options(source.path(), &file, "Q8_0");
    let rules = ["ffn_.*_exps=F16", r"blk\.2\.ffn_up_exps=BF16"];
    options.overrides = rules.iter().map(|text| Override::parse(text).unwrap()).collect();
    let planned = dry_run(&options, &mut ()).unwrap();
    assert!(!file.exists());
    assert_eq!(planned, convert(&options, &mut ()).unwrap());
    let gguf = Gguf::open(&file).unwrap();
    assert_eq!((planned.bytes, planned.source_tensors), (gguf.file_bytes(), 493));
    let format = |name| gguf.tensor(name).unwrap().format;
    assert_eq!(format("blk.2.ffn_up_exps.weight"), Format::BF16);
    assert_eq!(format("blk.2.ffn_gate_exps.weight"), Format::F16);
    assert_eq!(format("blk.2.ffn_gate_shexp.weight"), Format::Q8_0);
}

#[test]
fn the_official_model_is_planned_from_config_and_index_alone() {
    let dir = checkpoints::official_index();
    let output = dir.path().join("o.gguf");
    for (mix, gigabytes) in [("BF16", 98.3), ("Q8_0", 52.3), ("Q4_K_M", 29.7), ("MXFP4_MOE", 27.2)] {
        let planned = dry_run(&options(dir.path(), &output, mix), &mut ()).unwrap();
        assert_eq!((planned.tensors.len(), planned.source_tensors), (610, 20493));
        assert!(
            (planned.bytes as f64 / 1e9 - gigabytes).abs() < 0.01 * gigabytes,
            "{mix}: {}",
            planned.bytes
        );
    }
    let error = run(dir.path(), &output, "BF16").unwrap_err().to_string();
    assert!(
        error.contains("expected its shard model-00001-of-00020.safetensors, found no such file"),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn fp8_weights_get_their_scales() {
    let source = generate("tiny", 9, &[]);
    let names =
        ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"];
    let expected = Checkpoint::read(source.path()).quantize_fp8(source.path(), names);
    let file = source.path().join("fp8.gguf");
    run(source.path(), &file, "F32").unwrap();
    let gguf = Gguf::open(&file).unwrap();
    for (name, expected) in
        ["blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "output.weight"].iter().zip(expected)
    {
        assert!(same_bits(&values(&gguf, name), &expected), "{name}");
    }
}

/// A checkpoint of Ling in FP8 with block scales: a matrix that is taken as it is, one that is split into keys and values,
/// and an expert.
#[test]
fn fp8_weights_of_ling_get_their_scales() {
    let Some(python) = common::skip::python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("ling");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/gen_ling.py");
    let out = Command::new(python).args([script, common::text(&source), "tiny", "5"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(source.join("config.json")).unwrap()).unwrap();
    config["quantization_config"] = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    let names = [
        "model.layers.1.attention.f_proj.weight",
        "model.layers.3.attention.kv_b_proj.weight",
        "model.layers.2.mlp.experts.5.down_proj.weight",
    ];
    let [decay, kv, expert] = Checkpoint::read(&source).quantize_fp8_blocks(&source, names);
    let file = dir.path().join("fp8.gguf");
    run(&source, &file, "F32").unwrap();
    let gguf = Gguf::open(&file).unwrap();
    assert!(same_bits(&values(&gguf, "blk.1.ssm_f_a.weight"), &decay));
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let [nope, value, latent] = ["qk_nope_head_dim", "v_head_dim", "kv_lora_rank"].map(size);
    let (mut keys, mut up) = (Vec::new(), Vec::new());
    for head in kv.chunks((nope + value) * latent) {
        keys.extend((0..nope * latent).map(|i| head[i % nope * latent + i / nope]));
        up.extend_from_slice(&head[nope * latent..]);
    }
    assert!(same_bits(&values(&gguf, "blk.3.attn_k_b.weight"), &keys));
    assert!(same_bits(&values(&gguf, "blk.3.attn_v_b.weight"), &up));
    let experts = values(&gguf, "blk.2.ffn_down_exps.weight");
    assert!(same_bits(&experts[5 * expert.len()..6 * expert.len()], &expert));
}

/// Records the calls of a conversion.
#[derive(Default)]
struct ShardCalls(Mutex<Vec<String>>);

impl ShardCalls {
    fn add(&self, call: &str, path: &Path) {
        let shard = path.file_name().unwrap().to_str().unwrap()[10..11].to_owned();
        self.0.lock().unwrap().push(format!("{call} {shard}"));
    }
}

impl ShardStore for ShardCalls {
    fn fetch(&self, path: &Path) -> Result<bool, String> {
        self.add("fetch", path);
        Ok(false)
    }

    fn prefetch(&self, path: &Path) {
        self.add("prefetch", path);
    }

    fn release(&self, path: &Path) -> Result<(), String> {
        self.add("release", path);
        Ok(())
    }
}

#[test]
fn each_shard_is_fetched_and_released_once_and_prefetched_in_order() {
    let source = generate("tiny", 7, &["num_hidden_layers=4"]);
    Checkpoint::read(source.path()).write_shards(source.path(), 3);
    fs::remove_file(source.path().join("model.safetensors")).unwrap();
    let (calls, out) = (ShardCalls::default(), tempfile::tempdir().unwrap());
    let output = out.path().join("out.gguf");
    convert_shards(&options(source.path(), &output, "q8_0"), &calls, &mut ()).unwrap();
    let calls = calls.0.into_inner().unwrap();
    let of = |call: &str| -> Vec<&str> {
        calls.iter().filter_map(|line| line.strip_prefix(call)?.strip_prefix(' ')).collect()
    };
    assert_eq!(of("fetch")[1..], of("prefetch"), "{calls:?}");
    let mut released = of("release");
    released.sort_unstable();
    assert_eq!((of("fetch").len(), released), (3, vec!["1", "2", "3"]), "{calls:?}");
}
