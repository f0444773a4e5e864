//! What the lock service and request ids must do, in a few maps: no log, no timers, no steps, no records.
//!
//! Time acts at the start of an entry and everywhere at once. Tokens and waiters have no numbers here, only names
//! that the first answer of the machine gives a number to.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

#[path = "lock_model_handoff.rs"]
mod handoff;
#[path = "lock_model_sessions.rs"]
mod sessions;

use std::collections::BTreeMap;

use bytes::Bytes;
use trefoil_core::limits::{ACQUIRES_PER_CLAIM_MAX, TERM_GRACE_MS};
use trefoil_core::machine::Counts;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{CancelAcquire, Command, ForceStep, LoseCaller, ReleaseHeld};
use trefoil_proto::lock::v1::{self as api, LockMode};

/// Names a grant.
pub type Grant = usize;
/// Names a wait.
pub type Seat = usize;
/// Client and sequence, or what was drawn, with 0; none for a command that has neither.
pub type Id = Option<(String, u64)>;

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Session(u64),
    Alive(u64),
    Closed(u32),
    Granted(Grant),
    /// The lock and the grant of each, in the order of the request.
    GrantedAll(Vec<(String, Grant)>),
    Held(Option<Grant>),
    Converted(Grant),
    NotConverted(Option<Grant>),
    /// A wait that ends without the lock, of a Convert or not; who held it then depends on the order of what is due.
    GaveUp(bool),
    Released,
    ReleasedHeld(u32),
    Forced(u32),
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
    lock_delay_ms: u64,
}

#[derive(Clone, Debug, Default)]
struct Lock {
    /// In the order of their grants.
    holders: Vec<Holder>,
    /// Those who convert stand first.
    queue: Vec<Seat>,
    /// In what mode holders had it that expired, and until when each keeps others out.
    delays: Vec<(LockMode, u64)>,
}

#[derive(Clone, Debug)]
struct Holder {
    session: u64,
    grant: Grant,
    former: Option<Grant>,
    mode: LockMode,
    since_ms: u64,
    lock_delay_ms: Option<u64>,
    /// The calls that were answered with it, and the entries that brought them last.
    relying: Vec<(Id, u64)>,
    is_kept: bool,
}

#[derive(Clone, Debug)]
struct Wait {
    session: u64,
    id: Id,
    seat: Seat,
    wants: Vec<Want>,
    several: bool,
    converts: bool,
    lock_delay_ms: Option<u64>,
    since_ms: u64,
    deadline_ms: u64,
    /// Index of the entry that brought it last.
    claimed_index: u64,
    /// Since when nobody takes its answer.
    lost_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
struct Want {
    name: Name,
    mode: LockMode,
    /// The session holds it already: it stands in no queue for it.
    held: bool,
}

/// What a call wants.
struct Wish {
    session: u64,
    wants: Vec<Want>,
    several: bool,
    id: Id,
    converts: bool,
    lock_delay_ms: Option<u64>,
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
    /// The mode of each grant.
    pub modes: Vec<LockMode>,
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
    waits: BTreeMap<Seat, Wait>,
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
            self.locks.iter().flat_map(|(name, lock)| lock.holders.iter().map(move |h| (name, h)));
        holders.map(|(name, holder)| (name.clone(), holder.session, holder.grant)).collect()
    }

    /// An entry begins at this log time.
    pub fn begin(&mut self, index: u64, now_ms: u64, is_new_term: bool) {
        (self.index, self.now_ms) = (index, now_ms);
        self.settled.clear();
        self.counts = Counts::default();
        if is_new_term {
            self.grace_until_ms = now_ms + TERM_GRACE_MS;
            self.waits.values_mut().for_each(|wait| wait.lost_ms = Some(now_ms));
        }
        let expires =
            |session: &Session| (session.renewed_at_ms + session.ttl_ms).max(self.grace_until_ms);
        let dead = self.sessions.iter().filter(|(_, session)| now_ms >= expires(session));
        let dead = dead.map(|(key, session)| (key.clone(), session.lock_delay_ms));
        let dead = dead.collect::<BTreeMap<_, _>>();
        self.counts.sessions_expired = dead.len() as u64;
        self.sessions.retain(|key, _| !dead.contains_key(key));
        for ((namespace, session), delay_ms) in dead {
            for name in self.locks_of(&namespace) {
                let lock = self.lock(&name);
                if let Some(holder) = lock.holder(session).cloned() {
                    let delay_ms = holder.lock_delay_ms.unwrap_or(delay_ms);
                    lock.delays.push((holder.mode, now_ms + delay_ms));
                }
            }
            self.forget_session(&namespace, session);
        }
        let late = self.waits.values().filter(|wait| now_ms >= wait.deadline_ms).cloned();
        for wait in late.collect::<Vec<_>>() {
            self.leave(&wait);
            self.counts.lock_timeouts += 1;
            self.give_up(&wait);
        }
        self.grant_waiters();
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
                Some(client) if id.sequence < client.floor => {
                    return Err((Reason::RequestForgotten, None));
                }
                Some(client) => {
                    if let Some((Some(answer), _)) = client.answers.get(&id.sequence) {
                        return self.recheck(command, answer.clone());
                    }
                }
                None => {}
            }
        }
        let id = name_of(command.request_id.as_ref(), &command.drawn);
        match command.operation.as_ref().expect("a command has an operation") {
            Operation::OpenSession(request) => Ok(self.open(request)),
            Operation::KeepAlive(request) => {
                let remaining_ms = self.renew(&request.namespace, request.session_id)?;
                Ok(Outcome::Answer(Answer::Alive(remaining_ms)))
            }
            Operation::CloseSession(request) => self.close(&request.namespace, request.session_id),
            Operation::Acquire(request) => self.acquire(request, id),
            Operation::Convert(request) => self.convert(request, id),
            Operation::Release(request) => self.release(request),
            Operation::ReleaseHeld(request) => self.release_held(request),
            Operation::ForceStep(request) => self.force(request),
            Operation::CancelAcquire(request) => Ok(self.cancel(request)),
            Operation::LoseCaller(request) => Ok(self.lose_caller(request)),
            other => panic!("{other:?} is none of the lock service"),
        }
    }

    fn acquire(&mut self, request: &api::AcquireRequest, id: Id) -> Ruling {
        let (session, several) = (request.session_id, !request.locks.is_empty());
        self.renew(&request.namespace, session)?;
        let mut wants = wants(&request.namespace, &request.name, request.mode(), &request.locks);
        for want in &mut wants {
            if let Some(holder) = self.lock(&want.name).holder(session) {
                if holder.mode < want.mode {
                    return Err((Reason::ConvertNeeded, Some(holder.grant)));
                }
                want.held = true;
            }
        }
        let lock_delay_ms = request.lock_delay_ms;
        let is_open = |want: &Want| {
            let lock = self.locks.get(&want.name);
            want.held
                || lock.is_none_or(|lock| lock.queue.is_empty())
                    && self.admits(&want.name, session, want.mode)
        };
        if wants.iter().all(is_open) {
            let grants = self.grant_all(session, &wants, lock_delay_ms, (&id, self.index));
            return Ok(Outcome::Answer(granted(grants, several)));
        }
        let wish = Wish { session, wants, several, id, converts: false, lock_delay_ms };
        self.enqueue(wish, request.wait_ms)
    }

    fn convert(&mut self, request: &api::ConvertRequest, id: Id) -> Ruling {
        let (session, mode) = (request.session_id, request.mode());
        self.renew(&request.namespace, session)?;
        let name = (request.namespace.clone(), request.name.clone());
        let holder = self.named(&name, session, request.fencing_token)?;
        if holder.mode == mode {
            return Ok(Outcome::Answer(Answer::Converted(holder.grant)));
        }
        let first = self.lock(&name).queue.first().copied();
        let is_first = first.is_none_or(|seat| !self.waits[&seat].converts);
        if mode < holder.mode || is_first && self.admits(&name, session, mode) {
            let grant = self.regrant(&name, session, mode);
            self.grant_waiters();
            return Ok(Outcome::Answer(Answer::Converted(grant)));
        }
        let wants = vec![Want { name, mode, held: false }];
        let (several, converts, lock_delay_ms) = (false, true, None);
        let wish = Wish { session, wants, several, id, converts, lock_delay_ms };
        self.enqueue(wish, request.wait_ms)
    }

    fn enqueue(&mut self, wish: Wish, wait_ms: u64) -> Ruling {
        let (seat, index, now_ms) = (self.seats, self.index, self.now_ms);
        // A free lock waits for its first waiter to come back.
        let wanted = wish.wants.iter().filter(|want| !want.held);
        let held = wanted.filter_map(|want| self.holder(&want.name)).next();
        let namespace = wish.wants[0].name.0.clone();
        let same =
            self.waits.values_mut().find(|wait| wait.is(wish.session, &wish.id, &wish.wants));
        if let Some(wait) = same {
            (wait.claimed_index, wait.lost_ms) = (index, None);
            let seat = wait.seat;
            self.grant_waiters();
            return Ok(Outcome::Waits(seat));
        }
        if wait_ms == 0 {
            self.counts.locks_blocked += 1;
            return Ok(Outcome::Answer(not_got(wish.converts, held)));
        }
        for want in &wish.wants {
            let others = self.waits.values().filter(|wait| wait.session == wish.session);
            let others = others.filter(|wait| wait.want(&want.name).is_some()).collect::<Vec<_>>();
            if others.len() >= ACQUIRES_PER_CLAIM_MAX {
                return Err((Reason::LimitReached, None));
            }
            if others.iter().any(|wait| wish.several || wait.several) {
                return Err((Reason::AlreadyWaiting, None));
            }
        }
        let Wish { session, wants, several, id, converts, lock_delay_ms } = wish;
        let (since_ms, deadline_ms, claimed_index) = (now_ms, now_ms + wait_ms, index);
        let wait = Wait {
            session,
            id,
            seat,
            wants,
            several,
            converts,
            lock_delay_ms,
            since_ms,
            deadline_ms,
            claimed_index,
            lost_ms: None,
        };
        for want in wait.wants.iter().filter(|want| !want.held) {
            let queue = self.lock(&want.name).queue.clone();
            let converting = queue.iter().take_while(|seat| self.waits[*seat].converts).count();
            let place = if converts { converting } else { queue.len() };
            self.lock(&want.name).queue.insert(place, seat);
        }
        self.waits.insert(seat, wait.clone());
        if self.is_in_circle(&namespace, session) {
            self.leave(&wait);
            self.counts.deadlocks += 1;
            return Ok(Outcome::Answer(Answer::Refused(Reason::Deadlock, None)));
        }
        self.seats += 1;
        self.counts.locks_blocked += 1;
        Ok(Outcome::Waits(seat))
    }

    fn force(&mut self, request: &ForceStep) -> Ruling {
        let name = (request.namespace.clone(), request.name.clone());
        let held = self.held().into_iter().filter(|(lock, ..)| *lock == name);
        let names = |grant| {
            request.fencing_token == 0 || self.tokens.get(&grant) == Some(&request.fencing_token)
        };
        let mut held = held.filter(|(.., grant)| names(*grant)).collect::<Vec<_>>();
        held.sort_by_key(|(.., grant)| self.modes[*grant] == LockMode::Shared);
        if held.is_empty() && request.fencing_token > 0 {
            return Err((Reason::NotHolder, self.holder(&name)));
        }
        held.iter().for_each(|(_, session, _)| self.vacate(&name, *session));
        if request.fencing_token == 0 {
            self.lock(&name).delays.clear();
        }
        self.grant_waiters();
        self.counts.locks_forced += held.len() as u64;
        Ok(Outcome::Answer(Answer::Forced(u32::try_from(held.len()).expect("few sessions"))))
    }

    fn release(&mut self, request: &api::ReleaseRequest) -> Ruling {
        self.renew(&request.namespace, request.session_id)?;
        let name = (request.namespace.clone(), request.name.clone());
        self.named(&name, request.session_id, request.fencing_token)?;
        self.vacate(&name, request.session_id);
        self.grant_waiters();
        Ok(Outcome::Answer(Answer::Released))
    }

    fn release_held(&mut self, request: &ReleaseHeld) -> Ruling {
        self.renew(&request.namespace, request.session_id)?;
        let held = self.held().into_iter();
        let held = held.filter(|(name, session, _)| {
            (&name.0, *session) == (&request.namespace, request.session_id)
        });
        let mut released = 0;
        for (name, session, _) in held.collect::<Vec<_>>() {
            self.vacate(&name, session);
            self.grant_waiters();
            released += 1;
        }
        Ok(Outcome::Answer(Answer::ReleasedHeld(released)))
    }

    /// The grant of a session that a token names, 0 whichever there is.
    fn named(
        &mut self,
        name: &Name,
        session: u64,
        token: u64,
    ) -> Result<Holder, (Reason, Option<Grant>)> {
        let holder = self.lock(name).holder(session).cloned();
        let names = |holder: &Holder| {
            let is = |grant: &Grant| self.tokens.get(grant) == Some(&token);
            token == 0 || is(&holder.grant) || holder.former.as_ref().is_some_and(is)
        };
        holder.filter(names).ok_or_else(|| (Reason::NotHolder, self.holder(name)))
    }

    fn cancel(&mut self, request: &CancelAcquire) -> Outcome {
        let done = Outcome::Answer(Answer::Done);
        let call = request.call.as_ref().expect("a cancel names its call");
        let id = name_of(call.request_id.as_ref(), &call.drawn);
        if let Some(waiter) = &call.request_id {
            let answers = self.clients.get(&waiter.client).map(|client| &client.answers);
            if answers
                .and_then(|answers| answers.get(&waiter.sequence))
                .is_some_and(|kept| kept.1 > waiter.attempt)
            {
                return done;
            }
        }
        let exclusive = LockMode::Exclusive;
        let wants = wants(&request.namespace, &request.name, exclusive, &request.locks);
        let (session, as_of) = (request.session_id, request.as_of);
        let is_meant = |index: u64| as_of == 0 || index <= as_of;
        let same = |wait: &&Wait| wait.is(session, &id, &wants);
        if let Some(wait) = self.waits.values().find(same).cloned() {
            if is_meant(wait.claimed_index) {
                self.leave(&wait);
                self.give_up(&wait);
            }
            self.grant_waiters();
            return done;
        }
        // Its client goes on with a grant that it has acknowledged.
        let is_in_use = call.request_id.as_ref().is_some_and(|id| {
            let floor = self.clients.get(&id.client).map_or(0, |client| client.floor);
            id.attempt < u32::MAX && id.sequence < floor
        });
        if !is_in_use && self.cancel_grant(session, &wants, &id, is_meant) {
            let holder = wants.iter().find_map(|want| self.holder(&want.name));
            self.settle(None, &id, Answer::Held(holder));
        }
        done
    }

    fn cancel_grant(
        &mut self,
        session: u64,
        wants: &[Want],
        id: &Id,
        is_meant: impl Fn(u64) -> bool,
    ) -> bool {
        let relied_on = |want: &&Want| {
            let holder = self.locks.get(&want.name).and_then(|lock| lock.held_by(session));
            holder.is_some_and(|holder| {
                holder.relying.iter().any(|(other, index)| other == id && is_meant(*index))
            })
        };
        let names = wants.iter().filter(relied_on).map(|want| want.name.clone());
        let names = names.collect::<Vec<_>>();
        if names.is_empty() {
            return false;
        }
        for name in names {
            let holder = self.lock(&name).holder(session).expect("it is relied on");
            let place = holder.relying.iter().position(|(other, _)| other == id);
            holder.relying.remove(place.expect("it is relied on"));
            if holder.relying.is_empty() && !holder.is_kept {
                self.vacate(&name, session);
            }
        }
        self.grant_waiters();
        true
    }

    fn lose_caller(&mut self, request: &LoseCaller) -> Outcome {
        let seat = self.places.get(&(request.namespace.clone(), request.ordinal)).copied();
        let now_ms = self.now_ms;
        if let Some(wait) = seat.and_then(|seat| self.waits.get_mut(&seat))
            && wait.claimed_index <= request.index
        {
            wait.lost_ms.get_or_insert(now_ms);
        }
        Outcome::Answer(Answer::Done)
    }

    fn locks_of(&self, namespace: &str) -> Vec<Name> {
        self.locks.keys().filter(|name| name.0 == namespace).cloned().collect()
    }

    fn lock(&mut self, name: &Name) -> &mut Lock {
        self.locks.entry(name.clone()).or_default()
    }

    /// The grant that a caller is told of who does not get the lock.
    fn holder(&self, name: &Name) -> Option<Grant> {
        let holders = &self.locks.get(name)?.holders;
        let strong = holders.iter().find(|holder| holder.mode > LockMode::Shared);
        strong.or_else(|| holders.first()).map(|holder| holder.grant)
    }

    fn new_grant(&mut self, name: &Name, mode: LockMode) -> Grant {
        self.grants.push(name.clone());
        self.modes.push(mode);
        self.grants.len() - 1
    }

    fn grant(
        &mut self,
        name: &Name,
        session: u64,
        mode: LockMode,
        lock_delay_ms: Option<u64>,
    ) -> Grant {
        let grant = self.new_grant(name, mode);
        let since_ms = self.now_ms;
        let (former, relying, is_kept) = (None, Vec::new(), false);
        let holder =
            Holder { session, grant, former, mode, since_ms, lock_delay_ms, relying, is_kept };
        self.lock(name).holders.push(holder);
        self.counts.locks_acquired += 1;
        grant
    }

    fn regrant(&mut self, name: &Name, session: u64, mode: LockMode) -> Grant {
        let grant = self.new_grant(name, mode);
        let holders = &mut self.lock(name).holders;
        let place = holders.iter().position(|holder| holder.session == session);
        let holder = holders.remove(place.expect("who converts holds the lock"));
        holders.push(Holder { grant, former: Some(holder.grant), mode, ..holder });
        self.counts.locks_converted += 1;
        self.end_several(name, session, mode, &Answer::Refused(Reason::ConvertNeeded, Some(grant)));
        grant
    }

    fn give_up(&mut self, wait: &Wait) {
        self.settle(Some(wait.seat), &wait.id, Answer::GaveUp(wait.converts));
    }
}

/// The name of a call.
fn name_of(id: Option<&RequestId>, drawn: &Bytes) -> Id {
    match id {
        Some(id) => Some((id.client.clone(), id.sequence)),
        None if drawn.is_empty() => None,
        None => Some((format!("drawn {drawn:x}"), 0)),
    }
}

fn not_got(converts: bool, holder: Option<Grant>) -> Answer {
    if converts { Answer::NotConverted(holder) } else { Answer::Held(holder) }
}

fn granted(mut grants: Vec<(String, Grant)>, several: bool) -> Answer {
    if several {
        return Answer::GrantedAll(grants);
    }
    Answer::Granted(grants.remove(0).1)
}

/// The locks that an Acquire names.
fn wants(namespace: &str, name: &str, mode: LockMode, locks: &[api::LockWish]) -> Vec<Want> {
    let want = |name: &str, mode| {
        let name = (namespace.to_owned(), name.to_owned());
        Want { name, mode, held: false }
    };
    if locks.is_empty() {
        return vec![want(name, mode)];
    }
    locks.iter().map(|wish| want(&wish.name, wish.mode())).collect()
}
