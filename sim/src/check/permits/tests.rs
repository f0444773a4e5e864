//! Good logs of a semaphore pass; each broken one is found.

use trefoil_core::machine::{Event, Settled, WaiterId};
use trefoil_proto::internal::v1::CallName;
use trefoil_proto::lock::v1 as api;

use super::*;

const NAMESPACE: &str = "n";

#[derive(Default)]
struct Log {
    permits: PermitChecker,
    entry: Applied,
    commands: Vec<Command>,
    over_since: Option<u64>,
    found: Vec<&'static str>,
}

impl Log {
    fn with(permits: u64) -> Self {
        let mut log = Self::default();
        log.set(permits);
        log.apply();
        log
    }

    fn command(&mut self, operation: Operation, id: Option<RequestId>, outcome: Outcome) {
        let operation = Some(operation);
        self.commands.push(Command { operation, request_id: id, ..Command::default() });
        self.entry.outcomes.push(outcome);
    }

    fn set(&mut self, permits: u64) {
        let (namespace, name) = (NAMESPACE.to_owned(), "s".to_owned());
        let set = api::SetPermitsRequest { namespace, name, permits, request_id: None };
        let answer = A::SetPermits(api::SetPermitsResponse::default());
        self.command(Operation::SetPermits(set), None, Outcome::Answered(answer.into()));
    }

    fn take(&mut self, session_id: u64, outcome: Outcome) {
        let namespace = NAMESPACE.to_owned();
        let take = api::AcquirePermitsRequest { namespace, session_id, ..Default::default() };
        self.command(Operation::AcquirePermits(take), Some(id(session_id)), outcome);
    }

    fn event(&mut self, kind: Kind, session_id: u64, permits: u64, fencing_token: u64) {
        let event = LockEvent {
            kind: kind.into(),
            name: "s".to_owned(),
            session_id,
            permits,
            fencing_token,
            ..LockEvent::default()
        };
        self.entry.events.push(Event { namespace: NAMESPACE.to_owned(), body: Body::Lock(event) });
    }

    /// Granted at once.
    fn granted(&mut self, session: u64, permits: u64, token: u64) {
        self.take(session, Outcome::Answered(got(permits, token)));
        self.event(Kind::Acquired, session, permits, token);
    }

    fn waits(&mut self, session: u64, permits: u64) {
        self.take(session, Outcome::Waiting(WaiterId(session.to_be_bytes().to_vec().into())));
        self.event(Kind::Waiting, session, permits, 0);
    }

    fn handed_on(&mut self, session: u64, permits: u64, token: u64) {
        self.event(Kind::Acquired, session, permits, token);
        let waiter = WaiterId(session.to_be_bytes().to_vec().into());
        let (request_id, answer) = (Some(id(session)), got(permits, token));
        self.entry.settled.push(Settled { waiter, request_id, answer });
    }

    fn cancel(&mut self, session_id: u64, permits: u64) {
        let cancel = CancelAcquire {
            namespace: NAMESPACE.to_owned(),
            session_id,
            name: "s".to_owned(),
            call: Some(CallName { request_id: Some(id(session_id)), ..CallName::default() }),
            permits,
            ..CancelAcquire::default()
        };
        let done = A::Done(trefoil_proto::internal::v1::Done {});
        self.command(Operation::CancelAcquire(cancel), None, Outcome::Answered(done.into()));
    }

    fn close(&mut self, session_id: u64) {
        let namespace = NAMESPACE.to_owned();
        let close = api::CloseSessionRequest { namespace, session_id, request_id: None };
        let answer = A::CloseSession(api::CloseSessionResponse::default());
        self.command(Operation::CloseSession(close), None, Outcome::Answered(answer.into()));
    }

    fn apply(&mut self) {
        let (commands, entry) =
            (std::mem::take(&mut self.commands), std::mem::take(&mut self.entry));
        let found = self.permits.applied(&commands, &entry, |_, _| self.over_since);
        self.found.extend(found.iter().map(|violation| violation.invariant));
    }
}

fn id(session: u64) -> RequestId {
    RequestId { client: "c".to_owned(), sequence: session, ..RequestId::default() }
}

fn got(permits: u64, fencing_token: u64) -> Answer {
    let response = api::AcquirePermitsResponse {
        acquired: true,
        permits,
        fencing_token,
        ..Default::default()
    };
    A::AcquirePermits(response).into()
}

#[test]
fn a_good_log_passes() {
    let mut log = Log::with(3);
    log.granted(1, 2, 1);
    log.waits(2, 2);
    log.waits(3, 1);
    log.apply();
    log.set(2);
    log.apply();
    log.event(Kind::Released, 1, 2, 1);
    log.handed_on(2, 2, 2);
    log.apply();
    log.event(Kind::Expired, 2, 2, 2);
    log.handed_on(3, 1, 3);
    log.apply();
    log.cancel(3, 1);
    log.event(Kind::Released, 3, 1, 3);
    log.apply();
    log.granted(4, 1, 4);
    log.close(4);
    log.event(Kind::Released, 4, 1, 4);
    log.apply();
    assert_eq!((log.found, log.permits.handed_on), (Vec::new(), 2));
}

#[test]
fn more_permits_than_there_are_are_found() {
    let mut log = Log::with(3);
    log.granted(1, 2, 1);
    log.granted(2, 2, 2);
    log.apply();
    assert_eq!(log.found, [FITS]);
}

#[test]
fn permits_that_are_not_left_after_a_change_to_fewer_are_found() {
    let mut log = Log::with(3);
    log.granted(1, 1, 1);
    log.set(1);
    log.apply();
    log.granted(2, 1, 2);
    log.apply();
    assert_eq!(log.found, [FITS]);
}

#[test]
fn who_overtakes_is_found() {
    let mut log = Log::with(3);
    log.granted(1, 2, 1);
    log.waits(2, 2);
    log.apply();
    log.granted(3, 1, 2);
    log.apply();
    assert_eq!(log.found, [FIFO]);
}

#[test]
fn tokens_that_do_not_rise_and_second_grants_are_found() {
    let mut log = Log::with(3);
    log.granted(1, 1, 2);
    log.granted(2, 1, 1);
    log.apply();
    assert_eq!(log.found, [RISE]);
    log.granted(2, 1, 3);
    log.apply();
    assert_eq!(log.found, [RISE, ONCE]);
}

#[test]
fn grants_that_nobody_is_told_of_and_answers_without_a_grant_are_found() {
    let mut log = Log::with(3);
    log.event(Kind::Acquired, 1, 1, 1);
    log.apply();
    assert_eq!(log.found, [TOLD]);
    log.take(2, Outcome::Answered(got(1, 7)));
    log.apply();
    assert_eq!(log.found, [TOLD, TOLD]);
}

#[test]
fn what_a_cancel_leaves_behind_is_found() {
    let mut log = Log::with(3);
    log.granted(1, 1, 1);
    log.apply();
    log.cancel(1, 1);
    log.apply();
    assert_eq!(log.found, [CANCELLED]);

    let mut log = Log::with(1);
    log.granted(1, 1, 1);
    log.waits(2, 1);
    log.apply();
    log.cancel(2, 1);
    log.apply();
    log.event(Kind::Released, 1, 1, 1);
    log.handed_on(2, 1, 2);
    log.apply();
    assert_eq!(log.found, [CANCELLED]);
}

#[test]
fn what_a_session_leaves_behind_is_found() {
    let mut log = Log::with(3);
    log.granted(1, 1, 1);
    log.apply();
    log.close(1);
    log.apply();
    assert_eq!(log.found, [ENDED]);

    let mut log = Log::with(3);
    log.granted(1, 1, 1);
    log.apply();
    (log.over_since, log.entry.log_time_ms) = (Some(1_000), 1_000 + SWEPT_MS - 1);
    log.apply();
    assert_eq!(log.found, [""; 0]);
    log.entry.log_time_ms = 1_000 + SWEPT_MS;
    log.apply();
    assert_eq!(log.found, [ENDED]);
}
