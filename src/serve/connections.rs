//! Table of open connections with their phases and time limits. Chooses the connection to close when the table is full.
//! The sockets belong to `listener`.

use super::limits::{HttpLimits, LimitEvent};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the first byte of a request.
    Idle,
    /// Before the end of a request's header.
    Header,
    /// From the end of a header to the end of the response.
    Busy,
}

#[derive(Debug)]
struct ConnectionState {
    phase: Phase,
    since: Instant,
    /// Time since which the client takes no bytes of a response.
    write_blocked: Option<Instant>,
    closing: bool,
}

#[derive(Debug)]
pub struct Connection {
    address: IpAddr,
    state: Mutex<ConnectionState>,
    close: Notify,
}

impl Connection {
    fn new(address: IpAddr) -> Self {
        let state = ConnectionState {
            phase: Phase::Idle,
            since: Instant::now(),
            write_blocked: None,
            closing: false,
        };
        Connection { address, state: Mutex::new(state), close: Notify::new() }
    }

    /// Records that bytes arrived; between requests they begin a header.
    pub fn on_read(&self) {
        let mut state = lock(&self.state);
        if state.phase == Phase::Idle {
            (state.phase, state.since) = (Phase::Header, Instant::now());
        }
    }

    /// Records that a header is complete.
    pub fn on_request(&self) {
        let mut state = lock(&self.state);
        (state.phase, state.since) = (Phase::Busy, Instant::now());
    }

    /// Records that a response was handed to the socket.
    pub fn on_response_end(&self) {
        let mut state = lock(&self.state);
        (state.phase, state.since) = (Phase::Idle, Instant::now());
    }

    /// Records whether the socket accepted bytes.
    pub fn on_write(&self, blocked: bool) {
        let mut state = lock(&self.state);
        state.write_blocked = blocked.then(|| state.write_blocked.unwrap_or_else(Instant::now));
    }

    /// Waits until the connection must be closed.
    pub async fn closed(&self) {
        self.close.notified().await;
    }

    /// Returns the time limit that has passed, if any.
    fn expired(&self, now: Instant, limits: &HttpLimits) -> Option<LimitEvent> {
        let state = lock(&self.state);
        let past = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        if state.closing {
            return None;
        }
        if let Some(since) = state.write_blocked {
            return past(since, limits.write_timeout).then_some(LimitEvent::WriteTimeout);
        }
        match state.phase {
            Phase::Idle => past(state.since, limits.idle_timeout).then_some(LimitEvent::IdleTimeout),
            Phase::Header => past(state.since, limits.header_timeout).then_some(LimitEvent::HeaderTimeout),
            Phase::Busy => None,
        }
    }

    /// Returns the time since which it waits for a request, unless it is closing or busy.
    fn waiting_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        (state.phase != Phase::Busy && !state.closing && state.write_blocked.is_none()).then_some(state.since)
    }

    /// Withdraws an eviction if a request has arrived meanwhile. A response that the client does not read stays evicted.
    pub fn stays_for_request(&self) -> bool {
        let mut state = lock(&self.state);
        if state.phase == Phase::Busy && state.write_blocked.is_none() {
            state.closing = false;
        }
        !state.closing
    }

    fn close(&self) {
        lock(&self.state).closing = true;
        self.close.notify_one();
    }
}

/// The reason that a connection is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The address has too many connections, all of them busy.
    Address,
    /// There are too many connections, and one of them is closing.
    Closing,
    /// There are too many connections, all of them busy.
    Busy,
}

#[derive(Debug)]
pub struct Connections {
    limits: HttpLimits,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Arc<Connection>>,
    next: u64,
}

impl Connections {
    pub fn new(limits: HttpLimits) -> Arc<Self> {
        Arc::new(Connections { limits, table: Mutex::default(), freed: Notify::new() })
    }

    /// Adds a connection, or starts to close the one that has waited longest for a request.
    ///
    /// # Errors
    /// Fails while the table or the share of the address is full.
    pub fn accept(self: &Arc<Self>, address: IpAddr) -> Result<Registered, Full> {
        let address = network(address);
        let mut table = lock(&self.table);
        let of_address = |c: &Connection| c.address == address;
        let closing = |c: &Connection| lock(&c.state).closing;
        let mine = table.open.values().filter(|c| of_address(c) && !closing(c)).count();
        if !address.is_loopback() && mine >= self.limits.per_address {
            let oldest = longest_waiting(table.open.values().filter(|c| of_address(c)));
            oldest.ok_or(Full::Address)?.close();
            return Err(Full::Closing);
        }
        if table.open.len() >= self.limits.connections {
            if table.open.values().any(|c| closing(c)) {
                return Err(Full::Closing);
            }
            longest_waiting(table.open.values()).ok_or(Full::Busy)?.close();
            return Err(Full::Closing);
        }
        let (id, connection) = (table.next, Arc::new(Connection::new(address)));
        table.next += 1;
        table.open.insert(id, connection.clone());
        Ok(Registered { table: self.clone(), id, connection })
    }

    /// Waits until a connection has closed, or up to 20 ms, as another may have become idle.
    pub async fn freed(&self) {
        let _ = tokio::time::timeout(Duration::from_millis(20), self.freed.notified()).await;
    }

    /// Closes connections whose time limit has passed.
    pub fn sweep(&self) -> Vec<LimitEvent> {
        let now = Instant::now();
        let table = lock(&self.table);
        let expired = |c: &Arc<Connection>| c.expired(now, &self.limits).inspect(|_| c.close());
        table.open.values().filter_map(expired).collect()
    }

    /// Returns the time between sweeps: a quarter of the shortest time limit.
    pub fn sweep_interval(&self) -> Duration {
        let l = &self.limits;
        let shortest = l.header_timeout.min(l.idle_timeout).min(l.write_timeout);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_millis(500))
    }

    /// Returns true if the connection limit is reached.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limits.connections
    }

    pub fn len(&self) -> usize {
        lock(&self.table).open.len()
    }
}

/// A connection in the table, until it is dropped.
#[derive(Debug)]
pub struct Registered {
    table: Arc<Connections>,
    id: u64,
    pub connection: Arc<Connection>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.table.table).open.remove(&self.id);
        self.table.freed.notify_one();
    }
}

fn longest_waiting<'c>(open: impl Iterator<Item = &'c Arc<Connection>>) -> Option<&'c Arc<Connection>> {
    open.filter_map(|c| Some((c.waiting_since()?, c))).min_by_key(|(since, _)| *since).map(|(_, c)| c)
}

/// Returns the address, or the /64 network of an IPv6 address, which usually belongs to one client.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let s = v6.segments();
            IpAddr::from([s[0], s[1], s[2], s[3], 0, 0, 0, 0])
        }
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn table(connections: usize, per_address: usize) -> Arc<Connections> {
        Connections::new(HttpLimits { connections, per_address, ..HttpLimits::default() })
    }

    #[test]
    fn the_longest_waiting_connection_is_evicted_and_busy_ones_stay() {
        let all = table(3, 1);
        let open: Vec<_> = (0..3).map(|_| all.accept(HOME).unwrap()).collect();
        open[0].connection.on_request();
        assert_eq!(all.accept(HOME).unwrap_err(), Full::Closing);
        let closing = |i: usize| lock(&open[i].connection.state).closing;
        assert_eq!([closing(0), closing(1), closing(2)], [false, true, false]);
        // One connection is already closing, so no second one is closed.
        assert_eq!(all.accept(HOME).unwrap_err(), Full::Closing);
        assert!(!closing(2));
        open[2].connection.on_request();
        let [first, second, third] = <[_; 3]>::try_from(open).unwrap();
        drop(second);
        let fourth = all.accept(HOME).unwrap();
        fourth.connection.on_request();
        assert_eq!(all.accept(HOME).unwrap_err(), Full::Busy);
        drop((first, third, fourth));
        assert_eq!(all.len(), 0);
    }

    #[test]
    fn a_request_that_arrives_withdraws_an_eviction() {
        let all = table(1, 1);
        let only = all.accept(HOME).unwrap();
        assert_eq!(all.accept(HOME).unwrap_err(), Full::Closing);
        only.connection.on_read();
        assert!(!only.connection.stays_for_request(), "a header alone does not");
        only.connection.on_request();
        assert!(only.connection.stays_for_request());
        assert_eq!(all.accept(HOME).unwrap_err(), Full::Busy);
        only.connection.on_write(true);
        only.connection.close();
        assert!(!only.connection.stays_for_request(), "a response that is not read does not");
    }

    #[test]
    fn connections_per_address_are_limited() {
        let all = table(9, 2);
        let [a, b]: [IpAddr; 2] = ["2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()];
        let [first, second] = [all.accept(a).unwrap(), all.accept(b).unwrap()];
        first.connection.on_request();
        second.connection.on_request();
        assert_eq!(all.accept(a).unwrap_err(), Full::Address);
        let other = all.accept("2001:db8:0:1::1".parse().unwrap()).unwrap();
        second.connection.on_response_end();
        assert_eq!(all.accept(a).unwrap_err(), Full::Closing);
        assert!(lock(&second.connection.state).closing && !lock(&other.connection.state).closing);
        assert!(all.accept(a).is_ok());
    }

    #[test]
    fn phases_have_their_time_limits() {
        let limits = HttpLimits::default();
        let c = Connection::new(HOME);
        let after = |seconds| c.expired(Instant::now() + Duration::from_secs(seconds), &limits);
        assert_eq!((after(74), after(76)), (None, Some(LimitEvent::IdleTimeout)));
        c.on_read();
        assert_eq!((after(1), after(16)), (None, Some(LimitEvent::HeaderTimeout)));
        c.on_request();
        assert_eq!(after(100_000), None);
        c.on_write(true);
        assert_eq!(after(61), Some(LimitEvent::WriteTimeout));
        c.on_write(false);
        c.on_response_end();
        assert_eq!((after(61), after(76)), (None, Some(LimitEvent::IdleTimeout)));
        c.on_read();
        assert_eq!(after(16), Some(LimitEvent::HeaderTimeout));
    }
}
