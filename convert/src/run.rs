//! Runs a conversion as a pipeline of three stages that process chunks in order.
//!
//! A reader thread reads a few chunks ahead, the calling thread quantizes each on all cores, and a writer thread appends
//! them. Memory is a few chunks, whatever the size of the model. An interrupted conversion resumes after its last
//! complete tensor. Next: `resume`.

use crate::chunks::{Chunk, ChunkBuffers, ChunkLoader, LoadedChunk, ScaleSearch, chunks, encode};
use crate::error::{Error, Result};
use crate::job::{Job, Options, OutputTensor};
use crate::progress::Progress;
use crate::resume::Partial;
use crate::shards::{ShardStore, ShardUse};
use models::gguf::write::Layout;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Chunks queued between two stages.
const QUEUED_CHUNKS: usize = 2;

/// The output of a conversion or of a dry run.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Path of the finished GGUF file.
    pub output: PathBuf,
    /// Tensors of the output in file order.
    pub tensors: Vec<OutputTensor>,
    /// Size of the complete output in bytes.
    pub bytes: u64,
    /// Number of input tensors, all of which are used.
    pub source_tensors: usize,
    /// Their size in bytes; 0 if only an index is present.
    pub source_bytes: u64,
}

/// Converts. The output is written under a temporary name and renamed when complete.
///
/// # Errors
/// Invalid or inconsistent input, options that do not fit it, or a full disk; each is one line. A partial file is left
/// behind only if the conversion can be resumed.
pub fn convert(options: &Options, progress: &mut dyn Progress) -> Result<Summary> {
    convert_shards(options, &(), progress)
}

/// Converts an input whose files `shards` fetches as they are needed and releases after use.
///
/// # Errors
/// Those of [`convert`], and of the store.
pub fn convert_shards(
    options: &Options,
    shards: &dyn ShardStore,
    progress: &mut dyn Progress,
) -> Result<Summary> {
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
    let search = ScaleSearch { importance: options.importance.as_ref(), refine: options.refine };
    let mut partial = Partial::open(&job.output, &stamp(&job, search), layout)?;
    let mut work =
        Work { job: &job, search, pool: &pool, buffers: &ChunkBuffers::default(), shards, progress };
    match work.run(&mut partial) {
        Ok(()) => partial.finish()?,
        Err(error) => {
            if matches!(error, Error::Bad { .. }) {
                // Resuming would fail on the same input.
                partial.discard();
            }
            return Err(error);
        }
    }
    Ok(summary)
}

/// Computes what [`convert`] would write, without reading weights or writing anything; shards may be missing.
///
/// # Errors
/// Those of [`convert`] that configs, index and the present headers reveal.
pub fn dry_run(options: &Options, progress: &mut dyn Progress) -> Result<Summary> {
    let job = Job::new(options, false, progress)?;
    Ok(summary(&job, &layout(&job)?))
}

fn summary(job: &Job, layout: &Layout) -> Summary {
    Summary {
        output: job.output.clone(),
        tensors: job.plan.iter().map(OutputTensor::from).collect(),
        bytes: layout.total_bytes(),
        source_tensors: job.source_tensors,
        source_bytes: job.source_bytes,
    }
}

/// The text that must be equal, besides the header, for a partial file to be resumed.
fn stamp(job: &Job, search: ScaleSearch<'_>) -> String {
    let mut text =
        format!("{} {}\nFP8 blocks {:?}\n", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), job.fp8_block);
    // Writing to a String cannot fail.
    if let Some(importance) = search.importance {
        let _ = writeln!(text, "importance {:016x}", importance.fingerprint());
    }
    if search.refine {
        text.push_str("refined\n");
    }
    for file in &job.source.files {
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
    search: ScaleSearch<'a>,
    pool: &'a rayon::ThreadPool,
    buffers: &'a ChunkBuffers,
    shards: &'a dyn ShardStore,
    progress: &'a mut dyn Progress,
}

impl Work<'_> {
    /// Writes the tensors that the partial file lacks.
    fn run(&mut self, partial: &mut Partial) -> Result<()> {
        let (done, todo): (Vec<_>, Vec<_>) = chunks(&self.job.plan).partition(|p| p.tensor < partial.done);
        self.progress.start(self.job.source_bytes, done.iter().map(|p| self.stored_bytes(p)).sum());
        let loader = ChunkLoader::new(&self.job.source, self.job.fp8_block, self.buffers);
        let (buffers, shards) = (self.buffers, ShardUse::new(&self.job.source, &todo, self.shards));
        thread::scope(|scope| {
            let (loaded, to_encode) = sync_channel(QUEUED_CHUNKS);
            let (encoded, to_write) = sync_channel::<Vec<u8>>(QUEUED_CHUNKS);
            scope.spawn(move || load_all(&todo, loader, shards, &loaded));
            let write = move |bytes: Vec<u8>| partial.write(&bytes).map(|()| buffers.give(bytes));
            let writing = scope.spawn(move || to_write.into_iter().try_for_each(write));
            let result = self.encode_all(to_encode, encoded);
            let written = writing.join().expect("the writer does not panic");
            result.and(written)
        })
    }

    fn encode_all(
        &mut self,
        chunks: Receiver<Result<LoadedChunk>>,
        encoded: SyncSender<Vec<u8>>,
    ) -> Result<()> {
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
            let bytes = self.pool.install(|| encode(loaded, (planned, self.search), self.buffers, path))?;
            if encoded.send(bytes).is_err() {
                // The writer has stopped; its result holds the reason.
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

fn load_all<'a>(
    todo: &[Chunk<'a>],
    mut loader: ChunkLoader<'a>,
    mut shards: ShardUse<'a>,
    loaded: &SyncSender<Result<LoadedChunk<'a>>>,
) {
    let mut load = |at: usize, chunk: &Chunk<'a>| {
        shards.before(chunk)?;
        let loaded = loader.load(*chunk)?;
        shards.after(at, chunk)?;
        Ok(loaded)
    };
    for (at, chunk) in todo.iter().enumerate() {
        let result = load(at, chunk);
        let stop = result.is_err();
        if loaded.send(result).is_err() || stop {
            return;
        }
    }
}
