//! Who speaks to whom: every stream begins with a greeting that is checked before anything else is decoded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use slog::{Logger, warn};
use tokio::sync::{Notify, watch};
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Status};
use trefoil_core::NodeId;
use trefoil_proto::internal::v1::Greeting;

use crate::node::clock;
use crate::storage::DataDirectory;

/// Version of what members say to each other.
const PROTOCOL: u32 = 2;

/// Where a refused stream says why.
const FAULT_KEY: &str = "trefoil-peer-fault";

/// Why a greeting was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// No greeting came, or not at once.
    Silent,
    OtherCluster,
    OtherProtocol,
    /// It was meant for another node.
    WrongNode,
    UnknownMember,
    /// The sender has another data directory than the one it was known by.
    OtherIncarnation,
    /// A newer stream of the same sender is there.
    OldStream,
}

impl Fault {
    const ALL: [Self; 7] = [
        Self::Silent,
        Self::OtherCluster,
        Self::OtherProtocol,
        Self::WrongNode,
        Self::UnknownMember,
        Self::OtherIncarnation,
        Self::OldStream,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Silent => "no-greeting",
            Self::OtherCluster => "other-cluster",
            Self::OtherProtocol => "other-protocol",
            Self::WrongNode => "wrong-node",
            Self::UnknownMember => "unknown-member",
            Self::OtherIncarnation => "other-incarnation",
            Self::OldStream => "old-stream",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::Silent => "a stream between nodes begins with a greeting",
            Self::OtherCluster => {
                "the sender belongs to another cluster: compare --cluster-token and --initial-cluster"
            }
            Self::OtherProtocol => "the sender speaks another version of the peer protocol",
            Self::WrongNode => {
                "the stream was meant for another node: compare the addresses in --initial-cluster"
            }
            Self::UnknownMember => "the sender is no member of this cluster",
            Self::OtherIncarnation => {
                "the sender has another data directory than the one it was known by"
            }
            Self::OldStream => "a newer stream of the sender is there",
        }
    }

    /// The status that refuses a stream.
    pub(crate) fn status(self) -> Status {
        let mut status = Status::new(Code::FailedPrecondition, self.sentence());
        status.metadata_mut().insert(FAULT_KEY, AsciiMetadataValue::from_static(self.name()));
        status
    }

    /// The fault that a status carries.
    pub(crate) fn of(status: &Status) -> Option<Self> {
        let name = status.metadata().get(FAULT_KEY)?;
        Self::ALL.into_iter().find(|fault| name == fault.name())
    }
}

/// This node's own introduction, and what it knows of its peers.
#[derive(Debug)]
pub(crate) struct Introductions {
    pub(crate) cluster_id: [u8; 16],
    pub(crate) node: NodeId,
    pub(crate) endpoint: String,
    /// Whether this node has data of an earlier run.
    pub(crate) formed: bool,
    incarnation: u64,
    peers: BTreeMap<NodeId, Notify>,
    /// None once the node is stopped.
    directory: Mutex<Option<DataDirectory>>,
    epoch: AtomicU64,
    /// Each fault of each peer is logged once.
    logged: Mutex<BTreeSet<(NodeId, Fault)>>,
    /// Peers that were dialled at least once, with whatever result.
    dialled: watch::Sender<BTreeSet<NodeId>>,
    logger: Logger,
}

impl Introductions {
    pub(crate) fn new(
        (cluster_id, node): ([u8; 16], NodeId),
        peers: BTreeSet<NodeId>,
        endpoint: String,
        directory: DataDirectory,
        formed: bool,
        logger: Logger,
    ) -> Self {
        Self {
            cluster_id,
            node,
            endpoint,
            formed,
            incarnation: directory.identity().incarnation,
            peers: peers.into_iter().map(|peer| (peer, Notify::new())).collect(),
            directory: Mutex::new(Some(directory)),
            // It rises over restarts as long as the wall clock does; a stream that has ended stands in nobody's way.
            epoch: AtomicU64::new(clock::wall_us()),
            logged: Mutex::default(),
            dialled: watch::Sender::default(),
            logger,
        }
    }

    /// The greeting of a new stream.
    pub(crate) fn greeting(&self, to: NodeId) -> Greeting {
        Greeting {
            cluster_id: self.cluster_id.to_vec().into(),
            from: self.node,
            to,
            incarnation: self.incarnation,
            protocol: PROTOCOL,
            epoch: self.epoch.fetch_add(1, Ordering::Relaxed) + 1,
            endpoint: self.endpoint.clone(),
            formed: self.formed,
        }
    }

    /// Checks a greeting, and remembers the incarnation of a peer that is met for the first time.
    pub(crate) async fn check(
        self: &Arc<Self>,
        greeting: Option<&Greeting>,
    ) -> Result<NodeId, Fault> {
        let Some(greeting) = greeting else { return Err(Fault::Silent) };
        let checked = self.check_place(greeting);
        let checked = match checked {
            Ok(()) => self.check_incarnation(greeting.from, greeting.incarnation).await,
            Err(fault) => Err(fault),
        };
        match checked {
            Ok(()) => {
                if let Some(met) = self.peers.get(&greeting.from) {
                    met.notify_waiters();
                }
                Ok(greeting.from)
            }
            Err(fault) => {
                self.log_once(greeting.from, fault, "refused a peer");
                Err(fault)
            }
        }
    }

    fn check_place(&self, greeting: &Greeting) -> Result<(), Fault> {
        if greeting.protocol != PROTOCOL {
            Err(Fault::OtherProtocol)
        } else if greeting.cluster_id[..] != self.cluster_id {
            Err(Fault::OtherCluster)
        } else if greeting.to != self.node {
            Err(Fault::WrongNode)
        } else if self.peers.contains_key(&greeting.from) {
            Ok(())
        } else {
            Err(Fault::UnknownMember)
        }
    }

    async fn check_incarnation(
        self: &Arc<Self>,
        peer: NodeId,
        incarnation: u64,
    ) -> Result<(), Fault> {
        let this = Arc::clone(self);
        // The first meeting is written to disk.
        let remembered = tokio::task::spawn_blocking(move || {
            let mut directory = this.directory.lock().unwrap_or_else(PoisonError::into_inner);
            directory.as_mut().map(|directory| directory.remember_peer(peer, incarnation))
        });
        match remembered.await {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(_))) => Err(Fault::OtherIncarnation),
            // The node is stopping.
            Ok(None) | Err(_) => Err(Fault::OldStream),
        }
    }

    /// Lets go of the data directory: another process may have it.
    pub(crate) fn release(&self) {
        drop(self.directory.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Logs a fault the first time that it is seen with this peer.
    pub(crate) fn log_once(&self, peer: NodeId, fault: Fault, what: &'static str) {
        // Ids of strangers are not remembered one by one.
        let known = if self.peers.contains_key(&peer) { peer } else { 0 };
        if self.logged.lock().unwrap_or_else(PoisonError::into_inner).insert((known, fault)) {
            warn!(self.logger, "{what}"; "peer" => peer, "fault" => fault.name(), "reason" => fault.sentence());
        }
    }

    /// Waits until a peer introduces itself.
    pub(crate) async fn met(&self, peer: NodeId) {
        match self.peers.get(&peer) {
            Some(met) => met.notified().await,
            None => std::future::pending().await,
        }
    }

    /// A peer was dialled, with whatever result.
    pub(crate) fn note_dialled(&self, peer: NodeId) {
        self.dialled.send_if_modified(|dialled| dialled.insert(peer));
    }

    /// Waits until every peer was dialled once.
    pub(crate) async fn all_dialled(&self) {
        let mut dialled = self.dialled.subscribe();
        // The sender lives as long as this.
        drop(
            dialled.wait_for(|dialled| self.peers.keys().all(|peer| dialled.contains(peer))).await,
        );
    }
}

/// The live stream of each peer, so that an older one gives way.
#[derive(Debug)]
pub(crate) struct Streams(BTreeMap<NodeId, AtomicU64>);

impl Streams {
    pub(crate) fn new(peers: impl Iterator<Item = NodeId>) -> Self {
        Self(peers.map(|peer| (peer, AtomicU64::new(0))).collect())
    }

    /// A stream begins.
    pub(crate) fn begin(&self, peer: NodeId, epoch: u64) -> Result<(), Fault> {
        let live = self.0.get(&peer).ok_or(Fault::UnknownMember)?;
        if live.fetch_max(epoch, Ordering::Relaxed) < epoch {
            Ok(())
        } else {
            Err(Fault::OldStream)
        }
    }

    /// Whether a stream is still its peer's newest.
    pub(crate) fn is_live(&self, peer: NodeId, epoch: u64) -> bool {
        self.0.get(&peer).is_some_and(|live| live.load(Ordering::Relaxed) == epoch)
    }

    /// A stream has ended.
    pub(crate) fn end(&self, peer: NodeId, epoch: u64) {
        if let Some(live) = self.0.get(&peer) {
            // Where a newer one has begun, that one stays.
            let ended = |live: u64| (live == epoch).then_some(0);
            live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, ended).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_its_status() {
        for fault in Fault::ALL {
            assert_eq!(Fault::of(&fault.status()), Some(fault));
        }
        assert_eq!(Fault::of(&Status::unavailable("elsewhere")), None);
    }

    #[test]
    fn an_older_stream_gives_way_and_an_ended_one_stands_in_nobodys_way() {
        let streams = Streams::new([2].into_iter());
        assert_eq!(streams.begin(3, 1), Err(Fault::UnknownMember));
        assert_eq!(streams.begin(2, 5), Ok(()));
        assert_eq!(streams.begin(2, 4), Err(Fault::OldStream));
        assert_eq!(streams.begin(2, 6), Ok(()));
        assert!(!streams.is_live(2, 5) && streams.is_live(2, 6));
        streams.end(2, 5);
        assert!(streams.is_live(2, 6));
        streams.end(2, 6);
        assert_eq!(streams.begin(2, 1), Ok(()), "a clock that went back shuts nobody out");
    }
}
