//! Selects the quantization type to download: the one that the user names, or the best that fits this machine.

use crate::hub::spec::ModelSpec;
use crate::hub::variants::{GgufVariant, Unusable};
use crate::io::units::{format_size, grouped};
use crate::runtime::model_fit::{CONTEXT, Fit, FreeMemory, needed};
use anyhow::{Result, bail};

/// The type for machines whose memory is unknown.
const USUAL_KIND: &str = "Q4_K_M";
/// Types that others of the same size surpass, so that they are never chosen for the user.
const SURPASSED: [&str; 5] = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4_MOE"];

/// The selected type and the reason, in one line.
#[derive(Debug)]
pub struct TypeChoice<'a> {
    pub variant: &'a GgufVariant,
    pub reason: String,
}

/// Selects a type of a repository.
///
/// # Errors
/// The named type is missing, ambiguous or cannot run; no type can run.
pub fn choose<'a>(
    spec: &ModelSpec,
    found: &'a [GgufVariant],
    memory: &FreeMemory,
    disk: Option<u64>,
) -> Result<TypeChoice<'a>> {
    match &spec.kind {
        Some(kind) => named(spec, kind, found, memory),
        None => best(spec, found, memory, disk),
    }
}

fn named<'a>(
    spec: &ModelSpec,
    kind: &str,
    found: &'a [GgufVariant],
    memory: &FreeMemory,
) -> Result<TypeChoice<'a>> {
    let (repo, matches) = (&spec.repo, matching(kind, found));
    let [variant] = matches[..] else {
        if matches.is_empty() {
            let kinds: Vec<&str> = found.iter().map(|v| &*v.kind).collect();
            bail!("{repo}: expected one of {}, found {kind:?}", kinds.join(", "));
        }
        let files: Vec<&str> = matches.iter().map(|v| v.file_name()).collect();
        bail!("{repo}:{kind}: expected one model, found {}; give a file name as the type", files.join(", "));
    };
    check_usable(spec, variant)?;
    let bytes = variant.bytes();
    let mut reason = format!("{}, {}", variant.kind, format_size(bytes));
    if memory.fit(needed(bytes)) == Fit::No {
        let (needed, free) = (format_size(needed(bytes)), memory.describe());
        reason += &format!("; it needs {needed}, found {free}: experts will be read from disk, slowly");
    }
    Ok(TypeChoice { variant, reason })
}

/// The variants that a type or file name means: exact names before those with a prefix.
pub fn matching<'a>(kind: &str, found: &'a [GgufVariant]) -> Vec<&'a GgufVariant> {
    let exact: Vec<&GgufVariant> = found.iter().filter(|v| v.is(kind)).collect();
    if !exact.is_empty() {
        return exact;
    }
    found.iter().filter(|v| v.base_kind().eq_ignore_ascii_case(kind)).collect()
}

fn check_usable(spec: &ModelSpec, variant: &GgufVariant) -> Result<()> {
    match variant.usable() {
        Ok(()) => Ok(()),
        Err(Unusable::Format) => bail!(
            "{}: expected a type that this program runs, found {} (`kimi pull --list {}` lists them)",
            spec.repo,
            variant.kind,
            spec.repo
        ),
        Err(Unusable::Parts) => bail!(
            "{}: expected all parts of {}, found {} of them",
            spec.repo,
            variant.file_name(),
            variant.files.len()
        ),
    }
}

fn best<'a>(
    spec: &ModelSpec,
    found: &'a [GgufVariant],
    memory: &FreeMemory,
    disk: Option<u64>,
) -> Result<TypeChoice<'a>> {
    let usable: Vec<&GgufVariant> = found.iter().filter(|v| v.usable().is_ok()).collect();
    let candidates = candidates(&usable);
    let chosen = |variant: &'a GgufVariant, why: String| TypeChoice {
        reason: format!("{}, {}: {why}", variant.kind, format_size(variant.bytes())),
        variant,
    };
    let (Some(smallest), Some(largest)) = (candidates.first(), candidates.last()) else {
        let kinds: Vec<&str> = found.iter().map(|v| &*v.kind).collect();
        bail!("{}: expected a type that this program runs, found {}", spec.repo, kinds.join(", "));
    };
    let free = memory.describe();
    if candidates.len() == 1 {
        return Ok(chosen(smallest, format!("the only type to choose from ({free})")));
    }
    let fits_disk = |v: &&&GgufVariant| disk.is_none_or(|free| v.bytes() <= free);
    if memory.fit(0) == Fit::Unknown {
        let usual = candidates.iter().find(|v| v.kind == USUAL_KIND).unwrap_or(smallest);
        return Ok(chosen(usual, "the usual type, as the free memory of this machine is unknown".to_owned()));
    }
    let fits = |v: &&&GgufVariant| matches!(memory.fit(needed(v.bytes())), Fit::Ram | Fit::Gpu);
    let Some(best) = candidates.iter().filter(fits).rfind(fits_disk) else {
        let needed = format_size(needed(smallest.bytes()));
        let why = format!(
            "the smallest type, which needs {needed}, found {free}: experts are read from disk, slowly"
        );
        return Ok(chosen(smallest, why));
    };
    let context = grouped(CONTEXT);
    let mut why = format!("the best type that fits {free} with {context} tokens of context");
    if let Some(next) = candidates.iter().find(|v| v.bytes() > best.bytes()) {
        why += &match disk.filter(|free| next.bytes() > *free && fits(&next)) {
            Some(free) => format!(" and {} of free disk", format_size(free)),
            None => format!(" ({} needs {})", next.kind, format_size(needed(next.bytes()))),
        };
    } else if best.kind == largest.kind {
        why = format!("the best type, which fits {free} with {context} tokens of context");
    }
    if memory.fit(needed(best.bytes())) == Fit::Gpu {
        why += "; it needs the GPU";
    }
    Ok(chosen(best, why))
}

/// The types to choose from, the coarsest first: quantized ones, if there are any, without those that others surpass.
fn candidates<'a>(usable: &[&'a GgufVariant]) -> Vec<&'a GgufVariant> {
    let quantized = |v: &&&GgufVariant| v.bits().is_some();
    let current = |v: &&&GgufVariant| quantized(v) && !SURPASSED.contains(&v.base_kind());
    let choices: [Vec<&GgufVariant>; 3] = [
        usable.iter().filter(current).copied().collect(),
        usable.iter().filter(quantized).copied().collect(),
        usable.to_vec(),
    ];
    let mut chosen = choices.into_iter().find(|choice| !choice.is_empty()).unwrap_or_default();
    chosen.sort_by_key(|v| (v.bits().unwrap_or(u32::MAX), v.bytes()));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::listing::RepoFile;
    use crate::hub::variants::variants;

    const GIB: u64 = 1 << 30;

    fn repository() -> Vec<GgufVariant> {
        let sizes = [
            ("NVFP4", 15),
            ("IQ2_M", 16),
            ("Q2_K", 18),
            ("Q4_0", 26),
            ("Q4_K_M", 28),
            ("Q6_K", 38),
            ("Q8_0", 49),
            ("bf16", 92),
        ];
        let file = |(kind, gib): (&str, u64)| RepoFile {
            path: format!("Kimi-{kind}.gguf"),
            size: gib * GIB,
            sha256: None,
            git_id: None,
        };
        variants(&sizes.map(file))
    }

    fn chosen(name: &str, ram: Option<u64>, disk: u64) -> Result<(String, String)> {
        let (spec, found) = (ModelSpec::parse(name).unwrap(), repository());
        let memory = FreeMemory { ram: ram.map(|gib| gib * GIB), gpu: None };
        choose(&spec, &found, &memory, Some(disk * GIB))
            .map(|choice| (choice.variant.kind.clone(), choice.reason))
    }

    fn check(ram: Option<u64>, disk: u64, kind: &str, reason: &str) {
        let (found, why) = chosen("u/r", ram, disk).unwrap();
        assert_eq!(found, kind, "{why}");
        assert!(why.contains(reason), "{why}");
    }

    #[test]
    fn the_best_type_that_fits_is_chosen_with_a_reason() {
        check(Some(34), 500, "Q4_K_M", "the best type that fits 34.00 GiB of free RAM with 32,768 tokens");
        check(Some(34), 500, "Q4_K_M", "(Q6_K needs 38.53 GiB)");
        check(Some(200), 500, "Q8_0", "the best type, which fits 200.00 GiB of free RAM");
        check(Some(200), 40, "Q6_K", "and 40.00 GiB of free disk");
        check(Some(8), 500, "IQ2_M", "the smallest type, which needs 16.53 GiB, found 8.00 GiB of free RAM");
        check(None, 500, "Q4_K_M", "the usual type");
    }

    #[test]
    fn named_types_are_checked() {
        assert_eq!(chosen("u/r:q4_k_m", Some(99), 99).unwrap().0, "Q4_K_M");
        assert_eq!(chosen("u/r:Kimi-Q6_K.gguf", Some(99), 99).unwrap().0, "Q6_K");
        let reason = chosen("u/r:Q8_0", Some(20), 99).unwrap().1;
        assert!(reason.ends_with(
            "it needs 49.53 GiB, found 20.00 GiB of free RAM: experts will be read from disk, slowly"
        ));
        let error = chosen("u/r:NVFP4", Some(99), 99).unwrap_err().to_string();
        assert!(error.starts_with("u/r: expected a type that this program runs, found NVFP4"), "{error}");
        let error = chosen("u/r:Q7", Some(99), 99).unwrap_err().to_string();
        assert_eq!(
            error,
            "u/r: expected one of NVFP4, IQ2_M, Q2_K, Q4_0, Q4_K_M, Q6_K, Q8_0, BF16, found \"Q7\""
        );
    }

    #[test]
    fn ambiguous_types_are_refused() {
        let files = ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"].map(|path| RepoFile {
            path: path.to_owned(),
            size: 1,
            sha256: None,
            git_id: None,
        });
        let (spec, found) = (ModelSpec::parse("u/r:Q4_K_M").unwrap(), variants(&files));
        let memory = FreeMemory { ram: None, gpu: None };
        let error = choose(&spec, &found, &memory, None).unwrap_err().to_string();
        let expected = "u/r:Q4_K_M: expected one model, found a-Q4_K_M.gguf, b-Q4_K_M.gguf; give a file name as the type";
        assert_eq!(error, expected);
    }
}
