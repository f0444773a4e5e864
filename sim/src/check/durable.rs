//! What was acknowledged is there at the end, or something later has replaced it.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::history::{Action, History, RecordedCall, RecordedOutcome};

const CACHE: &str = "an acknowledged write to the cache is durable";
const QUEUE: &str = "an acknowledged message is delivered";
const AUDITED: &str = "the final state was read";

/// Compares acknowledged writes with the reads called at `audit_from` or later.
#[must_use]
pub fn check(history: &History, audit_from: u64) -> Vec<Violation> {
    let mut found = Vec::new();
    cache(history, audit_from, &mut found);
    queue(history, &mut found);
    found
}

/// The newest acknowledged write of a key, by version.
struct Newest<'a> {
    call: &'a RecordedCall,
    version: u64,
    value: Option<&'a str>,
    may_expire: bool,
}

fn cache(history: &History, audit_from: u64, found: &mut Vec<Violation>) {
    let mut newest = BTreeMap::<&str, Newest<'_>>::new();
    for (call, _, outcome) in history.answered() {
        let (key, write) = match (&call.action, outcome) {
            (Action::Put { key, value, ttl_ms }, RecordedOutcome::Put { version }) => (
                key,
                Newest { call, version: *version, value: Some(value), may_expire: *ttl_ms > 0 },
            ),
            (Action::Delete { key }, RecordedOutcome::Deleted { version: Some(version) }) => {
                (key, Newest { call, version: *version, value: None, may_expire: false })
            }
            _ => continue,
        };
        if newest.get(key.as_str()).is_none_or(|other| other.version < write.version) {
            newest.insert(key, write);
        }
    }
    let mut finals = BTreeMap::new();
    for (call, _, outcome) in history.answered().filter(|(call, ..)| call.called_at >= audit_from) {
        if let (Action::Get { key }, RecordedOutcome::Got { value }) = (&call.action, outcome) {
            finals.insert(
                key.as_str(),
                value.as_ref().map(|(value, version)| (value.as_str(), *version)),
            );
        }
    }
    for (key, write) in newest {
        let Some(last) = finals.get(key) else {
            found.push(Violation::new(AUDITED, format!("key {key} was not")));
            continue;
        };
        let kept = match last {
            Some((value, version)) if *version == write.version => write.value == Some(value),
            Some((_, version)) => *version > write.version,
            None => write.value.is_none() || write.may_expire || may_be_deleted(history, key),
        };
        if !kept {
            found.push(Violation::new(CACHE, format!("{:?}, at the end {last:?}", write.call)));
        }
    }
}

/// Whether a write without a known end may have removed the value, or replaced it by one that expired.
fn may_be_deleted(history: &History, key: &str) -> bool {
    history.calls.iter().filter(|call| call.is_open()).any(|call| match &call.action {
        Action::Delete { key: deleted } => deleted == key,
        Action::Put { key: put, ttl_ms, .. } => put == key && *ttl_ms > 0,
        _ => false,
    })
}

fn queue(history: &History, found: &mut Vec<Violation>) {
    let mut delivered = BTreeSet::new();
    for (call, _, outcome) in history.answered() {
        if let (Action::Dequeue { queue, .. }, RecordedOutcome::Delivered(deliveries)) =
            (&call.action, outcome)
        {
            delivered.extend(
                deliveries.iter().map(|delivery| (queue.as_str(), delivery.message_id.as_str())),
            );
        }
    }
    for (call, _, outcome) in history.answered() {
        if let (Action::Enqueue { queue, .. }, RecordedOutcome::Enqueued { message_id }) =
            (&call.action, outcome)
            && !delivered.contains(&(queue.as_str(), message_id.as_str()))
        {
            found.push(Violation::new(QUEUE, format!("{call:?} was not")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::RecordedDelivery;
    use super::super::history::build::{answered, delete, get, got, history, missed, open, put};
    use super::*;

    fn first(calls: impl IntoIterator<Item = RecordedCall>) -> Option<&'static str> {
        check(&history(calls), 100).first().map(|violation| violation.invariant)
    }

    fn puts() -> Vec<RecordedCall> {
        vec![
            answered(1, 2, 11, put("a", "1"), RecordedOutcome::Put { version: 1 }),
            answered(3, 4, 12, put("a", "2"), RecordedOutcome::Put { version: 2 }),
        ]
    }

    #[test]
    fn the_newest_write_passes() {
        let mut calls = puts();
        calls.push(answered(100, 101, 20, get("a"), got("2", 2)));
        assert_eq!(first(calls), None);
    }

    #[test]
    fn a_lost_write_is_found() {
        for read in [got("1", 1), got("1", 2), missed()] {
            let mut calls = puts();
            calls.push(answered(100, 101, 20, get("a"), read));
            assert_eq!(first(calls), Some(CACHE));
        }
    }

    #[test]
    fn a_key_that_nobody_read_at_the_end_is_found() {
        let mut calls = puts();
        calls.push(answered(50, 51, 20, get("a"), got("2", 2)));
        assert_eq!(first(calls), Some(AUDITED));
    }

    #[test]
    fn an_open_write_may_have_replaced_it() {
        let mut calls = puts();
        calls.extend([open(5, put("a", "3")), answered(100, 101, 20, get("a"), got("3", 3))]);
        assert_eq!(first(calls), None);
        let mut calls = puts();
        calls.extend([open(5, delete("a")), answered(100, 101, 20, get("a"), missed())]);
        assert_eq!(first(calls), None);
    }

    #[test]
    fn a_lost_message_is_found() {
        let action =
            Action::Enqueue { queue: "q".to_owned(), key: String::new(), value: "1".to_owned() };
        let enqueue =
            answered(1, 2, 11, action, RecordedOutcome::Enqueued { message_id: "0-1".to_owned() });
        assert_eq!(first([enqueue.clone()]), Some(QUEUE));
        let delivery = RecordedDelivery {
            message_id: "0-1".to_owned(),
            value: "1".to_owned(),
            lease_id: "0-1-1".to_owned(),
            count: 1,
        };
        let action = Action::Dequeue { queue: "q".to_owned(), lease_ms: 100 };
        let dequeue = answered(3, 4, 12, action, RecordedOutcome::Delivered(vec![delivery]));
        assert_eq!(first([enqueue, dequeue]), None);
    }
}
