//! Replaces the name of a model on Hugging Face, which `-m` may give in every command, by the path of its file.

use super::{CONNECTIONS, Hub, choose, free_disk};
use crate::hub::cache::{CachedModel, RepoCache, converted_models};
use crate::hub::listing::RepoListing;
use crate::hub::settings::HubSettings;
use crate::hub::spec::ModelSpec;
use crate::hub::variants::variants;
use crate::io::confirm::{can_ask, confirm};
use crate::io::output::tell;
use crate::io::units::format_size;
use crate::runtime::model_fit::{Fit, FreeMemory, needed};
use anyhow::{Result, bail};
use std::path::PathBuf;

/// Replaces a name by a path. An existing path, and a name that is none of a repository, stay. A model that is not cached is
/// downloaded if the user agrees or `yes` is set.
///
/// # Errors
/// The model is not cached and the user does not agree, or the download fails.
pub fn resolve(model: &mut Option<PathBuf>, yes: bool) -> Result<()> {
    let Some(name) = model.as_ref().filter(|path| !path.exists()).and_then(|path| path.to_str()) else {
        return Ok(());
    };
    if !ModelSpec::is_meant_by(name) {
        return Ok(());
    }
    let (spec, settings) = (ModelSpec::parse(name)?, HubSettings::from_env()?);
    let path = match find_cached(&settings, &spec) {
        Some(cached) => cached.path(),
        None => fetch(spec, settings, yes)?,
    };
    *model = Some(path);
    Ok(())
}

fn fetch(spec: ModelSpec, settings: HubSettings, yes: bool) -> Result<PathBuf> {
    let dir = settings.cache.display().to_string();
    if settings.offline {
        bail!("{spec}: expected it in the cache {dir}, as HF_HUB_OFFLINE is set, found nothing");
    }
    if !yes && !can_ask() {
        bail!("{spec}: no such file, and not in the cache {dir}; `kimi pull {spec}` or --yes downloads it");
    }
    let hub = Hub::new(settings, CONNECTIONS);
    let listing = RepoListing::request(&hub.client, &spec)?;
    let found = variants(&listing.files);
    if found.is_empty() {
        bail!(
            "{spec}: expected GGUF files, found none; `kimi pull {} --type Q4_K_M` converts a checkpoint",
            spec.repo
        );
    }
    let chosen = hub.choose(&spec, &listing, &found)?;
    tell(&format!("{}: {}", spec.repo, chosen.reason));
    let size = format_size(chosen.variant.bytes());
    let free = free_disk(&hub.settings.cache);
    if !yes && !confirm(&format!("Download {size} to {dir} ({free} free)?"))? {
        bail!("{spec}: not downloaded");
    }
    Ok(hub.pull(&spec, &listing, &chosen.variant.files)?[0].clone())
}

/// The cached model that a name means. Without a type it is the best one that fits.
pub fn find_cached(settings: &HubSettings, spec: &ModelSpec) -> Option<CachedModel> {
    let mut models = RepoCache::new(&settings.cache, &spec.repo).models(Some(&spec.revision));
    if models.is_empty() {
        models = RepoCache::new(&settings.cache, &spec.repo).models(None);
    }
    let converted = settings.converted.as_deref().map(converted_models).unwrap_or_default();
    models.extend(converted.into_iter().filter(|model| model.repo == spec.repo));
    if let Some(kind) = &spec.kind {
        let kinds: Vec<_> = models.iter().map(|model| model.variant.clone()).collect();
        let wanted = choose::matching(kind, &kinds).first().map(|v| (*v).clone())?;
        return models.into_iter().find(|model| model.variant == wanted);
    }
    models.retain(|model| model.variant.usable().is_ok());
    models.sort_by_key(|model| model.variant.bytes());
    if models.len() < 2 {
        return models.pop();
    }
    let memory = FreeMemory::detect();
    let fits = |model: &CachedModel| memory.fit(needed(model.variant.bytes())) != Fit::No;
    let at = models.iter().rposition(fits).unwrap_or(0);
    Some(models.swap_remove(at))
}
