//! What must be true of the lock service's records after every entry, read from the store alone.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use trefoil_proto::internal::v1::{
    Barrier, Claim, Hold, Holder, Latch, Lock, LockNamespace, Progress, RequestAnswer,
    RequestClient, Session, SessionMetadata, Wait, Waiter,
};
use trefoil_proto::lock::v1::{Deadlock, LockMode};

use super::{ensure, equal};
use crate::key::Kind;
use crate::limits::DEADLOCKS_KEPT_MAX;
use crate::machine::Gauges;
use crate::slot;
use crate::store::decode;

/// The place of a waiter that does not convert.
const ACQUIRES: u64 = 1 << 63;

/// All records of locks, by what their keys say.
#[derive(Debug, Default)]
pub struct LockState {
    /// How far the shard is.
    pub progress: Progress,
    /// Counters by namespace.
    pub namespaces: BTreeMap<String, LockNamespace>,
    /// By namespace and id.
    pub sessions: BTreeMap<(String, u64), Session>,
    /// By namespace and session.
    pub metadata: BTreeMap<(String, u64), SessionMetadata>,
    /// By namespace and name.
    pub locks: BTreeMap<(String, String), Lock>,
    /// By namespace, lock and place.
    pub waiters: BTreeMap<(String, String, u64), Waiter>,
    /// By namespace, lock and token.
    pub holders: BTreeMap<(String, String, u64), Holder>,
    /// By namespace, session and ordinal.
    pub waits: BTreeMap<(String, u64, u64), Wait>,
    /// By namespace and number.
    pub deadlocks: BTreeMap<(String, u64), Deadlock>,
    /// Bytes by namespace, session, and ordinal or 0 and lock.
    pub proclaimed: BTreeMap<(String, u64, u64, String), u64>,
    /// Namespace and name.
    pub semaphores: BTreeSet<(String, String)>,
    /// By namespace and name.
    pub latches: BTreeMap<(String, String), Latch>,
    /// By namespace and name.
    pub barriers: BTreeMap<(String, String), Barrier>,
    /// Namespace, session and barrier.
    pub entered: BTreeSet<(String, u64, String)>,
    /// By namespace, session and lock.
    pub claims: BTreeMap<(String, u64, String), Claim>,
    /// When it is due, kind of the record and the rest of its key.
    pub timers: BTreeSet<(u64, u8, Vec<u8>)>,
    /// By name.
    pub clients: BTreeMap<String, RequestClient>,
    /// By client and sequence.
    pub answers: BTreeMap<(String, u64), RequestAnswer>,
    /// Keys of records that do not lie in their slot.
    misplaced: Vec<Vec<u8>>,
}

impl LockState {
    /// Reads all records of a state.
    ///
    /// # Panics
    /// When a record is not what this version wrote.
    #[must_use]
    pub fn of(records: &[(Bytes, Bytes)]) -> Self {
        let mut state = Self::default();
        for (key, value) in records {
            let slot = u16::from_be_bytes([key[0], key[1]]);
            if state.add(key[2], &key[3..], value).is_some_and(|expected| expected != slot) {
                state.misplaced.push(key.to_vec());
            }
        }
        state
    }

    /// Adds a record; the slot in which it must lie, where it is one of these.
    fn add(&mut self, kind: u8, mut rest: &[u8], value: &[u8]) -> Option<u16> {
        let is = |of: Kind| kind == of as u8;
        if is(Kind::Progress) {
            self.progress = decode(value);
        } else if is(Kind::Timer) {
            let due_ms = number(&mut rest);
            self.timers.insert((due_ms, rest[2], rest[3..].to_vec()));
        } else if is(Kind::RequestClient) {
            self.clients.insert(tail(rest), decode(value));
        } else if is(Kind::RequestAnswer) {
            self.answers.insert((text(&mut rest), number(&mut rest)), decode(value));
        } else {
            return self
                .add_of_locks(kind, rest, value)
                .map(|namespace| slot::of_locks(&namespace));
        }
        Some(slot::SYSTEM_SLOT)
    }

    /// The namespace of a record of locks.
    fn add_of_locks(&mut self, kind: u8, mut rest: &[u8], value: &[u8]) -> Option<String> {
        const KINDS: [Kind; 13] = [
            Kind::Session,
            Kind::SessionMetadata,
            Kind::Lock,
            Kind::Waiter,
            Kind::Holder,
            Kind::Deadlock,
            Kind::Wait,
            Kind::Proclaimed,
            Kind::Semaphore,
            Kind::Latch,
            Kind::Barrier,
            Kind::Entered,
            Kind::Claim,
        ];
        if kind == Kind::LockNamespace as u8 {
            self.namespaces.insert(tail(rest), decode(value));
            return Some(tail(rest));
        }
        let kind = KINDS.into_iter().find(|of| *of as u8 == kind)?;
        let of = text(&mut rest);
        let namespace = of.clone();
        match kind {
            Kind::Session => {
                self.sessions.insert((of, number(&mut rest)), decode(value));
            }
            Kind::SessionMetadata => {
                self.metadata.insert((of, number(&mut rest)), decode(value));
            }
            Kind::Lock => {
                self.locks.insert((of, tail(rest)), decode(value));
            }
            Kind::Waiter => {
                self.waiters.insert((of, text(&mut rest), number(&mut rest)), decode(value));
            }
            Kind::Holder => {
                self.holders.insert((of, text(&mut rest), number(&mut rest)), decode(value));
            }
            Kind::Deadlock => {
                self.deadlocks.insert((of, number(&mut rest)), decode(value));
            }
            Kind::Wait => {
                let key = (of, number(&mut rest), number(&mut rest));
                self.waits.insert(key, decode(value));
            }
            Kind::Proclaimed => {
                let key = (of, number(&mut rest), number(&mut rest), tail(rest));
                self.proclaimed.insert(key, value.len() as u64);
            }
            Kind::Semaphore => {
                self.semaphores.insert((of, tail(rest)));
            }
            Kind::Latch => {
                self.latches.insert((of, tail(rest)), decode(value));
            }
            Kind::Barrier => {
                self.barriers.insert((of, tail(rest)), decode(value));
            }
            Kind::Entered => {
                self.entered.insert((of, number(&mut rest), tail(rest)));
            }
            Kind::Claim => {
                self.claims.insert((of, number(&mut rest), tail(rest)), decode(value));
            }
            _ => {}
        }
        Some(namespace)
    }

    /// Checks all that must be true together.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<(), String> {
        let now_ms = self.progress.log_time_ms;
        ensure!(self.misplaced.is_empty(), "a record lies in its slot");
        let is_swept = |session: &Session| !session.ended || session.timer_at_ms <= now_ms;
        ensure!(self.sessions.values().all(is_swept), "an ended session is about to be swept");
        let is_kept = |(namespace, number): &(String, u64)| {
            let last = self.namespaces[namespace].last_deadlock;
            (1..=last).contains(number) && number + DEADLOCKS_KEPT_MAX > last
        };
        let is_opens = |key| self.sessions.contains_key(key);
        ensure!(self.metadata.keys().all(is_opens), "metadata go with their session");
        ensure!(self.deadlocks.keys().all(is_kept), "only the last deadlocks are kept");
        self.check_counts()?;
        self.check_locks()?;
        self.check_timers()?;
        self.check_waits()?;
        self.check_elections()?;
        self.check_semaphores()?;
        self.check_barriers()?;
        for ((namespace, session, name), claim) in &self.claims {
            ensure!(claim.hold.is_some() || !claim.ordinals.is_empty(), "a claim claims something");
            ensure!(
                self.sessions.contains_key(&(namespace.clone(), *session)),
                "a claim has a session"
            );
            for ordinal in &claim.ordinals {
                let wait = &self.waits[&(namespace.clone(), *session, *ordinal)];
                ensure!(wait.wants.iter().any(|want| want.name == *name), "a wait is its claim's");
                equal!(wait.session_id, *session, "a wait knows its session");
                let held = wait.wants.iter().any(|want| want.name == *name && want.held);
                equal!(wait.converts || held, claim.hold.is_some(), "only a holder converts");
                ensure!(!wait.several || claim.ordinals.len() == 1, "who wants several is alone");
            }
        }
        let ordinals = self.claims.values().map(|claim| claim.ordinals.len()).sum::<usize>();
        let wants = self.waits.values().map(|wait| wait.wants.len()).sum::<usize>();
        equal!(ordinals, wants, "a wait is in the claims of all that it wants");
        Ok(())
    }

    fn check_waits(&self) -> Result<(), String> {
        let mut waiters = BTreeMap::new();
        for ((namespace, session, ordinal), wait) in &self.waits {
            equal!(wait.session_id, *session, "a wait knows its session");
            ensure!(wait.call.is_some() && !wait.wants.is_empty(), "somebody waits for something");
            ensure!(*ordinal <= self.namespaces[namespace].last_ordinal, "an ordinal was given");
            ensure!(
                wait.several || wait.wants.len() == 1 && !wait.wants[0].held,
                "who wants one lock does not hold it"
            );
            ensure!(wait.wants.iter().any(|want| !want.held), "somebody waits for something");
            for want in wait.wants.iter().filter(|want| !want.held) {
                let place = if wait.converts { *ordinal } else { ordinal | ACQUIRES };
                let key = (namespace.clone(), want.name.clone(), place);
                waiters.insert(key, Waiter { session_id: wait.session_id });
            }
        }
        equal!(waiters, self.waiters, "waiters are those of the waits");
        Ok(())
    }

    /// Permits are counted, and never more than there are but after a change to fewer; who is next waits for no reason but that.
    fn check_semaphores(&self) -> Result<(), String> {
        let is_semaphore = |lock: &Lock| lock.permits > 0;
        let semaphores = self.locks.iter().filter(|(_, lock)| is_semaphore(lock));
        let named = semaphores.clone().map(|(key, _)| key.clone()).collect::<BTreeSet<_>>();
        equal!(self.semaphores, named, "a semaphore is listed");
        let mut all = (0, 0);
        for ((namespace, name), lock) in semaphores {
            let holds = self.claims.iter().filter(|((of, _, at), _)| (of, at) == (namespace, name));
            let holds = holds.filter_map(|(_, claim)| claim.hold.as_ref());
            let permits = holds.map(|hold| hold.permits).sum::<u64>();
            equal!(lock.permits_in_use, permits, "a semaphore counts its permits");
            ensure!(lock.session_id == 0 && !is_delayed(lock), "permits are held in mode SHARED");
            all = (all.0 + lock.permits, all.1 + permits);
            let place = (namespace.clone(), name.clone(), 0);
            let first = self.waiters.range(place..).next().filter(|_| lock.waiters > 0);
            if let Some(((.., ordinal), waiter)) = first {
                let key = (namespace.clone(), waiter.session_id, ordinal & !ACQUIRES);
                let wanted = self.waits[&key].wants[0].permits;
                let waits = (1..=lock.permits).contains(&wanted) && wanted + permits > lock.permits;
                ensure!(waits || self.is_handed_on(namespace, name), "the first one goes on");
            }
        }
        for ((namespace, _, name), claim) in &self.claims {
            let permits = claim.hold.as_ref().map_or(0, |hold| hold.permits);
            let of = &self.locks[&(namespace.clone(), name.clone())];
            ensure!(
                claim.hold.is_none() || (permits > 0) == is_semaphore(of),
                "permits are of a semaphore"
            );
        }
        let gauges = Gauges::from(&self.progress);
        let counted = (gauges.semaphores, gauges.permits, gauges.permits_in_use);
        let there = (self.semaphores.len() as u64, all.0, all.1);
        equal!(counted, there, "a shard counts its semaphores");
        Ok(())
    }

    /// Whether a timer hands a lock on.
    fn is_handed_on(&self, namespace: &str, name: &str) -> bool {
        let key = [&sized(namespace)[..], name.as_bytes()].concat();
        self.timers.iter().any(|(_, kind, rest)| *kind == Kind::Lock as u8 && *rest == key)
    }

    /// Every campaign and every leader has a value, and nobody else has.
    fn check_elections(&self) -> Result<(), String> {
        let campaigns = self.waits.iter().filter(|(_, wait)| wait.campaigns);
        for (_, wait) in campaigns.clone() {
            let is_alone = wait.wants[0].mode() == LockMode::Exclusive && !wait.converts;
            ensure!(is_alone, "a campaign is for the lock alone");
        }
        let campaigns = campaigns.map(|((namespace, session, ordinal), _)| {
            (namespace.clone(), *session, *ordinal, String::new())
        });
        let leads = |claim: &Claim| claim.hold.as_ref().is_some_and(|hold| hold.leads);
        let leaders = self.claims.iter().filter(|(_, claim)| leads(claim));
        for (_, claim) in leaders.clone() {
            let mode = claim.hold.as_ref().map(Hold::mode);
            equal!(mode, Some(LockMode::Exclusive), "a leader holds the lock alone");
        }
        let leaders = leaders
            .map(|((namespace, session, name), _)| (namespace.clone(), *session, 0, name.clone()));
        let expected = campaigns.chain(leaders).collect::<BTreeSet<_>>();
        ensure!(expected.iter().eq(self.proclaimed.keys()), "campaigns and leaders have values");
        for (namespace, counters) in &self.namespaces {
            let values = self.proclaimed.iter().filter(|((of, ..), _)| of == namespace);
            let bytes = values.map(|(_, bytes)| bytes).sum::<u64>();
            equal!(counters.proclaimed_bytes, bytes, "a namespace counts its values");
        }
        Ok(())
    }

    /// Latches and barriers are counted, and the end of a session finds every barrier that it is in.
    fn check_barriers(&self) -> Result<(), String> {
        for (namespace, counters) in &self.namespaces {
            let latches = self.latches.iter().filter(|((of, _), _)| of == namespace);
            let barriers = self.barriers.iter().filter(|((of, _), _)| of == namespace);
            let counted = (counters.latches, counters.barriers);
            let there = (latches.clone().count() as u64, barriers.clone().count() as u64);
            equal!(counted, there, "a namespace counts its latches and barriers");
            let rounds = latches.map(|(_, latch)| latch.round);
            let rounds = rounds.chain(barriers.map(|(_, barrier)| barrier.round));
            let rounds = rounds.collect::<Vec<_>>();
            equal!(
                rounds.iter().collect::<BTreeSet<_>>().len(),
                rounds.len(),
                "a round is one latch's or barrier's"
            );
            ensure!(
                rounds.iter().all(|round| (1..=counters.last_round).contains(round)),
                "a round was given"
            );
        }
        for latch in self.latches.values() {
            ensure!(
                latch.count <= latch.set_count && latch.first_round <= latch.round,
                "a latch counts down"
            );
        }
        for ((namespace, name), barrier) in &self.barriers {
            let sessions = barrier.inside.iter().map(|party| party.session_id);
            let sessions = sessions.collect::<BTreeSet<_>>();
            equal!(sessions.len(), barrier.inside.len(), "a session is in a barrier once");
            let most = barrier.parties as usize - usize::from(!barrier.tripped);
            ensure!((1..=most).contains(&sessions.len()), "who is missing is waited for");
            let is_noted =
                |id: &u64| self.entered.contains(&(namespace.clone(), *id, name.clone()));
            ensure!(sessions.iter().all(is_noted), "a session knows its barriers");
        }
        for (key, session) in &self.sessions {
            let first = |id| (key.0.clone(), id, String::new());
            let entered = self.entered.range(first(key.1)..first(key.1 + 1)).count() as u64;
            equal!(session.entered, entered, "a session counts its barriers");
        }
        let has_session = |entered: &(String, u64, String)| {
            self.sessions.contains_key(&(entered.0.clone(), entered.1))
        };
        ensure!(self.entered.iter().all(has_session), "who entered is a session");
        Ok(())
    }

    fn check_counts(&self) -> Result<(), String> {
        let mut sessions = BTreeMap::<_, u64>::new();
        for (namespace, _) in self.sessions.keys() {
            *sessions.entry(namespace).or_default() += 1;
        }
        for (namespace, counters) in &self.namespaces {
            equal!(
                counters.sessions,
                sessions.get(namespace).copied().unwrap_or(0),
                "a namespace counts its sessions"
            );
            let locks = self.locks.keys().filter(|(of, _)| of == namespace).count();
            let waits = self.waits.keys().filter(|(of, ..)| of == namespace).count();
            let counted = (counters.locks, counters.waits);
            equal!(counted, (locks as u64, waits as u64), "a namespace counts its records");
        }
        let mut claims = BTreeMap::<_, (u64, u64)>::new();
        for ((namespace, session, _), claim) in &self.claims {
            let counts = claims.entry((namespace.clone(), *session)).or_default();
            counts.0 += 1;
            counts.1 += u64::from(claim.hold.is_some());
        }
        for (key, session) in &self.sessions {
            let counted = claims.get(key).copied().unwrap_or_default();
            equal!((session.claims, session.held), counted, "a session counts its claims");
        }
        let gauges = Gauges::from(&self.progress);
        let grants = self.claims.values().filter(|claim| claim.hold.is_some()).count();
        equal!(
            (gauges.locks_held, gauges.locks_waiting, gauges.sessions),
            (grants as u64, self.waits.len() as u64, self.sessions.len() as u64),
            "a shard counts what it has"
        );
        for (name, client) in &self.clients {
            let of_client = (name.clone(), 0)..=(name.clone(), u64::MAX);
            let answers =
                self.answers.range(of_client).map(|(_, answer)| answer).collect::<Vec<_>>();
            let waiting = answers.iter().filter(|answer| answer.answer.is_none()).count();
            let counted = (u64::from(client.open), u64::from(client.waiting));
            equal!(counted, (answers.len() as u64, waiting as u64), "a client counts its answers");
        }
        Ok(())
    }

    fn check_locks(&self) -> Result<(), String> {
        let mut tokens = BTreeMap::new();
        for ((namespace, name), lock) in &self.locks {
            ensure!(
                lock.session_id > 0
                    || lock.shared > 0
                    || lock.waiters > 0
                    || is_delayed(lock)
                    || lock.permits > 0,
                "a lock that nobody wants has no record"
            );
            equal!(lock.session_id > 0, lock.token > 0, "every grant has a token");
            equal!(
                lock.session_id > 0,
                lock.mode() > LockMode::Shared,
                "a lock knows who excludes others"
            );
            ensure!(lock.mode() != LockMode::Exclusive || lock.shared == 0, "exclusive is alone");
            let all =
                (namespace.clone(), name.clone(), 0)..=(namespace.clone(), name.clone(), u64::MAX);
            let waiters = self.waiters.range(all.clone()).count();
            equal!(lock.waiters, waiters as u64, "a lock counts its waiters");
            let shared = self.holders.range(all);
            let shared = shared.map(|((.., token), holder)| (*token, (holder.session_id, true)));
            let shared = shared.collect::<Vec<_>>();
            equal!(lock.shared, shared.len() as u64, "a lock counts its holders");
            let strong = (lock.session_id > 0).then_some((lock.token, (lock.session_id, false)));
            for (token, (session_id, is_shared)) in shared.into_iter().chain(strong) {
                let grant = (session_id, name.clone(), is_shared);
                let others = tokens.insert((namespace.clone(), token), grant);
                equal!(others, None, "a token is one grant's");
                ensure!(token <= self.namespaces[namespace].last_token, "a token was given");
            }
        }
        for hold in self.claims.values().filter_map(|claim| claim.hold.as_ref()) {
            ensure!(hold.kept || !hold.acquirers.is_empty(), "a grant answered somebody");
            ensure!(hold.former_token < hold.token, "tokens rise");
        }
        let holds = self.claims.iter().filter_map(|((namespace, session, name), claim)| {
            let hold = claim.hold.as_ref()?;
            let grant = (*session, name.clone(), hold.mode() == LockMode::Shared);
            Some(((namespace.clone(), hold.token), grant))
        });
        equal!(holds.collect::<BTreeMap<_, _>>(), tokens, "a claim that holds is a holder's");
        for (namespace, name, _) in self.waiters.keys().chain(self.holders.keys()) {
            ensure!(
                self.locks.contains_key(&(namespace.clone(), name.clone())),
                "who waits or holds has a lock"
            );
        }
        Ok(())
    }

    /// Whether a timer looks at a lock.
    fn is_watched(&self, namespace: &str, name: &str) -> bool {
        let rest = [&sized(namespace)[..], name.as_bytes()].concat();
        self.timers.iter().any(|timer| timer.1 == Kind::Lock as u8 && timer.2 == rest)
    }

    /// The first waiter of a lock.
    fn first(&self, namespace: &str, name: &str) -> Option<(&(String, String, u64), &Waiter)> {
        let all = (namespace.to_owned(), name.to_owned(), 0)
            ..=(namespace.to_owned(), name.to_owned(), u64::MAX);
        self.waiters.range(all).next()
    }

    /// Whether the first waiter of a lock wants others with it which are held, or where others are before it, or which a
    /// timer looks at.
    fn stands_elsewhere(&self, namespace: &str, name: &str) -> bool {
        let Some(((.., place), waiter)) = self.first(namespace, name) else { return false };
        let wait = &self.waits[&(namespace.to_owned(), waiter.session_id, place & !ACQUIRES)];
        wait.wants.iter().filter(|want| !want.held).any(|want| {
            let first = self.first(namespace, &want.name).map(|((.., first), _)| first);
            let lock = &self.locks[&(namespace.to_owned(), want.name.clone())];
            is_held(lock) || first != Some(place) || self.is_watched(namespace, &want.name)
        })
    }

    /// Every timer that must be there is, and no other but those that hand on a free lock.
    fn check_timers(&self) -> Result<(), String> {
        let mut expected = BTreeSet::new();
        for ((namespace, id), session) in &self.sessions {
            expected.insert((
                session.timer_at_ms,
                Kind::Session as u8,
                [&sized(namespace)[..], &id.to_be_bytes()].concat(),
            ));
        }
        for ((namespace, session, ordinal), wait) in &self.waits {
            let rest = [&sized(namespace)[..], &session.to_be_bytes(), &ordinal.to_be_bytes()];
            let rest = rest.concat();
            expected.insert((wait.deadline_ms, Kind::Wait as u8, rest));
        }
        for ((namespace, name), lock) in &self.locks {
            let is_watched = self.is_watched(namespace, name);
            ensure!(!is_delayed(lock) || is_watched, "a delay ends");
            let is_used = is_held(lock) || lock.permits > 0;
            ensure!(
                is_used || is_watched || self.stands_elsewhere(namespace, name),
                "a free lock is handed on"
            );
        }
        let clients =
            self.timers.iter().filter(|(_, kind, _)| *kind == Kind::RequestClient as u8).count();
        equal!(clients, self.clients.len(), "a client has its timer");
        let is_fixed = |timer: &&(u64, u8, Vec<u8>)| {
            [Kind::Session, Kind::Wait].into_iter().any(|kind| timer.1 == kind as u8)
        };
        let others = self.timers.iter().filter(is_fixed).cloned();
        equal!(others.collect::<BTreeSet<_>>(), expected, "timers are those of the records");
        Ok(())
    }
}

fn is_held(lock: &Lock) -> bool {
    lock.session_id > 0 || lock.shared > 0
}

/// Whether a holder that expired still keeps others out, or did when it was looked at last.
#[must_use]
pub fn is_delayed(lock: &Lock) -> bool {
    let delays =
        [lock.shared_delay_until_ms, lock.update_delay_until_ms, lock.exclusive_delay_until_ms];
    delays != [0; 3]
}

fn text(rest: &mut &[u8]) -> String {
    let (text, after) = rest[1..].split_at(usize::from(rest[0]));
    *rest = after;
    tail(text)
}

fn number(rest: &mut &[u8]) -> u64 {
    let (number, after) = rest.split_at(8);
    *rest = after;
    u64::from_be_bytes(number.try_into().expect("eight bytes"))
}

fn tail(rest: &[u8]) -> String {
    String::from_utf8(rest.to_vec()).expect("names are text")
}

fn sized(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("names are short");
    [&[length], text.as_bytes()].concat()
}
