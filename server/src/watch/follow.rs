//! One watcher: a position in the events of a shard, moved on at the watcher's own pace.

use std::sync::Arc;

use tokio::sync::watch;
use trefoil_core::ShardId;
use trefoil_core::limits::{WATCH_BATCH_BYTES, WATCH_EVENTS_MAX};
use trefoil_core::machine::Event;

use super::Feeds;
use super::topic::{Filter, TopicMark};
use super::window::{Cursor, Gone, Tip, WindowEntry};

/// Follows what passes a filter.
#[derive(Debug)]
pub struct Follower {
    feeds: Arc<Feeds>,
    shard: ShardId,
    filter: Filter,
    cursor: Cursor,
    /// None once it is dropped.
    mark: Option<watch::Receiver<TopicMark>>,
}

/// An event that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    entry: Arc<WindowEntry>,
    /// Its place in the entry.
    pub ordinal: u32,
}

impl Seen {
    /// The event.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.entry.events[usize::try_from(self.ordinal).expect("a place fits a usize")]
    }

    /// The entry that did it.
    #[must_use]
    pub fn tip(&self) -> Tip {
        self.entry.tip
    }
}

impl Follower {
    pub(super) fn new(
        feeds: Arc<Feeds>,
        shard: ShardId,
        filter: Filter,
        cursor: Cursor,
        mark: watch::Receiver<TopicMark>,
    ) -> Self {
        Self { feeds, shard, filter, cursor, mark: Some(mark) }
    }

    /// Everything up to here has been seen.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Waits for events. They count as seen once they are returned; dropping the future loses none.
    ///
    /// # Errors
    /// Events after the position are gone.
    pub async fn next(&mut self) -> Result<Vec<Seen>, Gone> {
        loop {
            let (seen, more) = self.take()?;
            if !seen.is_empty() {
                return Ok(seen);
            }
            if more {
                // A long way to go: others first.
                tokio::task::yield_now().await;
            } else if let Some(mark) = &mut self.mark {
                // The sender lives as long as this receiver.
                mark.changed().await.ok();
            }
        }
    }

    /// Takes events that are here already, as many as a response holds, and says whether there may be more.
    ///
    /// # Errors
    /// Events after the position are gone.
    pub fn take(&mut self) -> Result<(Vec<Seen>, bool), Gone> {
        let state = self.feeds.state(self.shard);
        let tip = state.window.tip();
        let whole = TopicMark { last: tip.index, floor: state.window.floor() };
        let mark = self.mark.as_mut().map_or(whole, |mark| *mark.borrow_and_update());
        if mark.last <= self.cursor.index && self.cursor.ordinal.is_none() {
            // Whatever happened since has nothing to do with this watcher.
            self.cursor.index = self.cursor.index.max(tip.index);
            return Ok((Vec::new(), false));
        }
        state.window.has_all_after(self.cursor, mark.floor)?;
        let (entries, more) = state.window.after(self.cursor);
        drop(state);
        let (seen, is_full) = self.pick(entries);
        if !more && !is_full {
            self.cursor = Cursor::after(self.cursor.index.max(tip.index));
        }
        Ok((seen, more || is_full))
    }

    /// Goes through entries until they end or a response is full.
    fn pick(&mut self, entries: Vec<Arc<WindowEntry>>) -> (Vec<Seen>, bool) {
        let (mut seen, mut bytes) = (Vec::new(), 0);
        for entry in entries {
            let index = entry.tip.index;
            for (ordinal, event) in (0_u32..).zip(&entry.events) {
                let is_seen = index == self.cursor.index
                    && self.cursor.ordinal.is_some_and(|last| ordinal <= last);
                if is_seen {
                    continue;
                }
                if self.filter.passes(event) {
                    if seen.len() >= WATCH_EVENTS_MAX || bytes >= WATCH_BATCH_BYTES {
                        return (seen, true);
                    }
                    bytes += event.bytes();
                    seen.push(Seen { entry: Arc::clone(&entry), ordinal });
                }
                self.cursor = Cursor { index, ordinal: Some(ordinal) };
            }
            self.cursor = Cursor::after(index);
        }
        (seen, false)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.mark = None;
        self.feeds.state(self.shard).topics.unsubscribe(&self.filter.topic);
    }
}
