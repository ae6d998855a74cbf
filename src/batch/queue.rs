//! Who is next: owners take turns, each in the order of arrival. A leaf: knows nothing of what waits.

use std::collections::VecDeque;

/// What waits, by owner.
#[derive(Debug)]
pub struct Queue<T> {
    /// The owner whose turn it is first; no lane is empty.
    lanes: VecDeque<(u64, VecDeque<T>)>,
}

impl<T> Default for Queue<T> {
    /// Nobody waits.
    fn default() -> Self {
        Queue { lanes: VecDeque::new() }
    }
}

impl<T> Queue<T> {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|(_, lane)| lane.len()).sum()
    }

    /// Joins the end of its owner's lane.
    pub fn push(&mut self, owner: u64, item: T) {
        match self.lanes.iter_mut().find(|(o, _)| *o == owner) {
            Some((_, lane)) => lane.push_back(item),
            None => self.lanes.push_back((owner, VecDeque::from([item]))),
        }
    }

    /// Takes the next if it fits. One that does not is not overtaken: it would wait for ever.
    pub fn pop_if(&mut self, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let (_, lane) = self.lanes.front_mut()?;
        if !fits(lane.front()?) {
            return None;
        }
        let item = lane.pop_front();
        if let Some((owner, lane)) = self.lanes.pop_front()
            && !lane.is_empty()
        {
            self.lanes.push_back((owner, lane));
        }
        item
    }

    /// Keeps those for which `keep` holds.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.lanes.iter_mut().for_each(|(_, lane)| lane.retain(&keep));
        self.lanes.retain(|(_, lane)| !lane.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_take_turns() {
        let mut q = Queue::default();
        for (owner, item) in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (3, "c1")] {
            q.push(owner, item);
        }
        assert_eq!(q.len(), 5);
        assert_eq!(q.pop_if(|_| false), None);
        let order: Vec<_> = std::iter::from_fn(|| q.pop_if(|_| true)).collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "a3"]);
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut q = Queue::default();
        (0..6).for_each(|i| q.push(i % 2, i));
        q.retain(|i| i % 2 == 1 && *i > 1);
        assert_eq!((q.len(), q.pop_if(|_| true)), (2, Some(3)));
    }
}
