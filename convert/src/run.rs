//! The conversion itself: three stages that overlap, chunks in order.
//!
//! A reader thread reads ahead by a few chunks, this thread hands each to all cores to be quantised, a
//! writer thread appends. Memory is a few chunks whatever the size of the model. A stopped conversion goes
//! on after its last whole tensor: see `resume`.

use crate::chunks::{Buffers, Chunk, Loaded, Loader, chunks, encode};
use crate::error::{Error, Result};
use crate::job::{Job, Options, Row};
use crate::progress::Progress;
use crate::resume::Partial;
use models::gguf::write::Layout;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Chunks that may wait between two stages.
const AHEAD: usize = 2;

/// What was written, or would be.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The output's name.
    pub output: PathBuf,
    /// Its tensors in their order.
    pub tensors: Vec<Row>,
    /// Its length in bytes.
    pub bytes: u64,
    /// Tensors of the input.
    pub source_tensors: usize,
    /// Bytes of their values; 0 where only an index is there.
    pub source_bytes: u64,
}

/// Converts. Nothing stands under the output's name before it is complete.
///
/// # Errors
/// Input that is broken or does not fit together, options that do not fit it, a full disk: one line each.
/// A partial file stays behind only where going on later makes sense.
pub fn convert(options: &Options, progress: &mut dyn Progress) -> Result<Summary> {
    let job = Job::new(options, true, progress)?;
    if job.output.is_dir() {
        return Err(Error::bad(job.output.display(), "the output", "the name of a file", "a directory"));
    }
    if job.output.exists() && !options.force {
        return Err(Error::Exists(job.output));
    }
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = options.threads {
        pool = pool.num_threads(threads);
    }
    let pool = pool.build().map_err(|e| Error::Option(format!("--threads: {e}")))?;
    let layout = layout(&job)?;
    let summary = summary(&job, &layout);
    let mut partial = Partial::open(&job.output, &stamp(&job), layout)?;
    let mut work = Work { job: &job, pool: &pool, buffers: &Buffers::default(), progress };
    match work.run(&mut partial) {
        Ok(()) => partial.finish()?,
        Err(error) => {
            if matches!(error, Error::Bad { .. }) {
                // The input will not get better by itself.
                partial.discard();
            }
            return Err(error);
        }
    }
    Ok(summary)
}

/// What [`convert`] would write, without reading a weight or writing anything; shards may be missing.
///
/// # Errors
/// As [`convert`], as far as they show from configs, index and the headers that are there.
pub fn dry_run(options: &Options, progress: &mut dyn Progress) -> Result<Summary> {
    let job = Job::new(options, false, progress)?;
    Ok(summary(&job, &layout(&job)?))
}

fn summary(job: &Job, layout: &Layout) -> Summary {
    Summary {
        output: job.output.clone(),
        tensors: job.plan.iter().map(Row::from).collect(),
        bytes: layout.total_bytes(),
        source_tensors: job.source_tensors,
        source_bytes: job.source_bytes,
    }
}

/// What must be equal for a partial file to be gone on with, beside its header.
fn stamp(job: &Job) -> String {
    let mut text =
        format!("{} {}\nFP8 blocks {:?}\n", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), job.fp8_block);
    for file in &job.source.files {
        // A String takes everything.
        let _ = writeln!(text, "{} {} {}", file.bytes, file.modified, file.path.display());
    }
    text
}

fn layout(job: &Job) -> Result<Layout> {
    let tensors = job.plan.iter().map(|t| (t.name.clone(), t.format, t.shape.clone()));
    Ok(Layout::new(job.metadata.clone(), tensors.collect())?)
}

struct Work<'a> {
    job: &'a Job,
    pool: &'a rayon::ThreadPool,
    buffers: &'a Buffers,
    progress: &'a mut dyn Progress,
}

impl Work<'_> {
    /// Writes every tensor that is not there yet.
    fn run(&mut self, partial: &mut Partial) -> Result<()> {
        let (done, todo): (Vec<_>, Vec<_>) = chunks(&self.job.plan).partition(|p| p.tensor < partial.done);
        self.progress.start(self.job.source_bytes, done.iter().map(|p| self.stored_bytes(p)).sum());
        let loader = Loader::new(&self.job.source, self.job.fp8_block, self.buffers);
        let buffers = self.buffers;
        thread::scope(|scope| {
            let (loaded, to_encode) = sync_channel(AHEAD);
            let (encoded, to_write) = sync_channel::<Vec<u8>>(AHEAD);
            scope.spawn(move || load_all(&todo, loader, &loaded));
            let write = move |bytes: Vec<u8>| partial.write(&bytes).map(|()| buffers.give(bytes));
            let writing = scope.spawn(move || to_write.into_iter().try_for_each(write));
            let result = self.encode_all(to_encode, encoded);
            let written = writing.join().expect("the writer does not panic");
            result.and(written)
        })
    }

    fn encode_all(&mut self, chunks: Receiver<Result<Loaded>>, encoded: SyncSender<Vec<u8>>) -> Result<()> {
        let mut tensor = None;
        for loaded in chunks {
            let loaded = loaded?;
            let chunk = loaded.chunk;
            let planned = &self.job.plan[chunk.tensor];
            if tensor.replace(chunk.tensor) != Some(chunk.tensor) {
                self.progress.tensor(&planned.name, planned.format);
            }
            let source = &self.job.source;
            let path = || source.path_of(&source.tensors[&chunk.part.source]);
            let bytes = self.pool.install(|| encode(loaded, planned, self.buffers, path))?;
            if encoded.send(bytes).is_err() {
                // The writer has stopped, and its result says why.
                return Ok(());
            }
            self.progress.advance(self.stored_bytes(&chunk));
        }
        Ok(())
    }

    fn stored_bytes(&self, chunk: &Chunk) -> u64 {
        let coding = &self.job.source.tensors[&chunk.part.source].coding;
        coding.row_bytes(chunk.part.cols()).map_or(0, |row| row * chunk.rows)
    }
}

fn load_all<'a>(todo: &[Chunk<'a>], mut loader: Loader<'a>, loaded: &SyncSender<Result<Loaded<'a>>>) {
    for chunk in todo {
        let result = loader.load(*chunk);
        let stop = result.is_err();
        if loaded.send(result).is_err() || stop {
            return;
        }
    }
}
