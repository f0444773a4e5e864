//! What entries did, for those who watch: events in the order of the log, the same on every node.
//!
//! They are no part of the state. A refused command has none.

use trefoil_proto::lock::v1::LockEvent;

/// Bytes of an event beside its texts.
const FIXED_BYTES: usize = size_of::<Event>();

/// Something that a command, or a timer, did.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where.
    pub namespace: String,
    /// To what, and what.
    pub body: Body,
}

/// The events of each service. Index, ordinal and log time are those of the entry, and filled in for whoever is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Of a lock.
    Lock(LockEvent),
}

impl Event {
    /// The name of what it happened to.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.body {
            Body::Lock(event) => &event.name,
        }
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = match &self.body {
            Body::Lock(event) => event.name.len() + event.owner.len(),
        };
        FIXED_BYTES + self.namespace.len() + texts
    }
}
