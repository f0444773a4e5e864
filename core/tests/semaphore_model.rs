//! Random commands about semaphores against a small model of them: who holds how much, and who stands in line.
//!
//! Sessions live long here and leaders stay: what ends of itself is the time of waits. Each entry is applied by two machines,
//! one of which is opened again from its store now and then.

#[path = "support/lock_watch.rs"]
mod lock_watch;
#[path = "support/models.rs"]
mod models;
#[path = "support/semaphore_parts.rs"]
mod semaphore_parts;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use trefoil_core::machine::{Applied, Outcome, QueryOutcome, WaiterId};
use trefoil_core::slot;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{Answer, CallName, CancelAcquire, Command, ForceStep, answer};
use trefoil_proto::lock::v1 as api;

use self::lock_watch::Watcher;
use self::semaphore_parts::{End, Holder, Seen, Semaphore, Waiter};
use self::support::{Harness, command, drawn};

const NAMESPACE: &str = "default";
const NAMES: [&str; 2] = ["a", "ab"];
const SESSIONS: u64 = 5;
const PERMITS: u64 = 6;

#[derive(Clone, Debug)]
enum Step {
    Set {
        name: usize,
        permits: u64,
    },
    Delete {
        name: usize,
    },
    /// `call` tells calls of a session for the same apart.
    Take {
        session: u64,
        name: usize,
        permits: u64,
        wait_ms: u64,
        call: u64,
    },
    Give {
        session: u64,
        name: usize,
        is_right: bool,
    },
    Cancel {
        session: u64,
        name: usize,
        permits: u64,
        call: u64,
    },
    Force {
        name: usize,
        which: usize,
    },
    ReleaseAll {
        session: u64,
    },
    Close {
        session: u64,
    },
    Advance {
        ms: u64,
    },
    Reopen,
}

struct World {
    machine: Harness,
    twin: Harness,
    watcher: Watcher,
    open: BTreeSet<u64>,
    semaphores: BTreeMap<&'static str, Semaphore>,
    /// What each waiter waits for.
    names: BTreeMap<WaiterId, &'static str>,
    last_token: u64,
    seen: Seen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = || 1..=SESSIONS;
    let name = || prop_oneof![3 => Just(0), 1 => Just(1_usize)];
    let permits = || prop_oneof![3 => 1..3_u64, 1 => 1..=PERMITS + 1];
    let wait_ms = || prop_oneof![1 => Just(0), 6 => 1..4_000_u64];
    let step = prop_oneof![
        4 => (name(), 1..=PERMITS).prop_map(|(name, permits)| Step::Set { name, permits }),
        1 => name().prop_map(|name| Step::Delete { name }),
        20 => (session(), name(), permits(), wait_ms(), 0..2_u64).prop_map(
            |(session, name, permits, wait_ms, call)| {
                Step::Take { session, name, permits, wait_ms, call }
            }
        ),
        9 => (session(), name(), prop_oneof![4 => Just(true), 1 => Just(false)])
            .prop_map(|(session, name, is_right)| Step::Give { session, name, is_right }),
        4 => (session(), name(), permits(), 0..2_u64).prop_map(
            |(session, name, permits, call)| Step::Cancel { session, name, permits, call }
        ),
        1 => (name(), 0..3_usize).prop_map(|(name, which)| Step::Force { name, which }),
        1 => session().prop_map(|session| Step::ReleaseAll { session }),
        1 => session().prop_map(|session| Step::Close { session }),
        6 => (0..900_u64).prop_map(|ms| Step::Advance { ms }),
        1 => Just(Step::Reopen),
    ];
    vec(step, 1..120)
}

#[test]
fn permits_are_handed_out_in_order_and_never_more_than_there_are() {
    models::run(1_500, &steps(), 50, |steps: Vec<Step>| {
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
            watcher: Watcher::default(),
            open: BTreeSet::new(),
            semaphores: BTreeMap::new(),
            names: BTreeMap::new(),
            last_token: 0,
            seen: Seen::default(),
        };
        for session in 1..=SESSIONS {
            let (namespace, ttl_ms) = (NAMESPACE.to_owned(), 86_400_000);
            let open = api::OpenSessionRequest { namespace, ttl_ms, ..Default::default() };
            world.send(Operation::OpenSession(open));
            world.open.insert(session);
        }
        world.step(Step::Set { name: 0, permits: PERMITS / 2 });
        world
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Set { name, permits } => self.set(NAMES[name], permits),
            Step::Delete { name } => self.delete(NAMES[name]),
            Step::Take { session, name, permits, wait_ms, call } => {
                self.take(session, NAMES[name], permits, wait_ms, call);
            }
            Step::Give { session, name, is_right } => self.give(session, NAMES[name], is_right),
            Step::Cancel { session, name, permits, call } => {
                self.cancel(session, NAMES[name], (permits, call));
            }
            Step::Force { name, which } => self.force(NAMES[name], which),
            Step::ReleaseAll { session } => self.release_all(session),
            Step::Close { session } => self.close(session),
            Step::Advance { ms } => {
                self.machine.now_ms += ms;
                self.twin.now_ms += ms;
                let applied = self.entry(Vec::new());
                let ended = self.expire_waits();
                self.settle(&applied, ended);
            }
            Step::Reopen => self.twin.reopen(),
        }
        self.compare();
    }

    fn set(&mut self, name: &'static str, permits: u64) {
        let namespace = NAMESPACE.to_owned();
        let applied = self.send(Operation::SetPermits(api::SetPermitsRequest {
            namespace,
            name: name.to_owned(),
            permits,
            request_id: None,
        }));
        let semaphore = self.semaphores.entry(name).or_default();
        let before = std::mem::replace(&mut semaphore.permits, permits);
        let ended = self.grant_waiters(name);
        self.settle(&applied, ended);
        let semaphore = &self.semaphores[name];
        self.seen.over_full += u64::from(semaphore.in_use() > permits);
        let set = answer::Answer::SetPermits(api::SetPermitsResponse {
            header: None,
            permits_before: before,
            in_use: semaphore.in_use(),
        });
        assert_eq!(answered(&applied), set);
    }

    fn delete(&mut self, name: &'static str) {
        let applied = self.send(Operation::DeleteSemaphore(api::DeleteSemaphoreRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            request_id: None,
        }));
        let is_used =
            |semaphore: &Semaphore| !semaphore.holders.is_empty() || !semaphore.line.is_empty();
        match self.semaphores.get(name).map(is_used) {
            None => assert_eq!(refused(&applied), Some(Reason::UnknownSemaphore)),
            Some(true) => {
                assert_eq!(refused(&applied), Some(Reason::SemaphoreInUse));
                self.seen.kept += 1;
            }
            Some(false) => {
                assert_eq!(refused(&applied), None);
                self.semaphores.remove(name);
                self.seen.deleted += 1;
            }
        }
        self.settle(&applied, Vec::new());
    }

    fn take(&mut self, session: u64, name: &'static str, permits: u64, wait_ms: u64, call: u64) {
        let take = Operation::AcquirePermits(api::AcquirePermitsRequest {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            name: name.to_owned(),
            permits,
            wait_ms,
            request_id: None,
        });
        let drawn = drawn_for(session, name, (permits, call));
        let take = Command { drawn, ..command(slot::of_locks(NAMESPACE), 1, None, take) };
        let applied = self.commands(vec![take]);
        self.settle(&applied, Vec::new());
        let now_ms = self.machine.now_ms;
        if !self.open.contains(&session) {
            return assert_eq!(refused(&applied), Some(Reason::SessionExpired));
        }
        let Some(semaphore) = self.semaphores.get_mut(name) else {
            return assert_eq!(refused(&applied), Some(Reason::UnknownSemaphore));
        };
        let (room, seen) = (semaphore.room(), &mut self.seen);
        if let Some(holder) = semaphore.holders.iter_mut().find(|of| of.session == session) {
            if holder.permits != permits {
                seen.other_number += 1;
                return assert_eq!(refused(&applied), Some(Reason::PermitsHeld));
            }
            holder.add_acquirer((permits, call));
            seen.again += 1;
            return assert_eq!(granted(&answered(&applied)), Some((permits, holder.token)));
        }
        let same = |of: &&Waiter| (of.session, of.permits, of.call) == (session, permits, call);
        if let Some(waiter) = semaphore.line.iter().find(same) {
            return assert_eq!(applied.outcomes[0], Outcome::Waiting(waiter.id.clone()));
        } else if permits > semaphore.permits {
            seen.too_many += 1;
            return assert_eq!(refused(&applied), Some(Reason::InvalidField));
        } else if semaphore.line.is_empty() && permits <= room {
            let (had, token) =
                granted(&answered(&applied)).expect("there is room, and nobody waits");
            assert!(had == permits && token > self.last_token);
            self.last_token = token;
            seen.granted_at_once += 1;
            return semaphore.holders.push(Holder::new(session, permits, token, &[call]));
        }
        seen.not_overtaken += u64::from(permits <= room);
        if wait_ms == 0 {
            let none = api::AcquirePermitsResponse {
                available: room,
                waiter_count: semaphore.line.len() as u64,
                ..Default::default()
            };
            return assert_eq!(answered(&applied), answer::Answer::AcquirePermits(none));
        }
        let Outcome::Waiting(id) = &applied.outcomes[0] else { panic!("it waits: {applied:?}") };
        let (id, deadline_ms) = (id.clone(), now_ms + wait_ms);
        self.names.insert(id.clone(), name);
        semaphore.line.push(Waiter { id, session, permits, deadline_ms, call });
    }

    fn give(&mut self, session: u64, name: &'static str, is_right: bool) {
        let holder = self.semaphores.get(name).and_then(|semaphore| semaphore.holder(session));
        let token =
            holder.map_or(1, |holder| if is_right { holder.token } else { holder.token + 1 });
        let is_holder = holder.is_some() && is_right;
        let applied = self.send(Operation::ReleasePermits(api::ReleasePermitsRequest {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            name: name.to_owned(),
            fencing_token: token,
            request_id: None,
        }));
        let expected = match (self.open.contains(&session), is_holder) {
            (false, _) => Some(Reason::SessionExpired),
            (true, false) => Some(Reason::NotHolder),
            (true, true) => None,
        };
        assert_eq!(refused(&applied), expected);
        let ended = if is_holder { self.free(name, session) } else { Vec::new() };
        self.settle(&applied, ended);
    }

    fn cancel(&mut self, session: u64, name: &'static str, call: (u64, u64)) {
        let applied = self.send(Operation::CancelAcquire(CancelAcquire {
            namespace: NAMESPACE.to_owned(),
            session_id: session,
            name: name.to_owned(),
            permits: call.0,
            call: Some(CallName { drawn: drawn_for(session, name, call), ..Default::default() }),
            ..CancelAcquire::default()
        }));
        let mut ended = Vec::new();
        if let Some(semaphore) = self.semaphores.get_mut(name) {
            let same = |of: &Waiter| (of.session, of.permits, of.call) == (session, call.0, call.1);
            if let Some(at) = semaphore.line.iter().position(same) {
                ended.push((semaphore.line.remove(at).id, End::None));
                ended.extend(self.grant_waiters(name));
                self.seen.cancelled_waits += 1;
            } else if let Some(holder) =
                semaphore.holders.iter_mut().find(|of| of.session == session)
                && holder.callers.remove(&call)
                && holder.callers.is_empty()
            {
                ended = self.free(name, session);
                self.seen.cancelled_grants += 1;
            }
        }
        self.settle(&applied, ended);
    }

    fn force(&mut self, name: &'static str, which: usize) {
        let holders = self.semaphores.get(name).map_or(&[][..], |semaphore| &semaphore.holders);
        let Some(Holder { session, token, .. }) = holders.get(which).cloned() else { return };
        let applied = self.send(Operation::ForceStep(ForceStep {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            fencing_token: token,
            token: 0,
        }));
        let answer::Answer::ForcedStep(step) = answered(&applied) else { panic!("{applied:?}") };
        assert!(step.released == 1 && step.token > self.last_token);
        self.last_token = step.token;
        self.seen.forced += 1;
        let ended = self.free(name, session);
        self.settle(&applied, ended);
    }

    fn release_all(&mut self, session: u64) {
        let namespace = NAMESPACE.to_owned();
        let release = trefoil_proto::internal::v1::ReleaseHeld {
            namespace,
            session_id: session,
            ..Default::default()
        };
        let applied = self.send(Operation::ReleaseHeld(release));
        let ended = self.end_holds(session);
        self.settle(&applied, ended);
    }

    fn close(&mut self, session: u64) {
        let namespace = NAMESPACE.to_owned();
        let close = api::CloseSessionRequest { namespace, session_id: session, request_id: None };
        let applied = self.send(Operation::CloseSession(close));
        self.open.remove(&session);
        let mut ended = Vec::new();
        for semaphore in self.semaphores.values_mut() {
            let (gone, line) = std::mem::take(&mut semaphore.line)
                .into_iter()
                .partition(|of| of.session == session);
            semaphore.line = line;
            let gone: Vec<Waiter> = gone;
            ended.extend(gone.into_iter().map(|waiter| (waiter.id, End::Expired)));
        }
        ended.extend(self.end_holds(session));
        self.settle(&applied, ended);
    }

    /// A session holds nothing any more, and its line goes on.
    fn end_holds(&mut self, session: u64) -> Vec<(WaiterId, End)> {
        let names = self.semaphores.keys().copied().collect::<Vec<_>>();
        names.into_iter().flat_map(|name| self.free(name, session)).collect()
    }

    fn free(&mut self, name: &'static str, session: u64) -> Vec<(WaiterId, End)> {
        let semaphore = self.semaphores.get_mut(name).expect("it is there");
        semaphore.holders.retain(|holder| holder.session != session);
        self.grant_waiters(name)
    }

    /// Waits whose time is over end; what they kept from others goes to those.
    fn expire_waits(&mut self) -> Vec<(WaiterId, End)> {
        let now_ms = self.machine.now_ms;
        let mut ended = Vec::new();
        for semaphore in self.semaphores.values_mut() {
            let late = semaphore.line.iter().filter(|waiter| waiter.deadline_ms <= now_ms);
            ended.extend(late.map(|waiter| (waiter.id.clone(), End::None)));
            semaphore.line.retain(|waiter| waiter.deadline_ms > now_ms);
        }
        self.seen.timed_out += ended.len() as u64;
        for name in NAMES {
            ended.extend(self.grant_waiters(name));
        }
        ended
    }

    /// Whose turn it is gets what it waits for; all calls of its session end with that.
    fn grant_waiters(&mut self, name: &'static str) -> Vec<(WaiterId, End)> {
        let Some(semaphore) = self.semaphores.get_mut(name) else { return Vec::new() };
        let mut ended = Vec::new();
        while let Some(first) = semaphore.line.first().cloned() {
            if first.permits > semaphore.permits {
                ended.push((first.id, End::TooMany));
                semaphore.line.remove(0);
                self.seen.too_many_later += 1;
                continue;
            }
            if first.permits > semaphore.room() {
                break;
            }
            self.seen.handed_on += 1;
            let mut calls = Vec::new();
            semaphore.line.retain(|waiter| {
                let is_other = waiter.session != first.session;
                if !is_other {
                    let same = waiter.permits == first.permits;
                    calls.extend(same.then_some(waiter.call));
                    let end = if same { End::Granted(first.permits) } else { End::HoldsOthers };
                    ended.push((waiter.id.clone(), end));
                }
                is_other
            });
            let Waiter { session, permits, .. } = first;
            // Its token is filled in when its caller is told.
            semaphore.holders.push(Holder::new(session, permits, 0, &calls));
        }
        ended
    }

    /// Compares the calls that ended, and takes their tokens out of what they were told.
    fn settle(&mut self, applied: &Applied, mut expected: Vec<(WaiterId, End)>) {
        let mut told = Vec::new();
        for settled in &applied.settled {
            let answer = settled.answer.answer.clone().expect("an answer says something");
            let end = match (granted(&answer), &answer) {
                (Some((permits, token)), _) => {
                    self.learn(&settled.waiter, token);
                    End::Granted(permits)
                }
                (None, answer::Answer::AcquirePermits(_)) => End::None,
                (None, answer::Answer::Refusal(refusal)) => match refusal.reason() {
                    Reason::InvalidField => End::TooMany,
                    Reason::PermitsHeld => End::HoldsOthers,
                    Reason::SessionExpired => End::Expired,
                    _ => panic!("{refusal:?}"),
                },
                other => panic!("{other:?}"),
            };
            told.push((settled.waiter.clone(), end));
        }
        // A grant that was cancelled is settled under ordinal 0, where no call waits.
        told.retain(|(waiter, _)| !waiter.0.ends_with(&[0; 8]));
        told.sort();
        expected.sort();
        assert_eq!(told, expected, "calls end as the model says");
    }

    fn learn(&mut self, waiter: &WaiterId, token: u64) {
        // The key of a wait ends with its session and its ordinal.
        let bytes = &waiter.0[waiter.0.len() - 16..waiter.0.len() - 8];
        let session = u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
        let name = self.names[waiter];
        let mut holders = self.semaphores.get_mut(name).into_iter().flat_map(|of| &mut of.holders);
        let holder = holders.find(|of| of.session == session);
        let holder = holder.expect("who is told of permits has them");
        assert!(holder.token == token || token > self.last_token, "tokens rise");
        holder.token = token;
        self.last_token = self.last_token.max(token);
    }

    fn compare(&mut self) {
        for name in NAMES {
            let name = name.to_owned();
            let request = api::DescribeSemaphoreRequest { namespace: NAMESPACE.into(), name };
            let query = Q::DescribeSemaphore(request.clone());
            let outcome = self.machine.query(slot::of_locks(NAMESPACE), 1, query).1;
            let QueryOutcome::Answered(Answer { answer: Some(answer) }) = outcome else {
                panic!("{outcome:?}")
            };
            let Some(semaphore) = self.semaphores.get(&*request.name) else {
                assert!(matches!(answer, answer::Answer::Refusal(_)));
                continue;
            };
            let answer::Answer::DescribeSemaphore(shown) = answer else { panic!("{answer:?}") };
            let holders = semaphore.holders.iter();
            let holders = holders.map(|of| (of.token, of.session, of.permits));
            let mut holders = holders.collect::<Vec<_>>();
            holders.sort_unstable();
            let shown_holders =
                shown.holders.iter().map(|of| (of.fencing_token, of.session_id, of.permits));
            assert_eq!(shown_holders.collect::<Vec<_>>(), holders);
            let line = semaphore.line.iter().map(|of| (of.session, of.permits));
            let shown_line = shown.waiters.iter().map(|of| (of.session_id, of.permits));
            assert!(line.eq(shown_line), "the line is in order");
            let info = shown.semaphore.expect("it is described");
            assert_eq!((info.permits, info.in_use), (semaphore.permits, semaphore.in_use()));
        }
    }

    fn send(&mut self, operation: Operation) -> Applied {
        self.entry(vec![operation])
    }

    fn entry(&mut self, operations: Vec<Operation>) -> Applied {
        let slot = slot::of_locks(NAMESPACE);
        let commands = operations.into_iter().map(|operation| command(slot, 1, None, operation));
        self.commands(commands.collect())
    }

    fn commands(&mut self, commands: Vec<Command>) -> Applied {
        let (applied, twin) = (self.machine.apply(commands.clone()), self.twin.apply(commands));
        assert_eq!(applied, twin, "two machines say the same");
        assert_eq!(self.machine.digest(), self.twin.digest());
        let state = self.machine.lock_state();
        self.watcher.see(&applied);
        self.watcher.check(&state);
        applied
    }

    /// All sessions are closed and all semaphores deleted: nothing is left.
    fn finish(&mut self) {
        (1..=SESSIONS).for_each(|session| self.step(Step::Close { session }));
        (0..NAMES.len()).for_each(|name| self.step(Step::Delete { name }));
        let state = self.machine.lock_state();
        assert!(state.locks.is_empty() && state.claims.is_empty() && state.waits.is_empty());
    }
}

/// What was drawn for a call: the permits that it asks for, and what tells it from others for as many.
fn drawn_for(session: u64, name: &str, (permits, call): (u64, u64)) -> Bytes {
    drawn(&format!("{session} {name} {permits} {call}"))
}

fn answered(applied: &Applied) -> answer::Answer {
    match &applied.outcomes[0] {
        Outcome::Answered(Answer { answer: Some(answer) }) => answer.clone(),
        other => panic!("{other:?}"),
    }
}

fn refused(applied: &Applied) -> Option<Reason> {
    match answered(applied) {
        answer::Answer::Refusal(refusal) => Some(refusal.reason()),
        _ => None,
    }
}

/// How many permits, and the token.
fn granted(answer: &answer::Answer) -> Option<(u64, u64)> {
    match answer {
        answer::Answer::AcquirePermits(got) if got.acquired => {
            Some((got.permits, got.fencing_token))
        }
        _ => None,
    }
}
