//! A cluster is formed once, of directories of all its members, and none beside one of which a directory is there.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::NodeId;
use trefoil_core::member::Incarnations;

use super::Violation;

const ALL: &str = "a cluster is formed of all its members";
const ONCE: &str = "no cluster is formed while a directory of another one is there";

/// The clusters that were formed.
#[derive(Clone, Debug, Default)]
pub struct Formed(BTreeMap<[u8; 16], Incarnations>);

impl Formed {
    /// A node says that its cluster of these directories is formed; `there` are the directories of all nodes.
    ///
    /// # Errors
    /// The promise that this breaks.
    pub fn saw(
        &mut self,
        (node, cluster): (NodeId, [u8; 16]),
        members: &Incarnations,
        nodes: u64,
        there: &BTreeSet<(NodeId, u64)>,
    ) -> Result<(), Violation> {
        let known = self.0.entry(cluster).or_insert_with(|| members.clone());
        if members.len() as u64 != nodes || known != members {
            let what = format!("n{node} has formed one of {members:?}, known as {known:?}");
            return Err(Violation::new(ALL, what));
        }
        let is_there =
            |(node, incarnation): (&NodeId, &u64)| there.contains(&(*node, *incarnation));
        let mut others = self.0.iter().filter(|(other, _)| **other != cluster);
        match others.find(|(_, members)| members.iter().any(is_there)) {
            Some((_, other)) => {
                let what = format!("n{node} has formed one of {members:?} beside {other:?}");
                Err(Violation::new(ONCE, what))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saw(formed: &mut Formed, id: u8, members: &[(NodeId, u64)]) -> Option<&'static str> {
        let all = members.iter().copied().collect();
        let there = [(1, 1), (2, 12), (3, 13)].into();
        formed.saw((2, [id; 16]), &all, 3, &there).err().map(|violation| violation.invariant)
    }

    #[test]
    fn one_of_all_members_passes() {
        let mut formed = Formed::default();
        assert_eq!(saw(&mut formed, 1, &[(1, 1), (2, 2), (3, 3)]), None);
        assert_eq!(saw(&mut formed, 1, &[(1, 1), (2, 2), (3, 3)]), None);
    }

    #[test]
    fn one_of_a_majority_and_a_second_one_are_found() {
        let mut formed = Formed::default();
        assert_eq!(saw(&mut formed, 1, &[(1, 1), (2, 2)]), Some(ALL));
        let mut formed = Formed::default();
        assert_eq!(saw(&mut formed, 1, &[(1, 1), (2, 2), (3, 3)]), None);
        assert_eq!(saw(&mut formed, 2, &[(1, 11), (2, 12), (3, 13)]), Some(ONCE));
    }

    #[test]
    fn one_in_the_place_of_directories_that_are_gone_passes() {
        let mut formed = Formed::default();
        assert_eq!(saw(&mut formed, 1, &[(1, 5), (2, 2), (3, 3)]), None);
        assert_eq!(saw(&mut formed, 2, &[(1, 1), (2, 12), (3, 13)]), None);
    }
}
