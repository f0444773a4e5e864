//! Who speaks to whom: every stream begins with a greeting that is checked before anything else is decoded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Status};
use trefoil_core::NodeId;
use trefoil_core::member::{Objection, Stale};

/// Where a refused stream says why.
const FAULT_KEY: &str = "trefoil-peer-fault";

/// Why a greeting was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GreetingFault {
    /// No greeting came, or not at once.
    Silent,
    /// The sender was given other flags.
    OtherSetup,
    /// The sender was formed of other directories.
    OtherCluster,
    OtherProtocol,
    /// It was meant for another node.
    WrongNode,
    UnknownMember,
    /// The sender has another data directory than the one it was known by.
    OtherIncarnation,
    /// The receiver has promised to form a cluster with another directory of the sender.
    OtherPromise,
    /// The sender has promised more than it says here.
    Behind,
    /// The sender's data directory is an older copy.
    OlderCopy,
    /// A newer stream of the same sender is there.
    OldStream,
}

impl GreetingFault {
    const ALL: [Self; 11] = [
        Self::Silent,
        Self::OtherSetup,
        Self::OtherCluster,
        Self::OtherProtocol,
        Self::WrongNode,
        Self::UnknownMember,
        Self::OtherIncarnation,
        Self::OtherPromise,
        Self::Behind,
        Self::OlderCopy,
        Self::OldStream,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Silent => "no-greeting",
            Self::OtherSetup => "other-setup",
            Self::OtherCluster => "other-cluster",
            Self::OtherProtocol => "other-protocol",
            Self::WrongNode => "wrong-node",
            Self::UnknownMember => "unknown-member",
            Self::OtherIncarnation => "other-incarnation",
            Self::OtherPromise => "other-promise",
            Self::Behind => "behind",
            Self::OlderCopy => "older-copy",
            Self::OldStream => "old-stream",
        }
    }

    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::Silent => "a stream between nodes begins with a greeting",
            Self::OtherSetup => {
                "the sender was given other flags: compare --cluster-token, --initial-cluster, --shards and --services"
            }
            Self::OtherCluster => {
                "the sender belongs to another cluster, although its flags are the same: one of the two was formed \
                 anew, see docs/operations.md"
            }
            Self::OtherProtocol => "the sender speaks another version of the peer protocol",
            Self::WrongNode => {
                "the stream was meant for another node: compare the addresses in --initial-cluster"
            }
            Self::UnknownMember => "the sender is no member of this cluster",
            Self::OtherIncarnation => {
                "the sender has another data directory than the one it was known by"
            }
            Self::OtherPromise => {
                "the cluster was about to be formed with another data directory of the sender: where no member was \
                 ever formed, empty the directories of all and start them again"
            }
            Self::Behind => "the sender has promised more than it says here",
            Self::OlderCopy => "the data directory of the sender is an older copy",
            Self::OldStream => "a newer stream of the sender is there",
        }
    }

    /// The status that refuses a stream.
    pub(crate) fn status(self) -> Status {
        GreetingRefused::from(self).status()
    }

    fn status_of(self, sentence: &str) -> Status {
        let mut status = Status::new(Code::FailedPrecondition, sentence);
        status.metadata_mut().insert(FAULT_KEY, AsciiMetadataValue::from_static(self.name()));
        status
    }

    /// The fault that a status carries.
    pub(crate) fn of(status: &Status) -> Option<Self> {
        let name = status.metadata().get(FAULT_KEY)?;
        Self::ALL.into_iter().find(|fault| name == fault.name())
    }
}

/// Why a greeting was refused, with what the other side may be told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GreetingRefused {
    pub(crate) fault: GreetingFault,
    pub(crate) sentence: String,
}

impl From<GreetingFault> for GreetingRefused {
    fn from(fault: GreetingFault) -> Self {
        Self { fault, sentence: fault.sentence().to_owned() }
    }
}

impl From<Stale> for GreetingRefused {
    fn from(stale: Stale) -> Self {
        Self { fault: GreetingFault::OlderCopy, sentence: stale.to_string() }
    }
}

impl GreetingRefused {
    /// What an objection to a peer means for it; `formed` tells whether this node belongs to a cluster.
    pub(crate) fn of_objection(objection: Objection, formed: bool) -> Self {
        let fault = match objection {
            Objection::OtherIncarnation if formed => GreetingFault::OtherIncarnation,
            Objection::OtherIncarnation => GreetingFault::OtherPromise,
            Objection::OtherCluster => GreetingFault::OtherCluster,
            Objection::Behind => GreetingFault::Behind,
            // This node ends.
            Objection::Replaced { .. } | Objection::Forgotten => GreetingFault::OldStream,
        };
        fault.into()
    }

    pub(crate) fn status(&self) -> Status {
        self.fault.status_of(&self.sentence)
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
    pub(crate) fn begin(&self, peer: NodeId, epoch: u64) -> Result<(), GreetingFault> {
        let live = self.0.get(&peer).ok_or(GreetingFault::UnknownMember)?;
        if live.fetch_max(epoch, Ordering::Relaxed) < epoch {
            Ok(())
        } else {
            Err(GreetingFault::OldStream)
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
        for fault in GreetingFault::ALL {
            assert_eq!(GreetingFault::of(&fault.status()), Some(fault));
        }
        assert_eq!(GreetingFault::of(&Status::unavailable("elsewhere")), None);
    }

    #[test]
    fn an_older_stream_gives_way_and_an_ended_one_stands_in_nobodys_way() {
        let streams = Streams::new([2].into_iter());
        assert_eq!(streams.begin(3, 1), Err(GreetingFault::UnknownMember));
        assert_eq!(streams.begin(2, 5), Ok(()));
        assert_eq!(streams.begin(2, 4), Err(GreetingFault::OldStream));
        assert_eq!(streams.begin(2, 6), Ok(()));
        assert!(!streams.is_live(2, 5) && streams.is_live(2, 6));
        streams.end(2, 5);
        assert!(streams.is_live(2, 6));
        streams.end(2, 6);
        assert_eq!(streams.begin(2, 1), Ok(()), "a clock that went back shuts nobody out");
    }
}
