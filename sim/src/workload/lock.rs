//! A lock client: up to three locks at a time, in all modes, and all that the lock service can do with them.

use trefoil_core::limits::SESSION_TTL_MS_MIN;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{Answer, answer};
use trefoil_proto::lock::v1::LockMode;

use crate::check::history::{Action, RecordedOutcome};
use crate::client_context::ClientContext;
use crate::config::{MILLISECOND, SECOND};
use crate::rng::Rng;
use crate::workload::coordination::{CoordinationClient, campaign, proclaim};
use crate::workload::planned::{PlannedCall, Wish, step};

/// Namespaces of locks of a run.
pub(crate) const NAMESPACES: [&str; 2] = ["left", "right"];
/// Locks of each namespace.
const LOCKS: [&str; 3] = ["door", "gate", "hatch"];
/// Modes, from the weakest on.
const MODES: [LockMode; 3] = [LockMode::Shared, LockMode::Update, LockMode::Exclusive];
/// Longest wait for a lock, in ms.
const WAIT_MS_MAX: u64 = 3_000;
/// Of a thousand calls that acquire, those without request id.
const ANONYMOUS: u64 = 250;
/// Longest lock delay, in ms.
const DELAY_MS_MAX: u64 = 3_000;

/// A lock that a client was told it holds.
#[derive(Clone, Debug)]
struct HeldLock {
    lock: String,
    token: u64,
    mode: LockMode,
}

/// What a lock client has.
#[derive(Debug)]
pub struct LockClient {
    namespace: String,
    session: Option<u64>,
    held: Vec<HeldLock>,
    /// A token that it was told last, of its own or of somebody else.
    seen: u64,
    coordination: CoordinationClient,
}

impl LockClient {
    /// One without a session.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        let (namespace, coordination) = (namespace.to_owned(), CoordinationClient::default());
        Self { namespace, session: None, held: Vec::new(), seen: 1, coordination }
    }

    /// What it wants next; `unique` is a text of its own, `me` names the call.
    pub fn next(&mut self, unique: &str, me: RequestId, shared: &mut ClientContext) -> Wish {
        let namespace = self.namespace.clone();
        let rng = &mut shared.rng;
        let Some(session) = self.session else {
            let ttl_ms = rng.between(SESSION_TTL_MS_MIN, 5_000);
            return ask(Action::OpenSession { namespace, ttl_ms, delay_ms: delay(rng) }, shared);
        };
        if rng.chance(120) {
            return Wish::Do(self.coordination.next((&namespace, session), &LOCKS, me, shared));
        }
        if let Some(hold) = self.held.iter().find(|hold| hold.mode == LockMode::Exclusive)
            && rng.chance(60)
        {
            let hold = (session, hold.lock.as_str(), hold.token);
            return Wish::Do(proclaim(&namespace, hold, unique.to_owned(), shared));
        }
        if !self.held.is_empty() && rng.chance(100) {
            return self.again(session, shared);
        }
        let lock = (*rng.pick(&LOCKS)).to_owned();
        let action = match rng.between(0, 39) {
            0 | 1 => Action::CloseSession { namespace, session },
            // A holder that stands still: its session may expire.
            2 | 3 => return Wish::Rest(rng.between(1, 8) * SECOND),
            // Of a lock that it need not hold, by a token that need not be its own.
            4 => Action::Release { namespace, session, lock, token: rng.between(0, 20) },
            5 => Action::ReleaseAll { namespace, session },
            // An operator, who takes it from all or from one.
            6 => {
                let token = if rng.chance(500) { 0 } else { self.seen };
                Action::ForceRelease { namespace, lock, token }
            }
            7 | 8 => Action::DescribeLock { namespace, lock },
            9 | 10 => Action::ValidateToken { namespace, lock, token: self.seen },
            11..=13 => Action::KeepAlive { namespace, session },
            // Somebody's, whose ids may count, or be near its own.
            14 => {
                let low = rng.between(1, 20);
                let is_near = low == session || rng.chance(300);
                let session = if is_near { session ^ 1 } else { low };
                Action::GuessSession { namespace, session }
            }
            _ => self.work(session, rng),
        };
        let is_alone = matches!(action, Action::Acquire { mode: LockMode::Exclusive, .. });
        let value = (is_alone && shared.rng.chance(400)).then(|| unique.to_owned());
        let wish = ask(action, shared);
        match (wish, value) {
            (Wish::Do(step), Some(value)) => {
                let request = campaign(step.request, value);
                Wish::Do(PlannedCall { request, ..step })
            }
            (wish, _) => wish,
        }
    }

    /// A call that is not recorded was answered.
    pub fn told(&mut self, answer: &Answer) {
        match &answer.answer {
            Some(answer::Answer::Refusal(refusal))
                if refusal.reason() == Reason::SessionExpired =>
            {
                self.session = None;
                self.held.clear();
            }
            _ => self.coordination.told(answer),
        }
    }

    /// Acquires what it holds once more, without request id, and mostly hangs up: what it holds stays.
    fn again(&self, session: u64, shared: &mut ClientContext) -> Wish {
        let HeldLock { lock, mode, .. } = shared.rng.pick(&self.held).clone();
        let (namespace, wait_ms) = (self.namespace.clone(), wait(&mut shared.rng));
        let action = Action::Acquire { namespace, session, lock, mode, wait_ms, delay_ms: None };
        let request = shared.router.request(&action);
        let step = anonymous(step(action, request));
        let soon = shared.rng.chance(700).then(|| shared.rng.between(0, 20) * MILLISECOND);
        Wish::Do(PlannedCall { hang_up_us: soon, ..step })
    }

    /// To acquire, convert or release.
    fn work(&self, session: u64, rng: &mut Rng) -> Action {
        let namespace = self.namespace.clone();
        let free = LOCKS.iter().filter(|name| self.held.iter().all(|held| held.lock != **name));
        let free = free.copied().collect::<Vec<_>>();
        let wants_more = match self.held.len() {
            0 => true,
            1 => rng.chance(300),
            _ => false,
        };
        if wants_more && rng.chance(250) {
            return self.acquire_all(session, rng);
        }
        if wants_more {
            let (lock, mode) = ((*rng.pick(&free)).to_owned(), *rng.pick(&MODES));
            let delay_ms = rng.chance(300).then(|| delay(rng));
            return Action::Acquire {
                namespace,
                session,
                lock,
                mode,
                wait_ms: wait(rng),
                delay_ms,
            };
        }
        let HeldLock { lock, token, mode } = rng.pick(&self.held).clone();
        if rng.chance(400) {
            let others = MODES.into_iter().filter(|other| *other != mode).collect::<Vec<_>>();
            let mode = *rng.pick(&others);
            return Action::Convert { namespace, session, lock, token, mode, wait_ms: wait(rng) };
        }
        Action::Release { namespace, session, lock, token }
    }

    /// Two or three locks in any order, those included that it holds.
    fn acquire_all(&self, session: u64, rng: &mut Rng) -> Action {
        let mut names = LOCKS.to_vec();
        let mut locks = Vec::new();
        for _ in 0..rng.between(2, LOCKS.len() as u64) {
            let name = *rng.pick(&names);
            names.retain(|other| *other != name);
            let held = self.held.iter().find(|held| held.lock == name);
            // Mostly as it has it: another mode may be refused.
            let mode = held.filter(|_| rng.chance(800)).map(|held| held.mode);
            locks.push((name.to_owned(), mode.unwrap_or_else(|| *rng.pick(&MODES))));
        }
        Action::AcquireAll {
            namespace: self.namespace.clone(),
            session,
            locks,
            wait_ms: wait(rng),
            delay_ms: rng.chance(300).then(|| delay(rng)),
        }
    }

    /// A recorded call was answered.
    pub fn learned(&mut self, action: &Action, outcome: &RecordedOutcome) {
        match (action, outcome) {
            (Action::GuessSession { .. }, _) => {}
            (_, RecordedOutcome::SessionOpened { session }) => {
                self.session = Some(*session);
                self.coordination = CoordinationClient::default();
                self.held.clear();
            }
            (
                _,
                RecordedOutcome::SessionClosed | RecordedOutcome::Refused(Reason::SessionExpired),
            ) => {
                self.session = None;
                self.held.clear();
            }
            (
                Action::Acquire { lock, .. } | Action::Convert { lock, .. },
                RecordedOutcome::Acquired { token, mode }
                | RecordedOutcome::Converted { token, mode },
            ) => {
                self.seen = *token;
                self.held.retain(|held| held.lock != *lock);
                self.held.push(HeldLock { lock: lock.clone(), token: *token, mode: *mode });
            }
            (_, RecordedOutcome::AcquiredAll { grants }) => {
                for (lock, token, mode) in grants {
                    self.seen = *token;
                    self.held.retain(|held| held.lock != *lock);
                    self.held.push(HeldLock { lock: lock.clone(), token: *token, mode: *mode });
                }
            }
            (Action::Release { lock, .. }, RecordedOutcome::Released)
            | (
                Action::Release { lock, .. } | Action::Convert { lock, .. },
                RecordedOutcome::Refused(Reason::NotHolder),
            ) => {
                self.held.retain(|held| held.lock != *lock);
            }
            (Action::ReleaseAll { .. }, _) => self.held.clear(),
            (_, RecordedOutcome::Described { holders }) => {
                self.seen = holders.first().copied().unwrap_or(self.seen);
            }
            _ => {}
        }
    }
}

/// Without request id a call is asked once, whatever becomes of it.
fn anonymous(step: PlannedCall) -> PlannedCall {
    PlannedCall { idempotent: false, once: true, ..step }
}

fn delay(rng: &mut Rng) -> u64 {
    if rng.chance(500) { 0 } else { rng.between(1, DELAY_MS_MAX) }
}

pub(crate) fn wait(rng: &mut Rng) -> u64 {
    if rng.chance(300) { 0 } else { rng.between(1, WAIT_MS_MAX) }
}

/// Asks; now and then it hangs up on a wait.
pub(crate) fn ask(action: Action, shared: &mut ClientContext) -> Wish {
    let request = shared.router.request(&action);
    let mut step = step(action, request);
    if step.action.as_ref().is_some_and(Action::acquires) && shared.rng.chance(ANONYMOUS) {
        step = anonymous(step);
    }
    if step.wait_us > 0 && shared.rng.chance(150) {
        step.hang_up_us = Some(shared.rng.between(MILLISECOND, step.wait_us));
    }
    Wish::Do(step)
}
