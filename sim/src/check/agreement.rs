//! Replicas agree: one leader in each term, one entry at each index, one state after each entry.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use trefoil_core::{NodeId, ShardId};

use super::Violation;

/// What nodes were seen to have at a place, when all must have the same.
#[derive(Clone, Debug)]
pub struct Agreement {
    invariant: &'static str,
    /// (shard, term or index) to what was seen first, and where.
    seen: BTreeMap<(ShardId, u64), (u64, NodeId)>,
}

impl Agreement {
    /// At most one node leads a term of a shard: tell `saw(shard, term, node, node)`.
    #[must_use]
    pub fn on_leaders() -> Self {
        Self { invariant: "a term has at most one leader", seen: BTreeMap::new() }
    }

    /// A committed entry never changes: tell `saw(shard, index, hash of term and data, node)`.
    #[must_use]
    pub fn on_entries() -> Self {
        Self {
            invariant: "a committed entry is the same on all nodes for ever",
            seen: BTreeMap::new(),
        }
    }

    /// Equal indexes have equal states: tell `saw(shard, applied index, digest, node)`.
    #[must_use]
    pub fn on_states() -> Self {
        Self { invariant: "replicas have the same state at the same index", seen: BTreeMap::new() }
    }

    /// Compares what a node has with what was seen before.
    ///
    /// # Errors
    /// When they differ.
    pub fn saw(
        &mut self,
        shard: ShardId,
        place: u64,
        value: u64,
        node: NodeId,
    ) -> Result<(), Violation> {
        match self.seen.entry((shard, place)) {
            Entry::Vacant(entry) => {
                entry.insert((value, node));
                Ok(())
            }
            Entry::Occupied(entry) if entry.get().0 == value => Ok(()),
            Entry::Occupied(entry) => {
                let (other, first) = *entry.get();
                let what = format!(
                    "shard {shard} at {place}: node {first} has {other:x}, node {node} has {value:x}"
                );
                Err(Violation::new(self.invariant, what))
            }
        }
    }

    /// Places at which something was seen.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_one_term_are_found() {
        let mut leaders = Agreement::on_leaders();
        assert_eq!(leaders.saw(1, 2, 1, 1), Ok(()));
        assert_eq!(leaders.saw(1, 2, 1, 1), Ok(()));
        assert_eq!(leaders.saw(2, 2, 3, 3), Ok(()));
        assert_eq!(leaders.saw(1, 3, 2, 2), Ok(()));
        assert!(leaders.saw(1, 2, 2, 2).is_err());
    }

    #[test]
    fn two_states_at_one_index_are_found() {
        let mut states = Agreement::on_states();
        assert_eq!(states.saw(1, 20, 0xaa, 1), Ok(()));
        assert_eq!(states.saw(1, 20, 0xaa, 2), Ok(()));
        assert!(states.saw(1, 20, 0xab, 3).is_err());
    }
}
