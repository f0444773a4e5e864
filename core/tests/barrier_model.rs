//! Random commands about latches and barriers: latches against an executable model, barriers by what must hold of them.
//!
//! Each entry is applied by two machines, one of which is opened again from its store now and then. Calls wait at the
//! first alone: what an entry ends must be told, and what goes on to wait must have a reason.

#[path = "support/models.rs"]
mod models;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use trefoil_core::CallId;
use trefoil_core::machine::{Applied, Outcome, QueryOutcome};
use trefoil_core::slot;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    Answer, AwaitBarrier, AwaitLatch, Barrier, BarrierSeen, LatchSeen, WithdrawBarrier, answer,
};
use trefoil_proto::lock::v1 as api;

use self::models::seen;
use self::support::{Harness, call_name, command};

const NAMESPACE: &str = "default";
const NAMES: [&str; 2] = ["a", "ab"];

#[derive(Clone, Debug)]
enum Step {
    Set { name: usize, count: u64, expected: Option<u64> },
    CountDown { name: usize, by: u64, round: bool },
    Delete { name: usize },
    AwaitLatch { name: usize },
    Enter { session: u64, name: usize, parties: u32, wait_ms: u64 },
    Leave { session: u64, name: usize, is_right: bool },
    Withdraw { session: u64, name: usize, unless_tripped: bool },
    AwaitLeft { name: usize },
    Open { ttl_ms: u64 },
    KeepAlive { session: u64 },
    Close { session: u64 },
    Advance { ms: u64 },
    LoseLeader,
    Reopen,
}

seen! {
    opened,
    gone,
    refused,
    tripped,
    tripped_after_death,
    told,
    over,
    busy,
    other_parties,
}

/// A latch of the model.
#[derive(Clone, Copy, Debug)]
struct Latch {
    count: u64,
    round: u64,
    first_round: u64,
}

#[derive(Default)]
struct World {
    latches: BTreeMap<&'static str, Latch>,
    /// Rounds that have begun.
    rounds: BTreeSet<u64>,
    /// Rounds of barriers from which somebody was taken before all had entered.
    thinned: BTreeSet<u64>,
    waiting: BTreeMap<CallId, Q>,
    sessions: u64,
    seen: Seen,
}

struct Machines {
    machine: Harness,
    twin: Harness,
    world: World,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = || 0..4_u64;
    let name = || 0..NAMES.len();
    let parties = prop_oneof![1 => Just(1_u32), 8 => Just(2), 8 => Just(3)];
    let step = prop_oneof![
        3 => (name(), 1..4_u64, proptest::option::weighted(0.4, 0..3_u64))
            .prop_map(|(name, count, expected)| Step::Set { name, count, expected }),
        5 => (name(), 0..3_u64, any::<bool>())
            .prop_map(|(name, by, round)| Step::CountDown { name, by, round }),
        1 => name().prop_map(|name| Step::Delete { name }),
        3 => name().prop_map(|name| Step::AwaitLatch { name }),
        12 => (session(), name(), parties, prop_oneof![1 => Just(0), 6 => 1..4_000_u64])
            .prop_map(|(session, name, parties, wait_ms)| Step::Enter { session, name, parties, wait_ms }),
        5 => (session(), name(), any::<bool>())
            .prop_map(|(session, name, is_right)| Step::Leave { session, name, is_right }),
        2 => (session(), name(), any::<bool>())
            .prop_map(|(session, name, unless_tripped)| Step::Withdraw { session, name, unless_tripped }),
        3 => name().prop_map(|name| Step::AwaitLeft { name }),
        4 => (500..9_000_u64).prop_map(|ttl_ms| Step::Open { ttl_ms }),
        4 => session().prop_map(|session| Step::KeepAlive { session }),
        2 => session().prop_map(|session| Step::Close { session }),
        8 => (0..900_u64).prop_map(|ms| Step::Advance { ms }),
        1 => Just(Step::LoseLeader),
        1 => Just(Step::Reopen),
    ];
    vec(step, 1..140)
}

#[test]
fn latches_do_what_their_model_does_and_barriers_keep_their_word() {
    models::run(1_500, &steps(), 10, |steps: Vec<Step>| {
        let mut machines = Machines::new();
        steps.into_iter().for_each(|step| machines.step(step));
        machines.finish();
        machines.world.seen
    });
}

impl Machines {
    fn new() -> Self {
        let (machine, twin) = (Harness::new(1), Harness::new(1));
        let mut machines = Self { machine, twin, world: World::default() };
        for ttl_ms in [3_000, 10_000, 60_000] {
            machines.step(Step::Open { ttl_ms });
        }
        machines
    }

    fn step(&mut self, step: Step) {
        let namespace = NAMESPACE.to_owned();
        let id = |pick: u64| self.world.sessions.saturating_sub(pick).max(1);
        match step {
            Step::Set { name, count, expected } => self.set(NAMES[name], count, expected),
            Step::CountDown { name, by, round } => self.count_down(NAMES[name], by, round),
            Step::Delete { name } => self.delete(NAMES[name]),
            Step::AwaitLatch { name } => {
                let name = NAMES[name].to_owned();
                let round = self.world.latches.get(name.as_str()).map_or(0, |latch| latch.round);
                self.park(Q::AwaitLatch(AwaitLatch { namespace, name, round, wait: true }));
            }
            Step::Enter { session, name, parties, wait_ms } => {
                self.enter(id(session), NAMES[name], parties, wait_ms);
            }
            Step::Leave { session, name, is_right } => {
                self.leave(id(session), NAMES[name], is_right)
            }
            Step::Withdraw { session, name, unless_tripped } => {
                let (session_id, name) = (id(session), NAMES[name].to_owned());
                let withdraw = WithdrawBarrier {
                    namespace,
                    session_id,
                    call: Some(call_name(None, &format!("{session_id} {name}"))),
                    name,
                    unless_tripped,
                    ..Default::default()
                };
                self.send(Operation::WithdrawBarrier(withdraw));
            }
            Step::AwaitLeft { name } => {
                let Some(barrier) = self.barrier(NAMES[name]) else { return };
                self.park(waits(NAMES[name], 0, barrier.round, false));
            }
            Step::Open { ttl_ms } => {
                self.world.sessions += 1;
                let open = api::OpenSessionRequest { namespace, ttl_ms, ..Default::default() };
                self.send(Operation::OpenSession(open));
            }
            Step::KeepAlive { session } => {
                let session_id = id(session);
                self.send(Operation::KeepAlive(api::KeepAliveRequest { namespace, session_id }));
            }
            Step::Close { session } => self.close(id(session)),
            Step::Advance { ms } => {
                self.machine.now_ms += ms;
                self.twin.now_ms += ms;
                self.entry(Vec::new());
            }
            Step::LoseLeader => {
                let told = self.machine.machine.step_down().into_iter().collect::<BTreeSet<_>>();
                let waiting = std::mem::take(&mut self.world.waiting);
                assert!(
                    waiting.keys().eq(told.iter()),
                    "everybody who waits is told to go elsewhere"
                );
                // They ask the next leader.
                waiting.into_values().for_each(|query| self.park(query));
            }
            Step::Reopen => self.twin.reopen(),
        }
    }

    fn set(&mut self, name: &'static str, count: u64, expected: Option<u64>) {
        let before = self.world.latches.get(name).copied();
        let set = self.send(Operation::SetLatch(api::SetLatchRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            count,
            expected,
            request_id: None,
        }));
        let stands = before.map_or(0, |latch| latch.count);
        let latch = match set {
            answer::Answer::SetLatch(set) => {
                assert_eq!(stands, expected.unwrap_or(0), "it was expected so");
                let is_new = stands == 0;
                assert_eq!(is_new, self.world.rounds.insert(set.round), "a round begins once");
                assert!(is_new || before.is_some_and(|latch| latch.round == set.round));
                let first_round = before.map_or(set.round, |latch| latch.first_round);
                Latch { count, round: set.round, first_round }
            }
            answer::Answer::Refusal(refusal) => {
                assert_eq!(refusal.reason(), Reason::LatchCount);
                assert_ne!(stands, expected.unwrap_or(0), "it was not expected so");
                assert_eq!(refusal.metadata["count"], stands.to_string());
                self.world.seen.refused += 1;
                return;
            }
            other => panic!("{other:?}"),
        };
        self.world.latches.insert(name, latch);
    }

    fn count_down(&mut self, name: &'static str, by: u64, other_round: bool) {
        let latch = self.world.latches.get(name).copied();
        let round = if other_round { latch.map_or(1, |latch| latch.first_round) } else { 0 };
        let counted = self.send(Operation::CountDown(api::CountDownRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            by,
            round,
            request_id: None,
        }));
        match (counted, latch) {
            (answer::Answer::CountDown(counted), Some(mut latch)) => {
                let is_present = round == 0 || round == latch.round;
                if is_present {
                    latch.count = latch.count.saturating_sub(by.max(1));
                }
                let left = if is_present { latch.count } else { 0 };
                assert_eq!(counted.count, left);
                self.world.seen.opened += u64::from(left == 0 && is_present);
                self.world.latches.insert(name, latch);
            }
            (answer::Answer::Refusal(refusal), None) => {
                assert_eq!(refusal.reason(), Reason::UnknownLatch);
            }
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, name: &'static str) {
        let delete = api::DeleteLatchRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            request_id: None,
        };
        let deleted = self.send(Operation::DeleteLatch(delete));
        let was_there = self.world.latches.remove(name).is_some();
        assert_eq!(matches!(deleted, answer::Answer::DeleteLatch(_)), was_there);
        self.world.seen.gone += u64::from(was_there);
    }

    fn enter(&mut self, session_id: u64, name: &'static str, parties: u32, wait_ms: u64) {
        let is_living = self.is_living(session_id);
        let before = self.barrier(name);
        let entered = self.send(Operation::EnterBarrier(api::EnterBarrierRequest {
            namespace: NAMESPACE.to_owned(),
            session_id,
            name: name.to_owned(),
            parties,
            wait_ms,
            request_id: None,
        }));
        let after = self.barrier(name);
        match entered {
            answer::Answer::BarrierSeen(seen) => {
                assert!(is_living);
                let is_new = before.as_ref().is_none_or(|before| before.round != seen.round);
                if is_new && seen.inside {
                    assert!(self.world.rounds.insert(seen.round), "a round begins once");
                    assert_eq!(self.world.rounds.last(), Some(&seen.round), "rounds rise");
                }
                if seen.tripped && !seen.inside {
                    self.world.seen.busy += 1;
                }
                if seen.inside && !seen.tripped {
                    assert_eq!(after.as_ref().map(|after| after.parties), Some(parties));
                    self.park(waits(name, session_id, seen.round, true));
                }
                let was_tripped = before.is_some_and(|b| b.tripped && b.round == seen.round);
                if seen.tripped && seen.inside && !was_tripped {
                    self.tripped(&after.expect("it has just tripped"), parties);
                }
            }
            answer::Answer::Refusal(refusal) if refusal.reason() == Reason::BarrierParties => {
                let parties_there = before.expect("somebody is in it").parties;
                assert_ne!(parties_there, parties);
                self.world.seen.other_parties += 1;
            }
            answer::Answer::Refusal(refusal) => {
                assert_eq!((refusal.reason(), is_living), (Reason::SessionExpired, false));
            }
            other => panic!("{other:?}"),
        }
    }

    /// All have entered: as many as it takes, each of whom lives and has not waited for too long.
    fn tripped(&mut self, barrier: &Barrier, parties: u32) {
        self.world.seen.tripped += 1;
        assert_eq!((barrier.parties, barrier.inside.len()), (parties, parties as usize));
        for party in &barrier.inside {
            assert!(self.is_living(party.session_id), "the dead do not count");
            assert!(party.deadline_ms >= self.machine.now_ms, "who waits no more does not count");
        }
        let thinned = self.world.thinned.contains(&barrier.round);
        self.world.seen.tripped_after_death += u64::from(thinned);
    }

    fn leave(&mut self, session_id: u64, name: &'static str, is_right: bool) {
        let before = self.barrier(name);
        let is_in = before.as_ref().is_some_and(|barrier| is_in(barrier, session_id));
        let round = match &before {
            Some(barrier) if is_right => barrier.round,
            _ => 0,
        };
        let is_living = self.is_living(session_id);
        let left = self.send(Operation::LeaveBarrier(api::LeaveBarrierRequest {
            namespace: NAMESPACE.to_owned(),
            session_id,
            name: name.to_owned(),
            round,
            ..Default::default()
        }));
        let after = self.barrier(name);
        match left {
            answer::Answer::BarrierSeen(seen) => {
                assert!(!seen.inside && (is_in || round > 0));
                assert_eq!(seen.over, after.is_none(), "it is over when nobody is in it");
                assert!(after.is_none_or(|barrier| !self::is_in(&barrier, session_id)));
            }
            answer::Answer::Refusal(refusal) if refusal.reason() == Reason::NotEntered => {
                assert!(!is_in && is_living);
            }
            answer::Answer::Refusal(refusal) => {
                assert_eq!((refusal.reason(), is_living), (Reason::SessionExpired, false));
            }
            other => panic!("{other:?}"),
        }
    }

    fn close(&mut self, session_id: u64) {
        let namespace = NAMESPACE.to_owned();
        let close = api::CloseSessionRequest { namespace, session_id, request_id: None };
        self.send(Operation::CloseSession(close));
    }

    fn send(&mut self, operation: Operation) -> answer::Answer {
        let applied = self.entry(vec![operation]);
        match applied.outcomes.into_iter().next() {
            Some(Outcome::Answered(Answer { answer: Some(answer) })) => answer,
            other => panic!("a command is answered at once: {other:?}"),
        }
    }

    fn entry(&mut self, operations: Vec<Operation>) -> Applied {
        let before = NAMES.map(|name| self.barrier(name));
        let slot = slot::of_locks(NAMESPACE);
        let commands = operations.into_iter().map(|operation| command(slot, 1, None, operation));
        let commands = commands.collect::<Vec<_>>();
        let (applied, twin) = (self.machine.apply(commands.clone()), self.twin.apply(commands));
        assert_eq!(applied.outcomes, twin.outcomes, "two machines say the same");
        assert_eq!(self.machine.digest(), self.twin.digest());
        for (before, name) in before.into_iter().zip(NAMES) {
            let after = self.barrier(name);
            if let (Some(before), Some(after)) = (before, after)
                && !before.tripped
                && before.round == after.round
                && before.inside.iter().any(|party| !is_in(&after, party.session_id))
            {
                self.world.thinned.insert(after.round);
            }
        }
        self.check_told(&applied);
        applied
    }

    /// What an entry ends is told, with how things stand; whoever goes on to wait has a reason.
    fn check_told(&mut self, applied: &Applied) {
        for (call, answer) in &applied.polls {
            let query = self.world.waiting.remove(call).expect("only who waits is told");
            assert!(!goes_on(&query, answer), "{query:?} ends with {answer:?}");
            self.world.seen.told += 1;
            self.world.seen.over +=
                u64::from(matches!(&query, Q::AwaitBarrier(request) if !request.enters));
            let now = self.look(&query);
            let (told, now) = (tripped(answer), tripped(&now));
            assert!(told.is_none() || told == now, "all who entered are told of the same round");
        }
        let waiting = self.world.waiting.values().cloned().collect::<Vec<_>>();
        for query in waiting {
            let now = self.look(&query);
            let is_dead = matches!(&query, Q::AwaitBarrier(request) if request.enters && !self.is_living(request.session_id));
            assert!(is_dead || goes_on(&query, &now), "{query:?} waits, and it is {now:?}");
        }
    }

    fn park(&mut self, query: Q) {
        let (call, outcome) = self.machine.query(slot::of_locks(NAMESPACE), 1, query.clone());
        match outcome {
            QueryOutcome::Parked => {
                assert!(self.world.waiting.insert(call, query).is_none());
            }
            QueryOutcome::Answered(answer) => assert!(!goes_on(&query, &answer)),
            QueryOutcome::Due(_) => panic!("no latch or barrier has a time"),
        }
    }

    /// How things stand for who waits.
    fn look(&mut self, query: &Q) -> Answer {
        let mut query = query.clone();
        match &mut query {
            Q::AwaitLatch(request) => request.wait = false,
            Q::AwaitBarrier(request) => request.wait = false,
            other => panic!("{other:?}"),
        }
        self.ask(query)
    }

    fn barrier(&self, name: &str) -> Option<Barrier> {
        let barriers = self.machine.lock_state().barriers;
        barriers.get(&(NAMESPACE.to_owned(), name.to_owned())).cloned()
    }

    fn is_living(&mut self, session_id: u64) -> bool {
        let namespace = NAMESPACE.to_owned();
        let answer = self.ask(Q::GetSession(api::GetSessionRequest { namespace, session_id }));
        matches!(answer.answer, Some(answer::Answer::GetSession(_)))
    }

    fn ask(&mut self, query: Q) -> Answer {
        match self.machine.query(slot::of_locks(NAMESPACE), 1, query).1 {
            QueryOutcome::Answered(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    /// All sessions are closed and all latches deleted: nothing is left, and nobody waits.
    fn finish(&mut self) {
        (1..=self.world.sessions).for_each(|id| self.close(id));
        NAMES.into_iter().for_each(|name| self.delete(name));
        let state = self.machine.lock_state();
        assert!(state.barriers.is_empty() && state.entered.is_empty() && state.latches.is_empty());
        assert!(self.world.waiting.is_empty(), "nobody waits: {:?}", self.world.waiting);
    }
}

fn waits(name: &str, session_id: u64, round: u64, enters: bool) -> Q {
    let (namespace, name) = (NAMESPACE.to_owned(), name.to_owned());
    Q::AwaitBarrier(AwaitBarrier { namespace, name, session_id, round, enters, wait: true })
}

fn is_in(barrier: &Barrier, session_id: u64) -> bool {
    barrier.inside.iter().any(|party| party.session_id == session_id)
}

/// The round that has tripped, where that is what an answer says.
fn tripped(answer: &Answer) -> Option<u64> {
    match &answer.answer {
        Some(answer::Answer::BarrierSeen(seen)) => {
            (seen.tripped && seen.inside).then_some(seen.round)
        }
        _ => None,
    }
}

/// Whether a call that is told this would wait on.
fn goes_on(query: &Q, answer: &Answer) -> bool {
    match (query, &answer.answer) {
        (_, Some(answer::Answer::Refusal(_))) => false,
        (Q::AwaitLatch(_), Some(answer::Answer::LatchSeen(LatchSeen { count, .. }))) => *count > 0,
        (Q::AwaitBarrier(request), Some(answer::Answer::BarrierSeen(seen))) => {
            let BarrierSeen { round, tripped, inside, over, .. } = seen;
            let is_same = !over && *round == request.round;
            is_same && (!request.enters || *inside && !tripped)
        }
        other => panic!("{other:?}"),
    }
}
