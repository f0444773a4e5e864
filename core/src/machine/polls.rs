//! Long polls that wait at the leader for a partition to have something: leader memory, not replicated.

use std::collections::BTreeMap;

use trefoil_proto::internal::v1::{Answer, Ready, answer};

use crate::CallId;
use crate::limits::{POLL_PLACES_MAX, POLLS_MAX};

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
        self.cancel(call);
        if self.calls.len() >= POLLS_MAX || self.waiting.len() + partitions.len() > POLL_PLACES_MAX
        {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(polls: &mut Polls, partition: u32) -> Option<CallId> {
        polls.ready(1, partition).map(|(call, _)| call)
    }

    #[test]
    fn the_poll_that_waited_longest_ends_first_and_everywhere() {
        let mut polls = Polls::default();
        assert!(polls.wait(9, 1, &[0, 1]));
        assert!(polls.wait(3, 1, &[1, 0]));
        assert!(polls.wait(5, 2, &[0]));
        assert_eq!(ready(&mut polls, 1), Some(9));
        assert_eq!(ready(&mut polls, 0), Some(3));
        assert_eq!(ready(&mut polls, 0), None);
        assert_eq!(polls.clear(), [5]);
        assert!(polls.waiting.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut polls = Polls::default();
        let partitions = (0..1_024).collect::<Vec<_>>();
        let calls = 0..CallId::try_from(POLLS_MAX).unwrap();
        let parked = calls.filter(|call| polls.wait(*call, 1, &partitions)).count();
        assert_eq!((parked, polls.waiting.len()), (POLL_PLACES_MAX / 1_024, POLL_PLACES_MAX));
        assert_eq!(polls.clear().len(), parked);

        let waiting = (0..).take_while(|call| polls.wait(*call, 1, &[0])).count();
        assert_eq!(waiting, POLLS_MAX);
        polls.cancel(0);
        assert!(polls.wait(0, 1, &[0]), "a poll that went away makes room");
    }
}
