//! Pins [`Backend::NUMERICS_VERSION`] of the CPU backend to the bits of a fixed tiny model's logits.
//!
//! Cached states are reused by every build with an equal version, so any change of these bits needs a new revision. The
//! model has a KDA layer with a dense MLP, a KDA and an MLA layer with experts, and a tensor in every format; it runs at
//! the scalar level, whose results do not depend on the machine.

use bytes::Bytes;
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kernels::quant::Format;
use kernels::simd::SimdLevel;
use models::gguf::read::Gguf;
use models::gguf::write::Layout;
use models::gguf::{Array, Metadata, Value};
use models::hybrid::mla::MlaPath;
use models::hybrid::{Model, Outputs, Sequence};
use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_64;

/// The hash of the logits of each revision, from revision 1 on. That of revision 2 is of random IQ1, IQ2 and IQ3 blocks: the
/// quantizers that made them before may change without a new revision.
const HASHES: [u64; 3] = [0x312c_3f3b_70a2_f642, 0xdae6_5abc_51cf_4a5a, 0xbf42_e3fe_7d9a_9045];

#[test]
fn logits_change_only_with_the_numerics_version() {
    let (version, hash) = (Cpu::NUMERICS_VERSION, xxh3_64(&logits()));
    assert_eq!(
        (version.family, version.revision as usize, hash),
        ("simd", HASHES.len(), HASHES[HASHES.len() - 1]),
        "the logits or the version changed: bump NUMERICS_VERSION and this hash (append {hash:#018x} to HASHES)"
    );
}

/// The bits of all logits, with each cache format: a prefill, a continuation with materialized keys and values, two decoded
/// tokens.
fn logits() -> Vec<u8> {
    let (cpu, file) = (Cpu::new(2, SimdLevel::available()[0]), file());
    assert!(matches!(SimdLevel::available()[0], SimdLevel::Scalar(_)));
    let model = Model::load(&cpu, &file).expect("the model loads");
    let ids: Vec<u32> = (0..44).map(|i| (i * 7 + 3) % VOCAB as u32).collect();
    let mut all = Vec::new();
    for cache in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0] {
        let mut state = model.state(&cpu, cache);
        let mut run = |tokens: &[u32], outputs, mla_path| {
            let mut batch = [Sequence { tokens, state: &mut state, outputs, mla_path }];
            let logits = model.forward(&cpu, &mut batch, &mut ()).expect("logits were requested");
            let logits = cpu.read(&logits);
            assert!(logits.iter().all(|x| x.is_finite()));
            all.extend(logits.iter().flat_map(|x| x.to_bits().to_le_bytes()));
        };
        run(&ids[..9], Outputs::All, MlaPath::Absorbed);
        run(&ids[9..42], Outputs::All, MlaPath::Materialized);
        ids[42..].iter().for_each(|id| run(&[*id], Outputs::Last, MlaPath::Absorbed));
    }
    all
}

const VOCAB: usize = 96;
const DIM: usize = 256;
const HEADS: usize = 4;
/// Channels of a KDA head, and of k, pe and value of an MLA head together with the latent.
const HEAD: usize = 64;
const LATENT: usize = 64;
const EXPERTS: usize = 6;
const HIDDEN: usize = 32;

fn metadata() -> Metadata {
    let mut all = vec![
        ("general.architecture".to_owned(), Value::String("kimi-linear".to_owned())),
        ("tokenizer.ggml.model".to_owned(), Value::String("none".to_owned())),
    ];
    let mut set = |key: &str, value| all.push((format!("kimi-linear.{key}"), value));
    set("attention.head_count_kv", Value::Array(Array::I32(vec![0, 0, 1])));
    set("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    set("expert_weights_scale", Value::F32(2.446));
    set("expert_weights_norm", Value::Bool(true));
    for (key, n) in [
        ("block_count", 3),
        ("context_length", 4096),
        ("vocab_size", VOCAB),
        ("embedding_length", DIM),
        ("attention.head_count", HEADS),
        ("kda.head_count", HEADS),
        ("kda.head_dim", HEAD),
        ("ssm.conv_kernel", 4),
        ("attention.kv_lora_rank", LATENT),
        ("rope.dimension_count", HEAD / 2),
        ("attention.key_length", LATENT + HEAD / 2),
        ("attention.key_length_mla", HEAD),
        ("attention.value_length_mla", HEAD),
        ("leading_dense_block_count", 1),
        ("feed_forward_length", DIM),
        ("expert_count", EXPERTS),
        ("expert_group_count", 2),
        ("expert_group_used_count", 1),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", HIDDEN),
        ("expert_shared_count", 1),
        ("expert_gating_func", 2),
    ] {
        set(key, Value::U32(n as u32));
    }
    Metadata(all)
}

/// Name and shape of every tensor; vectors and taps are F32.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let width = HEADS * HEAD;
    let mut all: Vec<(String, Vec<usize>)> = vec![
        ("token_embd.weight".into(), vec![DIM, VOCAB]),
        ("output_norm.weight".into(), vec![DIM]),
        ("output.weight".into(), vec![DIM, VOCAB]),
    ];
    for layer in 0..3 {
        let mut add = |name: &str, shape: &[usize]| all.push((format!("blk.{layer}.{name}"), shape.to_vec()));
        add("attn_norm.weight", &[DIM]);
        add("ffn_norm.weight", &[DIM]);
        add("attn_output.weight", &[width, DIM]);
        if layer == 2 {
            add("attn_q.weight", &[DIM, width]);
            add("attn_kv_a_mqa.weight", &[DIM, LATENT + HEAD / 2]);
            add("attn_kv_a_norm.weight", &[LATENT]);
            add("attn_k_b.weight", &[HEAD / 2, LATENT, HEADS]);
            add("attn_v_b.weight", &[LATENT, HEAD, HEADS]);
        } else {
            for name in ["q", "k", "v"] {
                add(&format!("attn_{name}.weight"), &[DIM, width]);
                add(&format!("ssm_conv1d_{name}.weight"), &[4, 1, width, 1]);
            }
            for (a, b) in [("ssm_f_a.weight", "ssm_f_b.weight"), ("ssm_g_a.weight", "ssm_g_b.weight")] {
                add(a, &[DIM, HEAD]);
                add(b, &[HEAD, width]);
            }
            add("ssm_a", &[1, HEADS, 1, 1]);
            add("ssm_dt.bias", &[width]);
            add("ssm_beta.weight", &[DIM, HEADS]);
            add("ssm_norm.weight", &[HEAD]);
        }
        let mut mlp = |suffix: &str, hidden: usize, stack: &[usize]| {
            add(&format!("ffn_gate{suffix}.weight"), &[&[DIM, hidden], stack].concat());
            add(&format!("ffn_up{suffix}.weight"), &[&[DIM, hidden], stack].concat());
            add(&format!("ffn_down{suffix}.weight"), &[&[hidden, DIM], stack].concat());
        };
        if layer == 0 {
            mlp("", DIM, &[]);
        } else {
            mlp("_exps", HIDDEN, &[EXPERTS]);
            mlp("_shexp", HIDDEN, &[]);
            add("ffn_gate_inp.weight", &[DIM, EXPERTS]);
            add("exp_probs_b.bias", &[EXPERTS]);
        }
    }
    all
}

/// The model in memory: each matrix takes the format, of those that divide its rows, that is used least so far.
fn file() -> Gguf {
    let mut uses = Format::ALL.map(|format| (format, 0));
    let mut described = Vec::new();
    for (name, shape) in tensors() {
        let is_vector = shape.len() == 1 || name.ends_with("ssm_a") || name.contains("ssm_conv1d");
        let fitting = uses.iter_mut().filter(|(format, _)| match is_vector {
            true => *format == Format::F32,
            false => shape[0].is_multiple_of(format.block_len()),
        });
        let (format, n) = fitting.min_by_key(|(_, n)| *n).expect("F32 fits");
        *n += 1;
        described.push((name, *format, shape.iter().map(|n| *n as u64).collect()));
    }
    let used: HashSet<Format> = described.iter().map(|(_, format, _)| *format).collect();
    assert_eq!(used.len(), Format::ALL.len(), "every format is used");
    let layout = Layout::new(metadata(), described).expect("shapes that can be written");
    let mut bytes = layout.header().to_vec();
    let (start, mut seed) = (bytes.len(), 1);
    for tensor in layout.tensors() {
        bytes.resize(start + tensor.offset as usize, 0);
        let cols = tensor.shape[0] as usize;
        let mut stored = vec![0; tensor.format.row_bytes(cols as u64).expect("whole blocks") as usize];
        for _ in 0..tensor.shape[1..].iter().product::<u64>() {
            let row: Vec<f32> = (0..cols).map(|_| value(&mut seed, &tensor.name, cols)).collect();
            match unit(tensor.format) {
                Some(unit) => random_blocks(&mut seed, tensor.format, unit, &mut stored),
                None => tensor.format.quantize_row(&row, &mut stored),
            }
            bytes.extend(&stored);
        }
    }
    bytes.resize(layout.total_bytes() as usize, 0);
    Gguf::from_bytes("numerics-version.gguf", Bytes::from(bytes)).expect("a valid file")
}

/// The scale of random blocks, a binary16, of the formats whose quantizer may change: its search is not ggml's.
fn unit(format: Format) -> Option<u16> {
    match format {
        Format::IQ1_S | Format::IQ1_M => Some(0x2400),
        Format::IQ2_XXS | Format::IQ2_XS | Format::IQ2_S => Some(0x1800),
        Format::IQ3_XXS | Format::IQ3_S => Some(0x1400),
        _ => None,
    }
}

/// Blocks of pseudo-random bytes with this scale.
fn random_blocks(seed: &mut u64, format: Format, unit: u16, out: &mut [u8]) {
    for block in out.chunks_exact_mut(format.block_bytes()) {
        for byte in block.iter_mut() {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = (*seed >> 56) as u8;
        }
        match format {
            // Four bits at the top of each of the last four words.
            Format::IQ1_M => (0..4).for_each(|k| {
                let top = &mut block[49 + 2 * k];
                *top = *top & 15 | ((unit >> (4 * k) & 15) as u8) << 4;
            }),
            _ => block[..2].copy_from_slice(&unit.to_le_bytes()),
        }
    }
}

/// The next pseudo-random value of a tensor, of the size that keeps activations of order one.
fn value(seed: &mut u64, name: &str, cols: usize) -> f32 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    let x = (*seed >> 40) as f32 / (1 << 23) as f32 - 1.0; // in -1..1
    match name.rsplit('.').nth(1) {
        _ if name.ends_with("ssm_a") => -1.0 - x.abs(),
        _ if name.ends_with("norm.weight") => 1.0 + 0.2 * x,
        Some("token_embd") => x,
        _ if name.contains("ssm_conv1d") || name.ends_with(".bias") => 0.5 * x,
        _ => 2.0 * x / (cols as f32).sqrt(),
    }
}
