//! What the threads of a node are asked to do, and the mailboxes by which they are.

use std::sync::Arc;

use raft_proto::eraftpb::HardState;
use trefoil_core::replica::{ApplyRange, PersistBatch, Read};
use trefoil_core::{CallId, NodeId, ShardId};
use trefoil_proto::internal::v1::Refusal;

use crate::shared::mailbox::Mailbox;
use crate::storage::checkpoint::{Checkpoint, Written};
use crate::storage::snapshot::SnapshotReader;
use crate::storage::{Damaged, LogWrite};

/// Where the effects go.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    pub(super) writer: Arc<Mailbox<WriteJob>>,
    pub(super) reader: Arc<Mailbox<ReadJob>>,
    /// Shard n belongs to applier n modulo their number.
    pub(super) appliers: Vec<Arc<Mailbox<ApplyJob>>>,
    pub(super) files: Arc<Mailbox<FileJob>>,
    pub(super) digests: Arc<Mailbox<DigestJob>>,
}

impl Workers {
    pub(super) fn applier(&self, shard: ShardId) -> usize {
        usize::try_from(shard).expect("a shard number fits a usize") % self.appliers.len()
    }

    pub(super) fn apply(&self, shard: ShardId, task: ApplyTask) {
        self.appliers[self.applier(shard)].send(ApplyJob { shard, task });
    }
}

/// What one applier is asked about one shard.
#[derive(Debug)]
pub(super) struct ApplyJob {
    pub(super) shard: ShardId,
    pub(super) task: ApplyTask,
}

#[derive(Debug)]
pub(super) enum ApplyTask {
    Apply(ApplyRange),
    Query {
        reads: Vec<Read>,
        term: u64,
        now_ms: u64,
    },
    Cancel(CallId),
    StepDown(Refusal),
    Checkpoint,
    /// A checkpoint of this shard is on disk, and the log names its file.
    Checkpointed(Written),
    /// A checkpoint could not be written: what it read of the state is damaged.
    CheckpointLost(String),
    OpenSnapshot(NodeId),
    /// A received state becomes the state.
    Receive(Incoming),
    /// The log names the generation of the received state now.
    Installed,
    /// The state was found damaged by somebody else.
    Damaged(Damaged),
    /// A majority has another state at an index.
    Outvoted(u64),
}

/// A received state that is to become the state of a shard.
#[derive(Debug)]
pub(super) enum Incoming {
    /// With its log.
    Snapshot(Install),
    /// In the place of a damaged one: the log stays.
    State { generation: u64 },
}

/// A received snapshot that is to become the state.
#[derive(Debug)]
pub(super) struct Install {
    pub(super) generation: u64,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) hard_state: HardState,
}

/// What the log writer is asked.
#[derive(Debug)]
pub(super) enum WriteJob {
    Append(ShardId, PersistBatch),
    Compact {
        shard: ShardId,
        to: u64,
        term: u64,
    },
    /// The shard has caught up: the doubt about the end of its log is over.
    Trust(ShardId),
    /// The state of a shard, in the file of this generation, is damaged; the file is put aside when that is synced.
    Damage(ShardId, u64),
    /// A received state becomes the state of a shard; its applier is told when that is synced.
    Install(LogWrite, ShardId),
    /// A checkpoint went into a new file: the log names that one, then the applier is told.
    Move(ShardId, Written),
}

/// What becomes of a state file.
#[derive(Debug)]
pub(super) enum FileJob {
    Checkpoint {
        shard: ShardId,
        checkpoint: Checkpoint,
        bytes: u64,
    },
    Discard {
        shard: ShardId,
        generation: u64,
    },
    /// Put a damaged file aside.
    Keep {
        shard: ShardId,
        generation: u64,
    },
}

/// A checkpoint whose digest is wanted.
#[derive(Debug)]
pub(super) struct DigestJob {
    pub(super) shard: ShardId,
    pub(super) reader: SnapshotReader,
}

/// Entries of the log that a replica has no longer in memory.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub(super) shard: ShardId,
    pub(super) ticket: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) max_bytes: u64,
}
