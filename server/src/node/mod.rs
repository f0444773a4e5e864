//! A running node: the threads that own replicas, log and state, and the way in for the rest of the server.
//!
//! [`start`] opens the data directory and starts the threads. `replicas` owns the core's replicas and hands their
//! effects to `writer`, `applier`, `reader`, `files`, `digests` and the peers; what those have done comes back as inputs. Every
//! arrow between them is a [`mailbox`]: nobody waits for room, so nobody can wait in a circle. [`Handle`] is how
//! everything else asks.

mod applier;
mod boot;
pub(crate) mod call_context;
pub(crate) mod calls;
pub mod clock;
mod digests;
mod files;
mod formation;
mod handle;
mod keeper;
mod mailbox;
pub mod observer;
mod reader;
mod rebuild;
mod replicas;
mod scrub;
pub(crate) mod shared;
mod stop;
mod table;
mod threads;
mod writer;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use slog::{Logger, info, o};
use thiserror::Error;
use trefoil_core::NodeId;
use trefoil_core::replica::Tuning;

use self::shared::{NodeIdentity, Shared};
use self::threads::Parts;
use crate::authorize::Authorizer;
use crate::peer::{Introductions, Links};

pub use self::call_context::{Answered, CallContext};
pub use self::handle::Handle;
pub use self::observer::{Observer, PeerOperation, Unobserved};
pub use self::stop::Node;
pub use self::table::ShardState;

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

/// What a node is told at its start.
#[derive(Debug)]
pub struct Config {
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

/// Starts a node from what its data directory holds; an empty one becomes that of a new node. Blocks while the log is
/// read.
///
/// # Errors
/// When the directory is not this node's, is in use or is damaged, or the system refuses something.
pub fn start(
    mut config: Config,
    observer: Arc<dyn Observer>,
    logger: Logger,
) -> Result<(Node, Handle), StartError> {
    let peers = boot::check_members(&mut config)?;
    let logger = logger.new(o!("node" => config.node));
    let disk = boot::open(&config, observer.as_ref(), &logger)?;
    let place = NodeIdentity {
        node: config.node,
        members: config.members.clone(),
        shards: config.shards,
        endpoint: config.endpoint.clone(),
        authorizer: config.authorizer,
    };
    let shared = Arc::new(Shared::new(place, observer, logger.clone()));
    let replicas = boot::replicas(&config, &disk.boots, &logger)?;
    let standing = boot::standing(&disk.directory, &disk.boots);
    let is_new = disk.directory.identity().cluster_id.is_none();
    let introductions = Introductions::new(
        Arc::clone(&shared),
        (config.setup, peers),
        standing,
        disk.directory,
        Arc::clone(&disk.log),
    );
    let introductions = Arc::new(introductions);
    let runtime = threads::PeerRuntime::start()?;
    let links =
        Links::new(Arc::clone(&shared), introductions, config.data_dir.clone(), runtime.handle());
    let links = Arc::new(links);
    links
        .listen(config.listener)
        .map_err(|error| StartError::System { what: "the peer port", error })?;
    links.dial();
    let parts = Parts {
        shared: Arc::clone(&shared),
        links: Arc::clone(&links),
        log: disk.log,
        owned: disk.owned,
        replicas,
        root: config.data_dir,
        min_free_bytes: config.min_free_bytes,
        cache_bytes: disk.cache_bytes,
        force_new_cluster: config.force_new_cluster,
    };
    let threads = threads::Threads::start(parts)?;
    info!(logger, "the node is started"; "name" => config.name, "shards" => config.shards, "new" => is_new);
    let handle = Handle { shared, links };
    Ok((Node::new(handle.clone(), threads, runtime), handle))
}
