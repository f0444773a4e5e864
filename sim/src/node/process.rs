//! One process of a node, and what it says of its replicas.

use trefoil_core::NodeId;
use trefoil_core::replica::obstacles::Obstacles;

/// A process of a node: what belongs to an older one is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The node.
    pub node: NodeId,
    /// Which of its processes.
    pub life: u32,
}

/// What a node says of a replica: whether it lost the end of its log, and what keeps it from leading.
pub type ReplicaNotice = (bool, Obstacles);
