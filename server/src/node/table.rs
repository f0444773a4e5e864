//! What each shard of this node looks like at the moment, for whoever asks: no round trip to its threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use trefoil_core::replica::{Role, Status};
use trefoil_core::{NodeId, ShardId};

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

/// The state of every shard.
#[derive(Debug)]
pub(crate) struct Table {
    shards: Vec<Mutex<ShardState>>,
    /// Counts the changes of leaders, so that calls without a leader wake when there is one.
    moves: watch::Sender<u64>,
}

impl Table {
    pub(crate) fn new(shards: u32) -> Self {
        let state = |shard| Mutex::new(ShardState { shard, ..ShardState::default() });
        Self { shards: (0..=shards).map(state).collect(), moves: watch::Sender::new(0) }
    }

    fn state(&self, shard: ShardId) -> Option<MutexGuard<'_, ShardState>> {
        let state = self.shards.get(usize::try_from(shard).ok()?)?;
        Some(state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The replica says something new.
    pub(crate) fn set_status(&self, shard: ShardId, status: Status) {
        let Some(mut state) = self.state(shard) else { return };
        let moved = state.status.role.leader != status.role.leader
            || state.status.role.role != status.role.role;
        state.status = status;
        drop(state);
        if moved {
            self.moves.send_modify(|count| *count += 1);
        }
    }

    /// The sizes of the state changed.
    pub(crate) fn set_bytes(&self, shard: ShardId, state_bytes: u64, overlay_bytes: u64) {
        if let Some(mut state) = self.state(shard) {
            state.state_bytes = state_bytes;
            state.overlay_bytes = overlay_bytes;
        }
    }

    /// The leader of a shard, when known.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.state(shard)?.status.role.leader
    }

    /// Whether this node leads a shard.
    pub(crate) fn leads(&self, shard: ShardId) -> bool {
        self.state(shard).is_some_and(|state| state.status.role.role == Role::Leader)
    }

    pub(crate) fn has(&self, shard: ShardId) -> bool {
        usize::try_from(shard).is_ok_and(|shard| shard < self.shards.len())
    }

    pub(crate) fn all(&self) -> Vec<ShardState> {
        let copy =
            |state: &Mutex<ShardState>| *state.lock().unwrap_or_else(PoisonError::into_inner);
        self.shards.iter().map(copy).collect()
    }

    /// Wakes when any shard's leader changes.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use trefoil_core::replica::RoleChange;

    use super::*;

    #[test]
    fn a_change_of_leader_wakes_and_a_change_of_index_does_not() {
        let table = Table::new(2);
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
