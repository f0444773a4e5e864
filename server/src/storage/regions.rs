//! Where in the Raft log a shard lies.

use trefoil_core::ShardId;

/// Where what is remembered of other members lies: beyond the regions of shards.
pub(super) const MEMBERS_REGION: u64 = 1 << 32;

/// raft-engine keeps 0 for itself.
pub(super) fn region(shard: ShardId) -> u64 {
    u64::from(shard) + 1
}

pub(super) fn shard_of(region: u64) -> Option<ShardId> {
    ShardId::try_from(region.checked_sub(1)?).ok().filter(|_| region != MEMBERS_REGION)
}
