//! Chooses a format for every tensor so that the expected KL divergence is least within a number of bytes.
//!
//! KL divergence is quadratic in a small change of the weights, so that of a tensor in a format is its sensitivity times the
//! format's relative squared error, weighted by the importance of the columns; those of all tensors add up. Errors are measured
//! here on a sample of rows, sensitivities by `kimi imatrix`; tensors without one all get the same. Next: `errors`, `solve`.

pub mod errors;
mod solve;

use crate::chunks::{Chunk, ChunkBuffers, ChunkLoader, output_rows};
use crate::error::{Error, Result};
use crate::importance::Importance;
use crate::job::{Job, Options};
use crate::mix::{Mix, quantizable};
use crate::names::{RowRange, Transform};
use crate::plan::{Override, Planned};
use crate::progress::Progress;
use errors::{SampledRow, quantize};
use kernels::quant::Format;
use models::gguf::write::Layout;
use rayon::prelude::*;
use solve::{StorageChoice, least_bytes, solve};
use std::collections::BTreeMap;

/// The sensitivity of a tensor that was not measured: the same for all.
const UNMEASURED: f64 = 0.5;
/// Values of a tensor whose error is measured.
const SAMPLE_VALUES: usize = 1 << 18;

/// Formats of tensors whose rows are whole blocks of 256.
const COARSE: [Format; 15] = [
    Format::IQ1_S,
    Format::IQ1_M,
    Format::IQ2_XXS,
    Format::IQ2_XS,
    Format::IQ2_S,
    Format::Q2_K,
    Format::IQ3_XXS,
    Format::IQ3_S,
    Format::Q3_K,
    Format::IQ4_XS,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::Q8_0,
    Format::F16,
];
/// Formats of tensors whose rows are whole blocks of 32 only.
const FINE: [Format; 7] =
    [Format::Q4_0, Format::IQ4_NL, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::F16];

/// The size that the file is to have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Bytes of the complete file.
    Bytes(u64),
    /// Bits per weight of all tensors.
    Bits(f64),
}

/// The formats of all tensors.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// A format for each quantizable tensor, by its exact name.
    pub formats: Vec<Override>,
    /// Name and number of the mix that is nearest.
    pub mix: Mix,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// The expected KL divergence from the unquantized model in nats per token, if all sensitivities were measured.
    pub divergence: f64,
    /// Tensors without a measured sensitivity.
    pub unmeasured: usize,
}

/// Allocates the bytes of a goal to the tensors of a conversion. Tensors that `options.overrides` match keep that format.
///
/// # Errors
/// Those of a conversion before it writes, and a goal below the least size.
pub fn allocate(
    options: &Options,
    goal: Goal,
    sensitivities: &BTreeMap<String, f32>,
    progress: &mut dyn Progress,
) -> Result<Allocation> {
    let job = Job::new(options, true, progress)?;
    let layout = |format: &dyn Fn(&Planned) -> Format| {
        let tensors = job.plan.iter().map(|t| (t.name.clone(), format(t), t.shape.clone()));
        Layout::new(job.metadata.clone(), tensors.collect())
    };
    let alignment = layout(&|t| t.format)?.alignment();
    let formats: Vec<Vec<Format>> = job.plan.iter().map(|t| candidates(t, &options.overrides)).collect();
    let losses = losses(&job, options, &formats, sensitivities, progress)?;
    let choice = |(t, format, loss): (&Planned, &Format, &f64)| {
        let rows: u64 = t.shape[1..].iter().product();
        let bytes = format.row_bytes(t.shape[0]).unwrap_or(u64::MAX / rows.max(1)) * rows;
        StorageChoice { bytes: bytes.next_multiple_of(alignment), loss: *loss }
    };
    let items: Vec<Vec<StorageChoice>> = job
        .plan
        .iter()
        .zip(formats.iter().zip(&losses))
        .map(|(t, (formats, losses))| formats.iter().zip(losses).map(|(f, l)| choice((t, f, l))).collect())
        .collect();
    let header = layout(&|t| t.format)?.header().len() as u64;
    let budget = match goal {
        Goal::Bytes(bytes) => bytes,
        Goal::Bits(bits) => {
            let weights: u64 = job.plan.iter().map(|t| t.shape.iter().product::<u64>()).sum();
            header + (bits * weights as f64 / 8.0) as u64
        }
    };
    let chosen = solve(&items, budget.saturating_sub(header))
        .ok_or_else(|| too_small(goal, header + least_bytes(&items), &job.plan, header))?;
    let chosen_format = |i: usize| formats[i][chosen[i]];
    let by_name: BTreeMap<&str, Format> =
        job.plan.iter().enumerate().map(|(i, t)| (&*t.name, chosen_format(i))).collect();
    let quantized = job.plan.iter().filter(|t| quantizable(&t.name, &t.shape));
    let unmeasured = quantized.clone().filter(|t| !sensitivities.contains_key(&t.name)).count();
    Ok(Allocation {
        formats: quantized.map(|t| Override::exact(&t.name, by_name[&*t.name])).collect(),
        mix: nearest_mix(&job.plan, &by_name).unwrap_or(options.mix),
        bytes: layout(&|t| by_name[&*t.name])?.total_bytes(),
        divergence: losses.iter().zip(&chosen).map(|(losses, i)| losses[*i]).sum(),
        unmeasured,
    })
}

fn too_small(goal: Goal, least: u64, plan: &[Planned], header: u64) -> Error {
    let weights: u64 = plan.iter().map(|t| t.shape.iter().product::<u64>()).sum();
    let smallest = "the least that any choice of formats takes";
    Error::Option(match goal {
        Goal::Bytes(bytes) => format!("--size: expected at least {least} bytes, {smallest}, found {bytes}"),
        Goal::Bits(bits) => {
            let least = (least - header) as f64 * 8.0 / weights as f64;
            format!(
                "--bits: expected at least {:.2}, {smallest}, found {bits}",
                (least * 100.0).ceil() / 100.0
            )
        }
    })
}

/// The formats that a tensor may have.
fn candidates(planned: &Planned, overrides: &[Override]) -> Vec<Format> {
    let fixed = overrides.iter().any(|rule| rule.matches(&planned.name));
    if fixed || !quantizable(&planned.name, &planned.shape) {
        return vec![planned.format];
    }
    let all = if planned.shape[0].is_multiple_of(256) { &COARSE[..] } else { &FINE[..] };
    all.iter().copied().filter(|f| planned.shape[0].is_multiple_of(f.block_len() as u64)).collect()
}

/// The mix whose base format has most of the bytes.
fn nearest_mix(plan: &[Planned], formats: &BTreeMap<&str, Format>) -> Option<Mix> {
    let mut weights: BTreeMap<Format, u64> = BTreeMap::new();
    for t in plan {
        *weights.entry(formats[&*t.name]).or_default() += t.shape.iter().product::<u64>();
    }
    let most = weights.into_iter().max_by_key(|(_, weights)| *weights)?.0;
    Mix::all().find(|mix| mix.base() == most)
}

/// The loss of every candidate of every tensor.
fn losses(
    job: &Job,
    options: &Options,
    formats: &[Vec<Format>],
    sensitivities: &BTreeMap<String, f32>,
    progress: &mut dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = options.threads {
        pool = pool.num_threads(threads);
    }
    let pool = pool.build().map_err(|e| Error::Option(format!("--threads: {e}")))?;
    let buffers = ChunkBuffers::default();
    let mut loader = ChunkLoader::new(&job.source, job.fp8_block, &buffers);
    let values = |t: &Planned| t.shape.iter().product::<u64>().min(SAMPLE_VALUES as u64);
    progress.start(job.plan.iter().map(values).sum(), 0);
    let mut all = Vec::with_capacity(job.plan.len());
    for (tensor, (planned, formats)) in job.plan.iter().zip(formats).enumerate() {
        progress.advance(values(planned));
        if formats.len() < 2 {
            all.push(vec![0.0; formats.len()]);
            continue;
        }
        progress.tensor(&planned.name, planned.format);
        let rows = sample(tensor, planned, &mut loader)?;
        let sensitivity = match sensitivities.get(&planned.name) {
            Some(s) => f64::from(*s),
            None => UNMEASURED,
        };
        let importance = options.importance.as_ref();
        let error = |format: &Format| sensitivity * error_of(*format, planned, &rows, importance);
        all.push(pool.install(|| formats.par_iter().map(error).collect()));
    }
    Ok(all)
}

/// The relative error of a format on sampled rows.
fn error_of(
    format: Format,
    planned: &Planned,
    rows: &[(usize, Vec<f32>)],
    importance: Option<&Importance>,
) -> f64 {
    let Some(bytes) = format.row_bytes(planned.shape[0]) else { return f64::INFINITY };
    let mut out = vec![0; bytes as usize];
    let mut total = errors::Error::default();
    for (row, values) in rows {
        let matrix = row / planned.shape[1] as usize;
        let (weights, factor) = match importance {
            Some(importance) => importance.of_matrix(&planned.name, values.len(), matrix),
            None => (None, 1.0),
        };
        total = total.plus(quantize(format, SampledRow { values, importance: weights, factor }, &mut out));
    }
    total.relative()
}

/// Reads rows at equal distances, with their numbers.
fn sample<'a>(
    tensor: usize,
    planned: &'a Planned,
    loader: &mut ChunkLoader<'a>,
) -> Result<Vec<(usize, Vec<f32>)>> {
    let cols = planned.shape[0] as usize;
    let all: usize = planned.shape[1..].iter().product::<u64>() as usize;
    let wanted = (SAMPLE_VALUES / cols).clamp(1, all);
    let mut numbers = (0..wanted).map(|i| i * all / wanted).peekable();
    let (mut first, mut rows) = (0, Vec::with_capacity(wanted));
    for part in &planned.parts {
        let transposed = part.map == Transform::Transpose;
        let in_part = if transposed { part.cols() } else { part.rows } as usize;
        let here: Vec<usize> = std::iter::from_fn(|| numbers.next_if(|row| *row < first + in_part)).collect();
        if transposed && !here.is_empty() {
            let values = output_rows(&loader.load(chunk(tensor, part, part.first, part.rows))?);
            rows.extend(here.iter().map(|row| (*row, values[(row - first) * cols..][..cols].to_vec())));
        } else {
            for row in here {
                let source = part.first + (row - first) as u64;
                rows.push((row, output_rows(&loader.load(chunk(tensor, part, source, 1))?)));
            }
        }
        first += in_part;
    }
    Ok(rows)
}

fn chunk(tensor: usize, part: &RowRange, first: u64, rows: u64) -> Chunk<'_> {
    Chunk { tensor, part, first, rows, offset: 0, bytes: 0 }
}
