//! Captures the launches of a decode step in CUDA graphs and replays them.
//!
//! Launching a token's kernels one by one takes the host longer than the device. Everything that changes between tokens
//! is in device memory: ids and cache lengths, which kernels advance. A graph is keyed by its model, the addresses of its
//! states and the number of attention parts; it is captured on the second occurrence (the first loads kernels), with
//! memory of its own. While one thread captures, others wait.
//!
//! Experts in RAM need the host, which reads the router's choice: [`Cuda::defer`] ends the graph there, so that a step is
//! one graph up to the first mixture, one between each two, and one after the last, with the host's work between them.

use super::driver::{Address, GraphExec};
use super::memory::{CapturedMemory, DeviceBuffer, Tensor};
use super::{Cuda, Weight, attention};
use crate::backend::StatePart;
use std::cell::{Cell, RefCell};
use std::sync::{MutexGuard, PoisonError};

/// Largest number of cached steps: one per set of states decoded in turn.
const MAX_GRAPHS: usize = 8;

/// The key of a graph.
type Key = Vec<u64>;

thread_local! {
    /// Key of this thread's last graph-cache miss; captured next.
    static LAST_MISS: Cell<Option<Key>> = const { Cell::new(None) };
    /// The step that this thread captures.
    static CAPTURED: RefCell<Option<StepCapture>> = const { RefCell::new(None) };
}

/// The part of a step captured so far.
struct StepCapture {
    ids: Address,
    segments: Vec<StepSegment>,
}

/// Work of the host between two graphs of a step.
type HostWork = Box<dyn Fn(&Cuda) + Send>;

/// A graph, and the host's work after it.
struct StepSegment {
    launches: GraphExec,
    then: HostWork,
}

/// Address of the ids of the step that this thread captures.
pub(super) fn captured_ids() -> Option<Address> {
    CAPTURED.with_borrow(|step| step.as_ref().map(|step| step.ids))
}

/// Holds the captured step until the capture ends, also by a panic.
struct CaptureScope;

impl CaptureScope {
    fn begin(ids: Address) -> CaptureScope {
        CAPTURED.set(Some(StepCapture { ids, segments: Vec::new() }));
        CaptureScope
    }
}

impl Drop for CaptureScope {
    fn drop(&mut self) {
        CAPTURED.set(None);
    }
}

/// The graph cache of a backend.
#[derive(Default)]
pub(super) struct GraphCache {
    /// Keys run once, op by op.
    seen: Option<Key>,
    /// Steps, most recently used last.
    graphs: Vec<CapturedStep>,
    /// Number of steps that replayed a graph instead of launching op by op.
    pub(super) replayed: u64,
}

struct CapturedStep {
    key: Key,
    /// The graphs that the host's work follows.
    segments: Vec<StepSegment>,
    /// The graph up to the logits.
    last: GraphExec,
    ids: DeviceBuffer,
    logits: Tensor,
    /// Reserves the scratch buffers of the launches as long as the graph exists.
    _memory: CapturedMemory,
}

impl Cuda {
    pub(super) fn steps(&self) -> MutexGuard<'_, GraphCache> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replay_step(
        &self,
        weight: &Weight,
        ids: &[u32],
        state: &mut [StatePart<'_, Cuda>],
    ) -> Option<Tensor> {
        let mut key = vec![self.driver.epoch(), weight.planes[0], ids.len() as u64];
        for part in state.iter_mut() {
            match part {
                StatePart::Tensor(x) => key.push(x.at()),
                StatePart::Cache(cache) => {
                    cache.prepare(1);
                    let reach = attention::reach(cache.len() + 1);
                    key.extend([cache.header(), cache.width() as u64, cache.format() as u64, reach as u64]);
                }
            }
        }
        let graph = {
            let mut steps = self.steps();
            let at = steps.graphs.iter().position(|step| step.key == key);
            at.map(|at| steps.graphs.remove(at))
        };
        let Some(step) = graph else {
            LAST_MISS.set(Some(key));
            return None;
        };
        let logits = self.run_step(&step, ids);
        let mut steps = self.steps();
        steps.graphs.push(step);
        steps.replayed += 1;
        drop(steps);
        for part in state {
            if let StatePart::Cache(cache) = part {
                cache.advance(1);
            }
        }
        Some(logits)
    }

    pub(super) fn capture_step(&self, ids: &[u32], step: impl FnOnce() -> Tensor) -> Tensor {
        let missed = LAST_MISS.take();
        let again = missed.is_some() && self.steps().seen == missed;
        self.steps().seen = missed.clone();
        let Some(key) = missed.filter(|_| again) else { return step() };
        let own = self.buffers.upload(ids);
        let (mut logits, mut segments) = (None, Vec::new());
        let (last, memory) = self.buffers.capture(|| {
            let _scope = CaptureScope::begin(own.at);
            logits = Some(step());
            segments = CAPTURED.take().map_or_else(Vec::new, |step| step.segments);
        });
        let logits = logits.expect("the step ran");
        let step = CapturedStep { key, segments, last, ids: own, logits, _memory: memory };
        let result = self.run_step(&step, ids);
        let mut steps = self.steps();
        if steps.graphs.len() == MAX_GRAPHS {
            steps.graphs.remove(0);
        }
        steps.graphs.push(step);
        result
    }

    /// Defers `work` to each replay of the step that this thread captures: between the launches so far and those after it.
    /// Tensors and addresses that it uses are the step's own ([`Tensor::reserved`]).
    pub(super) fn defer(&self, work: impl Fn(&Cuda) + Send + 'static) {
        let launches = self.driver.split_capture();
        CAPTURED.with_borrow_mut(|step| {
            let step = step.as_mut().expect("a step is captured");
            step.segments.push(StepSegment { launches, then: Box::new(work) });
        });
    }

    /// Copies the logits to separate memory.
    fn run_step(&self, step: &CapturedStep, ids: &[u32]) -> Tensor {
        self.driver.upload(step.ids.at, bytemuck::cast_slice(ids));
        for StepSegment { launches, then } in &step.segments {
            self.driver.replay(launches);
            then(self);
        }
        self.driver.replay(&step.last);
        let logits = self.buffers.tensor(step.logits.rows, step.logits.cols);
        self.driver.copy(logits.at(), step.logits.at(), 4 * logits.len());
        logits
    }
}
