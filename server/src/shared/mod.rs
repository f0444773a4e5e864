//! What the threads and tasks of a node have in common.

pub(crate) mod clock;
pub(crate) mod failure;
pub(crate) mod identity;
pub(crate) mod mailbox;
pub(crate) mod observer;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use slog::{Logger, crit};
use tokio::sync::watch;
use trefoil_core::call::ShardRequest;
use trefoil_core::limits::{INBOX_MAX, PEER_INBOX_BYTES_MAX};
use trefoil_core::replica::{Input, Peer, Proposal, Read};
use trefoil_core::{CallId, NodeId, ShardId};
use trefoil_proto::cluster::v1::StatusResponse;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use self::failure::FatalError;
use self::identity::{Member, NodeIdentity};
use self::mailbox::Mailbox;
use self::observer::Observer;
use self::table::ShardTable;
use crate::authorize::Authorizer;
use crate::calls::context::refusal;
use crate::calls::{Calls, Waiter};
use crate::storage::Damaged;
use crate::watch::Feeds;

/// Something for the thread that owns the replicas.
#[derive(Debug)]
pub(crate) enum ReplicaEvent {
    Propose(ShardId, Proposal),
    Read(ShardId, Read),
    /// A message of a peer, and its bytes on the wire.
    Peer(ShardId, Box<Peer>, usize),
    Input(ShardId, Input),
    /// Somebody who reads the state of a shard beside its applier found it damaged.
    Damaged(ShardId, Damaged),
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// Empty until the cluster is formed.
    pub(crate) cluster_id: OnceLock<[u8; 16]>,
    pub(crate) node: NodeId,
    pub(crate) members: Vec<Member>,
    pub(crate) shards: u32,
    /// Where clients reach each node, as its greeting said.
    pub(crate) endpoints: Mutex<BTreeMap<NodeId, String>>,
    /// Decides about calls that peers forward.
    pub(crate) authorizer: Authorizer,
    pub(crate) calls: Calls,
    pub(crate) table: ShardTable,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) logger: Logger,
    pub(crate) inbox: Mailbox<ReplicaEvent>,
    /// Bytes of messages of peers in the inbox.
    peer_bytes: AtomicUsize,
    fatal: watch::Sender<Option<FatalError>>,
    /// What this node says of itself, once it serves.
    description: OnceLock<Description>,
    /// Since when calls are refused, by the boot clock; 0 while they are taken.
    closed_ms: AtomicU64,
}

/// Says what clients are told of a node.
pub(crate) struct Description(pub(crate) Box<dyn Fn() -> Option<StatusResponse> + Send + Sync>);

impl fmt::Debug for Description {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Description")
    }
}

impl Shared {
    pub(crate) fn new(place: NodeIdentity, observer: Arc<dyn Observer>, logger: Logger) -> Self {
        let NodeIdentity { node, members, shards, endpoint, authorizer } = place;
        Self {
            cluster_id: OnceLock::new(),
            node,
            members,
            shards,
            endpoints: Mutex::new(BTreeMap::from([(node, endpoint)])),
            authorizer,
            calls: Calls::default(),
            table: ShardTable::new(shards),
            observer,
            feeds: Arc::new(Feeds::new(shards)),
            logger,
            inbox: Mailbox::new("replicas"),
            peer_bytes: AtomicUsize::new(0),
            fatal: watch::Sender::new(None),
            description: OnceLock::new(),
            closed_ms: AtomicU64::new(0),
        }
    }

    /// From now on peers are told this.
    pub(crate) fn describe_by(&self, description: Description) {
        // A node has one front.
        self.description.set(description).ok();
    }

    /// What clients are told of this node; none unless it serves.
    pub(crate) fn described(&self) -> Option<StatusResponse> {
        self.description.get().and_then(|Description(describe)| describe())
    }

    /// Every shard of the cluster, the meta shard included.
    pub(crate) fn all_shards(&self) -> std::ops::RangeInclusive<ShardId> {
        0..=self.shards
    }

    pub(crate) fn endpoint_of(&self, node: NodeId) -> Option<String> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.get(&node).filter(|endpoint| !endpoint.is_empty()).cloned()
    }

    pub(crate) fn set_endpoint(&self, node: NodeId, endpoint: String) {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).insert(node, endpoint);
    }

    /// Tells a replica what one of the node's own threads or tasks has done.
    pub(crate) fn tell(&self, shard: ShardId, input: Input) {
        self.inbox.send(ReplicaEvent::Input(shard, input));
    }

    /// The state of a shard turned out to be damaged, to somebody who reads it beside its applier.
    pub(crate) fn found_damaged(&self, shard: ShardId, damaged: Damaged) {
        self.inbox.send(ReplicaEvent::Damaged(shard, damaged));
    }

    /// Gives a message of a peer to its replica; drops it when the replicas are behind, as a network would.
    pub(crate) fn receive(&self, shard: ShardId, peer: Box<Peer>, bytes: usize) {
        let waiting = self.peer_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = waiting + bytes <= PEER_INBOX_BYTES_MAX;
        if !(fits && self.inbox.offer(ReplicaEvent::Peer(shard, peer, bytes), INBOX_MAX)) {
            self.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// A message of a peer has left the inbox.
    pub(crate) fn received(&self, bytes: usize) {
        self.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Asks this node's own replica of a shard, once.
    pub(crate) fn submit(
        &self,
        shard: ShardId,
        work: ShardRequest,
        deadline_ms: u64,
        waiter: Waiter,
    ) -> Result<CallId, Refusal> {
        if self.closed_since_ms().is_some() {
            return Err(refusal(Reason::Stopping, "the node is stopping"));
        }
        let forwarded = matches!(waiter, Waiter::Peer(_));
        let call = self.calls.open(waiter);
        let event = match work {
            ShardRequest::Command(command) => {
                ReplicaEvent::Propose(shard, Proposal { call, command, deadline_ms, forwarded })
            }
            ShardRequest::Query(query) => {
                ReplicaEvent::Read(shard, Read { call, query, deadline_ms })
            }
        };
        // Half of the room is for peers alone: a burst of calls must not cost the leadership.
        if self.inbox.offer(event, INBOX_MAX / 2) {
            return Ok(call);
        }
        self.calls.close(call);
        Err(refusal(Reason::Overloaded, "the node has more work than it may queue"))
    }

    /// The caller of a call has gone away.
    pub(crate) fn abandon(&self, shard: ShardId, call: CallId) {
        if self.calls.close(call) {
            // One cancel for each call in flight at most.
            self.tell(shard, Input::Cancel(call));
        }
    }

    /// From now on calls are refused with STOPPING, and those under way end soon.
    pub(crate) fn close(&self) {
        let now_ms = clock::boot_ms().max(1);
        // It was closed before where this fails.
        self.closed_ms.compare_exchange(0, now_ms, Ordering::Relaxed, Ordering::Relaxed).ok();
        self.table.wake();
    }

    /// Since when calls are refused.
    pub(crate) fn closed_since_ms(&self) -> Option<u64> {
        Some(self.closed_ms.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }

    /// The node cannot go on, and answers nobody from now on; the first reason counts.
    pub(crate) fn fail(&self, error: FatalError) {
        self.fatal.send_if_modified(|fatal| {
            if fatal.is_some() {
                return false;
            }
            crit!(self.logger, "the node cannot go on"; "error" => %error);
            self.close();
            *fatal = Some(error);
            true
        });
    }

    /// Whether this node is not the member that it says it is.
    pub(crate) fn is_impostor(&self) -> bool {
        self.fatal.borrow().as_ref().is_some_and(FatalError::is_of_identity)
    }

    pub(crate) fn failure(&self) -> watch::Receiver<Option<FatalError>> {
        self.fatal.subscribe()
    }

    /// What this node itself knows of why a shard could not be asked.
    pub(crate) fn explain(&self, shard: ShardId, mut refusal: Refusal) -> Refusal {
        if refusal.reason() == Reason::NoQuorum {
            if self.cluster_id.get().is_none() {
                "the cluster is not formed yet: that takes every member of --initial-cluster"
                    .clone_into(&mut refusal.message);
            } else if self.table.has_two_histories(shard) {
                "the shard has stopped on this node, since nodes have two histories of it: a person must decide, as \
                 docs/operations.md says"
                    .clone_into(&mut refusal.message);
            }
        }
        self.with_endpoint(refusal)
    }

    /// A refusal that names a leader says where clients reach it, too.
    pub(crate) fn with_endpoint(&self, mut refusal: Refusal) -> Refusal {
        let leader = refusal.metadata.get("leader").and_then(|leader| leader.parse().ok());
        if let Some(endpoint) = leader.and_then(|leader| self.endpoint_of(leader)) {
            refusal.metadata.insert("leader_endpoint".to_owned(), endpoint);
        }
        refusal
    }
}
