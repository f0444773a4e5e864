//! Where state lives: key to slot to shard, and message key to partition.

use xxhash_rust::xxh3::xxh3_64;

use crate::{META_SHARD, ShardId};

/// Number of slots. A slot is the unit in which state could move between shards.
pub const SLOTS: u16 = 16_384;

/// The slot of records that belong to the shard itself: progress, timers, request ids. No key hashes to it.
pub const SYSTEM_SLOT: u16 = u16::MAX;

/// Version of the one slot map there is so far. Every command carries it.
pub const MAP_EPOCH: u32 = 1;

/// Slot of a namespace's locks and sessions: they stay together, so that one log orders them.
#[must_use]
pub fn of_locks(namespace: &str) -> u16 {
    hash(&[b"lock", namespace.as_bytes()])
}

/// Slot of a cache key.
#[must_use]
pub fn of_cache(namespace: &str, key: &str) -> u16 {
    hash(&[b"cache", namespace.as_bytes(), key.as_bytes()])
}

/// Slot of a queue's partition. Partitions of a queue go round the slots, so that they spread over all shards.
#[must_use]
pub fn of_partition(queue_id: u64, partition: u32, shards: u32) -> u16 {
    let base = u64::from(hash(&[b"queue", &queue_id.to_be_bytes()]));
    let stride = u64::from(SLOTS) / u64::from(shards.max(1));
    let slot = (base + u64::from(partition) * stride) % u64::from(SLOTS);
    u16::try_from(slot).expect("a slot is below SLOTS")
}

/// The shard that holds a slot: equal ranges of slots over the data shards 1..=shards; the system slot is everywhere.
#[must_use]
pub fn shard(slot: u16, shards: u32) -> ShardId {
    if slot >= SLOTS {
        return META_SHARD;
    }
    1 + u32::from(slot) * shards / u32::from(SLOTS)
}

/// The first slot of a data shard.
#[must_use]
pub fn first_of(shard: ShardId, shards: u32) -> u16 {
    let before = u64::from(shard.saturating_sub(1)) * u64::from(SLOTS);
    u16::try_from(before.div_ceil(u64::from(shards.max(1)))).unwrap_or(SLOTS - 1)
}

/// Partition of a message key by jump consistent hash: when partitions are added, only 1/n of the keys move.
/// Source: J. Lamping and E. Veach, A Fast, Minimal Memory, Consistent Hash Algorithm (2014).
#[must_use]
pub fn partition(key: &str, partitions: u32) -> u32 {
    jump(xxh3_64(key.as_bytes()), partitions)
}

fn jump(mut state: u64, buckets: u32) -> u32 {
    let (mut bucket, mut next) = (0_u64, 0_u64);
    while next < u64::from(buckets) {
        bucket = next;
        state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        // (bucket + 1) * 2^31 / ((state >> 33) + 1), in integers so that every machine agrees.
        next = ((u128::from(bucket + 1) << 31) / (u128::from(state >> 33) + 1))
            .try_into()
            .unwrap_or(u64::MAX);
    }
    u32::try_from(bucket).expect("a bucket is below the number of buckets")
}

fn hash(parts: &[&[u8]]) -> u16 {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    u16::try_from(xxh3_64(&bytes) % u64::from(SLOTS)).expect("a slot is below SLOTS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_cover_every_data_shard_and_no_other() {
        for shards in 1..=64 {
            let used = (0..SLOTS)
                .map(|slot| shard(slot, shards))
                .collect::<std::collections::BTreeSet<_>>();
            assert_eq!(used, (1..=shards).collect());
            for of in 1..=shards {
                let first = first_of(of, shards);
                assert_eq!(shard(first, shards), of);
                assert!(first == 0 || shard(first - 1, shards) + 1 == of);
            }
        }
    }

    #[test]
    fn adding_a_partition_moves_keys_only_to_it() {
        let keys = (0..10_000).map(|n| format!("key-{n}")).collect::<Vec<_>>();
        for partitions in 1..32 {
            let moved = keys
                .iter()
                .filter(|key| partition(key, partitions) != partition(key, partitions + 1));
            let mut count = 0;
            for key in moved {
                assert_eq!(partition(key, partitions + 1), partitions);
                count += 1;
            }
            let fair = 10_000 / (partitions + 1);
            assert!(
                (fair / 2..fair * 2).contains(&count),
                "{count} of 10,000 keys moved to partition {partitions}"
            );
        }
    }

    #[test]
    fn partitions_of_a_queue_spread_over_all_shards() {
        for queue in 1..100 {
            let used = (0..6).map(|partition| shard(of_partition(queue, partition, 6), 6));
            assert_eq!(used.collect::<std::collections::BTreeSet<_>>().len(), 6);
        }
    }

    #[test]
    fn places_never_change() {
        assert_eq!((of_locks("default"), of_cache("default", "k")), (13_794, 11_591));
        let partitions = [0, 1, 7].map(|partition| of_partition(1, partition, 6));
        assert_eq!(partitions, [7_881, 10_611, 10_607]);
        assert_eq!(["", "a", "order-17"].map(|key| partition(key, 8)), [0, 1, 6]);
    }

    #[test]
    fn many_partitions_spread_evenly_over_any_number_of_shards() {
        for (queue, shards) in (1..50).zip((1..=64).cycle().step_by(5)) {
            let mut counts = vec![0; shards as usize];
            for partition in 0..1_024 {
                counts[shard(of_partition(queue, partition, shards), shards) as usize - 1] += 1;
            }
            let fair = 1_024 / shards;
            assert!(
                counts.iter().all(|count| (fair * 3 / 4..=fair * 4 / 3 + 1).contains(count)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn any_text_has_a_slot() {
        let long = "k".repeat(100_000);
        assert!(of_cache(&long, &long) < SLOTS && of_locks(&long) < SLOTS);
        assert!(of_partition(u64::MAX, u32::MAX, 0) < SLOTS);
        assert_eq!(partition(&long, 0), 0);
    }
}
