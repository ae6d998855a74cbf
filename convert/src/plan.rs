//! Plans the output: each tensor with its format and sources, as `--dry-run` prints it.
//!
//! A plan is built from names and shapes alone and then checked against the input, which must hold exactly the planned
//! tensors in the planned shapes. Next: `run`, which executes it.

use crate::error::{Error, Result};
use crate::mix::quantizable;
use crate::mix_rules::MixRules;
use crate::names::{RowRange, TensorSpec};
use crate::source::{Coding, Scales, Source, Tensor};
use kernels::quant::Format;
use regex::Regex;
use std::collections::BTreeSet;

/// An output tensor with its format.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Name in the GGUF file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions as ggml's `ne`, fastest first.
    pub shape: Vec<u64>,
    /// Block format in the GGUF file.
    pub format: Format,
    /// Sources of its rows, in the order of the output.
    pub parts: Vec<RowRange>,
    /// Size in the output in bytes, without padding.
    pub bytes: u64,
}

/// `--tensor-type REGEX=TYPE`: sets the format of tensors whose GGUF name matches.
#[derive(Clone, Debug)]
pub struct Override {
    pattern: Regex,
    format: Format,
}

impl Override {
    /// Parses `REGEX=TYPE`, split at the last `=`.
    ///
    /// # Errors
    /// A text without `=`, an invalid expression, or an unknown type.
    pub fn parse(text: &str) -> Result<Override> {
        let bad = |expected: &str| Error::Option(format!("expected {expected}, found {text}"));
        let (pattern, name) = text.rsplit_once('=').ok_or_else(|| bad("REGEX=TYPE"))?;
        let known: Vec<_> = Format::ALL.iter().map(|f| f.name()).collect();
        let format = Format::from_name(name);
        let format = format.ok_or_else(|| bad(&format!("one of {} after the =", known.join(", "))))?;
        let pattern = Regex::new(pattern).map_err(|_| bad("a regular expression before the ="))?;
        Ok(Override { pattern, format })
    }
}

impl Override {
    /// Sets the format of the tensor with exactly this name.
    pub fn exact(name: &str, format: Format) -> Override {
        let pattern =
            Regex::new(&format!("^{}$", regex::escape(name))).expect("an escaped text is an expression");
        Override { pattern, format }
    }

    /// Whether the rule applies to a quantizable tensor of this name.
    pub fn matches(&self, name: &str) -> bool {
        self.pattern.is_match(name)
    }
}

/// Chooses every tensor's format by the mix and then by the overrides in order.
///
/// # Errors
/// An override that matches no quantizable tensor, or whose blocks do not divide the rows.
pub fn plan(specs: Vec<TensorSpec>, rules: &MixRules, overrides: &[Override]) -> Result<Vec<Planned>> {
    let mut hits = vec![false; overrides.len()];
    let mut tensors = Vec::with_capacity(specs.len());
    for TensorSpec { name, shape, parts } in specs {
        let mut format = rules.format(&name, &shape);
        for (rule, hit) in overrides.iter().zip(&mut hits) {
            if quantizable(&name, &shape) && rule.pattern.is_match(&name) {
                *hit = true;
                format = rule.format;
            }
        }
        let rows = shape[1..].iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let row_bytes = format.row_bytes(shape[0]).ok_or_else(|| {
            let expected = format!("rows of whole {}-blocks of {}", format.name(), format.block_len());
            Error::bad("--tensor-type", &name, expected, format_args!("rows of {}", shape[0]))
        })?;
        let bytes = rows.and_then(|n| n.checked_mul(row_bytes));
        let bytes =
            bytes.ok_or_else(|| Error::bad("the plan", &name, "a size below 2^64", "a larger one"))?;
        tensors.push(Planned { name, shape, format, parts, bytes });
    }
    match hits.iter().position(|hit| !hit) {
        Some(i) => {
            let pattern = &overrides[i].pattern;
            Err(Error::bad(
                "--tensor-type",
                pattern,
                "a pattern of some quantizable tensor's name",
                "no match",
            ))
        }
        None => Ok(tensors),
    }
}

/// Checks a plan against the input and returns the number of input tensors.
///
/// # Errors
/// An input tensor that is missing, unused, of another shape or of an unknown type.
pub fn check(tensors: &[Planned], source: &Source) -> Result<usize> {
    let mut used = BTreeSet::new();
    let mut missing = Vec::new();
    for part in tensors.iter().flat_map(|t| &t.parts) {
        let Some(tensor) = source.tensors.get(&part.source) else {
            missing.push(part.source.as_str());
            continue;
        };
        if used.insert(part.source.as_str()) {
            check_tensor(part, tensor, source)?;
            used.extend(scale_name(part, tensor, source)?);
        }
    }
    missing.dedup();
    if !missing.is_empty() {
        let expected = format!("{} tensors that the config implies", used.len() + missing.len());
        return Err(Error::bad(&source.listing, missing[0], expected, count_of(missing.len(), "missing")));
    }
    let left: Vec<_> = source.tensors.keys().filter(|name| !used.contains(name.as_str())).collect();
    match left.first() {
        Some(name) => {
            let expected = "only tensors that the config implies";
            Err(Error::bad(&source.listing, name, expected, count_of(left.len(), "unknown")))
        }
        None => Ok(used.len()),
    }
}

fn count_of(n: usize, how: &str) -> String {
    if n == 1 { format!("this one {how}") } else { format!("this and {} others {how}", n - 1) }
}

fn check_tensor(part: &RowRange, tensor: &Tensor, source: &Source) -> Result<()> {
    let without_ones = |dims: &[u64]| dims.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
    if tensor.coding == Coding::Unread {
        return Ok(());
    }
    let path = source.path_of(tensor);
    if without_ones(&part.dims) != without_ones(&tensor.shape) {
        let (expected, found) = (format!("{:?}", part.dims), format!("{:?}", tensor.shape));
        return Err(Error::bad(path, &part.source, expected, found));
    }
    match &tensor.coding {
        Coding::Other(name) => Err(Error::bad(path, &part.source, "BF16, F16, F32 or F8_E4M3", name)),
        _ => Ok(()),
    }
}

/// The name of the tensor that holds an FP8 tensor's scales.
pub(crate) fn scale_name<'a>(
    part: &RowRange,
    tensor: &Tensor,
    source: &'a Source,
) -> Result<Option<&'a str>> {
    if tensor.coding != Coding::F8E4M3 {
        return Ok(None);
    }
    let names = [format!("{}_scale_inv", part.source), format!("{}_scale", part.source)];
    let found = names.iter().find_map(|name| source.tensors.get_key_value(name));
    let (name, _) = found.ok_or_else(|| {
        Error::bad(source.path_of(tensor), &part.source, format!("scales in {}", names[0]), "none")
    })?;
    Ok(Some(name))
}

/// Reads an FP8 tensor's scales: one, one per row, or one per block. None for other encodings.
///
/// # Errors
/// Scales of another shape or type, or that are not finite.
pub fn scales(part: &RowRange, tensor: &Tensor, source: &Source, block: [u64; 2]) -> Result<Option<Scales>> {
    let Some(name) = scale_name(part, tensor, source)? else { return Ok(None) };
    let stored = &source.tensors[name];
    let (cols, rows) = (part.cols(), part.dims.iter().product::<u64>() / part.cols());
    let count: u64 = stored.shape.iter().product();
    let blocks = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
    let tile = match stored.shape[..] {
        _ if count == 1 => [rows, cols],
        [a, b] if name.ends_with("_inv") && [a, b] == blocks => block,
        [a] | [a, 1] if name.ends_with("_scale") && a == rows => [1, cols],
        _ => {
            let found = format!("{:?}", stored.shape);
            return Err(Error::bad(source.path_of(stored), name, format!("{blocks:?} block scales"), found));
        }
    };
    let bytes = source.rows(stored, count, 0..1, |bytes| vec![0; bytes])?;
    let values: Vec<f32> = match stored.coding {
        Coding::Blocks(Format::F32) => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Coding::Blocks(Format::BF16) => {
            bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        ref other => {
            return Err(Error::bad(
                source.path_of(stored),
                name,
                "scales in F32 or BF16",
                format!("{other:?}"),
            ));
        }
    };
    match values.iter().position(|x| !x.is_finite()) {
        Some(i) => Err(Error::bad(
            source.path_of(stored),
            name,
            "finite scales",
            format_args!("{} at {i}", values[i]),
        )),
        None => Ok(Some(Scales { values, tile, cols })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CheckpointConfig;
    use crate::mix::Mix;
    use crate::names::tensor_specs;

    fn official(mix: &str, overrides: &[&str]) -> Result<Vec<Planned>> {
        let config = CheckpointConfig::parse("c", crate::config::tests::OFFICIAL.as_bytes())?;
        let overrides = overrides.iter().map(|text| Override::parse(text)).collect::<Result<Vec<_>>>()?;
        let specs = tensor_specs(&config);
        let rules = MixRules::new(Mix::from_name(mix)?, &specs, config.layers(), false);
        plan(specs, &rules, &overrides)
    }

    fn unread(tensors: &[Planned]) -> Source {
        let none = Tensor { shape: vec![], coding: Coding::Unread, file: 0, offset: 0 };
        let names = tensors.iter().flat_map(|t| &t.parts).map(|p| (p.source.clone(), none.clone()));
        Source { tensors: names.collect(), listing: "i".into(), ..Source::default() }
    }

    #[test]
    fn sizes_of_the_real_model_are_near_the_published_files() {
        let gb = |mix| official(mix, &[]).unwrap().iter().map(|t| t.bytes).sum::<u64>() as f64 / 1e9;
        assert_eq!(official("BF16", &[]).unwrap().len(), 610);
        for (mix, published) in [("Q4_K_M", 29.7), ("Q5_K_M", 34.9), ("IQ4_XS", 26.3), ("MXFP4_MOE", 27.2)] {
            assert!((gb(mix) / published - 1.0).abs() < 0.02, "{mix} {}", gb(mix));
        }
    }

    #[test]
    fn overrides() {
        let chosen = official("Q4_K_M", &["ffn_.*_exps=Q3_K", r"blk\.1\.ffn_up_exps=q2_k"]).unwrap();
        let format = |name: &str| chosen.iter().find(|t| t.name == name).unwrap().format;
        assert_eq!(format("blk.1.ffn_up_exps.weight"), Format::Q2_K);
        assert_eq!(format("blk.2.ffn_up_exps.weight"), Format::Q3_K);
        let refused =
            |rule, message: &str| assert_eq!(official("Q8_0", &[rule]).unwrap_err().to_string(), message);
        refused("x", "expected REGEX=TYPE, found x");
        refused("(=Q8_0", "expected a regular expression before the =, found (=Q8_0");
        refused(
            "attn_norm=Q8_0",
            "--tensor-type: attn_norm: expected a pattern of some quantizable tensor's name, found no match",
        );
        refused(
            "ssm_f_b=Q4_K",
            "--tensor-type: blk.0.ssm_f_b.weight: expected rows of whole Q4_K-blocks of 256, found rows of 128",
        );
    }

    #[test]
    fn missing_and_unknown_tensors_are_named() {
        let tensors = official("Q8_0", &[]).unwrap();
        let mut source = unread(&tensors);
        assert_eq!(check(&tensors, &source).unwrap(), 20493);
        let none = source.tensors.remove("lm_head.weight").unwrap();
        let message = check(&tensors, &source).unwrap_err().to_string();
        assert_eq!(
            message,
            "i: lm_head.weight: expected 20493 tensors that the config implies, found this one missing"
        );
        source.tensors.extend(["lm_head.weight", "a", "b"].map(|name| (name.to_owned(), none.clone())));
        let message = check(&tensors, &source).unwrap_err().to_string();
        assert_eq!(
            message,
            "i: a: expected only tensors that the config implies, found this and 1 others unknown"
        );
    }
}
