//! What a node tells whoever measures it.

use std::fmt::Debug;

use trefoil_core::ShardId;
use trefoil_core::machine::{Counts, Gauges};
use trefoil_core::replica::Role;
use trefoil_core::replica::obstacles::Obstacles;

/// A kind of exchange between two nodes, measured from send to the matching response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerOperation {
    /// MsgAppend to its response.
    AppendEntries,
    /// A vote or a pre-vote to its response.
    RequestVote,
    /// A snapshot stream, from its start to the receiver's word that it is synced.
    Snapshot,
    /// A heartbeat to its response.
    Heartbeat,
}

impl PeerOperation {
    /// Every operation.
    pub const ALL: [Self; 4] =
        [Self::AppendEntries, Self::RequestVote, Self::Snapshot, Self::Heartbeat];

    /// The value of the label `op`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AppendEntries => "append_entries",
            Self::RequestVote => "request_vote",
            Self::Snapshot => "snapshot",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// Sees what happens in a node. Called on the node's own threads: it must be quick and never block.
pub trait Observer: Debug + Send + Sync + 'static {
    /// A shard's role or term changed.
    fn role(&self, shard: ShardId, role: Role, term: u64);
    /// An entry was applied. `is_leader` tells the one node of each shard whose counts a sum over nodes takes.
    fn applied(&self, shard: ShardId, is_leader: bool, counts: &Counts, gauges: &Gauges);
    /// The log was synced.
    fn fsync(&self, seconds: f64);
    /// A checkpoint of this many bytes of changes was written.
    fn checkpoint(&self, shard: ShardId, seconds: f64, bytes: u64);
    /// So many bytes of state files are on the disk as they were written; they may be the last ones of all of them.
    fn scrubbed(&self, bytes: u64, finished: bool);
    /// Free bytes of the disk, and whether they are so few that writes are refused.
    fn disk(&self, free_bytes: u64, low: bool);
    /// What keeps this node from leading: one set for each shard for which something does.
    fn obstacles(&self, of_shards: &[Obstacles]);
    /// A peer answered.
    fn rpc(&self, operation: PeerOperation, seconds: f64);
    /// A peer that applied the same entries has another state.
    fn diverged(&self, shard: ShardId);
    /// The state of a shard was found damaged, and is not used.
    fn damage(&self, shard: ShardId);
    /// The state of a shard is whole again.
    fn whole(&self, shard: ShardId);
    /// This node leads a shard about whose state no majority agrees, or one does again.
    fn disputed(&self, shard: ShardId, disputed: bool);
    /// A shard has stopped, since a peer has another history of it.
    fn two_histories(&self, shard: ShardId);
    /// A call for a shard goes on to the node that leads it.
    fn forwarded(&self, shard: ShardId);
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn role(&self, _: ShardId, _: Role, _: u64) {}
    fn applied(&self, _: ShardId, _: bool, _: &Counts, _: &Gauges) {}
    fn fsync(&self, _: f64) {}
    fn checkpoint(&self, _: ShardId, _: f64, _: u64) {}
    fn scrubbed(&self, _: u64, _: bool) {}
    fn disk(&self, _: u64, _: bool) {}
    fn obstacles(&self, _: &[Obstacles]) {}
    fn rpc(&self, _: PeerOperation, _: f64) {}
    fn diverged(&self, _: ShardId) {}
    fn damage(&self, _: ShardId) {}
    fn whole(&self, _: ShardId) {}
    fn disputed(&self, _: ShardId, _: bool) {}
    fn two_histories(&self, _: ShardId) {}
    fn forwarded(&self, _: ShardId) {}
}
