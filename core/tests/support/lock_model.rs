//! What the lock service and request ids must do, in a few maps: no log, no timers, no steps, no records.
//!
//! Time acts at the start of an entry and everywhere at once. Tokens and waiters have no numbers here, only names
//! that the first answer of the machine gives a number to.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use trefoil_core::limits::{ACQUIRES_PER_CLAIM_MAX, TERM_GRACE_MS, WAITER_CLAIM_MS};
use trefoil_core::machine::Counts;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{CancelAcquire, Command, LoseCaller};
use trefoil_proto::lock::v1 as api;
use trefoil_proto::reason::Retry;

/// Names a grant.
pub type Grant = usize;
/// Names a wait.
pub type Seat = usize;
/// Client and sequence; none for a command without request id.
pub type Id = Option<(String, u64)>;

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Session(u64),
    Alive(u64),
    Closed(u32),
    Granted(Grant),
    Held(Option<Grant>),
    Released,
    Done,
    Refused(Reason, Option<Grant>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Answer(Answer),
    Waits(Seat),
}

/// A wait that ended, or a request id whose answer changed although nothing waits.
#[derive(Clone, Debug)]
pub struct Settled {
    pub seat: Option<Seat>,
    pub id: Id,
    pub answer: Answer,
}

#[derive(Clone, Debug)]
struct Session {
    ttl_ms: u64,
    renewed_at_ms: u64,
}

#[derive(Clone, Debug, Default)]
struct Lock {
    holder: Option<Holder>,
    queue: Vec<Wait>,
}

#[derive(Clone, Debug)]
struct Holder {
    session: u64,
    grant: Grant,
    relying: Vec<Id>,
    is_kept: bool,
}

#[derive(Clone, Debug)]
struct Wait {
    session: u64,
    id: Id,
    seat: Seat,
    deadline_ms: u64,
    callers: u32,
    /// Index of the entry that brought it last.
    claimed_index: u64,
    /// Since when nobody takes its answer.
    lost_ms: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Client {
    floor: u64,
    /// By sequence: the answer, none while it waits, and the highest attempt.
    answers: BTreeMap<u64, (Option<Answer>, u32)>,
}

type Name = (String, String);

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub now_ms: u64,
    pub grace_until_ms: u64,
    index: u64,
    pub last_session: BTreeMap<String, u64>,
    /// The lock of each grant, in the order of the grants of one lock.
    pub grants: Vec<Name>,
    /// Tokens of the grants that are known so far.
    pub tokens: BTreeMap<Grant, u64>,
    pub seats: usize,
    /// The seat of each ordinal of a namespace, as the machine told it.
    pub places: BTreeMap<(String, u64), Seat>,
    /// What happened in the present entry.
    pub settled: Vec<Settled>,
    pub counts: Counts,
    sessions: BTreeMap<(String, u64), Session>,
    locks: BTreeMap<Name, Lock>,
    clients: BTreeMap<String, Client>,
}

type Ruling = Result<Outcome, (Reason, Option<Grant>)>;

impl Model {
    /// Sessions that live.
    pub fn sessions(&self) -> Vec<(String, u64)> {
        self.sessions.keys().cloned().collect()
    }

    /// The grants of all locks that are held.
    pub fn held(&self) -> Vec<(Name, u64, Grant)> {
        let holders =
            self.locks.iter().filter_map(|(name, lock)| Some((name, lock.holder.as_ref()?)));
        holders.map(|(name, holder)| (name.clone(), holder.session, holder.grant)).collect()
    }

    /// An entry begins at this log time.
    pub fn begin(&mut self, index: u64, now_ms: u64, is_new_term: bool) {
        (self.index, self.now_ms) = (index, now_ms);
        self.settled.clear();
        self.counts = Counts::default();
        if is_new_term {
            self.grace_until_ms = now_ms + TERM_GRACE_MS;
            let waits = self.locks.values_mut().flat_map(|lock| &mut lock.queue);
            waits.for_each(|wait| wait.lost_ms = Some(now_ms));
        }
        let expires =
            |session: &Session| (session.renewed_at_ms + session.ttl_ms).max(self.grace_until_ms);
        let dead = self.sessions.iter().filter(|(_, session)| now_ms >= expires(session));
        let dead = dead.map(|(key, _)| key.clone()).collect::<Vec<_>>();
        self.counts.sessions_expired = dead.len() as u64;
        self.sessions.retain(|key, _| !dead.contains(key));
        for name in self.locks.keys().cloned().collect::<Vec<_>>() {
            for (_, session) in dead.iter().filter(|(namespace, _)| *namespace == name.0) {
                self.forget_session(&name, *session);
            }
            let queue = std::mem::take(&mut self.lock(&name).queue);
            let (late, in_time) =
                queue.into_iter().partition::<Vec<_>, _>(|wait| now_ms >= wait.deadline_ms);
            self.lock(&name).queue = in_time;
            self.hand_on(&name);
            let answer = Answer::Held(self.holder(&name));
            late.into_iter()
                .for_each(|wait| self.settle(Some(wait.seat), &wait.id, answer.clone()));
        }
    }

    /// One command of the entry.
    pub fn command(&mut self, command: &Command) -> Outcome {
        let before = self.clone();
        let settled_before = self.settled.len();
        let outcome = match self.rule(command) {
            Ok(outcome) => outcome,
            Err((reason, holder)) => {
                *self = before;
                Outcome::Answer(Answer::Refused(reason, holder))
            }
        };
        if let Some(id) = &command.request_id {
            self.remember(id, &outcome);
        }
        // What a command itself settled counts after its own answer.
        for n in settled_before..self.settled.len() {
            let Settled { id, answer, .. } = self.settled[n].clone();
            self.remember_settled(&id, &answer);
        }
        outcome
    }

    fn rule(&mut self, command: &Command) -> Ruling {
        if let Some(id) = &command.request_id {
            match self.clients.get(&id.client) {
                None if id.attempt > 0 => return Err((Reason::RequestForgotten, None)),
                Some(client) if id.sequence < client.floor => {
                    return Err((Reason::RequestForgotten, None));
                }
                Some(client) => {
                    if let Some((Some(answer), _)) = client.answers.get(&id.sequence) {
                        return Ok(Outcome::Answer(answer.clone()));
                    }
                }
                None => {}
            }
        }
        let id = command.request_id.as_ref().map(|id| (id.client.clone(), id.sequence));
        match command.operation.as_ref().expect("a command has an operation") {
            Operation::OpenSession(request) => Ok(self.open(request)),
            Operation::KeepAlive(request) => {
                let remaining_ms = self.renew(&request.namespace, request.session_id)?;
                Ok(Outcome::Answer(Answer::Alive(remaining_ms)))
            }
            Operation::CloseSession(request) => self.close(&request.namespace, request.session_id),
            Operation::Acquire(request) => self.acquire(request, id),
            Operation::Release(request) => self.release(request),
            Operation::CancelAcquire(request) => Ok(self.cancel(request)),
            Operation::LoseCaller(request) => Ok(self.lose_caller(request)),
            other => panic!("{other:?} is none of the lock service"),
        }
    }

    fn open(&mut self, request: &api::OpenSessionRequest) -> Outcome {
        let last = self.last_session.entry(request.namespace.clone()).or_default();
        *last += 1;
        let session = Session { ttl_ms: request.ttl_ms, renewed_at_ms: self.now_ms };
        self.sessions.insert((request.namespace.clone(), *last), session);
        Outcome::Answer(Answer::Session(*last))
    }

    fn renew(&mut self, namespace: &str, id: u64) -> Result<u64, (Reason, Option<Grant>)> {
        let session = self
            .sessions
            .get_mut(&(namespace.to_owned(), id))
            .ok_or((Reason::SessionExpired, None))?;
        if self.now_ms - session.renewed_at_ms >= session.ttl_ms / 4 {
            session.renewed_at_ms = self.now_ms;
        }
        Ok(session.renewed_at_ms + session.ttl_ms - self.now_ms)
    }

    fn close(&mut self, namespace: &str, id: u64) -> Ruling {
        self.sessions.remove(&(namespace.to_owned(), id)).ok_or((Reason::SessionExpired, None))?;
        let released_before = self.counts.locks_released;
        for name in
            self.locks.keys().filter(|name| name.0 == namespace).cloned().collect::<Vec<_>>()
        {
            self.forget_session(&name, id);
            self.hand_on(&name);
        }
        let released = self.counts.locks_released - released_before;
        Ok(Outcome::Answer(Answer::Closed(u32::try_from(released).expect("few locks"))))
    }

    fn acquire(&mut self, request: &api::AcquireRequest, id: Id) -> Ruling {
        let (session, now_ms) = (request.session_id, self.now_ms);
        self.renew(&request.namespace, session)?;
        let name = (request.namespace.clone(), request.name.clone());
        if self.lock(&name).holder.is_none() && self.lock(&name).queue.is_empty() {
            self.grant(&name, session);
        }
        let (seats, index) = (self.seats, self.index);
        let lock = self.lock(&name);
        if let Some(holder) = lock.holder.as_mut().filter(|holder| holder.session == session) {
            holder.rely(&id);
            return Ok(Outcome::Answer(Answer::Granted(holder.grant)));
        }
        // A free lock waits for its first waiter to come back.
        let held = Outcome::Answer(Answer::Held(lock.holder.as_ref().map(|holder| holder.grant)));
        let same = lock.queue.iter_mut().find(|wait| wait.session == session && wait.id == id);
        if let Some(wait) = same
            && (id.is_some() || request.wait_ms > 0)
        {
            wait.callers += u32::from(id.is_none());
            (wait.claimed_index, wait.lost_ms) = (index, None);
            let seat = wait.seat;
            self.hand_on(&name);
            return Ok(Outcome::Waits(seat));
        }
        if request.wait_ms > 0 {
            if lock.queue.iter().filter(|wait| wait.session == session).count()
                >= ACQUIRES_PER_CLAIM_MAX
            {
                return Err((Reason::LimitReached, None));
            }
            let deadline_ms = now_ms + request.wait_ms;
            lock.queue.push(Wait {
                session,
                id,
                seat: seats,
                deadline_ms,
                callers: 1,
                claimed_index: index,
                lost_ms: None,
            });
            self.seats += 1;
        }
        self.counts.locks_blocked += 1;
        Ok(if request.wait_ms > 0 { Outcome::Waits(seats) } else { held })
    }

    fn release(&mut self, request: &api::ReleaseRequest) -> Ruling {
        self.renew(&request.namespace, request.session_id)?;
        let name = (request.namespace.clone(), request.name.clone());
        let holder = self.lock(&name).holder.clone();
        let is_token = |grant| {
            request.fencing_token == 0 || self.tokens.get(&grant) == Some(&request.fencing_token)
        };
        match holder {
            Some(holder) if holder.session == request.session_id && is_token(holder.grant) => {
                self.vacate(&name);
                self.hand_on(&name);
                Ok(Outcome::Answer(Answer::Released))
            }
            holder => Err((Reason::NotHolder, holder.map(|holder| holder.grant))),
        }
    }

    fn cancel(&mut self, request: &CancelAcquire) -> Outcome {
        let done = Outcome::Answer(Answer::Done);
        let id = request.waiter.as_ref().map(|id| (id.client.clone(), id.sequence));
        if let Some(waiter) = &request.waiter {
            let answers = self.clients.get(&waiter.client).map(|client| &client.answers);
            if answers
                .and_then(|answers| answers.get(&waiter.sequence))
                .is_some_and(|kept| kept.1 > waiter.attempt)
            {
                return done;
            }
        }
        let name = (request.namespace.clone(), request.name.clone());
        let lock = self.lock(&name);
        if let Some(place) =
            lock.queue.iter().position(|wait| wait.session == request.session_id && wait.id == id)
        {
            lock.queue[place].callers -= 1;
            if lock.queue[place].callers == 0 {
                let wait = lock.queue.remove(place);
                let answer = Answer::Held(self.holder(&name));
                self.settle(Some(wait.seat), &id, answer);
            }
            self.hand_on(&name);
            return done;
        }
        let Some(holder) =
            lock.holder.as_mut().filter(|holder| holder.session == request.session_id)
        else {
            return done;
        };
        if let Some(place) = holder.relying.iter().position(|other| *other == id) {
            holder.relying.remove(place);
            if holder.relying.is_empty() && !holder.is_kept {
                self.vacate(&name);
                self.hand_on(&name);
            }
            let answer = Answer::Held(self.holder(&name));
            self.settle(None, &id, answer);
        }
        done
    }

    fn lose_caller(&mut self, request: &LoseCaller) -> Outcome {
        let name = (request.namespace.clone(), request.name.clone());
        let seat = self.places.get(&(request.namespace.clone(), request.ordinal)).copied();
        let now_ms = self.now_ms;
        let mut queue = self.lock(&name).queue.iter_mut();
        if let Some(wait) = queue.find(|wait| Some(wait.seat) == seat)
            && wait.claimed_index <= request.index
        {
            wait.lost_ms.get_or_insert(now_ms);
        }
        Outcome::Answer(Answer::Done)
    }

    fn lock(&mut self, name: &Name) -> &mut Lock {
        self.locks.entry(name.clone()).or_default()
    }

    fn holder(&self, name: &Name) -> Option<Grant> {
        Some(self.locks.get(name)?.holder.as_ref()?.grant)
    }

    fn grant(&mut self, name: &Name, session: u64) -> Grant {
        let grant = self.grants.len();
        self.grants.push(name.clone());
        self.lock(name).holder =
            Some(Holder { session, grant, relying: Vec::new(), is_kept: false });
        self.counts.locks_acquired += 1;
        grant
    }

    fn vacate(&mut self, name: &Name) {
        self.lock(name).holder = None;
        self.counts.locks_released += 1;
    }

    /// A free lock goes to the session that has waited longest, for all of its waits. It waits a while for one whose
    /// caller is lost, then forgets it.
    fn hand_on(&mut self, name: &Name) {
        let now_ms = self.now_ms;
        let lock = self.lock(name);
        if lock.holder.is_some() {
            return;
        }
        let is_gone = |wait: &Wait| wait.lost_ms.is_some_and(|at| now_ms >= at + WAITER_CLAIM_MS);
        let gone = lock.queue.iter().take_while(|wait| is_gone(wait)).count();
        let gone = lock.queue.drain(..gone).collect::<Vec<_>>();
        self.grant_first(name);
        let answer = Answer::Held(self.holder(name));
        gone.into_iter().for_each(|wait| self.settle(Some(wait.seat), &wait.id, answer.clone()));
    }

    fn grant_first(&mut self, name: &Name) {
        let lock = self.lock(name);
        let first = lock.queue.first().filter(|wait| wait.lost_ms.is_none());
        let Some(session) = first.map(|wait| wait.session) else { return };
        let queue = std::mem::take(&mut lock.queue);
        let (granted, waiting) =
            queue.into_iter().partition::<Vec<_>, _>(|wait| wait.session == session);
        lock.queue = waiting;
        let grant = self.grant(name, session);
        for wait in granted {
            if wait.lost_ms.is_some() {
                self.settle(Some(wait.seat), &wait.id, Answer::Held(Some(grant)));
                continue;
            }
            let holder = self.lock(name).holder.as_mut().expect("granted above");
            (0..wait.callers).for_each(|_| holder.rely(&wait.id));
            self.settle(Some(wait.seat), &wait.id, Answer::Granted(grant));
        }
    }

    /// A session is gone: it waits no more and holds nothing.
    fn forget_session(&mut self, name: &Name, session: u64) {
        let lock = self.lock(name);
        let queue = std::mem::take(&mut lock.queue);
        let (ended, waiting) =
            queue.into_iter().partition::<Vec<_>, _>(|wait| wait.session == session);
        lock.queue = waiting;
        if lock.holder.as_ref().is_some_and(|holder| holder.session == session) {
            self.vacate(name);
        }
        for wait in ended {
            self.settle(Some(wait.seat), &wait.id, Answer::Refused(Reason::SessionExpired, None));
        }
    }

    fn settle(&mut self, seat: Option<Seat>, id: &Id, answer: Answer) {
        self.remember_settled(id, &answer);
        self.settled.push(Settled { seat, id: id.clone(), answer });
    }

    fn remember_settled(&mut self, id: &Id, answer: &Answer) {
        let Some((client, sequence)) = id else { return };
        let answers = self.clients.get_mut(client).map(|client| &mut client.answers);
        if let Some(kept) = answers.and_then(|answers| answers.get_mut(sequence)) {
            kept.0 = Some(answer.clone());
        }
    }

    fn remember(&mut self, id: &RequestId, outcome: &Outcome) {
        let answer = match outcome {
            Outcome::Answer(Answer::Refused(reason, _))
                if *reason == Reason::RequestForgotten || reason.row().retry == Retry::Freely =>
            {
                return;
            }
            Outcome::Answer(answer) => Some(answer.clone()),
            Outcome::Waits(_) => None,
        };
        let client = self.clients.entry(id.client.clone()).or_default();
        client.floor = client.floor.max(id.first_unacknowledged);
        client.answers = client.answers.split_off(&client.floor);
        let attempt = client.answers.get(&id.sequence).map_or(0, |kept| kept.1).max(id.attempt);
        client.answers.insert(id.sequence, (answer, attempt));
    }
}

impl Holder {
    fn rely(&mut self, id: &Id) {
        if id.is_some() && self.relying.contains(id) {
            return;
        }
        if self.relying.len() < ACQUIRES_PER_CLAIM_MAX {
            self.relying.push(id.clone());
        } else {
            self.is_kept = true;
        }
    }
}
