//! Compares whole models on the device with the reference: random ones of several shapes and formats, and the
//! demonstration model.
//!
//! The tolerance is tight for f32 weights. With quantized weights it is wider, because the device rounds activations to
//! 8 bits and the reference does not. Next: [`super::bench`].

use crate::kernel_checks::CheckRow;
use anyhow::{Context as _, Result, ensure};
use kernels::backend::{Backend, CacheFormat};
use kernels::cuda::Cuda;
use kernels::reference::Reference;
use models::gguf::read::Gguf;
use models::hybrid::mla::MlaPath;
use models::hybrid::{Model, Outputs, Sequence};
use std::process::Command;

/// The last logits of a prompt, prefilled in one batch or decoded token by token.
struct ModelLogits {
    at_once: Vec<f32>,
    one_by_one: Vec<f32>,
}

fn logits<B: Backend>(b: &B, file: &Gguf, ids: &[u32]) -> Result<ModelLogits> {
    let model = Model::load(b, file)?;
    let mut state = model.state(b, CacheFormat::F32);
    let forward = |tokens: &[u32], state: &mut _| {
        let mut batch = [Sequence { tokens, state, outputs: Outputs::Last, mla_path: MlaPath::Absorbed }];
        model.forward(b, &mut batch, &mut ()).map(|l| b.read(&l)).unwrap_or_default()
    };
    let at_once = forward(ids, &mut state);
    let (mut state, mut one_by_one) = (model.state(b, CacheFormat::F32), Vec::new());
    for id in ids {
        one_by_one = forward(&[*id], &mut state);
    }
    Ok(ModelLogits { at_once, one_by_one })
}

/// Returns the last logits of a prompt prefilled with materialized attention.
fn materialized<B: Backend>(b: &B, file: &Gguf, ids: &[u32]) -> Result<Vec<f32>> {
    let model = Model::load(b, file)?;
    let (mut state, outputs) = (model.state(b, CacheFormat::F16), Outputs::Last);
    let batch = Sequence { tokens: ids, state: &mut state, outputs, mla_path: MlaPath::Materialized };
    Ok(model.forward(b, &mut [batch], &mut ()).map(|l| b.read(&l)).unwrap_or_default())
}

/// The tolerance where tensor cores compute in f16.
const HALF: f64 = 2e-3;

/// Compares the relative distance of the logits and their arg-max.
fn compare(what: String, got: &[f32], expected: &[f32], tolerance: f64) -> CheckRow {
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(expected).map(|(g, e)| square(f64::from(g - e))).sum();
    let length: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    let distance = (difference / length).sqrt();
    let (best, expected_best) =
        (crate::generation::sample::argmax(got), crate::generation::sample::argmax(expected));
    let passed =
        got.len() == expected.len() && distance <= tolerance && (best == expected_best || tolerance > 1e-3);
    let same = if best == expected_best { "same" } else { "other" };
    CheckRow {
        what,
        found: format!("{distance:.1e}, allowed {tolerance:.0e}, {same} token"),
        passed: Some(passed),
    }
}

/// Compares each model and returns the rows.
///
/// # Errors
/// A model cannot be written or read.
pub fn models(cuda: &Cuda, quick: bool) -> Result<Vec<CheckRow>> {
    let dir = tempfile::tempdir()?;
    let cases = [
        ("tiny", "f32", 1e-4),
        ("tiny-d128", "f32", 1e-4),
        ("tiny-d128", "q8_0", 3e-2),
        ("tiny-d128", "q4_k_m", 3e-2),
    ];
    let mut files =
        vec![("demonstration model".to_owned(), crate::runtime::builtin_model::open(None)?, 3e-2)];
    for (preset, kind, tolerance) in cases.into_iter().take(if quick { 2 } else { 4 }) {
        let path = dir.path().join(format!("{preset}.{kind}.gguf"));
        let synth = Command::new(std::env::current_exe()?)
            .args(["synth", "--preset", preset, "--type", kind])
            .arg(&path)
            .output()?;
        ensure!(synth.status.success(), "synth {preset}: {}", String::from_utf8_lossy(&synth.stderr));
        files.push((
            format!("{preset} {kind}"),
            Gguf::open(&path).context("the model just written")?,
            tolerance,
        ));
    }
    let mut rows = Vec::new();
    let lengths: &[u32] = if quick { &[3, 20] } else { &[1, 7, 64, 65, 300] };
    for (name, file, tolerance) in &files {
        for n in lengths {
            let ids: Vec<u32> = (0..*n).map(|i| (i * 37 + 11) % 900).collect();
            let (expected, got) = (logits(&Reference, file, &ids)?, logits(cuda, file, &ids)?);
            rows.push(compare(format!("{name}, {n} tokens"), &got.at_once, &expected.at_once, *tolerance));
            rows.push(compare(
                format!("{name}, {n} one by one"),
                &got.one_by_one,
                &expected.one_by_one,
                *tolerance,
            ));
        }
    }
    for (name, file, _) in files.iter().filter(|(name, ..)| name.ends_with("f32")) {
        let ids: Vec<u32> = (0..if quick { 33 } else { 300 }).map(|i| (i * 37 + 11) % 900).collect();
        let (expected, got) = (materialized(&Reference, file, &ids)?, materialized(cuda, file, &ids)?);
        rows.push(compare(format!("{name}, {} tokens materialized", ids.len()), &got, &expected, HALF));
    }
    Ok(rows)
}
