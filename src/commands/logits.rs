//! `kimi logits`: writes the logits of all positions to a NumPy file, for comparison with other implementations.

use crate::args::EngineArgs;
use crate::io::output::{partial_path, tell};
use crate::io::prompt::PromptArgs;
use crate::runtime::handle::EngineHandle;
use anyhow::{Context as _, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The command-line arguments of `kimi logits`.
#[derive(Clone, Debug, clap::Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Output file: f32, [tokens, vocab]
    #[arg(short, long, value_name = "FILE.npy")]
    output: PathBuf,
}

/// Prefills the prompt in batches and writes the logits of each batch.
pub fn run(args: &LogitsArgs) -> Result<()> {
    let engine = EngineHandle::open(&args.engine.options().without_snapshots())?;
    let ids = engine.raw_ids(&args.prompt.read()?)?;
    engine.check(&ids)?;
    let partial = partial_path(&args.output);
    write(&engine, &ids, &partial)
        .and_then(|()| Ok(std::fs::rename(&partial, &args.output)?))
        .inspect_err(|_| drop(std::fs::remove_file(&partial)))
        .with_context(|| args.output.display().to_string())?;
    tell(&format!("{}: [{}, {}] f32", args.output.display(), ids.len(), engine.config.vocab));
    Ok(())
}

fn write(engine: &EngineHandle, ids: &[u32], path: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&npy_header(ids.len(), engine.config.vocab))?;
    engine.logits_from(ids, 0, &mut |rows| {
        Ok(rows.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?)
    })?;
    Ok(out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?)
}

/// Returns a header of NumPy's format 1.0: magic, header length, and a Python literal padded to align the data to 64
/// bytes.
fn npy_header(rows: usize, cols: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let padding = (64 - (10 + text.len() + 1) % 64) % 64;
    text.extend(std::iter::repeat_n(' ', padding));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header
}

#[cfg(test)]
mod tests {
    #[test]
    fn npy_header_is_aligned_and_ends_its_line() {
        for rows in [1, 12, 123_456_789] {
            let header = super::npy_header(rows, 163_840);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(header.last(), Some(&b'\n'));
            assert!(String::from_utf8_lossy(&header).contains(&format!("({rows}, 163840)")));
        }
    }
}
