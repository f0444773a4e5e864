//! Connections for streams on which a node tells something by itself. They are apart from those of calls, and shared
//! by as many streams as a node takes on one connection.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tonic::transport::Channel;

/// Streams of one connection: fewer than a node allows.
const STREAMS_MAX: usize = 200;

/// The open connections of one node.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    open: Mutex<Vec<Weak<Line>>>,
    /// One dials, the others wait for it.
    pub(crate) dialling: tokio::sync::Mutex<()>,
}

/// One connection. It closes when the last stream on it is gone.
#[derive(Debug)]
pub(crate) struct Line {
    channel: Channel,
}

impl Line {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

impl Lines {
    /// A connection that takes one stream more.
    pub(crate) fn free(&self) -> Option<Arc<Line>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|line| line.strong_count() > 0);
        open.iter().filter(|line| line.strong_count() < STREAMS_MAX).find_map(Weak::upgrade)
    }

    pub(crate) fn add(&self, channel: Channel) -> Arc<Line> {
        let line = Arc::new(Line { channel });
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&line));
        line
    }

    /// A connection broke: nothing new goes there.
    pub(crate) fn drop_line(&self, line: &Arc<Line>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(line)));
    }
}
