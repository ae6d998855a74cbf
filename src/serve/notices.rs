//! Logs what the server leaves out of requests, each kind once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Maximum number of different notices, as clients determine their text.
const MAX_NOTICES: usize = 200;

/// The notices that have been logged.
#[derive(Debug, Default)]
pub struct Notices(Mutex<BTreeSet<String>>);

impl Notices {
    /// Logs a notice unless it has been logged before.
    pub fn once(&self, notice: &str) {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() < MAX_NOTICES && logged.insert(notice.to_owned()) {
            tracing::info!("{notice}");
        }
    }
}
