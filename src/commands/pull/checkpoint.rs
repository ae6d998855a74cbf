//! Downloads a checkpoint (safetensors) and converts it to a GGUF file.

use super::Hub;
use crate::commands::convert::convert_with_bar;
use crate::hub::cache::converted_dir;
use crate::hub::listing::{RepoFile, RepoListing};
use crate::hub::spec::ModelSpec;
use crate::io::output::tell;
use crate::io::units::format_size;
use anyhow::{Context as _, Result, bail};
use convert::{Mix, Options};
use std::fs;
use std::path::{Path, PathBuf};

/// Extensions of the files of a checkpoint that a conversion reads, besides the shards.
const TEXTS: [&str; 3] = [".json", ".model", ".jinja"];

/// The weight files of a checkpoint.
pub fn shards(listing: &RepoListing) -> Vec<&RepoFile> {
    listing.files.iter().filter(|file| is_top_level(file) && file.path.ends_with(".safetensors")).collect()
}

fn is_top_level(file: &RepoFile) -> bool {
    !file.path.contains('/')
}

fn texts(listing: &RepoListing) -> impl Iterator<Item = &RepoFile> {
    let is_text = |file: &&RepoFile| TEXTS.iter().any(|end| file.path.ends_with(end));
    listing.files.iter().filter(|file| is_top_level(file)).filter(is_text)
}

/// Downloads and converts a checkpoint; returns the path of the GGUF file.
///
/// # Errors
/// The repository is no checkpoint, no type is given, or download or conversion fail.
pub fn pull(hub: &Hub, spec: &ModelSpec, listing: &RepoListing) -> Result<PathBuf> {
    let (repo, shards) = (&spec.repo, shards(listing));
    if shards.is_empty() || !listing.files.iter().any(|file| file.path == "config.json") {
        bail!("{repo}: expected GGUF files or a checkpoint (config.json, *.safetensors), found neither");
    }
    let bytes = shards.iter().fold(0, |sum: u64, file| sum.saturating_add(file.size));
    let Some(kind) = &spec.kind else {
        let size = format_size(bytes);
        bail!("{repo}: this is a checkpoint of {size}; add --type Q4_K_M to download and convert it");
    };
    let mix = Mix::from_name(kind)?;
    let root = hub.settings.converted.as_deref().context("HOME: expected a directory, found none")?;
    let dir = converted_dir(root, repo);
    let output = dir.join(format!("{}-{}.gguf", repo.name(), mix.name()));
    if output.exists() {
        return Ok(output);
    }
    tell(&format!(
        "{repo}: checkpoint of {}, converted to {} in {}",
        format_size(bytes),
        mix.name(),
        dir.display()
    ));
    let files: Vec<RepoFile> = texts(listing).chain(shards.iter().copied()).cloned().collect();
    let paths = hub.pull(spec, listing, &files)?;
    let input = work_dir(&dir, repo.name())?;
    for (file, path) in files.iter().zip(&paths) {
        link(path, &input.join(&file.path))?;
    }
    let overrides = Vec::new();
    convert_with_bar(&Options {
        input: input.clone(),
        output: Some(output.clone()),
        mix,
        overrides,
        force: false,
        threads: None,
    })?;
    let _ = fs::remove_dir_all(input.parent().unwrap_or(&input));
    tell(&format!("the checkpoint stays in {}", hub.settings.cache.join(repo.folder()).display()));
    Ok(output)
}

/// Creates the directory of the files to convert. Its name is the model's.
fn work_dir(dir: &Path, name: &str) -> Result<PathBuf> {
    let input = dir.join("checkpoint").join(name);
    fs::create_dir_all(&input).with_context(|| input.display().to_string())?;
    Ok(input)
}

/// Links a cached file; an existing link is replaced.
fn link(path: &Path, link: &Path) -> Result<()> {
    let _ = fs::remove_file(link);
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(&path, link);
    #[cfg(not(unix))]
    let made = fs::hard_link(&path, link).or_else(|_| fs::copy(&path, link).map(|_| ()));
    made.with_context(|| link.display().to_string())
}
