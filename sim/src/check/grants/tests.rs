//! Logs that break a rule.

use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::{CallName, CancelAcquire, Done, Refusal};
use trefoil_proto::lock::v1::{self as api, ReleaseRequest};

use super::*;

const NAMESPACE: &str = "n";

/// A log of one lock: commands at times, one in each entry, and what came of them.
#[derive(Default)]
struct Log {
    grants: GrantChecker,
    found: Vec<Violation>,
}

fn named(id: (u64, u32)) -> Option<CallName> {
    Some(CallName { request_id: Some(request_id(id)), ..CallName::default() })
}

fn request_id(id: (u64, u32)) -> RequestId {
    let first_unacknowledged = id.0;
    RequestId { client: "c".to_owned(), sequence: id.0, first_unacknowledged, attempt: id.1 }
}

fn waiter(n: u64) -> WaiterId {
    WaiterId(n.to_be_bytes().to_vec().into())
}

fn acquired(token: u64, mode: LockMode) -> Answer {
    let (acquired, mode) = (token > 0, mode.into());
    let response =
        api::AcquireResponse { acquired, fencing_token: token, mode, ..Default::default() };
    A::Acquire(response).into()
}

fn converted(token: u64, mode: LockMode) -> Answer {
    let (converted, mode) = (token > 0, mode.into());
    let response =
        api::ConvertResponse { converted, fencing_token: token, mode, ..Default::default() };
    A::Convert(response).into()
}

fn both() -> Vec<LockWish> {
    ["l", "m"].map(|name| LockWish { name: name.to_owned(), mode: Exclusive.into() }).to_vec()
}

fn acquired_all(grants: &[(&str, u64, LockMode)]) -> Answer {
    let grants = grants.iter().map(|(name, fencing_token, mode)| LockGrant {
        name: (*name).to_owned(),
        fencing_token: *fencing_token,
        mode: (*mode).into(),
    });
    let locks = grants.collect();
    A::Acquire(api::AcquireResponse { acquired: true, locks, ..Default::default() }).into()
}

fn done() -> Outcome {
    Outcome::Answered(A::Done(Done {}).into())
}

impl Log {
    /// Sessions 1 to 3 with a TTL of 1 s and a lock delay of 500 ms.
    fn new() -> Self {
        let mut log = Self::default();
        for session_id in 1..=3 {
            let open = api::OpenSessionRequest {
                namespace: NAMESPACE.to_owned(),
                ttl_ms: 1_000,
                lock_delay_ms: 500,
                ..Default::default()
            };
            let opened = api::OpenSessionResponse { session_id, ..Default::default() };
            let opened = Outcome::Answered(A::OpenSession(opened).into());
            log.entry(0, Operation::OpenSession(open), None, opened, &[]);
        }
        log
    }

    fn entry(
        &mut self,
        now_ms: u64,
        operation: Operation,
        id: Option<(u64, u32)>,
        outcome: Outcome,
        settled: &[Settled],
    ) {
        let request_id = id.map(request_id);
        let command = Command { request_id, operation: Some(operation), ..Command::default() };
        let times = EntryTimes { now_ms, grace_until_ms: 0 };
        self.found.extend(self.grants.applied(&[command], &[outcome], settled, times, |_| true));
    }

    fn acquire(&mut self, at: u64, session: u64, mode: LockMode, id: u64, outcome: Outcome) {
        let acquire = AcquireRequest {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            name: "l".to_owned(),
            mode: mode.into(),
            ..Default::default()
        };
        self.entry(at, Operation::Acquire(acquire), Some((id, 0)), outcome, &[]);
    }

    fn granted(&mut self, at: u64, session: u64, mode: LockMode, token: u64) {
        self.acquire(at, session, mode, 100 + token, Outcome::Answered(acquired(token, mode)));
    }

    fn convert(&mut self, at: u64, session: u64, mode: LockMode, token: u64) {
        let convert = ConvertRequest {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            name: "l".to_owned(),
            mode: mode.into(),
            ..Default::default()
        };
        let outcome = Outcome::Answered(converted(token, mode));
        self.entry(at, Operation::Convert(convert), Some((100 + token, 0)), outcome, &[]);
    }

    fn release(&mut self, at: u64, session: u64, settled: &[Settled]) {
        let release = ReleaseRequest {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            name: "l".to_owned(),
            ..Default::default()
        };
        let outcome = Outcome::Answered(A::Release(api::ReleaseResponse::default()).into());
        self.entry(at, Operation::Release(release), None, outcome, settled);
    }

    fn cancel(&mut self, at: u64, session: u64, id: (u64, u32)) {
        let cancel = CancelAcquire {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            name: "l".to_owned(),
            call: named(id),
            ..Default::default()
        };
        self.entry(at, Operation::CancelAcquire(cancel), None, done(), &[]);
    }

    /// A call for locks `l` and `m`.
    fn acquire_both(&mut self, at: u64, session: u64, id: u64, outcome: Outcome) {
        let acquire = AcquireRequest {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            locks: both(),
            ..Default::default()
        };
        self.entry(at, Operation::Acquire(acquire), Some((id, 0)), outcome, &[]);
    }

    fn first(&self) -> Option<&'static str> {
        self.found.first().map(|violation| violation.invariant)
    }
}

fn settled(n: u64, id: u64, answer: Answer) -> Settled {
    Settled { waiter: waiter(n), request_id: Some(request_id((id, 0))), answer }
}

use LockMode::{Exclusive, Shared, Update};

#[test]
fn a_good_log_passes() {
    let mut log = Log::new();
    log.granted(10, 1, Shared, 1);
    log.granted(20, 2, Update, 2);
    log.acquire(30, 3, Exclusive, 7, Outcome::Waiting(waiter(1)));
    log.release(40, 1, &[]);
    log.convert(50, 2, Exclusive, 3);
    log.release(60, 2, &[settled(1, 7, acquired(4, Exclusive))]);
    log.release(70, 3, &[]);
    assert_eq!(log.found, []);
}

#[test]
fn holders_that_conflict_are_found() {
    let mut log = Log::new();
    log.granted(10, 1, Update, 1);
    log.granted(20, 2, Update, 2);
    assert_eq!(log.first(), Some(CONFLICT));
}

#[test]
fn a_conversion_that_lets_go_is_found() {
    let mut log = Log::new();
    log.granted(10, 1, Shared, 1);
    log.acquire(20, 2, Exclusive, 7, Outcome::Waiting(waiter(1)));
    log.found.extend(log.grants.applied(
        &[],
        &[],
        &[settled(1, 7, acquired(2, Exclusive))],
        EntryTimes { now_ms: 30, grace_until_ms: 0 },
        |_| true,
    ));
    assert_eq!(log.first(), Some(CONFLICT));
    let mut log = Log::new();
    log.convert(10, 1, Shared, 1);
    assert_eq!(log.first(), Some(GAP));
}

#[test]
fn a_grant_within_a_lock_delay_is_found() {
    for (mode, wanted, at, expected) in [
        (Exclusive, Shared, 1_400, Some(DELAYED)),
        (Exclusive, Shared, 1_600, None),
        (Shared, Exclusive, 1_400, Some(DELAYED)),
        (Shared, Update, 1_400, None),
        (Exclusive, Shared, 900, Some(CONFLICT)),
    ] {
        let mut log = Log::new();
        log.granted(10, 1, mode, 1);
        let keep = api::KeepAliveRequest { namespace: NAMESPACE.to_owned(), session_id: 2 };
        let kept = Outcome::Answered(A::KeepAlive(api::KeepAliveResponse::default()).into());
        log.entry(800, Operation::KeepAlive(keep.clone()), None, kept.clone(), &[]);
        log.entry(1_000.min(at), Operation::KeepAlive(keep), None, kept, &[]);
        log.granted(at, 2, wanted, 2);
        assert_eq!(log.first(), expected, "{mode:?}, {wanted:?} at {at}");
    }
}

#[test]
fn an_overtaken_waiter_is_found() {
    let mut log = Log::new();
    log.granted(10, 1, Shared, 1);
    log.acquire(20, 2, Exclusive, 7, Outcome::Waiting(waiter(1)));
    log.granted(30, 3, Shared, 2);
    assert_eq!(log.first(), Some(FIFO));
    // Who converts goes first, and whoever gave up is not overtaken.
    let mut log = Log::new();
    log.granted(10, 1, Update, 1);
    log.acquire(20, 2, Exclusive, 7, Outcome::Waiting(waiter(1)));
    log.convert(30, 1, Exclusive, 2);
    log.convert(40, 1, Shared, 3);
    log.cancel(50, 2, (7, 0));
    log.granted(60, 3, Shared, 4);
    assert_eq!(log.found, []);
}

#[test]
fn a_grant_in_a_weaker_mode_is_found() {
    let mut log = Log::new();
    log.granted(10, 1, Exclusive, 1);
    log.acquire(20, 2, Exclusive, 7, Outcome::Waiting(waiter(1)));
    log.release(40, 1, &[settled(1, 7, acquired(2, Shared))]);
    assert_eq!(log.first(), Some(MODE));
}

#[test]
fn a_grant_after_its_cancel_is_found() {
    let mut log = Log::new();
    log.granted(10, 1, Exclusive, 1);
    log.acquire(20, 2, Exclusive, 7, Outcome::Waiting(waiter(1)));
    log.cancel(30, 2, (7, 0));
    log.release(40, 1, &[settled(1, 7, acquired(2, Exclusive))]);
    assert_eq!(log.first(), Some(CANCELLED));
}

#[test]
fn a_grant_that_a_cancel_leaves_is_found() {
    let mut log = Log::new();
    log.acquire(10, 1, Exclusive, 7, Outcome::Answered(acquired(1, Exclusive)));
    log.cancel(20, 1, (7, 0));
    assert!(log.grants.described(NAMESPACE, "l", &[(1, 1)]).is_some());
    // The session is told that it has it still.
    log.granted(30, 1, Exclusive, 1);
    assert_eq!(log.first(), Some(RISE));
}

#[test]
fn a_cancel_that_comes_late_takes_nothing() {
    let mut log = Log::new();
    log.acquire(10, 1, Exclusive, 7, Outcome::Answered(acquired(1, Exclusive)));
    log.acquire(20, 1, Shared, 8, Outcome::Answered(acquired(1, Exclusive)));
    log.cancel(30, 1, (7, 0));
    log.granted(40, 2, Exclusive, 2);
    assert_eq!(log.first(), Some(CONFLICT));
    // Nor does that of an attempt that was made again, and answered as before.
    let mut log = Log::new();
    log.acquire(10, 1, Exclusive, 7, Outcome::Answered(acquired(1, Exclusive)));
    let again = AcquireRequest { namespace: NAMESPACE.to_owned(), ..Default::default() };
    let answer = Outcome::Answered(acquired(1, Exclusive));
    log.entry(20, Operation::Acquire(again), Some((7, 1)), answer, &[]);
    log.cancel(30, 1, (7, 0));
    assert_eq!(log.grants.described(NAMESPACE, "l", &[(1, 1)]), None);
}

#[test]
fn several_locks_are_judged_together() {
    let all = acquired_all(&[("l", 3, Exclusive), ("m", 4, Exclusive)]);
    let waits = || {
        let mut log = Log::new();
        log.granted(10, 1, Exclusive, 1);
        log.acquire_both(20, 2, 7, Outcome::Waiting(waiter(1)));
        log
    };
    let mut log = waits();
    log.release(40, 1, &[settled(1, 7, all.clone())]);
    assert_eq!(log.found, []);
    assert_eq!(log.grants.described(NAMESPACE, "m", &[(2, 4)]), None);
    // What is held counts, with the token that it has.
    let mut log = Log::new();
    log.granted(10, 2, Exclusive, 3);
    log.acquire_both(20, 2, 7, Outcome::Answered(all.clone()));
    assert_eq!(log.found, []);
    // One of two, or one of them in an earlier entry.
    let mut log = waits();
    log.release(40, 1, &[settled(1, 7, acquired_all(&[("l", 3, Exclusive)]))]);
    assert_eq!(log.first(), Some(MODE));
    let mut log = waits();
    let other = AcquireRequest {
        namespace: NAMESPACE.to_owned(),
        session_id: 3,
        name: "o".to_owned(),
        ..Default::default()
    };
    let outcome = Outcome::Answered(acquired(5, Exclusive));
    log.entry(30, Operation::Acquire(other), Some((8, 0)), outcome, &[]);
    let parts = acquired_all(&[("l", 6, Exclusive), ("m", 4, Exclusive)]);
    log.release(40, 1, &[settled(1, 7, parts)]);
    assert_eq!(log.first(), Some(TOGETHER));
}

#[test]
fn who_waits_for_several_locks_stands_in_each_order() {
    let mut log = Log::new();
    let of_m = |log: &mut Log, at, session, id: u64, outcome| {
        let acquire = AcquireRequest {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            name: "m".to_owned(),
            ..Default::default()
        };
        log.entry(at, Operation::Acquire(acquire), Some((id, 0)), outcome, &[]);
    };
    log.granted(10, 1, Exclusive, 1);
    log.acquire_both(20, 2, 7, Outcome::Waiting(waiter(1)));
    of_m(&mut log, 30, 3, 8, Outcome::Answered(acquired(2, Exclusive)));
    assert_eq!(log.first(), Some(FIFO));
    // A cancel takes it out of all of them.
    let mut log = Log::new();
    log.granted(10, 1, Exclusive, 1);
    log.acquire_both(20, 2, 7, Outcome::Waiting(waiter(1)));
    let cancel = CancelAcquire {
        namespace: NAMESPACE.to_owned(),
        session_id: 2,
        call: named((7, 0)),
        locks: both(),
        ..Default::default()
    };
    log.entry(30, Operation::CancelAcquire(cancel.clone()), None, done(), &[]);
    of_m(&mut log, 40, 3, 8, Outcome::Answered(acquired(2, Exclusive)));
    assert_eq!(log.found, []);
    // Of a grant it leaves none.
    let mut log = Log::new();
    let all = acquired_all(&[("l", 1, Exclusive), ("m", 2, Exclusive)]);
    log.acquire_both(10, 2, 7, Outcome::Answered(all));
    log.entry(20, Operation::CancelAcquire(cancel), None, done(), &[]);
    assert_eq!(log.grants.described(NAMESPACE, "l", &[]), None);
    assert!(log.grants.described(NAMESPACE, "m", &[(2, 2)]).is_some());
}

#[test]
fn a_session_that_ends_early_is_found() {
    let mut log = Log::new();
    let keep = api::KeepAliveRequest { namespace: NAMESPACE.to_owned(), session_id: 1 };
    let refusal = Refusal { reason: Reason::SessionExpired.into(), ..Default::default() };
    let refused = Outcome::Answered(refusal.into());
    log.entry(1_000, Operation::KeepAlive(keep.clone()), None, refused.clone(), &[]);
    assert_eq!(log.found, []);
    let mut log = Log::new();
    log.entry(999, Operation::KeepAlive(keep), None, refused, &[]);
    assert_eq!(log.first(), Some(EARLY));
}

#[test]
fn a_read_of_another_state_is_found() {
    let mut log = Log::new();
    log.granted(10, 1, Exclusive, 1);
    let grants = &log.grants;
    assert_eq!(grants.described(NAMESPACE, "l", &[(1, 1)]), None);
    assert!(grants.described(NAMESPACE, "l", &[]).is_some());
    assert!(grants.described(NAMESPACE, "l", &[(1, 1), (2, 2)]).is_some());
    assert_eq!(grants.validated(NAMESPACE, "l", 1, Some(1)), None);
    assert!(grants.validated(NAMESPACE, "l", 1, None).is_some());
    assert!(grants.validated(NAMESPACE, "l", 2, Some(1)).is_some());
}

#[test]
fn a_cancel_that_does_nothing_need_not_have_met_a_grant() {
    // In one entry: session 2 takes back an older call or an earlier attempt, session 1 its lock, and so a wait ends.
    for of_session_2 in [(90, 0), (102, 0)] {
        let mut log = Log::new();
        log.acquire(10, 1, Exclusive, 101, Outcome::Answered(acquired(1, Exclusive)));
        log.acquire(20, 2, Shared, 102, Outcome::Waiting(waiter(1)));
        log.grants.attempts.insert(("c".to_owned(), 102), 1);
        let cancel = |session_id, id| {
            let (namespace, name) = (NAMESPACE.to_owned(), "l".to_owned());
            let cancel = CancelAcquire {
                namespace,
                session_id,
                name,
                call: named(id),
                ..CancelAcquire::default()
            };
            let operation = Some(Operation::CancelAcquire(cancel));
            Command { operation, ..Command::default() }
        };
        let commands = [cancel(2, of_session_2), cancel(1, (101, u32::MAX))];
        let settled = [settled(1, 102, acquired(2, Shared))];
        let times = EntryTimes { now_ms: 30, grace_until_ms: 0 };
        let found = log.grants.applied(&commands, &[done(), done()], &settled, times, |_| true);
        assert_eq!(found, []);
    }
}

fn one_of_both(session_id: u64, name: &str) -> Operation {
    let namespace = NAMESPACE.to_owned();
    let mode = Exclusive.into();
    let name = name.to_owned();
    Operation::Acquire(AcquireRequest { namespace, session_id, name, mode, ..Default::default() })
}

/// Session 1 holds "l" and waits for "m", which session 2 holds.
fn half_a_circle() -> Log {
    let mut log = Log::new();
    let got = |token| Outcome::Answered(acquired(token, Exclusive));
    log.entry(10, one_of_both(1, "l"), Some((1, 0)), got(1), &[]);
    log.entry(20, one_of_both(2, "m"), Some((2, 0)), got(2), &[]);
    log.entry(30, one_of_both(1, "m"), Some((3, 0)), Outcome::Waiting(waiter(3)), &[]);
    assert_eq!(log.first(), None);
    log
}

/// A refusal that tells of edges: who waits for which lock, and for whom.
fn deadlock(edges: &[(u64, &str, u64)]) -> Outcome {
    let mut metadata = BTreeMap::from([("length".to_owned(), edges.len().to_string())]);
    for (n, (from, lock, to)) in edges.iter().enumerate() {
        let mode = "EXCLUSIVE".to_owned();
        let facts = [("session_id", from.to_string()), ("waits_for", to.to_string())];
        let facts = facts.into_iter().chain([("lock", (*lock).to_owned()), ("mode", mode)]);
        metadata.extend(facts.map(|(fact, value)| (format!("edge_{n}_{fact}"), value)));
    }
    let mut refusal = Refusal { metadata, ..Refusal::default() };
    refusal.set_reason(Reason::Deadlock);
    Outcome::Answered(A::Refusal(refusal).into())
}

#[test]
fn a_circle_that_goes_on_waiting_is_found() {
    let mut log = half_a_circle();
    log.entry(40, one_of_both(3, "l"), Some((4, 0)), Outcome::Waiting(waiter(4)), &[]);
    assert_eq!(log.first(), None, "session 3 holds nothing");
    log.entry(50, one_of_both(2, "l"), Some((5, 0)), Outcome::Waiting(waiter(5)), &[]);
    assert_eq!(log.first(), Some(circles::LEFT));
}

#[test]
fn who_is_over_is_in_no_circle() {
    let mut log = half_a_circle();
    log.entry(1_020, one_of_both(2, "l"), Some((4, 0)), Outcome::Waiting(waiter(4)), &[]);
    assert_eq!(log.first(), None);
}

#[test]
fn a_deadlock_that_is_none_is_found() {
    let mut log = half_a_circle();
    let refused = deadlock(&[(2, "l", 1), (1, "m", 2)]);
    log.entry(40, one_of_both(2, "l"), Some((4, 0)), refused, &[]);
    assert_eq!(log.first(), None, "it would have been one");
    for (id, edges) in [
        (5, &[(2, "m", 1), (1, "m", 2)][..]),
        (6, &[(2, "l", 3), (3, "m", 2)]),
        (7, &[(2, "l", 1), (3, "m", 2)]),
        (8, &[(2, "l", 1)]),
        (9, &[]),
    ] {
        let mut log = half_a_circle();
        log.entry(40, one_of_both(2, "l"), Some((id, 0)), deadlock(edges), &[]);
        assert_eq!(log.first(), Some(circles::IMAGINED), "{edges:?}");
    }
}
