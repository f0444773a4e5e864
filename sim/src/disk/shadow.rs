//! What a shard's log holds, as a value: what records say when they are read in order.

use std::collections::BTreeMap;

use protobuf::Message as _;
use raft_proto::eraftpb::HardState;
use trefoil_core::replica::Boot;
use trefoil_core::{BIRTH_INDEX, BIRTH_TERM, ShardId};

use super::wire::LogChange;

/// One shard's log without the data of its entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShadowLog {
    /// The last hard state.
    pub hard_state: HardState,
    /// Index and term before the first entry.
    pub truncated: (u64, u64),
    /// Term and bytes of each entry.
    pub entries: BTreeMap<u64, (u64, u32)>,
    /// The state file that it names.
    pub generation: u64,
    /// That state must not be believed.
    pub damaged: bool,
}

impl ShadowLog {
    /// The log with which every shard is born.
    #[must_use]
    pub fn newborn() -> Self {
        let hard_state =
            HardState { term: BIRTH_TERM, commit: BIRTH_INDEX, ..HardState::default() };
        let truncated = (BIRTH_INDEX, BIRTH_TERM);
        Self { hard_state, truncated, generation: 0, ..Self::default() }
    }

    /// Index of the last entry.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(self.truncated.0, |(index, _)| *index)
    }

    /// What the log of a shard has beside entries.
    #[must_use]
    pub fn base(&self, shard: ShardId, uncertain: bool) -> LogChange {
        let Self { hard_state, truncated, generation, damaged, .. } = self.clone();
        LogChange::Base { shard, hard_state, truncated, generation, uncertain, damaged }
    }

    /// Takes what a record says.
    pub fn take(&mut self, change: &LogChange) {
        match change {
            LogChange::Append(_, batch) => {
                if let Some(first) = batch.entries.first() {
                    self.entries.split_off(&first.index);
                }
                let entries = batch.entries.iter();
                self.entries
                    .extend(entries.map(|entry| (entry.index, (entry.term, entry.compute_size()))));
                if let Some(hard_state) = &batch.hard_state {
                    self.hard_state = hard_state.clone();
                }
            }
            LogChange::Compact(_, to, term) => {
                if *to > self.truncated.0 {
                    self.truncated = (*to, *term);
                    self.entries = self.entries.split_off(&(to + 1));
                }
            }
            LogChange::Install { hard_state, truncated, generation, .. } => {
                self.hard_state = hard_state.clone();
                self.truncated = *truncated;
                (self.generation, self.damaged) = (*generation, false);
                if trefoil_core::mutant!(CutOnly) {
                    self.entries = self.entries.split_off(&(truncated.0 + 1));
                } else {
                    self.entries.clear();
                }
            }
            LogChange::Base { hard_state, truncated, generation, damaged, .. } => {
                self.hard_state = hard_state.clone();
                self.truncated = *truncated;
                (self.generation, self.damaged) = (*generation, *damaged);
            }
            LogChange::Move(_, generation) => self.generation = *generation,
            LogChange::Damage(_) => self.damaged = !trefoil_core::mutant!(DamageForgotten),
            LogChange::Rebuild(_, generation) => {
                (self.generation, self.damaged) = (*generation, false);
            }
            LogChange::Doubt(..) | LogChange::Remember(_) => {}
        }
    }

    /// What a starting replica is told of it; the state says the rest.
    #[must_use]
    pub fn boot(&self, uncertain: bool) -> Boot {
        let mut terms = Vec::<(u64, u64)>::new();
        for (index, (entry_term, _)) in &self.entries {
            if terms.last().is_none_or(|(_, term)| term != entry_term) {
                terms.push((*index, *entry_term));
            }
        }
        Boot {
            hard_state: self.hard_state.clone(),
            truncated: self.truncated,
            terms,
            last_index: self.last(),
            log_bytes: self.entries.values().map(|(_, bytes)| u64::from(*bytes)).sum(),
            uncertain,
            damaged: self.damaged,
            ..Boot::default()
        }
    }
}
