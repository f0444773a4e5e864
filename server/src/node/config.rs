//! What a node is told at its start, and why it may not start.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;

use thiserror::Error;
use trefoil_core::NodeId;
use trefoil_core::replica::Tuning;

use crate::authorize::Authorizer;
use crate::shared::identity::Member;

/// What a node is told at its start.
#[derive(Debug)]
pub struct NodeConfig {
    /// Directory of log and state; made where it is missing.
    pub data_dir: PathBuf,
    /// This node's id among the members.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Every member at bootstrap, this node included.
    pub members: Vec<Member>,
    /// Hash of the cluster's token and members.
    pub setup: [u8; 16],
    /// Whether a majority of members may form a new cluster.
    pub force_new_cluster: bool,
    /// Number of data shards.
    pub shards: u32,
    /// Services that the cluster has.
    pub services: BTreeSet<String>,
    /// Where peers reach this node; bound already.
    pub listener: TcpListener,
    /// Where clients reach this node, as peers tell theirs: "http://host:port".
    pub endpoint: String,
    /// Free bytes of the disk below which writes are refused.
    pub min_free_bytes: u64,
    /// Memory for the pages of all state files.
    pub state_cache_bytes: usize,
    /// Seed of the election timeouts.
    pub seed: u64,
    /// Decides about calls that other nodes forward.
    pub authorizer: Authorizer,
    /// Sizes that tests make small.
    pub tuning: Tuning,
}

/// Why a node does not start: one sentence that says what to do.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory is somebody else's, is in use, or may not be used.
    #[error("{0}")]
    Storage(String),
    /// What the data directory holds is damaged, or not whole.
    #[error("{0}")]
    Damaged(String),
    /// The members do not fit.
    #[error("{0}")]
    Members(String),
    /// A thread, a runtime or a listener cannot be had.
    #[error("cannot start {what}: {error}")]
    System {
        /// What.
        what: &'static str,
        /// Why not.
        error: std::io::Error,
    },
}
