//! Leader completeness: whoever leads has every entry that was applied anywhere before.

use trefoil_core::{NodeId, ShardId};

use super::Violation;

const INVARIANT: &str = "a leader has every committed entry";

/// A node began to lead a term with a log up to `last`, when `applied` was the highest index applied anywhere before
/// this term or a later one had a leader. That the entries are the same ones is [`super::agreement`]'s.
#[must_use]
pub fn check(
    shard: ShardId,
    node: NodeId,
    term: u64,
    last: u64,
    applied: u64,
) -> Option<Violation> {
    (last < applied).then(|| {
        let what = format!("n{node}/s{shard} leads term {term} with {last} of {applied} entries");
        Violation::new(INVARIANT, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_a_committed_entry_is_found() {
        assert!(check(1, 2, 3, 20, 20).is_none());
        assert_eq!(check(1, 2, 3, 19, 20).unwrap().invariant, INVARIANT);
    }
}
