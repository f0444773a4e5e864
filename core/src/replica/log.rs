//! The log as raft sees it: terms of all entries, data of the recent ones; older data comes from the disk when asked.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use protobuf::Message as _;
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use raft_proto::eraftpb::{ConfState, Entry, HardState, Snapshot};

use super::input::Boot;
use crate::NodeId;

/// Bytes of log between two marks of [`Sizes`].
const MARK_BYTES: u64 = 1 << 20;

/// What raft asked for and does not have in memory.
#[derive(Debug, Default)]
struct RaftWants {
    /// Entries for an append: by ticket, (first, last, bytes) and the context to go on with.
    fetches: Vec<(u64, (u64, u64, u64), GetEntriesContext)>,
    /// Contexts of the fetches that are under way, with their first index.
    pending: BTreeMap<u64, (u64, GetEntriesContext)>,
    tickets: u64,
    /// Peers that need a snapshot which is not open yet.
    snapshots: Vec<NodeId>,
}

/// Bytes of the log by index, to the nearest mark.
#[derive(Debug)]
struct Sizes {
    total: u64,
    /// (index, bytes up to it), ascending.
    marks: VecDeque<(u64, u64)>,
}

impl Sizes {
    fn add(&mut self, index: u64, bytes: u64) {
        self.total += bytes;
        if self.marks.back().is_none_or(|(_, at)| self.total - at >= MARK_BYTES) {
            self.marks.push_back((index, self.total));
        }
    }

    fn up_to(&self, index: u64) -> u64 {
        let after = self.marks.partition_point(|(marked, _)| *marked <= index);
        after
            .checked_sub(1)
            .map_or_else(|| self.marks.front().map_or(0, |(_, at)| *at), |n| self.marks[n].1)
    }

    fn truncate(&mut self, last: u64) {
        if self.marks.back().is_some_and(|(marked, _)| *marked > last) {
            self.total = self.up_to(last);
            self.marks.retain(|(marked, _)| *marked <= last);
        }
    }

    fn cut(&mut self, to: u64) {
        while self.marks.len() > 1 && self.marks[1].0 <= to {
            self.marks.pop_front();
        }
    }
}

/// Entries for which memory is kept, whether they are there or not.
const ENTRIES_KEPT: usize = 1_024;

/// The log of one shard.
#[derive(Debug)]
pub(super) struct Log {
    state: RaftState,
    /// Index and term before the first entry.
    truncated: (u64, u64),
    /// (first index, term) of each run of entries of one term, ascending.
    terms: VecDeque<(u64, u64)>,
    last: u64,
    /// The most recent entries, without a gap up to `last`.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    sizes: Sizes,
    /// Opened snapshots that were not sent yet.
    snapshots: BTreeMap<NodeId, Snapshot>,
    /// What a fetch brought, while raft is told of it.
    fetched: Vec<Entry>,
    wanted: RefCell<RaftWants>,
}

impl Log {
    pub(super) fn new(boot: &Boot, voters: &[NodeId]) -> Self {
        let state = RaftState {
            hard_state: HardState {
                commit: boot.hard_state.commit.max(boot.applied.0),
                ..boot.hard_state.clone()
            },
            conf_state: conf_state(voters),
        };
        let mut sizes = Sizes { total: 0, marks: VecDeque::from([(boot.truncated.0, 0)]) };
        if boot.last_index > boot.truncated.0 {
            sizes.add(boot.last_index, boot.log_bytes);
        }
        Self {
            state,
            truncated: boot.truncated,
            terms: boot.terms.iter().copied().collect(),
            last: boot.last_index,
            cache: VecDeque::new(),
            cache_bytes: 0,
            sizes,
            snapshots: BTreeMap::new(),
            fetched: Vec::new(),
            wanted: RefCell::default(),
        }
    }

    pub(super) fn first(&self) -> u64 {
        self.truncated.0 + 1
    }

    /// Index of the first entry whose data is in memory.
    pub(super) fn cached_from(&self) -> u64 {
        self.last + 1 - self.cache.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.sizes.total.saturating_sub(self.sizes.up_to(self.truncated.0))
    }

    /// Bytes of the entries with `after < index <= to`, to the nearest mark.
    pub(super) fn bytes_between(&self, after: u64, to: u64) -> u64 {
        self.sizes.up_to(to).saturating_sub(self.sizes.up_to(after))
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.truncated.0 {
            return Some(self.truncated.1);
        }
        if index < self.first() || index > self.last {
            return None;
        }
        let after = self.terms.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).map(|n| self.terms[n].1)
    }

    /// Appends entries; the first one replaces what stood at its index and after.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|entry| entry.index) else { return };
        assert!(
            (self.first()..=self.last + 1).contains(&first),
            "entries are appended without a gap"
        );
        self.truncate(first - 1);
        for entry in entries {
            if self.terms.back().is_none_or(|(_, term)| *term != entry.term) {
                self.terms.push_back((entry.index, entry.term));
            }
            let bytes = entry.compute_size();
            self.sizes.add(entry.index, bytes.into());
            self.cache_bytes += bytes as usize;
            self.last = entry.index;
            self.cache.push_back(entry.clone());
        }
    }

    fn truncate(&mut self, last: u64) {
        while self.last > last {
            self.last -= 1;
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry.compute_size() as usize;
            }
        }
        while self.terms.back().is_some_and(|(first, _)| *first > last) {
            self.terms.pop_back();
        }
        self.sizes.truncate(last);
    }

    /// Drops data from memory beyond `bytes`, but none after `keep_after`.
    pub(super) fn shrink(&mut self, bytes: usize, keep_after: u64) {
        while self.cache_bytes > bytes && self.cached_from() <= keep_after {
            let Some(entry) = self.cache.pop_front() else { return };
            self.cache_bytes -= entry.compute_size() as usize;
        }
    }

    /// Forgets entries up to an index, and says its term; nothing is forgotten when the log does not have it.
    pub(super) fn compact(&mut self, to: u64) -> Option<u64> {
        let term = self.term_at(to)?;
        while self.cached_from() <= to {
            let Some(entry) = self.cache.pop_front() else { break };
            self.cache_bytes -= entry.compute_size() as usize;
        }
        while self.terms.len() > 1 && self.terms[1].0 <= to + 1 {
            self.terms.pop_front();
        }
        if let Some(front) = self.terms.front_mut() {
            front.0 = front.0.max(to + 1);
        }
        if to == self.last {
            self.terms.clear();
        }
        self.truncated = (to, term);
        self.sizes.cut(to);
        self.give_back();
        Some(term)
    }

    /// Gives back the memory of many more entries than are left: with small ones it is as much as their data was.
    fn give_back(&mut self) {
        let room = 2 * self.cache.len().max(ENTRIES_KEPT);
        if self.cache.capacity() > 2 * room {
            self.cache.shrink_to(room);
        }
    }

    /// The log is empty after a snapshot.
    pub(super) fn reset(&mut self, index: u64, term: u64) {
        self.truncated = (index, term);
        self.terms.clear();
        self.last = index;
        self.cache.clear();
        self.cache_bytes = 0;
        self.give_back();
        self.sizes = Sizes { total: 0, marks: VecDeque::from([(index, 0)]) };
    }

    /// The next read from disk that an append needs: ticket, first, last (exclusive), bytes.
    pub(super) fn next_fetch(&mut self) -> Option<(u64, u64, u64, u64)> {
        let wanted = self.wanted.get_mut();
        let (ticket, (first, last, bytes), context) = wanted.fetches.pop()?;
        wanted.pending.insert(ticket, (first, context));
        Some((ticket, first, last, bytes))
    }

    /// Takes what a fetch brought; raft is to be told with the context, and [`Self::end_fetch`] called after that.
    pub(super) fn begin_fetch(
        &mut self,
        ticket: u64,
        entries: Vec<Entry>,
    ) -> Option<GetEntriesContext> {
        let (_, context) = self.wanted.get_mut().pending.remove(&ticket)?;
        self.fetched = entries;
        Some(context)
    }

    pub(super) fn end_fetch(&mut self) {
        self.fetched.clear();
    }

    /// Peers that need a snapshot which is not open.
    pub(super) fn take_wanted_snapshots(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.wanted.get_mut().snapshots)
    }

    pub(super) fn put_snapshot(&mut self, to: NodeId, snapshot: Snapshot) {
        self.snapshots.insert(to, snapshot);
    }

    pub(super) fn drop_snapshot(&mut self, to: NodeId) {
        self.snapshots.remove(&to);
    }

    fn cached(&self, low: u64, high: u64, max: u64) -> Vec<Entry> {
        let from = usize::try_from(low - self.cached_from()).expect("the cache fits memory");
        take(self.cache.range(from..), high, max)
    }

    /// Entries without data, for raft's own bookkeeping of what to apply: the applier reads the data itself.
    fn stubs(&self, low: u64, high: u64) -> Vec<Entry> {
        (low..high)
            .map(|index| Entry {
                index,
                term: self.term_at(index).unwrap_or_default(),
                ..Entry::default()
            })
            .collect()
    }
}

/// Entries up to `high` (exclusive) and `max` bytes, but at least one.
fn take<'a>(entries: impl Iterator<Item = &'a Entry>, high: u64, max: u64) -> Vec<Entry> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for entry in entries.take_while(|entry| entry.index < high) {
        bytes += u64::from(entry.compute_size());
        if bytes > max && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

/// The configuration of a group of voters.
pub(super) fn conf_state(voters: &[NodeId]) -> ConfState {
    ConfState { voters: voters.to_vec(), ..ConfState::default() }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(self.state.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        let max = max.into().unwrap_or(u64::MAX);
        if low >= self.cached_from() {
            return Ok(self.cached(low, high, max));
        }
        if !context.can_async() {
            let mut entries = self.stubs(low, high.min(self.cached_from()));
            if high > self.cached_from() {
                entries.extend(self.cached(self.cached_from(), high, max));
            }
            return Ok(entries);
        }
        if let Some(n) = self.fetched.iter().position(|entry| entry.index == low) {
            return Ok(take(self.fetched[n..].iter(), high, max));
        }
        let mut wanted = self.wanted.borrow_mut();
        let asked = |first: u64| first == low;
        if !wanted.pending.values().any(|(first, _)| asked(*first))
            && !wanted.fetches.iter().any(|f| asked(f.1.0))
        {
            wanted.tickets += 1;
            let ticket = wanted.tickets;
            wanted.fetches.push((ticket, (low, high.min(self.cached_from()), max), context));
        }
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> Result<u64> {
        let reason = if index < self.truncated.0 {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        };
        self.term_at(index).ok_or(Error::Store(reason))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, to: NodeId) -> Result<Snapshot> {
        if let Some(snapshot) = self.snapshots.get(&to)
            && snapshot.get_metadata().index >= request_index.max(self.truncated.0)
        {
            return Ok(snapshot.clone());
        }
        let mut wanted = self.wanted.borrow_mut();
        if !wanted.snapshots.contains(&to) {
            wanted.snapshots.push(to);
        }
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Log {
        let boot = Boot { truncated: (10, 1), last_index: 10, applied: (10, 1), ..Boot::default() };
        Log::new(&boot, &[1, 2, 3])
    }

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        range
            .map(|index| Entry { index, term, data: vec![7; 100].into(), ..Entry::default() })
            .collect()
    }

    #[test]
    fn terms_follow_overwrites_and_cuts() {
        let mut log = log();
        log.append(&entries(11..=20, 2));
        log.append(&entries(15..=18, 3));
        assert_eq!(
            (log.term_at(14), log.term_at(15), log.term_at(18), log.term_at(19)),
            (Some(2), Some(3), Some(3), None)
        );
        assert_eq!(log.compact(15), Some(3));
        assert_eq!(
            (log.first(), log.term_at(15), log.term_at(16), log.term_at(14)),
            (16, Some(3), Some(3), None)
        );
        assert_eq!(log.compact(18), Some(3));
        assert_eq!((log.first(), log.last, log.term_at(18)), (19, 18, Some(3)));
        log.append(&entries(19..=19, 4));
        assert_eq!(log.term_at(19), Some(4));
    }

    #[test]
    fn old_data_is_asked_for_once_and_bookkeeping_needs_none() {
        let mut log = log();
        log.append(&entries(11..=30, 2));
        log.shrink(500, 25);
        assert_eq!(log.cached_from(), 26);
        let stubs = log.entries(20, 30, None, GetEntriesContext::empty(false)).unwrap();
        assert_eq!(
            stubs.iter().map(|entry| (entry.index, entry.data.is_empty())).collect::<Vec<_>>(),
            { (20..30).map(|index| (index, index < 26)).collect::<Vec<_>>() }
        );
        for _ in 0..2 {
            let asked = log.entries(20, 30, 1_000, GetEntriesContext::empty(true));
            assert_eq!(asked, Err(Error::Store(StorageError::LogTemporarilyUnavailable)));
        }
        let (ticket, first, last, bytes) = log.next_fetch().expect("a fetch is wanted");
        assert_eq!((first, last, bytes, log.next_fetch()), (20, 26, 1_000, None));
        assert!(log.begin_fetch(ticket, entries(20..=25, 2)).is_some());
        assert_eq!(log.entries(20, 30, 250, GetEntriesContext::empty(true)).unwrap().len(), 2);
        log.end_fetch();
    }

    #[test]
    fn a_cut_gives_back_the_memory_of_many_entries() {
        let mut log = log();
        log.append(&entries(11..=100_010, 2));
        assert!(log.cache.capacity() >= 100_000);
        assert_eq!(log.compact(99_000), Some(2));
        assert!(log.cache.capacity() <= 4 * ENTRIES_KEPT, "{}", log.cache.capacity());
        assert_eq!((log.cached_from(), log.cache.len()), (99_001, 1_010));
    }

    #[test]
    fn what_is_not_applied_stays_in_memory() {
        let mut log = log();
        log.append(&entries(11..=30, 2));
        log.shrink(0, 20);
        assert_eq!(log.cached_from(), 21);
    }
}
