//! Request ids: every mutation carries one, so that sending it again takes effect once.
//!
//! A shard remembers at most 4,096 answers of a client name, so one call that stays open for long would
//! stop all later ones. A name is therefore given up for a fresh one when its open span is that wide.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trefoil_proto::common::v1::RequestId;

/// Sequences between the lowest open one and the next, at most.
const SPAN_MAX: u64 = 4_096;

/// Gives out request ids.
#[derive(Debug)]
pub(crate) struct Ids {
    current: Mutex<Arc<ClientName>>,
}

/// One client name and its sequences.
#[derive(Debug)]
struct ClientName {
    client: String,
    open: Mutex<OpenSequences>,
}

#[derive(Debug)]
struct OpenSequences {
    next: u64,
    /// Sequences without an answer; bounded by `SPAN_MAX`.
    sequences: BTreeSet<u64>,
}

/// One open sequence; dropping it says that its answer was seen or given up.
#[derive(Debug)]
pub(crate) struct Ticket {
    name: Arc<ClientName>,
    sequence: u64,
}

impl Ids {
    pub(crate) fn new() -> Self {
        Self { current: Mutex::new(Arc::new(ClientName::random())) }
    }

    /// Opens the next sequence.
    pub(crate) fn begin(&self) -> Ticket {
        let mut current = lock(&self.current);
        let sequence = current.begin().unwrap_or_else(|| {
            *current = Arc::new(ClientName::random());
            current.begin().expect("a fresh name has no open sequence")
        });
        Ticket { name: Arc::clone(&current), sequence }
    }
}

impl Ticket {
    /// The id for the given try: 0 first.
    pub(crate) fn id(&self, attempt: u32) -> RequestId {
        let open = lock(&self.name.open);
        RequestId {
            client: self.name.client.clone(),
            sequence: self.sequence,
            first_unacknowledged: open.first(),
            attempt,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.name.open).sequences.remove(&self.sequence);
    }
}

impl ClientName {
    fn random() -> Self {
        let client = format!("{:016x}", rand::random::<u64>());
        Self { client, open: Mutex::new(OpenSequences { next: 1, sequences: BTreeSet::new() }) }
    }

    fn begin(&self) -> Option<u64> {
        let mut open = lock(&self.open);
        if open.next - open.first() >= SPAN_MAX {
            return None;
        }
        let sequence = open.next;
        open.next += 1;
        open.sequences.insert(sequence);
        Some(sequence)
    }
}

impl OpenSequences {
    fn first(&self) -> u64 {
        self.sequences.first().copied().unwrap_or(self.next)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_lowest_sequence_without_an_answer() {
        let ids = Ids::new();
        let (first, second, third) = (ids.begin(), ids.begin(), ids.begin());
        drop(second);
        assert_eq!((third.id(0).sequence, third.id(0).first_unacknowledged), (3, 1));
        drop(first);
        assert_eq!((third.id(1).first_unacknowledged, third.id(1).attempt), (3, 1));
    }

    #[test]
    fn a_call_that_stays_open_costs_a_new_name_and_stops_nobody() {
        let ids = Ids::new();
        let stuck = ids.begin();
        for _ in 1..SPAN_MAX {
            assert_eq!(ids.begin().id(0).client, stuck.id(0).client);
        }
        let next = ids.begin();
        assert_ne!(next.id(0).client, stuck.id(0).client);
        assert_eq!((next.id(0).sequence, next.id(0).first_unacknowledged), (1, 1));
        assert_eq!((stuck.id(1).sequence, stuck.id(1).first_unacknowledged), (1, 1));
    }
}
