//! Defines the limits on connections and bodies and counts the events at each. Counts are exported as metrics and logged at
//! most once per interval and kind. Next: `connections` (sockets), `intake` (bodies).

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Limits on connections and request bodies.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    pub connections: usize,
    /// Open connections per address, except loopback.
    pub per_address: usize,
    /// Time for a request header, from its first byte.
    pub header_timeout: Duration,
    /// Time without a request on a connection.
    pub idle_timeout: Duration,
    /// Time without progress of a client that receives a response.
    pub write_timeout: Duration,
    /// Time without a byte of a body.
    pub body_stall: Duration,
    /// Time for a whole body.
    pub body_timeout: Duration,
    /// Minimum bytes per second of a body, after `body_stall`.
    pub body_rate: u64,
    /// Total bytes of request bodies in memory.
    pub body_bytes: usize,
    /// Time that a body waits for memory in `body_bytes`.
    pub body_wait: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            connections: 1024,
            per_address: 512,
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            body_stall: Duration::from_secs(30),
            body_timeout: Duration::from_secs(600),
            body_rate: 4096,
            body_bytes: 128 << 20,
            body_wait: Duration::from_secs(5),
        }
    }
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitEvent {
    /// A connection whose header did not arrive in time.
    HeaderTimeout,
    /// A keep-alive connection without a further request.
    IdleTimeout,
    /// A connection whose client did not read the response.
    WriteTimeout,
    /// A body that did not arrive in time.
    BodyTimeout,
    /// An idle connection closed for a new one.
    Evicted,
    /// A connection refused because its address has too many.
    AddressLimit,
    /// A connection that had to wait for another to close.
    ConnectionLimit,
    /// The system had no descriptor or memory for a connection.
    AcceptFailed,
    /// A body refused because bodies fill their memory.
    BodyMemory,
    /// A body with too many JSON values.
    JsonSize,
    /// A request with a foreign Host.
    HostRefused,
    /// A request from a page of another origin.
    OriginRefused,
}

/// All events, with their metric label and log message.
const EVENTS: [(LimitEvent, &str, &str); 12] = [
    (LimitEvent::HeaderTimeout, "header_timeout", "closed: no complete request header in time"),
    (LimitEvent::IdleTimeout, "idle_timeout", "closed: no further request in time"),
    (LimitEvent::WriteTimeout, "write_timeout", "closed: the client does not read the response"),
    (LimitEvent::BodyTimeout, "body_timeout", "refused with 408: the request body did not arrive in time"),
    (LimitEvent::Evicted, "evicted", "closed: the longest idle connection, to accept another"),
    (LimitEvent::AddressLimit, "address_limit", "refused: too many connections from one address"),
    (LimitEvent::ConnectionLimit, "connection_limit", "delayed: as many connections as allowed are busy"),
    (LimitEvent::AcceptFailed, "accept_failed", "accept failed: out of descriptors or memory"),
    (LimitEvent::BodyMemory, "body_memory", "refused with 503: request bodies fill their memory"),
    (LimitEvent::JsonSize, "json_size", "refused with 400: too many JSON values in a body"),
    (LimitEvent::HostRefused, "host", "refused with 403: Host is not this server; see --allow-host"),
    (
        LimitEvent::OriginRefused,
        "origin",
        "refused with 403: page of another origin; see --cors and --allow-host",
    ),
];

/// Minimum time between log lines about the same event.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

pub type EventLabels = [(&'static str, &'static str); 1];

/// Counts events at limits and open connections.
#[derive(Debug, Default)]
pub struct LimitEvents {
    /// Events so far, by kind.
    pub counts: Family<EventLabels, Counter>,
    pub connections: AtomicU64,
    unlogged: Mutex<[Unlogged; EVENTS.len()]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Unlogged {
    count: u64,
    logged: Option<Instant>,
}

impl LimitEvents {
    pub fn note(&self, event: LimitEvent) {
        let (_, label, _) = EVENTS[event as usize];
        self.counts.get_or_create(&[("limit", label)]).inc();
        self.lock()[event as usize].count += 1;
    }

    /// Logs each kind of event that was not logged in the last interval. `most` is the connection limit.
    pub fn log(&self, most: usize) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (unlogged, entry) in self.lock().iter_mut().zip(EVENTS) {
            if unlogged.count > 0 && unlogged.logged.is_none_or(|at| now - at >= LOG_INTERVAL) {
                due.push((entry, unlogged.count));
                *unlogged = Unlogged { count: 0, logged: Some(now) };
            }
        }
        let open = self.connections.load(Ordering::Relaxed);
        for ((event, limit, what), count) in due {
            if event == LimitEvent::IdleTimeout {
                tracing::debug!(limit, count, open, most, "{what}");
            } else {
                tracing::warn!(limit, count, open, most, "{what}");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Unlogged; EVENTS.len()]> {
        self.unlogged.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_at_its_own_index() {
        EVENTS.iter().enumerate().for_each(|(i, (event, ..))| assert_eq!(*event as usize, i));
    }
}
