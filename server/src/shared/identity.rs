//! Who this node is, among which members.

use trefoil_core::NodeId;

use crate::authorize::Authorizer;

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Raft id, 1 or more.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where its peers reach it: host:port. The name is looked up again for each connection.
    pub address: String,
}

/// The identity of a node in its cluster.
#[derive(Debug)]
pub(crate) struct NodeIdentity {
    pub(crate) node: NodeId,
    pub(crate) members: Vec<Member>,
    pub(crate) shards: u32,
    pub(crate) endpoint: String,
    pub(crate) authorizer: Authorizer,
}
