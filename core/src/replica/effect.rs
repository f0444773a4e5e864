//! What a replica wants done: a closed set. Effects are carried out in their order.

use bytes::Bytes;
use raft_proto::eraftpb;
use trefoil_proto::internal::v1::{Answer, Command, Refusal};

use super::input::{Peer, Read};
use crate::{CallId, NodeId, Position};

/// Entries and hard state to write and sync as one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PersistBatch {
    /// Comes back as `Input::Persisted`; rises with each batch.
    pub number: u64,
    /// Entries to append; the first one replaces whatever stood at its index and after.
    pub entries: Vec<eraftpb::Entry>,
    /// The hard state, when it changed.
    pub hard_state: Option<eraftpb::HardState>,
}

/// Committed entries to apply, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApplyRange {
    /// First index.
    pub first: u64,
    /// Last index.
    pub last: u64,
    /// Term and data of each entry; none when they are to be read from the log.
    pub entries: Option<Vec<(u64, Bytes)>>,
    /// The replica leads: what only a leader needs is kept, too.
    pub leads: bool,
}

/// Follower, candidate or leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower = 0,
    /// Stands for election, or asks whether it should.
    Candidate = 1,
    /// Leads its term.
    Leader = 2,
}

/// Who this replica is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoleChange {
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader, when known.
    pub leader: Option<NodeId>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Decided by the state machine at a position; the answer may be a refusal, which is definite.
    Answered(Position, Answer),
    /// Refused before the state machine decided. The reason says whether it may have been applied.
    Refused(Refusal),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send a message; it may be lost.
    Send(Box<Peer>),
    /// Write and sync; answered by `Input::Persisted`.
    Persist(PersistBatch),
    /// Apply entries; answered by `Input::Applied`.
    Apply(ApplyRange),
    /// Ask the machine, after all applies before this effect, and answer the callers at that index.
    Query {
        /// The reads.
        reads: Vec<Read>,
        /// Term in which they are linearizable.
        term: u64,
        /// The leader's estimate of log time in ms.
        now_ms: u64,
    },
    /// A read's caller went away: end its long poll.
    CancelQuery(CallId),
    /// This replica no longer leads: the machine forgets what only a leader keeps, and its polls end with NOT_LEADER.
    StepDown {
        /// The refusal for the polls.
        refusal: Refusal,
    },
    /// Answer a caller.
    Reply(CallId, Reply),
    /// Ask the node that forwarded a call whether its caller is still there to take a grant; `Input::Claim` says so.
    Offer(CallId),
    /// Have a grant taken back that nobody asked for: carry out this command at the shard, whoever leads it by now, and try
    /// again until it is answered.
    TakeBack(Box<Command>),
    /// Read entries `first..last` from the log, at most `max_bytes` but at least one; answered by `Input::Fetched`.
    Fetch {
        /// Names the request.
        ticket: u64,
        /// First index.
        first: u64,
        /// Index after the last one.
        last: u64,
        /// Bytes to read at most.
        max_bytes: u64,
    },
    /// Take a checkpoint of the machine in the background; answered by `Input::Checkpointed`.
    Checkpoint,
    /// Cut the log: entries up to this index are no longer needed.
    Compact {
        /// Last index to drop.
        to: u64,
        /// Its term.
        term: u64,
    },
    /// Open a snapshot of the last checkpoint for a peer; answered by `Input::SnapshotOpened`.
    OpenSnapshot(NodeId),
    /// Stream the opened snapshot with its MsgSnapshot; answered by `Input::SnapshotSent`.
    SendSnapshot(Box<Peer>),
    /// The opened snapshot is no longer needed.
    CloseSnapshot(NodeId),
    /// Make a received snapshot the state: one synced log batch that clears the log, sets this hard state and the
    /// truncated position, and names the generation. Answered by `Input::SnapshotInstalled`.
    InstallSnapshot {
        /// The generation of the received file.
        generation: u64,
        /// Index of the snapshot.
        index: u64,
        /// Term of the snapshot.
        term: u64,
        /// Hard state to write with it.
        hard_state: eraftpb::HardState,
    },
    /// Put a received state in the place of a damaged one: one synced log batch that names the generation and ends the
    /// record of the damage. The log stays. Answered by `Input::Restored`.
    Restore {
        /// The generation of the received file.
        generation: u64,
        /// Index of the state.
        index: u64,
        /// Its term.
        term: u64,
    },
    /// The state is not that of a majority: it must not be used, nor believed after a restart.
    Outvoted {
        /// Index at which they were compared.
        index: u64,
    },
    /// No majority agrees about the state, or one does again. Nothing is answered meanwhile.
    Disputed(bool),
    /// A received snapshot was not wanted: remove its file.
    DiscardSnapshot {
        /// The generation of the file.
        generation: u64,
    },
    /// Role, term or leader changed.
    Role(RoleChange),
    /// A peer has another history of the shard than this replica: entries that were acknowledged are missing on one
    /// side. This replica has stopped.
    TwoHistories {
        /// The peer.
        peer: NodeId,
        /// Index up to which this replica knows its own history to be committed.
        index: u64,
    },
    /// A peer that applied the same entries has another state: a fault that must be looked into.
    Diverged {
        /// The peer.
        peer: NodeId,
        /// Index at which both states were compared.
        index: u64,
    },
}
