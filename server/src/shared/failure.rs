//! Why a node that runs must end.

use thiserror::Error;
use trefoil_core::NodeId;

/// Why a node cannot go on: one sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FatalError {
    /// A peer knows this node by another data directory.
    #[error(
        "member {peer} knows this node by another data directory than {directory}: its data was lost or replaced, and \
         {what}. Restore the directory with which it joined, or replace this node as docs/operations.md says"
    )]
    Replaced {
        /// The peer that said so.
        peer: NodeId,
        /// This node's data directory.
        directory: String,
        /// What the peer is.
        what: &'static str,
    },
    /// A peer knows more of this node's data directory than the directory does.
    #[error(
        "data directory {directory} is an older copy, as member {peer} remembers: {why}. Restore the directory with \
         which this node stopped last, or replace this node as docs/operations.md says"
    )]
    OlderCopy {
        /// The peer that said so.
        peer: NodeId,
        /// This node's data directory.
        directory: String,
        /// What it remembers.
        why: String,
    },
    /// The peer port is served no longer.
    #[error("the peer port cannot be served: {0}")]
    PeerPort(String),
}

impl FatalError {
    /// Whether this node is not the member that it says it is: it must be silent at once.
    pub(crate) fn is_of_identity(&self) -> bool {
        matches!(self, Self::Replaced { .. } | Self::OlderCopy { .. })
    }
}
