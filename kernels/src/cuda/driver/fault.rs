//! Notices when the device fails: a call or kernel that reports an error, or work that does not end.
//!
//! The first failure is kept. After it no call reaches the driver, because each would fail or wait forever: calls unwind with
//! a [`DeviceFailure`], drops leave the device's memory to the end of the process. Waits therefore poll instead of blocking.

use super::{CUresult, sys, words};
use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Default of the longest time that work on the device may take, in milliseconds. A batch at a depth of a million tokens
/// takes a few seconds on a small card.
const WAIT_MS: u64 = 60_000;
/// Polls without a pause, which cover a decoded token.
const BUSY_POLLS: u32 = 20_000;
/// Pause between later polls, which cover a batch of a prompt.
const PAUSE: Duration = Duration::from_micros(50);

/// The payload with which ops of a failed device unwind, without a call of the panic hook: it is no bug of the program, and
/// what catches it reports it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the GPU failed: {0}")]
pub struct DeviceFailure(pub String);

/// The failure of a device, and the limit on waits for it.
pub(super) struct DeviceFault {
    failure: OnceLock<String>,
    wait_ms: AtomicU64,
}

impl Default for DeviceFault {
    fn default() -> DeviceFault {
        DeviceFault { failure: OnceLock::new(), wait_ms: AtomicU64::new(WAIT_MS) }
    }
}

impl DeviceFault {
    /// The message of the first failure.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Sets the longest time that work on the device may take.
    pub(super) fn limit_waits(&self, limit: Duration) {
        self.wait_ms.store(limit.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Records a failure, unless it follows from an earlier one.
    pub(super) fn record(&self, message: impl FnOnce() -> String) {
        self.failure.get_or_init(message);
    }

    /// Unwinds with the failure if the call was not successful.
    pub(super) fn done(&self, what: impl std::fmt::Display, code: CUresult) {
        if code != CUresult::CUDA_SUCCESS {
            self.record(|| format!("{what}: {}", words(code)));
            resume_unwind(Box::new(DeviceFailure(self.failure().unwrap_or_default().to_owned())));
        }
    }

    /// Polls until `query` reports an end, and returns its result. Work beyond the limit is a failure.
    pub(super) fn poll(&self, query: impl Fn() -> CUresult) -> CUresult {
        let start = Instant::now();
        for polls in 0_u32.. {
            let code = query();
            if code != CUresult::CUDA_ERROR_NOT_READY {
                return code;
            }
            if polls < BUSY_POLLS {
                std::hint::spin_loop();
                continue;
            }
            let limit = Duration::from_millis(self.wait_ms.load(Ordering::Relaxed));
            if start.elapsed() > limit {
                self.record(|| format!("work on the device did not end within {} s", limit.as_secs_f32()));
                return code;
            }
            thread::sleep(PAUSE);
        }
        CUresult::CUDA_ERROR_NOT_READY
    }

    /// Waits for all work issued to a stream. The context is current.
    pub(super) fn wait_for(&self, stream: sys::CUstream, what: impl std::fmt::Display) {
        // SAFETY: the stream is alive as long as the process.
        let code = self.poll(|| unsafe { sys::cuStreamQuery(stream) });
        self.done(what, code);
    }
}
