//! How a lock passes from one session to the next, and how a wait ends.

use bytes::{Buf as _, Bytes};
use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::{Acquirer, Answer, Lock, Wait, Waiter, answer};
use trefoil_proto::lock::v1 as api;

use super::super::{Scope, Settled, timers};
use super::{Space, session_expired, take_text, timer_rest};
use crate::key::Kind;
use crate::limits::{ACQUIRES_PER_CLAIM_MAX, WAITER_CLAIM_MS};
use crate::store::{decode, prefix_end};

/// No waiter at all. In a timer: the lock is free and still to be handed on.
const NO_ORDINAL: u64 = 0;

/// A waiter's timer: its deadline has passed, or a free lock is to be handed on.
pub(in super::super) fn waiter_due(scope: &mut Scope<'_>, rest: &Bytes) {
    let mut rest = rest.clone();
    let (namespace, name, ordinal) = (take_text(&mut rest), take_text(&mut rest), rest.get_u64());
    let mut space = Space::new(scope, &namespace);
    let mut lock = space.lock(&name);
    space.free_from_the_dead(&name, &mut lock);
    if let Some(Waiter { session_id }) = space.waiter(&name, ordinal) {
        let claim = space.claim(session_id, &name);
        let wait = claim.waits.into_iter().find(|wait| wait.ordinal == ordinal);
        let wait = wait.expect("the claim of a waiter knows its wait");
        if space.is_over(session_id) {
            space.leave(&name, &mut lock, session_id, &wait);
            space.settle(&name, &wait, session_expired());
        } else if space.has_passed(&wait) {
            space.leave(&name, &mut lock, session_id, &wait);
            space.settle(&name, &wait, held(lock.token));
        }
    }
    space.put_lock(&name, &lock);
}

impl Space<'_, '_> {
    pub(super) fn has_passed(&self, wait: &Wait) -> bool {
        self.scope.now_ms >= wait.deadline_ms
    }

    /// Takes the lock from a holder whose session is over, and hands it on.
    pub(super) fn free_from_the_dead(&mut self, name: &str, lock: &mut Lock) {
        if lock.session_id != 0 && self.is_over(lock.session_id) {
            self.vacate(name, lock);
        }
        self.hand_on(name, lock);
    }

    /// The holder holds it no longer.
    pub(super) fn vacate(&mut self, name: &str, lock: &mut Lock) {
        self.change_claim(lock.session_id, name, |claim| claim.holds = false);
        *lock = Lock { waiters: lock.waiters, ..Lock::default() };
        self.scope.output.counts.locks_released += 1;
    }

    /// Grants a free lock, with a token that is larger than every one before it.
    pub(super) fn grant(&mut self, name: &str, lock: &mut Lock, session_id: u64) {
        let mut counters = self.counters();
        counters.last_token += 1;
        if crate::mutant!(TokenFromLock) {
            counters.last_token = lock.token + 1;
        }
        self.put_counters(&counters);
        lock.session_id = session_id;
        lock.token = counters.last_token;
        self.change_claim(session_id, name, |claim| claim.holds = true);
        self.scope.output.counts.locks_acquired += 1;
    }

    /// Whether somebody is there to take the answer of a waiting Acquire.
    fn is_claimed(&self, wait: &Wait) -> bool {
        wait.claimed_term == self.scope.term && wait.lost_at_ms == 0
    }

    /// When an Acquire that nobody claims loses its place; never while somebody does.
    fn lost_by_ms(&self, wait: &Wait) -> u64 {
        let lost_ms = if self.is_claimed(wait) {
            u64::MAX
        } else if wait.claimed_term == self.scope.term {
            wait.lost_at_ms
        } else {
            wait.lost_at_ms.max(self.scope.term_started_ms)
        };
        lost_ms.saturating_add(WAITER_CLAIM_MS)
    }

    /// Grants a free lock to the first waiter whose session lives and whose deadline has not passed. Where nobody is
    /// there to take its answer the lock stays free until that waiter is claimed, or has lost its place; where this
    /// step may do no more, it stays free as well. A timer goes on.
    pub(super) fn hand_on(&mut self, name: &str, lock: &mut Lock) {
        let waiters = self.waiters_key(name);
        let end = prefix_end(waiters.bytes());
        let mut from = waiters.clone();
        let (mut late, mut again_ms) = (Vec::new(), self.scope.now_ms);
        while lock.session_id == 0 && lock.waiters > 0 {
            let first = self.scope.txn.scan(from.bytes(), &end, 1);
            if self.left == 0 || first.is_empty() {
                break;
            }
            let (key, value) = &first[0];
            let ordinal = (&key[waiters.bytes().len()..]).get_u64();
            let session_id = decode::<Waiter>(value).session_id;
            from = waiters.clone().u64(ordinal + 1);
            let claim = self.claim(session_id, name);
            let wait = claim.waits.into_iter().find(|wait| wait.ordinal == ordinal);
            let wait = wait.expect("the claim of a waiter knows its wait");
            if !crate::mutant!(DeadWaiter) && self.is_over(session_id) {
                self.leave(name, lock, session_id, &wait);
                self.settle(name, &wait, session_expired());
            } else if self.has_passed(&wait) || self.scope.now_ms >= self.lost_by_ms(&wait) {
                self.leave(name, lock, session_id, &wait);
                late.push(wait);
            } else if !self.is_claimed(&wait) {
                again_ms = self.lost_by_ms(&wait);
                break;
            } else {
                self.grant_waiter(name, lock, session_id);
            }
        }
        for wait in late {
            self.settle(name, &wait, held(lock.token));
        }
        if lock.session_id == 0 && lock.waiters > 0 {
            let key = self.waiter_key(name, NO_ORDINAL);
            timers::set(self.scope, again_ms, Kind::Waiter, timer_rest(&key));
        }
    }

    /// Grants a free lock to a session that waits for it: one grant for all of its waits.
    fn grant_waiter(&mut self, name: &str, lock: &mut Lock, session_id: u64) {
        self.grant(name, lock, session_id);
        for wait in self.claim(session_id, name).waits {
            self.leave(name, lock, session_id, &wait);
            if self.has_passed(&wait) || !self.is_claimed(&wait) {
                self.settle(name, &wait, held(lock.token));
                continue;
            }
            for _ in 0..wait.callers {
                rely(lock, wait.request_id.as_ref());
            }
            self.settle(name, &wait, granted(lock.token));
        }
    }

    /// Ends a claim of a session that has ended: what it holds goes on, its waits are over.
    pub(super) fn end_claim(&mut self, session_id: u64, name: &str) {
        let mut lock = self.lock(name);
        let claim = self.claim(session_id, name);
        for wait in &claim.waits {
            self.leave(name, &mut lock, session_id, wait);
            self.settle(name, wait, session_expired());
        }
        if claim.holds {
            self.left = self.left.saturating_sub(1);
            self.vacate(name, &mut lock);
        }
        self.hand_on(name, &mut lock);
        self.put_lock(name, &lock);
    }

    /// Puts an Acquire at the end of a lock's waiters.
    pub(super) fn join(
        &mut self,
        lock: &mut Lock,
        request: &api::AcquireRequest,
        id: Option<RequestId>,
    ) -> u64 {
        let mut counters = self.counters();
        counters.last_ordinal += 1;
        self.put_counters(&counters);
        lock.waiters += 1;
        let ordinal = counters.last_ordinal;
        let deadline_ms = self.scope.now_ms.saturating_add(request.wait_ms);
        let key = self.waiter_key(&request.name, ordinal);
        timers::set(self.scope, deadline_ms, Kind::Waiter, timer_rest(&key));
        self.scope.txn.put_message(key, &Waiter { session_id: request.session_id });
        let wait = Wait {
            ordinal,
            request_id: id,
            deadline_ms,
            callers: 1,
            claimed_term: self.scope.term,
            claimed_index: self.scope.index,
            lost_at_ms: 0,
        };
        self.change_claim(request.session_id, &request.name, |claim| claim.waits.push(wait));
        ordinal
    }

    /// Takes an Acquire out of a lock's waiters; whoever does so settles it.
    pub(super) fn leave(&mut self, name: &str, lock: &mut Lock, session_id: u64, wait: &Wait) {
        let key = self.waiter_key(name, wait.ordinal);
        timers::clear(self.scope, wait.deadline_ms, Kind::Waiter, timer_rest(&key));
        self.scope.txn.delete(key);
        self.change_claim(session_id, name, |claim| {
            claim.waits.retain(|other| other.ordinal != wait.ordinal)
        });
        lock.waiters = lock.waiters.saturating_sub(1);
        self.left = self.left.saturating_sub(1);
    }

    /// Answers an Acquire that waited, or changes what a retry of it is answered.
    pub(super) fn settle(&mut self, name: &str, wait: &Wait, answer: impl Into<Answer>) {
        let waiter = self.waiter_id(name, wait.ordinal);
        let request_id = wait.request_id.clone();
        self.scope.output.settled.push(Settled { waiter, request_id, answer: answer.into() });
    }
}

/// One more Acquire was answered with the present grant.
pub(super) fn rely(lock: &mut Lock, id: Option<&RequestId>) {
    let is_known =
        id.is_some() && lock.acquirers.iter().any(|other| other.request_id.as_ref() == id);
    if is_known {
        return;
    }
    if lock.acquirers.len() < ACQUIRES_PER_CLAIM_MAX {
        lock.acquirers.push(Acquirer { request_id: id.cloned() });
    } else {
        lock.kept = true;
    }
}

/// The session holds the lock.
pub(super) fn granted(token: u64) -> answer::Answer {
    answer::Answer::Acquire(api::AcquireResponse {
        header: None,
        acquired: true,
        fencing_token: token,
        holder_token: 0,
    })
}

/// Another holds the lock; with token 0 it has no holder at this moment.
pub(super) fn held(token: u64) -> answer::Answer {
    answer::Answer::Acquire(api::AcquireResponse {
        header: None,
        acquired: false,
        fencing_token: 0,
        holder_token: token,
    })
}
