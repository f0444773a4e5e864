//! Semaphores, by the log: what happened to permits, in the order in which those who watch are told it, against the rules and
//! against what callers were told.
//!
//! Events are not trusted alone: each grant must have been told to a caller of the same entry, and each caller who was told of a
//! grant must find it among the events.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::limits::ACQUIRES_PER_CLAIM_MAX;
use trefoil_core::machine::{Applied, Body, Outcome, WaiterId};
use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, CancelAcquire, Command};
use trefoil_proto::lock::v1::{LockEvent, LockEventKind as Kind};

use super::Violation;
use super::keys::{CallKey, LockKey, call_of, id_of};
use super::requests::is_forgotten;

const FITS: &str = "permits are granted where there is room";
const FIFO: &str = "nobody overtakes who waits for permits";
const RISE: &str = "tokens of a semaphore rise with its grants";
const ONCE: &str = "a session holds permits of a semaphore once";
const TOLD: &str = "a grant of permits is told to a caller, and none else";
const ENDED: &str = "a session that is over holds no permits and waits for none";
const CANCELLED: &str = "what was cancelled gets no permits";

/// How long after its end a session is swept away at the latest, in ms of log time.
const SWEPT_MS: u64 = 2_000;

#[derive(Clone, Debug)]
struct PermitHold {
    token: u64,
    permits: u64,
    /// Calls that were answered with it.
    relying: BTreeSet<CallKey>,
    /// More were than are remembered: no cancel releases it.
    is_kept: bool,
}

#[derive(Clone, Debug, Default)]
struct KnownSemaphore {
    permits: u64,
    /// The most that it had during the entry.
    most: u64,
    holds: BTreeMap<u64, PermitHold>,
    /// Sessions that wait, and for how many, in the order in which they began.
    line: Vec<(u64, u64)>,
    last_token: u64,
}

/// What became of each semaphore so far.
#[derive(Clone, Debug, Default)]
pub struct PermitChecker {
    semaphores: BTreeMap<LockKey, KnownSemaphore>,
    /// Token and number of every grant.
    known: BTreeSet<(u64, u64)>,
    /// Changes of permits that were carried out: they are not again.
    done: BTreeSet<CallKey>,
    /// Calls that wait.
    waiting: BTreeMap<WaiterId, CallKey>,
    /// The entry that brought each call last.
    brought: BTreeMap<CallKey, u64>,
    /// Calls that were taken back, and got nothing by then.
    cancelled: BTreeSet<CallKey>,
    /// The newest attempt of each call in the log.
    attempts: BTreeMap<CallKey, u32>,
    /// Lowest sequence of each client that it has not acknowledged.
    floors: BTreeMap<String, u64>,
    found: Vec<Violation>,
    /// The entry that is applied.
    index: u64,
    /// Grants after a wait.
    pub handed_on: u64,
}

impl PermitChecker {
    /// An entry was applied. `over_since` tells since when the time of a session has been up by the log.
    pub fn applied(
        &mut self,
        commands: &[Command],
        applied: &Applied,
        over_since: impl Fn(&str, u64) -> Option<u64>,
    ) -> Vec<Violation> {
        self.index = applied.index;
        self.resize(commands, &applied.outcomes);
        let mut granted = BTreeSet::new();
        for event in &applied.events {
            let Body::Lock(lock) = &event.body;
            if lock.permits > 0 {
                self.happened(&event.namespace, lock, &mut granted);
            }
        }
        // No answer is remembered of a call that its node has named: brought again, it takes permits anew.
        let takes = |command: &&Command| {
            command.request_id.is_none()
                && matches!(command.operation, Some(Operation::AcquirePermits(_)))
        };
        for id in commands.iter().filter(takes).filter_map(|take| call_of(None, &take.drawn)) {
            self.cancelled.remove(&id);
        }
        // What an entry takes back may have been granted in it.
        let before = self.cancelled.clone();
        let mut gone = Vec::new();
        for (command, outcome) in commands.iter().zip(&applied.outcomes) {
            self.command(command, outcome, &mut granted, &before, &mut gone);
        }
        for settled in &applied.settled {
            let id = id_of(settled.request_id.as_ref());
            let id = self.waiting.remove(&settled.waiter).or(id);
            self.told(id.as_ref(), &settled.answer, &mut granted, &before);
        }
        for token in granted {
            self.found.push(Violation::new(TOLD, format!("nobody was told of token {token:?}")));
        }
        self.judge_cancels(commands, &gone);
        self.judge_ends(commands, applied, over_since);
        std::mem::take(&mut self.found)
    }

    /// How many permits there are. Where that changes more than once in an entry, each of its grants had any of them.
    fn resize(&mut self, commands: &[Command], outcomes: &[Outcome]) {
        self.semaphores.values_mut().for_each(|semaphore| semaphore.most = semaphore.permits);
        for (command, outcome) in commands.iter().zip(outcomes) {
            let (Some(Operation::SetPermits(set)), Outcome::Answered(answer)) =
                (&command.operation, outcome)
            else {
                continue;
            };
            let is_again =
                id_of(command.request_id.as_ref()).is_some_and(|id| !self.done.insert(id));
            if !is_again && matches!(&answer.answer, Some(A::SetPermits(_))) {
                let name = (set.namespace.clone(), set.name.clone());
                let semaphore = self.semaphores.entry(name).or_default();
                semaphore.permits = set.permits;
                semaphore.most = semaphore.most.max(set.permits);
            }
        }
    }

    fn happened(&mut self, namespace: &str, event: &LockEvent, granted: &mut BTreeSet<(u64, u64)>) {
        let what = || format!("{namespace}: {event:?}");
        let name = (namespace.to_owned(), event.name.clone());
        let semaphore = self.semaphores.entry(name).or_default();
        let (session, permits, token) = (event.session_id, event.permits, event.fencing_token);
        let mut found = |promise| self.found.push(Violation::new(promise, what()));
        match event.kind() {
            Kind::Waiting => semaphore.line.push((session, permits)),
            Kind::WaitEnded => {
                let at = semaphore.line.iter().position(|wait| *wait == (session, permits));
                at.map(|at| semaphore.line.remove(at));
            }
            Kind::Acquired => {
                let in_use = semaphore.holds.values().map(|hold| hold.permits).sum::<u64>();
                if in_use + permits > semaphore.most {
                    found(FITS);
                }
                if semaphore.line.first().is_some_and(|first| *first != (session, permits)) {
                    found(FIFO);
                }
                if token <= semaphore.last_token {
                    found(RISE);
                }
                self.handed_on += u64::from(!semaphore.line.is_empty());
                semaphore.line.retain(|(other, _)| *other != session);
                semaphore.last_token = token;
                granted.insert((token, permits));
                self.known.insert((token, permits));
                let hold = PermitHold { token, permits, relying: BTreeSet::new(), is_kept: false };
                if semaphore.holds.insert(session, hold).is_some() {
                    found(ONCE);
                }
            }
            Kind::Released | Kind::Expired | Kind::Forced => {
                let hold = semaphore.holds.remove(&session);
                if hold.is_none_or(|hold| (hold.token, hold.permits) != (token, permits)) {
                    found(ONCE);
                }
            }
            _ => {}
        }
    }

    fn command(
        &mut self,
        command: &Command,
        outcome: &Outcome,
        granted: &mut BTreeSet<(u64, u64)>,
        before: &BTreeSet<CallKey>,
        gone: &mut Vec<(LockKey, u64)>,
    ) {
        let id = call_of(command.request_id.as_ref(), &command.drawn);
        let answer = match outcome {
            Outcome::Answered(answer) => Some(answer),
            Outcome::Waiting(_) => None,
        };
        if answer.is_some_and(is_forgotten) {
            return;
        }
        match &command.operation {
            Some(Operation::AcquirePermits(_)) => {
                self.brought.extend(id.clone().map(|id| (id, self.index)));
                if let (Some(id), Some(full)) = (&id, &command.request_id) {
                    let attempt = self.attempts.entry(id.clone()).or_default();
                    *attempt = full.attempt.max(*attempt);
                }
                match (outcome, id) {
                    (Outcome::Answered(answer), id) => {
                        self.told(id.as_ref(), answer, granted, before);
                    }
                    (Outcome::Waiting(waiter), Some(id)) => {
                        self.waiting.insert(waiter.clone(), id);
                    }
                    (Outcome::Waiting(_), None) => {}
                }
            }
            Some(Operation::CancelAcquire(cancel)) if cancel.permits > 0 => {
                gone.extend(self.cancel(cancel));
            }
            _ => {}
        }
        if let Some(full) = &command.request_id {
            let floor = self.floors.entry(full.client.clone()).or_default();
            *floor = full.first_unacknowledged.max(*floor);
        }
    }

    /// A caller was told how its call ended; also again, by a retry.
    fn told(
        &mut self,
        id: Option<&CallKey>,
        answer: &Answer,
        granted: &mut BTreeSet<(u64, u64)>,
        before: &BTreeSet<CallKey>,
    ) {
        let Some(A::AcquirePermits(got)) = &answer.answer else { return };
        if !got.acquired {
            return;
        }
        if id.is_some_and(|id| before.contains(id)) {
            self.found.push(Violation::new(CANCELLED, format!("{id:?}: {got:?}")));
        }
        let grant = (got.fencing_token, got.permits);
        granted.remove(&grant);
        if !self.known.contains(&grant) {
            self.found.push(Violation::new(TOLD, format!("{id:?}: {got:?}")));
        }
        let mut holds =
            self.semaphores.values_mut().flat_map(|semaphore| semaphore.holds.values_mut());
        // None where it is over already.
        if let Some(hold) = holds.find(|hold| (hold.token, hold.permits) == grant) {
            hold.relying.extend(id.cloned());
            hold.is_kept |= hold.relying.len() >= ACQUIRES_PER_CLAIM_MAX;
        }
    }

    /// The caller of a call is gone: it waits no more, and what it alone got is let go, which is answered.
    fn cancel(&mut self, cancel: &CancelAcquire) -> Option<(LockKey, u64)> {
        let call = cancel.call.as_ref()?;
        let id = call_of(call.request_id.as_ref(), &call.drawn)?;
        let is_late =
            |full: &RequestId| self.attempts.get(&id).is_some_and(|newest| *newest > full.attempt);
        let is_in_use = |full: &RequestId| {
            let floor = self.floors.get(&full.client).copied().unwrap_or_default();
            full.attempt < u32::MAX && full.sequence < floor
        };
        let full = call.request_id.as_ref();
        if full.is_some_and(is_late)
            || cancel.as_of > 0 && self.brought.get(&id) > Some(&cancel.as_of)
        {
            return None;
        }
        let waits = self.waiting.iter().find(|(_, waiting)| **waiting == id);
        if let Some(waiter) = waits.map(|(waiter, _)| waiter.clone()) {
            self.waiting.remove(&waiter);
            self.cancelled.insert(id);
            return None;
        }
        if full.is_some_and(is_in_use) {
            return None;
        }
        let name = (cancel.namespace.clone(), cancel.name.clone());
        let hold = self.semaphores.get_mut(&name)?.holds.get_mut(&cancel.session_id)?;
        if hold.permits != cancel.permits || !hold.relying.remove(&id) {
            return None;
        }
        self.cancelled.insert(id);
        (hold.relying.is_empty() && !hold.is_kept).then_some((name, hold.token))
    }

    /// What was let go is not held at the end of the entry.
    fn judge_cancels(&mut self, commands: &[Command], gone: &[(LockKey, u64)]) {
        for (name, token) in gone {
            let holds = self.semaphores.get(name).map(|semaphore| &semaphore.holds);
            // Somebody may have been answered with it later in the entry.
            let is_left = holds
                .into_iter()
                .flatten()
                .any(|(_, hold)| hold.token == *token && hold.relying.is_empty() && !hold.is_kept);
            if is_left {
                let what = format!("token {token} of {name:?} after {} commands", commands.len());
                self.found.push(Violation::new(CANCELLED, what));
            }
        }
    }

    /// A session that was closed in this entry, or whose time has been up for long, has nothing left.
    fn judge_ends(
        &mut self,
        commands: &[Command],
        applied: &Applied,
        over_since: impl Fn(&str, u64) -> Option<u64>,
    ) {
        let closed = commands.iter().zip(&applied.outcomes).filter_map(|(command, outcome)| {
            let Some(Operation::CloseSession(close)) = &command.operation else { return None };
            let is_closed = matches!(outcome, Outcome::Answered(answer) if matches!(answer.answer, Some(A::CloseSession(_))));
            is_closed.then_some((close.namespace.as_str(), close.session_id))
        });
        let closed = closed.collect::<BTreeSet<_>>();
        let is_over = |namespace: &str, session: u64| {
            let late = |since: u64| applied.log_time_ms >= since.saturating_add(SWEPT_MS);
            closed.contains(&(namespace, session))
                || over_since(namespace, session).is_some_and(late)
        };
        for (name, semaphore) in &self.semaphores {
            let sessions = semaphore.holds.keys().chain(semaphore.line.iter().map(|wait| &wait.0));
            if let Some(session) = sessions.copied().find(|session| is_over(&name.0, *session)) {
                let what = format!("session {session} of {name:?}: {semaphore:?}");
                self.found.push(Violation::new(ENDED, what));
            }
        }
    }
}

#[cfg(test)]
mod tests;
