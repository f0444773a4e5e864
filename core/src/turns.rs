//! Whose turn it is among the partitions of a queue: for messages without key, and for consumers.

use std::collections::BTreeMap;

use trefoil_proto::internal::v1::Drawn;

use crate::siphash::siphash;
use crate::slot;

/// Partitions of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Slot of the first of them, which leads to the shard.
    pub slot: u16,
    /// In the order of their turns.
    pub partitions: Vec<u32>,
}

/// The partition whose turn it is in this round. Of as many rounds as there are partitions each has one, in another order
/// each time: no pattern of calls goes past some of them for long.
#[must_use]
pub fn partition(seed: u64, round: u64, partitions: u32) -> u32 {
    let count = u64::from(partitions.max(1));
    let chance = siphash(&Drawn { high: seed, low: 0 }, &[round / count]);
    // A step without a common divisor goes through all of them.
    let mut steps = (1..=count).map(|n| (chance >> 32).wrapping_add(n) % count);
    let step = steps.find(|step| divisor(*step, count) == 1).unwrap_or(1);
    let first = (chance & u64::from(u32::MAX)) % count;
    u32::try_from((first + (round % count) * step) % count).unwrap_or(0)
}

/// The partitions of a queue by shard, beginning with this one and going round. A shard is the first as often as it has
/// partitions that begin.
#[must_use]
pub fn groups(queue_id: u64, partitions: u32, first: u32, shards: u32) -> Vec<Group> {
    let mut groups = Vec::<Group>::new();
    let mut places = BTreeMap::new();
    for partition in (first..partitions).chain(0..first.min(partitions)) {
        let slot = slot::of_partition(queue_id, partition, shards);
        let place = *places.entry(slot::shard(slot, shards)).or_insert_with(|| {
            groups.push(Group { slot, partitions: Vec::new() });
            groups.len() - 1
        });
        groups[place].partitions.push(partition);
    }
    groups
}

fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_has_one_turn_in_a_cycle() {
        for partitions in 1..=64_u32 {
            for cycle in 0..20 {
                let rounds = (0..partitions).map(|n| u64::from(cycle * partitions + n));
                let mut turns = rounds.map(|n| partition(5, n, partitions)).collect::<Vec<_>>();
                turns.sort_unstable();
                assert_eq!(turns, (0..partitions).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn every_second_turn_comes_to_all() {
        for partitions in 1..=16 {
            let turns = (0..1_000).map(|n| partition(9, 2 * n, partitions));
            let turns = turns.collect::<std::collections::BTreeSet<_>>();
            assert_eq!(turns.len(), partitions as usize);
        }
    }

    #[test]
    fn groups_begin_with_the_shard_whose_turn_it_is() {
        for first in 0..8 {
            let groups = groups(3, 8, first, 6);
            assert_eq!(groups[0].partitions[0], first);
            let mut all =
                groups.iter().flat_map(|group| group.partitions.clone()).collect::<Vec<_>>();
            all.sort_unstable();
            assert_eq!(all, (0..8).collect::<Vec<_>>());
            for group in &groups {
                let shard = |partition: &u32| slot::shard(slot::of_partition(3, *partition, 6), 6);
                assert!(group.partitions.iter().all(|n| shard(n) == slot::shard(group.slot, 6)));
            }
        }
        assert!(groups(3, 0, 0, 6).is_empty());
    }
}
