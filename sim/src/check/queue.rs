//! Queues: no phantom, one message for each enqueue, nothing comes back after its ack, leases are kept, first
//! deliveries are in order. That nothing is lost is [`super::durable`].

use std::collections::BTreeMap;

use super::Violation;
use super::history::{
    Action, AnswerPosition, History, RecordedCall, RecordedDelivery, RecordedOutcome,
};

const PHANTOM: &str = "a delivery carries what was enqueued";
const ONCE: &str = "an enqueue makes one message";
const GONE: &str = "a message is not delivered after its ack";
const LEASED: &str = "a leased message is not delivered again while its lease is valid";
const NEWEST: &str = "only the newest lease settles a message";
const COUNTS: &str = "each delivery has a lease and a count of its own";
const FIFO: &str = "first deliveries of a partition are in the order of its messages";

/// (queue, message id).
type MessageKey<'a> = (&'a str, &'a str);

#[derive(Clone, Copy)]
struct ToldDelivery<'a> {
    call: &'a RecordedCall,
    place: &'a AnswerPosition,
    delivery: &'a RecordedDelivery,
    lease_ms: u64,
}

#[derive(Clone, Copy)]
struct Acked<'a> {
    call: &'a RecordedCall,
    place: &'a AnswerPosition,
    lease_id: &'a str,
}

/// Checks every queue of the history.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let (mut deliveries, mut acks) =
        (BTreeMap::<MessageKey<'_>, Vec<_>>::new(), BTreeMap::<MessageKey<'_>, Vec<_>>::new());
    for (call, place, outcome) in history.answered() {
        match (&call.action, outcome) {
            (Action::Dequeue { queue, lease_ms }, RecordedOutcome::Delivered(list)) => {
                for delivery in list {
                    let entry = deliveries
                        .entry((queue.as_str(), delivery.message_id.as_str()))
                        .or_default();
                    entry.push(ToldDelivery { call, place, delivery, lease_ms: *lease_ms });
                }
            }
            (Action::Ack { queue, message_id, lease_id }, RecordedOutcome::Acked) => {
                acks.entry((queue.as_str(), message_id.as_str())).or_default().push(Acked {
                    call,
                    place,
                    lease_id,
                });
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    sources(history, &deliveries, &mut found);
    for (id, list) in &mut deliveries {
        list.sort_by_key(|delivered| delivered.delivery.count);
        leases(list, &mut found);
        settled(list, acks.get(id).map_or(&[][..], Vec::as_slice), &mut found);
    }
    fifo(history, &deliveries, &mut found);
    found
}

/// Values and message ids belong together, one to one.
fn sources(
    history: &History,
    deliveries: &BTreeMap<MessageKey<'_>, Vec<ToldDelivery<'_>>>,
    found: &mut Vec<Violation>,
) {
    let mut enqueues = BTreeMap::new();
    for call in &history.calls {
        if let Action::Enqueue { queue, value, .. } = &call.action {
            enqueues.insert((queue.as_str(), value.as_str()), call);
        }
    }
    let mut ids = BTreeMap::new();
    for ((queue, id), list) in deliveries {
        for ToldDelivery { call, delivery, .. } in list {
            let value = delivery.value.as_str();
            let Some(enqueue) = enqueues.get(&(*queue, value)) else {
                found.push(Violation::new(PHANTOM, format!("{value} in {call:?}")));
                continue;
            };
            match enqueue.answered() {
                Some((_, RecordedOutcome::Enqueued { message_id })) if message_id == id => {}
                None if enqueue.is_open() => {}
                Some((_, RecordedOutcome::Enqueued { .. })) => {
                    found.push(Violation::new(
                        ONCE,
                        format!("{enqueue:?} was also delivered as {id}"),
                    ));
                }
                _ => found
                    .push(Violation::new(PHANTOM, format!("{enqueue:?} was delivered as {id}"))),
            }
            if let Some(other) = ids.insert((*queue, value), *id).filter(|other| other != id) {
                found.push(Violation::new(
                    ONCE,
                    format!("{value} was delivered as {other} and as {id}"),
                ));
            }
        }
    }
}

/// `list` is one message's deliveries by count.
fn leases(list: &[ToldDelivery<'_>], found: &mut Vec<Violation>) {
    for pair in list.windows(2) {
        let [first, second] = pair else { continue };
        let both = || format!("{:?} and {:?}", first.call, second.call);
        if first.delivery.count == second.delivery.count
            || first.delivery.lease_id == second.delivery.lease_id
        {
            found.push(Violation::new(COUNTS, both()));
        }
        if !first.place.exact {
            continue;
        }
        let (before, after) = (first.place.position, second.place.position);
        if after.index <= before.index {
            found.push(Violation::new(COUNTS, both()));
        } else if after.log_time_ms < before.log_time_ms.saturating_add(first.lease_ms) {
            found.push(Violation::new(LEASED, both()));
        }
    }
}

fn settled(list: &[ToldDelivery<'_>], acks: &[Acked<'_>], found: &mut Vec<Violation>) {
    for ack in acks {
        let position = ack.place.position;
        for delivered in list {
            let both = || format!("{:?} after {:?}", delivered.call, ack.call);
            let later = delivered.place.exact && delivered.place.position.index > position.index;
            if later || delivered.call.called_at > ack.call.ended_at {
                found.push(Violation::new(GONE, both()));
            }
        }
        let own = list.iter().find(|delivered| delivered.delivery.lease_id == ack.lease_id);
        let newer =
            own.and_then(|own| list.iter().find(|other| other.delivery.count > own.delivery.count));
        // The effect of an ack that was retried may stand before the newer delivery.
        if let Some(newer) =
            newer.filter(|newer| ack.place.exact && newer.place.position.index < position.index)
        {
            found.push(Violation::new(NEWEST, format!("{:?} after {:?}", ack.call, newer.call)));
        }
    }
}

/// First deliveries follow the sequence. A Dequeue whose end was not seen may have been given messages that came
/// back unseen, so what it may have touched is not judged.
fn fifo(
    history: &History,
    deliveries: &BTreeMap<MessageKey<'_>, Vec<ToldDelivery<'_>>>,
    found: &mut Vec<Violation>,
) {
    let mut partitions = BTreeMap::<(&str, &str), Vec<(u64, ToldDelivery<'_>)>>::new();
    for ((queue, id), list) in deliveries {
        let Some((partition, sequence)) = id.rsplit_once('-') else { continue };
        let first = list.first().filter(|first| first.delivery.count == 1 && first.place.exact);
        if let (Some(first), Ok(sequence)) = (first, sequence.parse()) {
            partitions.entry((queue, partition)).or_default().push((sequence, *first));
        }
    }
    for ((queue, _), mut firsts) in partitions {
        let unseen = history.calls.iter().filter(|call| call.is_open());
        let unseen = unseen.filter(
            |call| matches!(&call.action, Action::Dequeue { queue: other, .. } if other == queue),
        );
        let judged_until = unseen.map(|call| call.called_at).min().unwrap_or(u64::MAX);
        firsts.sort_by_key(|(sequence, _)| *sequence);
        for pair in firsts.windows(2) {
            let [(_, first), (_, second)] = pair else { continue };
            let turned = second.place.position.index < first.place.position.index;
            if turned && first.call.ended_at < judged_until {
                found.push(Violation::new(
                    FIFO,
                    format!("{:?} before {:?}", second.call, first.call),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::End;
    use super::super::history::build::{answered, history, open};
    use super::*;

    fn enqueue(at: u64, value: &str, id: &str) -> RecordedCall {
        let action =
            Action::Enqueue { queue: "q".to_owned(), key: String::new(), value: value.to_owned() };
        answered(at, at + 1, at, action, RecordedOutcome::Enqueued { message_id: id.to_owned() })
    }

    fn delivery(value: &str, id: &str, count: u32) -> RecordedDelivery {
        let lease_id = format!("{id}-{count}");
        RecordedDelivery { message_id: id.to_owned(), value: value.to_owned(), lease_id, count }
    }

    fn dequeue(at: u64, deliveries: Vec<RecordedDelivery>) -> RecordedCall {
        let action = Action::Dequeue { queue: "q".to_owned(), lease_ms: 100 };
        answered(at, at + 1, at, action, RecordedOutcome::Delivered(deliveries))
    }

    fn ack(at: u64, id: &str, count: u32) -> RecordedCall {
        let lease_id = format!("{id}-{count}");
        let action = Action::Ack { queue: "q".to_owned(), message_id: id.to_owned(), lease_id };
        answered(at, at + 1, at, action, RecordedOutcome::Acked)
    }

    fn first(calls: impl IntoIterator<Item = RecordedCall>) -> Option<&'static str> {
        check(&history(calls)).first().map(|violation| violation.invariant)
    }

    #[test]
    fn a_good_history_passes() {
        let calls = [
            enqueue(10, "1", "0-1"),
            enqueue(20, "2", "0-2"),
            dequeue(30, vec![delivery("1", "0-1", 1), delivery("2", "0-2", 1)]),
            ack(40, "0-1", 1),
            dequeue(130, vec![delivery("2", "0-2", 2)]),
            ack(140, "0-2", 2),
        ];
        assert_eq!(first(calls), None);
    }

    #[test]
    fn a_phantom_is_found() {
        assert_eq!(first([dequeue(30, vec![delivery("1", "0-1", 1)])]), Some(PHANTOM));
        let mut refused = enqueue(10, "1", "0-1");
        refused.end = End::NotDone(trefoil_proto::common::v1::Reason::NotLeader);
        assert_eq!(first([refused, dequeue(30, vec![delivery("1", "0-1", 1)])]), Some(PHANTOM));
    }

    #[test]
    fn a_double_enqueue_is_found() {
        let twice = dequeue(30, vec![delivery("1", "0-1", 1), delivery("1", "0-2", 1)]);
        assert_eq!(first([enqueue(10, "1", "0-1"), twice]), Some(ONCE));
    }

    #[test]
    fn a_delivery_after_the_ack_is_found() {
        let calls = [
            enqueue(10, "1", "0-1"),
            dequeue(30, vec![delivery("1", "0-1", 1)]),
            ack(40, "0-1", 1),
            dequeue(150, vec![delivery("1", "0-1", 2)]),
        ];
        assert_eq!(first(calls), Some(GONE));
    }

    #[test]
    fn a_second_delivery_within_the_lease_is_found() {
        let calls = [
            enqueue(10, "1", "0-1"),
            dequeue(30, vec![delivery("1", "0-1", 1)]),
            dequeue(120, vec![delivery("1", "0-1", 2)]),
        ];
        assert_eq!(first(calls), Some(LEASED));
    }

    #[test]
    fn one_lease_for_two_deliveries_is_found() {
        let again = dequeue(150, vec![delivery("1", "0-1", 1)]);
        assert_eq!(
            first([enqueue(10, "1", "0-1"), dequeue(30, vec![delivery("1", "0-1", 1)]), again]),
            Some(COUNTS)
        );
    }

    #[test]
    fn an_ack_by_an_old_lease_is_found() {
        let calls = [
            enqueue(10, "1", "0-1"),
            dequeue(30, vec![delivery("1", "0-1", 1)]),
            dequeue(150, vec![delivery("1", "0-1", 2)]),
            ack(160, "0-1", 1),
        ];
        assert_eq!(first(calls), Some(NEWEST));
    }

    #[test]
    fn first_deliveries_out_of_order_are_found() {
        let calls = [
            enqueue(10, "1", "0-1"),
            enqueue(20, "2", "0-2"),
            dequeue(30, vec![delivery("2", "0-2", 1)]),
            dequeue(40, vec![delivery("1", "0-1", 1)]),
        ];
        assert_eq!(first(calls.clone()), Some(FIFO));
        let unseen = open(25, Action::Dequeue { queue: "q".to_owned(), lease_ms: 100 });
        assert_eq!(first(calls.into_iter().chain([unseen])), None);
    }
}
