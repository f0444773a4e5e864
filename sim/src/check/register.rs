//! The cache by position: a read at an index shows the newest write at or before it.
//!
//! This trusts the positions and versions of the replies, so it is fast and complete; [`super::linear`] trusts
//! neither and searches. Both must agree that a history is good.

use std::collections::BTreeMap;

use super::Violation;
use super::history::{Action, Call, History, Outcome, Place};

const NEWEST: &str = "a read shows the newest write at or before its index";
const VERSIONS: &str = "versions of a key rise with the positions of its writes";
const PHANTOM: &str = "a read shows a value that was put";

#[derive(Clone, Copy)]
struct Write<'a> {
    call: &'a Call,
    place: &'a Place,
    version: u64,
    /// None for a deletion.
    value: Option<&'a str>,
}

/// Compares reads, writes and versions of each key.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let (mut writes, mut reads) = (BTreeMap::<&str, Vec<Write<'_>>>::new(), Vec::new());
    let mut attempted = BTreeMap::new();
    for call in &history.calls {
        if let Action::Put { key, value, .. } = &call.action {
            attempted.insert((key.as_str(), value.as_str()), call);
        }
    }
    for (call, place, outcome) in history.answered() {
        match (&call.action, outcome) {
            (Action::Put { key, value, .. }, Outcome::Put { version }) => {
                let write = Write { call, place, version: *version, value: Some(value) };
                writes.entry(key).or_default().push(write);
            }
            (Action::Delete { key }, Outcome::Deleted { version: Some(version) }) => {
                writes.entry(key).or_default().push(Write {
                    call,
                    place,
                    version: *version,
                    value: None,
                });
            }
            (Action::Get { key }, Outcome::Got { value: Some((value, version)) }) => {
                reads.push((key.as_str(), call, place, value.as_str(), *version));
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
    found
}

fn contradicts(write: &Write<'_>, read: &Place, value: &str, version: u64) -> bool {
    let (written, seen) = (write.place.position.index, read.position.index);
    let missed = written <= seen && write.version > version;
    let foreseen = write.place.exact && written > seen && write.version <= version;
    missed || foreseen || (write.version == version) != (write.value == Some(value))
}

fn versions(writes: &mut [Write<'_>], found: &mut Vec<Violation>) {
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

    fn writes() -> Vec<Call> {
        vec![
            answered(1, 2, 11, put("a", "1"), Outcome::Put { version: 1 }),
            answered(3, 4, 13, put("a", "2"), Outcome::Put { version: 2 }),
            open(3, put("a", "3")),
        ]
    }

    fn with(read: Call) -> Vec<Violation> {
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
    fn versions_that_do_not_rise_are_found() {
        let same = answered(5, 6, 14, delete("a"), Outcome::Deleted { version: Some(2) });
        assert_eq!(with(same)[0].invariant, VERSIONS);
        let turned = answered(1, 6, 10, put("a", "4"), Outcome::Put { version: 4 });
        assert_eq!(with(turned)[0].invariant, VERSIONS);
    }
}
