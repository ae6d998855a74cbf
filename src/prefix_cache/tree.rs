//! A radix tree: values by sequences of token ids, with longest-prefix lookup. It does not depend on model states.
//!
//! Nodes are in a vector and refer to each other by index. Every leaf and every node with one child has a value;
//! removing a value also removes the nodes that only led to it.

use std::collections::BTreeMap;

/// The index of a node.
pub type NodeId = usize;

const ROOT: NodeId = 0;

/// A map from sequences of token ids to values.
pub struct Tree<T> {
    nodes: Vec<Node<T>>,
    free: Vec<NodeId>,
    tokens: usize,
}

struct Node<T> {
    parent: NodeId,
    /// The tokens from the parent to this node.
    edge: Vec<u32>,
    /// The number of tokens from the root.
    depth: usize,
    /// The children by the first token of their edges.
    children: BTreeMap<u32, NodeId>,
    value: Option<T>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        let root = Node { parent: ROOT, edge: vec![], depth: 0, children: BTreeMap::new(), value: None };
        Tree { nodes: vec![root], free: vec![], tokens: 0 }
    }
}

impl<T> Tree<T> {
    /// Returns the values at prefixes of `tokens`, including all of it, shortest first: length, node, value.
    pub fn prefixes(&self, tokens: &[u32]) -> Vec<(usize, NodeId, &T)> {
        let (mut at, mut found) = (ROOT, Vec::new());
        loop {
            let node = &self.nodes[at];
            found.extend(node.value.as_ref().map(|value| (node.depth, at, value)));
            let rest = &tokens[node.depth..];
            let next = rest.first().and_then(|first| node.children.get(first));
            match next {
                Some(child) if rest.starts_with(&self.nodes[*child].edge) => at = *child,
                _ => return found,
            }
        }
    }

    /// Returns the values whose tokens a matcher accepts: its position and the node. `read` takes the matcher's
    /// position and the next tokens, and returns the position after them.
    pub fn readable<P: Copy>(&self, start: P, read: impl Fn(P, &[u32]) -> Option<P>) -> Vec<(P, NodeId)> {
        let (mut found, mut open) = (Vec::new(), vec![(start, ROOT)]);
        while let Some((position, at)) = open.pop() {
            let node = &self.nodes[at];
            found.extend(node.value.is_some().then_some((position, at)));
            let next = |child: &NodeId| Some((read(position, &self.nodes[*child].edge)?, *child));
            open.extend(node.children.values().filter_map(next));
        }
        found
    }

    /// Returns the tokens from the root to a node.
    pub fn path(&self, place: NodeId) -> Vec<u32> {
        let parents = std::iter::successors(Some(place), |at| Some(self.nodes[*at].parent));
        let mut nodes: Vec<_> = parents.take_while(|at| *at != ROOT).collect();
        nodes.reverse();
        nodes.into_iter().flat_map(|at| &self.nodes[at].edge).copied().collect()
    }

    /// Inserts a value at `tokens`, replacing an existing one.
    pub fn insert(&mut self, tokens: &[u32], value: T) -> NodeId {
        let mut at = ROOT;
        loop {
            let rest = &tokens[self.nodes[at].depth..];
            let Some(first) = rest.first() else { break };
            let Some(&child) = self.nodes[at].children.get(first) else {
                at = self.add(at, rest.to_vec());
                break;
            };
            let edge = &self.nodes[child].edge;
            let same = edge.iter().zip(rest).take_while(|(a, b)| a == b).count();
            at = if same == edge.len() { child } else { self.split(child, same) };
        }
        self.nodes[at].value = Some(value);
        at
    }

    pub fn remove(&mut self, place: NodeId) -> Option<T> {
        let value = self.nodes[place].value.take();
        self.tidy(place);
        value
    }

    /// Returns the value of a node, if any.
    pub fn get_mut(&mut self, place: NodeId) -> Option<&mut T> {
        self.nodes[place].value.as_mut()
    }

    /// Iterates over all values with their nodes.
    pub fn values(&self) -> impl Iterator<Item = (NodeId, &T)> {
        self.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, node.value.as_ref()?)))
    }

    /// The number of tokens of all edges, in which shared prefixes count once.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn add(&mut self, parent: NodeId, edge: Vec<u32>) -> NodeId {
        let depth = self.nodes[parent].depth + edge.len();
        self.tokens += edge.len();
        let first = edge[0];
        let node = Node { parent, edge, depth, children: BTreeMap::new(), value: None };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.nodes[parent].children.insert(first, at);
        at
    }

    /// Splits the edge to `child` after `same` tokens; returns the new node.
    fn split(&mut self, child: NodeId, same: usize) -> NodeId {
        let lower = self.nodes[child].edge.split_off(same);
        let upper = std::mem::take(&mut self.nodes[child].edge);
        let parent = self.nodes[child].parent;
        self.tokens -= upper.len();
        let middle = self.add(parent, upper);
        self.nodes[middle].children.insert(lower[0], child);
        self.nodes[child].edge = lower;
        self.nodes[child].parent = middle;
        middle
    }

    /// Removes the nodes without a value from `place` upwards that have at most one child.
    fn tidy(&mut self, place: NodeId) {
        let mut at = place;
        while at != ROOT && self.nodes[at].value.is_none() {
            let parent = self.nodes[at].parent;
            let first = self.nodes[at].edge[0];
            let mut children = self.nodes[at].children.values();
            match (children.next().copied(), children.next()) {
                (None, _) => {
                    self.nodes[parent].children.remove(&first);
                    self.tokens -= self.nodes[at].edge.len();
                }
                (Some(only), None) => {
                    let mut edge = std::mem::take(&mut self.nodes[at].edge);
                    edge.append(&mut self.nodes[only].edge);
                    self.nodes[only].edge = edge;
                    self.nodes[only].parent = parent;
                    self.nodes[parent].children.insert(first, only);
                }
                _ => return,
            }
            self.nodes[at].edge = Vec::new();
            self.nodes[at].children.clear();
            self.free.push(at);
            at = parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A map that finds the longest prefix by exhaustive search.
    struct Plain(HashMap<Vec<u32>, u32>);

    impl Plain {
        fn longest_prefix(&self, tokens: &[u32]) -> Option<(usize, u32)> {
            (0..=tokens.len()).rev().find_map(|n| Some((n, *self.0.get(&tokens[..n])?)))
        }

        fn tokens(&self) -> usize {
            let prefixes = self.0.keys().flat_map(|key| (1..=key.len()).map(|n| &key[..n]));
            prefixes.collect::<std::collections::HashSet<_>>().len()
        }
    }

    #[test]
    fn it_equals_an_exhaustive_search() {
        let mut random = 1u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let (mut tree, mut plain) = (Tree::default(), Plain(HashMap::new()));
        for round in 0..5000 {
            let key: Vec<u32> = (0..next(9)).map(|_| next(3) as u32).collect();
            if next(3) > 0 {
                tree.insert(&key, round);
                plain.0.insert(key.clone(), round);
            } else if let Some((len, place, value)) = tree.prefixes(&key).last().copied() {
                assert_eq!(plain.0.remove(&key[..len]), Some(*value));
                assert!(tree.remove(place).is_some());
            }
            let long: Vec<u32> = (0..12).map(|_| next(3) as u32).collect();
            assert_eq!(tree.prefixes(&long).last().map(|(n, _, v)| (*n, **v)), plain.longest_prefix(&long));
            let read = |at: usize, edge: &[u32]| long[at..].starts_with(edge).then_some(at + edge.len());
            let deepest = tree.readable(0, read).into_iter().max();
            assert_eq!(deepest.map(|(n, _)| n), plain.longest_prefix(&long).map(|(n, _)| n));
            assert_eq!(deepest.map(|(n, place)| tree.path(place) == long[..n]), deepest.map(|_| true));
            assert_eq!(tree.tokens(), plain.tokens());
            assert_eq!(tree.values().count(), plain.0.len());
            assert!(tree.nodes.len() - tree.free.len() <= 2 * plain.0.len() + 1);
        }
    }

    #[test]
    fn an_empty_sequence_is_a_sequence() {
        let mut tree = Tree::default();
        assert!(tree.prefixes(&[1]).is_empty());
        let place = tree.insert(&[], 5);
        assert_eq!(tree.prefixes(&[1]), [(0, place, &5)]);
        assert_eq!(tree.remove(place), Some(5));
    }
}
