//! `kimi pull`: downloads a model from Hugging Face into its cache, and converts checkpoints.
//!
//! [`choose`] selects the type, [`checkpoint`] converts, and [`resolve`] finds or downloads the model that `-m` names in other
//! commands. [`crate::hub`] does the downloading.

mod checkpoint;
mod choose;
pub mod resolve;
mod streamed;
mod work_dir;

use crate::hub::cache::RepoCache;
use crate::hub::client::HubClient;
use crate::hub::listing::{RepoFile, RepoListing};
use crate::hub::progress::PullProgress;
use crate::hub::pull::{Pull, free_space};
use crate::hub::settings::HubSettings;
use crate::hub::spec::{ModelSpec, is_revision};
use crate::hub::variants::{GgufVariant, Unusable, variants};
use crate::io::output::{Output, tell};
use crate::io::progress::TransferBar;
use crate::io::units::{format_size, grouped};
use crate::runtime::model_fit::{Fit, FreeMemory, needed};
use anyhow::{Result, bail};
use choose::choose;
use models::architecture::ARCHITECTURES;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Parallel connections per file, unless the user gives a number.
const CONNECTIONS: u8 = 8;

/// The command-line arguments of `kimi pull`.
#[derive(Clone, Debug, clap::Args)]
pub struct PullArgs {
    /// Repository on Hugging Face: USER/REPO[:TYPE], hf.co/USER/REPO[:TYPE], or the address of its page
    #[arg(value_name = "USER/REPO[:TYPE]")]
    name: String,
    /// Quantization type (default: the best that fits this machine); a checkpoint is converted to it
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// List the types with their sizes and whether they fit this machine; download nothing
    #[arg(long)]
    list: bool,
    /// Branch, tag or commit (default: main)
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Delete each shard of a checkpoint once it is converted (default: if the disk does not hold both)
    #[arg(long)]
    stream: bool,
    /// Parallel connections per file
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS, value_parser = clap::value_parser!(u8).range(1..=32))]
    connections: u8,
}

/// Downloads, or lists types. The path of the model file goes to standard output.
pub fn run(args: &PullArgs) -> Result<()> {
    let mut spec = ModelSpec::parse(&args.name)?;
    if let Some(revision) = &args.revision {
        if !is_revision(revision) {
            bail!("--revision: expected a branch, tag or commit, found {revision:?}");
        }
        spec.revision.clone_from(revision);
    }
    if let (Some(kind), Some(named)) = (&args.kind, &spec.kind) {
        bail!("--type {kind}: expected one type, found {named} in the name too");
    }
    spec.kind = spec.kind.or_else(|| args.kind.clone());
    let settings = HubSettings::from_env()?;
    if settings.offline {
        return print_cached(&settings, &spec);
    }
    let hub = Hub::new(settings, args.connections);
    let listing = RepoListing::request(&hub.client, &spec)?;
    let found = variants(&listing.files);
    if args.list {
        return print_list(&hub, &spec, &listing, &found);
    }
    let path = if found.is_empty() {
        checkpoint::pull(&hub, &spec, &listing, args.stream)?
    } else {
        let chosen = hub.choose(&spec, &listing, &found)?;
        tell(&format!("{}: {}", spec.repo, chosen.reason));
        let path = hub.pull(&spec, &listing, &chosen.variant.files)?[0].clone();
        tell(&format!("run it with: kimi chat -m {}:{}", spec.repo, chosen.variant.kind));
        path
    };
    writeln!(Output::lock(), "{}", path.display())?;
    Ok(())
}

/// Prints the path of a cached model; there is no network.
fn print_cached(settings: &HubSettings, spec: &ModelSpec) -> Result<()> {
    let Some(model) = resolve::find_cached(settings, spec) else {
        let dir = settings.cache.display();
        bail!("{spec}: expected it in the cache {dir}, as HF_HUB_OFFLINE is set, found nothing");
    };
    writeln!(Output::lock(), "{}", model.path().display())?;
    Ok(())
}

/// The hub, the settings and a progress bar.
pub struct Hub {
    client: HubClient,
    settings: HubSettings,
    bar: Arc<TransferBar>,
    connections: u8,
}

impl Hub {
    pub fn new(settings: HubSettings, connections: u8) -> Hub {
        let bar = Arc::new(TransferBar::default());
        let shown = bar.clone();
        Hub { client: HubClient::new(&settings, move |line| shown.note(line)), settings, bar, connections }
    }

    /// Selects the type that the name gives, or the best that fits.
    fn choose<'a>(
        &self,
        spec: &ModelSpec,
        listing: &RepoListing,
        found: &'a [GgufVariant],
    ) -> Result<choose::TypeChoice<'a>> {
        if let Some(other) = listing.architecture.as_deref().filter(|name| !ARCHITECTURES.contains(name)) {
            let other = models::visible::one_line(other, 100);
            let expected = ARCHITECTURES.join(" or ");
            bail!("{}: architecture: expected {expected}, found {other}", spec.repo);
        }
        choose(spec, found, &FreeMemory::detect(), free_space(&self.settings.cache))
    }

    /// Downloads files with a progress bar; returns their paths.
    fn pull(&self, spec: &ModelSpec, listing: &RepoListing, files: &[RepoFile]) -> Result<Vec<PathBuf>> {
        self.bar.start(files.iter().fold(0, |sum, file| sum.saturating_add(file.size)));
        let (client, settings, connections) = (&self.client, &self.settings, usize::from(self.connections));
        let pull = Pull { client, settings, spec, listing, connections, progress: self };
        let result = pull.run(files);
        self.bar.finish();
        result
    }
}

impl PullProgress for Hub {
    fn resumed(&self, bytes: u64) {
        self.bar.skip(bytes);
    }

    fn received(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn lost(&self, bytes: u64) {
        self.bar.dec(bytes);
    }
}

/// Prints a table of the types of a repository.
fn print_list(hub: &Hub, spec: &ModelSpec, listing: &RepoListing, found: &[GgufVariant]) -> Result<()> {
    let mut out = Output::lock();
    if found.is_empty() {
        let shards = checkpoint::shards(listing);
        if shards.is_empty() {
            bail!("{}: expected GGUF files or a checkpoint, found neither", spec.repo);
        }
        let bytes = shards.iter().fold(0, |sum: u64, file| sum.saturating_add(file.size));
        let line = format!("checkpoint of {}: --type Q4_K_M downloads and converts it", format_size(bytes));
        return Ok(writeln!(out, "{line}")?);
    }
    let memory = FreeMemory::detect();
    let cache = RepoCache::new(&hub.settings.cache, &spec.repo);
    let cached = cache.models(Some(&spec.revision));
    let width = found.iter().map(|v| v.kind.chars().count()).max().unwrap_or(0).max(4);
    writeln!(out, "{:<width$}  {:>10}  {:>5}  on this machine", "type", "size", "files")?;
    for variant in found {
        let mut state = state(variant, &memory);
        if cached.iter().any(|model| model.variant.kind == variant.kind) {
            state += ", downloaded";
        }
        let (kind, files) = (&variant.kind, variant.files.len());
        writeln!(out, "{kind:<width$}  {:>10}  {files:>5}  {state}", format_size(variant.bytes()))?;
    }
    let context = grouped(crate::runtime::model_fit::CONTEXT);
    tell(&format!("{}; a context of {context} tokens is included", memory.describe()));
    Ok(())
}

/// Describes whether a type runs on this machine.
fn state(variant: &GgufVariant, memory: &FreeMemory) -> String {
    match variant.usable() {
        Err(Unusable::Format) => return "not supported".to_owned(),
        Err(Unusable::Parts) => return "incomplete".to_owned(),
        Ok(()) => {}
    }
    fit_text(needed(variant.bytes()), memory)
}

/// Describes whether a model that needs `bytes` fits.
pub fn fit_text(bytes: u64, memory: &FreeMemory) -> String {
    match memory.fit(bytes) {
        Fit::Ram => "fits".to_owned(),
        Fit::Gpu => "fits with the GPU".to_owned(),
        Fit::No => format!("needs {}", format_size(bytes)),
        Fit::Unknown => format!("needs {} (free memory is unknown)", format_size(bytes)),
    }
}

/// The free bytes of the disk that holds the cache.
fn free_disk(dir: &Path) -> String {
    free_space(dir).map_or("unknown".to_owned(), format_size)
}
