//! Node to node: Raft messages, forwarded calls and snapshots, each on streams of their own.
//!
//! [`Links`] is what this node sends with; [`server`] is what it hears. Every stream begins with a [`greeting`].
//! Raft messages may be lost (`raft`, `queue`), a forwarded call has an end that its caller learns (`forward_client`,
//! and `forward_server` at the other side), a snapshot arrives whole or not at all (`snapshots`, and `receive`).

mod accept;
mod dial;
mod forward_client;
mod forward_server;
mod greeting;
mod introductions;
pub(crate) mod latency;
mod message;
mod queue;
mod raft;
mod receive;
mod server;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle as Runtime;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use trefoil_core::call::{Failure, ShardRequest, unreached};
use trefoil_core::replica::Peer;
use trefoil_core::replica::obstacles::Obstacles;
use trefoil_core::{NodeId, ShardId};
use trefoil_proto::cluster::v1::StatusResponse;
use trefoil_proto::internal::v1::{Access, DescribeRequest, Refusal};

use self::forward_client::ForwardClient;
use self::queue::SendBuffer;
use self::snapshots::Snapshots;
use crate::calls::context::Answered;
use crate::shared::Shared;
use crate::storage::snapshot::SnapshotReader;

pub(crate) use self::introductions::Introductions;

/// Time for a peer to say what it is.
const DESCRIBE_WAIT: Duration = Duration::from_secs(1);

/// The links of this node to its peers.
#[derive(Debug)]
pub(crate) struct Links {
    shared: Arc<Shared>,
    introductions: Arc<Introductions>,
    peers: BTreeMap<NodeId, PeerLink>,
    snapshots: Arc<Snapshots>,
    /// What peers are told of this node's replicas.
    announced: watch::Sender<Announced>,
    root: PathBuf,
    runtime: Runtime,
}

/// What a node tells its peers of its replicas, after the greeting and whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Announced {
    /// Shards whose log lost its end.
    pub(crate) uncertain: BTreeSet<ShardId>,
    /// What keeps this node from leading, by shard.
    pub(crate) obstacles: BTreeMap<ShardId, Obstacles>,
}

#[derive(Debug)]
struct PeerLink {
    address: String,
    queue: Arc<SendBuffer>,
    forward: Arc<ForwardClient>,
    /// What the peer said of itself last, and when. One asks and the others wait for it, since a peer has few connections
    /// for all that clients may ask at once.
    described: Mutex<Option<(Instant, Result<StatusResponse, String>)>>,
}

impl Links {
    pub(crate) fn new(
        shared: Arc<Shared>,
        introductions: Arc<Introductions>,
        root: PathBuf,
        runtime: Runtime,
    ) -> Self {
        let others = shared.members.iter().filter(|member| member.id != shared.node);
        let link = |address: &String| PeerLink {
            address: address.clone(),
            queue: Arc::default(),
            forward: Arc::default(),
            described: Mutex::default(),
        };
        let peers = others.map(|member| (member.id, link(&member.address))).collect();
        let snapshots = Arc::new(Snapshots::new(Arc::clone(&shared), Arc::clone(&introductions)));
        Self {
            shared,
            introductions,
            peers,
            snapshots,
            announced: watch::Sender::default(),
            root,
            runtime,
        }
    }

    /// Serves the peer port.
    pub(crate) fn listen(&self, listener: TcpListener) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = {
            let _runtime = self.runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let service = server::PeerPort::new(
            Arc::clone(&self.shared),
            Arc::clone(&self.introductions),
            self.root.clone(),
        );
        self.runtime.spawn(server::serve(Arc::clone(&self.shared), service, listener));
        Ok(())
    }

    /// Keeps a stream for Raft and one for calls to every peer.
    pub(crate) fn dial(&self) {
        for (peer, link) in &self.peers {
            let dialler = dial::Dialler {
                shared: Arc::clone(&self.shared),
                introductions: Arc::clone(&self.introductions),
                peer: *peer,
                address: link.address.clone(),
            };
            self.runtime.spawn(raft::keep(
                dialler.clone(),
                Arc::clone(&link.queue),
                self.announced.subscribe(),
            ));
            self.runtime.spawn(forward_client::keep(dialler, Arc::clone(&link.forward)));
        }
    }

    /// Waits until each peer was dialled once, for so long at most: one that knows that this node's directory is not
    /// the one that it was has then said so, before this node votes or acknowledges anything. Blocks.
    pub(crate) fn wait_for_first_words(&self, longest: Duration) {
        let dialled =
            async { tokio::time::timeout(longest, self.introductions.all_dialled()).await };
        // What was not heard by then is heard later.
        drop(self.runtime.block_on(dialled));
    }

    /// Whether the cluster is formed.
    pub(crate) fn is_formed(&self) -> bool {
        self.introductions.is_formed()
    }

    /// Members without which the cluster cannot be formed, by name.
    pub(crate) fn missing(&self) -> String {
        self.introductions.missing()
    }

    /// From now on a majority may form the cluster.
    pub(crate) fn force_new_cluster(&self) {
        self.introductions.force();
    }

    /// Has work of this node done beside everything else.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(work));
    }

    /// Queues a Raft message; false when it is dropped.
    #[must_use]
    pub(crate) fn send(&self, shard: ShardId, peer: Box<Peer>) -> bool {
        self.peers.get(&peer.message.to).is_some_and(|link| link.queue.offer(shard, peer))
    }

    /// Tells the peers what this node's replicas look like now.
    pub(crate) fn announce(&self, announced: &Announced) {
        self.announced.send_replace(announced.clone());
    }

    /// Asks the node that leads a shard, once, until a time of the boot clock.
    pub(crate) async fn forward(
        &self,
        to: NodeId,
        shard: ShardId,
        work: ShardRequest,
        access: &Access,
        deadline_ms: u64,
    ) -> Result<Answered, (Refusal, Failure)> {
        match self.peers.get(&to) {
            Some(link) => {
                self.shared.observer.forwarded(shard);
                link.forward.ask(to, shard, work, access, deadline_ms).await
            }
            None => Err((unreached(None), Failure::Definite)),
        }
    }

    /// What another node says of itself, not before this call.
    pub(crate) async fn describe(&self, node: NodeId) -> Result<StatusResponse, String> {
        let began = Instant::now();
        let link = self.peers.get(&node).ok_or("it is no other member")?;
        let mut described = link.described.lock().await;
        if let Some((at, said)) = &*described
            && *at >= began
        {
            return said.clone();
        }
        let asked = tokio::time::timeout(DESCRIBE_WAIT, self.ask_to_describe(node, link)).await;
        let said = match asked {
            Ok(said) => said.map_err(|ended| ended.to_string()),
            Err(_) => Err(format!("no answer within {} ms", DESCRIBE_WAIT.as_millis())),
        };
        *described = Some((Instant::now(), said.clone()));
        said
    }

    async fn ask_to_describe(
        &self,
        node: NodeId,
        link: &PeerLink,
    ) -> Result<StatusResponse, dial::Ended> {
        let mut client = dial::connect(&link.address).await?;
        let greeting = Some(self.introductions.greeting(node));
        let answer = client.describe(DescribeRequest { greeting }).await?.into_inner();
        answer.status.ok_or_else(|| dial::Ended::Away("it says nothing".to_owned()))
    }

    /// When a node gave its last sign of life on the stream for calls to it, by the boot clock.
    pub(crate) fn heard_ms(&self, node: NodeId) -> u64 {
        self.peers.get(&node).map_or(0, |link| link.forward.heard_ms())
    }

    /// Keeps a snapshot open until it is sent or closed.
    pub(crate) fn put_snapshot(&self, shard: ShardId, to: NodeId, reader: SnapshotReader) {
        self.snapshots.put(shard, to, reader);
    }

    /// Streams the open snapshot; the replica is told how that ended.
    pub(crate) fn send_snapshot(&self, shard: ShardId, peer: Box<Peer>) {
        let to = peer.message.to;
        if let Some(link) = self.peers.get(&to) {
            self.snapshots.send(&self.runtime, shard, peer, link.address.clone());
        }
    }

    /// Lets go of the data directory and of every open file. Nothing is sent or heard any more.
    pub(crate) fn release(&self) {
        self.snapshots.close_all();
        self.introductions.release();
    }

    pub(crate) fn close_snapshot(&self, shard: ShardId, to: NodeId) {
        self.snapshots.close(shard, to);
    }
}
