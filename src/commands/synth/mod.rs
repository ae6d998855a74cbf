//! `kimi synth`: writes a model of any shape with random weights, for tests and benchmarks, at disk speed.
//!
//! Everything except the weights equals the output of `kimi convert`. Next: `preset` (shapes), `fill` (weights).

mod fill;
mod preset;

use crate::io::output::{partial_path, tell};
use crate::io::progress;
use anyhow::{Context as _, Result, bail};
use convert::mix::Mix;
use convert::mix_rules::MixRules;
use convert::plan::plan;
use convert::{Override, Progress};
use fill::{FillKind, Filler, Spread};
use models::gguf::write::{Layout, Writer};
use models::gguf::{Metadata, Value};
pub use preset::Preset;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// The command-line arguments of `kimi synth`.
#[derive(Clone, Debug, clap::Args)]
pub struct SynthArgs {
    /// Path of the output GGUF file
    output: PathBuf,
    /// Shape of the model
    #[arg(short, long, value_enum, default_value_t = Preset::FiveLayers)]
    preset: Preset,
    /// Quantization type, as for `convert`
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k_m", value_parser = Mix::from_name)]
    mix: Mix,
    /// Quantization type of tensors whose name matches; may be repeated, the last match wins
    #[arg(long, value_name = "REGEX=TYPE", value_parser = Override::parse)]
    tensor_type: Vec<Override>,
    /// Seed of the weights
    #[arg(long, default_value_t = 20260)]
    seed: u64,
    /// Number of layers instead of the preset's; every fourth is MLA, in ling-flash every sixth
    #[arg(long, value_name = "N")]
    layers: Option<u64>,
    /// Config field to override, such as num_experts=24 or kda_heads=3; may be repeated
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Checkpoint directory with the tokenizer to embed (default: none, the model accepts token ids only)
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Leave the weights zero in a sparse file, which takes no disk space: for `inspect` and `bench --replay-experts`
    #[arg(long)]
    sparse: bool,
    /// Overwrite an existing output file
    #[arg(short, long)]
    force: bool,
}

pub fn run(args: &SynthArgs) -> Result<()> {
    if args.output.exists() && !args.force {
        bail!("{} exists; --force replaces it", args.output.display());
    }
    let layout = layout(args)?;
    if args.sparse {
        return write_sparse(&args.output, &layout);
    }
    check_space(&args.output, layout.total_bytes())?;
    let start = Instant::now();
    let template = "{bar:30} {bytes:>11} of {total_bytes}  {bytes_per_sec:>12}  {eta:>4} left  {msg}";
    let bar = progress::TerminalProgress::new(layout.total_bytes(), 0, template);
    write(args, &layout, &bar)?;
    bar.finish();
    let weights: u64 = layout.tensors().iter().map(|t| t.shape.iter().product::<u64>()).sum();
    let (bytes, seconds) = (layout.total_bytes() as f64, start.elapsed().as_secs_f64());
    tell(&format!(
        "{}: {} tensors, {weights} parameters, {:.2} GiB, {:.2} bits per weight, in {seconds:.1} s ({:.2} GB/s)",
        args.output.display(),
        layout.tensors().len(),
        bytes / f64::from(1 << 30),
        bytes * 8.0 / weights as f64,
        bytes / seconds / 1e9,
    ));
    Ok(())
}

fn layout(args: &SynthArgs) -> Result<Layout> {
    let config = preset::config(args.preset, args.layers, &args.set)?;
    let mut metadata = convert::metadata::metadata(&config, args.preset.model_name(), args.mix);
    match &args.tokenizer {
        Some(dir) => convert::vocabulary::add(&mut metadata, dir, &config, &mut SynthWarnings)?,
        None => no_tokenizer(&mut metadata),
    }
    let specs = convert::names::tensor_specs(&config);
    let rules = MixRules::new(args.mix, &specs, config.layers(), false);
    let tensors = plan(specs, &rules, &args.tensor_type)?;
    let tensors = tensors.into_iter().map(|t| (t.name, t.format, t.shape)).collect();
    Ok(Layout::new(metadata, tensors)?)
}

fn no_tokenizer(metadata: &mut Metadata) {
    metadata.set("tokenizer.ggml.model", Value::String("none".into()));
}

struct SynthWarnings;

impl Progress for SynthWarnings {
    fn warn(&mut self, message: &str) {
        tell(&format!("warning: {message}"));
    }
}

fn check_space(output: &Path, needed: u64) -> Result<()> {
    let dir = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = fs4::available_space(dir).with_context(|| dir.display().to_string())?;
    if free < needed {
        bail!("{}: {needed} bytes are needed there, {free} are free", dir.display());
    }
    Ok(())
}

/// Writes the header, and a hole in place of the weights.
fn write_sparse(output: &Path, layout: &Layout) -> Result<()> {
    let partial = partial_path(output);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(layout.header())?;
        file.set_len(layout.total_bytes())?;
        fs::rename(&partial, output)
    });
    written.with_context(|| {
        let _ = fs::remove_file(&partial);
        output.display().to_string()
    })?;
    tell(&format!("{}: {} tensors of zeros, a sparse file", output.display(), layout.tensors().len()));
    Ok(())
}

/// Fills the next piece on all cores while the previous one is written.
fn write(args: &SynthArgs, layout: &Layout, bar: &progress::TerminalProgress) -> Result<()> {
    let mut writer = Writer::create(&args.output, layout.clone())?;
    let part = writer.part().to_owned();
    let weights = |shape: &[u64]| shape.iter().product::<u64>();
    let most = layout.tensors().iter().map(|t| weights(&t.shape)).max().unwrap_or(1);
    let mut filler = Filler::new(args.seed, most);
    let (filled, to_write) = sync_channel::<Vec<u8>>(1);
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            for piece in to_write {
                writer.write(&piece)?;
                bar.inc(piece.len() as u64);
            }
            writer.finish()
        });
        for (index, t) in layout.tensors().iter().enumerate() {
            bar.set_message(t.name.clone());
            let kind = FillKind { format: t.format, spread: Spread::of(&t.name, &t.shape), cols: t.shape[0] };
            // The receiver is dropped after a write error, which the writer returns.
            if filler.fill(index, kind, t.bytes, |piece| filled.send(piece)).is_err() {
                break;
            }
        }
        drop(filled);
        let written = writing.join().expect("the writer does not panic");
        if written.is_err() {
            // The original error is the one to report; the file is quickly made again.
            let _ = fs::remove_file(part);
        }
        Ok(written?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use models::gguf::read::Gguf;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SynthArgs,
    }

    fn synth(path: &Path, options: &str) -> Result<()> {
        let words = ["synth", path.to_str().unwrap()].into_iter().chain(options.split_whitespace());
        run(&Line::parse_from(words).args)
    }

    #[test]
    fn a_tiny_model() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        synth(&path, "--preset tiny --type q8_0 --set num_experts=8").unwrap();
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.u64("kimi-linear.expert_count").unwrap(), 8);
        assert_eq!(file.u64("kimi-linear.vocab_size").unwrap(), 1536);
        assert_eq!(file.str("tokenizer.ggml.model").unwrap(), "none");
        let embedding = file.tensor("token_embd.weight").unwrap();
        assert_eq!((embedding.format.name(), &embedding.shape[..]), ("Q8_0", &[192, 1536][..]));
        let bytes = fs::read(&path).unwrap();
        let error = synth(&path, "--preset tiny").unwrap_err().to_string();
        assert!(error.ends_with("x.gguf exists; --force replaces it"), "{error}");
        synth(&path, "--preset tiny --type q8_0 --set num_experts=8 --force").unwrap();
        assert!(fs::read(&path).unwrap() == bytes, "the same seed gives the same file");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sparse_file_has_the_header_and_length_of_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let [whole, sparse] = ["whole.gguf", "sparse.gguf"].map(|name| dir.path().join(name));
        synth(&whole, "--preset tiny").unwrap();
        synth(&sparse, "--preset tiny --sparse").unwrap();
        let [whole, sparse] = [whole, sparse].map(|path| fs::read(path).unwrap());
        let zeros = sparse.iter().rev().take_while(|byte| **byte == 0).count();
        let header = sparse.len() - zeros;
        assert!(whole.len() == sparse.len() && header > 1000 && zeros > 1_000_000, "{header} {zeros}");
        assert!(whole[..header] == sparse[..header]);
    }
}
