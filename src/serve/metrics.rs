//! What is counted, for Prometheus.

use super::limits::LimitEvents;
use crate::generation::generate::Stats;
use crate::scheduler::Gauges;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::Ordering;

/// Counters that only grow.
#[derive(Debug)]
pub struct Metrics {
    /// Requests handed to the engine.
    pub requests: Counter,
    /// Of those, clients that left before the end, or ran out of time.
    pub aborted: Counter,
    /// From the request to the first token.
    pub first_token: Histogram,
    /// From a token to the next.
    pub next_token: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];
        Metrics {
            requests: Counter::default(),
            aborted: Counter::default(),
            first_token: Histogram::new(seconds),
            next_token: Histogram::new(seconds),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
        }
    }
}

impl Metrics {
    /// A reply has ended.
    pub fn count(&self, stats: &Stats) {
        self.prompt_tokens.inc_by(stats.prefill.computed as u64);
        self.cached_tokens.inc_by(stats.prefill.reused as u64);
        self.generated_tokens.inc_by(stats.generated as u64);
    }
}

/// All of them as text, with the events at limits and, once the model is loaded, what its thread shows.
pub fn text(m: &Metrics, limits: &LimitEvents, gauges: Option<&Gauges>) -> String {
    let mut r = Registry::with_prefix("kimi");
    r.register("requests", "Requests handed to the engine", m.requests.clone());
    r.register("aborted", "Requests whose client left or whose time ran out", m.aborted.clone());
    r.register("prompt_tokens", "Tokens of prompts that were read", m.prompt_tokens.clone());
    r.register("cached_tokens", "Tokens of prompts whose state was there", m.cached_tokens.clone());
    r.register("generated_tokens", "Tokens of replies", m.generated_tokens.clone());
    let (first, next) = (m.first_token.clone(), m.next_token.clone());
    r.register_with_unit("first_token", "From the request to the first token", Unit::Seconds, first);
    r.register_with_unit("next_token", "From a token to the next", Unit::Seconds, next);
    let events = limits.counts.clone();
    r.register("http_limit", "Events at limits on connections and bodies", events);
    let open = limits.connections.load(Ordering::Relaxed);
    r.register("http_connections", "Open connections", ConstGauge::new(open));
    if let Some(g) = gauges {
        let gauges = [
            ("running", "Sequences in steps", &g.running),
            ("waiting", "Requests not yet admitted", &g.waiting),
            ("state_bytes", "Bytes reserved for states", &g.bytes),
            ("steps", "Steps taken", &g.steps),
            ("step_tokens", "Tokens in all steps", &g.tokens),
        ];
        for (name, help, value) in gauges {
            r.register(name, help, ConstGauge::new(value.load(Ordering::Relaxed)));
        }
    }
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &r);
    text
}
