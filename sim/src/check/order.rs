//! Positions follow real time: what began after something had ended stands behind it in the shard's history.

use std::collections::BTreeMap;

use trefoil_core::ShardId;

use super::Violation;
use super::history::{AnswerPosition, History, RecordedCall};

const ORDER: &str = "positions follow real time";
const UNIQUE: &str = "one command has one position";
const TIME: &str = "term and log time never decrease along the log";

type PlacedAnswer<'a> = (&'a RecordedCall, &'a AnswerPosition);

/// Compares the positions of each shard with the times of the calls.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut shards: BTreeMap<ShardId, Vec<PlacedAnswer<'_>>> = BTreeMap::new();
    for (call, place, _) in history.answered() {
        shards.entry(place.shard).or_default().push((call, place));
    }
    let mut found = Vec::new();
    for items in shards.values() {
        real_time(items, &mut found);
        unique(items, &mut found);
        monotone(items, &mut found);
    }
    found
}

fn real_time(items: &[PlacedAnswer<'_>], found: &mut Vec<Violation>) {
    let mut by_call = items.to_vec();
    by_call.sort_by_key(|(call, _)| call.called_at);
    let mut by_end = items.to_vec();
    by_end.sort_by_key(|(call, _)| call.ended_at);
    let mut ended = by_end.into_iter().peekable();
    let mut last: Option<PlacedAnswer<'_>> = None;
    for (call, place) in by_call {
        while let Some(before) = ended.next_if(|(before, _)| before.ended_at < call.called_at) {
            if last.is_none_or(|(_, last)| last.position.index < before.1.position.index) {
                last = Some(before);
            }
        }
        let Some((before, past)) = last else { continue };
        let (earlier, later) = (past.position.index, place.position.index);
        // A read may stand at the index at which something was seen before; a write makes a later one.
        let fits = if call.action.is_read() { later >= earlier } else { later > earlier };
        if !fits {
            found
                .push(Violation::new(ORDER, format!("{call:?} began after the end of {before:?}")));
        }
    }
}

fn unique(items: &[PlacedAnswer<'_>], found: &mut Vec<Violation>) {
    let mut places = BTreeMap::new();
    // The command that ends a wait and the one that had waited share a position. So do all calls that an entry settles
    // beside its commands, at its end: waits, and those whose grants were taken back before they were brought again.
    let has_own_place = |(call, place): &&PlacedAnswer<'_>| {
        !call.action.is_read() && !call.action.waits() && place.position.ordinal != u32::MAX
    };
    for (call, place) in items.iter().filter(has_own_place) {
        let key = (place.position.index, place.position.ordinal);
        if let Some(other) = places.insert(key, call) {
            found.push(Violation::new(UNIQUE, format!("{other:?} and {call:?}")));
        }
    }
}

fn monotone(items: &[PlacedAnswer<'_>], found: &mut Vec<Violation>) {
    let mut writes = items.iter().filter(|(call, _)| !call.action.is_read()).collect::<Vec<_>>();
    writes.sort_by_key(|(_, place)| (place.position.index, place.position.ordinal));
    for pair in writes.windows(2) {
        let (before, after) = (pair[0].1.position, pair[1].1.position);
        let fits = if before.index == after.index {
            (before.term, before.log_time_ms) == (after.term, after.log_time_ms)
        } else {
            before.term <= after.term && before.log_time_ms <= after.log_time_ms
        };
        if !fits {
            found.push(Violation::new(TIME, format!("{:?} then {:?}", pair[0].0, pair[1].0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::build::{answered, get, got, history, put};
    use super::super::history::{End, RecordedOutcome};
    use super::*;

    #[test]
    fn a_good_history_passes() {
        let calls = [
            answered(1, 4, 11, put("a", "1"), RecordedOutcome::Put { version: 1 }),
            answered(2, 3, 12, put("b", "2"), RecordedOutcome::Put { version: 1 }),
            answered(5, 6, 12, get("b"), got("2", 1)),
            answered(7, 8, 13, put("b", "3"), RecordedOutcome::Put { version: 2 }),
        ];
        assert_eq!(check(&history(calls)), []);
    }

    #[test]
    fn a_write_that_stands_before_an_earlier_one_is_found() {
        let calls = [
            answered(1, 2, 12, put("a", "1"), RecordedOutcome::Put { version: 1 }),
            answered(3, 4, 11, put("b", "2"), RecordedOutcome::Put { version: 1 }),
        ];
        assert_eq!(check(&history(calls))[0].invariant, ORDER);
    }

    #[test]
    fn a_read_of_the_past_is_found() {
        let calls = [
            answered(1, 2, 12, put("a", "1"), RecordedOutcome::Put { version: 1 }),
            answered(3, 4, 11, get("b"), got("2", 1)),
        ];
        assert_eq!(check(&history(calls))[0].invariant, ORDER);
    }

    #[test]
    fn two_commands_at_one_position_are_found() {
        let calls = [
            answered(1, 4, 12, put("a", "1"), RecordedOutcome::Put { version: 1 }),
            answered(2, 4, 12, put("b", "2"), RecordedOutcome::Put { version: 1 }),
        ];
        assert_eq!(check(&history(calls))[0].invariant, UNIQUE);
    }

    #[test]
    fn log_time_that_runs_back_is_found() {
        let mut late = answered(2, 4, 13, put("b", "2"), RecordedOutcome::Put { version: 1 });
        if let End::Answered(place, _) = &mut late.end {
            place.position.log_time_ms = 5;
        }
        let calls = [answered(1, 4, 12, put("a", "1"), RecordedOutcome::Put { version: 1 }), late];
        assert_eq!(check(&history(calls))[0].invariant, TIME);
    }
}
