//! A running node: the threads that own replicas, log and state, and the way in for the rest of the server.
//!
//! [`start`] opens the data directory and starts the threads. `replicas` owns the core's replicas and hands their
//! effects to `writer`, `applier`, `reader`, `files`, `digests` and the peers; what those have done comes back as inputs. Every
//! arrow between them is a [`Mailbox`](crate::shared::mailbox::Mailbox): nobody waits for room, so nobody can wait in a circle. [`Handle`] is how
//! everything else asks.

mod applier;
mod boot;
mod config;
mod digests;
mod files;
mod formation;
mod handle;
mod jobs;
mod keeper;
mod reader;
mod rebuild;
mod replicas;
mod scrub;
mod stop;
mod threads;
mod writer;

use std::sync::Arc;

use slog::{Logger, info, o};

use self::threads::Parts;
use crate::peer::{Introductions, Links};
use crate::shared::Shared;
use crate::shared::identity::NodeIdentity;

pub use self::config::{NodeConfig, StartError};
pub use self::handle::Handle;
pub use self::stop::Node;
pub use crate::calls::context::{Answered, CallContext};
pub use crate::shared::failure::FatalError;
pub use crate::shared::identity::Member;
pub use crate::shared::observer::{Observer, PeerOperation, Unobserved};
pub use crate::shared::table::ShardState;

/// Starts a node from what its data directory holds; an empty one becomes that of a new node. Blocks while the log is
/// read.
///
/// # Errors
/// When the directory is not this node's, is in use or is damaged, or the system refuses something.
pub fn start(
    mut config: NodeConfig,
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
