//! What the front needs of a node: shards that answer commands and queries, wherever their leaders are.

use std::future::Future;
use std::sync::Arc;

use trefoil_core::{NodeId, ShardId};
use trefoil_proto::cluster::v1::StatusResponse;
use trefoil_proto::internal::v1::{Command, Query, Refusal};

use crate::node::Handle;
pub use crate::node::{Answered, CallContext, ShardState};
use crate::watch::Feeds;

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientEndpoint {
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
        ask: &CallContext,
    ) -> impl Future<Output = Result<Answered, Refusal>> + Send;

    /// Reads, linearizably. A dropped future ends a long poll.
    fn query(
        &self,
        shard: ShardId,
        query: Query,
        ask: &CallContext,
    ) -> impl Future<Output = Result<Answered, Refusal>> + Send;

    /// Hands a shard that this node leads to another node.
    fn transfer_leader(
        &self,
        shard: ShardId,
        to: NodeId,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Every shard of this node, by id; the meta shard first.
    fn status(&self) -> Vec<ShardState>;

    /// Has the other nodes told of this one what clients are told.
    fn describe_by(&self, describe: impl Fn() -> Option<StatusResponse> + Send + Sync + 'static);

    /// What another node says of itself, or why it does not.
    fn ask_status(
        &self,
        node: NodeId,
    ) -> impl Future<Output = Result<StatusResponse, String>> + Send;

    /// The leader of a shard, where this node knows it.
    fn leader(&self, shard: ShardId) -> Option<NodeId>;

    /// Every member, by id.
    fn members(&self) -> Vec<ClientEndpoint>;

    /// The cluster; none before it is formed.
    fn cluster_id(&self) -> Option<[u8; 16]>;

    /// This node.
    fn node_id(&self) -> NodeId;

    /// Number of data shards.
    fn shards(&self) -> u32;

    /// What this node has applied lately, for those who watch.
    fn feeds(&self) -> &Arc<Feeds>;
}

impl Shards for Handle {
    async fn command(
        &self,
        shard: ShardId,
        command: Command,
        ask: &CallContext,
    ) -> Result<Answered, Refusal> {
        Self::command(self, shard, command, ask).await
    }

    async fn query(
        &self,
        shard: ShardId,
        query: Query,
        ask: &CallContext,
    ) -> Result<Answered, Refusal> {
        Self::query(self, shard, query, ask).await
    }

    async fn transfer_leader(&self, shard: ShardId, to: NodeId) -> Result<(), Refusal> {
        Self::transfer_leader(self, shard, to).await
    }

    fn status(&self) -> Vec<ShardState> {
        Self::status(self)
    }

    fn describe_by(&self, describe: impl Fn() -> Option<StatusResponse> + Send + Sync + 'static) {
        Self::describe_by(self, describe);
    }

    async fn ask_status(&self, node: NodeId) -> Result<StatusResponse, String> {
        Self::ask_status(self, node).await
    }

    fn leader(&self, shard: ShardId) -> Option<NodeId> {
        Self::leader(self, shard)
    }

    fn members(&self) -> Vec<ClientEndpoint> {
        let members = Self::members(self).iter().map(|member| ClientEndpoint {
            id: member.id,
            name: member.name.clone(),
            endpoint: self.endpoint_of(member.id),
        });
        members.collect()
    }

    fn cluster_id(&self) -> Option<[u8; 16]> {
        Self::cluster_id(self)
    }

    fn node_id(&self) -> NodeId {
        Self::node_id(self)
    }

    fn shards(&self) -> u32 {
        Self::shards(self)
    }

    fn feeds(&self) -> &Arc<Feeds> {
        Self::feeds(self)
    }
}
