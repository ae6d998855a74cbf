//! Extracts the text of a document in a worker process ([`crate::io::worker_process`]): `kimi document-worker`, a hidden
//! command. A program other than `kimi` that uses this crate as a library extracts on a thread, without limits on memory.
//! Next: [`super::pdf`], [`super::word`], [`super::presentation`], [`super::spreadsheet`], [`super::epub`],
//! [`super::html`].

use super::archive::Archive;
use super::builder::{Extracted, TextBuilder};
use super::format::Format;
use super::relations::Relations;
use super::{epub, html, pdf, presentation, spreadsheet, word};
use crate::io::text::MAX_BYTES;
use crate::io::worker_process::pool::WorkerPool;
use crate::io::worker_process::{self, WorkerLimits, child};
use anyhow::{Result, anyhow, bail, ensure};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

/// The limits of one document.
const LIMITS: WorkerLimits = WorkerLimits {
    command: "document-worker",
    deadline: Duration::from_secs(60),
    heap_bytes: 1 << 30,
    stack_bytes: 64 << 20,
};

/// Bytes of a reply: the text with escapes of JSON, and its parts.
const MAX_REPLY: usize = 4 * MAX_BYTES as usize;

static POOL: OnceLock<WorkerPool> = OnceLock::new();

type WorkerReply = Result<Extracted, String>;

/// Extracts the text of a document.
///
/// # Errors
/// The reason in the words of an error message, without the name of the file.
pub(super) fn extract(format: Format, bytes: &[u8]) -> Result<Extracted> {
    let Some(program) = worker_process::program() else { return in_process(format, bytes) };
    let pool = POOL.get_or_init(|| WorkerPool::new(program.to_owned(), LIMITS));
    let request = [&[format.code()], bytes].concat();
    let reply = pool.call(&request, MAX_REPLY).map_err(exceeded)?;
    let reply: WorkerReply = serde_json::from_slice(&reply).map_err(|_| exceeded("a broken reply".into()))?;
    reply.map_err(anyhow::Error::msg)
}

fn exceeded(found: String) -> anyhow::Error {
    let (seconds, memory) = (LIMITS.deadline.as_secs(), LIMITS.heap_bytes >> 20);
    anyhow!("expected its text within {seconds} s and {memory} MiB, found {found}")
}

/// Serves requests until the end of standard input.
pub(crate) fn run() -> Result<()> {
    child::run(&LIMITS, || {
        |request: Vec<u8>| {
            let reply: WorkerReply = match request.split_first() {
                Some((code, bytes)) => match Format::from_code(*code) {
                    Some(format) => in_process(format, bytes).map_err(|e| format!("{e:#}")),
                    None => Err("expected a known format".into()),
                },
                None => Err("expected a document".into()),
            };
            // Texts and numbers always have a form in JSON.
            serde_json::to_vec(&reply).unwrap_or_default()
        }
    })
}

/// Extracts a document in this process. A panic of a library is an error.
fn in_process(format: Format, bytes: &[u8]) -> Result<Extracted> {
    let extracted = catch_unwind(AssertUnwindSafe(|| {
        let mut out = TextBuilder::default();
        match format {
            Format::Pdf => pdf::extract(bytes, &mut out)?,
            Format::Html => html::extract(bytes, &mut out)?,
            Format::Zip => zipped(bytes, &mut out)?,
        }
        Ok(out.finish())
    }));
    let extracted = extracted.unwrap_or_else(|_| bail!("expected a valid document, found a damaged one"))?;
    ensure!(!extracted.text.is_empty(), "expected text, found a document without any");
    Ok(extracted)
}

/// Extracts an Office document or a book, by the main part that the archive names.
fn zipped(bytes: &[u8], out: &mut TextBuilder) -> Result<()> {
    let mut archive = Archive::new(bytes)?;
    if archive.has(epub::CONTAINER) {
        return epub::extract(&mut archive, out);
    }
    let main = Relations::of(&mut archive, "")?.by_type("/officeDocument").unwrap_or_default();
    match main.split('/').next() {
        Some("word") => word::extract(&mut archive, &main, out),
        Some("ppt") => presentation::extract(&mut archive, &main, out),
        Some("xl") => spreadsheet::extract(&mut archive, &main, out),
        _ => bail!("expected text or a document (PDF, DOCX, PPTX, XLSX, EPUB), found a zip archive"),
    }
}
