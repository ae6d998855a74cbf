//! Reports a prefill: before it the number of tokens and the memory they need, during it a progress bar, or a line now
//! and then if standard error is no terminal. Next: [`crate::document_qa::eta`].

use super::is_interactive;
use crate::document_qa::eta::{PrefillEta, duration};
use crate::io::host_memory;
use crate::io::output::tell;
use crate::io::progress::TerminalProgress;
use crate::io::units::{format_size, grouped};
use crate::prefix_cache::Sizes;
use crate::runtime::handle::EngineHandle;
use crate::runtime::memory_estimate::MemoryEstimate;
use crate::runtime::session::Prefill;
use anyhow::{Result, bail};
use models::hybrid::mla::MlaPath;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between progress lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Share of the new tokens that is prefilled before the remaining time is estimated: one in this number.
const MIN_MEASURED: usize = 100;

/// What the progress of all prompts depends on: the shape of the model and its memory.
pub(super) struct PrefillPlan {
    eta: PrefillEta,
    sizes: Sizes,
    workspace: u64,
    weights: u64,
    batch: usize,
}

impl PrefillPlan {
    pub(super) fn new(engine: &EngineHandle) -> PrefillPlan {
        let (config, step) = (&engine.config, engine.max_step_tokens(MlaPath::Materialized));
        PrefillPlan {
            eta: PrefillEta::new(config, &engine.file.tensors, Some(step)),
            sizes: engine.sizes(),
            workspace: MemoryEstimate::of(config, step as u64).workspace_bytes,
            weights: engine.file.tensors.iter().map(|t| t.bytes).sum(),
            batch: engine.batch,
        }
    }
}

/// The progress of one prompt.
pub(super) struct PrefillProgress<'a> {
    plan: &'a PrefillPlan,
    bar: Option<TerminalProgress>,
    eta: PrefillEta,
    total: usize,
    found: Prefill,
    at: usize,
    last_batch: Instant,
    last_line: Instant,
    quiet: bool,
}

impl<'a> PrefillProgress<'a> {
    /// Creates the progress of a prompt of `total` tokens, of which `found` were restored from the prefix cache.
    pub(super) fn new(plan: &'a PrefillPlan, total: usize, found: Prefill, quiet: bool) -> Self {
        let long = total - found.reused > plan.batch;
        let bar = (is_interactive() && long && !quiet).then(|| {
            let template = "prefill {bar:16} {percent:>3}% {human_pos} of {human_len} {msg}";
            TerminalProgress::new(total as u64, found.reused as u64, template)
        });
        PrefillProgress {
            plan,
            bar,
            eta: plan.eta.clone(),
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
        let need = new * self.plan.sizes.row + self.plan.workspace;
        let fits = match free {
            None => String::new(),
            Some(free) if need > free && !force => bail!(
                "not enough memory: {} tokens need {}, {} are free; --cache-type q8_0 halves it, --force tries anyway",
                grouped(new as usize),
                format_size(need),
                format_size(free)
            ),
            Some(free) if need <= free && self.plan.weights > free => {
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
        let first = self.at == self.found.reused;
        if !first {
            // The first batch also loads weights from disk.
            self.eta.record(self.at, done, took);
        }
        let rate = (done - self.at) as f64 / took.as_secs_f64().max(1e-9);
        self.at = done;
        let line = self.rate_line(rate);
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

    /// The rate, and the remaining time once enough tokens are measured.
    fn rate_line(&self, rate: f64) -> String {
        let measured = (self.at - self.found.reused) * MIN_MEASURED >= self.total - self.found.reused;
        let left = measured.then(|| self.eta.estimate(self.at, self.total)).flatten();
        match left {
            Some(left) => format!("{rate:.1} tok/s, {} left", duration(left)),
            None => format!("{rate:.1} tok/s"),
        }
    }

    pub(super) fn finish(&self) {
        self.bar.iter().for_each(TerminalProgress::finish);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_remaining_time_is_estimated_after_enough_tokens() {
        let plan = PrefillPlan {
            eta: PrefillEta::with_growth(0.0),
            sizes: Sizes { recurrent: 0, row: 0, logits: 0 },
            workspace: 0,
            weights: 0,
            batch: 100,
        };
        let found = Prefill { reused: 1000, source: None, computed: 0, stopped: false };
        let mut progress = PrefillProgress::new(&plan, 1_049_000, found, true);
        progress.at = 1_500;
        assert_eq!(progress.rate_line(10.0), "10.0 tok/s");
        progress.eta.record(1_500, 2_000, Duration::from_secs(50));
        progress.at = 2_000;
        assert_eq!(progress.rate_line(10.0), "10.0 tok/s", "less than a percent");
        progress.at = 12_000;
        let line = progress.rate_line(12_345.6);
        assert_eq!(line, "12345.6 tok/s, 28.8 h left");
        let bar = format!("prefill {} 100% 1,048,576 of 1,048,576 {line}", "#".repeat(16));
        assert!(bar.len() <= 80, "{bar}");
    }
}
