//! The cache by position: a read at an index shows the newest write at or before it.
//!
//! This trusts the positions and versions of the replies, so it is fast and complete; [`super::linear`] trusts
//! neither and searches. Both must agree that a history is good.

use std::collections::BTreeMap;

use super::Violation;
use super::history::{Action, AnswerPosition, History, RecordedCall, RecordedOutcome};

const NEWEST: &str = "a read shows the newest write at or before its index";
const VERSIONS: &str = "versions of a key rise with the positions of its writes";
const PHANTOM: &str = "a read shows a value that was put";
const THERE: &str = "a value is there until its time is up by the log";

#[derive(Clone, Copy)]
struct RegisterWrite<'a> {
    call: &'a RecordedCall,
    place: &'a AnswerPosition,
    version: u64,
    /// None for a deletion.
    value: Option<&'a str>,
    /// Log time at which it is gone; none keeps it.
    gone_ms: Option<u64>,
}

/// Compares reads, writes and versions of each key.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut writes = BTreeMap::<&str, Vec<RegisterWrite<'_>>>::new();
    let (mut reads, mut misses) = (Vec::new(), Vec::new());
    let mut attempted = BTreeMap::new();
    for call in &history.calls {
        if let Action::Put { key, value, .. } = &call.action {
            attempted.insert((key.as_str(), value.as_str()), call);
        }
    }
    for (call, place, outcome) in history.answered() {
        match (&call.action, outcome) {
            (Action::Put { key, value, ttl_ms }, RecordedOutcome::Put { version }) => {
                let gone_ms =
                    (*ttl_ms > 0).then(|| place.position.log_time_ms.saturating_add(*ttl_ms));
                let write =
                    RegisterWrite { call, place, version: *version, value: Some(value), gone_ms };
                writes.entry(key).or_default().push(write);
            }
            (Action::Delete { key }, RecordedOutcome::Deleted { version: Some(version) }) => {
                writes.entry(key).or_default().push(RegisterWrite {
                    call,
                    place,
                    version: *version,
                    value: None,
                    gone_ms: None,
                });
            }
            (Action::Get { key }, RecordedOutcome::Got { value: Some((value, version)) }) => {
                reads.push((key.as_str(), call, place, value.as_str(), *version));
            }
            (Action::Get { key }, RecordedOutcome::Got { value: None }) => {
                misses.push((key.as_str(), call, place));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for writes in writes.values_mut() {
        versions(writes, &mut found);
    }
    for (key, call, place, value, version) in reads {
        if !attempted.contains_key(&(key, value)) {
            found.push(Violation::new(PHANTOM, format!("{call:?}")));
        }
        let writes = writes.get(key).map_or(&[][..], Vec::as_slice);
        if let Some(write) = writes.iter().find(|write| contradicts(write, place, value, version)) {
            found.push(Violation::new(NEWEST, format!("{call:?} beside {:?}", write.call)));
        }
    }
    for (key, call, place) in misses {
        let writes = writes.get(key).map_or(&[][..], Vec::as_slice);
        if let Some(write) = hidden(history, key, writes, call, place) {
            found.push(Violation::new(THERE, format!("{call:?} after {:?}", write.call)));
        }
    }
    found
}

/// The write whose value a read should have shown and did not, where that is certain: nothing that may have come
/// between is without a known end or place.
fn hidden<'a>(
    history: &History,
    key: &str,
    writes: &[RegisterWrite<'a>],
    read: &RecordedCall,
    place: &AnswerPosition,
) -> Option<RegisterWrite<'a>> {
    let before = writes.iter().filter(|write| write.place.position.index <= place.position.index);
    let newest = *before.max_by_key(|write| write.version)?;
    let certain = writes.iter().all(|write| write.version < newest.version || write.place.exact);
    let unseen = history.calls.iter().any(|call| {
        call.is_open()
            && call.called_at <= read.ended_at
            && matches!(&call.action, Action::Put { key: other, .. } | Action::Delete { key: other } if other == key)
    });
    let there = newest.value.is_some()
        && newest.gone_ms.is_none_or(|gone| place.position.log_time_ms < gone);
    (certain && !unseen && there).then_some(newest)
}

fn contradicts(
    write: &RegisterWrite<'_>,
    read: &AnswerPosition,
    value: &str,
    version: u64,
) -> bool {
    let (written, seen) = (write.place.position.index, read.position.index);
    let missed = written <= seen && write.version > version;
    let foreseen = write.place.exact && written > seen && write.version <= version;
    missed || foreseen || (write.version == version) != (write.value == Some(value))
}

fn versions(writes: &mut [RegisterWrite<'_>], found: &mut Vec<Violation>) {
    writes.sort_by_key(|write| write.version);
    for pair in writes.windows(2) {
        let [before, after] = pair else { continue };
        let (first, second) = (before.place.position, after.place.position);
        // The effect of a retry may stand before its position, never behind it.
        let turned =
            before.place.exact && (second.index, second.ordinal) < (first.index, first.ordinal);
        if before.version == after.version || turned {
            found.push(Violation::new(VERSIONS, format!("{:?} and {:?}", before.call, after.call)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::build::{answered, delete, get, got, history, open, put};
    use super::*;

    fn writes() -> Vec<RecordedCall> {
        vec![
            answered(1, 2, 11, put("a", "1"), RecordedOutcome::Put { version: 1 }),
            answered(3, 4, 13, put("a", "2"), RecordedOutcome::Put { version: 2 }),
            open(3, put("a", "3")),
        ]
    }

    fn with(read: RecordedCall) -> Vec<Violation> {
        let mut calls = writes();
        calls.push(read);
        check(&history(calls))
    }

    #[test]
    fn good_reads_pass() {
        assert_eq!(with(answered(5, 6, 13, get("a"), got("2", 2))), []);
        assert_eq!(with(answered(2, 6, 12, get("a"), got("1", 1))), []);
        assert_eq!(with(answered(5, 6, 14, get("a"), got("3", 3))), []);
    }

    #[test]
    fn a_stale_read_is_found() {
        assert_eq!(with(answered(5, 6, 13, get("a"), got("1", 1)))[0].invariant, NEWEST);
    }

    #[test]
    fn a_read_of_the_future_is_found() {
        assert_eq!(with(answered(5, 6, 12, get("a"), got("2", 2)))[0].invariant, NEWEST);
    }

    #[test]
    fn a_wrong_value_is_found() {
        assert_eq!(with(answered(5, 6, 13, get("a"), got("1", 2)))[0].invariant, NEWEST);
        assert_eq!(with(answered(5, 6, 13, get("a"), got("2", 7)))[0].invariant, NEWEST);
    }

    #[test]
    fn a_value_that_nobody_put_is_found() {
        assert_eq!(with(answered(5, 6, 14, get("a"), got("9", 3)))[0].invariant, PHANTOM);
    }

    #[test]
    fn a_value_that_is_hidden_before_its_time_is_found() {
        use super::super::history::build::missed;
        let action = Action::Put { key: "b".to_owned(), value: "1".to_owned(), ttl_ms: 1_000 };
        let write = answered(1, 2, 11, action, RecordedOutcome::Put { version: 1 });
        let found = |index, log_time_ms| {
            let mut read = answered(3, 4, index, get("b"), missed());
            if let super::super::history::End::Answered(place, _) = &mut read.end {
                place.position.log_time_ms = log_time_ms;
            }
            check(&history([write.clone(), read]))
        };
        let at = write.answered().unwrap().0.position.log_time_ms;
        assert_eq!(found(12, at + 999)[0].invariant, THERE);
        assert_eq!(found(12, at + 1_000), []);
        assert_eq!(found(10, at), []);
    }

    #[test]
    fn versions_that_do_not_rise_are_found() {
        let same = answered(5, 6, 14, delete("a"), RecordedOutcome::Deleted { version: Some(2) });
        assert_eq!(with(same)[0].invariant, VERSIONS);
        let turned = answered(1, 6, 10, put("a", "4"), RecordedOutcome::Put { version: 4 });
        assert_eq!(with(turned)[0].invariant, VERSIONS);
    }
}
