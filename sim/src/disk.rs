//! A node's disk: a log that loses what was not synced, and state files that are durable when they are finished.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use protobuf::Message as _;
use raft_proto::eraftpb::{Entry, HardState};
use trefoil_core::machine::Machine;
use trefoil_core::replica::{Boot, PersistBatch};
use trefoil_core::store::MemoryStore;
use trefoil_core::{BIRTH_INDEX, BIRTH_TERM, META_SHARD, ShardId};
use trefoil_proto::internal::v1::Progress;

/// The state of a shard at an index, as a file holds it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The records.
    pub store: MemoryStore,
    /// How far they are.
    pub progress: Progress,
}

impl Image {
    /// Copies a state.
    #[must_use]
    pub fn new(store: &MemoryStore, machine: &Machine) -> Self {
        Self { store: store.clone(), progress: *machine.progress() }
    }

    /// The state with which every shard is born.
    #[must_use]
    pub fn newborn() -> Self {
        let mut store = MemoryStore::default();
        Machine::bootstrap(&mut store);
        let machine = Machine::open(&store, META_SHARD, 1);
        Self::new(&store, &machine)
    }

    /// Index and term of the last entry that it has.
    #[must_use]
    pub fn at(&self) -> (u64, u64) {
        (self.progress.index, self.progress.term)
    }
}

/// Something to write into the log of a shard.
#[derive(Clone, Debug)]
pub enum Write {
    /// Entries and hard state.
    Batch(PersistBatch),
    /// Entries up to this index are dropped.
    Compact(u64),
    /// A snapshot takes the place of the log.
    Install {
        /// File that holds the state.
        generation: u64,
        /// Index and term of the snapshot.
        at: (u64, u64),
        /// The new hard state.
        hard_state: HardState,
    },
}

#[derive(Clone, Debug)]
struct Log {
    hard_state: HardState,
    truncated: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    generation: u64,
}

impl Log {
    fn newborn() -> Self {
        let hard_state =
            HardState { term: BIRTH_TERM, commit: BIRTH_INDEX, ..HardState::default() };
        Self {
            hard_state,
            truncated: (BIRTH_INDEX, BIRTH_TERM),
            entries: BTreeMap::new(),
            generation: 0,
        }
    }

    fn take(&mut self, write: &Write) {
        match write {
            Write::Batch(batch) => {
                if let Some(first) = batch.entries.first() {
                    self.entries.split_off(&first.index);
                }
                self.entries.extend(batch.entries.iter().map(|entry| (entry.index, entry.clone())));
                if let Some(hard_state) = &batch.hard_state {
                    self.hard_state = hard_state.clone();
                }
            }
            Write::Compact(to) => {
                if let Some(entry) = self.entries.get(to) {
                    self.truncated = (*to, entry.term);
                    self.entries = self.entries.split_off(&(to + 1));
                }
            }
            Write::Install { generation, at, hard_state } => {
                let hard_state = hard_state.clone();
                *self = Self {
                    hard_state,
                    truncated: *at,
                    entries: BTreeMap::new(),
                    generation: *generation,
                };
            }
        }
    }
}

/// What survives a crash, and what does not yet.
#[derive(Debug)]
pub struct Disk {
    /// What a crash leaves.
    synced: BTreeMap<ShardId, Log>,
    /// What the running process sees.
    written: BTreeMap<ShardId, Log>,
    /// Writes that are not synced, oldest first.
    unsynced: VecDeque<(ShardId, Write)>,
    /// State files by shard and generation.
    files: BTreeMap<(ShardId, u64), Rc<Image>>,
    generations: u64,
}

impl Disk {
    /// The disk of a node that has just been set up.
    #[must_use]
    pub fn new(shards: impl Iterator<Item = ShardId>) -> Self {
        let synced = shards.map(|shard| (shard, Log::newborn())).collect::<BTreeMap<_, _>>();
        let newborn = Rc::new(Image::newborn());
        let files = synced.keys().map(|shard| ((*shard, 0), Rc::clone(&newborn))).collect();
        Self { written: synced.clone(), synced, unsynced: VecDeque::new(), files, generations: 0 }
    }

    /// Writes, without a sync.
    ///
    /// # Panics
    /// When the entries leave a gap: the replica forgot some.
    pub fn write(&mut self, shard: ShardId, write: Write) {
        let log = self.written.get_mut(&shard).expect("the disk has every shard");
        if let Write::Batch(batch) = &write
            && let Some(first) = batch.entries.first()
        {
            let last = log.entries.last_key_value().map_or(log.truncated.0, |(index, _)| *index);
            assert!(first.index > log.truncated.0 && first.index <= last + 1, "the log has no gap");
        }
        log.take(&write);
        self.unsynced.push_back((shard, write));
    }

    /// Number of writes that are not synced.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Syncs the oldest writes and returns them.
    pub fn sync(&mut self, writes: usize) -> Vec<(ShardId, Write)> {
        let done = self.unsynced.drain(..writes).collect::<Vec<_>>();
        for (shard, write) in &done {
            self.synced.get_mut(shard).expect("the disk has every shard").take(write);
        }
        done
    }

    /// The process is gone. Of what was not synced, the oldest `kept` writes have reached the disk all the same.
    /// Says whether something was lost.
    pub fn crash(&mut self, kept: usize) -> bool {
        self.sync(kept.min(self.unsynced.len()));
        let lost = !self.unsynced.is_empty();
        self.unsynced.clear();
        self.written = self.synced.clone();
        let named =
            |(shard, generation): &(ShardId, u64)| self.synced[shard].generation == *generation;
        self.files.retain(|file, _| named(file));
        lost
    }

    /// The generation that the running process uses.
    #[must_use]
    pub fn generation(&self, shard: ShardId) -> u64 {
        self.written[&shard].generation
    }

    /// The state file in use: the last checkpoint or snapshot.
    #[must_use]
    pub fn image(&self, shard: ShardId) -> Rc<Image> {
        Rc::clone(&self.files[&(shard, self.generation(shard))])
    }

    /// A checkpoint of a generation is finished.
    pub fn checkpoint(&mut self, shard: ShardId, generation: u64, image: Rc<Image>) {
        self.files.insert((shard, generation), image);
    }

    /// A received snapshot is whole and synced; returns its generation.
    pub fn receive(&mut self, shard: ShardId, image: Rc<Image>) -> u64 {
        self.generations += 1;
        self.files.insert((shard, self.generations), image);
        self.generations
    }

    /// Removes a received snapshot.
    pub fn discard(&mut self, shard: ShardId, generation: u64) {
        self.files.remove(&(shard, generation));
    }

    /// Entries `first..last` of the running process, at most `max_bytes` but at least one.
    #[must_use]
    pub fn entries(&self, shard: ShardId, first: u64, last: u64, max_bytes: u64) -> Vec<Entry> {
        let mut bytes = 0;
        let within = |entry: &&Entry| {
            bytes += u64::from(entry.compute_size());
            entry.index == first || bytes <= max_bytes
        };
        self.written[&shard]
            .entries
            .range(first..last)
            .map(|(_, entry)| entry)
            .take_while(within)
            .cloned()
            .collect()
    }

    /// Whether a crash now would leave this entry.
    #[must_use]
    pub fn has_synced(&self, shard: ShardId, index: u64, term: u64) -> bool {
        self.synced[&shard].entries.get(&index).is_some_and(|entry| entry.term == term)
    }

    /// Whether a crash now would leave everything up to an index, be it in the log or in the state.
    #[must_use]
    pub fn reaches(&self, shard: ShardId, index: u64) -> bool {
        let log = &self.synced[&shard];
        index <= log.truncated.0 || log.entries.contains_key(&index)
    }

    /// What a starting replica finds.
    #[must_use]
    pub fn boot(&self, shard: ShardId, uncertain: bool) -> Boot {
        let log = &self.synced[&shard];
        let image = &self.files[&(shard, log.generation)];
        let mut terms = Vec::<(u64, u64)>::new();
        for (index, entry) in &log.entries {
            if terms.last().is_none_or(|(_, term)| *term != entry.term) {
                terms.push((*index, entry.term));
            }
        }
        Boot {
            hard_state: log.hard_state.clone(),
            truncated: log.truncated,
            terms,
            last_index: log.entries.last_key_value().map_or(log.truncated.0, |(index, _)| *index),
            log_bytes: log.entries.values().map(|entry| u64::from(entry.compute_size())).sum(),
            applied: image.at(),
            log_time_ms: image.progress.log_time_ms,
            wall_ms: image.progress.wall_ms,
            next_due_ms: Machine::next_due_ms(&image.store),
            uncertain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64, last: u64, term: u64) -> Write {
        let entries =
            (first..=last).map(|index| Entry { index, term, ..Entry::default() }).collect();
        let hard_state = HardState { term, vote: 1, commit: first, ..HardState::default() };
        Write::Batch(PersistBatch { number: first, entries, hard_state: Some(hard_state) })
    }

    #[test]
    fn a_crash_leaves_what_was_synced() {
        let mut disk = Disk::new(0..2);
        disk.write(1, batch(11, 20, 2));
        disk.sync(1);
        disk.write(1, batch(15, 18, 3));
        assert_eq!(disk.entries(1, 15, 30, u64::MAX).len(), 4);
        assert!(disk.crash(0));
        let boot = disk.boot(1, false);
        assert_eq!((boot.last_index, boot.terms, boot.hard_state.term), (20, vec![(11, 2)], 2));
        disk.write(1, batch(15, 18, 3));
        assert!(!disk.crash(1));
        let boot = disk.boot(1, false);
        assert_eq!(
            (boot.last_index, boot.terms, boot.hard_state.term),
            (18, vec![(11, 2), (15, 3)], 3)
        );
    }

    fn snapshot() -> Rc<Image> {
        let newborn = Image::newborn();
        Rc::new(Image { progress: Progress { index: 30, term: 3, ..newborn.progress }, ..newborn })
    }

    #[test]
    fn an_installed_snapshot_takes_the_place_of_log_and_state() {
        let mut disk = Disk::new(0..2);
        disk.write(1, batch(11, 20, 2));
        disk.sync(1);
        let generation = disk.receive(1, snapshot());
        let install = Write::Install { generation, at: (30, 3), hard_state: HardState::default() };
        disk.write(1, install);
        assert!(disk.crash(0));
        assert_eq!(disk.boot(1, false).applied, (BIRTH_INDEX, BIRTH_TERM));
        let generation = disk.receive(1, snapshot());
        disk.write(1, Write::Install { generation, at: (30, 3), hard_state: HardState::default() });
        disk.sync(1);
        disk.crash(0);
        let boot = disk.boot(1, false);
        assert_eq!((boot.applied, boot.truncated, boot.last_index), ((30, 3), (30, 3), 30));
    }
}
