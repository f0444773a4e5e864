//! One member of one shard's Raft group: inputs in, effects out.

mod effect;
mod input;

use slog::Logger;

use crate::{NodeId, Now};

pub use self::effect::{ApplyRange, Effect, PersistBatch, Reply, Role, RoleChange};
pub use self::input::{Boot, Config, Input, Peer, PeerTime, Pressure, Proposal, Read, Chain};

/// One member of one shard's Raft group.
#[derive(Debug)]
pub struct Replica {}

/// What a replica says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Role, term and leader.
    pub role: RoleChange,
    /// First index of the log.
    pub first_index: u64,
    /// Last index of the log.
    pub last_index: u64,
    /// Highest index known to be committed.
    pub commit_index: u64,
    /// Highest index that the machine has reported as applied.
    pub applied_index: u64,
    /// Index of the last checkpoint.
    pub checkpoint_index: u64,
    /// Bytes of the entries in the log.
    pub log_bytes: u64,
    /// Estimate of log time in ms.
    pub log_time_ms: u64,
}

impl Replica {
    /// Starts from what the disk holds.
    ///
    /// # Errors
    /// When the disk contradicts itself: the sentence says how.
    pub fn new(config: Config, boot: &Boot, now: Now, logger: &Logger) -> Result<Self, String> {
        unimplemented!()
    }

    /// Takes one input and says what to do about it, in order.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        unimplemented!()
    }

    /// What this replica says of itself at `now`.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        unimplemented!()
    }

    /// The node that this replica would like to lead its shard.
    #[must_use]
    pub fn preferred_leader(&self) -> NodeId {
        unimplemented!()
    }
}
