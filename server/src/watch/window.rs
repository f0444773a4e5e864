//! The recent entries of one shard that have events, and the index after which none is missing.

use std::collections::VecDeque;
use std::sync::Arc;

use trefoil_core::limits::{WATCH_SCAN_MAX, WATCH_WINDOW_EVENTS_MAX};
use trefoil_core::machine::Event;

/// Entries that are read at a time.
const ENTRIES_READ_MAX: usize = 1_024;

/// How far a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tip {
    /// Log index.
    pub index: u64,
    /// Raft term of that entry.
    pub term: u64,
    /// Log time in ms after it.
    pub log_time_ms: u64,
}

/// An entry with its events.
#[derive(Clone, Debug)]
pub struct WindowEntry {
    /// Which one.
    pub tip: Tip,
    /// In the order in which they came about.
    pub events: Vec<Event>,
}

/// What a watcher has seen: everything up to an entry or, of that entry, the events up to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Log index.
    pub index: u64,
    /// The last event seen of that entry; none where all were.
    pub ordinal: Option<u32>,
}

/// Not all events after a position are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The position.
    pub after: Cursor,
    /// All events after this index are here.
    pub oldest: u64,
    /// They were here while the position was the watcher's: it did not keep up.
    pub was_slow: bool,
}

impl Cursor {
    /// After all of an entry.
    #[must_use]
    pub fn after(index: u64) -> Self {
        Self { index, ordinal: None }
    }
}

#[derive(Debug)]
pub(super) struct Window {
    entries: VecDeque<Arc<WindowEntry>>,
    events: usize,
    bytes: usize,
    bytes_max: usize,
    tip: Tip,
    /// No event after this index is missing.
    floor: u64,
    /// Where the window began: nothing before it was ever here.
    began: u64,
}

impl Window {
    pub(super) fn new(bytes_max: usize) -> Self {
        let entries = VecDeque::new();
        Self { entries, events: 0, bytes: 0, bytes_max, tip: Tip::default(), floor: 0, began: 0 }
    }

    pub(super) fn tip(&self) -> Tip {
        self.tip
    }

    /// Forgets everything and goes on from a place.
    pub(super) fn begin(&mut self, tip: Tip) {
        let bytes_max = self.bytes_max;
        *self = Self { tip, floor: tip.index, began: tip.index, ..Self::new(bytes_max) };
    }

    /// No event after this index is missing.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Adds an entry. Older ones make room, and are returned; the newest stays, whatever its size.
    pub(super) fn push(&mut self, entry: WindowEntry) -> Vec<Arc<WindowEntry>> {
        let mut gone = Vec::new();
        self.tip = entry.tip;
        if entry.events.is_empty() {
            return gone;
        }
        self.events += entry.events.len();
        self.bytes += bytes(&entry);
        self.entries.push_back(Arc::new(entry));
        while self.entries.len() > 1
            && (self.events > WATCH_WINDOW_EVENTS_MAX || self.bytes > self.bytes_max)
        {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.events -= oldest.events.len();
            self.bytes -= bytes(&oldest);
            self.floor = oldest.tip.index;
            gone.push(oldest);
        }
        gone
    }

    /// Whether all events of a topic after a position are here; `floor` is the topic's own.
    pub(super) fn has_all_after(&self, after: Cursor, floor: u64) -> Result<(), Gone> {
        // The rest of an entry is here only where the entry is.
        let needed =
            if after.ordinal.is_some() { after.index.saturating_sub(1) } else { after.index };
        if needed >= floor {
            return Ok(());
        }
        Err(Gone { after, oldest: floor, was_slow: needed >= self.began })
    }

    /// The next entries after a position, and whether there are more.
    pub(super) fn after(&self, after: Cursor) -> (Vec<Arc<WindowEntry>>, bool) {
        let first = self.entries.partition_point(|entry| match after.ordinal {
            Some(_) => entry.tip.index < after.index,
            None => entry.tip.index <= after.index,
        });
        let (mut found, mut events) = (Vec::new(), 0);
        for entry in self.entries.range(first..) {
            if events >= WATCH_SCAN_MAX || found.len() >= ENTRIES_READ_MAX {
                return (found, true);
            }
            events += entry.events.len();
            found.push(Arc::clone(entry));
        }
        (found, false)
    }
}

fn bytes(entry: &WindowEntry) -> usize {
    entry.events.iter().map(Event::bytes).sum()
}
