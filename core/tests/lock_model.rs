//! Random commands of several sessions against an executable model of the lock service and of request ids.
//!
//! Each entry is applied by two machines, one of which is opened again from its store now and then: they must say
//! the same and have the same digest. The records are checked after every entry, and nothing may be left at the end.

#[path = "support/lock_model.rs"]
mod lock_model;
#[path = "support/lock_steps.rs"]
mod lock_steps;
#[path = "support/lock_watch.rs"]
mod lock_watch;
#[path = "support/models.rs"]
mod models;
mod support;

use std::collections::BTreeMap;

use trefoil_core::limits::REQUEST_CLIENT_IDLE_MS;
use trefoil_core::machine::{Applied, Outcome, WaiterId, caller_lost};
use trefoil_core::slot;
use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    Answer, CallName, CancelAcquire, Command, ForceStep, ReleaseHeld, answer,
};
use trefoil_proto::lock::v1::{self as api, LockMode};

use self::lock_model::{Answer as Said, Grant, Model, Outcome as Expected, Seat, Settled};
use self::lock_steps::{CLIENTS, Choice, LOCKS, Step, Token, acquire, steps};
use self::lock_watch::Watcher;
use self::models::seen;
use self::support::{Harness, command};

const NAMESPACES: [&str; 2] = ["x", "y"];

seen! {
    handoffs,
    several,
    let_go,
    converted,
    shared,
    deadlocks,
    delays,
    timeouts,
    expired,
    expired_waits,
    reattached,
    recalled,
    forgotten,
    undone,
}

struct World {
    model: Model,
    machine: Harness,
    twin: Harness,
    watcher: Watcher,
    seats: BTreeMap<Seat, WaiterId>,
    /// What is applied.
    index: u64,
    /// What was sent so far, as it was sent last.
    sent: Vec<Command>,
    pending: Vec<Command>,
    sequences: [u64; CLIENTS.len()],
    floors: [u64; CLIENTS.len()],
    seen: Seen,
}

#[test]
fn a_machine_does_what_its_model_does() {
    models::run(1_500, &steps(), 25, |steps: Vec<Choice>| {
        let mut world = World::new();
        steps
            .into_iter()
            .for_each(|(step, namespace, client)| world.step(&step, namespace, client));
        world.finish();
        world.seen
    });
}

impl World {
    fn new() -> Self {
        let (machine, twin) = (Harness::new(1), Harness::new(1));
        let mut world = Self {
            model: Model::default(),
            machine,
            twin,
            watcher: Watcher::default(),
            seats: BTreeMap::new(),
            index: 0,
            sent: Vec::new(),
            pending: Vec::new(),
            sequences: [0; CLIENTS.len()],
            floors: [0; CLIENTS.len()],
            seen: Seen::default(),
        };
        for namespace in NAMESPACES {
            for ttl_ms in [2_000, 5_000, 20_000] {
                let namespace = namespace.to_owned();
                world.send(
                    Operation::OpenSession(api::OpenSessionRequest {
                        namespace,
                        ttl_ms,
                        ..Default::default()
                    }),
                    None,
                );
            }
        }
        world.entry();
        world
    }

    fn step(&mut self, step: &Step, namespace: usize, client: Option<usize>) {
        match step {
            Step::Advance { ms } => {
                self.entry();
                self.machine.now_ms += ms;
                self.twin.now_ms += ms;
            }
            Step::NewTerm => {
                self.entry();
                let (applied, twin) = (self.machine.new_term(), self.twin.new_term());
                self.model.begin(applied.index, self.machine.now_ms, true);
                self.check(&applied, &twin, &[]);
            }
            Step::Reopen => self.twin.reopen(),
            Step::Acknowledge { client, kept } => {
                let floor = (self.sequences[*client] + 1).saturating_sub(*kept);
                self.floors[*client] = self.floors[*client].max(floor);
            }
            Step::Retry { sent } => {
                if let Some(n) = self.pick_sent(*sent, |_| true) {
                    if let Some(id) = &mut self.sent[n].request_id {
                        id.attempt += 1;
                    }
                    self.pending.push(self.sent[n].clone());
                }
            }
            Step::Cancel { sent, is_late } => self.cancel(*sent, *is_late),
            Step::Lose { seat, ago } => {
                if let Some(waiter) = self.seats.values().rev().nth(*seat) {
                    let (slot, operation) = caller_lost(waiter, self.index.saturating_sub(*ago));
                    self.pending.push(command(slot, 1, None, operation));
                }
            }
            _ => {
                if let Some(operation) = self.operation(step, NAMESPACES[namespace]) {
                    self.send(operation, client);
                }
            }
        }
    }

    fn operation(&self, step: &Step, namespace: &str) -> Option<Operation> {
        let last = self.model.last_session.get(namespace).copied().unwrap_or(0);
        let session = |pick: &usize| last.saturating_sub(*pick as u64);
        let namespace = namespace.to_owned();
        Some(match step {
            Step::Open { ttl_ms, delay_ms } => Operation::OpenSession(api::OpenSessionRequest {
                namespace,
                ttl_ms: *ttl_ms,
                lock_delay_ms: *delay_ms,
                ..Default::default()
            }),
            Step::KeepAlive { session: pick } => {
                Operation::KeepAlive(api::KeepAliveRequest { namespace, session_id: session(pick) })
            }
            Step::Close { session: pick } => {
                let session_id = session(pick);
                Operation::CloseSession(api::CloseSessionRequest {
                    namespace,
                    session_id,
                    request_id: None,
                })
            }
            Step::Acquire { session: pick, .. } | Step::AcquireAll { session: pick, .. } => {
                Operation::Acquire(acquire(step, namespace, session(pick)))
            }
            Step::Convert { session: pick, lock, wait_ms, mode, token } => {
                let name = (namespace, LOCKS[*lock].to_owned());
                let token = self.token(&name, session(pick), *token);
                convert(name, session(pick), token, *mode, *wait_ms)
            }
            Step::ConvertHeld { held, wait_ms, mode } => {
                let all = self.model.held();
                let (name, session_id, _) = all.get(held % all.len().max(1))?.clone();
                convert(name, session_id, 0, *mode, *wait_ms)
            }
            Step::ReleaseAll { session: pick } => Operation::ReleaseHeld(ReleaseHeld {
                namespace,
                session_id: session(pick),
                ..ReleaseHeld::default()
            }),
            Step::Force { lock, token } => {
                let token = self.token(&(namespace.clone(), LOCKS[*lock].to_owned()), 0, *token);
                let name = LOCKS[*lock].to_owned();
                Operation::ForceStep(ForceStep { namespace, name, fencing_token: token, token: 0 })
            }
            Step::Release { session: pick, lock, token } => {
                let name = (namespace, LOCKS[*lock].to_owned());
                let token = self.token(&name, session(pick), *token);
                release(name, session(pick), token)
            }
            Step::ReleaseHeld { held } => {
                let all = self.model.held();
                let (name, session_id, _) = all.get(held % all.len().max(1))?.clone();
                release(name, session_id, 0)
            }
            _ => return None,
        })
    }

    /// A token that a session may name a grant by: its own where it has one, or any holder's.
    fn token(&self, name: &(String, String), session: u64, token: Token) -> u64 {
        let held = self.model.held().into_iter().filter(|held| held.0 == *name);
        let held = held.min_by_key(|held| held.1 != session);
        let right = held.and_then(|held| self.model.tokens.get(&held.2).copied()).unwrap_or(0);
        match token {
            Token::Any => 0,
            Token::Right => right,
            Token::Wrong => right + 1_000_000,
        }
    }

    fn cancel(&mut self, sent: usize, is_late: bool) {
        let waits = |command: &Command| {
            matches!(command.operation, Some(Operation::Acquire(_) | Operation::Convert(_)))
        };
        let Some(n) = self.pick_sent(sent, waits) else { return };
        let mut cancel = match self.sent[n].operation.clone() {
            Some(Operation::Acquire(request)) => CancelAcquire {
                namespace: request.namespace,
                session_id: request.session_id,
                name: request.name,
                locks: request.locks,
                ..CancelAcquire::default()
            },
            Some(Operation::Convert(request)) => CancelAcquire {
                namespace: request.namespace,
                session_id: request.session_id,
                name: request.name,
                ..CancelAcquire::default()
            },
            _ => return,
        };
        let Command { mut request_id, drawn, .. } = self.sent[n].clone();
        match &mut request_id {
            Some(id) => id.attempt = id.attempt.saturating_sub(u32::from(is_late)),
            // Proposed by whoever knows nothing of later tries.
            None if is_late => cancel.as_of = self.index.saturating_sub(1),
            None => {}
        }
        cancel.call = Some(CallName { request_id, drawn });
        let slot = slot::of_locks(&cancel.namespace);
        self.pending.push(command(slot, 1, None, Operation::CancelAcquire(cancel)));
    }

    /// One of the last commands.
    fn pick_sent(&self, back: usize, wanted: impl Fn(&Command) -> bool) -> Option<usize> {
        let wanted = (0..self.sent.len()).rev().filter(|n| wanted(&self.sent[*n]));
        wanted.take(10).nth(back)
    }

    fn send(&mut self, operation: Operation, client: Option<usize>) {
        let namespace = match &operation {
            Operation::OpenSession(request) => &request.namespace,
            Operation::KeepAlive(request) => &request.namespace,
            Operation::CloseSession(request) => &request.namespace,
            Operation::Acquire(request) => &request.namespace,
            Operation::Convert(request) => &request.namespace,
            Operation::Release(request) => &request.namespace,
            Operation::ReleaseHeld(request) => &request.namespace,
            Operation::ForceStep(request) => &request.namespace,
            other => panic!("{other:?} is none of the lock service"),
        };
        let slot = slot::of_locks(namespace);
        let request_id = client.map(|client| {
            self.sequences[client] += 1;
            let sequence = self.sequences[client];
            let first_unacknowledged = self.floors[client].min(sequence);
            RequestId {
                client: CLIENTS[client].to_owned(),
                sequence,
                first_unacknowledged,
                attempt: 0,
            }
        });
        let command = command(slot, 1, request_id, operation);
        // Now and then a node draws for each call; else all of a session for the same locks are one call.
        let drawn = match &command.drawn {
            drawn if !drawn.is_empty() && self.sent.len().is_multiple_of(2) => {
                support::drawn(&self.sent.len().to_string())
            }
            drawn => drawn.clone(),
        };
        let command = Command { drawn, ..command };
        self.sent.push(command.clone());
        self.pending.push(command);
    }

    /// Applies what is pending as one entry.
    fn entry(&mut self) {
        let commands = std::mem::take(&mut self.pending);
        let (applied, twin) =
            (self.machine.apply(commands.clone()), self.twin.apply(commands.clone()));
        self.model.begin(applied.index, self.machine.now_ms, false);
        self.check(&applied, &twin, &commands);
    }

    fn check(&mut self, applied: &Applied, twin: &Applied, commands: &[Command]) {
        assert_eq!(applied, twin, "two machines say the same");
        self.index = applied.index;
        assert_eq!(self.machine.digest(), self.twin.digest());
        let state = self.machine.lock_state();
        self.watcher.see(applied);
        self.watcher.check(&state);
        let delays = |lock: &trefoil_proto::internal::v1::Lock| {
            trefoil_core::machine::invariants::is_delayed(lock)
        };
        self.seen.delays += u64::from(state.locks.values().any(delays));
        self.seen.shared += u64::from(state.locks.values().any(|lock| lock.shared > 1));
        let grants_before = self.model.grants.len();
        let expected = commands.iter().map(|command| self.expect(command)).collect::<Vec<_>>();
        assert_eq!(applied.outcomes.len(), expected.len());
        for ((outcome, expected), command) in applied.outcomes.iter().zip(&expected).zip(commands) {
            match (outcome, expected) {
                (Outcome::Answered(answer), Expected::Answer(said)) => self.same(answer, said),
                (Outcome::Waiting(waiter), Expected::Waits(seat)) => {
                    if let (_, Operation::LoseCaller(place)) = caller_lost(waiter, 0) {
                        self.model.places.insert((place.namespace, place.ordinal), *seat);
                    }
                    let known = self.seats.entry(*seat).or_insert_with(|| waiter.clone());
                    assert_eq!(known, waiter, "a retry waits at the same place");
                }
                _ => panic!("{command:?} is answered {outcome:?}, not {expected:?}"),
            }
        }
        self.check_settled(applied);
        for grant in grants_before..self.model.grants.len() {
            let token =
                self.model.tokens.get(&grant).copied().expect("every grant is told to somebody");
            let lock = &self.model.grants[grant];
            let earlier =
                self.model.tokens.iter().filter(|(other, _)| self.model.grants[**other] == *lock);
            let rises =
                earlier.filter(|(other, _)| **other < grant).all(|(_, other)| *other < token);
            assert!(rises, "tokens of a lock rise");
        }
        assert_eq!(applied.counts, self.model.counts);
        self.seen.expired += applied.counts.sessions_expired;
        self.seen.deadlocks += applied.counts.deadlocks;
    }

    fn expect(&mut self, command: &Command) -> Expected {
        let seats = self.model.seats;
        let is_retry = command.request_id.as_ref().is_some_and(|id| id.attempt > 0);
        let expected = self.model.command(command);
        match &expected {
            Expected::Waits(seat) if *seat < seats => self.seen.reattached += 1,
            Expected::Answer(Said::Refused(reason, _)) if reason.name() == "REQUEST_FORGOTTEN" => {
                self.seen.forgotten += 1;
            }
            Expected::Answer(_) if is_retry => self.seen.recalled += 1,
            _ => {}
        }
        expected
    }

    fn check_settled(&mut self, applied: &Applied) {
        let mut expected = self.model.settled.clone();
        for settled in &applied.settled {
            let id = settled.request_id.as_ref().map(|id| (id.client.clone(), id.sequence));
            let seat = self
                .seats
                .iter()
                .find(|(_, waiter)| **waiter == settled.waiter)
                .map(|(seat, _)| *seat);
            let has_id = |of: &Settled| of.id.clone().filter(|id| id.1 > 0) == id;
            let place = expected.iter().position(|of| of.seat == seat && has_id(of));
            let expected = expected.remove(place.expect("what is settled should be"));
            self.same(&settled.answer, &expected.answer);
            match (expected.seat, expected.answer) {
                (None, _) => self.seen.undone += 1,
                (Some(_), Said::Granted(_)) => self.seen.handoffs += 1,
                (Some(_), Said::GrantedAll(_)) => self.seen.several += 1,
                (Some(_), Said::Converted(_)) => self.seen.converted += 1,
                (Some(_), Said::GaveUp(_)) => self.seen.timeouts += 1,
                (Some(_), _) if names_lock(&settled.answer) => self.seen.let_go += 1,
                (Some(_), _) => self.seen.expired_waits += 1,
            }
        }
        assert!(expected.is_empty(), "these should be settled: {expected:?}");
    }

    fn are_granted(&mut self, locks: &[api::LockGrant], grants: &[(String, Grant)]) -> bool {
        let mut both = locks.iter().zip(grants);
        locks.len() == grants.len()
            && both.all(|(lock, (name, grant))| {
                lock.name == *name
                    && lock.mode() == self.model.modes[*grant]
                    && self.is_token(*grant, lock.fencing_token)
            })
    }

    /// Whether the machine says what the model says; a grant's token is learned where it is told first.
    fn same(&mut self, answer: &Answer, said: &Said) {
        use answer::Answer as A;
        let matches = match (answer.answer.as_ref().expect("an answer says something"), said) {
            (A::OpenSession(opened), Said::Session(id)) => opened.session_id == *id,
            (A::KeepAlive(alive), Said::Alive(ms)) => alive.remaining_ms == *ms,
            (A::CloseSession(closed), Said::Closed(released)) => closed.released == *released,
            (A::Acquire(acquire), Said::Granted(grant)) => {
                acquire.acquired
                    && acquire.locks.is_empty()
                    && acquire.holder_token == 0
                    && acquire.mode() == self.model.modes[*grant]
                    && self.is_token(*grant, acquire.fencing_token)
            }
            (A::Acquire(acquire), Said::GrantedAll(grants)) => {
                acquire.acquired
                    && acquire.fencing_token == 0
                    && self.are_granted(&acquire.locks, grants)
            }
            (A::Acquire(acquire), Said::Held(holder)) => {
                let no_grant = !acquire.acquired && acquire.fencing_token == 0;
                no_grant
                    && holder.map_or(acquire.holder_token == 0, |grant| {
                        self.is_token(grant, acquire.holder_token)
                    })
            }
            (A::Acquire(acquire), Said::GaveUp(false)) => {
                !acquire.acquired && acquire.fencing_token == 0
            }
            (A::Convert(convert), Said::GaveUp(true)) => {
                !convert.converted && convert.fencing_token == 0
            }
            (A::Convert(convert), Said::Converted(grant)) => {
                convert.converted
                    && convert.holder_token == 0
                    && convert.mode() == self.model.modes[*grant]
                    && self.is_token(*grant, convert.fencing_token)
            }
            (A::Convert(convert), Said::NotConverted(holder)) => {
                !convert.converted
                    && convert.fencing_token == 0
                    && holder.map_or(convert.holder_token == 0, |grant| {
                        self.is_token(grant, convert.holder_token)
                    })
            }
            (A::ForcedStep(step), Said::Forced(count)) => {
                !step.more && step.released == *count && step.token > 0
            }
            (A::ReleasedHeld(released), Said::ReleasedHeld(count)) => {
                released.released == *count && released.after.is_empty()
            }
            (A::Release(_), Said::Released) | (A::Done(_), Said::Done) => true,
            (A::Refusal(refusal), Said::Refused(reason, holder)) => {
                let token = refusal
                    .metadata
                    .get("holder_token")
                    .or_else(|| refusal.metadata.get("fencing_token"))
                    .map(|token| token.parse().expect("a number"));
                let same_holder = match (token, holder) {
                    (Some(token), Some(grant)) => self.is_token(*grant, token),
                    (token, holder) => token.is_none() && holder.is_none(),
                };
                refusal.reason() == *reason && same_holder
            }
            _ => false,
        };
        assert!(
            matches,
            "the machine says {answer:?}, the model {said:?}, tokens {:?}",
            self.model.tokens
        );
    }

    fn is_token(&mut self, grant: Grant, token: u64) -> bool {
        token > 0 && *self.model.tokens.entry(grant).or_insert(token) == token
    }

    /// All sessions are closed and the clients idle: only the counters are left.
    fn finish(&mut self) {
        self.entry();
        for (namespace, session_id) in self.model.sessions() {
            self.send(
                Operation::CloseSession(api::CloseSessionRequest {
                    namespace,
                    session_id,
                    request_id: None,
                }),
                None,
            );
        }
        self.entry();
        for harness in [&mut self.machine, &mut self.twin] {
            harness.advance(REQUEST_CLIENT_IDLE_MS);
            harness.advance(REQUEST_CLIENT_IDLE_MS);
        }
        assert_eq!(self.machine.digest(), self.twin.digest());
        let state = self.machine.lock_state();
        let left = self.machine.store.records.len();
        assert_eq!(
            (state.namespaces.len(), left),
            (NAMESPACES.len(), NAMESPACES.len() + state.deadlocks.len() + 1),
            "nothing is left over"
        );
    }
}

/// A refusal of a wait for several locks, because its session let go of one.
fn names_lock(answer: &Answer) -> bool {
    matches!(&answer.answer, Some(answer::Answer::Refusal(refusal)) if refusal.metadata.contains_key("lock"))
}

fn convert(
    (namespace, name): (String, String),
    session_id: u64,
    fencing_token: u64,
    mode: LockMode,
    wait_ms: u64,
) -> Operation {
    Operation::Convert(api::ConvertRequest {
        namespace,
        session_id,
        name,
        fencing_token,
        mode: mode.into(),
        wait_ms,
        request_id: None,
    })
}

fn release((namespace, name): (String, String), session_id: u64, fencing_token: u64) -> Operation {
    Operation::Release(api::ReleaseRequest {
        namespace,
        session_id,
        name,
        fencing_token,
        request_id: None,
    })
}
