//! Locks, by the log: what each command and each settled wait did, in order, against the rules of the lock service.
//!
//! Nothing of the state is trusted, only what was asked and answered. A session is over when its time is up by the log;
//! whether the service has noticed is not known, so what depends on that is judged by the earliest time.

mod read;

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::machine::{Outcome, Settled, WaiterId};
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, CancelAcquire, Command, ForceStep, ReleaseHeld};
use trefoil_proto::lock::v1::{AcquireRequest, ConvertRequest, LockMode, ReleaseRequest};

use super::Violation;
use super::lives::Times;
use super::lock::conflict;
use super::requests::is_forgotten;

const CONFLICT: &str = "no holder is in the way of a grant";
const DELAYED: &str = "a lock delay keeps out whom its holder kept out";
const FIFO: &str = "nobody overtakes who waits for a lock";
const RISE: &str = "tokens of a lock rise with its grants";
const CANCELLED: &str = "what was cancelled is granted nothing";
const EARLY: &str = "a session lives for its TTL";
const GAP: &str = "who converts holds the lock";
const MODE: &str = "a grant has the mode that was asked for, or a stronger one";

/// Client and sequence.
type Id = (String, u64);
/// (namespace, lock).
type Name = (String, String);
/// (namespace, session).
type Owner = (String, u64);

fn id_of(id: Option<&RequestId>) -> Option<Id> {
    id.map(|id| (id.client.clone(), id.sequence))
}

#[derive(Clone, Debug, Default)]
struct Session {
    ttl_ms: u64,
    delay_ms: u64,
    renewed_at_ms: u64,
    /// Since when its time is up, unless it is renewed.
    over_at_ms: Option<u64>,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Hold {
    session: u64,
    token: u64,
    mode: LockMode,
    delay_ms: Option<u64>,
    /// It was cancelled when its session may have been over: it may be gone, or live on with a session that was not seen
    /// to be over.
    may_be_gone: bool,
    /// Calls that were answered with it.
    relying: BTreeSet<Option<Id>>,
}

#[derive(Clone, Debug)]
struct Waiting {
    waiter: WaiterId,
    session: u64,
    id: Option<Id>,
    mode: LockMode,
    converts: bool,
    delay_ms: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Lock {
    holds: Vec<Hold>,
    /// In the order in which they began.
    waits: Vec<Waiting>,
    last_token: u64,
}

/// What became of each lock so far.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    sessions: BTreeMap<Owner, Session>,
    locks: BTreeMap<Name, Lock>,
    /// Requests whose answer is remembered: they are not carried out again.
    done: BTreeSet<Id>,
    /// Requests that were taken back.
    cancelled: BTreeSet<Id>,
    /// The newest attempt of each request in the log.
    attempts: BTreeMap<Id, u32>,
    /// Lowest sequence of each client that it has not acknowledged.
    floors: BTreeMap<String, u64>,
    /// Waits that began in the entry: a grant of it may come from a command before theirs.
    begun: BTreeSet<WaiterId>,
    /// Grants of the entry, each with those who waited before it.
    overtaken: Vec<(Name, String, BTreeSet<WaiterId>)>,
    found: Vec<Violation>,
    /// Grants that a lock delay outlived.
    pub delays: u64,
}

/// What an Acquire or a Convert got.
struct Got<'a> {
    name: Name,
    session: u64,
    id: Option<Id>,
    delay_ms: Option<u64>,
    token: u64,
    mode: LockMode,
    converts: bool,
    /// The wait that ended.
    waiter: Option<&'a WaiterId>,
}

impl Grants {
    /// An entry was applied; `settled` are the waits that it ended, in order.
    pub fn applied(
        &mut self,
        commands: &[Command],
        outcomes: &[Outcome],
        settled: &[Settled],
        times: Times,
        is_here: impl Fn(&str) -> bool,
    ) -> Vec<Violation> {
        self.begun.clear();
        for ((namespace, _), session) in &mut self.sessions {
            let until_ms = session.renewed_at_ms.saturating_add(session.ttl_ms);
            if is_here(namespace)
                && session.over_at_ms.is_none()
                && times.now_ms >= until_ms.max(times.grace_until_ms)
            {
                session.over_at_ms = Some(times.now_ms);
            }
        }
        let mut rest = settled;
        for (command, outcome) in commands.iter().zip(outcomes) {
            let Some(operation) = &command.operation else { continue };
            // What was granted before this command is known by its token, or by whom it concerns.
            let id = id_of(command.request_id.as_ref());
            let before = |settled: &Settled| {
                // The wait ended, and this is a retry that was answered so.
                let is_same = matches!(outcome, Outcome::Answered(_))
                    && id.is_some()
                    && id_of(settled.request_id.as_ref()) == id;
                is_same || self.stands_before(operation, outcome, settled)
            };
            let count = rest.iter().rposition(before).map_or(0, |last| last + 1);
            let (first, others) = rest.split_at(count);
            first.iter().for_each(|settled| self.settled(settled, times));
            rest = others;
            self.command(command, operation, outcome, times);
            // What a command acknowledges is so from the next one on.
            let is_kept =
                |outcome: &Outcome| !matches!(outcome, Outcome::Answered(a) if is_forgotten(a));
            if let Some(full) = command.request_id.as_ref().filter(|_| is_kept(outcome)) {
                let floor = self.floors.entry(full.client.clone()).or_default();
                *floor = full.first_unacknowledged.max(*floor);
            }
        }
        rest.iter().for_each(|settled| self.settled(settled, times));
        self.judge_order();
        std::mem::take(&mut self.found)
    }

    /// Whether a wait was granted before a command of the same entry was carried out.
    fn stands_before(&self, operation: &Operation, outcome: &Outcome, settled: &Settled) -> bool {
        let Some((token, _)) = granted(&settled.answer) else { return false };
        let Some((name, wait)) = self.waiting(&settled.waiter) else { return false };
        let answer = match outcome {
            Outcome::Answered(answer) => answer.answer.as_ref(),
            Outcome::Waiting(_) => None,
        };
        // Tokens are counted in a namespace.
        if namespace_of(operation).is_none_or(|namespace| *namespace != name.0) {
            return false;
        }
        let own = |session| wait.session == session;
        match (operation, answer) {
            (_, Some(A::Acquire(got))) if got.acquired => token < got.fencing_token,
            (_, Some(A::Convert(got))) if got.converted => token < got.fencing_token,
            (_, Some(A::ForcedStep(step))) => token < step.token,
            (Operation::ReleaseHeld(held), Some(A::ReleasedHeld(done))) => {
                own(held.session_id) && token <= done.up_to_token
            }
            (Operation::CancelAcquire(cancel), _) => {
                own(cancel.session_id) && name.1 == cancel.name
            }
            (Operation::CloseSession(close), _) => own(close.session_id),
            (Operation::Release(release), Some(A::Release(_))) => {
                own(release.session_id) && name.1 == release.name
            }
            _ => false,
        }
    }

    fn waiting(&self, waiter: &WaiterId) -> Option<(&Name, &Waiting)> {
        self.locks.iter().find_map(|(name, lock)| {
            lock.waits.iter().find(|wait| wait.waiter == *waiter).map(|wait| (name, wait))
        })
    }

    fn command(
        &mut self,
        command: &Command,
        operation: &Operation,
        outcome: &Outcome,
        times: Times,
    ) {
        let id = id_of(command.request_id.as_ref());
        let answer = match outcome {
            Outcome::Answered(answer) => Some(answer),
            Outcome::Waiting(_) => None,
        };
        if let (Some(id), Some(full)) = (&id, &command.request_id) {
            if answer.is_some_and(is_forgotten) {
                return;
            }
            let attempt = self.attempts.entry(id.clone()).or_default();
            *attempt = full.attempt.max(*attempt);
            if self.done.contains(id) {
                let again = answer.and_then(granted);
                if self.cancelled.contains(id) && again.is_some() {
                    self.found.push(Violation::new(CANCELLED, format!("{full:?}: {answer:?}")));
                }
                return;
            }
            if answer.is_some() {
                self.done.insert(id.clone());
            }
        }
        self.touch(operation, answer, times);
        match (operation, answer.and_then(|answer| answer.answer.as_ref())) {
            (Operation::OpenSession(open), Some(A::OpenSession(opened))) => {
                let session = Session {
                    ttl_ms: open.ttl_ms,
                    delay_ms: open.lock_delay_ms,
                    renewed_at_ms: times.now_ms,
                    ..Session::default()
                };
                self.sessions.insert((open.namespace.clone(), opened.session_id), session);
            }
            (Operation::CloseSession(close), Some(A::CloseSession(_))) => {
                self.let_go(&close.namespace, |_, hold| hold.session == close.session_id);
                let owner = (close.namespace.clone(), close.session_id);
                self.sessions.entry(owner).or_default().closed = true;
            }
            (Operation::Acquire(acquire), _) => self.acquire(acquire, id, outcome, times),
            (Operation::Convert(convert), _) => self.convert(convert, id, outcome, times),
            (Operation::Release(release), Some(A::Release(_))) => self.release(release),
            (Operation::ReleaseHeld(held), Some(A::ReleasedHeld(done))) => {
                self.release_held(held, done.released, done.up_to_token);
            }
            (Operation::ForceStep(step), Some(A::ForcedStep(done))) => {
                self.force(step, done.token);
            }
            (Operation::CancelAcquire(cancel), _) => self.cancel(cancel),
            _ => {}
        }
    }

    /// A command of a session renews it, or is refused because the session is over.
    fn touch(&mut self, operation: &Operation, answer: Option<&Answer>, times: Times) {
        let (namespace, session) = match operation {
            Operation::KeepAlive(r) => (&r.namespace, r.session_id),
            Operation::CloseSession(r) => (&r.namespace, r.session_id),
            Operation::Acquire(r) => (&r.namespace, r.session_id),
            Operation::Convert(r) => (&r.namespace, r.session_id),
            Operation::Release(r) => (&r.namespace, r.session_id),
            Operation::ReleaseHeld(r) => (&r.namespace, r.session_id),
            Operation::AcquirePermits(r) => (&r.namespace, r.session_id),
            Operation::ReleasePermits(r) => (&r.namespace, r.session_id),
            _ => return,
        };
        let Some(known) = self.sessions.get_mut(&(namespace.clone(), session)) else { return };
        let refused = match answer.and_then(|answer| answer.answer.as_ref()) {
            Some(A::Refusal(refusal)) => Some(refusal.reason()),
            _ => None,
        };
        match refused {
            None | Some(Reason::Deadlock) => {
                if times.now_ms.saturating_sub(known.renewed_at_ms) >= known.ttl_ms / 4 {
                    known.renewed_at_ms = times.now_ms;
                }
                known.over_at_ms = None;
            }
            Some(Reason::SessionExpired) if !known.closed && known.over_at_ms.is_none() => {
                let what = format!("session {session} is refused at {times:?}: {known:?}");
                self.found.push(Violation::new(EARLY, what));
            }
            Some(_) => {}
        }
    }

    fn acquire(
        &mut self,
        acquire: &AcquireRequest,
        id: Option<Id>,
        outcome: &Outcome,
        times: Times,
    ) {
        let name = (acquire.namespace.clone(), acquire.name.clone());
        let wait = |waiter: &WaiterId| Waiting {
            waiter: waiter.clone(),
            session: acquire.session_id,
            id: id.clone(),
            mode: wanted(acquire.mode()),
            converts: false,
            delay_ms: acquire.lock_delay_ms,
        };
        match outcome {
            Outcome::Waiting(waiter) => self.join(name, wait(waiter)),
            Outcome::Answered(answer) => {
                let Some((token, mode)) = granted(answer) else { return };
                let (session, delay_ms) = (acquire.session_id, acquire.lock_delay_ms);
                let (converts, waiter) = (false, None);
                self.got(
                    &Got { name, session, id, delay_ms, token, mode, converts, waiter },
                    times,
                );
            }
        }
    }

    fn convert(
        &mut self,
        convert: &ConvertRequest,
        id: Option<Id>,
        outcome: &Outcome,
        times: Times,
    ) {
        let name = (convert.namespace.clone(), convert.name.clone());
        let (session, mode, delay_ms, converts) = (convert.session_id, convert.mode(), None, true);
        match outcome {
            Outcome::Waiting(waiter) => {
                let waiter = waiter.clone();
                self.join(name, Waiting { waiter, session, id, mode, converts, delay_ms });
            }
            Outcome::Answered(answer) => {
                let Some((token, mode)) = granted(answer) else { return };
                let waiter = None;
                self.got(
                    &Got { name, session, id, delay_ms, token, mode, converts, waiter },
                    times,
                );
            }
        }
    }

    /// A call waits; one that was sent again has the place that it had.
    fn join(&mut self, name: Name, wait: Waiting) {
        let waits = &mut self.locks.entry(name).or_default().waits;
        if waits.iter().all(|other| other.waiter != wait.waiter) {
            self.begun.insert(wait.waiter.clone());
            waits.push(wait);
        }
    }

    /// A wait has ended.
    fn settled(&mut self, settled: &Settled, times: Times) {
        if let Some(id) = id_of(settled.request_id.as_ref()) {
            self.done.insert(id);
        }
        let found = self.waiting(&settled.waiter).map(|(name, wait)| (name.clone(), wait.clone()));
        let Some((name, wait)) = found else {
            if granted(&settled.answer).is_some() {
                self.found.push(Violation::new(CANCELLED, format!("{settled:?}")));
            }
            return;
        };
        if let Some((token, mode)) = granted(&settled.answer) {
            let Waiting { session, id, delay_ms, converts, .. } = wait;
            if mode < wait.mode {
                self.found.push(Violation::new(MODE, format!("{settled:?} for {:?}", wait.mode)));
            }
            let (name, waiter) = (name.clone(), Some(&settled.waiter));
            self.got(&Got { name, session, id, delay_ms, token, mode, converts, waiter }, times);
        }
        if let Some(lock) = self.locks.get_mut(&name) {
            lock.waits.retain(|wait| wait.waiter != settled.waiter);
        }
    }

    /// A session was told that it holds a lock.
    fn got(&mut self, got: &Got<'_>, times: Times) {
        let lock = self.locks.entry(got.name.clone()).or_default();
        let own = lock.holds.iter_mut().find(|hold| hold.session == got.session);
        if let Some(hold) = own.filter(|hold| hold.token == got.token) {
            if !got.converts {
                hold.relying.insert(got.id.clone());
            }
            return;
        }
        let what = format!("session {} of {:?}: token {}", got.session, got.name, got.token);
        if got.token <= lock.last_token {
            self.found.push(Violation::new(RISE, format!("{what} after {}", lock.last_token)));
            return;
        }
        lock.last_token = got.token;
        self.may_hold(got, times);
        self.overtakes(got);
        let lock = self.locks.entry(got.name.clone()).or_default();
        let own = lock.holds.iter().position(|hold| hold.session == got.session);
        let former = own.map(|place| lock.holds.remove(place));
        if former.as_ref().is_some_and(|hold| !hold.may_be_gone) != got.converts {
            self.found.push(Violation::new(GAP, format!("{what}, before {former:?}")));
        }
        let hold = former.unwrap_or_else(|| Hold {
            session: got.session,
            token: 0,
            mode: got.mode,
            delay_ms: got.delay_ms,
            may_be_gone: false,
            relying: BTreeSet::from([got.id.clone()]),
        });
        lock.holds.push(Hold { token: got.token, mode: got.mode, ..hold });
    }

    /// Nobody who lives, and nobody's lock delay, is in the way.
    fn may_hold(&mut self, got: &Got<'_>, times: Times) {
        let Some(lock) = self.locks.get_mut(&got.name) else { return };
        let mut kept = Vec::new();
        for hold in std::mem::take(&mut lock.holds) {
            let owner = (got.name.0.clone(), hold.session);
            if hold.session == got.session || !conflict(hold.mode, got.mode) {
                kept.push(hold);
                continue;
            }
            let session = self.sessions.get(&owner).cloned().unwrap_or_default();
            let what = || format!("token {} at {times:?}: {hold:?} of {session:?}", got.token);
            let delay_ms = hold.delay_ms.unwrap_or(session.delay_ms);
            match session.over_at_ms {
                None if hold.may_be_gone => {}
                None => self.found.push(Violation::new(CONFLICT, what())),
                Some(over_at_ms) if times.now_ms < over_at_ms.saturating_add(delay_ms) => {
                    self.found.push(Violation::new(DELAYED, what()));
                }
                Some(_) => self.delays += u64::from(delay_ms > 0),
            }
        }
        lock.holds = kept;
    }

    /// Remembers who stood before a grant, until it is known what becomes of them in this entry.
    fn overtakes(&mut self, got: &Got<'_>) {
        let Some(lock) = self.locks.get(&got.name) else { return };
        let is_down = got.waiter.is_none()
            && got.converts
            && lock.holds.iter().any(|hold| hold.session == got.session && hold.mode > got.mode);
        if is_down {
            return;
        }
        let own = lock.waits.iter().position(|wait| Some(&wait.waiter) == got.waiter);
        let is_before = |(place, wait): &(usize, &Waiting)| {
            let earlier = own.is_none_or(|own| *place < own);
            wait.session != got.session
                && !self.begun.contains(&wait.waiter)
                && match (wait.converts, got.converts) {
                    (true, false) => true,
                    (false, true) => false,
                    _ => earlier,
                }
        };
        let before = lock.waits.iter().enumerate().filter(is_before);
        let before = before.map(|(_, wait)| wait.waiter.clone()).collect::<BTreeSet<_>>();
        if !before.is_empty() {
            let what = format!("session {} got token {}", got.session, got.token);
            self.overtaken.push((got.name.clone(), what, before));
        }
    }

    /// Whoever stood before a grant has left by the end of the entry, because its time was up.
    fn judge_order(&mut self) {
        for (name, what, before) in std::mem::take(&mut self.overtaken) {
            let Some(lock) = self.locks.get(&name) else { continue };
            if let Some(wait) = lock.waits.iter().find(|wait| before.contains(&wait.waiter)) {
                self.found.push(Violation::new(FIFO, format!("{name:?}: {what} before {wait:?}")));
            }
        }
    }

    fn let_go(&mut self, namespace: &str, is_over: impl Fn(&str, &Hold) -> bool) -> u32 {
        let mut count = 0;
        for ((_, name), lock) in self.locks.iter_mut().filter(|((of, _), _)| of == namespace) {
            let before = lock.holds.len();
            lock.holds.retain(|hold| !is_over(name, hold));
            count += before - lock.holds.len();
        }
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn release(&mut self, release: &ReleaseRequest) {
        let session = release.session_id;
        let released = self.let_go(&release.namespace, |name, hold| {
            name == release.name && hold.session == session
        });
        if released == 0 {
            self.found.push(Violation::new(GAP, format!("nothing is held for {release:?}")));
        }
    }

    fn release_held(&mut self, held: &ReleaseHeld, told: u32, up_to_token: u64) {
        let fits = |hold: &Hold| hold.session == held.session_id && hold.token <= up_to_token;
        let sure = self.let_go(&held.namespace, |_, hold| fits(hold) && !hold.may_be_gone);
        let released = sure + self.let_go(&held.namespace, |_, hold| fits(hold));
        if !(sure..=released).contains(&told) {
            let what = format!("{held:?} says {told}, and {released} were held");
            self.found.push(Violation::new(GAP, what));
        }
    }

    fn force(&mut self, step: &ForceStep, below: u64) {
        self.let_go(&step.namespace, |name, hold| {
            let fits = step.fencing_token == 0 || hold.token == step.fencing_token;
            name == step.name && fits && hold.token < below
        });
        let name = (step.namespace.clone(), step.name.clone());
        let last = &mut self.locks.entry(name).or_default().last_token;
        *last = below.max(*last);
    }

    /// The caller of a request is gone: its wait ends, and a grant that is nobody else's.
    fn cancel(&mut self, cancel: &CancelAcquire) {
        let (Some(full), Some(id)) = (&cancel.waiter, id_of(cancel.waiter.as_ref())) else {
            return;
        };
        if self.attempts.get(&id).is_some_and(|newest| *newest > full.attempt) {
            return;
        }
        let name = (cancel.namespace.clone(), cancel.name.clone());
        let Some(lock) = self.locks.get_mut(&name) else { return };
        let waits = |wait: &Waiting| wait.id.as_ref() == Some(&id);
        if lock.waits.iter().any(waits) {
            lock.waits.retain(|wait| !waits(wait));
            self.cancelled.insert(id);
            return;
        }
        let floor = self.floors.get(&full.client).copied().unwrap_or_default();
        if cancel.converts || full.attempt < u32::MAX && full.sequence < floor {
            return;
        }
        let own = lock.holds.iter_mut().find(|hold| hold.session == cancel.session_id);
        let Some(hold) = own else { return };
        if hold.relying.remove(&Some(id.clone())) {
            let owner = (cancel.namespace.clone(), cancel.session_id);
            if self.sessions.get(&owner).is_none_or(|session| session.over_at_ms.is_some()) {
                // It may be gone already, or goes without a delay now.
                (hold.delay_ms, hold.may_be_gone) = (Some(0), true);
                return;
            }
            if hold.relying.is_empty() {
                lock.holds.retain(|hold| hold.session != cancel.session_id);
            }
            self.cancelled.insert(id);
        }
    }
}

fn namespace_of(operation: &Operation) -> Option<&String> {
    Some(match operation {
        Operation::Acquire(r) => &r.namespace,
        Operation::Convert(r) => &r.namespace,
        Operation::Release(r) => &r.namespace,
        Operation::ReleaseHeld(r) => &r.namespace,
        Operation::CloseSession(r) => &r.namespace,
        Operation::CancelAcquire(r) => &r.namespace,
        Operation::ForceStep(r) => &r.namespace,
        _ => return None,
    })
}

fn wanted(mode: LockMode) -> LockMode {
    if mode == LockMode::Unspecified { LockMode::Exclusive } else { mode }
}

/// Token and mode of what an answer grants.
fn granted(answer: &Answer) -> Option<(u64, LockMode)> {
    match answer.answer.as_ref()? {
        A::Acquire(got) if got.acquired => Some((got.fencing_token, got.mode())),
        A::Convert(got) if got.converted => Some((got.fencing_token, got.mode())),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
