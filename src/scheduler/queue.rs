//! Fair queue: serves tenants in turn, and the items of each in the order of arrival. Generic over the items.

use std::collections::VecDeque;

/// Waiting items, grouped by tenant.
#[derive(Debug)]
pub struct FairQueue<T> {
    /// The next tenant is first; no lane is empty.
    lanes: VecDeque<(u64, VecDeque<T>)>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { lanes: VecDeque::new() }
    }
}

impl<T> FairQueue<T> {
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Counts the items of all tenants.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|(_, lane)| lane.len()).sum()
    }

    /// Appends an item to its tenant's lane.
    pub fn push(&mut self, tenant: u64, item: T) {
        match self.lanes.iter_mut().find(|(o, _)| *o == tenant) {
            Some((_, lane)) => lane.push_back(item),
            None => self.lanes.push_back((tenant, VecDeque::from([item]))),
        }
    }

    /// Returns an item to the head of its tenant's lane.
    pub fn push_front(&mut self, tenant: u64, item: T) {
        match self.lanes.iter_mut().find(|(o, _)| *o == tenant) {
            Some((_, lane)) => lane.push_front(item),
            None => self.lanes.push_back((tenant, VecDeque::from([item]))),
        }
    }

    /// Returns the tenant with the least `load`, and of equal ones the longest waiting. Its next item is never overtaken,
    /// because a large one would starve.
    pub fn next_tenant(&self, load: impl Fn(u64) -> usize) -> Option<u64> {
        self.lanes.iter().map(|(tenant, _)| *tenant).min_by_key(|tenant| load(*tenant))
    }

    /// Returns the next item of a tenant.
    pub fn front(&self, tenant: u64) -> Option<&T> {
        self.lanes.iter().find(|(o, _)| *o == tenant)?.1.front()
    }

    /// Takes the next item of a tenant and moves its lane behind the others.
    pub fn pop(&mut self, tenant: u64) -> Option<T> {
        let at = self.lanes.iter().position(|(o, _)| *o == tenant)?;
        let (_, mut lane) = self.lanes.remove(at)?;
        let item = lane.pop_front();
        if !lane.is_empty() {
            self.lanes.push_back((tenant, lane));
        }
        item
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.iter().flat_map(|(_, lane)| lane)
    }

    /// Iterates over all items, the last of each lane first.
    pub fn iter_rev_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.lanes.iter_mut().flat_map(|(_, lane)| lane.iter_mut().rev())
    }

    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.lanes).into_iter().flat_map(|(_, lane)| lane)
    }

    /// Removes the items for which `keep` returns false.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.lanes.iter_mut().for_each(|(_, lane)| lane.retain(&keep));
        self.lanes.retain(|(_, lane)| !lane.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns() {
        let mut q = FairQueue::default();
        for (tenant, item) in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (3, "c1")] {
            q.push(tenant, item);
        }
        assert_eq!(q.len(), 5);
        assert_eq!((q.front(2), q.front(4)), (Some(&"b1"), None));
        let order: Vec<_> =
            std::iter::from_fn(|| q.next_tenant(|_| 0).and_then(|tenant| q.pop(tenant))).collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "a3"]);
    }

    #[test]
    fn the_tenant_with_the_least_load_is_next() {
        let mut q = FairQueue::default();
        [(1, "a"), (2, "b"), (3, "c")].into_iter().for_each(|(tenant, item)| q.push(tenant, item));
        let load = |tenant| [9, 5, 2, 2][tenant as usize];
        assert_eq!(q.next_tenant(load), Some(2));
        assert_eq!(q.pop(2), Some("b"));
        q.push_front(1, "returned");
        assert_eq!(q.next_tenant(load), Some(3));
        assert_eq!(q.front(1), Some(&"returned"));
        assert_eq!(q.drain().collect::<Vec<_>>(), ["returned", "a", "c"]);
        assert!(q.is_empty());
    }

    #[test]
    fn retain_removes_empty_lanes() {
        let mut q = FairQueue::default();
        (0..6).for_each(|i| q.push(i % 2, i));
        q.retain(|i| i % 2 == 1 && *i > 1);
        assert_eq!((q.len(), q.pop(1)), (2, Some(3)));
    }
}
