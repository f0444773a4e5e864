//! Locks, by the log: what each command and each settled wait did, in order, against the rules of the lock service.
//!
//! Nothing of the state is trusted, only what was asked and answered. A session is over when its time is up by the log;
//! whether the service has noticed is not known, so what depends on that is judged by the earliest time.

mod circles;
mod ends;
mod read;
mod waits;

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::machine::{Outcome, Settled, WaiterId};
use trefoil_proto::common::v1::{Reason, SessionUse};
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, CancelAcquire, Command};
use trefoil_proto::lock::v1::{AcquireRequest, ConvertRequest, LockGrant, LockMode, LockWish};

use self::ends::namespace_of;
use super::Violation;
use super::keys::{CallKey, LockKey, call_of, id_of};
use super::lives::EntryTimes;
use super::lock::conflict;
use super::requests::is_forgotten;

const CONFLICT: &str = "no holder is in the way of a grant";
const DELAYED: &str = "a lock delay keeps out whom its holder kept out";
const FIFO: &str = "nobody overtakes who waits for a lock";
const RISE: &str = "tokens of a lock rise with its grants";
const TOGETHER: &str = "a grant is of the entry that tells it, of several locks for all of them";
const LASTS: &str = "a retry is told of a grant as long as it lasts";
const CANCELLED: &str = "what was cancelled is granted nothing";
const EARLY: &str = "a session lives for its TTL";
const GAP: &str = "who converts holds the lock";
const MODE: &str = "all that was asked for is granted, each in its mode or a stronger one";

/// (namespace, session).
type Owner = (String, u64);

/// The call that a cancel is about.
fn cancelled(cancel: &CancelAcquire) -> Option<CallKey> {
    let call = cancel.call.as_ref()?;
    call_of(call.request_id.as_ref(), &call.drawn)
}

/// A grant that is taken back ends no wait: it is told under ordinal 0.
fn is_wait(waiter: &WaiterId) -> bool {
    !waiter.0.ends_with(&0_u64.to_be_bytes())
}

#[derive(Clone, Debug, Default)]
struct KnownSession {
    ttl_ms: u64,
    delay_ms: u64,
    renewed_at_ms: u64,
    /// Since when its time is up, unless it is renewed.
    over_at_ms: Option<u64>,
    closed: bool,
}

#[derive(Clone, Debug)]
struct LockHold {
    session: u64,
    token: u64,
    mode: LockMode,
    delay_ms: Option<u64>,
    /// It was cancelled when its session may have been over: it may be gone, or live on with a session that was not seen
    /// to be over.
    may_be_gone: bool,
    /// Calls that were answered with it, and the entries that brought them last.
    relying: BTreeMap<Option<CallKey>, u64>,
}

/// A call that waits.
#[derive(Clone, Debug)]
struct WaitingCall {
    session: u64,
    id: Option<CallKey>,
    /// The entry that brought it last.
    brought_at: u64,
    namespace: String,
    /// Its locks: of several in the order of the request.
    wants: Vec<(String, LockMode)>,
    converts: bool,
    delay_ms: Option<u64>,
}

/// Its place in the order of one lock.
#[derive(Clone, Debug)]
struct WaiterInLine {
    waiter: WaiterId,
    session: u64,
    converts: bool,
}

#[derive(Clone, Debug, Default)]
struct KnownLock {
    holds: Vec<LockHold>,
    /// In the order in which they began.
    waits: Vec<WaiterInLine>,
    last_token: u64,
}

/// What became of each lock so far.
#[derive(Clone, Debug, Default)]
pub struct GrantChecker {
    sessions: BTreeMap<Owner, KnownSession>,
    locks: BTreeMap<LockKey, KnownLock>,
    waits: BTreeMap<WaiterId, WaitingCall>,
    /// The largest token of each namespace, and that before this entry.
    tokens: BTreeMap<String, (u64, u64)>,
    /// Requests whose answer is remembered: they are not carried out again.
    done: BTreeSet<CallKey>,
    /// Requests that were taken back.
    cancelled: BTreeSet<CallKey>,
    /// The newest attempt of each request in the log.
    attempts: BTreeMap<CallKey, u32>,
    /// Lowest sequence of each client that it has not acknowledged.
    floors: BTreeMap<String, u64>,
    /// Waits that began in the entry: a grant of it may come from a command before theirs.
    begun: BTreeSet<WaiterId>,
    /// Grants of the entry, each with those who waited before it.
    overtaken: Vec<(LockKey, String, BTreeSet<WaiterId>)>,
    found: Vec<Violation>,
    /// The entry that is applied.
    index: u64,
    /// Grants that a lock delay outlived.
    pub delays: u64,
}

/// What an Acquire or a Convert got.
struct ToldGrant<'a> {
    name: LockKey,
    session: u64,
    id: Option<CallKey>,
    delay_ms: Option<u64>,
    token: u64,
    mode: LockMode,
    converts: bool,
    /// The entry that brought the call last.
    brought_at: u64,
    /// The wait that ended.
    waiter: Option<&'a WaiterId>,
}

impl GrantChecker {
    /// The next entry is this one.
    pub fn at(&mut self, index: u64) {
        self.index = index;
    }

    /// An entry was applied; `settled` are the waits that it ended, in order.
    pub fn applied(
        &mut self,
        commands: &[Command],
        outcomes: &[Outcome],
        settled: &[Settled],
        times: EntryTimes,
        is_here: impl Fn(&str) -> bool,
    ) -> Vec<Violation> {
        self.begun.clear();
        self.tokens.values_mut().for_each(|(last, before)| *before = *last);
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
                // The wait ended, and this is a retry that was answered so; a grant that is taken back had none.
                let is_same = id.is_some()
                    && id_of(settled.request_id.as_ref()) == id
                    && matches!(outcome, Outcome::Answered(answer)
                        if self.waits.contains_key(&settled.waiter)
                            || is_wait(&settled.waiter) && *answer == settled.answer);
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
        self.judge_circles();
        std::mem::take(&mut self.found)
    }

    /// Whether a wait was granted before a command of the same entry was carried out.
    fn stands_before(&self, operation: &Operation, outcome: &Outcome, settled: &Settled) -> bool {
        let Some(token) = newest(&settled.answer) else { return false };
        let Some(wait) = self.waits.get(&settled.waiter) else { return false };
        let answer = match outcome {
            Outcome::Answered(answer) => Some(answer),
            Outcome::Waiting(_) => None,
        };
        // Tokens are counted in a namespace.
        if namespace_of(operation).is_none_or(|namespace| *namespace != wait.namespace) {
            return false;
        }
        if let Some(other) = answer.and_then(newest) {
            return token < other;
        }
        let own = |session| wait.session == session;
        let is_for = |name: &str| wait.wants.iter().any(|(lock, _)| lock == name);
        match (operation, answer.and_then(|answer| answer.answer.as_ref())) {
            (_, Some(A::ForcedStep(step))) => token < step.token,
            (Operation::ReleaseHeld(held), Some(A::ReleasedHeld(done))) => {
                own(held.session_id) && token <= done.up_to_token
            }
            // One of another call need not have met the grant, unless it takes what is converted; a late one does nothing.
            (Operation::CancelAcquire(cancel), _) => {
                let wants = wants(&cancel.name, LockMode::Exclusive, &cancel.locks);
                let is_same = wait.id == cancelled(cancel);
                own(cancel.session_id)
                    && wants.iter().any(|(lock, _)| is_for(lock))
                    && (is_same || wait.converts)
                    && !self.is_late(cancel)
            }
            (Operation::CloseSession(close), _) => own(close.session_id),
            (Operation::Release(release), Some(A::Release(_))) => {
                own(release.session_id) && is_for(&release.name)
            }
            _ => false,
        }
    }

    fn command(
        &mut self,
        command: &Command,
        operation: &Operation,
        outcome: &Outcome,
        times: EntryTimes,
    ) {
        let id = call_of(command.request_id.as_ref(), &command.drawn);
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
                let again = answer.and_then(newest);
                if self.cancelled.contains(id) && again.is_some() {
                    self.found.push(Violation::new(CANCELLED, format!("{full:?}: {answer:?}")));
                }
                self.told_again(operation, id, answer);
                return;
            }
            if answer.is_some() {
                self.done.insert(id.clone());
            }
        }
        self.touch(operation, answer, times);
        match (operation, answer.and_then(|answer| answer.answer.as_ref())) {
            (Operation::OpenSession(open), Some(A::OpenSession(opened))) => {
                let session = KnownSession {
                    ttl_ms: open.ttl_ms,
                    delay_ms: open.lock_delay_ms,
                    renewed_at_ms: times.now_ms,
                    ..KnownSession::default()
                };
                self.sessions.insert((open.namespace.clone(), opened.session_id), session);
            }
            (Operation::CloseSession(close), Some(A::CloseSession(_))) => {
                self.let_go(&close.namespace, |_, hold| hold.session == close.session_id);
                let owner = (close.namespace.clone(), close.session_id);
                self.sessions.entry(owner).or_default().closed = true;
            }
            (Operation::Acquire(acquire), _) => self.acquire(acquire, id, outcome, times),
            // A campaign acquires, and says something.
            (Operation::Campaign(campaign), _) => {
                let acquire = AcquireRequest {
                    namespace: campaign.namespace.clone(),
                    session_id: campaign.session_id,
                    name: campaign.name.clone(),
                    lock_delay_ms: campaign.lock_delay_ms,
                    ..AcquireRequest::default()
                };
                self.acquire(&acquire, id, outcome, times);
            }
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
    fn touch(&mut self, operation: &Operation, answer: Option<&Answer>, times: EntryTimes) {
        let Some((namespace, session, session_use)) = operation.session() else { return };
        if session_use == SessionUse::Names {
            return;
        }
        let Some(known) = self.sessions.get_mut(&(namespace.to_owned(), session)) else { return };
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
        id: Option<CallKey>,
        outcome: &Outcome,
        times: EntryTimes,
    ) {
        let wait = WaitingCall {
            session: acquire.session_id,
            id,
            namespace: acquire.namespace.clone(),
            wants: wants(&acquire.name, acquire.mode(), &acquire.locks),
            converts: false,
            delay_ms: acquire.lock_delay_ms,
            brought_at: self.index,
        };
        self.asked(wait, outcome, times);
    }

    fn convert(
        &mut self,
        convert: &ConvertRequest,
        id: Option<CallKey>,
        outcome: &Outcome,
        times: EntryTimes,
    ) {
        let wait = WaitingCall {
            session: convert.session_id,
            id,
            namespace: convert.namespace.clone(),
            wants: vec![(convert.name.clone(), convert.mode())],
            converts: true,
            delay_ms: None,
            brought_at: self.index,
        };
        self.asked(wait, outcome, times);
    }

    /// A call was answered: with all that it wants, or with nothing.
    fn told(
        &mut self,
        wait: &WaitingCall,
        waiter: Option<&WaiterId>,
        answer: &Answer,
        times: EntryTimes,
    ) {
        let grants = granted(answer, wait);
        if grants.is_empty() {
            return;
        }
        let fits = |(told, wanted): (&(String, u64, LockMode), &(String, LockMode))| {
            told.0 == wanted.0 && told.2 >= wanted.1
        };
        if grants.len() != wait.wants.len() || !grants.iter().zip(&wait.wants).all(fits) {
            self.found.push(Violation::new(MODE, format!("{answer:?} for {wait:?}")));
        }
        let WaitingCall { session, id, delay_ms, converts, brought_at, .. } = wait.clone();
        for (lock, token, mode) in grants {
            let (name, id) = ((wait.namespace.clone(), lock), id.clone());
            let got = ToldGrant {
                name,
                session,
                id,
                delay_ms,
                token,
                mode,
                converts,
                waiter,
                brought_at,
            };
            self.got(&got, times);
        }
    }

    /// A session was told that it holds a lock.
    fn got(&mut self, got: &ToldGrant<'_>, times: EntryTimes) {
        let lock = self.locks.entry(got.name.clone()).or_default();
        let own = lock.holds.iter_mut().find(|hold| hold.session == got.session);
        if let Some(hold) = own.filter(|hold| hold.token == got.token) {
            if !got.converts {
                hold.relying.insert(got.id.clone(), got.brought_at);
            }
            return;
        }
        let what = format!("session {} of {:?}: token {}", got.session, got.name, got.token);
        if got.token <= lock.last_token {
            self.found.push(Violation::new(RISE, format!("{what} after {}", lock.last_token)));
            return;
        }
        lock.last_token = got.token;
        self.is_of_entry(got);
        self.may_hold(got, times);
        self.overtakes(got);
        let lock = self.locks.entry(got.name.clone()).or_default();
        let own = lock.holds.iter().position(|hold| hold.session == got.session);
        let former = own.map(|place| lock.holds.remove(place));
        if former.as_ref().is_some_and(|hold| !hold.may_be_gone) != got.converts {
            self.found.push(Violation::new(GAP, format!("{what}, before {former:?}")));
        }
        let hold = former.unwrap_or_else(|| LockHold {
            session: got.session,
            token: 0,
            mode: got.mode,
            delay_ms: got.delay_ms,
            may_be_gone: false,
            relying: BTreeMap::from([(got.id.clone(), got.brought_at)]),
        });
        lock.holds.push(LockHold { token: got.token, mode: got.mode, ..hold });
    }

    /// A grant that an earlier entry gave, and nobody was told of then, is behind what the namespace has granted since.
    fn is_of_entry(&mut self, got: &ToldGrant<'_>) {
        let (last, before) = self.tokens.entry(got.name.0.clone()).or_default();
        *last = got.token.max(*last);
        if got.token <= *before {
            let what = format!("session {} of {:?}: token {}", got.session, got.name, got.token);
            self.found.push(Violation::new(TOGETHER, format!("{what} in an entry after {before}")));
        }
    }

    /// Nobody who lives, and nobody's lock delay, is in the way.
    fn may_hold(&mut self, got: &ToldGrant<'_>, times: EntryTimes) {
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
    fn overtakes(&mut self, got: &ToldGrant<'_>) {
        let Some(lock) = self.locks.get(&got.name) else { return };
        let is_down = got.waiter.is_none()
            && got.converts
            && lock.holds.iter().any(|hold| hold.session == got.session && hold.mode > got.mode);
        if is_down {
            return;
        }
        let own = lock.waits.iter().position(|wait| Some(&wait.waiter) == got.waiter);
        let is_before = |(place, wait): &(usize, &WaiterInLine)| {
            let earlier = own.is_none_or(|own| *place < own);
            wait.session != got.session
                && !self.begun.contains(&wait.waiter)
                && stands_ahead(wait.converts, got.converts, earlier)
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
}

/// Whether one wait comes before another in the order of a lock.
fn stands_ahead(converts: bool, other_converts: bool, is_earlier: bool) -> bool {
    if converts == other_converts { is_earlier } else { converts }
}

fn wanted(mode: LockMode) -> LockMode {
    if mode == LockMode::Unspecified { LockMode::Exclusive } else { mode }
}

/// The locks that a call names, each with its mode.
fn wants(name: &str, mode: LockMode, locks: &[LockWish]) -> Vec<(String, LockMode)> {
    if locks.is_empty() {
        return vec![(name.to_owned(), wanted(mode))];
    }
    locks.iter().map(|wish| (wish.name.clone(), wanted(wish.mode()))).collect()
}

/// What an answer grants to a call: each lock with its token and mode.
fn granted(answer: &Answer, wait: &WaitingCall) -> Vec<(String, u64, LockMode)> {
    let one = |token, mode| vec![(wait.wants[0].0.clone(), token, mode)];
    match answer.answer.as_ref() {
        Some(A::Acquire(got)) if got.acquired && got.locks.is_empty() => {
            one(got.fencing_token, got.mode())
        }
        // Of a call that got nothing there are none.
        Some(A::Acquire(got)) => {
            let grant = |grant: &LockGrant| (grant.name.clone(), grant.fencing_token, grant.mode());
            got.locks.iter().map(grant).collect()
        }
        Some(A::Convert(got)) if got.converted => one(got.fencing_token, got.mode()),
        _ => Vec::new(),
    }
}

/// The newest token that an answer grants.
fn newest(answer: &Answer) -> Option<u64> {
    match answer.answer.as_ref()? {
        A::Acquire(got) if got.acquired => {
            got.locks.iter().map(|grant| grant.fencing_token).max().or(Some(got.fencing_token))
        }
        A::Convert(got) if got.converted => Some(got.fencing_token),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
