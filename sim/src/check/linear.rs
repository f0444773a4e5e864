//! The cache by search: is there an order of the calls of each key that fits their times and a register?
//!
//! Trusts neither positions nor versions. A search that does not end within its bound is a violation, not a pass.
//!
//! Source: G. Lowe, Testing for Linearizability (2017), after J. Wing and C. Gong (1993); keys are searched apart
//! because linearizability is local (M. Herlihy and J. Wing, 1990).

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Action, History, OPEN, RecordedCall, RecordedOutcome};
use super::{Clocks, Violation};

/// Steps of the search for one key after which it gives up.
pub const STEPS_MAX: u64 = 2_000_000;

/// Steps shown with one that fits nowhere.
const SHOWN_MAX: usize = 12;

const INVARIANT: &str = "the cache is linearizable";

/// What a call does to a register, and what it told.
#[derive(Clone, Copy, Debug)]
enum RegisterAction<'a> {
    /// The value is gone at the earliest at this time; none keeps it.
    Put {
        value: &'a str,
        gone_from: Option<u64>,
    },
    Delete {
        deleted: Option<bool>,
    },
    Get {
        value: Option<&'a str>,
    },
}

#[derive(Clone, Copy, Debug)]
struct RegisterCall<'a> {
    called_at: u64,
    ended_at: u64,
    kind: RegisterAction<'a>,
}

/// The value, and when it may be gone.
type RegisterValue<'a> = Option<(&'a str, Option<u64>)>;

impl<'a> RegisterCall<'a> {
    /// The call as the search sees it; none when it changed nothing and told nothing.
    fn new(call: &'a RecordedCall, clocks: Clocks) -> Option<Self> {
        let outcome = call.answered().map(|(_, outcome)| outcome);
        if matches!(outcome, Some(RecordedOutcome::Refused(_)))
            || (outcome.is_none() && !call.is_open())
        {
            return None;
        }
        let kind = match (&call.action, outcome) {
            (Action::Put { value, ttl_ms, .. }, _) => {
                let life_us = clocks.at_least(ttl_ms.saturating_mul(1_000));
                let gone_from = (*ttl_ms > 0).then(|| call.called_at.saturating_add(life_us));
                RegisterAction::Put { value, gone_from }
            }
            (Action::Delete { .. }, Some(RecordedOutcome::Deleted { version })) => {
                RegisterAction::Delete { deleted: Some(version.is_some()) }
            }
            (Action::Delete { .. }, _) => RegisterAction::Delete { deleted: None },
            (Action::Get { .. }, Some(RecordedOutcome::Got { value })) => {
                RegisterAction::Get { value: value.as_ref().map(|(value, _)| value.as_str()) }
            }
            _ => return None,
        };
        Some(Self { called_at: call.called_at, ended_at: call.ended_at, kind })
    }

    /// The state after this step, or none when the step does not fit the state.
    fn apply(&self, state: RegisterValue<'a>) -> Option<RegisterValue<'a>> {
        let may_be_gone =
            state.is_some_and(|(_, gone)| gone.is_some_and(|gone| self.ended_at >= gone));
        match self.kind {
            RegisterAction::Put { value, gone_from } => Some(Some((value, gone_from))),
            RegisterAction::Delete { deleted: Some(true) } if state.is_none() => None,
            RegisterAction::Delete { deleted: Some(false) } if state.is_some() && !may_be_gone => {
                None
            }
            RegisterAction::Delete { .. } => Some(None),
            RegisterAction::Get { value: Some(value) } => {
                state.is_some_and(|(held, _)| held == value).then_some(state)
            }
            RegisterAction::Get { value: None } => (state.is_none() || may_be_gone).then_some(None),
        }
    }
}

/// Searches each key.
#[must_use]
pub fn check(history: &History, steps_max: u64, clocks: Clocks) -> Vec<Violation> {
    let mut keys = BTreeMap::<&str, Vec<RegisterCall<'_>>>::new();
    for call in &history.calls {
        if let Action::Put { key, .. } | Action::Delete { key } | Action::Get { key } = &call.action
            && let Some(step) = RegisterCall::new(call, clocks)
        {
            keys.entry(key).or_default().push(step);
        }
    }
    let mut found = Vec::new();
    for (key, steps) in keys {
        let steps = without_unseen(steps);
        match search(&steps, steps_max) {
            Verdict::Linearizable => {}
            Verdict::Not(stuck) => found
                .push(Violation::new(INVARIANT, format!("key {key}: {}", around(&steps, &stuck)))),
            Verdict::Unknown => {
                let what = format!(
                    "key {key}: no verdict within {steps_max} steps of {} calls",
                    steps.len()
                );
                found.push(Violation::new(INVARIANT, what));
            }
        }
    }
    found
}

/// Leaves out writes without a known end whose value nobody saw: they can stand behind everything else. A deletion
/// tells whether there was a value, so with deletions they stay; and so do values that may have expired unseen.
fn without_unseen(steps: Vec<RegisterCall<'_>>) -> Vec<RegisterCall<'_>> {
    if steps.iter().any(|step| matches!(step.kind, RegisterAction::Delete { .. })) {
        return steps;
    }
    let seen = steps.iter().filter_map(|step| match step.kind {
        RegisterAction::Get { value } => value,
        RegisterAction::Put { .. } | RegisterAction::Delete { .. } => None,
    });
    let seen = seen.collect::<BTreeSet<_>>();
    let keep = |step: &RegisterCall<'_>| match step.kind {
        RegisterAction::Put { value, gone_from } => {
            step.ended_at != OPEN || gone_from.is_some() || seen.contains(value)
        }
        RegisterAction::Get { .. } | RegisterAction::Delete { .. } => true,
    };
    steps.into_iter().filter(keep).collect()
}

/// A step and those before it, by their ends.
fn around(steps: &[RegisterCall<'_>], stuck: &RegisterCall<'_>) -> String {
    let mut before =
        steps.iter().filter(|step| step.called_at <= stuck.ended_at).collect::<Vec<_>>();
    before.sort_by_key(|step| (step.ended_at, step.called_at));
    let shown = before.len().saturating_sub(SHOWN_MAX);
    let lines = before[shown..].iter().map(|step| {
        let end = if step.ended_at == OPEN { "?".to_owned() } else { step.ended_at.to_string() };
        format!("\n  {}..{end} {:?}", step.called_at, step.kind)
    });
    format!(
        "no order has {:?} called at {}, after{}",
        stuck.kind,
        stuck.called_at,
        lines.collect::<String>()
    )
}

enum Verdict<'a> {
    Linearizable,
    /// The first call that could not be placed on the longest path.
    Not(RegisterCall<'a>),
    Unknown,
}

/// Which calls have been placed.
type PlacedCalls = Vec<u64>;

/// Depth first over the orders that fit the times; a pair of (placed calls, state) is never tried twice.
fn search<'a>(steps: &[RegisterCall<'a>], steps_max: u64) -> Verdict<'a> {
    let mut by_call = (0..steps.len()).collect::<Vec<_>>();
    by_call.sort_by_key(|n| steps[*n].called_at);
    let mut tried = BTreeSet::new();
    let mut stack: Vec<(PlacedCalls, RegisterValue<'a>)> =
        vec![(vec![0; steps.len().div_ceil(64)], None)];
    let (mut work, mut longest, mut stuck) = (0, 0, None);
    while let Some((placed, state)) = stack.pop() {
        let has = |n: usize| placed[n / 64] >> (n % 64) & 1 == 1;
        // A call may come next when no other that is not placed has ended before it began.
        let unplaced = steps.iter().enumerate().filter(|(n, _)| !has(*n));
        let Some(first_end) = unplaced.clone().map(|(_, step)| step.ended_at).min() else {
            return Verdict::Linearizable;
        };
        if first_end == OPEN {
            // Only calls without an end are left: whether they take effect is open.
            return Verdict::Linearizable;
        }
        let count = placed.iter().map(|word| word.count_ones()).sum::<u32>();
        if count >= longest {
            longest = count;
            stuck = unplaced.min_by_key(|(_, step)| step.ended_at).map(|(_, step)| *step);
        }
        let next =
            by_call.iter().take_while(|n| steps[**n].called_at <= first_end).filter(|n| !has(**n));
        // Last in, first out: the call that began first is tried first.
        for n in next.collect::<Vec<_>>().into_iter().rev() {
            work += 1;
            let Some(after) = steps[*n].apply(state) else { continue };
            let mut with = placed.clone();
            with[n / 64] |= 1 << (n % 64);
            if tried.insert((with.clone(), after)) {
                stack.push((with, after));
            }
        }
        if work > steps_max {
            return Verdict::Unknown;
        }
    }
    stuck.map_or(Verdict::Linearizable, Verdict::Not)
}

#[cfg(test)]
mod tests {
    use super::super::history::build::{answered, delete, get, got, history, missed, open, put};
    use super::*;

    fn version() -> RecordedOutcome {
        RecordedOutcome::Put { version: 0 }
    }

    fn verdict(calls: impl IntoIterator<Item = RecordedCall>) -> bool {
        check(&history(calls), STEPS_MAX, Clocks::default()).is_empty()
    }

    #[test]
    fn overlapping_writes_may_stand_in_either_order() {
        let writes = [
            answered(1, 9, 0, put("a", "1"), version()),
            answered(2, 8, 0, put("a", "2"), version()),
        ];
        for value in ["1", "2"] {
            let read = answered(10, 11, 0, get("a"), got(value, 0));
            assert!(verdict(writes.clone().into_iter().chain([read])));
        }
        let reads = [
            answered(10, 11, 0, get("a"), got("1", 0)),
            answered(12, 13, 0, get("a"), got("2", 0)),
        ];
        assert!(!verdict(writes.into_iter().chain(reads)), "a value came back");
    }

    #[test]
    fn a_stale_read_is_found() {
        let calls = [
            answered(1, 2, 0, put("a", "1"), version()),
            answered(3, 4, 0, put("a", "2"), version()),
            answered(5, 6, 0, get("a"), got("1", 0)),
        ];
        assert!(!verdict(calls));
    }

    #[test]
    fn a_lost_write_is_found() {
        assert!(!verdict([
            answered(1, 2, 0, put("a", "1"), version()),
            answered(3, 4, 0, get("a"), missed())
        ]));
    }

    #[test]
    fn an_open_write_may_take_effect_late_or_never() {
        let calls = [open(1, put("a", "1")), answered(2, 3, 0, get("a"), missed())];
        assert!(verdict(calls.clone()));
        let seen = answered(4, 5, 0, get("a"), got("1", 0));
        assert!(verdict(calls.clone().into_iter().chain([seen.clone()])));
        let gone = answered(6, 7, 0, get("a"), missed());
        assert!(!verdict(calls.into_iter().chain([seen, gone])), "it cannot be taken back");
    }

    #[test]
    fn a_deletion_tells_whether_there_was_a_value() {
        let deleted =
            |version| answered(3, 4, 0, delete("a"), RecordedOutcome::Deleted { version });
        assert!(verdict([answered(1, 2, 0, put("a", "1"), version()), deleted(Some(2))]));
        assert!(!verdict([answered(1, 2, 0, put("a", "1"), version()), deleted(None)]));
        assert!(!verdict([deleted(Some(1))]));
        assert!(verdict([open(1, put("a", "1")), deleted(Some(2))]));
    }

    #[test]
    fn an_expired_value_may_be_gone_and_never_comes_back() {
        let action = Action::Put { key: "a".to_owned(), value: "1".to_owned(), ttl_ms: 1_000 };
        let write = answered(1, 2, 0, action, version());
        let early = answered(800_000, 800_001, 0, get("a"), missed());
        assert!(!verdict([write.clone(), early]), "gone before its time");
        let miss = answered(1_500_000, 1_500_001, 0, get("a"), missed());
        assert!(verdict([write.clone(), miss.clone()]));
        let back = answered(1_600_000, 1_600_001, 0, get("a"), got("1", 0));
        assert!(!verdict([write, miss, back]));
    }

    #[test]
    fn a_value_that_expired_unseen_may_have_replaced_another() {
        let action = Action::Put { key: "a".to_owned(), value: "2".to_owned(), ttl_ms: 1 };
        let miss = answered(1_500, 1_501, 0, get("a"), missed());
        assert!(verdict([answered(1, 2, 0, put("a", "1"), version()), open(3, action), miss]));
    }

    #[test]
    fn a_search_without_a_verdict_is_a_violation() {
        let calls = (0..30).map(|n| answered(1, 100, 0, put("a", &n.to_string()), version()));
        let read = answered(101, 102, 0, get("a"), missed());
        let found = check(&history(calls.chain([read])), 1_000, Clocks::default());
        assert!(found[0].what.contains("no verdict"));
    }
}
