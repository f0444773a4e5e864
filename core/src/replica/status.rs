//! What a replica says of itself.

use super::Replica;
use super::effect::RoleChange;
use super::obstacles::Obstacles;
use crate::Now;

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
    /// Its term.
    pub applied_term: u64,
    /// Index of the last checkpoint.
    pub checkpoint_index: u64,
    /// Bytes of the entries in the log.
    pub log_bytes: u64,
    /// Estimate of log time in ms.
    pub log_time_ms: u64,
    /// Log time of the last applied entry in ms: no command that is tried from now on is applied earlier.
    pub applied_log_time_ms: u64,
    /// A bad tail of the log was cut off and the replica has not caught up since: it abstains from elections while
    /// the others are a majority.
    pub uncertain: bool,
    /// What keeps this node from leading the shard.
    pub obstacles: Obstacles,
    /// The state is damaged: the replica waits for that of a peer, and neither leads nor answers.
    pub damaged: bool,
    /// It leads, and no majority agrees with its state: everything is refused.
    pub disputed: bool,
    /// The replica has stopped, since a peer has another history of the shard.
    pub two_histories: bool,
}

impl Replica {
    /// What this replica says of itself at `now`.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        let raft = &self.raft.0.raft;
        Status {
            role: self.role,
            first_index: raft.store().first(),
            last_index: raft.raft_log.last_index(),
            commit_index: raft.raft_log.committed,
            applied_index: self.applied.index,
            applied_term: self.applied.term,
            checkpoint_index: self.disk.checkpoint_index(),
            log_bytes: raft.store().bytes(),
            log_time_ms: self.clock.read(now),
            applied_log_time_ms: self.applied.log_time_ms,
            uncertain: self.is_uncertain(),
            obstacles: self.obstacles(),
            damaged: self.repair.is_damaged(),
            disputed: self.repair.is_disputed(),
            two_histories: self.histories.is_stopped(),
        }
    }
}
