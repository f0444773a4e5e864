//! Connections for streams on which a node tells something by itself. They are apart from those of calls, and shared
//! by as many streams as a node takes on one connection.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tonic::transport::Channel;

/// Streams of one connection: fewer than a node allows.
const STREAMS_MAX: usize = 200;

/// The open connections of one node.
#[derive(Debug, Default)]
pub(crate) struct ListenConnections {
    open: Mutex<Vec<Weak<ListenConnection>>>,
    /// One dials, the others wait for it.
    pub(crate) dialling: tokio::sync::Mutex<()>,
}

/// One connection. It closes when the last stream on it is gone.
#[derive(Debug)]
pub(crate) struct ListenConnection {
    channel: Channel,
}

impl ListenConnection {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

impl ListenConnections {
    /// A connection that takes one stream more.
    pub(crate) fn free(&self) -> Option<Arc<ListenConnection>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|connection| connection.strong_count() > 0);
        open.iter()
            .filter(|connection| connection.strong_count() < STREAMS_MAX)
            .find_map(Weak::upgrade)
    }

    pub(crate) fn add(&self, channel: Channel) -> Arc<ListenConnection> {
        let connection = Arc::new(ListenConnection { channel });
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&connection));
        connection
    }

    /// A connection broke: nothing new goes there.
    pub(crate) fn forget(&self, connection: &Arc<ListenConnection>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(connection)));
    }
}
