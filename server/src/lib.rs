//! How Trefoil carries it out: sockets, disks, clocks and threads round the core.
//!
//! In reading order: [`config`] and [`logging`] (what a node is told), [`server`] (its parts, and how they begin and
//! end), [`front`], [`listener`] and [`layer`] (what a request passes), [`api`] (what it does), [`authorize`], [`pages`],
//! [`metrics`]; then [`node`] (the threads that own replicas, log and state), `peer` (node to node), under both `calls`
//! (who waits for which answer) and `shared` (what all threads and tasks have in common); [`watch`] (what happened, for
//! those who watch) and [`storage`].

pub mod api;
pub mod authorize;
mod calls;
pub mod config;
pub mod front;
pub mod layer;
pub mod listener;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod pages;
mod peer;
pub mod server;
mod shared;
pub mod storage;
pub mod watch;

/// Version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit that it was built from.
pub const COMMIT: &str = env!("TREFOIL_COMMIT");
