//! Prints a summary of an importance matrix.

use super::InspectArgs;
use crate::io::units::{counted, grouped};
use anyhow::Result;
use convert::Imatrix;
use convert::imatrix::ImatrixEntry;
use models::visible::one_line;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Maximum bytes of a name from the file.
const MAX_NAME: usize = 200;

/// Prints the matrix in a file.
pub(super) fn print(args: &InspectArgs, path: &Path, out: &mut impl Write) -> Result<()> {
    let imatrix = Imatrix::open(path)?;
    let unreached = imatrix.importance().1;
    let shown = |name: &str| one_line(name, MAX_NAME);
    let datasets: Vec<String> = imatrix.datasets.iter().map(|name| shown(name)).collect();
    if args.json {
        let report = json!({
            "files": [path],
            "importance_matrix": {
                "tensors": imatrix.entries.len(),
                "datasets": datasets,
                "chunk_count": imatrix.chunk_count,
                "chunk_size": imatrix.chunk_size,
                "expert_matrices": unreached.of,
                "unreached_expert_matrices": unreached.experts,
            },
        });
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?);
    }
    writeln!(out, "{}", shown(&path.display().to_string()))?;
    writeln!(out, "importance matrix of {}", counted(imatrix.entries.len(), "tensor"))?;
    if let (Some(count), size) = (imatrix.chunk_count, imatrix.chunk_size) {
        let of = size.map_or(String::new(), |size| format!(" of {size} tokens"));
        writeln!(out, "from {}{of} of {}", counted(count as usize, "window"), datasets.join(", "))?;
    }
    if unreached.experts > 0 {
        writeln!(out, "no token reached {} of {} matrices of experts", unreached.experts, unreached.of)?;
    }
    if args.tensors {
        imatrix.entries.iter().try_for_each(|(name, entry)| print_entry(&shown(name), entry, out))?;
    }
    Ok(())
}

fn print_entry(name: &str, entry: &ImatrixEntry, out: &mut impl Write) -> Result<()> {
    let matrices = entry.counts.len();
    let most = entry.counts.iter().copied().fold(0.0, f32::max);
    let least = entry.counts.iter().copied().fold(f32::INFINITY, f32::min);
    let tokens = match matrices {
        1 => grouped(most),
        _ => format!("{} to {}", grouped(least), grouped(most)),
    };
    let cols = entry.sums.len() / matrices;
    Ok(writeln!(out, "  {name:<36}  {cols:>6} columns x {matrices:<4}  {tokens} tokens")?)
}
