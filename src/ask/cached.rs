//! `ask --list` and `ask --forget`: the files in the prefix cache on disk, and their removal. No model is loaded.

use super::AskArgs;
use crate::document_qa::eta::duration;
use crate::io::output::{printable, tell};
use crate::io::units::{counted, format_size, grouped};
use crate::prefix_cache::catalog::{self, CachedDocuments};
use crate::prefix_cache::disk_index::Folder;
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, absolute};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Prints the files in the prefix cache, or removes those that `--forget` names.
pub(super) fn run(args: &AskArgs) -> Result<()> {
    let dir = args.engine.options().store.dir().context("no cache directory: set --cache-dir, or HOME")?;
    let folder = Folder { dir, budget: u64::MAX };
    let all = catalog::list(&folder).with_context(|| folder.dir.display().to_string())?;
    if args.list {
        if all.is_empty() {
            tell(&format!("no files are cached in {}", printable(&folder.dir.display().to_string())));
        }
        all.iter().for_each(|cached| println!("{}", line(cached, SystemTime::now())));
        return Ok(());
    }
    for file in &args.forget {
        let found: Vec<CachedDocuments> =
            all.iter().filter(|cached| has_file(cached, file)).cloned().collect();
        ensure!(!found.is_empty(), "{}: not in the prefix cache; --list shows what is", file.display());
        catalog::forget(&folder, &found).with_context(|| folder.dir.display().to_string())?;
        let bytes = found.iter().map(|cached| cached.bytes).sum();
        println!("{}: {} freed", printable(&file.display().to_string()), format_size(bytes));
    }
    Ok(())
}

/// `report.txt: 1,704 tokens cached, 12.3 MiB, read 3 min ago (kimi-demo)`
fn line(cached: &CachedDocuments, now: SystemTime) -> String {
    let prefix = &cached.prefix;
    let names = match &prefix.names[..] {
        [one] => printable(one),
        [first, ..] => format!("{} and {} more", printable(first), counted(prefix.names.len() - 1, "file")),
        [] => String::new(),
    };
    let (cached_tokens, all) = (cached.cached_tokens, prefix.tokens.len());
    let of = if cached_tokens == all { String::new() } else { format!(" of {}", grouped(all)) };
    let model = Path::new(&prefix.model).file_name().unwrap_or_default().to_string_lossy();
    let age = now.duration_since(UNIX_EPOCH + Duration::from_secs(prefix.read_at)).unwrap_or_default();
    format!(
        "{names}: {}{of} tokens cached, {}, read {} ago ({})",
        grouped(cached_tokens),
        format_size(cached.bytes),
        duration(age),
        printable(&model)
    )
}

/// Whether a path names one of the files, or a directory that has one.
fn has_file(cached: &CachedDocuments, path: &Path) -> bool {
    let whole = absolute(path).unwrap_or_else(|_| path.to_owned());
    cached.prefix.names.iter().any(|name| Path::new(name) == path || Path::new(name).starts_with(&whole))
}
