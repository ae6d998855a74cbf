//! Admission to slots and memory, and preemption: every owner that waits gets a share of both.
//!
//! The owner with the fewest slots is next. Where there is no room for it, sequences lose their slots to it: those whose
//! clients do not read; those of owners that hold at least two slots more; and of owners that hold one more those that had
//! their [`QUANTUM`]. A preempted sequence returns to the head of its owner's lane with its state, which is freed only when
//! memory is short; it is then restored from the prefix cache, or computed again. Its tokens do not change.

use super::slot::{Lack, Slot};
use super::{Batch, Job};
use kernels::backend::Backend;
use std::time::Instant;

/// Tokens that a sequence processes in its slot before an owner with one slot less takes it.
pub(super) const QUANTUM: usize = 128;

/// What waits for a slot.
pub(super) enum Waiting<'e, B: Backend> {
    /// A job that had none yet.
    New(Job),
    /// A sequence that lost it.
    Preempted(Box<Slot<'e, B>>),
}

impl<'e, B: Backend> Waiting<'e, B> {
    pub(super) fn gone(&self) -> bool {
        match self {
            Waiting::New(job) => job.client.gone(),
            Waiting::Preempted(slot) => slot.gone(),
        }
    }

    /// Tells its client that it was cancelled.
    pub(super) fn cancel(self) {
        match self {
            Waiting::New(job) => job.cancel(),
            Waiting::Preempted(slot) => slot.leave(),
        }
    }

    /// Memory that its state takes.
    pub(super) fn holds(&self) -> u64 {
        match self {
            Waiting::New(_) => 0,
            Waiting::Preempted(slot) => slot.holds(),
        }
    }

    fn preempted(&mut self) -> Option<&mut Slot<'e, B>> {
        match self {
            Waiting::New(_) => None,
            Waiting::Preempted(slot) => Some(slot),
        }
    }
}

impl<'e, B: Backend> Batch<'e, B> {
    /// Pauses sequences whose clients do not read, and ends those whose clients did not for too long. A client
    /// that reads again waits for a slot if its own was taken.
    pub(super) fn check_clients(&mut self) {
        let (now, limit) = (Instant::now(), self.limits.unread);
        for slot in self.slots.iter_mut().chain(&mut self.unread) {
            slot.check_client(now, limit);
        }
        self.part_with(|slot| slot.gone() || slot.is_unread());
        let ready = |slot: &mut Slot<'e, B>| slot.gone() || slot.is_unread() || !slot.is_paused();
        for slot in self.unread.extract_if(.., ready).collect::<Vec<_>>() {
            match slot.gone() || slot.is_unread() {
                true => slot.leave(),
                false => self.queue.push_front(slot.owner, Waiting::Preempted(Box::new(slot))),
            }
        }
    }

    /// Admits what waits, as long as there is room or it can be made. What needs more memory than there is at all is
    /// admitted when nothing else is.
    pub(super) fn admit(&mut self) {
        let mut promised = None;
        while let Some(owner) = promised.take().or_else(|| self.queue.turn(|owner| self.load(owner))) {
            let lack = self.queue.front(owner).and_then(|next| self.lack(next));
            match lack {
                None => match self.queue.pop(owner) {
                    Some(Waiting::New(job)) => {
                        let bytes = self.bytes_of(&job);
                        self.enter(job, bytes);
                    }
                    Some(Waiting::Preempted(slot)) => self.resume(*slot),
                    None => return,
                },
                // The freed slot goes to `owner`, not back to the preempted one.
                Some(lack) if self.make_room(owner, lack) => promised = Some(owner),
                Some(_) => return,
            }
        }
    }

    fn resume(&mut self, mut slot: Slot<'e, B>) {
        slot.resume();
        if slot.has_ended() { slot.leave() } else { self.slots.push(slot) }
    }

    /// What there is too little of for it.
    fn lack(&self, next: &Waiting<'e, B>) -> Option<Lack> {
        let needs = match next {
            Waiting::New(job) => self.bytes_of(job),
            Waiting::Preempted(slot) => slot.bytes - slot.holds(),
        };
        let taken = self.bytes();
        if self.slots.len() + self.held.len() + usize::from(self.away.is_some()) >= self.limits.slots {
            Some(Lack::Slot)
        } else if needs > 0 && taken > 0 && taken.saturating_add(needs) > self.limits.bytes {
            Some(Lack::Memory)
        } else {
            None
        }
    }

    /// Memory for the longest that a job's sequence may become.
    fn bytes_of(&self, job: &Job) -> u64 {
        let tokens = job.prompt.len().saturating_add(job.rules.max_tokens) as u64;
        self.state_bytes.of(tokens.min(self.engine.context))
    }

    /// Slots that an owner has.
    fn load(&self, owner: u64) -> usize {
        let slots = self.slots.iter().map(|slot| slot.owner);
        let held = self.held.iter().map(|(job, _)| job.owner);
        let away = self.away.iter().map(|away| away.owner);
        slots.chain(held).chain(away).filter(|other| *other == owner).count()
    }

    /// Takes a slot or memory from a sequence of another owner, or of a client that does not read; whether there was one.
    fn make_room(&mut self, owner: u64, lack: Lack) -> bool {
        if lack == Lack::Memory && self.free_a_state() {
            return true;
        }
        if let Some(at) = self.slots.iter().position(Slot::is_paused) {
            let slot = self.slots.remove(at);
            self.unread.push(slot);
            return true;
        }
        let fair = self.load(owner) + 1;
        if let Some(at) = self.held.iter().rposition(|(job, _)| self.load(job.owner) > fair) {
            let (job, _) = self.held.remove(at);
            self.queue.push_front(job.owner, Waiting::New(job));
            return true;
        }
        // Without a prefix cache what is freed is computed again, and again: then memory is waited for.
        if lack == Lack::Memory && !self.engine.store.fits_in_memory() {
            return false;
        }
        let yields = |slot: &Slot<'e, B>| {
            let load = self.load(slot.owner);
            slot.owner != owner
                && slot.can_be_preempted()
                && (load > fair || load == fair && slot.had_turn(QUANTUM, lack))
        };
        let candidates = (0..self.slots.len()).filter(|i| yields(&self.slots[*i]));
        let youngest = |i: &usize| (self.load(self.slots[*i].owner), self.slots[*i].admitted);
        let Some(at) = candidates.max_by_key(youngest) else { return false };
        let slot = self.slots.remove(at);
        self.queue.push_front(slot.owner, Waiting::Preempted(Box::new(slot)));
        true
    }

    /// Frees the state of a sequence without a slot; whether there was one.
    fn free_a_state(&mut self) -> bool {
        let waiting = self.queue.backwards().filter_map(Waiting::preempted);
        let Some(slot) = self.unread.iter_mut().chain(waiting).find(|slot| slot.holds() > 0) else {
            return false;
        };
        slot.free_state();
        true
    }
}
