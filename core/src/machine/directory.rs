//! Which agents hold which cache line: the leader's memory, from which the state of a line is told.
//!
//! Source: M. Papamarcos and J. Patel, A Low-Overhead Coherence Solution for Multiprocessors with Private Cache
//! Memories (ISCA 1984), with a directory instead of a shared bus.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use trefoil_proto::cache::v1::LineState;

use crate::limits::DIRECTORY_LINES_MAX;

/// Holders of the lines of one shard. A line that is forgotten is invalid everywhere, which costs a state, never a value.
#[derive(Debug, Default)]
pub struct Directory {
    lines: BTreeMap<Bytes, Line>,
    /// Keys in the order in which they came, oldest first.
    order: VecDeque<Bytes>,
}

#[derive(Debug)]
enum Line {
    /// One agent wrote it and nobody else has read it.
    Modified(u64),
    /// These agents have read it.
    Read(BTreeSet<u64>),
}

impl Directory {
    /// An agent reads a line that has a value; returns the state in which it now holds it.
    pub fn read(&mut self, key: &Bytes, agent: u64) -> LineState {
        match self.lines.get_mut(key) {
            Some(Line::Modified(owner)) if *owner == agent => LineState::Modified,
            Some(line @ Line::Modified(_)) => {
                let Line::Modified(owner) = *line else { unreachable!("matched above") };
                *line = Line::Read([owner, agent].into());
                LineState::Shared
            }
            Some(Line::Read(readers)) => {
                readers.insert(agent);
                if readers.len() == 1 { LineState::Exclusive } else { LineState::Shared }
            }
            None => {
                self.insert(key.clone(), Line::Read([agent].into()));
                LineState::Exclusive
            }
        }
    }

    /// A line was written by an agent, or its value is gone (no writer): every other copy is invalid.
    pub fn wrote(&mut self, key: &Bytes, writer: Option<u64>) {
        match writer {
            Some(writer) => self.insert(key.clone(), Line::Modified(writer)),
            None => {
                self.lines.remove(key);
            }
        }
    }

    /// Forgets everything: another term began.
    pub fn clear(&mut self) {
        self.lines.clear();
        self.order.clear();
    }

    fn insert(&mut self, key: Bytes, line: Line) {
        if self.lines.insert(key.clone(), line).is_none() {
            self.order.push_back(key);
        }
        // Keys of removed lines stay in the order until they come up, so it is bounded, not exact.
        while self.lines.len() > DIRECTORY_LINES_MAX || self.order.len() > 2 * DIRECTORY_LINES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.lines.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let key = Bytes::from(n.to_be_bytes().to_vec());
            directory.wrote(&key, Some(1));
            if n % 3 == 0 {
                directory.wrote(&key, None);
            }
        }
        assert!(
            directory.lines.len() <= DIRECTORY_LINES_MAX
                && directory.order.len() <= 2 * DIRECTORY_LINES_MAX
        );
    }
}
