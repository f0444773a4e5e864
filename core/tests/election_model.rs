//! Random commands about elections, checked by what their callers were told: a leadership is a grant of the lock, and
//! its value is that of the newest call that was answered with its token.
//!
//! Each entry is applied by two machines, one of which is opened again from its store now and then.

#[path = "support/models.rs"]
mod models;
mod support;

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use trefoil_core::machine::{Applied, Outcome, QueryOutcome, WaiterId};
use trefoil_core::slot;
use trefoil_proto::common::v1::{Reason, Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{Answer, CancelAcquire, ForceStep, answer};
use trefoil_proto::lock::v1::{self as api, LockMode};

use self::models::seen;
use self::support::{Harness, call_name, command};

const NAMESPACE: &str = "default";
const ELECTIONS: [&str; 2] = ["a", "ab"];

#[derive(Clone, Debug)]
enum Step {
    Campaign { session: u64, election: usize, wait_ms: u64 },
    Acquire { session: u64, election: usize, wait_ms: u64, mode: LockMode },
    Convert { session: u64, election: usize, mode: LockMode },
    Proclaim { session: u64, election: usize, is_right: bool },
    Release { session: u64, election: usize },
    Cancel { session: u64, election: usize },
    Force { election: usize },
    KeepAlive { session: u64 },
    Close { session: u64 },
    Open { ttl_ms: u64 },
    Advance { ms: u64 },
    NewTerm,
    Reopen,
}

seen! {
    leaders,
    handed_on,
    proclaimed,
    refused,
    campaigned_again,
    without_value,
    none,
}

/// What a caller wants to proclaim.
#[derive(Clone, Debug)]
struct Ask {
    session_id: u64,
    name: String,
    /// Numbers the calls; its text is what is proclaimed.
    number: u64,
}

struct World {
    machine: Harness,
    twin: Harness,
    sessions: u64,
    calls: u64,
    /// Campaigns that wait: all that wait at one place.
    waiting: BTreeMap<WaiterId, Vec<Ask>>,
    /// What the holder of each token proclaims, as its calls were told.
    values: BTreeMap<u64, u64>,
    seen: Seen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = || 0..4_u64;
    let election = || 0..ELECTIONS.len();
    let wait_ms = || prop_oneof![1 => Just(0), 4 => 1..6_000_u64];
    let mode = || prop_oneof![1 => Just(LockMode::Shared), 1 => Just(LockMode::Update), 3 => Just(LockMode::Exclusive)];
    let step = prop_oneof![
        12 => (session(), election(), wait_ms())
            .prop_map(|(session, election, wait_ms)| Step::Campaign { session, election, wait_ms }),
        3 => (session(), election(), wait_ms(), mode()).prop_map(
            |(session, election, wait_ms, mode)| Step::Acquire { session, election, wait_ms, mode }
        ),
        2 => (session(), election(), mode())
            .prop_map(|(session, election, mode)| Step::Convert { session, election, mode }),
        6 => (session(), election(), any::<bool>())
            .prop_map(|(session, election, is_right)| Step::Proclaim { session, election, is_right }),
        6 => (session(), election()).prop_map(|(session, election)| Step::Release { session, election }),
        2 => (session(), election()).prop_map(|(session, election)| Step::Cancel { session, election }),
        1 => election().prop_map(|election| Step::Force { election }),
        4 => session().prop_map(|session| Step::KeepAlive { session }),
        1 => session().prop_map(|session| Step::Close { session }),
        3 => (500..8_000_u64).prop_map(|ttl_ms| Step::Open { ttl_ms }),
        8 => (0..900_u64).prop_map(|ms| Step::Advance { ms }),
        1 => Just(Step::NewTerm),
        1 => Just(Step::Reopen),
    ];
    vec(step, 1..140)
}

#[test]
fn a_leader_proclaims_what_its_newest_call_said() {
    models::run(1_000, &steps(), 10, |steps: Vec<Step>| {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        world.seen
    });
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            machine: Harness::new(1),
            twin: Harness::new(1),
            sessions: 0,
            calls: 0,
            waiting: BTreeMap::new(),
            values: BTreeMap::new(),
            seen: Seen::default(),
        };
        for ttl_ms in [3_000, 10_000, 60_000] {
            world.step(Step::Open { ttl_ms });
        }
        world
    }

    fn step(&mut self, step: Step) {
        let namespace = NAMESPACE.to_owned();
        let id = |pick: u64| self.sessions.saturating_sub(pick).max(1);
        let name = |election: usize| ELECTIONS[election].to_owned();
        match step {
            Step::Campaign { session, election, wait_ms } => {
                self.campaign(id(session), name(election), wait_ms);
            }
            Step::Proclaim { session, election, is_right } => {
                self.proclaim(id(session), name(election), is_right);
            }
            Step::Acquire { session, election, wait_ms, mode } => {
                let (session_id, name) = (id(session), name(election));
                self.send(Operation::Acquire(api::AcquireRequest {
                    namespace,
                    session_id,
                    name,
                    wait_ms,
                    mode: mode.into(),
                    ..Default::default()
                }));
            }
            Step::Convert { session, election, mode } => {
                let (session_id, name) = (id(session), name(election));
                self.send(Operation::Convert(api::ConvertRequest {
                    namespace,
                    session_id,
                    name,
                    mode: mode.into(),
                    ..Default::default()
                }));
            }
            Step::Release { session, election } => {
                let (session_id, name) = (id(session), name(election));
                let release =
                    api::ReleaseRequest { namespace, session_id, name, ..Default::default() };
                self.send(Operation::Release(release));
            }
            Step::Cancel { session, election } => self.cancel(id(session), name(election)),
            Step::Force { election } => {
                let step = ForceStep { namespace, name: name(election), ..ForceStep::default() };
                self.send(Operation::ForceStep(step));
            }
            Step::KeepAlive { session } => {
                let session_id = id(session);
                self.send(Operation::KeepAlive(api::KeepAliveRequest { namespace, session_id }));
            }
            Step::Close { session } => self.close(id(session)),
            Step::Open { ttl_ms } => {
                self.sessions += 1;
                let open = api::OpenSessionRequest { namespace, ttl_ms, ..Default::default() };
                self.send(Operation::OpenSession(open));
            }
            Step::Advance { ms } => {
                self.machine.now_ms += ms;
                self.twin.now_ms += ms;
                self.entry(Vec::new());
            }
            Step::NewTerm => {
                let (applied, twin) = (self.machine.new_term(), self.twin.new_term());
                self.check(&applied, &twin);
            }
            Step::Reopen => self.twin.reopen(),
        }
    }

    fn campaign(&mut self, session_id: u64, name: String, wait_ms: u64) {
        self.calls += 1;
        let ask = Ask { session_id, name: name.clone(), number: self.calls };
        let had = self.described(&name).holders.first().map(|holder| holder.fencing_token);
        let applied = self.send(Operation::Campaign(api::CampaignRequest {
            namespace: NAMESPACE.to_owned(),
            session_id,
            name,
            value: says(self.calls),
            wait_ms,
            ..Default::default()
        }));
        match &applied.outcomes[0] {
            Outcome::Waiting(waiter) => {
                self.waiting.entry(waiter.clone()).or_default().push(ask.clone());
                // The place may have been given to it in the same entry.
                self.settle(&applied);
            }
            Outcome::Answered(answer) => {
                if let Some(token) = granted(answer) {
                    self.seen.campaigned_again += u64::from(had == Some(token));
                    self.values.insert(token, ask.number);
                }
            }
        }
        self.check_leaders();
    }

    fn proclaim(&mut self, session_id: u64, name: String, is_right: bool) {
        self.calls += 1;
        let holder = self.described(&name).holders.into_iter().next();
        let token = holder.as_ref().map_or(1, |holder| holder.fencing_token);
        let session_id = match &holder {
            Some(holder) if is_right => holder.session_id,
            _ => session_id,
        };
        let applied = self.send(Operation::Proclaim(api::ProclaimRequest {
            namespace: NAMESPACE.to_owned(),
            session_id,
            name,
            fencing_token: token,
            value: says(self.calls),
            ..Default::default()
        }));
        let may = holder.is_some_and(|holder| {
            holder.session_id == session_id && holder.mode() == LockMode::Exclusive
        });
        let Outcome::Answered(Answer { answer: Some(answer) }) = &applied.outcomes[0] else {
            panic!("a proclamation does not wait");
        };
        match answer {
            answer::Answer::Proclaim(_) => {
                assert!(may, "only the leader proclaims");
                self.seen.proclaimed += 1;
                self.values.insert(token, self.calls);
            }
            answer::Answer::Refusal(refusal) => {
                let is_over = refusal.reason() == Reason::SessionExpired;
                assert!(!may || is_over, "the leader may proclaim: {refusal:?}");
                self.seen.refused += 1;
            }
            other => panic!("{other:?}"),
        }
        self.check_leaders();
    }

    /// The caller of a campaign is gone.
    fn cancel(&mut self, session_id: u64, name: String) {
        self.send(Operation::CancelAcquire(CancelAcquire {
            namespace: NAMESPACE.to_owned(),
            session_id,
            call: Some(call_name(None, &format!("{session_id} campaigns {name}"))),
            name,
            ..CancelAcquire::default()
        }));
    }

    fn close(&mut self, session_id: u64) {
        let namespace = NAMESPACE.to_owned();
        let close = api::CloseSessionRequest { namespace, session_id, request_id: None };
        self.send(Operation::CloseSession(close));
    }

    fn send(&mut self, operation: Operation) -> Applied {
        self.entry(vec![operation])
    }

    fn entry(&mut self, operations: Vec<Operation>) -> Applied {
        let slot = slot::of_locks(NAMESPACE);
        let commands = operations.into_iter().map(|operation| command(slot, 1, None, operation));
        let commands = commands.collect::<Vec<_>>();
        let (applied, twin) = (self.machine.apply(commands.clone()), self.twin.apply(commands));
        self.check(&applied, &twin);
        applied
    }

    fn check(&mut self, applied: &Applied, twin: &Applied) {
        assert_eq!(applied, twin, "two machines say the same");
        assert_eq!(self.machine.digest(), self.twin.digest());
        self.seen.leaders += applied.counts.leaders_elected;
        self.settle(applied);
    }

    /// Campaigns that ended: the newest call of those that one grant ended says what is proclaimed.
    fn settle(&mut self, applied: &Applied) {
        for settled in &applied.settled {
            let Some(asks) = self.waiting.remove(&settled.waiter) else { continue };
            let Some(token) = granted(&settled.answer) else { continue };
            self.seen.handed_on += 1;
            for ask in asks {
                let number = self.values.entry(token).or_default();
                *number = ask.number.max(*number);
                let holder = self.described(&ask.name).holders.into_iter().next();
                let is_there = holder.is_none_or(|holder| {
                    holder.fencing_token > token || holder.session_id == ask.session_id
                });
                assert!(is_there, "a grant goes to who asked for it");
            }
        }
    }

    /// Who leads holds the lock, and proclaims what its calls were told.
    fn check_leaders(&mut self) {
        for name in ELECTIONS {
            let leader = api::LeaderRequest { namespace: NAMESPACE.into(), name: name.into() };
            let answer::Answer::Leader(api::LeaderResponse { leader, .. }) =
                self.ask(Q::Leader(leader))
            else {
                panic!("it says who leads");
            };
            let mut holders = self.described(name).holders.into_iter();
            let holder = holders.find(|holder| holder.mode() == LockMode::Exclusive);
            let said = holder.as_ref().and_then(|of| self.values.get(&of.fencing_token).copied());
            match (&leader, &holder) {
                (Some(leader), Some(holder)) => {
                    assert_eq!(leader.fencing_token, holder.fencing_token);
                    assert_eq!(leader.session_id, holder.session_id);
                    assert_eq!(leader.value, says(said.expect("its call said so")));
                }
                (None, Some(_)) => {
                    assert_eq!(said, None, "who was told that it leads does");
                    self.seen.without_value += 1;
                }
                (None, None) => self.seen.none += 1,
                (Some(_), None) => panic!("a leader holds the lock"),
            }
        }
    }

    fn described(&mut self, name: &str) -> api::DescribeLockResponse {
        let request = api::DescribeLockRequest { namespace: NAMESPACE.into(), name: name.into() };
        match self.ask(Q::DescribeLock(request)) {
            answer::Answer::DescribeLock(described) => described,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, query: Q) -> answer::Answer {
        match self.machine.query(slot::of_locks(NAMESPACE), 1, query).1 {
            QueryOutcome::Answered(Answer { answer: Some(answer) }) => answer,
            other => panic!("{other:?}"),
        }
    }

    /// All sessions are closed: no value is left.
    fn finish(&mut self) {
        (1..=self.sessions).for_each(|id| self.close(id));
        let state = self.machine.lock_state();
        assert!(state.sessions.is_empty() && state.proclaimed.is_empty(), "nothing is left over");
    }
}

fn says(number: u64) -> Option<Value> {
    Some(Value { kind: Some(value::Kind::Text(number.to_string())) })
}

/// The token of a grant.
fn granted(answer: &Answer) -> Option<u64> {
    match &answer.answer {
        Some(answer::Answer::Acquire(acquire)) if acquire.acquired => Some(acquire.fencing_token),
        _ => None,
    }
}
