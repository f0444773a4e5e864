//! What raft-rs is told at its start: timeouts, bounds, and how it reads.

use super::input::{Boot, ReplicaConfig};
use crate::limits as l;

/// The options of one replica.
pub(super) fn raft_config(config: &ReplicaConfig, boot: &Boot) -> raft::Config {
    let (applied, _) = boot.applied;
    raft::Config {
        id: config.node,
        election_tick: l::ELECTION_TICKS_MIN,
        min_election_tick: l::ELECTION_TICKS_MIN,
        max_election_tick: l::ELECTION_TICKS_MAX,
        heartbeat_tick: l::HEARTBEAT_TICKS,
        applied: if crate::mutant!(AppliedIsCommit) {
            applied.max(boot.hard_state.commit)
        } else {
            applied
        },
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        check_quorum: !crate::mutant!(NoCheckQuorum),
        pre_vote: !crate::mutant!(NoPreVote),
        read_only_option: if crate::mutant!(LeaseRead) {
            raft::ReadOnlyOption::LeaseBased
        } else {
            raft::ReadOnlyOption::Safe
        },
        batch_append: true,
        max_uncommitted_size: l::UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: 16 << 20,
        ..raft::Config::default()
    }
}
