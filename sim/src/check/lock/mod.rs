//! Locks, by what clients were told: holders do not conflict, tokens rise, and a lock passes on only when its holder may
//! have let it go or its session, and then its lock delay, may have ended. `grants` knows the same by the log.

use std::collections::BTreeMap;

use trefoil_proto::common::v1::Reason;
use trefoil_proto::lock::v1::LockMode;

use super::Violation;
use super::history::{Action, AnswerPosition, History, RecordedCall, RecordedOutcome};

const ALL: &str = "several locks are granted all together, as they were asked for";
const RISE: &str = "fencing tokens of a lock rise with its grants";
const ONE: &str = "a grant belongs to one session";
const CONFLICT: &str = "holders of a lock do not conflict at any index";
const HOLDER: &str = "only the session that holds a lock releases it";
const DEAD: &str = "a closed session acquires nothing";
const READ: &str = "what is read of a lock agrees with the order of positions";

/// (namespace, lock).
type LockRef<'a> = (&'a str, &'a str);

/// A grant as it was told first.
#[derive(Clone, Copy)]
struct Grant<'a> {
    call: &'a RecordedCall,
    place: &'a AnswerPosition,
    session: u64,
    token: u64,
    mode: LockMode,
    /// No call that nobody heard of may have got it before.
    is_first: bool,
    /// The least lock delay that it can have.
    delay_ms: u64,
}

/// A point of the log, and when somebody had heard of it.
#[derive(Clone, Copy)]
struct At {
    index: u64,
    log_time_ms: u64,
    ended_at: u64,
}

impl At {
    fn of(call: &RecordedCall, place: &AnswerPosition) -> Self {
        let (index, log_time_ms) = (place.position.index, place.position.log_time_ms);
        Self { index, log_time_ms, ended_at: call.ended_at }
    }
}

/// Life that an answer promised to a session: until this log time, told at this index.
struct Promise {
    index: u64,
    until_ms: u64,
}

type Promises<'a> = BTreeMap<(&'a str, u64), Vec<Promise>>;

/// Whether two sessions cannot hold a lock at the same time.
#[must_use]
pub fn conflict(one: LockMode, other: LockMode) -> bool {
    use LockMode::{Exclusive, Update};
    one == Exclusive || other == Exclusive || (one, other) == (Update, Update)
}

/// Checks every lock of the history.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let grants = grants(history, &mut found);
    let promises = promises(history);
    for (name, grants) in &grants {
        rising(grants, &mut found);
        let ends = grants.iter().map(|grant| ends(history, *name, grant)).collect::<Vec<_>>();
        let held = grants.iter().zip(&ends).map(|(grant, ends)| (grant, ends.as_slice()));
        let held = held.collect::<Vec<_>>();
        conflicts(*name, &held, &promises, &mut found);
        reads(history, *name, &held, &promises, &mut found);
        dead(history, *name, grants, &mut found);
    }
    released(history, &grants, &mut found);
    found
}

/// The grants of each lock by token, each as it was told first.
fn grants<'a>(
    history: &'a History,
    found: &mut Vec<Violation>,
) -> BTreeMap<LockRef<'a>, Vec<Grant<'a>>> {
    let mut all = BTreeMap::<LockRef<'_>, BTreeMap<u64, Grant<'_>>>::new();
    for (call, place, outcome) in history.answered() {
        let told = told(call, outcome);
        let (Action::Acquire { namespace, session, .. }
        | Action::AcquireAll { namespace, session, .. }
        | Action::Convert { namespace, session, .. }) = &call.action
        else {
            continue;
        };
        let wanted = call.action.wanted();
        let fits = |(told, wanted): (&(&str, u64, LockMode), &(&str, LockMode))| {
            told.0 == wanted.0 && (told.2 >= wanted.1)
        };
        if !told.is_empty() && (told.len() != wanted.len() || !told.iter().zip(&wanted).all(fits)) {
            found.push(Violation::new(ALL, format!("{call:?}")));
        }
        let session = *session;
        for (lock, token, mode) in told {
            let name = (namespace.as_str(), lock);
            let is_first = place.exact && !is_unseen(history, name, session, call.ended_at);
            let delay_ms =
                if is_first { delay_ms(history, name.0, session, &call.action) } else { 0 };
            let grant = Grant { call, place, session, token, mode, is_first, delay_ms };
            let grants = all.entry(name).or_default();
            let Some(other) = grants.get_mut(&token) else {
                grants.insert(token, grant);
                continue;
            };
            if (other.session, other.mode) != (session, mode) {
                found.push(Violation::new(ONE, format!("{:?} and {call:?}", other.call)));
            }
            if place.position.index < other.place.position.index {
                *other = grant;
            }
        }
    }
    all.into_iter().map(|(name, grants)| (name, grants.into_values().collect())).collect()
}

/// The grants that a call was told of: lock, token and mode.
fn told<'a>(call: &'a RecordedCall, outcome: &'a RecordedOutcome) -> Vec<(&'a str, u64, LockMode)> {
    match outcome {
        RecordedOutcome::Acquired { token, mode } | RecordedOutcome::Converted { token, mode } => {
            call.action.wanted().into_iter().map(|(lock, _)| (lock, *token, *mode)).collect()
        }
        RecordedOutcome::AcquiredAll { grants } => {
            grants.iter().map(|(lock, token, mode)| (lock.as_str(), *token, *mode)).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a session may have got a lock by a call whose end was not seen, begun before this time.
fn is_unseen(history: &History, name: LockRef<'_>, session: u64, before: u64) -> bool {
    history.calls.iter().filter(|call| call.is_open() && call.called_at <= before).any(|call| {
        let (Action::Acquire { namespace, session: other, .. }
        | Action::AcquireAll { namespace, session: other, .. }
        | Action::Convert { namespace, session: other, .. }) = &call.action
        else {
            return false;
        };
        let wants = call.action.wanted().iter().any(|(lock, _)| *lock == name.1);
        (namespace.as_str(), *other) == (name.0, session) && wants
    })
}

/// The lock delay of the grant of an Acquire. That of a conversion is not known: it goes on with the one before.
fn delay_ms(history: &History, namespace: &str, session: u64, action: &Action) -> u64 {
    match action {
        Action::Acquire { delay_ms: Some(delay_ms), .. }
        | Action::AcquireAll { delay_ms: Some(delay_ms), .. } => *delay_ms,
        Action::Acquire { delay_ms: None, .. } | Action::AcquireAll { delay_ms: None, .. } => {
            history
                .answered()
                .find_map(|(call, _, outcome)| match &call.action {
                    Action::OpenSession { namespace: other, delay_ms, .. }
                        if other == namespace
                            && *outcome == RecordedOutcome::SessionOpened { session } =>
                    {
                        Some(*delay_ms)
                    }
                    _ => None,
                })
                .unwrap_or(0)
        }
        _ => 0,
    }
}

fn promises(history: &History) -> Promises<'_> {
    let mut promises = Promises::new();
    for (call, place, outcome) in history.answered() {
        let (namespace, session, life_ms) = match (&call.action, outcome) {
            (
                Action::OpenSession { namespace, ttl_ms, .. },
                RecordedOutcome::SessionOpened { session },
            ) if place.exact => (namespace, *session, *ttl_ms),
            (
                Action::KeepAlive { namespace, session },
                RecordedOutcome::Renewed { remaining_ms },
            ) if place.exact => (namespace, *session, *remaining_ms),
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
        let turned = second.place.position.index < first.place.position.index;
        let early = second.call.ended_at < first.call.called_at;
        if first.is_first && (turned || early) {
            found.push(Violation::new(RISE, format!("{:?} and {:?}", first.call, second.call)));
        }
    }
    if let Some(grant) = grants.iter().find(|grant| grant.token == 0) {
        found.push(Violation::new(RISE, format!("{:?} has none", grant.call)));
    }
}

/// Calls that may end a grant, or turn it into another one.
fn ends<'a>(history: &'a History, name: LockRef<'_>, grant: &Grant<'_>) -> Vec<&'a RecordedCall> {
    let fits = |call: &&RecordedCall| {
        let own = |namespace: &str, session: u64| namespace == name.0 && session == grant.session;
        let fits = match &call.action {
            // The token from before a conversion is good as well.
            Action::Release { namespace, session, lock, token } => {
                own(namespace, *session) && lock == name.1 && *token <= grant.token
            }
            Action::Convert { namespace, session, lock, .. } => {
                let other = match call.answered() {
                    Some((_, RecordedOutcome::Converted { token, .. })) => *token > grant.token,
                    // A retry is told that it is over by now; an earlier try may have converted.
                    Some((
                        _,
                        RecordedOutcome::Refused(Reason::SessionExpired | Reason::NotHolder),
                    )) => true,
                    other => other.is_none(),
                };
                own(namespace, *session) && lock == name.1 && other
            }
            Action::ReleaseAll { namespace, session }
            | Action::CloseSession { namespace, session } => own(namespace, *session),
            Action::ForceRelease { namespace, lock, token } => {
                (namespace.as_str(), lock.as_str()) == name
                    && (*token == 0 || *token == grant.token)
            }
            _ => false,
        };
        let before = call.answered().is_some_and(|(place, _)| {
            place.exact && grant.is_first && place.position.index < grant.place.position.index
        });
        fits && !before
    };
    history.calls.iter().filter(fits).collect()
}

fn conflicts(
    name: LockRef<'_>,
    held: &[(&Grant<'_>, &[&RecordedCall])],
    promises: &Promises<'_>,
    found: &mut Vec<Violation>,
) {
    for (n, (next, _)) in held.iter().enumerate() {
        for (holder, ends) in &held[..n] {
            let others = holder.session != next.session && conflict(holder.mode, next.mode);
            let at = At::of(next.call, next.place);
            if others && !may_have_ended(name, holder, ends, at, promises, holder.delay_ms) {
                let what = format!("{:?} while held by {:?}", next.call, holder.call);
                found.push(Violation::new(CONFLICT, what));
            }
        }
    }
}

/// Whether a grant may be over at a point of the log: let go, or expired for so long.
fn may_have_ended(
    name: LockRef<'_>,
    holder: &Grant<'_>,
    ends: &[&RecordedCall],
    at: At,
    promises: &Promises<'_>,
    delay_ms: u64,
) -> bool {
    let let_go = ends.iter().any(|call| call.called_at <= at.ended_at && took_effect_by(call, at));
    let promised = promises.get(&(name.0, holder.session)).map_or(&[][..], Vec::as_slice);
    let until = promised.iter().filter(|promise| promise.index <= at.index);
    let until_ms = until.map(|promise| promise.until_ms).max();
    let_go || until_ms.is_none_or(|until_ms| at.log_time_ms >= until_ms.saturating_add(delay_ms))
}

fn took_effect_by(call: &RecordedCall, at: At) -> bool {
    match call.answered() {
        Some((place, RecordedOutcome::Refused(_))) => !place.exact,
        Some((place, _)) => !place.exact || place.position.index <= at.index,
        None => call.is_open(),
    }
}

/// Who is said to hold a lock, and who is not.
fn reads(
    history: &History,
    name: LockRef<'_>,
    held: &[(&Grant<'_>, &[&RecordedCall])],
    promises: &Promises<'_>,
    found: &mut Vec<Violation>,
) {
    for (call, place, outcome) in history.answered() {
        let at = At::of(call, place);
        let (Action::ValidateToken { namespace, lock, .. }
        | Action::DescribeLock { namespace, lock }) = &call.action
        else {
            continue;
        };
        if (namespace.as_str(), lock.as_str()) != name {
            continue;
        }
        for (grant, ends) in held {
            let holds = match (&call.action, outcome) {
                (Action::ValidateToken { token, .. }, RecordedOutcome::Validated { holder })
                    if *token == grant.token =>
                {
                    if holder.is_some_and(|holder| holder != grant.session) {
                        let what = format!("{call:?} and {:?}", grant.call);
                        found.push(Violation::new(READ, what));
                    }
                    holder.is_some()
                }
                (_, RecordedOutcome::Described { holders }) => holders.contains(&grant.token),
                _ => continue,
            };
            let index = grant.place.position.index;
            let is_wrong = if holds {
                (grant.is_first && at.index < index) || has_ended(grant, ends, at)
            } else {
                at.index >= index && !may_have_ended(name, grant, ends, at, promises, 0)
            };
            if is_wrong {
                found.push(Violation::new(READ, format!("{call:?} after {:?}", grant.call)));
            }
        }
    }
}

/// Whether a grant is over for certain at a point of the log.
fn has_ended(grant: &Grant<'_>, ends: &[&RecordedCall], at: At) -> bool {
    ends.iter().any(|call| {
        let Some((place, outcome)) = call.answered() else { return false };
        let ended = match (&call.action, outcome) {
            (Action::Release { token, .. }, RecordedOutcome::Released) => *token == grant.token,
            (Action::ReleaseAll { .. }, RecordedOutcome::ReleasedAll { .. })
            | (Action::CloseSession { .. }, RecordedOutcome::SessionClosed)
            | (Action::ForceRelease { .. }, RecordedOutcome::Forced { .. }) => true,
            _ => false,
        };
        // It was told before the other one was called, so it had been granted.
        let after = grant.call.ended_at < call.called_at;
        ended && place.exact && after && place.position.index <= at.index
    })
}

/// A release tells the token of a grant that its session had.
fn released(
    history: &History,
    grants: &BTreeMap<LockRef<'_>, Vec<Grant<'_>>>,
    found: &mut Vec<Violation>,
) {
    for (call, _, outcome) in history.answered() {
        let Action::Release { namespace, session, lock, token } = &call.action else { continue };
        let own =
            |grant: &Grant<'_>| grant.session == *session && (*token == 0 || grant.token == *token);
        let name = (namespace.as_str(), lock.as_str());
        let granted = grants.get(&name).is_some_and(|grants| grants.iter().any(own));
        // A grant that nobody was told of.
        let unseen = is_unseen(history, name, *session, call.ended_at);
        if *outcome == RecordedOutcome::Released && !granted && !unseen {
            found.push(Violation::new(HOLDER, format!("{call:?}")));
        }
    }
}

fn dead(history: &History, name: LockRef<'_>, grants: &[Grant<'_>], found: &mut Vec<Violation>) {
    for (call, place, outcome) in history.answered() {
        let Action::CloseSession { namespace, session } = &call.action else { continue };
        if namespace != name.0 || *outcome != RecordedOutcome::SessionClosed {
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
mod tests;
