//! What can happen in the world, and how it reads in a trace.

use std::fmt;
use std::rc::Rc;

use raft_proto::eraftpb::Message;
use trefoil_core::replica::{Peer, Reply};
use trefoil_core::{CallId, NodeId, ShardId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::calls::RoutedRequest;
use crate::client::TryResult;
use crate::disk::state::Image;
use crate::node::forwarding::{Asker, Forwarded};
use crate::node::membership::Letter;
use crate::node::process::{Process, ReplicaNotice};

/// Something that happens at its time.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the queue is short")]
pub enum SimEvent {
    /// Something inside a process.
    In(Process, ProcessEvent),
    /// A Raft message of a start of a peer arrives at the process that it was sent to: its stream ends with that.
    Peer(Process, ShardId, u64, Box<Peer>),
    /// Something arrives on a stream of members.
    Letter {
        /// The sender.
        from: Process,
        /// The receiver.
        to: Process,
        /// What.
        letter: Box<Letter>,
    },
    /// The stream of a snapshot ends.
    Stream {
        /// The sender.
        from: Process,
        /// The receiver.
        to: NodeId,
        /// The shard.
        shard: ShardId,
        /// The MsgSnapshot.
        peer: Box<Peer>,
        /// The state; none when the stream broke.
        image: Option<Rc<Image>>,
    },
    /// A node says that it lost the end of its log, or has caught up, and what keeps it from leading.
    Announced {
        /// To whom.
        to: NodeId,
        /// The shard.
        shard: ShardId,
        /// Who, and which start of it.
        from: (NodeId, u64),
        /// What it says.
        announced: ReplicaNotice,
        /// When it said it: on its stream nothing overtakes what was said before.
        said_at: u64,
    },
    /// Something arrives on a stream for calls.
    Forwarded {
        /// The sender.
        from: Process,
        /// The receiver.
        to: Process,
        /// The stream.
        epoch: u64,
        /// What.
        message: Forwarded,
    },
    /// An end of a stream for calls sees that it broke.
    StreamBroke {
        /// Which end.
        end: Process,
        /// The other one.
        other: NodeId,
        /// The stream.
        epoch: u64,
    },
    /// A request of a client arrives.
    Request {
        /// The node.
        to: NodeId,
        /// The client and its try.
        from: (u64, u64),
        /// How long the client waits from now on.
        patience_us: u64,
        /// What is asked.
        request: RoutedRequest,
    },
    /// A client hangs up.
    HangUp {
        /// The node.
        to: NodeId,
        /// The client and its try.
        from: (u64, u64),
    },
    /// Something comes back to a client: its number, its try, what it was.
    Hear(u64, u64, TryResult),
    /// A client's timer.
    Wake(u64, u64),
    /// The next fault is due.
    NextFault,
    /// A fault ends.
    Mend(Mend),
    /// The course of the run is looked at.
    Watch,
}

/// What happens inside a process.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there are a few at a time")]
pub enum ProcessEvent {
    /// The clock ticks.
    Tick,
    /// A peer is to be reached.
    Dial(NodeId),
    /// An attempt to reach a peer, or what came of it, is over.
    LinkEnds(NodeId, u64),
    /// The sync of the log is done.
    Synced,
    /// The log is written again after the disk was full.
    RetryWrite,
    /// The applier is done with its first task.
    Applier(ShardId),
    /// A checkpoint of a generation is written.
    Checkpoint(ShardId, u64),
    /// Entries were read.
    Fetched {
        /// The shard.
        shard: ShardId,
        /// Names the request.
        ticket: u64,
        /// First index.
        first: u64,
        /// Index after the last one.
        last: u64,
        /// Bytes at most.
        max_bytes: u64,
    },
    /// The digest of a state is known.
    Digested(ShardId, trefoil_core::replica::Chain),
    /// A snapshot is open.
    Opened(ShardId, NodeId),
    /// A peer has a snapshot, or has not.
    Sent(ShardId, NodeId, bool),
    /// A message was dropped.
    Unreachable(ShardId, NodeId),
    /// A replica has ended a call.
    Ended {
        /// The call.
        call: CallId,
        /// Who asked.
        asker: Asker,
        /// How.
        reply: Reply,
    },
    /// The leader of a shard is another one.
    Moved(ShardId),
}

/// The end of a fault.
#[derive(Debug)]
pub enum Mend {
    /// A process starts again.
    Start(NodeId),
    /// A direction of a link works again.
    Link(NodeId, NodeId),
    /// A direction of a link fails once more.
    Cut(NodeId, NodeId),
    /// What a node sends is as fast as before.
    Width(NodeId),
    /// A disk is as fast as before.
    Disk(NodeId),
    /// A disk has room again.
    Room(NodeId),
    /// A node loses the end of its log, and the leader dies, as what was planned before goes on.
    RotTail(NodeId, NodeId),
    /// An older copy takes the place of a node's disk, at one of so many looks.
    Replace(NodeId, u64),
    /// A node has again the disk with which it stopped last.
    Restore(NodeId),
    /// Nodes that were away are back, after a majority was emptied.
    Return,
    /// A node dies before its cluster is formed.
    Stumble(NodeId),
    /// All directories are emptied where no cluster was formed.
    FormAnew,
}

/// A Raft message in a few words.
#[derive(Debug)]
pub struct Brief<'a>(pub &'a Message);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.0;
        write!(
            f,
            "n{}→n{} {:?} t{}",
            message.from,
            message.to,
            message.get_msg_type(),
            message.term
        )?;
        if message.log_term > 0 || message.index > 0 {
            write!(f, " log {}@{}", message.index, message.log_term)?;
        }
        if let (Some(first), Some(last)) = (message.entries.first(), message.entries.last()) {
            let hash =
                message.entries.iter().fold(0, |hash, entry| xxh3_64_with_seed(&entry.data, hash));
            write!(
                f,
                " entries {}@{}..{}@{} {hash:x}",
                first.index, first.term, last.index, last.term
            )?;
        }
        if message.commit > 0 {
            write!(f, " commit {}", message.commit)?;
        }
        if message.reject {
            write!(f, " reject hint {}@{}", message.reject_hint, message.log_term)?;
        }
        Ok(())
    }
}
