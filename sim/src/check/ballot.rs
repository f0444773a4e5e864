//! A node asks the others before it raises its term, so that one that was cut off deposes nobody when it is back.

use trefoil_core::{NodeId, ShardId};

use super::Violation;

const INVARIANT: &str = "a node asks before it raises its term";

/// What one process of a node has done about its term.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ballot {
    term: Option<u64>,
    was_asked: bool,
}

impl Ballot {
    /// Another node would vote for this one, or its leader wants it to lead.
    pub fn asked(&mut self) {
        self.was_asked = true;
    }

    /// It is of a term now, as a candidate or not. Says whether it raised its term without having asked; a node that
    /// is `alone` asks nobody.
    pub fn note(&mut self, term: u64, candidate: bool, alone: bool) -> Option<()> {
        let raised = self.term.is_some_and(|before| before < term);
        let alone = alone || self.was_asked;
        if self.term != Some(term) {
            (self.term, self.was_asked) = (Some(term), false);
        }
        (raised && candidate && !alone).then_some(())
    }
}

/// The promise that was broken.
#[must_use]
pub fn violation(shard: ShardId, node: NodeId, term: u64) -> Violation {
    Violation::new(INVARIANT, format!("n{node}/s{shard} stands in term {term}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_that_is_raised_unasked_is_found() {
        let mut ballot = Ballot::default();
        assert_eq!(ballot.note(2, true, false), None, "the term that it had");
        ballot.asked();
        assert_eq!(ballot.note(3, true, false), None);
        assert_eq!(ballot.note(5, false, false), None, "it heard of it");
        assert_eq!(ballot.note(6, true, false), Some(()));
        assert_eq!(ballot.note(7, true, true), None);
    }
}
