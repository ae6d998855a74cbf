//! Downloads a checkpoint (safetensors) and converts it to a GGUF file: all shards first, or, where the disk does not hold
//! both, one after another ([`super::streamed`]).

use super::Hub;
use super::streamed::StreamedShards;
use super::work_dir::WorkDir;
use crate::commands::convert::convert_with_bar;
use crate::hub::cache::{RepoCache, converted_dir};
use crate::hub::listing::{RepoFile, RepoListing};
use crate::hub::pull::{free_space, missing_bytes};
use crate::hub::spec::ModelSpec;
use crate::io::output::tell;
use crate::io::units::format_size;
use anyhow::{Context as _, Result, anyhow, bail};
use convert::{Mix, Options};
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

fn texts(listing: &RepoListing) -> Vec<RepoFile> {
    let is_text = |file: &&RepoFile| TEXTS.iter().any(|end| file.path.ends_with(end));
    listing.files.iter().filter(|file| is_top_level(file)).filter(is_text).cloned().collect()
}

/// Downloads and converts a checkpoint; returns the path of the GGUF file. With `stream`, shards are never all on the disk.
///
/// # Errors
/// The repository is no checkpoint, no type is given, or download or conversion fail.
pub fn pull(hub: &Hub, spec: &ModelSpec, listing: &RepoListing, stream: bool) -> Result<PathBuf> {
    let (repo, shards) = (&spec.repo, shards(listing));
    if shards.is_empty() || !listing.files.iter().any(|file| file.path == "config.json") {
        bail!("{repo}: expected GGUF files or a checkpoint (config.json, *.safetensors), found neither");
    }
    let bytes = shards.iter().fold(0, |sum: u64, file| sum.saturating_add(file.size));
    let Some(kind) = &spec.kind else {
        let size = format_size(bytes);
        bail!("{repo}: this is a checkpoint of {size}; add --type Q4_K_M to download and convert it");
    };
    let mix = Mix::from_name(kind).map_err(|e| anyhow!("--type {kind}: {e}"))?;
    let root = hub.settings.converted.as_deref().context("HOME: expected a directory, found none")?;
    let dir = converted_dir(root, repo);
    let output = dir.join(format!("{}-{}.gguf", repo.name(), mix.name()));
    if output.exists() {
        return Ok(output);
    }
    let (size, name, shown) = (format_size(bytes), mix.name(), dir.display());
    tell(&format!("{repo}: checkpoint of {size}, converted to {name} in {shown}"));
    let work = WorkDir::open(&dir, repo.name())?;
    let options = Options {
        input: work.input.clone(),
        output: Some(output.clone()),
        mix,
        overrides: Vec::new(),
        importance: None,
        refine: false,
        force: false,
        threads: None,
    };
    let shards: Vec<RepoFile> = shards.into_iter().cloned().collect();
    let texts = texts(listing);
    if stream || !holds_both(hub, spec, &shards, &dir) {
        let paths = hub.pull(spec, listing, &texts)?;
        work.link_all(&texts, &paths)?;
        StreamedShards { hub, spec, listing, work: &work, shards }.convert(&options)?;
        work.remove();
        return Ok(output);
    }
    let files = [texts, shards].concat();
    let paths = hub.pull(spec, listing, &files)?;
    work.link_all(&files, &paths)?;
    convert_with_bar(&options)?;
    work.remove();
    let stays = hub.settings.cache.join(repo.folder());
    tell(&format!(
        "the checkpoint of {size} stays in {}; delete that directory to free the space",
        stays.display()
    ));
    Ok(output)
}

/// Whether the disks have space for the shards and for a file of the same size, which is more than any quantized one.
fn holds_both(hub: &Hub, spec: &ModelSpec, shards: &[RepoFile], dir: &Path) -> bool {
    let missing = missing_bytes(&RepoCache::new(&hub.settings.cache, &spec.repo), shards);
    let output = shards.iter().fold(0, |sum: u64, file| sum.saturating_add(file.size));
    let free = [&hub.settings.cache, dir].map(|dir| free_space(dir).unwrap_or(u64::MAX));
    free[0] >= missing && free[1] >= output && free[0].min(free[1]) >= missing.saturating_add(output)
}
