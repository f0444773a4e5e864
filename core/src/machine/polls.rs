//! Long polls that wait at the leader for a partition to have something: leader memory, not replicated.

use std::collections::BTreeMap;

use trefoil_proto::internal::v1::{Answer, Ready, answer};

use crate::CallId;
use crate::limits::POLLS_MAX;

/// The polls of one shard, by partition and in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Polls {
    /// (queue id, partition, arrival) to the poll.
    waiting: BTreeMap<(u64, u32, u64), CallId>,
    /// Where each poll waits.
    calls: BTreeMap<CallId, Vec<(u64, u32, u64)>>,
    arrivals: u64,
}

impl Polls {
    /// Lets a poll wait for any of the partitions; false when too many wait already.
    pub(super) fn wait(&mut self, call: CallId, queue_id: u64, partitions: &[u32]) -> bool {
        if self.calls.len() >= POLLS_MAX {
            return false;
        }
        self.arrivals += 1;
        let places = partitions
            .iter()
            .map(|partition| (queue_id, *partition, self.arrivals))
            .collect::<Vec<_>>();
        self.waiting.extend(places.iter().map(|place| (*place, call)));
        self.calls.insert(call, places);
        true
    }

    /// A partition gained a message: the poll that has waited longest for it ends.
    pub(super) fn ready(&mut self, queue_id: u64, partition: u32) -> Option<(CallId, Answer)> {
        let range = (queue_id, partition, 0)..=(queue_id, partition, u64::MAX);
        let call = *self.waiting.range(range).next()?.1;
        self.cancel(call);
        let ready = Ready { partitions: vec![partition] };
        Some((call, Answer { answer: Some(answer::Answer::Ready(ready)) }))
    }

    /// Removes a poll.
    pub(super) fn cancel(&mut self, call: CallId) {
        for place in self.calls.remove(&call).unwrap_or_default() {
            self.waiting.remove(&place);
        }
    }

    /// Removes all polls and says which they were.
    pub(super) fn clear(&mut self) -> Vec<CallId> {
        self.waiting.clear();
        std::mem::take(&mut self.calls).into_keys().collect()
    }
}
