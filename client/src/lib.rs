//! How Trefoil is used: the typed Rust client for locks, queues and the cache.
//!
//! ```no_run
//! # async fn example() -> Result<(), trefoil_client::Error> {
//! use std::time::Duration;
//!
//! use trefoil_client::{Client, Message};
//!
//! let client = Client::connect(["http://127.0.0.1:7001"]).await?;
//!
//! client.cache().put("greeting", "hello").ttl(Duration::from_secs(60)).await?;
//! assert!(client.cache().get("greeting").await?.is_some());
//!
//! if let Some(guard) = client.lock("printer").wait(Duration::from_secs(5)).acquire().await? {
//!     println!("it is ours, with token {}", guard.token());
//!     guard.release().await?;
//! }
//!
//! client.queue("jobs").enqueue([Message::new("resize").key("picture-1")]).await?;
//! for delivery in client.queue("jobs").dequeue().wait(Duration::from_secs(5)).await? {
//!     delivery.ack().await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Calls of all clones of a client share one stream for each node, and every mutation carries a request id,
//! so whatever is retried takes effect once. In reading order: `client`, the typed calls (`cache`, `lock`,
//! `session`, `fence`, `queue`, `cluster`), then what carries them (`retry`, `route`, `node`, `stream`).

mod client;

mod acquire;
mod barrier;
mod cache;
mod cluster;
mod election;
mod fence;
mod latch;
mod lock;
mod lock_set;
mod lock_view;
mod queue;
mod release_requests;
mod semaphore;
mod session;
mod session_state;
mod value;
mod watch;

mod boot;
mod error;
mod operation;
mod request_id;
mod retry;

mod inner;
mod lane;
mod layouts;
mod listen;
mod namespaces;
mod node;
mod route;
mod routing_key;
mod stream;

pub use barrier::{Barrier, Entrance};
pub use cache::{Cache, Entry, Put, Stored};
pub use client::{Builder, Client};
pub use cluster::{Cluster, NodeStatus};
pub use election::{Election, Leader, Leadership, Observation};
pub use error::Error;
pub use fence::Fence;
pub use latch::{Latch, SetLatch};
pub use lock::{Guard, Lock, Locks, OpenSession};
pub use lock_set::{Guards, LockSet};
pub use lock_view::Page;
pub use namespaces::Namespaces;
pub use node::endpoint_url;
pub use operation::Request;
pub use queue::{Delivery, Dequeue, Message, Queue};
pub use semaphore::{PermitGuard, Permits, Semaphore};
pub use session::Session;
pub use trefoil_proto as proto;
pub use trefoil_proto::cache::v1::LineState;
pub use trefoil_proto::cluster::v1::NamespaceSettings;
pub use trefoil_proto::common::v1::{Reason, ResponseHeader, WatchPosition};
pub use trefoil_proto::lock::v1::{LockEvent, LockEventKind, LockMode, ReleaseAsked, WaitPlace};
pub use value::Value;
pub use watch::{LockWatch, Watch, WatchRequest};

/// Whole milliseconds, rounded up: a short time is not none.
fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What the pages show of this crate compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../docs/client.md")]
#[doc = include_str!("../../docs/lock.md")]
#[doc = include_str!("../../docs/watch.md")]
struct Pages;
