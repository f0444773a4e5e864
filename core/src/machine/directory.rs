//! Which agents hold which cache line: the leader's memory, from which the state of a line is told.
//!
//! Source: M. Papamarcos and J. Patel, A Low-Overhead Coherence Solution for Multiprocessors with Private Cache
//! Memories (ISCA 1984), with a directory instead of a shared bus.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use trefoil_proto::cache::v1::LineState;

use crate::limits::DIRECTORY_LINES_MAX;
use crate::table::HashTable;

/// Holders of the lines of one shard. A line that is forgotten is invalid everywhere, which costs a state, never a value.
#[derive(Debug, Default)]
pub struct Directory {
    lines: HashTable<Bytes, CacheLine>,
    /// Lines by the number of an insertion, so that the one that is oldest goes first. Some were inserted again since, or
    /// are gone.
    order: VecDeque<(u64, Bytes)>,
    insertions: u64,
}

#[derive(Debug)]
struct CacheLine {
    inserted: u64,
    holders: Holders,
}

#[derive(Debug)]
enum Holders {
    /// One agent wrote it and nobody else has read it.
    Modified(u64),
    /// These agents have read it.
    Read(BTreeSet<u64>),
}

impl Directory {
    /// An agent reads a line that has a value; returns the state in which it now holds it.
    pub fn read(&mut self, key: &Bytes, agent: u64) -> LineState {
        let Some(line) = self.lines.get_mut(key) else {
            self.insert(key, Holders::Read([agent].into()));
            return LineState::Exclusive;
        };
        match &mut line.holders {
            Holders::Modified(owner) if *owner == agent => LineState::Modified,
            Holders::Modified(owner) => {
                line.holders = Holders::Read([*owner, agent].into());
                LineState::Shared
            }
            Holders::Read(readers) => {
                readers.insert(agent);
                if readers.len() == 1 { LineState::Exclusive } else { LineState::Shared }
            }
        }
    }

    /// A line was written by an agent, or its value is gone (no writer): every other copy is invalid.
    pub fn wrote(&mut self, key: &Bytes, writer: Option<u64>) {
        self.lines.remove(key);
        if let Some(writer) = writer {
            self.insert(key, Holders::Modified(writer));
        }
    }

    /// Forgets everything: another term began.
    pub fn clear(&mut self) {
        self.lines.clear();
        self.order.clear();
    }

    /// Adds a line that is not there.
    fn insert(&mut self, key: &Bytes, holders: Holders) {
        while self.lines.len() >= DIRECTORY_LINES_MAX
            && let Some((inserted, oldest)) = self.order.pop_front()
        {
            if is_of(&self.lines, inserted, &oldest) {
                self.lines.remove(&oldest);
            }
        }
        if self.order.len() >= 2 * DIRECTORY_LINES_MAX {
            let Self { lines, order, .. } = self;
            order.retain(|(inserted, key)| is_of(lines, *inserted, key));
        }
        self.insertions += 1;
        self.order.push_back((self.insertions, key.clone()));
        self.lines.insert(key.clone(), CacheLine { inserted: self.insertions, holders });
    }
}

/// Whether a line is there as it was inserted then.
fn is_of(lines: &HashTable<Bytes, CacheLine>, inserted: u64, key: &Bytes) -> bool {
    lines.get(key).is_some_and(|line| line.inserted == inserted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Bytes {
        n.to_be_bytes().to_vec().into()
    }

    #[test]
    fn states_follow_reads_and_writes() {
        let mut directory = Directory::default();
        let key = Bytes::from_static(b"k");
        assert_eq!(directory.read(&key, 1), LineState::Exclusive);
        assert_eq!(directory.read(&key, 1), LineState::Exclusive);
        assert_eq!(directory.read(&key, 2), LineState::Shared);
        directory.wrote(&key, Some(2));
        assert_eq!(directory.read(&key, 2), LineState::Modified);
        assert_eq!(directory.read(&key, 1), LineState::Shared);
        assert_eq!(directory.read(&key, 2), LineState::Shared);
        directory.wrote(&key, None);
        assert_eq!(directory.read(&key, 2), LineState::Exclusive);
    }

    #[test]
    fn memory_is_bounded() {
        let mut directory = Directory::default();
        for n in 0..3 * DIRECTORY_LINES_MAX {
            directory.wrote(&key(n), Some(1));
            if n % 3 == 0 {
                directory.wrote(&key(n), None);
            }
            directory.read(&key(n / 2), 2);
        }
        assert_eq!(directory.lines.len(), DIRECTORY_LINES_MAX);
        assert!(directory.order.len() <= 2 * DIRECTORY_LINES_MAX);
    }

    #[test]
    fn the_line_inserted_longest_ago_is_forgotten() {
        let mut directory = Directory::default();
        for n in 0..DIRECTORY_LINES_MAX {
            directory.wrote(&key(n), Some(1));
        }
        directory.wrote(&key(0), Some(1));
        directory.wrote(&key(DIRECTORY_LINES_MAX), Some(1));
        assert_eq!(directory.read(&key(0), 1), LineState::Modified);
        assert_eq!(directory.read(&key(1), 1), LineState::Exclusive);
    }

    #[test]
    fn a_key_that_comes_and_goes_for_ever_keeps_its_state() {
        let mut directory = Directory::default();
        for _ in 0..3 * DIRECTORY_LINES_MAX {
            directory.wrote(&key(7), Some(1));
            directory.wrote(&key(7), None);
        }
        directory.wrote(&key(7), Some(1));
        assert_eq!(directory.read(&key(7), 1), LineState::Modified);
    }
}
