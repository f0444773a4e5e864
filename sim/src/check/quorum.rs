//! No answer before it is durable on a quorum.

use trefoil_core::ShardId;

use super::Violation;

const INVARIANT: &str = "an answer is durable on a quorum";

/// A shard of `nodes` answered at an index that `copies` of them would still have after a crash.
#[must_use]
pub fn check(shard: ShardId, index: u64, copies: usize, nodes: usize) -> Option<Violation> {
    (copies <= nodes / 2).then(|| {
        let what =
            format!("shard {shard} answers at {index} with {copies} copies on {nodes} nodes");
        Violation::new(INVARIANT, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minority_is_found() {
        assert!(check(1, 20, 2, 3).is_none() && check(1, 20, 1, 1).is_none());
        assert_eq!(check(1, 20, 1, 3).unwrap().invariant, INVARIANT);
        assert_eq!(check(1, 20, 2, 5).unwrap().invariant, INVARIANT);
    }
}
