//! Signals while a client runs: Ctrl-C belongs to the client, so it only sets a flag here; SIGTERM and SIGHUP are passed on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Flags that signals set. Programs that are started afterwards have the default actions.
#[derive(Clone, Default)]
pub struct LaunchSignals {
    interrupted: Arc<AtomicBool>,
    terminated: Arc<AtomicBool>,
}

impl LaunchSignals {
    /// Replaces the default actions, which end this process.
    #[cfg(unix)]
    pub fn install() -> io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        let signals = LaunchSignals::default();
        for (signal, flag) in [
            (SIGINT, &signals.interrupted),
            (SIGQUIT, &signals.interrupted),
            (SIGTERM, &signals.terminated),
            (SIGHUP, &signals.terminated),
        ] {
            signal_hook::flag::register(signal, flag.clone())?;
        }
        Ok(signals)
    }

    /// Replaces the default action of Ctrl-C. A closed console window ends all its processes.
    #[cfg(windows)]
    pub fn install() -> io::Result<Self> {
        let signals = LaunchSignals::default();
        let flag = signals.interrupted.clone();
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).map_err(io::Error::other)?;
        Ok(signals)
    }

    /// Returns whether a signal arrived that ends the launch before the client runs.
    pub fn any(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.terminated.load(Ordering::Relaxed)
    }

    /// Whether SIGTERM or SIGHUP arrived since the last call.
    pub fn take_terminated(&self) -> bool {
        self.terminated.swap(false, Ordering::Relaxed)
    }
}
