//! Deadlocks: no circle of sessions goes on waiting, and who is refused for one would have closed it.
//!
//! Only what is sure counts: sessions that live, and holds that nothing can have ended.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::{Answer, Refusal};
use trefoil_proto::lock::v1::LockMode;

use super::super::Violation;
use super::super::lock::conflict;
use super::{GrantChecker, KnownLock, Owner, WaiterInLine, WaitingCall, stands_ahead};

pub(super) const LEFT: &str = "no sessions wait for each other in a circle";
pub(super) const IMAGINED: &str = "who is refused for a deadlock would have closed a circle";

impl GrantChecker {
    /// At the end of an entry: the waits that began in it close no circle.
    pub(super) fn judge_circles(&mut self) {
        let waits = self.begun.iter().filter_map(|waiter| self.waits.get(waiter));
        let begun = waits.map(|wait| (wait.namespace.clone(), wait.session));
        let circles = begun.collect::<BTreeSet<_>>().into_iter().filter_map(|owner| {
            let circle = self.circle(&owner)?;
            Some(Violation::new(LEFT, format!("{owner:?} waits in {circle:?}")))
        });
        let circles = circles.collect::<Vec<_>>();
        self.found.extend(circles);
    }

    /// Sessions from one on, each of which waits for the next, the last one for the first.
    fn circle(&self, owner: &Owner) -> Option<Vec<u64>> {
        let (namespace, start) = owner;
        let (mut from, mut next) = (BTreeMap::new(), vec![*start]);
        while let Some(at) = next.pop() {
            for other in self.waits_for(namespace, at) {
                if other == *start {
                    let way = std::iter::successors(Some(at), |at| from.get(at).copied());
                    let mut way = way.collect::<Vec<_>>();
                    way.reverse();
                    return Some(way);
                }
                if let Entry::Vacant(place) = from.entry(other) {
                    place.insert(at);
                    next.push(other);
                }
            }
        }
        None
    }

    fn waits_for(&self, namespace: &str, session: u64) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        if !self.lives(namespace, session) {
            return found;
        }
        for ((of, name), lock) in &self.locks {
            if of != namespace {
                continue;
            }
            let holds = lock.holds.iter().any(|hold| hold.session == session);
            let own = |wait: &WaiterInLine| wait.session == session && (wait.converts || !holds);
            let Some((place, own)) = lock.waits.iter().enumerate().find(|(_, wait)| own(wait))
            else {
                continue;
            };
            let mode = self.waits.get(&own.waiter).and_then(|wait| mode_of(wait, name));
            found.extend(self.holders_in_the_way(namespace, lock, mode));
            let is_before = |(other, wait): &(usize, &WaiterInLine)| {
                stands_ahead(wait.converts, own.converts, *other < place)
            };
            let before = lock.waits.iter().enumerate().filter(is_before);
            found.extend(before.map(|(_, wait)| wait.session));
        }
        found.retain(|other| *other != session && self.lives(namespace, *other));
        found
    }

    fn holders_in_the_way(
        &self,
        namespace: &str,
        lock: &KnownLock,
        mode: Option<LockMode>,
    ) -> BTreeSet<u64> {
        let holds = lock.holds.iter().filter(|hold| {
            !hold.may_be_gone
                && self.lives(namespace, hold.session)
                && mode.is_some_and(|mode| conflict(hold.mode, mode))
        });
        holds.map(|hold| hold.session).collect()
    }

    /// A call was refused: each edge that it is told of was there, and they make a circle.
    pub(super) fn judge_refusal(&mut self, wait: &WaitingCall, answer: &Answer) {
        let Some(A::Refusal(refusal)) = &answer.answer else { return };
        if refusal.reason() != Reason::Deadlock {
            return;
        }
        let is_there = edges(refusal).is_some_and(|edges| {
            let next = edges.iter().skip(1).map(|edge| edge.from).chain([wait.session]);
            edges.first().is_some_and(|first| first.from == wait.session)
                && edges.iter().zip(next).all(|(edge, next)| edge.to == next)
                && edges.iter().all(|edge| self.may_wait_for(edge, wait))
        });
        if !is_there {
            self.found.push(Violation::new(IMAGINED, format!("{wait:?}: {refusal:?}")));
        }
    }

    /// Whether one session may wait for another: waits that ended in this entry count as well.
    fn may_wait_for(&self, edge: &ToldEdge, refused: &WaitingCall) -> bool {
        let Some(lock) = self.locks.get(&(refused.namespace.clone(), edge.lock.clone())) else {
            return false;
        };
        let wanted_by = |session: u64, mode: &str| {
            let waits = lock.waits.iter().filter(|wait| wait.session == session);
            let waits = waits.filter_map(|wait| self.waits.get(&wait.waiter));
            let own = Some(refused).filter(|wait| wait.session == session);
            let mut modes = waits.chain(own).filter_map(|wait| mode_of(wait, &edge.lock));
            modes.find(|wanted| name_of(*wanted) == mode)
        };
        let Some(mode) = wanted_by(edge.from, &edge.mode) else { return false };
        let is_ahead = lock.waits.iter().any(|wait| wait.session == edge.to);
        let mut holds = lock.holds.iter().filter(|hold| hold.session == edge.to);
        is_ahead || holds.any(|hold| conflict(hold.mode, mode))
    }
}

/// A session that waits for another, as a refusal tells it.
struct ToldEdge {
    from: u64,
    lock: String,
    mode: String,
    to: u64,
}

fn edges(refusal: &Refusal) -> Option<Vec<ToldEdge>> {
    let fact = |n: usize, name: &str| refusal.metadata.get(&format!("edge_{n}_{name}"));
    let number = |n, name| fact(n, name)?.parse().ok();
    let length = refusal.metadata.get("length")?.parse().ok()?;
    let edge = |n| {
        let (from, to) = (number(n, "session_id")?, number(n, "waits_for")?);
        Some(ToldEdge { from, lock: fact(n, "lock")?.clone(), mode: fact(n, "mode")?.clone(), to })
    };
    (0..length).map(edge).collect()
}

fn name_of(mode: LockMode) -> &'static str {
    mode.as_str_name().trim_start_matches("LOCK_MODE_")
}

/// The mode in which a call wants a lock.
fn mode_of(wait: &WaitingCall, lock: &str) -> Option<LockMode> {
    wait.wants.iter().find(|(name, _)| name == lock).map(|(_, mode)| *mode)
}
