//! Defines the metrics and exports them in the OpenMetrics text format.

use super::limits::LimitEvents;
use crate::generation::generate::Stats;
use crate::scheduler::Gauges;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters and histograms that request handlers update.
#[derive(Debug)]
pub struct Metrics {
    /// Requests submitted to the scheduler.
    pub requests: Counter,
    /// Requests cancelled by a disconnect or a timeout.
    pub aborted: Counter,
    /// Time from the request to its first token.
    pub time_to_first_token: Histogram,
    /// Time between consecutive tokens of a reply.
    pub inter_token_latency: Histogram,
    /// Prompts and tokens that were prefilled, by cause.
    pub misses: Misses,
    upstream_errors: Family<StatusLabels, Counter>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    drafted_tokens: Counter,
    accepted_tokens: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];
        Metrics {
            requests: Counter::default(),
            aborted: Counter::default(),
            time_to_first_token: Histogram::new(seconds),
            inter_token_latency: Histogram::new(seconds),
            misses: Misses::default(),
            upstream_errors: Family::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            drafted_tokens: Counter::default(),
            accepted_tokens: Counter::default(),
        }
    }
}

impl Metrics {
    /// Adds the token counts of a finished reply.
    pub fn count(&self, stats: &Stats) {
        self.prompt_tokens.inc_by(stats.prefill.computed as u64);
        self.cached_tokens.inc_by(stats.prefill.reused as u64);
        self.generated_tokens.inc_by(stats.generated as u64);
        self.drafted_tokens.inc_by(stats.draft.drafted as u64);
        self.accepted_tokens.inc_by(stats.draft.accepted as u64);
    }

    /// Counts a request that failed at the upstream server, with the status that the client gets.
    pub fn count_upstream_error(&self, status: u16) {
        self.upstream_errors.get_or_create(&StatusLabels { status: status.into() }).inc();
    }
}

/// The label of an error.
#[derive(Clone, Debug, Hash, PartialEq, Eq, prometheus_client::encoding::EncodeLabelSet)]
struct StatusLabels {
    status: u32,
}

/// The label of a cause.
#[derive(Clone, Debug, Hash, PartialEq, Eq, prometheus_client::encoding::EncodeLabelSet)]
pub struct CauseLabels {
    pub cause: &'static str,
}

/// Prompts that were not wholly restored, by cause. Clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct Misses {
    prompts: Family<CauseLabels, Counter>,
    tokens: Family<CauseLabels, Counter>,
    seconds: Family<CauseLabels, Counter<f64, AtomicU64>>,
}

impl Misses {
    /// Adds the prefill of a prompt.
    pub fn count(&self, labels: CauseLabels, stats: &Stats) {
        self.prompts.get_or_create(&labels).inc();
        self.tokens.get_or_create(&labels).inc_by(stats.prefill.computed as u64);
        self.seconds.get_or_create(&labels).inc_by(stats.prefill_time.as_secs_f64());
    }
}

/// The state of the source of replies.
pub enum SourceState<'a> {
    Loading,
    Scheduler(&'a Gauges),
    /// Requests at the upstream server, and those that wait here.
    Upstream {
        running: u64,
        waiting: u64,
    },
}

/// Encodes all metrics as text.
pub fn text(m: &Metrics, limits: &LimitEvents, source: &SourceState<'_>) -> String {
    let mut r = Registry::with_prefix("kimi");
    r.register("requests", "Requests submitted to the scheduler or the upstream server", m.requests.clone());
    r.register("aborted", "Requests cancelled by a disconnect or a timeout", m.aborted.clone());
    r.register("prompt_tokens", "Prompt tokens prefilled", m.prompt_tokens.clone());
    r.register("cached_tokens", "Prompt tokens restored from the prefix cache", m.cached_tokens.clone());
    r.register("generated_tokens", "Generated tokens", m.generated_tokens.clone());
    r.register("drafted_tokens", "Tokens drafted from the context", m.drafted_tokens.clone());
    let help = "Drafted tokens that became part of a reply";
    r.register("accepted_draft_tokens", help, m.accepted_tokens.clone());
    let Misses { prompts, tokens, seconds } = m.misses.clone();
    r.register("prefix_misses", "Prompts that were not wholly restored, by cause", prompts);
    r.register("prefilled_tokens", "Prompt tokens prefilled, by cause", tokens);
    r.register_with_unit("prefill", "Time of prefills, by cause", Unit::Seconds, seconds);
    let (first, latency) = (m.time_to_first_token.clone(), m.inter_token_latency.clone());
    let help = "Time from the request to its first token";
    r.register_with_unit("time_to_first_token", help, Unit::Seconds, first);
    let help = "Time between consecutive tokens of a reply";
    r.register_with_unit("inter_token_latency", help, Unit::Seconds, latency);
    let events = limits.counts.clone();
    r.register("http_limit", "Connections and bodies that reached a limit", events);
    let open = limits.connections.load(Ordering::Relaxed);
    r.register("http_connections", "Open connections", ConstGauge::new(open));
    register_source(m, source, &mut r);
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &r);
    text
}

/// Registers the values of the source of replies, once there is one.
fn register_source(m: &Metrics, source: &SourceState<'_>, r: &mut Registry) {
    let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let (running, waiting) = match source {
        SourceState::Loading => return,
        SourceState::Scheduler(g) => {
            let help = "Bytes reserved for sequence states";
            r.register("state_bytes", help, ConstGauge::new(load(&g.bytes)));
            let help = "Tokens processed in all forward passes";
            r.register("batched_tokens", help, ConstCounter::new(load(&g.tokens)));
            let help = "1 once the GPU has failed and the CPU computes";
            r.register("degraded", help, ConstGauge::new(load(&g.degraded)));
            r.register("scheduler_steps", "Forward passes", ConstCounter::new(load(&g.steps)));
            (load(&g.running), load(&g.waiting))
        }
        SourceState::Upstream { running, waiting } => {
            let help = "Requests that failed at the upstream server, by status";
            r.register("upstream_errors", help, m.upstream_errors.clone());
            (*running, *waiting)
        }
    };
    r.register("requests_running", "Requests that hold a slot", ConstGauge::new(running));
    r.register("requests_waiting", "Requests that wait for a slot", ConstGauge::new(waiting));
}
