//! Histories that break a rule.

use super::super::history::build::{answered, history, open};
use super::*;

const NAMESPACE: &str = "n";

fn name() -> (String, String) {
    (NAMESPACE.to_owned(), "l".to_owned())
}

fn session(at: u64, session: u64, ttl_ms: u64) -> RecordedCall {
    let action = Action::OpenSession { namespace: NAMESPACE.to_owned(), ttl_ms, delay_ms: 0 };
    answered(at, at + 1, at, action, RecordedOutcome::SessionOpened { session })
}

fn acquiring(session: u64, mode: LockMode, delay_ms: Option<u64>) -> Action {
    let (namespace, lock) = name();
    Action::Acquire { namespace, session, lock, mode, wait_ms: 0, delay_ms }
}

fn acquire(at: u64, session: u64, token: u64) -> RecordedCall {
    acquire_as(at, session, token, LockMode::Exclusive)
}

fn acquire_as(at: u64, session: u64, token: u64, mode: LockMode) -> RecordedCall {
    let outcome = RecordedOutcome::Acquired { token, mode };
    answered(at, at + 1, at, acquiring(session, mode, None), outcome)
}

fn converting(session: u64, token: u64, mode: LockMode) -> Action {
    let (namespace, lock) = name();
    Action::Convert { namespace, session, lock, token, mode, wait_ms: 0 }
}

fn convert(at: u64, session: u64, from: u64, token: u64, mode: LockMode) -> RecordedCall {
    let outcome = RecordedOutcome::Converted { token, mode };
    answered(at, at + 1, at, converting(session, from, mode), outcome)
}

fn releasing(session: u64, token: u64) -> Action {
    let (namespace, lock) = name();
    Action::Release { namespace, session, lock, token }
}

fn release(at: u64, session: u64, token: u64) -> RecordedCall {
    answered(at, at + 1, at, releasing(session, token), RecordedOutcome::Released)
}

fn validate(at: u64, token: u64, holder: Option<u64>) -> RecordedCall {
    let (namespace, lock) = name();
    let action = Action::ValidateToken { namespace, lock, token };
    answered(at, at + 1, at, action, RecordedOutcome::Validated { holder })
}

fn first(calls: impl IntoIterator<Item = RecordedCall>) -> Option<&'static str> {
    check(&history(calls)).first().map(|violation| violation.invariant)
}

fn two_sessions() -> Vec<RecordedCall> {
    vec![session(10, 1, 1_000), session(11, 2, 1_000)]
}

fn after(
    calls: &[RecordedCall],
    more: impl IntoIterator<Item = RecordedCall>,
) -> Option<&'static str> {
    first(calls.iter().cloned().chain(more))
}

#[test]
fn handing_over_passes() {
    let calls = [
        session(10, 1, 1_000),
        session(11, 2, 1_000),
        acquire(20, 1, 1),
        release(30, 1, 1),
        acquire(40, 2, 2),
        acquire(1_100, 1, 3),
    ];
    assert_eq!(first(calls), None);
    let calls =
        [session(10, 1, 1_000), acquire(20, 1, 1), open(25, releasing(1, 1)), acquire(40, 2, 2)];
    assert_eq!(first(calls), None);
}

#[test]
fn two_holders_are_found() {
    assert_eq!(
        first([session(10, 1, 1_000), acquire(20, 1, 1), acquire(40, 2, 2)]),
        Some(CONFLICT)
    );
    let late = [session(10, 1, 1_000), acquire(20, 1, 1), acquire(40, 2, 2), release(50, 1, 1)];
    assert_eq!(first(late), Some(CONFLICT));
}

#[test]
fn a_release_by_another_session_is_found() {
    let calls = [session(10, 1, 1_000), acquire(20, 1, 1)];
    assert_eq!(first(calls.clone().into_iter().chain([release(30, 2, 1)])), Some(HOLDER));
    assert_eq!(first(calls.into_iter().chain([release(30, 1, 7)])), Some(HOLDER));
}

#[test]
fn an_early_expiry_is_found() {
    let renewal = Action::KeepAlive { namespace: NAMESPACE.to_owned(), session: 1 };
    let renewal =
        answered(900, 901, 900, renewal, RecordedOutcome::Renewed { remaining_ms: 1_000 });
    let calls = [session(10, 1, 1_000), acquire(20, 1, 1), renewal];
    assert_eq!(first(calls.clone().into_iter().chain([acquire(1_500, 2, 2)])), Some(CONFLICT));
    assert_eq!(first(calls.into_iter().chain([acquire(1_900, 2, 2)])), None);
}

#[test]
fn tokens_that_fall_or_repeat_are_found() {
    let falls = [acquire(20, 1, 2), release(30, 1, 2), acquire(40, 2, 1), release(50, 2, 1)];
    assert_eq!(first(falls), Some(RISE));
    assert_eq!(first([acquire(20, 1, 1), release(30, 1, 1), acquire(40, 2, 1)]), Some(ONE));
    assert_eq!(first([acquire(20, 1, 0)]), Some(RISE));
}

#[test]
fn a_grant_to_a_closed_session_is_found() {
    let close = Action::CloseSession { namespace: NAMESPACE.to_owned(), session: 1 };
    let close = answered(30, 31, 30, close, RecordedOutcome::SessionClosed);
    assert_eq!(first([session(10, 1, 1_000), close, acquire(40, 1, 1)]), Some(DEAD));
}

#[test]
fn modes_that_go_together_pass_and_others_are_found() {
    use LockMode::{Exclusive, Shared, Update};
    for (held, wanted, fits) in [
        (Shared, Shared, true),
        (Shared, Update, true),
        (Update, Shared, true),
        (Update, Update, false),
        (Shared, Exclusive, false),
        (Exclusive, Shared, false),
    ] {
        let calls = [acquire_as(20, 1, 1, held), acquire_as(30, 2, 2, wanted)];
        let expected = if fits { None } else { Some(CONFLICT) };
        assert_eq!(after(&two_sessions(), calls), expected, "{held:?} and {wanted:?}");
    }
}

#[test]
fn a_conversion_that_lets_another_in_is_found() {
    let mut calls = two_sessions();
    calls.extend([
        acquire_as(20, 1, 1, LockMode::Update),
        convert(30, 1, 1, 2, LockMode::Exclusive),
    ]);
    let shared = |at, token| acquire_as(at, 2, token, LockMode::Shared);
    assert_eq!(after(&calls, [shared(40, 3)]), Some(CONFLICT));
    let down = convert(40, 1, 2, 3, LockMode::Shared);
    assert_eq!(after(&calls, [down, shared(50, 4)]), None);
    assert_eq!(after(&calls, [open(35, converting(1, 2, LockMode::Shared)), shared(40, 3)]), None);
}

#[test]
fn a_grant_within_a_lock_delay_is_found() {
    let mut calls = two_sessions();
    let outcome = RecordedOutcome::Acquired { token: 1, mode: LockMode::Exclusive };
    let delayed = acquiring(1, LockMode::Exclusive, Some(500));
    calls.push(answered(20, 21, 20, delayed, outcome));
    assert_eq!(after(&calls, [acquire(1_400, 2, 2)]), Some(CONFLICT));
    assert_eq!(after(&calls, [acquire(1_510, 2, 2)]), None);
}

#[test]
fn all_that_may_end_a_grant_passes() {
    let (namespace, lock) = name();
    let all = Action::ReleaseAll { namespace: namespace.clone(), session: 1 };
    let forced = Action::ForceRelease { namespace: namespace.clone(), lock, token: 0 };
    let ends = [
        answered(30, 31, 30, all, RecordedOutcome::ReleasedAll { released: 1 }),
        answered(30, 31, 30, forced, RecordedOutcome::Forced { released: 1, token: 2 }),
    ];
    for end in ends {
        let calls = [acquire(20, 1, 1), end.clone(), acquire(40, 2, 3)];
        assert_eq!(after(&two_sessions(), calls), None);
        let early = [end, acquire(32, 1, 3), acquire(40, 2, 4)];
        assert_eq!(after(&two_sessions(), early), Some(CONFLICT));
    }
}

#[test]
fn several_locks_that_are_not_all_granted_are_found() {
    use LockMode::{Exclusive, Shared};
    let (namespace, lock) = name();
    let locks = vec![(lock, Shared), ("m".to_owned(), Exclusive)];
    let action = |session| {
        let (namespace, locks) = (namespace.clone(), locks.clone());
        Action::AcquireAll { namespace, session, locks, wait_ms: 0, delay_ms: None }
    };
    let told = |at, session, grants: &[(&str, u64, LockMode)]| {
        let grants = grants.iter().map(|(lock, token, mode)| ((*lock).to_owned(), *token, *mode));
        let outcome = RecordedOutcome::AcquiredAll { grants: grants.collect() };
        answered(at, at + 1, at, action(session), outcome)
    };
    let both = told(20, 1, &[("l", 1, Shared), ("m", 2, Exclusive)]);
    assert_eq!(after(&two_sessions(), [both.clone()]), None);
    for wrong in [
        &[("l", 1, Shared)][..],
        &[("m", 1, Exclusive), ("l", 2, Shared)],
        &[("l", 1, Shared), ("m", 2, Shared)],
    ] {
        assert_eq!(after(&two_sessions(), [told(20, 1, wrong)]), Some(ALL), "{wrong:?}");
    }
    // Each of them is a grant like any other.
    assert_eq!(after(&two_sessions(), [both.clone(), acquire(30, 2, 3)]), Some(CONFLICT));
    let shared = acquire_as(30, 2, 3, Shared);
    assert_eq!(after(&two_sessions(), [both, shared, release(40, 1, 1)]), None);
    let unseen = open(15, action(1));
    assert_eq!(after(&two_sessions(), [unseen, release(40, 1, 7)]), None);
}

#[test]
fn a_read_that_says_otherwise_is_found() {
    let mut calls = two_sessions();
    calls.extend([acquire(20, 1, 1), release(30, 1, 1)]);
    assert_eq!(after(&calls, [validate(25, 1, Some(1)), validate(35, 1, None)]), None);
    assert_eq!(after(&calls, [validate(15, 1, Some(1))]), Some(READ));
    assert_eq!(after(&calls, [validate(35, 1, Some(1))]), Some(READ));
    assert_eq!(after(&calls, [validate(25, 1, Some(2))]), Some(READ));
    assert_eq!(after(&calls, [validate(25, 1, None)]), Some(READ));
    let (namespace, lock) = name();
    let action = Action::DescribeLock { namespace, lock };
    let none = answered(25, 26, 25, action, RecordedOutcome::Described { holders: Vec::new() });
    assert_eq!(after(&calls, [none]), Some(READ));
}
