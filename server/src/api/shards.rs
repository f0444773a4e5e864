//! What the front needs of a node: shards that answer commands and queries, wherever their leaders are.

use std::future::Future;

use tokio::time::Instant;
use trefoil_core::replica::Status;
use trefoil_core::{NodeId, Position, ShardId};
use trefoil_proto::internal::v1::{Answer, Command, Query, Refusal};

/// A call that was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Node that led the shard.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// Where in its history.
    pub position: Position,
    /// What it said; a refusal here is the state machine's, and definite.
    pub answer: Answer,
}

/// One shard of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardState {
    /// Which one.
    pub shard: ShardId,
    /// What its replica says of itself.
    pub status: Status,
    /// Bytes of the state file.
    pub state_bytes: u64,
    /// Bytes of changes since the last checkpoint.
    pub overlay_bytes: u64,
}

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Raft id.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Where clients reach it; none while that is unknown.
    pub endpoint: Option<String>,
}

/// The shards of a cluster, as one node reaches them. Cheap to clone.
pub trait Shards: Clone + Send + Sync + 'static {
    /// Has a command applied. A dropped future cancels what has not been proposed.
    fn command(
        &self,
        shard: ShardId,
        command: Command,
        deadline: Instant,
    ) -> impl Future<Output = Result<Answered, Refusal>> + Send;

    /// Reads, linearizably. A dropped future ends a long poll.
    fn query(
        &self,
        shard: ShardId,
        query: Query,
        deadline: Instant,
    ) -> impl Future<Output = Result<Answered, Refusal>> + Send;

    /// Hands a shard that this node leads to another node.
    fn transfer_leader(
        &self,
        shard: ShardId,
        to: NodeId,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Every shard of this node, by id; the meta shard first.
    fn status(&self) -> Vec<ShardState>;

    /// The leader of a shard, where this node knows it.
    fn leader(&self, shard: ShardId) -> Option<NodeId>;

    /// Every member, by id.
    fn members(&self) -> Vec<Member>;

    /// The cluster.
    fn cluster_id(&self) -> [u8; 16];

    /// This node.
    fn node_id(&self) -> NodeId;

    /// Number of data shards.
    fn shards(&self) -> u32;
}
