//! Reports a prefill: before it the number of tokens and the memory they need, during it a progress bar, or a line now
//! and then if standard error is no terminal. Next: [`super::eta`].

use super::eta::{PrefillEta, duration};
use super::is_interactive;
use crate::io::host_memory;
use crate::io::output::tell;
use crate::io::progress::TerminalProgress;
use crate::io::units::{format_size, grouped};
use crate::prefix_cache::Sizes;
use crate::runtime::handle::EngineHandle;
use crate::runtime::memory_estimate::MemoryEstimate;
use crate::runtime::session::Prefill;
use anyhow::{Result, bail};
use models::kimi_linear::mla::MlaPath;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between progress lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one prompt.
pub(super) struct PrefillProgress {
    bar: Option<TerminalProgress>,
    eta: PrefillEta,
    sizes: Sizes,
    workspace: u64,
    weights: u64,
    total: usize,
    found: Prefill,
    at: usize,
    last_batch: Instant,
    last_line: Instant,
    quiet: bool,
}

impl PrefillProgress {
    /// Creates the progress of a prompt of `total` tokens, of which `found` were restored from the prefix cache.
    pub(super) fn new(engine: &EngineHandle, total: usize, found: Prefill, quiet: bool) -> PrefillProgress {
        let config = &engine.config;
        let long = total - found.reused > engine.batch;
        let bar = (is_interactive() && long && !quiet).then(|| {
            let template = "prefill {bar:30} {percent:>3}%  {human_pos} of {human_len} tokens  {msg}";
            TerminalProgress::new(total as u64, found.reused as u64, template)
        });
        PrefillProgress {
            bar,
            eta: PrefillEta::new(
                config,
                &engine.file.tensors,
                Some(engine.max_step_tokens(MlaPath::Materialized)),
            ),
            sizes: engine.sizes(),
            workspace: MemoryEstimate::of(config, engine.max_step_tokens(MlaPath::Materialized) as u64)
                .workspace_bytes,
            weights: engine.file.tensors.iter().map(|t| t.bytes).sum(),
            total,
            found,
            at: found.reused,
            last_batch: Instant::now(),
            last_line: Instant::now(),
            quiet: quiet || !long,
        }
    }

    /// Prints the number of tokens and the memory they need.
    ///
    /// # Errors
    /// The state does not fit into memory, unless `force` is set.
    pub(super) fn announce(&self, files: &[&str], reply: usize, force: bool) -> Result<()> {
        let free = host_memory::available(Path::new("/"));
        let new = (self.total - self.found.reused + reply) as u64;
        let need = new * self.sizes.row + self.workspace;
        let fits = match free {
            None => String::new(),
            Some(free) if need > free && !force => bail!(
                "not enough memory: {} tokens need {}, {} are free; --cache-type q8_0 halves it, --force tries anyway",
                grouped(new as usize),
                format_size(need),
                format_size(free)
            ),
            Some(free) if need <= free && self.weights > free => {
                format!(", {} free; slow, as the weights do not fit beside it", format_size(free))
            }
            Some(free) => format!(", {} free", format_size(free)),
        };
        if !self.quiet {
            let name = if let [one] = files { (*one).to_owned() } else { format!("{} files", files.len()) };
            let read = Prefill { computed: self.total - self.found.reused, ..self.found };
            let cached = if read.reused == 0 { "none cached".to_owned() } else { read.describe() };
            tell(&format!("{}: {} tokens, {cached}", name.replace('\n', " "), grouped(self.total)));
            tell(&format!("memory: {} needed{fits}", format_size(need)));
        }
        Ok(())
    }

    /// Records that `done` tokens are prefilled and shows the rate and the remaining time.
    pub(super) fn update(&mut self, done: usize) {
        let took = self.last_batch.elapsed();
        self.last_batch = Instant::now();
        self.eta.record(self.at, done, took);
        let first = self.at == self.found.reused;
        let rate = (done - self.at) as f64 / took.as_secs_f64().max(1e-9);
        self.at = done;
        let left = self.eta.estimate(done, self.total).map(duration).unwrap_or_default();
        let line = format!("{rate:.1} tok/s, {left} left");
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(line);
        } else if !self.quiet && done < self.total && (first || self.last_line.elapsed() > LINE_INTERVAL) {
            let (done, total) = (grouped(done), grouped(self.total));
            let percent = self.at * 100 / self.total.max(1);
            tell(&format!("prefill {percent}%: {done} of {total} tokens, {line}"));
            self.last_line = Instant::now();
        }
        if done == self.total {
            self.finish();
        }
    }

    pub(super) fn finish(&self) {
        self.bar.iter().for_each(TerminalProgress::finish);
    }
}
