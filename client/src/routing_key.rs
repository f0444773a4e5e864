//! The state that a call touches: what tells the shard, as `docs/routing.md` has it.

use trefoil_proto::slot;

/// The state that a call touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingKey {
    /// No single shard, or an unknown one.
    Any,
    /// The shard of this slot.
    Slot(u16),
    /// The shard of this partition of a queue.
    Partition {
        /// Number of the queue.
        queue_id: u64,
        /// Number of the partition in it.
        partition: u32,
    },
    /// This shard.
    Shard(u32),
}

impl RoutingKey {
    /// All locks and sessions of a namespace live in one shard.
    pub(crate) fn locks(namespace: &str) -> Self {
        Self::Slot(slot::of_locks(or_default(namespace)))
    }

    /// One key of the cache.
    pub(crate) fn cache(namespace: &str, key: &str) -> Self {
        Self::Slot(slot::of_cache(or_default(namespace), key))
    }

    /// The message of a lease.
    pub(crate) fn lease(id: &str) -> Self {
        slot::place(id)
            .map_or(Self::Any, |(queue_id, partition)| Self::Partition { queue_id, partition })
    }

    /// Its shard, of so many data shards where that is known.
    pub(crate) fn shard(self, data_shards: Option<u32>) -> Option<u32> {
        match self {
            Self::Any => None,
            Self::Slot(slot) => Some(slot::shard(slot, data_shards?)),
            Self::Partition { queue_id, partition } => {
                let shards = data_shards?;
                Some(slot::shard(slot::of_partition(queue_id, partition, shards), shards))
            }
            Self::Shard(shard) => Some(shard),
        }
    }
}

pub(crate) fn or_default(namespace: &str) -> &str {
    if namespace.is_empty() { "default" } else { namespace }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_one_shard_is_known_with_the_number_of_shards() {
        assert_eq!(RoutingKey::locks(""), RoutingKey::locks("default"));
        assert_eq!(RoutingKey::locks("default").shard(Some(6)), Some(6));
        assert_eq!(RoutingKey::cache("", "k").shard(Some(6)), Some(5));
        assert_eq!(RoutingKey::lease("1-7-9-3f9c1b6d5a0e77c2").shard(Some(6)), Some(4));
        assert_eq!(RoutingKey::lease("no lease"), RoutingKey::Any);
        for key in [RoutingKey::Any, RoutingKey::locks(""), RoutingKey::lease("1-7-9-0")] {
            assert_eq!(key.shard(None), None);
        }
        assert_eq!(RoutingKey::Shard(3).shard(None), Some(3));
    }
}
