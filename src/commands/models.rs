//! `kimi models`: lists, locates and removes downloaded models.

use crate::commands::pull::fit_text;
use crate::commands::pull::resolve::find_cached;
use crate::hub::cache::{CachedModel, RepoCache, converted_models, repositories};
use crate::hub::settings::HubSettings;
use crate::hub::spec::ModelSpec;
use crate::io::confirm::{can_ask, confirm};
use crate::io::output::{Output, tell};
use crate::io::units::format_size;
use crate::runtime::model_fit::{FreeMemory, needed_by_file};
use anyhow::{Context as _, Result, bail};
use models::gguf::read::Gguf;
use serde_json::json;
use std::io::Write;

/// The command-line arguments of `kimi models`.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    action: Option<ModelsAction>,
    /// Print one JSON array instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum ModelsAction {
    /// List downloaded models: name, size, whether they fit this machine, path
    List,
    /// Print the path of a model's file
    Path {
        /// Name of the model
        #[arg(value_name = "USER/REPO[:TYPE]")]
        name: String,
    },
    /// Delete a model and the blobs that no other revision uses
    Remove {
        /// Name of the model; without a type, all types of the repository
        #[arg(value_name = "USER/REPO[:TYPE]")]
        name: String,
        /// Delete without asking
        #[arg(short, long)]
        yes: bool,
    },
}

/// Runs the action; lists by default.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let settings = HubSettings::from_env()?;
    match &args.action {
        None | Some(ModelsAction::List) => list(&settings, args.json),
        Some(ModelsAction::Path { name }) => {
            let spec = ModelSpec::parse(name)?;
            let model = find_cached(&settings, &spec).with_context(|| absent(&spec, &settings))?;
            Ok(writeln!(Output::lock(), "{}", model.path().display())?)
        }
        Some(ModelsAction::Remove { name, yes }) => remove(&settings, &ModelSpec::parse(name)?, *yes),
    }
}

/// All cached models, by repository.
fn cached(settings: &HubSettings) -> Vec<CachedModel> {
    let mut found: Vec<_> = repositories(&settings.cache).iter().flat_map(|repo| repo.models(None)).collect();
    found.extend(settings.converted.as_deref().map(converted_models).unwrap_or_default());
    found.sort_by(|a, b| a.repo.cmp(&b.repo));
    found
}

fn list(settings: &HubSettings, as_json: bool) -> Result<()> {
    let (found, memory) = (cached(settings), FreeMemory::detect());
    let mut out = Output::lock();
    let rows: Vec<(String, u64, String, String)> = found
        .iter()
        .map(|model| {
            let (path, bytes) = (model.path(), model.variant.bytes());
            (model.name(), bytes, state(model, &memory), path.display().to_string())
        })
        .collect();
    if as_json {
        let row = |(name, bytes, state, path): &(String, u64, String, String)| json!({ "name": name, "bytes": bytes, "state": state, "path": path });
        let rows: Vec<_> = rows.iter().map(row).collect();
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?);
    }
    if rows.is_empty() {
        tell(&format!("no models in {}; `kimi pull USER/REPO` downloads one", settings.cache.display()));
        return Ok(());
    }
    let width = |text: fn(&(String, u64, String, String)) -> &str| {
        rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0)
    };
    let (names, states) = (width(|row| &row.0), width(|row| &row.2));
    for (name, bytes, state, path) in &rows {
        out.say_line(&format!("{name:<names$}  {:>10}  {state:<states$}  {path}", format_size(*bytes)))?;
    }
    Ok(())
}

/// Describes whether a model runs on this machine.
fn state(model: &CachedModel, memory: &FreeMemory) -> String {
    match Gguf::open(model.path()) {
        Ok(file) => needed_by_file(&file).map_or("not supported".to_owned(), |bytes| fit_text(bytes, memory)),
        Err(_) => "cannot be read".to_owned(),
    }
}

fn absent(spec: &ModelSpec, settings: &HubSettings) -> String {
    format!("{spec}: not in the cache {}; `kimi models` lists what is", settings.cache.display())
}

fn remove(settings: &HubSettings, spec: &ModelSpec, yes: bool) -> Result<()> {
    let mut models = cached(settings);
    models.retain(|model| {
        model.repo == spec.repo && spec.kind.as_ref().is_none_or(|kind| model.variant.is(kind))
    });
    if models.is_empty() {
        bail!("{}", absent(spec, settings));
    }
    for model in &models {
        tell(&format!(
            "{}  {}  {}",
            model.name(),
            format_size(model.variant.bytes()),
            model.path().display()
        ));
    }
    if !yes {
        if !can_ask() {
            bail!(
                "{spec}: expected a terminal to confirm the deletion, found none; --yes deletes without asking"
            );
        }
        if !confirm("Delete?")? {
            bail!("{spec}: not deleted");
        }
    }
    let mut freed = 0;
    for model in &models {
        freed += RepoCache::new(&settings.cache, &model.repo).remove(model)?;
    }
    tell(&format!("{} freed", format_size(freed)));
    Ok(())
}
