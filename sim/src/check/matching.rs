//! Log matching: entries of equal index and term are equal, and so is what stands before them.

use std::collections::BTreeMap;

use trefoil_core::{NodeId, ShardId};

use super::Violation;

const INVARIANT: &str = "entries of equal index and term are equal, and so are those before them";

/// Entries as they were first written: (hash, term before it, where).
#[derive(Clone, Debug, Default)]
pub struct Matching {
    seen: BTreeMap<EntryPosition, (u64, Option<u64>, NodeId)>,
}

/// Shard, and index and term of an entry.
type EntryPosition = (ShardId, (u64, u64));

impl Matching {
    /// A node writes an entry at (index, term); `before` is the term of the entry before it, where that is known.
    ///
    /// # Errors
    /// When another node wrote another one.
    pub fn saw(
        &mut self,
        shard: ShardId,
        place: (u64, u64),
        before: Option<u64>,
        hash: u64,
        node: NodeId,
    ) -> Result<(), Violation> {
        let seen = self.seen.entry((shard, place)).or_insert((hash, before, node));
        let before_differs = matches!((seen.1, before), (Some(a), Some(b)) if a != b);
        if seen.0 == hash && !before_differs {
            seen.1 = seen.1.or(before);
            return Ok(());
        }
        let what = format!("shard {shard} at {place:?}: nodes {} and {node}", seen.2);
        Err(Violation::new(INVARIANT, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_entry_is_found() {
        let mut matching = Matching::default();
        assert_eq!(matching.saw(1, (11, 2), None, 7, 1), Ok(()));
        assert_eq!(matching.saw(1, (11, 2), Some(1), 7, 2), Ok(()));
        assert_eq!(matching.saw(1, (11, 3), Some(2), 8, 2), Ok(()));
        assert!(matching.saw(1, (11, 2), None, 8, 3).is_err());
        assert!(matching.saw(1, (11, 2), Some(2), 7, 3).is_err());
    }
}
