//! The queue: owners take turns, each in the order of arrival. A leaf: knows nothing of what waits.

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
    /// Whether nothing waits.
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

    /// Returns an item to the head of its owner's lane.
    pub fn push_front(&mut self, owner: u64, item: T) {
        match self.lanes.iter_mut().find(|(o, _)| *o == owner) {
            Some((_, lane)) => lane.push_front(item),
            None => self.lanes.push_back((owner, VecDeque::from([item]))),
        }
    }

    /// The owner whose turn it is: the one with the least `load`, of several the one that waits longest. Its next item is
    /// not overtaken: one that needs much room would wait without end.
    pub fn turn(&self, load: impl Fn(u64) -> usize) -> Option<u64> {
        self.lanes.iter().map(|(owner, _)| *owner).min_by_key(|owner| load(*owner))
    }

    /// The next item of an owner.
    pub fn front(&self, owner: u64) -> Option<&T> {
        self.lanes.iter().find(|(o, _)| *o == owner)?.1.front()
    }

    /// Takes the next item of an owner, whose lane goes behind the others.
    pub fn pop(&mut self, owner: u64) -> Option<T> {
        let at = self.lanes.iter().position(|(o, _)| *o == owner)?;
        let (_, mut lane) = self.lanes.remove(at)?;
        let item = lane.pop_front();
        if !lane.is_empty() {
            self.lanes.push_back((owner, lane));
        }
        item
    }

    /// All that wait.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.iter().flat_map(|(_, lane)| lane)
    }

    /// All that wait, the last of each lane first.
    pub fn backwards(&mut self) -> impl Iterator<Item = &mut T> {
        self.lanes.iter_mut().flat_map(|(_, lane)| lane.iter_mut().rev())
    }

    /// Takes everything.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.lanes).into_iter().flat_map(|(_, lane)| lane)
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
        assert_eq!((q.front(2), q.front(4)), (Some(&"b1"), None));
        let order: Vec<_> = std::iter::from_fn(|| q.turn(|_| 0).and_then(|owner| q.pop(owner))).collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "a3"]);
    }

    #[test]
    fn the_owner_with_the_least_load_is_next() {
        let mut q = Queue::default();
        [(1, "a"), (2, "b"), (3, "c")].into_iter().for_each(|(owner, item)| q.push(owner, item));
        let load = |owner| [9, 5, 2, 2][owner as usize];
        assert_eq!(q.turn(load), Some(2));
        assert_eq!(q.pop(2), Some("b"));
        q.push_front(1, "returned");
        assert_eq!(q.turn(load), Some(3));
        assert_eq!(q.front(1), Some(&"returned"));
        assert_eq!(q.drain().collect::<Vec<_>>(), ["returned", "a", "c"]);
        assert!(q.is_empty());
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut q = Queue::default();
        (0..6).for_each(|i| q.push(i % 2, i));
        q.retain(|i| i % 2 == 1 && *i > 1);
        assert_eq!((q.len(), q.pop(1)), (2, Some(3)));
    }
}
