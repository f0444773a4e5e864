//! What must be true of the lock service's records after every entry, read from the store alone.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::limits::DEADLOCKS_KEPT_MAX;
use trefoil_core::machine::Gauges;
use trefoil_core::slot;
use trefoil_core::store::{MemoryStore, decode};
use trefoil_proto::internal::v1::{
    Barrier, Claim, Hold, Holder, Latch, Lock, LockNamespace, Progress, RequestAnswer,
    RequestClient, Session, SessionMetadata, Wait, Waiter,
};
use trefoil_proto::lock::v1::{Deadlock, LockMode};

/// Numbers of `key::Kind`, written out because they are the format.
const PROGRESS: u8 = 1;
const TIMER: u8 = 2;
const REQUEST_CLIENT: u8 = 3;
const REQUEST_ANSWER: u8 = 4;
const METADATA: u8 = 5;
const NAMESPACE: u8 = 16;
const SESSION: u8 = 17;
const LOCK: u8 = 18;
const WAITER: u8 = 19;
const CLAIM: u8 = 20;
const HOLDER: u8 = 21;
const WAIT: u8 = 22;
const DEADLOCK: u8 = 23;
const SEMAPHORE: u8 = 24;
const PROCLAIMED: u8 = 28;
const LATCH: u8 = 29;
const BARRIER: u8 = 30;
const ENTERED: u8 = 31;

/// The place of a waiter that does not convert.
const ACQUIRES: u64 = 1 << 63;

/// All records of locks, by what their keys say.
#[derive(Debug, Default)]
pub struct LockState {
    pub progress: Progress,
    pub namespaces: BTreeMap<String, LockNamespace>,
    pub sessions: BTreeMap<(String, u64), Session>,
    pub metadata: BTreeMap<(String, u64), SessionMetadata>,
    pub locks: BTreeMap<(String, String), Lock>,
    /// (namespace, lock, place)
    pub waiters: BTreeMap<(String, String, u64), Waiter>,
    /// (namespace, lock, token)
    pub holders: BTreeMap<(String, String, u64), Holder>,
    /// (namespace, session, ordinal)
    pub waits: BTreeMap<(String, u64, u64), Wait>,
    /// (namespace, number)
    pub deadlocks: BTreeMap<(String, u64), Deadlock>,
    /// (namespace, session, ordinal, or 0 and lock), to the bytes of the record
    pub proclaimed: BTreeMap<(String, u64, u64, String), u64>,
    /// (namespace, name)
    pub semaphores: BTreeSet<(String, String)>,
    pub latches: BTreeMap<(String, String), Latch>,
    pub barriers: BTreeMap<(String, String), Barrier>,
    /// (namespace, session, barrier)
    pub entered: BTreeSet<(String, u64, String)>,
    pub claims: BTreeMap<(String, u64, String), Claim>,
    /// (due, kind, rest)
    pub timers: BTreeSet<(u64, u8, Vec<u8>)>,
    pub clients: BTreeMap<String, RequestClient>,
    pub answers: BTreeMap<(String, u64), RequestAnswer>,
}

impl LockState {
    pub fn read(store: &MemoryStore) -> Self {
        let mut state = Self::default();
        for (key, value) in &store.records {
            let slot = u16::from_be_bytes([key[0], key[1]]);
            let mut rest = &key[3..];
            let expected_slot = match key[2] {
                PROGRESS => {
                    state.progress = decode(value);
                    slot::SYSTEM_SLOT
                }
                TIMER => {
                    let due = number(&mut rest);
                    state.timers.insert((due, rest[2], rest[3..].to_vec()));
                    slot::SYSTEM_SLOT
                }
                REQUEST_CLIENT => {
                    state.clients.insert(tail(rest), decode(value));
                    slot::SYSTEM_SLOT
                }
                REQUEST_ANSWER => {
                    state.answers.insert((text(&mut rest), number(&mut rest)), decode(value));
                    slot::SYSTEM_SLOT
                }
                kind => slot::of_locks(&state.add(kind, rest, value)),
            };
            assert_eq!(slot, expected_slot, "a record lies in its slot");
        }
        state
    }

    fn add(&mut self, kind: u8, mut rest: &[u8], value: &[u8]) -> String {
        if kind == NAMESPACE {
            self.namespaces.insert(tail(rest), decode(value));
            return tail(rest);
        }
        let namespace = text(&mut rest);
        let of = namespace.clone();
        match kind {
            SESSION => {
                self.sessions.insert((of, number(&mut rest)), decode(value));
            }
            METADATA => {
                self.metadata.insert((of, number(&mut rest)), decode(value));
            }
            LOCK => {
                self.locks.insert((of, tail(rest)), decode(value));
            }
            WAITER => {
                self.waiters.insert((of, text(&mut rest), number(&mut rest)), decode(value));
            }
            HOLDER => {
                self.holders.insert((of, text(&mut rest), number(&mut rest)), decode(value));
            }
            DEADLOCK => {
                self.deadlocks.insert((of, number(&mut rest)), decode(value));
            }
            WAIT => {
                let key = (of, number(&mut rest), number(&mut rest));
                self.waits.insert(key, decode(value));
            }
            PROCLAIMED => {
                let key = (of, number(&mut rest), number(&mut rest), tail(rest));
                self.proclaimed.insert(key, value.len() as u64);
            }
            SEMAPHORE => {
                assert!(value.is_empty());
                self.semaphores.insert((of, tail(rest)));
            }
            LATCH => {
                self.latches.insert((of, tail(rest)), decode(value));
            }
            BARRIER => {
                self.barriers.insert((of, tail(rest)), decode(value));
            }
            ENTERED => {
                self.entered.insert((of, number(&mut rest), tail(rest)));
            }
            CLAIM => {
                self.claims.insert((of, number(&mut rest), tail(rest)), decode(value));
            }
            _ => panic!("no record of locks has kind {kind}"),
        }
        namespace
    }

    /// Checks all that must be true together.
    pub fn check(&self, now_ms: u64) {
        let is_swept = |session: &Session| !session.ended || session.timer_at_ms <= now_ms;
        assert!(self.sessions.values().all(is_swept), "an ended session is about to be swept");
        let is_kept = |(namespace, number): &(String, u64)| {
            let last = self.namespaces[namespace].last_deadlock;
            (1..=last).contains(number) && number + DEADLOCKS_KEPT_MAX > last
        };
        let is_opens = |key| self.sessions.contains_key(key);
        assert!(self.metadata.keys().all(is_opens), "metadata go with their session");
        assert!(self.deadlocks.keys().all(is_kept), "only the last deadlocks are kept");
        self.check_counts();
        self.check_locks();
        self.check_timers();
        self.check_waits();
        self.check_elections();
        self.check_semaphores();
        self.check_barriers();
        for ((namespace, session, name), claim) in &self.claims {
            assert!(claim.hold.is_some() || !claim.ordinals.is_empty(), "a claim claims something");
            assert!(
                self.sessions.contains_key(&(namespace.clone(), *session)),
                "a claim has a session"
            );
            for ordinal in &claim.ordinals {
                let wait = &self.waits[&(namespace.clone(), *session, *ordinal)];
                assert!(wait.wants.iter().any(|want| want.name == *name), "a wait is its claim's");
                assert_eq!(wait.session_id, *session);
                let held = wait.wants.iter().any(|want| want.name == *name && want.held);
                assert_eq!(wait.converts || held, claim.hold.is_some(), "only a holder converts");
                assert!(!wait.several || claim.ordinals.len() == 1, "who wants several is alone");
            }
        }
        let ordinals = self.claims.values().map(|claim| claim.ordinals.len()).sum::<usize>();
        let wants = self.waits.values().map(|wait| wait.wants.len()).sum::<usize>();
        assert_eq!(ordinals, wants, "a wait is in the claims of all that it wants");
    }

    fn check_waits(&self) {
        let mut waiters = BTreeMap::new();
        for ((namespace, session, ordinal), wait) in &self.waits {
            assert_eq!(wait.session_id, *session);
            assert!(wait.call.is_some() && !wait.wants.is_empty(), "somebody waits for something");
            assert!(*ordinal <= self.namespaces[namespace].last_ordinal);
            assert!(wait.several || wait.wants.len() == 1 && !wait.wants[0].held);
            assert!(wait.wants.iter().any(|want| !want.held), "somebody waits for something");
            for want in wait.wants.iter().filter(|want| !want.held) {
                let place = if wait.converts { *ordinal } else { ordinal | ACQUIRES };
                let key = (namespace.clone(), want.name.clone(), place);
                waiters.insert(key, Waiter { session_id: wait.session_id });
            }
        }
        assert_eq!(waiters, self.waiters, "waiters are those of the waits");
    }

    /// Permits are counted, and never more than there are but after a change to fewer; who is next waits for no reason but that.
    fn check_semaphores(&self) {
        let is_semaphore = |lock: &Lock| lock.permits > 0;
        let semaphores = self.locks.iter().filter(|(_, lock)| is_semaphore(lock));
        let named = semaphores.clone().map(|(key, _)| key.clone()).collect::<BTreeSet<_>>();
        assert_eq!(self.semaphores, named, "a semaphore is listed");
        let mut all = (0, 0);
        for ((namespace, name), lock) in semaphores {
            let holds = self.claims.iter().filter(|((of, _, at), _)| (of, at) == (namespace, name));
            let holds = holds.filter_map(|(_, claim)| claim.hold.as_ref());
            let permits = holds.map(|hold| hold.permits).sum::<u64>();
            assert_eq!(lock.permits_in_use, permits, "a semaphore counts its permits");
            assert!(lock.session_id == 0 && !is_delayed(lock), "permits are held in mode SHARED");
            all = (all.0 + lock.permits, all.1 + permits);
            let place = (namespace.clone(), name.clone(), 0);
            let first = self.waiters.range(place..).next().filter(|_| lock.waiters > 0);
            if let Some(((.., ordinal), waiter)) = first {
                let key = (namespace.clone(), waiter.session_id, ordinal & !ACQUIRES);
                let wanted = self.waits[&key].wants[0].permits;
                let waits = (1..=lock.permits).contains(&wanted) && wanted + permits > lock.permits;
                assert!(waits || self.is_handed_on(namespace, name), "the first one goes on");
            }
        }
        for ((namespace, _, name), claim) in &self.claims {
            let permits = claim.hold.as_ref().map_or(0, |hold| hold.permits);
            let of = &self.locks[&(namespace.clone(), name.clone())];
            assert!(claim.hold.is_none() || (permits > 0) == is_semaphore(of));
        }
        let gauges = Gauges::from(&self.progress);
        let counted = (gauges.semaphores, gauges.permits, gauges.permits_in_use);
        let there = (self.semaphores.len() as u64, all.0, all.1);
        assert_eq!(counted, there, "a shard counts its semaphores");
    }

    /// Whether a timer hands a lock on.
    fn is_handed_on(&self, namespace: &str, name: &str) -> bool {
        let key = [&sized(namespace)[..], name.as_bytes()].concat();
        self.timers.iter().any(|(_, kind, rest)| *kind == LOCK && *rest == key)
    }

    /// Every campaign and every leader has a value, and nobody else has.
    fn check_elections(&self) {
        let campaigns = self.waits.iter().filter(|(_, wait)| wait.campaigns);
        let campaigns = campaigns.map(|((namespace, session, ordinal), wait)| {
            assert!(wait.wants[0].mode() == LockMode::Exclusive && !wait.converts);
            (namespace.clone(), *session, *ordinal, String::new())
        });
        let leads = |claim: &Claim| claim.hold.as_ref().is_some_and(|hold| hold.leads);
        let leaders = self.claims.iter().filter(|(_, claim)| leads(claim));
        let leaders = leaders.map(|((namespace, session, name), claim)| {
            assert_eq!(claim.hold.as_ref().map(Hold::mode), Some(LockMode::Exclusive));
            (namespace.clone(), *session, 0, name.clone())
        });
        let expected = campaigns.chain(leaders).collect::<BTreeSet<_>>();
        assert!(expected.iter().eq(self.proclaimed.keys()), "campaigns and leaders have values");
        for (namespace, counters) in &self.namespaces {
            let values = self.proclaimed.iter().filter(|((of, ..), _)| of == namespace);
            let bytes = values.map(|(_, bytes)| bytes).sum::<u64>();
            assert_eq!(counters.proclaimed_bytes, bytes, "a namespace counts its values");
        }
    }

    /// Latches and barriers are counted, and the end of a session finds every barrier that it is in.
    fn check_barriers(&self) {
        for (namespace, counters) in &self.namespaces {
            let latches = self.latches.iter().filter(|((of, _), _)| of == namespace);
            let barriers = self.barriers.iter().filter(|((of, _), _)| of == namespace);
            let counted = (counters.latches, counters.barriers);
            let there = (latches.clone().count() as u64, barriers.clone().count() as u64);
            assert_eq!(counted, there, "a namespace counts its latches and barriers");
            let rounds = latches.map(|(_, latch)| latch.round);
            let rounds = rounds.chain(barriers.map(|(_, barrier)| barrier.round));
            let rounds = rounds.collect::<Vec<_>>();
            assert_eq!(rounds.iter().collect::<BTreeSet<_>>().len(), rounds.len());
            assert!(rounds.iter().all(|round| (1..=counters.last_round).contains(round)));
        }
        for latch in self.latches.values() {
            assert!(latch.count <= latch.set_count && latch.first_round <= latch.round);
        }
        for ((namespace, name), barrier) in &self.barriers {
            let sessions = barrier.inside.iter().map(|party| party.session_id);
            let sessions = sessions.collect::<BTreeSet<_>>();
            assert_eq!(sessions.len(), barrier.inside.len(), "a session is in a barrier once");
            let most = barrier.parties as usize - usize::from(!barrier.tripped);
            assert!((1..=most).contains(&sessions.len()), "who is missing is waited for");
            let is_noted =
                |id: &u64| self.entered.contains(&(namespace.clone(), *id, name.clone()));
            assert!(sessions.iter().all(is_noted), "a session knows its barriers");
        }
        for (key, session) in &self.sessions {
            let first = |id| (key.0.clone(), id, String::new());
            let entered = self.entered.range(first(key.1)..first(key.1 + 1)).count() as u64;
            assert_eq!(session.entered, entered, "a session counts its barriers");
        }
        let has_session = |entered: &(String, u64, String)| {
            self.sessions.contains_key(&(entered.0.clone(), entered.1))
        };
        assert!(self.entered.iter().all(has_session));
    }

    fn check_counts(&self) {
        let mut sessions = BTreeMap::<_, u64>::new();
        for (namespace, _) in self.sessions.keys() {
            *sessions.entry(namespace).or_default() += 1;
        }
        for (namespace, counters) in &self.namespaces {
            assert_eq!(counters.sessions, sessions.get(namespace).copied().unwrap_or(0));
            let locks = self.locks.keys().filter(|(of, _)| of == namespace).count();
            let waits = self.waits.keys().filter(|(of, ..)| of == namespace).count();
            let counted = (counters.locks, counters.waits);
            assert_eq!(counted, (locks as u64, waits as u64), "a namespace counts its records");
        }
        let mut claims = BTreeMap::<_, (u64, u64)>::new();
        for ((namespace, session, _), claim) in &self.claims {
            let counts = claims.entry((namespace.clone(), *session)).or_default();
            counts.0 += 1;
            counts.1 += u64::from(claim.hold.is_some());
        }
        for (key, session) in &self.sessions {
            let counted = claims.get(key).copied().unwrap_or_default();
            assert_eq!((session.claims, session.held), counted, "a session counts its claims");
        }
        let gauges = Gauges::from(&self.progress);
        let grants = self.claims.values().filter(|claim| claim.hold.is_some()).count();
        assert_eq!(
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
            assert_eq!(
                counted,
                (answers.len() as u64, waiting as u64),
                "a client counts its answers"
            );
        }
    }

    fn check_locks(&self) {
        let mut tokens = BTreeMap::new();
        for ((namespace, name), lock) in &self.locks {
            assert!(
                lock.session_id > 0
                    || lock.shared > 0
                    || lock.waiters > 0
                    || is_delayed(lock)
                    || lock.permits > 0,
                "a lock that nobody wants has no record"
            );
            assert_eq!(lock.session_id > 0, lock.token > 0, "every grant has a token");
            assert_eq!(lock.session_id > 0, lock.mode() > LockMode::Shared);
            assert!(lock.mode() != LockMode::Exclusive || lock.shared == 0, "exclusive is alone");
            let all =
                (namespace.clone(), name.clone(), 0)..=(namespace.clone(), name.clone(), u64::MAX);
            let waiters = self.waiters.range(all.clone()).count();
            assert_eq!(lock.waiters, waiters as u64, "a lock counts its waiters");
            let shared = self.holders.range(all);
            let shared = shared.map(|((.., token), holder)| (*token, (holder.session_id, true)));
            let shared = shared.collect::<Vec<_>>();
            assert_eq!(lock.shared, shared.len() as u64, "a lock counts its holders");
            let strong = (lock.session_id > 0).then_some((lock.token, (lock.session_id, false)));
            for (token, (session_id, is_shared)) in shared.into_iter().chain(strong) {
                let grant = (session_id, name.clone(), is_shared);
                let others = tokens.insert((namespace.clone(), token), grant);
                assert_eq!(others, None, "a token is one grant's");
                assert!(token <= self.namespaces[namespace].last_token);
            }
        }
        let holds = self.claims.iter().filter_map(|((namespace, session, name), claim)| {
            let hold = claim.hold.as_ref()?;
            assert!(hold.kept || !hold.acquirers.is_empty(), "a grant answered somebody");
            assert!(hold.former_token < hold.token);
            let grant = (*session, name.clone(), hold.mode() == LockMode::Shared);
            Some(((namespace.clone(), hold.token), grant))
        });
        assert_eq!(holds.collect::<BTreeMap<_, _>>(), tokens, "a claim that holds is a holder's");
        for (namespace, name, _) in self.waiters.keys().chain(self.holders.keys()) {
            assert!(
                self.locks.contains_key(&(namespace.clone(), name.clone())),
                "who waits or holds has a lock"
            );
        }
    }

    /// Whether a timer looks at a lock.
    fn is_watched(&self, namespace: &str, name: &str) -> bool {
        let rest = [&sized(namespace)[..], name.as_bytes()].concat();
        self.timers.iter().any(|timer| timer.1 == LOCK && timer.2 == rest)
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
    fn check_timers(&self) {
        let mut expected = BTreeSet::new();
        for ((namespace, id), session) in &self.sessions {
            expected.insert((
                session.timer_at_ms,
                SESSION,
                [&sized(namespace)[..], &id.to_be_bytes()].concat(),
            ));
        }
        for ((namespace, session, ordinal), wait) in &self.waits {
            let rest = [&sized(namespace)[..], &session.to_be_bytes(), &ordinal.to_be_bytes()];
            let rest = rest.concat();
            expected.insert((wait.deadline_ms, WAIT, rest));
        }
        for ((namespace, name), lock) in &self.locks {
            let is_watched = self.is_watched(namespace, name);
            assert!(!is_delayed(lock) || is_watched, "a delay ends");
            let is_used = is_held(lock) || lock.permits > 0;
            assert!(
                is_used || is_watched || self.stands_elsewhere(namespace, name),
                "a free lock is handed on"
            );
        }
        let clients = self.timers.iter().filter(|(_, kind, _)| *kind == REQUEST_CLIENT).count();
        assert_eq!(clients, self.clients.len(), "a client has its timer");
        let is_looked_at =
            |timer: &&(u64, u8, Vec<u8>)| timer.1 == REQUEST_CLIENT || timer.1 == LOCK;
        let others = self.timers.iter().filter(|timer| !is_looked_at(timer)).cloned();
        assert_eq!(others.collect::<BTreeSet<_>>(), expected, "timers are those of the records");
    }
}

fn is_held(lock: &Lock) -> bool {
    lock.session_id > 0 || lock.shared > 0
}

/// Whether a holder that expired still keeps others out, or did when it was looked at last.
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
