//! Calls that wait at the leader for a latch to open or a barrier to move: leader memory, not replicated. Whoever is
//! lost with a leader asks again, and finds in the state how things stand.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use trefoil_proto::internal::v1::Answer;

use crate::CallId;
use crate::limits::POLLS_MAX;

/// The calls of one shard that wait, by the key of the record that they wait for.
#[derive(Debug, Default)]
pub(super) struct ParkedCalls {
    waiting: BTreeMap<Bytes, BTreeSet<CallId>>,
    /// Where each call waits.
    calls: BTreeMap<CallId, Bytes>,
}

impl ParkedCalls {
    /// Lets a call wait; false when too many wait already.
    pub(super) fn wait(&mut self, call: CallId, key: Bytes) -> bool {
        self.cancel(call);
        if self.calls.len() >= POLLS_MAX {
            return false;
        }
        self.waiting.entry(key.clone()).or_default().insert(call);
        self.calls.insert(call, key);
        true
    }

    /// Ends all calls that wait for a record.
    pub(super) fn open(&mut self, key: &Bytes, answer: &Answer) -> Vec<(CallId, Answer)> {
        let calls = self.waiting.remove(key).unwrap_or_default();
        calls.iter().for_each(|call| drop(self.calls.remove(call)));
        calls.into_iter().map(|call| (call, answer.clone())).collect()
    }

    /// Removes a call.
    pub(super) fn cancel(&mut self, call: CallId) {
        let Some(key) = self.calls.remove(&call) else { return };
        if let Some(calls) = self.waiting.get_mut(&key) {
            calls.remove(&call);
            if calls.is_empty() {
                self.waiting.remove(&key);
            }
        }
    }

    /// Removes all calls and says which they were.
    pub(super) fn clear(&mut self) -> Vec<CallId> {
        self.waiting.clear();
        std::mem::take(&mut self.calls).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_wait_for_a_record_end_together_and_nobody_else() {
        let (one, other) = (Bytes::from("one"), Bytes::from("other"));
        let mut parked = ParkedCalls::default();
        for (call, key) in [(9, &one), (3, &one), (5, &other), (7, &one)] {
            assert!(parked.wait(call, key.clone()));
        }
        parked.cancel(7);
        parked.cancel(7);
        let ended = parked.open(&one, &Answer::default());
        assert_eq!(ended.iter().map(|(call, _)| *call).collect::<Vec<_>>(), [3, 9]);
        assert!(parked.open(&one, &Answer::default()).is_empty());
        assert_eq!(parked.clear(), [5]);
        assert!(parked.waiting.is_empty() && parked.calls.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut parked = ParkedCalls::default();
        let key = Bytes::from("key");
        let waiting = (0..).take_while(|call| parked.wait(*call, key.clone())).count();
        assert_eq!(waiting, POLLS_MAX);
        parked.cancel(0);
        assert!(parked.wait(0, key), "a call that went away makes room");
    }
}
