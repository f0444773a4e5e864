//! Recent events of this node's shards, for whoever watches: one machinery for all services.
//!
//! Every replica applies the same entries and so has the same events at the same positions: a watch is served by whichever
//! node it came to, and goes on at any other. An applier publishes into its shard's [`window::Window`] and never waits.
//! Watchers read from there at their own pace; who falls behind what is kept is told so. A topic remembers the index of
//! its last event, so that who watches something quiet neither wakes nor falls behind while other things happen.

mod follow;
mod topic;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use trefoil_core::ShardId;
use trefoil_core::limits::WATCH_WINDOW_BYTES;
use trefoil_core::machine::Applied;

pub use self::follow::{Follower, Seen};
pub use self::topic::{Filter, Topic};
use self::topic::{TopicMark, Topics};
use self::window::Window;
pub use self::window::{Cursor, Gone, Tip, WindowEntry};

/// The recent events of all shards.
#[derive(Debug)]
pub struct Feeds {
    shards: Vec<Feed>,
}

/// Those of one shard.
#[derive(Debug)]
struct Feed {
    state: Mutex<FeedState>,
    /// What is applied, for who waits for that.
    applied: watch::Sender<u64>,
}

#[derive(Debug)]
struct FeedState {
    window: Window,
    topics: Topics,
}

impl Feeds {
    /// Feeds of the data shards 1 to this, and of the meta shard.
    #[must_use]
    pub fn new(shards: u32) -> Self {
        let count = usize::try_from(shards).expect("a number of shards fits a usize") + 1;
        let feed = |_| Feed::new(WATCH_WINDOW_BYTES / count);
        Self { shards: (0..count).map(feed).collect() }
    }

    /// A shard's state is that of this place; what led there is not known.
    pub fn opened(&self, shard: ShardId, tip: Tip) {
        let Some(feed) = self.feed(shard) else { return };
        let mut state = feed.lock();
        state.window.begin(tip);
        state.topics.forget_all(tip.index);
        drop(state);
        feed.applied.send_replace(tip.index);
    }

    /// Entries were applied. Takes their events.
    pub fn publish(&self, shard: ShardId, entries: &mut [Applied]) {
        let (Some(feed), Some(last)) = (self.feed(shard), entries.last()) else { return };
        let index = last.index;
        let mut state = feed.lock();
        let FeedState { window, topics } = &mut *state;
        for applied in entries {
            let Applied { index, term, log_time_ms, .. } = *applied;
            let events = std::mem::take(&mut applied.events);
            topics.note(index, &events);
            for gone in window.push(WindowEntry { tip: Tip { index, term, log_time_ms }, events }) {
                topics.forget(gone.tip.index, &gone.events);
            }
        }
        drop(state);
        feed.applied.send_replace(index);
    }

    /// Waits until this node has applied an entry.
    pub async fn reached(&self, shard: ShardId, index: u64) {
        let Some(feed) = self.feed(shard) else { return };
        let mut applied = feed.applied.subscribe();
        // The sender lives as long as the feed.
        drop(applied.wait_for(|applied| *applied >= index).await);
    }

    /// Follows what passes a filter, after a position that this node has reached.
    ///
    /// # Errors
    /// Not all events after it are here.
    pub fn follow(
        self: &Arc<Self>,
        shard: ShardId,
        filter: Filter,
        after: Cursor,
    ) -> Result<Follower, Gone> {
        let mut state = self.state(shard);
        let FeedState { window, topics } = &mut *state;
        let whole = TopicMark { last: window.tip().index, floor: window.floor() };
        let mark = topics.subscribe(&filter.topic, whole);
        let floor = mark.borrow().floor;
        let has_all = window.has_all_after(after, floor);
        drop(state);
        let follower = Follower::new(Arc::clone(self), shard, filter, after, mark);
        has_all.map(|()| follower)
    }

    /// The place up to which this node has applied a shard.
    #[must_use]
    pub fn tip(&self, shard: ShardId) -> Tip {
        self.state(shard).window.tip()
    }

    fn feed(&self, shard: ShardId) -> Option<&Feed> {
        self.shards.get(usize::try_from(shard).ok()?)
    }

    fn state(&self, shard: ShardId) -> MutexGuard<'_, FeedState> {
        self.feed(shard).expect("a namespace leads to a shard that there is").lock()
    }
}

impl Feed {
    fn new(bytes_max: usize) -> Self {
        let state = FeedState { window: Window::new(bytes_max), topics: Topics::default() };
        Self { state: Mutex::new(state), applied: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
