//! Steps that are done again: the launches of a decoded token, recorded once and replayed.
//!
//! Seven hundred launches a token take the host longer than the device. What differs from one token to the next is in
//! device memory: the ids, and the lengths of caches, which kernels advance. A step is known by its model, by the
//! addresses of its states and by how far attention is cut; it is recorded when it comes the second time (the first
//! loads kernels), with memory of its own. While one thread records, others wait. Next: `super`.

use super::driver::{Address, Recorded};
use super::memory::{Buffer, Kept, Tensor};
use super::{Cuda, Weight, attention};
use crate::backend::Part;
use std::cell::Cell;
use std::sync::{MutexGuard, PoisonError};

/// Steps kept at most: as many sets of states as are decoded in turn.
const STEPS: usize = 8;

/// What a step is known by.
type Key = Vec<u64>;

thread_local! {
    /// What this thread asked for and was not had: it is done next.
    static WANTED: Cell<Option<Key>> = const { Cell::new(None) };
    /// Where ids are while this thread records a step.
    static IDS: Cell<Option<Address>> = const { Cell::new(None) };
}

/// Where a step that this thread records has its ids.
pub(super) fn recorded_ids() -> Option<Address> {
    IDS.get()
}

/// The steps of a backend.
#[derive(Default)]
pub(super) struct Steps {
    /// Done once, op by op.
    seen: Option<Key>,
    /// The one used last at the end.
    kept: Vec<Step>,
    /// Steps that were done by replaying.
    pub(super) replayed: u64,
}

struct Step {
    key: Key,
    launches: Recorded,
    ids: Buffer,
    logits: Tensor,
    /// Scratch of the launches.
    _memory: Kept,
}

impl Cuda {
    pub(super) fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replay_step(
        &self,
        weight: &Weight,
        ids: &[u32],
        state: &mut [Part<'_, Cuda>],
    ) -> Option<Tensor> {
        let mut key = vec![self.driver.epoch(), weight.planes[0], ids.len() as u64];
        for part in state.iter_mut() {
            match part {
                Part::Tensor(x) => key.push(x.at()),
                Part::Cache(cache) => {
                    cache.prepare(1);
                    let reach = attention::reach(cache.len() + 1);
                    key.extend([cache.header(), cache.width() as u64, cache.format() as u64, reach as u64]);
                }
            }
        }
        let kept = {
            let mut steps = self.steps();
            let at = steps.kept.iter().position(|step| step.key == key);
            at.map(|at| steps.kept.remove(at))
        };
        let Some(step) = kept else {
            WANTED.set(Some(key));
            return None;
        };
        let logits = self.run_step(&step, ids);
        let mut steps = self.steps();
        steps.kept.push(step);
        steps.replayed += 1;
        drop(steps);
        for part in state {
            if let Part::Cache(cache) = part {
                cache.advance(1);
            }
        }
        Some(logits)
    }

    pub(super) fn record_step(&self, ids: &[u32], step: impl FnOnce() -> Tensor) -> Tensor {
        let wanted = WANTED.take();
        let again = wanted.is_some() && self.steps().seen == wanted;
        self.steps().seen = wanted.clone();
        let Some(key) = wanted.filter(|_| again && self.host.get().is_none()) else { return step() };
        let own = self.buffers.upload(ids);
        IDS.set(Some(own.at));
        let mut logits = None;
        let (launches, memory) = self.buffers.record(|| logits = Some(step()));
        IDS.set(None);
        let logits = logits.expect("the step ran");
        let step = Step { key, launches, ids: own, logits, _memory: memory };
        let result = self.run_step(&step, ids);
        let mut steps = self.steps();
        if steps.kept.len() == STEPS {
            steps.kept.remove(0);
        }
        steps.kept.push(step);
        result
    }

    /// The logits in memory of their own.
    fn run_step(&self, step: &Step, ids: &[u32]) -> Tensor {
        self.driver.upload(step.ids.at, bytemuck::cast_slice(ids));
        self.driver.replay(&step.launches);
        let logits = self.buffers.tensor(step.logits.rows, step.logits.cols);
        self.driver.copy(logits.at(), step.logits.at(), 4 * logits.len());
        logits
    }
}
