//! Receives request bodies within limits on size, time and total memory, and processes them on a limited number of
//! blocking threads.

use super::errors::ApiError;
use super::limits::{HttpLimits, LimitEvent, LimitEvents};
use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::StatusCode;
use futures_util::StreamExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{timeout, timeout_at};

/// Bytes of a body that need no reservation, so that short requests never wait for large bodies.
const FREE_BYTES: usize = 16 << 10;
/// Granularity of reservations while a body arrives.
const RESERVATION_BYTES: usize = 64 << 10;
/// Bodies that cost more are processed by [`LARGE_WORKERS`] threads.
const LARGE_BYTES: usize = 256 << 10;
/// Maximum number of threads for large bodies.
const LARGE_WORKERS: usize = 2;
/// Maximum number of threads for other bodies.
const SMALL_WORKERS: usize = 32;

/// Limits and memory shared by all request bodies.
#[derive(Debug)]
pub struct Intake {
    limits: HttpLimits,
    /// Maximum bytes of a body.
    max_body: usize,
    /// Memory for bodies; a permit is 1 KiB.
    memory: Arc<Semaphore>,
    large: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

/// A received body, whose memory reservation ends when it is dropped.
#[derive(Debug)]
pub struct ReceivedBody {
    pub bytes: Vec<u8>,
    /// Reservation in the memory for all bodies.
    pub reservation: BodyReservation,
}

/// The chunks of a request body within the limits on size and time.
pub struct LimitedBody<'i> {
    limits: &'i HttpLimits,
    /// Maximum bytes of the body.
    most: usize,
    events: &'i LimitEvents,
    body: BodyDataStream,
    start: Instant,
    /// Bytes of the body received so far.
    received: usize,
}

impl LimitedBody<'_> {
    /// Returns the next chunk; `None` at the end of the body.
    ///
    /// # Errors
    /// Returns 413 for a body that is too large, 408 for one that arrives too slowly, and 400 if the client ends it early.
    pub async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        let deadline = deadline(self.start, self.received, self.limits);
        let chunk = match timeout_at(deadline.into(), self.body.next()).await {
            Ok(None) => return None,
            Ok(Some(chunk)) => chunk,
            Err(_) => {
                self.events.note(LimitEvent::BodyTimeout);
                return Some(Err(too_slow(self.start.elapsed(), self.received, self.limits)));
            }
        };
        let malformed = |e| ApiError::malformed(StatusCode::BAD_REQUEST, format!("body: {e}"));
        let chunk = chunk.map_err(malformed);
        self.received += chunk.as_ref().map_or(0, Bytes::len);
        if self.received > self.most { Some(Err(too_large(self.most))) } else { Some(chunk) }
    }
}

/// A reservation in the memory for all bodies.
#[derive(Debug, Default)]
pub struct BodyReservation(Option<OwnedSemaphorePermit>);

impl BodyReservation {
    fn bytes(&self) -> usize {
        FREE_BYTES + self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * 1024
    }

    /// Extends the reservation, by at most half of the total memory.
    ///
    /// # Errors
    /// Returns 503 if other bodies do not release memory in time.
    pub async fn extend(
        &mut self,
        intake: &Intake,
        events: &LimitEvents,
        bytes: usize,
    ) -> Result<(), ApiError> {
        let limits = &intake.limits;
        let permits = bytes.min(limits.body_bytes / 2).div_ceil(1024) as u32;
        let more = intake.memory.clone().acquire_many_owned(permits);
        let Ok(more) = timeout(limits.body_wait, more).await else {
            events.note(LimitEvent::BodyMemory);
            return Err(ApiError::overloaded(limits.body_bytes));
        };
        let more = more.map_err(ApiError::internal)?;
        match &mut self.0 {
            Some(held) => held.merge(more),
            None => self.0 = Some(more),
        }
        Ok(())
    }
}

impl Intake {
    pub fn new(limits: &HttpLimits, max_body: usize) -> Self {
        let semaphore = |n: usize| Arc::new(Semaphore::new(n.min(Semaphore::MAX_PERMITS)));
        Intake {
            limits: limits.clone(),
            max_body,
            memory: semaphore(limits.body_bytes / 1024),
            large: semaphore(LARGE_WORKERS),
            small: semaphore(SMALL_WORKERS),
        }
    }

    /// Receives a request body within the limits.
    ///
    /// # Errors
    /// Returns 413 for a body that is too large (at once if Content-Length says so), 408 for one that arrives too slowly,
    /// 503 if other bodies fill the memory, and 400 if the client ends it early.
    pub async fn receive(
        &self,
        events: &LimitEvents,
        declared: Option<u64>,
        body: Body,
    ) -> Result<ReceivedBody, ApiError> {
        let mut received = ReceivedBody { bytes: Vec::new(), reservation: BodyReservation::default() };
        let mut body = self.limited(events, declared, body)?;
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            while received.bytes.len() + chunk.len() > received.reservation.bytes() {
                received.reservation.extend(self, events, RESERVATION_BYTES).await?;
            }
            received.bytes.extend_from_slice(&chunk);
        }
        Ok(received)
    }

    /// Limits size and time of a request body that is not kept in memory.
    ///
    /// # Errors
    /// Returns 413 for a body whose Content-Length is too large; the others of [`Intake::receive`] are those of the chunks.
    pub fn limited<'i>(
        &'i self,
        events: &'i LimitEvents,
        declared: Option<u64>,
        body: Body,
    ) -> Result<LimitedBody<'i>, ApiError> {
        let most = self.max_body;
        if declared.is_some_and(|bytes| bytes > most as u64) {
            return Err(too_large(most));
        }
        let (limits, body) = (&self.limits, body.into_data_stream());
        Ok(LimitedBody { limits, most, events, body, start: Instant::now(), received: 0 })
    }

    /// Runs work on a body of this cost (in bytes) on a blocking thread. The flag becomes true when the caller is dropped.
    ///
    /// # Errors
    /// Returns an internal error if the work panicked.
    pub async fn run<T, F>(&self, cost: usize, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&AtomicBool) -> T + Send + 'static,
    {
        struct Caller(Arc<AtomicBool>);
        impl Drop for Caller {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let workers = if cost > LARGE_BYTES { &self.large } else { &self.small };
        let worker = workers.clone().acquire_owned().await.map_err(ApiError::internal)?;
        let caller = Caller(Arc::default());
        let gone = caller.0.clone();
        let work = move || {
            let _worker = worker;
            work(&gone)
        };
        tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)
    }
}

/// Returns the deadline of the next chunk: within the stall limit, at the minimum rate, and within the total time.
fn deadline(start: Instant, received: usize, limits: &HttpLimits) -> Instant {
    let at_rate = limits.body_stall + Duration::from_secs(received as u64 / limits.body_rate.max(1));
    (Instant::now() + limits.body_stall).min(start + at_rate.min(limits.body_timeout))
}

fn too_large(most: usize) -> ApiError {
    let why = format!("body: expected at most {most} bytes, found more (--max-body)");
    ApiError::malformed(StatusCode::PAYLOAD_TOO_LARGE, why)
}

fn too_slow(elapsed: Duration, received: usize, limits: &HttpLimits) -> ApiError {
    let (seconds, rate) = (elapsed.as_secs_f64(), limits.body_rate);
    let why = format!("body: expected at least {rate} bytes/s, found {received} bytes after {seconds:.1} s");
    ApiError::malformed(StatusCode::REQUEST_TIMEOUT, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_deadline_follows_stall_rate_and_total_limits() {
        let limits = HttpLimits::default();
        let left = |seconds: u64, received| {
            let start = Instant::now() - Duration::from_secs(seconds);
            (deadline(start, received, &limits) - Instant::now()).as_secs_f64().round()
        };
        assert_eq!((left(0, 0), left(29, 0), left(31, 0)), (30.0, 1.0, 0.0));
        assert_eq!((left(31, 8192), left(100, 1 << 20), left(590, 1 << 30)), (1.0, 30.0, 10.0));
    }
}
