//! What must be true of the lock service's records after every entry, read from the store alone.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::slot;
use trefoil_core::store::{MemoryStore, decode};
use trefoil_proto::internal::v1::{
    Claim, Lock, LockNamespace, RequestAnswer, RequestClient, Session, Waiter,
};

/// Numbers of `key::Kind`, written out because they are the format.
const PROGRESS: u8 = 1;
const TIMER: u8 = 2;
const REQUEST_CLIENT: u8 = 3;
const REQUEST_ANSWER: u8 = 4;
const NAMESPACE: u8 = 16;
const SESSION: u8 = 17;
const LOCK: u8 = 18;
const WAITER: u8 = 19;
const CLAIM: u8 = 20;

/// All records of locks, by what their keys say.
#[derive(Debug, Default)]
pub struct LockState {
    pub namespaces: BTreeMap<String, LockNamespace>,
    pub sessions: BTreeMap<(String, u64), Session>,
    pub locks: BTreeMap<(String, String), Lock>,
    /// (namespace, lock, ordinal)
    pub waiters: BTreeMap<(String, String, u64), Waiter>,
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
                PROGRESS => slot::SYSTEM_SLOT,
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
            LOCK => {
                self.locks.insert((of, tail(rest)), decode(value));
            }
            WAITER => {
                self.waiters.insert((of, text(&mut rest), number(&mut rest)), decode(value));
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
        self.check_counts();
        self.check_locks();
        self.check_timers();
        for ((namespace, session, name), claim) in &self.claims {
            assert!(claim.holds || !claim.waits.is_empty(), "a claim claims something");
            assert!(
                self.sessions.contains_key(&(namespace.clone(), *session)),
                "a claim has a session"
            );
            for wait in &claim.waits {
                let waiter = self.waiters.get(&(namespace.clone(), name.clone(), wait.ordinal));
                assert_eq!(
                    waiter.map(|waiter| waiter.session_id),
                    Some(*session),
                    "a wait has its waiter"
                );
                assert!(wait.callers > 0, "somebody waits");
            }
        }
        let waits = self.claims.values().map(|claim| claim.waits.len()).sum::<usize>();
        assert_eq!(waits, self.waiters.len(), "a waiter has its wait");
    }

    fn check_counts(&self) {
        let mut sessions = BTreeMap::<_, u64>::new();
        for (namespace, _) in self.sessions.keys() {
            *sessions.entry(namespace).or_default() += 1;
        }
        for (namespace, counters) in &self.namespaces {
            assert_eq!(counters.sessions, sessions.get(namespace).copied().unwrap_or(0));
        }
        let mut claims = BTreeMap::<_, (u64, u64)>::new();
        for ((namespace, session, _), claim) in &self.claims {
            let counts = claims.entry((namespace.clone(), *session)).or_default();
            counts.0 += 1;
            counts.1 += u64::from(claim.holds);
        }
        for (key, session) in &self.sessions {
            let counted = claims.get(key).copied().unwrap_or_default();
            assert_eq!((session.claims, session.held), counted, "a session counts its claims");
        }
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
        let mut tokens = BTreeSet::new();
        for ((namespace, name), lock) in &self.locks {
            assert!(
                lock.session_id > 0 || lock.waiters > 0,
                "a lock that nobody wants has no record"
            );
            assert_eq!(lock.session_id > 0, lock.token > 0, "every grant has a token");
            let all =
                (namespace.clone(), name.clone(), 0)..=(namespace.clone(), name.clone(), u64::MAX);
            assert_eq!(
                lock.waiters,
                self.waiters.range(all).count() as u64,
                "a lock counts its waiters"
            );
            if lock.session_id > 0 {
                assert!(tokens.insert((namespace, lock.token)), "a token is one grant's");
                assert!(lock.token <= self.namespaces[namespace].last_token);
                let claim = self.claims.get(&(namespace.clone(), lock.session_id, name.clone()));
                assert!(
                    claim.is_some_and(|claim| claim.holds && claim.waits.is_empty()),
                    "a holder has its claim"
                );
                assert!(lock.kept || !lock.acquirers.is_empty(), "a grant answered somebody");
            }
        }
        let holding = self.claims.values().filter(|claim| claim.holds).count();
        assert_eq!(holding, tokens.len(), "a claim that holds is the holder's");
        for (namespace, name, _) in self.waiters.keys() {
            assert!(
                self.locks.contains_key(&(namespace.clone(), name.clone())),
                "a waiter has its lock"
            );
        }
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
        for ((namespace, _, name), claim) in &self.claims {
            for wait in &claim.waits {
                let rest =
                    [&sized(namespace)[..], &sized(name), &wait.ordinal.to_be_bytes()].concat();
                expected.insert((wait.deadline_ms, WAITER, rest));
            }
        }
        for ((namespace, name), lock) in &self.locks {
            let goes_on = |(_, kind, rest): &(u64, u8, Vec<u8>)| {
                *kind == WAITER && *rest == [&sized(namespace)[..], &sized(name), &[0; 8]].concat()
            };
            assert!(
                lock.session_id > 0 || self.timers.iter().any(goes_on),
                "a free lock is handed on"
            );
        }
        let clients = self.timers.iter().filter(|(_, kind, _)| *kind == REQUEST_CLIENT).count();
        assert_eq!(clients, self.clients.len(), "a client has its timer");
        let is_looked_at =
            |timer: &&(u64, u8, Vec<u8>)| timer.1 == REQUEST_CLIENT || timer.2.ends_with(&[0; 8]);
        let others = self.timers.iter().filter(|timer| !is_looked_at(timer)).cloned();
        assert_eq!(others.collect::<BTreeSet<_>>(), expected, "timers are those of the records");
    }
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
