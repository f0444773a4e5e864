//! Locks: tokens rise, and a lock passes on only when its holder may have let it go or its session may have ended.

use std::collections::BTreeMap;

use super::Violation;
use super::history::{Action, Call, History, Outcome, Place};

const RISE: &str = "fencing tokens of a lock rise with its grants";
const ONE: &str = "a grant belongs to one session";
const EXCLUSIVE: &str = "a lock has one holder at each index";
const HOLDER: &str = "only the session that holds a lock releases it";
const DEAD: &str = "a closed session acquires nothing";

/// (namespace, lock).
type Name<'a> = (&'a str, &'a str);

#[derive(Clone, Copy)]
struct Grant<'a> {
    call: &'a Call,
    place: &'a Place,
    session: u64,
    token: u64,
}

/// Life that an answer promised to a session: until this log time, told at this index.
struct Promise {
    index: u64,
    until_ms: u64,
}

/// Checks every lock of the history.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut grants = BTreeMap::<Name<'_>, Vec<Grant<'_>>>::new();
    for (call, place, outcome) in history.answered() {
        if let (Action::Acquire { namespace, session, lock, .. }, Outcome::Acquired { token }) =
            (&call.action, outcome)
        {
            let grant = Grant { call, place, session: *session, token: *token };
            grants.entry((namespace, lock)).or_default().push(grant);
        }
    }
    let promises = promises(history);
    let mut found = Vec::new();
    for (name, grants) in &mut grants {
        grants.sort_by_key(|grant| (grant.token, grant.call.ended_at));
        rising(grants, &mut found);
        for pair in grants.windows(2) {
            let [holder, next] = pair else { continue };
            if holder.token == next.token {
                if holder.session != next.session {
                    found.push(Violation::new(
                        ONE,
                        format!("{:?} and {:?}", holder.call, next.call),
                    ));
                }
                continue;
            }
            let promised = promises.get(&(name.0, holder.session)).map_or(&[][..], Vec::as_slice);
            if !may_have_ended(history, *name, holder, next, promised) {
                found.push(Violation::new(
                    EXCLUSIVE,
                    format!("{:?} while held by {:?}", next.call, holder.call),
                ));
            }
        }
        dead(history, *name, grants, &mut found);
    }
    released(history, &grants, &mut found);
    found
}

fn promises(history: &History) -> BTreeMap<(&str, u64), Vec<Promise>> {
    let mut promises = BTreeMap::<_, Vec<_>>::new();
    for (call, place, outcome) in history.answered() {
        let (namespace, session, life_ms) = match (&call.action, outcome) {
            (Action::OpenSession { namespace, ttl_ms }, Outcome::SessionOpened { session })
                if place.exact =>
            {
                (namespace, *session, *ttl_ms)
            }
            (Action::KeepAlive { namespace, session }, Outcome::Renewed { remaining_ms })
                if place.exact =>
            {
                (namespace, *session, *remaining_ms)
            }
            _ => continue,
        };
        let until_ms = place.position.log_time_ms.saturating_add(life_ms);
        let promise = Promise { index: place.position.index, until_ms };
        promises.entry((namespace.as_str(), session)).or_default().push(promise);
    }
    promises
}

/// `grants` of one lock by token.
fn rising(grants: &[Grant<'_>], found: &mut Vec<Violation>) {
    for pair in grants.windows(2) {
        let [first, second] = pair else { continue };
        // The effect of a retry may stand before its position, never behind it.
        let turned = first.place.exact && second.place.position.index < first.place.position.index;
        let early = second.call.ended_at < first.call.called_at;
        if first.token != second.token && (turned || early) {
            found.push(Violation::new(RISE, format!("{:?} and {:?}", first.call, second.call)));
        }
    }
    if let Some(grant) = grants.iter().find(|grant| grant.token == 0) {
        found.push(Violation::new(RISE, format!("{:?} has none", grant.call)));
    }
}

fn may_have_ended(
    history: &History,
    name: Name<'_>,
    holder: &Grant<'_>,
    next: &Grant<'_>,
    promised: &[Promise],
) -> bool {
    let let_go = history.calls.iter().any(|call| {
        let fits = match &call.action {
            Action::Release { namespace, session, lock, token } => {
                (namespace.as_str(), lock.as_str()) == name
                    && *session == holder.session
                    && (*token == 0 || *token == holder.token)
            }
            Action::CloseSession { namespace, session } => {
                namespace == name.0 && *session == holder.session
            }
            _ => false,
        };
        fits && call.called_at <= next.call.ended_at && took_effect_by(call, next)
    });
    let until = promised.iter().filter(|promise| promise.index <= next.place.position.index);
    let until_ms = until.map(|promise| promise.until_ms).max().unwrap_or(0);
    let_go || next.place.position.log_time_ms >= until_ms
}

fn took_effect_by(call: &Call, next: &Grant<'_>) -> bool {
    match call.answered() {
        Some((_, Outcome::Refused(_))) => false,
        Some((place, _)) => !place.exact || place.position.index <= next.place.position.index,
        None => call.is_open(),
    }
}

/// A release tells the token of a grant that its session had.
fn released(
    history: &History,
    grants: &BTreeMap<Name<'_>, Vec<Grant<'_>>>,
    found: &mut Vec<Violation>,
) {
    for (call, _, outcome) in history.answered() {
        let Action::Release { namespace, session, lock, token } = &call.action else { continue };
        let own =
            |grant: &Grant<'_>| grant.session == *session && (*token == 0 || grant.token == *token);
        let granted = grants
            .get(&(namespace.as_str(), lock.as_str()))
            .is_some_and(|grants| grants.iter().any(own));
        // A grant that nobody was told of.
        let unseen = history.calls.iter().any(|call| {
            call.is_open()
                && matches!(&call.action, Action::Acquire { session: other, lock: name, .. }
                    if other == session && name == lock)
        });
        if *outcome == Outcome::Released && !granted && !unseen {
            found.push(Violation::new(HOLDER, format!("{call:?}")));
        }
    }
}

fn dead(history: &History, name: Name<'_>, grants: &[Grant<'_>], found: &mut Vec<Violation>) {
    for (call, place, outcome) in history.answered() {
        let Action::CloseSession { namespace, session } = &call.action else { continue };
        if namespace != name.0 || *outcome != Outcome::SessionClosed {
            continue;
        }
        let later = |grant: &&Grant<'_>| {
            grant.place.exact && grant.place.position.index > place.position.index
        };
        if let Some(grant) = grants.iter().filter(|grant| grant.session == *session).find(later) {
            found.push(Violation::new(DEAD, format!("{:?} after {call:?}", grant.call)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::build::{answered, history, open};
    use super::*;

    const NAMESPACE: &str = "n";

    fn session(at: u64, session: u64, ttl_ms: u64) -> Call {
        let action = Action::OpenSession { namespace: NAMESPACE.to_owned(), ttl_ms };
        answered(at, at + 1, at, action, Outcome::SessionOpened { session })
    }

    fn acquire(at: u64, session: u64, token: u64) -> Call {
        let action = Action::Acquire {
            namespace: NAMESPACE.to_owned(),
            session,
            lock: "l".to_owned(),
            wait_ms: 0,
        };
        answered(at, at + 1, at, action, Outcome::Acquired { token })
    }

    fn releasing(session: u64, token: u64) -> Action {
        Action::Release { namespace: NAMESPACE.to_owned(), session, lock: "l".to_owned(), token }
    }

    fn release(at: u64, session: u64, token: u64) -> Call {
        answered(at, at + 1, at, releasing(session, token), Outcome::Released)
    }

    fn first(calls: impl IntoIterator<Item = Call>) -> Option<&'static str> {
        check(&history(calls)).first().map(|violation| violation.invariant)
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
        let calls = [
            session(10, 1, 1_000),
            acquire(20, 1, 1),
            open(25, releasing(1, 1)),
            acquire(40, 2, 2),
        ];
        assert_eq!(first(calls), None);
    }

    #[test]
    fn two_holders_are_found() {
        assert_eq!(
            first([session(10, 1, 1_000), acquire(20, 1, 1), acquire(40, 2, 2)]),
            Some(EXCLUSIVE)
        );
        let late = [session(10, 1, 1_000), acquire(20, 1, 1), acquire(40, 2, 2), release(50, 1, 1)];
        assert_eq!(first(late), Some(EXCLUSIVE));
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
        let renewal = answered(900, 901, 900, renewal, Outcome::Renewed { remaining_ms: 1_000 });
        let calls = [session(10, 1, 1_000), acquire(20, 1, 1), renewal];
        assert_eq!(first(calls.clone().into_iter().chain([acquire(1_500, 2, 2)])), Some(EXCLUSIVE));
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
        let close = answered(30, 31, 30, close, Outcome::SessionClosed);
        assert_eq!(first([session(10, 1, 1_000), close, acquire(40, 1, 1)]), Some(DEAD));
    }
}
