//! What is said before a prompt is read (tokens, memory, whether it fits) and while it is (a bar, or a line now and
//! then where nobody watches). Next: [`super::pace`].

use super::pace::{Pace, duration};
use super::watched;
use crate::io::host_memory;
use crate::io::output::tell;
use crate::io::progress::Progress;
use crate::io::units::grouped;
use crate::prefix_cache::Sizes;
use crate::runtime::engine::Engine;
use crate::runtime::memory_estimate::MemoryEstimate;
use crate::runtime::session::Prefill;
use anyhow::{Result, bail};
use std::path::Path;
use std::time::{Duration, Instant};

use kernels::backend::Backend;
use models::kimi_linear::mla::MlaPath;

/// Between lines where nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A prompt on its way into the state.
pub(super) struct Reading {
    bar: Option<Progress>,
    pace: Pace,
    sizes: Sizes,
    workspace: u64,
    weights: u64,
    total: usize,
    found: Prefill,
    at: usize,
    last: Instant,
    said: Instant,
    quiet: bool,
}

impl Reading {
    /// A prompt of `total` tokens, of which `found` need not be read.
    pub(super) fn new<B: Backend>(engine: &Engine<B>, total: usize, found: Prefill, quiet: bool) -> Reading {
        let config = &engine.model.config;
        let long = total - found.reused > engine.batch;
        let bar = (watched() && long && !quiet).then(|| {
            let template = "reading {bar:30} {percent:>3}%  {human_pos} of {human_len} tokens  {msg}";
            Progress::new(total as u64, found.reused as u64, template)
        });
        Reading {
            bar,
            pace: Pace::new(
                config,
                &engine.file.tensors,
                Some(engine.max_step_tokens(MlaPath::Materialized)),
            ),
            sizes: engine.store.sizes(),
            workspace: MemoryEstimate::of(config, engine.max_step_tokens(MlaPath::Materialized) as u64)
                .workspace_bytes,
            weights: engine.file.tensors.iter().map(|t| t.bytes).sum(),
            total,
            found,
            at: found.reused,
            last: Instant::now(),
            said: Instant::now(),
            quiet: quiet || !long,
        }
    }

    /// Says what is to be read and what memory that takes; an error if it does not fit, unless `force`.
    pub(super) fn announce(&self, files: &[&str], reply: usize, force: bool) -> Result<()> {
        let free = host_memory::available(Path::new("/"));
        let new = (self.total - self.found.reused + reply) as u64;
        let state = self.sizes.recurrent + self.total as u64 * self.sizes.row;
        let need = new * self.sizes.row + self.workspace;
        let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
        let fits = match free {
            None => String::new(),
            Some(free) if need <= free && self.weights <= free => format!(", {} free: it fits", gib(free)),
            Some(free) if need <= free => {
                format!(", {} free: it fits, but not all weights with it, which is slow", gib(free))
            }
            Some(free) if force => format!(", {} free: it does not fit", gib(free)),
            Some(free) => bail!(
                "memory: expected {} free for {} tokens, found {}: --cache-type q8_0 takes half, --force tries",
                gib(need),
                grouped(new as usize),
                gib(free)
            ),
        };
        if !self.quiet {
            let name = if let [one] = files { (*one).to_owned() } else { format!("{} files", files.len()) };
            let read = Prefill { computed: self.total - self.found.reused, ..self.found };
            let name = name.replace('\n', " ");
            tell(&format!("{name}: {} tokens: {}", grouped(self.total), read.describe()));
            tell(&format!("memory: {} of state, {} of weights{fits}", gib(state), gib(self.weights)));
        }
        Ok(())
    }

    /// So many tokens are in the state.
    pub(super) fn progress(&mut self, done: usize) {
        let took = self.last.elapsed();
        self.last = Instant::now();
        self.pace.read(self.at, done, took);
        let first = self.at == self.found.reused;
        let rate = (done - self.at) as f64 / took.as_secs_f64().max(1e-9);
        self.at = done;
        let left = self.pace.expect(done, self.total).map(duration).unwrap_or_default();
        let line = format!("{rate:.1} tok/s, {left} left");
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(line);
        } else if !self.quiet && done < self.total && (first || self.said.elapsed() > LINE_EVERY) {
            let (done, total) = (grouped(done), grouped(self.total));
            let percent = self.at * 100 / self.total.max(1);
            tell(&format!("reading {percent}%: {done} of {total} tokens, {line}"));
            self.said = Instant::now();
        }
        if done == self.total {
            self.finish();
        }
    }

    /// The bar goes.
    pub(super) fn finish(&self) {
        self.bar.iter().for_each(Progress::finish);
    }
}
