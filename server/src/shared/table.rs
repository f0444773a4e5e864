//! What each shard of this node looks like at the moment, for whoever asks: no round trip to its threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use trefoil_core::replica::{Role, RoleChange, Status};
use trefoil_core::{NodeId, ShardId};

use super::clock;

/// One shard, as this node sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardState {
    /// The shard; 0 is the meta shard.
    pub shard: ShardId,
    /// What its replica says.
    pub status: Status,
    /// Bytes of the state file.
    pub state_bytes: u64,
    /// Bytes of changes since the last checkpoint, in memory.
    pub overlay_bytes: u64,
}

/// What is known of who leads a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KnownLeader {
    pub(crate) leader: Option<NodeId>,
    pub(crate) term: u64,
    /// By the boot clock; nothing where a leader is known.
    pub(crate) leaderless_since_ms: u64,
    /// Of the last entry that this node has applied.
    pub(crate) applied_log_time_ms: u64,
}

#[derive(Debug)]
struct ShardRow {
    state: ShardState,
    leaderless_since_ms: u64,
}

/// The state of every shard.
#[derive(Debug)]
pub(crate) struct ShardTable {
    shards: Vec<Mutex<ShardRow>>,
    /// Counts the changes of leaders, so that calls without a leader wake when there is one.
    moves: watch::Sender<u64>,
}

impl ShardTable {
    pub(crate) fn new(shards: u32) -> Self {
        let leaderless_since_ms = clock::boot_ms();
        let row = |shard| {
            let state = ShardState { shard, ..ShardState::default() };
            Mutex::new(ShardRow { state, leaderless_since_ms })
        };
        Self { shards: (0..=shards).map(row).collect(), moves: watch::Sender::new(0) }
    }

    fn row(&self, shard: ShardId) -> Option<MutexGuard<'_, ShardRow>> {
        let row = self.shards.get(usize::try_from(shard).ok()?)?;
        Some(row.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The replica says something new.
    pub(crate) fn set_status(&self, shard: ShardId, status: Status) {
        let Some(mut row) = self.row(shard) else { return };
        let (before, now) = (row.state.status.role, status.role);
        if before.leader.is_some() && now.leader.is_none() {
            row.leaderless_since_ms = clock::boot_ms();
        }
        row.state.status = status;
        drop(row);
        if before.leader != now.leader || before.role != now.role {
            self.wake();
        }
    }

    /// Wakes whoever waits for news of a leader.
    pub(crate) fn wake(&self) {
        self.moves.send_modify(|count| *count += 1);
    }

    /// The sizes of the state changed.
    pub(crate) fn set_bytes(&self, shard: ShardId, state_bytes: u64, overlay_bytes: u64) {
        if let Some(mut row) = self.row(shard) {
            row.state.state_bytes = state_bytes;
            row.state.overlay_bytes = overlay_bytes;
        }
    }

    /// The leader of a shard, when known.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.leadership(shard).leader
    }

    /// Who leads a shard, as far as this node knows.
    pub(crate) fn leadership(&self, shard: ShardId) -> KnownLeader {
        let Some(row) = self.row(shard) else { return KnownLeader::default() };
        let Status { role: RoleChange { leader, term, .. }, applied_log_time_ms, .. } =
            row.state.status;
        let leaderless_since_ms = row.leaderless_since_ms;
        KnownLeader { leader, term, leaderless_since_ms, applied_log_time_ms }
    }

    /// Whether the shard has stopped on this node, since a peer has another history of it.
    pub(crate) fn has_two_histories(&self, shard: ShardId) -> bool {
        self.row(shard).is_some_and(|row| row.state.status.two_histories)
    }

    /// Whether this node leads a shard.
    pub(crate) fn leads(&self, shard: ShardId) -> bool {
        self.row(shard).is_some_and(|row| row.state.status.role.role == Role::Leader)
    }

    pub(crate) fn has(&self, shard: ShardId) -> bool {
        usize::try_from(shard).is_ok_and(|shard| shard < self.shards.len())
    }

    pub(crate) fn all(&self) -> Vec<ShardState> {
        let copy = |row: &Mutex<ShardRow>| row.lock().unwrap_or_else(PoisonError::into_inner).state;
        self.shards.iter().map(copy).collect()
    }

    /// Wakes when any shard's leader changes, and when the node takes no calls any more.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_leader_wakes_and_a_change_of_index_does_not() {
        let table = ShardTable::new(2);
        assert!(table.has(2) && !table.has(3));
        let mut moves = table.moves();
        table.set_status(1, Status { last_index: 11, ..Status::default() });
        assert!(!moves.has_changed().unwrap());
        let role = RoleChange { role: Role::Leader, term: 2, leader: Some(3) };
        table.set_status(1, Status { role, ..Status::default() });
        assert!(moves.has_changed().unwrap());
        moves.mark_unchanged();
        assert_eq!((table.leader(1), table.leads(1), table.leader(2)), (Some(3), true, None));
        table.set_bytes(1, 5, 6);
        assert_eq!(table.all()[1].overlay_bytes, 6);
        assert_eq!(table.leader(9), None);
    }
}
