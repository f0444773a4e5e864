//! What happens to a replica: a closed set.

use bytes::Bytes;
use raft_proto::eraftpb;
use trefoil_proto::internal::v1::{Command, Query};

use super::obstacles::{Obstacle, Obstacles};
use crate::machine::Applied;
use crate::{CallId, NodeId, ShardId, limits};

/// What a replica is told once, at its start.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// This node.
    pub node: NodeId,
    /// This shard.
    pub shard: ShardId,
    /// The voters of the group, in ascending order.
    pub voters: Vec<NodeId>,
    /// The node that shall lead this shard while it is healthy, so that leaders spread over the nodes.
    pub preferred_leader: NodeId,
    /// Seed of the election timeouts.
    pub seed: u64,
    /// Sizes that tests make small.
    pub tuning: Tuning,
}

/// Sizes that decide when things happen, never whether they are right.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Bytes of log since the last checkpoint that ask for the next.
    pub checkpoint_log_bytes: u64,
    /// Bytes of changed state in memory that ask for a checkpoint.
    pub checkpoint_overlay_bytes: u64,
    /// Bytes of recent entries kept in memory.
    pub log_cache_bytes: usize,
    /// Bytes of log that a slow follower may hold back.
    pub log_bytes_max: u64,
    /// Entries between two indexes at which the states of all replicas are compared, at least.
    pub digest_entries: u64,
    /// Time between the two, in ms, at least.
    pub digest_age_ms: u64,
}

impl Tuning {
    /// For a node with this many data shards: together they leave room in the log that they share.
    #[must_use]
    pub fn for_shards(shards: u32) -> Self {
        let share = limits::LOG_PURGE_BYTES / (u64::from(shards) + 1);
        Self {
            checkpoint_log_bytes: limits::CHECKPOINT_LOG_BYTES.min(share / 2),
            log_bytes_max: limits::LOG_BYTES_PER_SHARD_MAX.min(share),
            ..Self::default()
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            checkpoint_log_bytes: limits::CHECKPOINT_LOG_BYTES,
            checkpoint_overlay_bytes: limits::CHECKPOINT_OVERLAY_BYTES,
            log_cache_bytes: limits::LOG_CACHE_BYTES,
            log_bytes_max: limits::LOG_BYTES_PER_SHARD_MAX,
            digest_entries: limits::DIGEST_ENTRIES,
            digest_age_ms: limits::DIGEST_AGE_MS,
        }
    }
}

/// What the disk held at the start.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Last hard state.
    pub hard_state: eraftpb::HardState,
    /// Index and term before the first entry of the log.
    pub truncated: (u64, u64),
    /// Terms of the entries after it, as (first index, term), ascending; empty when there are no entries.
    pub terms: Vec<(u64, u64)>,
    /// Index of the last entry; the truncated index when there are none.
    pub last_index: u64,
    /// Bytes of the entries in the log.
    pub log_bytes: u64,
    /// Index and term of the last checkpoint, at which the machine begins.
    pub applied: (u64, u64),
    /// Log time of the checkpoint, in ms.
    pub log_time_ms: u64,
    /// Wall clock of the last entry that the checkpoint has, in ms since 1970; 0 when there is none.
    pub wall_ms: u64,
    /// When the first timer of the checkpoint is due, in log time.
    pub next_due_ms: Option<u64>,
    /// A bad tail above the durable mark was cut off: this node neither votes nor campaigns until it has caught up.
    pub uncertain: bool,
    /// The state is damaged: it begins at `truncated`, where the log does, and is to be had from a peer.
    pub damaged: bool,
}

/// Log time as a peer knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTime {
    /// A lower bound of the shard's log time, in ms.
    pub log_time_ms: u64,
    /// Whether the peer has followed the shard since its last stamp without restarting.
    pub continuous: bool,
}

/// A hash of a state at an index; index 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// Applied index.
    pub index: u64,
    /// Chain hash of all writes up to it, or digest of all records.
    pub hash: u64,
}

/// A Raft message with what travels beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peer {
    /// raft-rs' message.
    pub message: eraftpb::Message,
    /// The sender's log time.
    pub time: PeerTime,
    /// The sender's state hash.
    pub chain: Chain,
    /// Digest of the sender's state at the last index that was named for it.
    pub digest: Chain,
    /// The sender's state is damaged, and its log leads on from any state at this index or after it; 0 when it is not.
    pub wants_state_from: u64,
    /// What the receiver said of its state, where that is not the state of a majority.
    pub differs: Chain,
}

/// A command to propose.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// Whom to answer.
    pub call: CallId,
    /// What to propose.
    pub command: Command,
    /// When the caller gives up, by the clock of [`crate::Now::boot_ms`].
    pub deadline_ms: u64,
    /// Another node passed it on, and its answer goes there.
    pub forwarded: bool,
}

/// A linearizable read.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// Whom to answer.
    pub call: CallId,
    /// What to read.
    pub query: Query,
    /// When the caller gives up, by the clock of [`crate::Now::boot_ms`].
    pub deadline_ms: u64,
}

/// What the disk of a node wants of its replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Free disk space is below the limit: others should lead, and where no majority has room, only what frees space
    /// is taken.
    pub disk_low: bool,
    /// The engine wants the log cut: take a checkpoint.
    pub wants_checkpoint: bool,
}

/// Something that happened.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a read that is due is rare, and moved once")]
pub enum Input {
    /// [`crate::limits::TICK_MS`] have passed.
    Tick,
    /// A message of a peer.
    Peer(Box<Peer>),
    /// Commands of clients.
    Propose(Vec<Proposal>),
    /// Reads of clients.
    Read(Vec<Read>),
    /// A caller went away; a command that was proposed goes on.
    Cancel(CallId),
    /// The node that forwarded a call asks for the grant that it was offered: its caller is still there.
    Claim(CallId),
    /// The batch with this number, and all before it, is synced.
    Persisted(u64),
    /// Entries were applied, in order.
    Applied(Vec<Applied>),
    /// A query's value is due by the clock, and not yet by the log (see `QueryOutcome::Due`).
    Due {
        /// The read, to be answered once log time is there.
        read: Read,
        /// The log time to reach, in ms.
        due_ms: u64,
    },
    /// A checkpoint is on disk.
    Checkpointed {
        /// Index that it holds.
        index: u64,
        /// Bytes of changed state that are in memory now.
        overlay_bytes: u64,
    },
    /// Entries that [`super::Effect::Fetch`] asked for.
    Fetched {
        /// The ticket of the effect.
        ticket: u64,
        /// The entries in order, from its first index; possibly fewer than asked for, at least one.
        entries: Vec<eraftpb::Entry>,
    },
    /// A snapshot of the last checkpoint is open for a peer; none when it could not be opened.
    SnapshotOpened {
        /// The peer.
        to: NodeId,
        /// Index, term, and the encoded `Manifest`.
        snapshot: Option<(u64, u64, Bytes)>,
    },
    /// The stream to the peer ended.
    SnapshotSent {
        /// The peer.
        to: NodeId,
        /// Whether it has it all.
        ok: bool,
    },
    /// A snapshot has arrived whole and is synced under a generation of its own.
    SnapshotReceived {
        /// The MsgSnapshot.
        peer: Box<Peer>,
        /// The generation of the file.
        generation: u64,
    },
    /// The snapshot of [`super::Effect::InstallSnapshot`] is the shard's state now, and its log batch is synced.
    SnapshotInstalled {
        /// Its index.
        index: u64,
        /// What the machine says of it: log time, wall clock, chain, next timer.
        applied: Box<Applied>,
    },
    /// The state was found damaged: it is used no longer, and that is being recorded.
    Damaged,
    /// The state of [`super::Effect::Restore`] is the shard's state now, and the log names its file.
    Restored(Box<Applied>),
    /// The digest of the state at an index that an entry named ([`Applied::digest_point`]).
    Digested(Chain),
    /// A message to a peer was dropped.
    Unreachable(NodeId),
    /// A peer has (or no longer has) lost the end of its log.
    Uncertain {
        /// The peer.
        node: NodeId,
        /// Whether it has.
        uncertain: bool,
    },
    /// A peer has gone on with an older copy of a directory: its history of the shard may be another one.
    Suspect(NodeId),
    /// Something keeps this node from leading the shard, or no longer does. The room on its disk is told by
    /// [`Input::Pressure`], and what its writes and links take the replica sees itself.
    Obstacle {
        /// What.
        obstacle: Obstacle,
        /// Whether it does.
        stands: bool,
    },
    /// All that keeps a peer from leading the shard, as it says.
    PeerObstacles {
        /// The peer.
        node: NodeId,
        /// What does.
        obstacles: Obstacles,
    },
    /// Hand the leadership to a peer; no peer means the best one.
    Transfer {
        /// Whom to answer; 0 when nobody asked.
        call: CallId,
        /// The peer.
        to: Option<NodeId>,
    },
    /// The state of the disk changed.
    Pressure(Pressure),
}
