//! Where state lives: key to slot to shard, and message key to partition. `docs/routing.md` says it for every language.

use xxhash_rust::xxh3::xxh3_64;

/// Number of slots. A slot is the unit in which state could move between shards.
pub const SLOTS: u16 = 16_384;

/// The slot of records that belong to the shard itself: progress, timers, request ids. No key hashes to it.
pub const SYSTEM_SLOT: u16 = u16::MAX;

/// Version of the one slot map there is so far. Every command carries it.
pub const MAP_EPOCH: u32 = 1;

/// The shard that holds the catalogue of queues and the declared namespaces.
pub const META_SHARD: u32 = 0;

/// Data shards of a cluster.
pub const SHARDS_MAX: u32 = 64;

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
pub fn shard(slot: u16, shards: u32) -> u32 {
    if slot >= SLOTS {
        return META_SHARD;
    }
    1 + u32::from(slot) * shards / u32::from(SLOTS)
}

/// The first slot of a data shard.
#[must_use]
pub fn first_of(shard: u32, shards: u32) -> u16 {
    let before = u64::from(shard.saturating_sub(1)) * u64::from(SLOTS);
    u16::try_from(before.div_ceil(u64::from(shards.max(1)))).unwrap_or(SLOTS - 1)
}

/// Partition of a message key by jump consistent hash: when partitions are added, only 1/n of the keys move.
/// Source: J. Lamping and E. Veach, A Fast, Minimal Memory, Consistent Hash Algorithm (2014).
#[must_use]
pub fn partition(key: &str, partitions: u32) -> u32 {
    jump(xxh3_64(key.as_bytes()), partitions)
}

/// Partition of all messages without key of an Enqueue with this request id: a retry goes there again.
#[must_use]
pub fn keyless(client: &str, sequence: u64, partitions: u32) -> u32 {
    partition(&format!("{client}/{sequence}"), partitions)
}

/// Number of the queue and the partition with which the id of a message or of a lease begins.
#[must_use]
pub fn place(id: &str) -> Option<(u64, u32)> {
    let mut parts = id.splitn(3, '-');
    let place = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().map(|_| place)
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

    /// The rows of the page's table of vectors: a function, its arguments, and what it gives.
    fn vectors(page: &str) -> Vec<(&str, Vec<&str>, u32)> {
        let rows = page.lines().filter_map(|line| {
            let (function, rest) = line.strip_prefix("| `")?.split_once("` | `[")?;
            let (arguments, result) = rest.strip_suffix(" |")?.split_once("]` | ")?;
            let arguments = arguments.split(", ").map(|one| one.trim_matches('"')).collect();
            Some((function, arguments, result.parse().expect("a vector gives a number")))
        });
        rows.collect()
    }

    #[test]
    fn places_never_change() {
        let vectors = vectors(include_str!("../docs/routing.md"));
        assert!(vectors.len() >= 18, "{}", vectors.len());
        let number = |text: &str| text.parse::<u32>().expect("a number");
        for (function, arguments, told) in vectors {
            let found = match (function, arguments.as_slice()) {
                ("of_locks", [namespace]) => of_locks(namespace).into(),
                ("of_cache", [namespace, key]) => of_cache(namespace, key).into(),
                ("of_partition", [queue, partition, shards]) => {
                    let queue = queue.parse().expect("a number");
                    of_partition(queue, number(partition), number(shards)).into()
                }
                ("shard", [slot, shards]) => shard(slot.parse().expect("a slot"), number(shards)),
                ("partition", [key, partitions]) => partition(key, number(partitions)),
                ("keyless", [client, sequence, partitions]) => {
                    keyless(client, sequence.parse().expect("a number"), number(partitions))
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(found, told, "{function} {arguments:?}");
        }
        // What the page says can only be right together with these.
        assert_eq!((of_locks("default"), of_cache("default", "k")), (13_794, 11_591));
        assert_eq!(["", "a", "order-17"].map(|key| partition(key, 8)), [0, 1, 6]);
    }

    #[test]
    fn ids_begin_with_their_place() {
        assert_eq!(place("3-0-17"), Some((3, 0)));
        assert_eq!(place("18446744073709551615-7-1-3f9c1b6d5a0e77c2"), Some((u64::MAX, 7)));
        for other in ["", "3", "3-0", "3--1", "-3-0-1", "a-0-1", "3-4294967296-1"] {
            assert_eq!(place(other), None, "{other}");
        }
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
