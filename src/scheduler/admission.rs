//! Admits requests to slots and state memory, and preempts sequences so that every waiting tenant gets a share of both.
//!
//! The tenant with the fewest slots is next. If there is no room, sequences are preempted in this order: sequences whose
//! clients do not read; sequences of tenants with at least two slots more; and, of tenants with one slot more, sequences
//! that used their [`QUANTUM`]. A preempted sequence returns to the head of its tenant's queue with its state, which is
//! freed only when memory is short and is then restored from the prefix cache or recomputed. Its tokens do not change.

use super::slot::{Shortage, Slot};
use super::{Scheduler, SequenceRequest};
use kernels::backend::Backend;
use std::time::Instant;

/// Tokens that a sequence processes before a tenant with one slot less may preempt it.
pub(super) const QUANTUM: usize = 128;

/// A request or sequence that waits for a slot.
pub(super) enum Waiting<'e, B: Backend> {
    /// A request that has not been admitted yet.
    New(Box<SequenceRequest>),
    /// A sequence that was preempted.
    Preempted(Box<Slot<'e, B>>),
}

impl<'e, B: Backend> Waiting<'e, B> {
    pub(super) fn is_disconnected(&self) -> bool {
        match self {
            Waiting::New(request) => request.client.is_disconnected(),
            Waiting::Preempted(slot) => slot.is_disconnected(),
        }
    }

    /// Reports the cancellation to the client.
    pub(super) fn cancel(self) {
        match self {
            Waiting::New(request) => request.cancel(),
            Waiting::Preempted(slot) => slot.finish(),
        }
    }

    /// Bytes that its state occupies.
    pub(super) fn held_bytes(&self) -> u64 {
        match self {
            Waiting::New(_) => 0,
            Waiting::Preempted(slot) => slot.held_bytes(),
        }
    }

    fn preempted(&mut self) -> Option<&mut Slot<'e, B>> {
        match self {
            Waiting::New(_) => None,
            Waiting::Preempted(slot) => Some(slot),
        }
    }
}

impl<'e, B: Backend> Scheduler<'e, B> {
    /// Pauses sequences whose clients do not read and ends them after the read timeout. A sequence whose client reads
    /// again waits for a slot if its slot was taken.
    pub(super) fn check_clients(&mut self) {
        let (now, limit) = (Instant::now(), self.limits.unread);
        for slot in self.slots.iter_mut().chain(&mut self.stalled) {
            slot.check_client(now, limit);
        }
        self.finish_where(|slot| slot.is_disconnected() || slot.read_timed_out());
        let ready =
            |slot: &mut Slot<'e, B>| slot.is_disconnected() || slot.read_timed_out() || !slot.is_paused();
        for slot in self.stalled.extract_if(.., ready).collect::<Vec<_>>() {
            match slot.is_disconnected() || slot.read_timed_out() {
                true => slot.finish(),
                false => self.queue.push_front(slot.tenant, Waiting::Preempted(Box::new(slot))),
            }
        }
    }

    /// Admits waiting requests and sequences while there is room or preemption makes room. A request that needs more than
    /// the total memory runs alone.
    pub(super) fn admit_waiting(&mut self) {
        let mut promised = None;
        while let Some(tenant) =
            promised.take().or_else(|| self.queue.next_tenant(|tenant| self.load(tenant)))
        {
            let shortage = self.queue.front(tenant).and_then(|next| self.shortage(next));
            match shortage {
                None => match self.queue.pop(tenant) {
                    Some(Waiting::New(request)) => {
                        let request = *request;
                        let bytes = self.bytes_of(&request);
                        self.admit(request, bytes);
                    }
                    Some(Waiting::Preempted(slot)) => self.resume(*slot),
                    None => return,
                },
                // The freed slot is reserved for `tenant`, not for the preempted sequence.
                Some(shortage) if self.make_room(tenant, shortage) => promised = Some(tenant),
                Some(_) => return,
            }
        }
    }

    fn resume(&mut self, mut slot: Slot<'e, B>) {
        slot.resume();
        if slot.has_ended() { slot.finish() } else { self.slots.push(slot) }
    }

    /// Returns the resource that prevents its admission.
    fn shortage(&self, next: &Waiting<'e, B>) -> Option<Shortage> {
        let needs = match next {
            Waiting::New(request) => self.bytes_of(request),
            Waiting::Preempted(slot) => slot.bytes - slot.held_bytes(),
        };
        let taken = self.bytes();
        if self.slots.len() + self.prefix_waiters.len() + usize::from(self.exclusive.is_some())
            >= self.limits.slots
        {
            Some(Shortage::Slot)
        } else if needs > 0 && taken > 0 && taken.saturating_add(needs) > self.limits.bytes {
            Some(Shortage::Memory)
        } else {
            None
        }
    }

    /// Bytes of state at the maximum length of a request.
    fn bytes_of(&self, request: &SequenceRequest) -> u64 {
        let tokens = request.prompt.len().saturating_add(request.params.max_tokens) as u64;
        self.state_bytes.of(tokens.min(self.engine.context))
    }

    /// Counts the slots of a tenant.
    fn load(&self, tenant: u64) -> usize {
        let slots = self.slots.iter().map(|slot| slot.tenant);
        let waiting_for_prefix = self.prefix_waiters.iter().map(|(request, _)| request.tenant);
        let exclusive = self.exclusive.iter().map(|exclusive| exclusive.tenant);
        slots.chain(waiting_for_prefix).chain(exclusive).filter(|other| *other == tenant).count()
    }

    /// Preempts a sequence of another tenant or of a client that does not read. Returns false if there is none.
    fn make_room(&mut self, tenant: u64, shortage: Shortage) -> bool {
        if shortage == Shortage::Memory && self.free_one_state() {
            return true;
        }
        if let Some(at) = self.slots.iter().position(Slot::is_paused) {
            let slot = self.slots.remove(at);
            self.stalled.push(slot);
            return true;
        }
        let fair = self.load(tenant) + 1;
        if let Some(at) =
            self.prefix_waiters.iter().rposition(|(request, _)| self.load(request.tenant) > fair)
        {
            let (request, _) = self.prefix_waiters.remove(at);
            self.queue.push_front(request.tenant, Waiting::New(Box::new(request)));
            return true;
        }
        // Without a prefix cache, freed states would be recomputed again and again: wait for memory instead.
        if shortage == Shortage::Memory && !self.engine.store.fits_in_memory() {
            return false;
        }
        let yields = |slot: &Slot<'e, B>| {
            let load = self.load(slot.tenant);
            slot.tenant != tenant
                && slot.can_be_preempted()
                && (load > fair || load == fair && slot.used_quantum(QUANTUM, shortage))
        };
        let candidates = (0..self.slots.len()).filter(|i| yields(&self.slots[*i]));
        let youngest = |i: &usize| (self.load(self.slots[*i].tenant), self.slots[*i].admitted);
        let Some(at) = candidates.max_by_key(youngest) else { return false };
        let slot = self.slots.remove(at);
        self.queue.push_front(slot.tenant, Waiting::Preempted(Box::new(slot)));
        true
    }

    /// Frees the state of one sequence without a slot. Returns false if there is none.
    fn free_one_state(&mut self) -> bool {
        let waiting = self.queue.iter_rev_mut().filter_map(Waiting::preempted);
        let Some(slot) = self.stalled.iter_mut().chain(waiting).find(|slot| slot.held_bytes() > 0) else {
            return false;
        };
        slot.free_state();
        true
    }
}
