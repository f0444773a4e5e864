//! Deadlocks, found by the request that closes the circle.
//!
//! Sessions are the nodes of a wait-for graph. A session waits for each other one that holds a lock in the way of one
//! of its waits, or stands before it in the lock's order: that is strict, so whoever is ahead is in the way whatever the
//! modes. An edge begins only when a call begins to wait, and each circle that this closes goes through its session.
//! Source: R. C. Holt, Some Deadlock Properties of Computer Systems (1972).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Holder, Refusal, Wait, Waiter};
use trefoil_proto::lock::v1::{self as api, LockMode};

use super::super::context::refuse;
use super::call::wanted;
use super::{LockTxn, conflict, mode_name};
use crate::limits::{DEADLOCK_EDGES_MAX, DEADLOCK_STEPS_MAX, DEADLOCKS_KEPT_MAX};
use crate::store::{decode, prefix_end};

/// A session that waits for another.
#[derive(Clone)]
struct WaitEdge {
    from: u64,
    to: u64,
    name: String,
    mode: LockMode,
    converts: bool,
    since_ms: u64,
}

impl LockTxn<'_, '_> {
    /// Takes back a wait that has just begun, where it closes a circle, and says so.
    pub(super) fn refuse_deadlock(&mut self, ordinal: u64, session_id: u64) -> Option<Refusal> {
        let circle = self.circle(session_id)?;
        let length = circle.len();
        let edges = circle.iter().take(DEADLOCK_EDGES_MAX).map(|edge| self.show(edge));
        let edges = edges.collect::<Vec<_>>();
        let wait = self.wait(session_id, ordinal).expect("it has begun just now");
        self.leave(ordinal, &wait);
        self.keep(session_id, length, &edges);
        self.context.output.counts.deadlocks(1);
        Some(refusal(length, &edges))
    }

    /// The shortest way from a session back to itself; none as well where the search has looked at as much as it may.
    fn circle(&mut self, start: u64) -> Option<Vec<WaitEdge>> {
        let session = self.session(start)?;
        if session.held == 0 && self.waits_of(start, 2).len() == 1 {
            // It has nothing that anybody could wait for.
            return None;
        }
        let mut left = DEADLOCK_STEPS_MAX;
        let (mut reached, mut next) = (BTreeMap::<u64, WaitEdge>::new(), VecDeque::from([start]));
        while let Some(from) = next.pop_front() {
            for edge in self.edges(from, &mut left) {
                if edge.to == start {
                    return Some(way_back(start, edge, &reached));
                }
                if crate::mutant!(CircleOfTwo) && from != start {
                    continue;
                }
                if let Entry::Vacant(keys) = reached.entry(edge.to) {
                    next.push_back(edge.to);
                    keys.insert(edge);
                }
            }
            if left == 0 {
                self.context.output.counts.deadlock_searches_cut(1);
                return None;
            }
        }
        None
    }

    /// The sessions that one waits for. Each record that is looked at takes one from `left`.
    fn edges(&self, from: u64, left: &mut usize) -> Vec<WaitEdge> {
        let mut edges = Vec::new();
        if self.living(from).is_err() {
            // It is about to leave, and nobody waits for it then.
            return edges;
        }
        let waits = self.waits_of(from, *left);
        *left -= waits.len();
        let mut first = BTreeMap::new();
        for (ordinal, wait) in waits {
            // Who waits for permits waits for any of those who hold some, which closes no circle.
            for want in wanted(&wait.wants).filter(|want| want.permits == 0) {
                *left = left.saturating_sub(usize::from(wait.several));
                // A session gets a lock where it stands first, for all that it waits for, unless it converts further.
                let best = first.entry(want.name.clone()).or_insert(LockMode::Unspecified);
                if *best != LockMode::Unspecified && (!wait.converts || want.mode() <= *best) {
                    continue;
                }
                *best = want.mode();
                let others = self.in_the_way(&want.name, want.mode(), &wait, ordinal, left);
                let others = others.into_iter().filter(|to| *to != from);
                edges.extend(others.map(|to| WaitEdge {
                    from,
                    to,
                    name: want.name.clone(),
                    mode: want.mode(),
                    converts: wait.converts,
                    since_ms: wait.since_ms,
                }));
            }
        }
        edges
    }

    /// The holders of a lock that conflict with a wait, and all who stand before it.
    fn in_the_way(
        &self,
        name: &str,
        mode: LockMode,
        wait: &Wait,
        ordinal: u64,
        left: &mut usize,
    ) -> Vec<u64> {
        let lock = self.lock(name);
        let mut sessions = Vec::new();
        if lock.session_id != 0 && conflict(lock.mode(), mode) {
            sessions.push(lock.session_id);
        }
        let holders = self.keys.holders(name);
        if (mode == LockMode::Exclusive || crate::mutant!(CircleImagined)) && lock.shared > 0 {
            let found = self.context.txn.scan(holders.bytes(), &prefix_end(holders.bytes()), *left);
            *left -= found.len();
            sessions.extend(found.iter().map(|(_, value)| decode::<Holder>(value).session_id));
        }
        let (first, own) =
            (self.keys.waiters(name), self.keys.waiter(name, ordinal, wait.converts));
        let found = self.context.txn.scan(first.bytes(), own.bytes(), *left);
        *left -= found.len();
        sessions.extend(found.iter().map(|(_, value)| decode::<Waiter>(value).session_id));
        sessions
    }

    fn show(&self, edge: &WaitEdge) -> api::DeadlockEdge {
        let owner = |id| self.session(id).map_or_else(String::new, |session| session.owner);
        let hold = self.claim(edge.to, &edge.name).hold;
        let now_ms = self.context.now_ms;
        api::DeadlockEdge {
            session_id: edge.from,
            owner: owner(edge.from),
            lock: edge.name.clone(),
            mode: edge.mode.into(),
            converts: edge.converts,
            waiting_ms: now_ms.saturating_sub(edge.since_ms),
            waits_for: edge.to,
            held_mode: hold.as_ref().map_or(0, |hold| hold.mode),
            fencing_token: hold.as_ref().map_or(0, |hold| hold.token),
            held_ms: hold.map_or(0, |hold| now_ms.saturating_sub(hold.since_ms)),
        }
    }

    /// Remembers a deadlock, and forgets the oldest.
    fn keep(&mut self, session_id: u64, length: usize, edges: &[api::DeadlockEdge]) {
        let mut counters = self.counters();
        counters.last_deadlock += 1;
        self.put_counters(&counters);
        let deadlock = api::Deadlock {
            number: counters.last_deadlock,
            session_id,
            log_time_ms: self.context.now_ms,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            edges: edges.to_vec(),
        };
        self.context.txn.put_message(self.keys.deadlock(deadlock.number), &deadlock);
        if let Some(oldest) = deadlock.number.checked_sub(DEADLOCKS_KEPT_MAX) {
            self.context.txn.delete(self.keys.deadlock(oldest));
        }
    }
}

/// The edges from the start to the one that leads back to it.
fn way_back(start: u64, last: WaitEdge, reached: &BTreeMap<u64, WaitEdge>) -> Vec<WaitEdge> {
    let mut at = last.from;
    let mut way = vec![last];
    while at != start {
        let edge = &reached[&at];
        at = edge.from;
        way.push(edge.clone());
    }
    way.reverse();
    way
}

fn refusal(length: usize, edges: &[api::DeadlockEdge]) -> Refusal {
    let mut refusal =
        refuse(Reason::Deadlock, format!("the wait would close a circle of {length} sessions"));
    let facts = &mut refusal.metadata;
    facts.insert("length".to_owned(), length.to_string());
    for (n, edge) in edges.iter().enumerate() {
        let mut fact = |name: &str, value: String| facts.insert(format!("edge_{n}_{name}"), value);
        fact("session_id", edge.session_id.to_string());
        fact("lock", edge.lock.clone());
        fact("mode", mode_name(edge.mode()).to_owned());
        fact("waits_for", edge.waits_for.to_string());
        if edge.held_mode() != LockMode::Unspecified {
            fact("held_mode", mode_name(edge.held_mode()).to_owned());
            fact("held_ms", edge.held_ms.to_string());
        }
    }
    refusal
}
