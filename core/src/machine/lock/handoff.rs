//! How a lock passes from one session to the next, and how a wait ends.

use bytes::{Buf as _, Bytes};
use trefoil_proto::internal::v1::{Answer, Hold, Holder, Lock, Wait, Waiter, answer};
use trefoil_proto::lock::v1::{self as api, LockEventKind, LockMode};

use super::super::context::{CommandContext, Settled};
use super::super::timers;
use super::call::add_waiter_as_acquirer;
use super::call::permits_held;
use super::call::wanted;
use super::keys::{number_of, ordinal_of, timer_rest};
use super::{
    LockTxn, conflict, convert_needed, converted, delays, granted, is_wanted, session_expired,
    take_text, text_of,
};
use crate::key::Kind;
use crate::limits::WAITER_CLAIM_MS;
use crate::store::{decode, prefix_end};

/// A wait's timer: its deadline has passed.
pub(in super::super) fn wait_due(context: &mut CommandContext<'_>, rest: &Bytes) {
    let mut rest = rest.clone();
    let (namespace, session_id, ordinal) = (take_text(&mut rest), rest.get_u64(), rest.get_u64());
    let mut locks = LockTxn::new(context, &namespace);
    let Some(wait) = locks.wait(session_id, ordinal) else { return };
    let names = wait.wants.iter().map(|want| want.name.clone()).collect::<Vec<_>>();
    names.iter().for_each(|name| locks.reclaim_expired(name));
    if let Some(wait) = locks.wait(session_id, ordinal) {
        if locks.is_over(wait.session_id) {
            locks.leave(ordinal, &wait);
            locks.settle(ordinal, &wait, session_expired());
        } else if locks.has_passed(&wait) {
            locks.time_out(ordinal, &wait);
            let answer = locks.not_got(&wait);
            locks.settle(ordinal, &wait, answer);
        }
    }
    names.iter().for_each(|name| locks.grant_waiters(name));
}

/// A lock's timer: it is still to be handed on.
pub(in super::super) fn lock_due(context: &mut CommandContext<'_>, rest: &Bytes) {
    let mut rest = rest.clone();
    let namespace = take_text(&mut rest);
    LockTxn::new(context, &namespace).reclaim_expired(&text_of(&rest));
}

impl LockTxn<'_, '_> {
    pub(super) fn has_passed(&self, wait: &Wait) -> bool {
        self.context.now_ms >= wait.deadline_ms
    }

    /// Takes the lock from a holder whose session is over, and hands it on.
    pub(super) fn reclaim_expired(&mut self, name: &str) {
        if !is_wanted(&self.lock(name)) {
            return;
        }
        self.end_delays(name);
        self.free_from_the_dead(name);
        self.grant_waiters(name);
    }

    /// Only whoever holds it in mode UPDATE or EXCLUSIVE: those in mode SHARED are looked at when they are in the way.
    fn free_from_the_dead(&mut self, name: &str) {
        let lock = self.lock(name);
        if self.left > 0 && lock.session_id != 0 && self.is_over(lock.session_id) {
            self.left -= 1;
            self.expire_hold(name, lock.session_id);
        }
    }

    /// The session of a holder is over. Where it expired, and did not close, a lock delay begins.
    fn expire_hold(&mut self, name: &str, session_id: u64) {
        let expired = self.session(session_id).filter(|session| session.expired);
        let is_expired = expired.is_some();
        let delay = expired.and_then(|session| {
            let hold = self.claim(session_id, name).hold.filter(|hold| hold.permits == 0)?;
            Some((hold.mode(), hold.lock_delay_ms.unwrap_or(session.lock_delay_ms)))
        });
        let how = if is_expired { LockEventKind::Expired } else { LockEventKind::Released };
        self.vacate(name, session_id, how);
        let Some((held, delay_ms)) = delay.filter(|(_, delay_ms)| *delay_ms > 0) else { return };
        let until_ms = self.context.now_ms.saturating_add(delay_ms);
        self.change_lock(name, |lock| {
            let mut delays = delays(lock).into_iter();
            let delay = delays.find(|(mode, _)| *mode == held).map(|(_, until_ms)| until_ms);
            let delay = delay.expect("a lock is held in a mode");
            *delay = until_ms.max(*delay);
        });
        let key = self.keys.lock(name);
        timers::set(self.context, until_ms, Kind::Lock, timer_rest(&key));
    }

    /// Ends the lock delays whose time has come.
    fn end_delays(&mut self, name: &str) {
        let now_ms = self.context.now_ms;
        let mut lock = self.lock(name);
        let before = lock;
        let delays = delays(&mut lock).into_iter();
        delays.filter(|(_, until_ms)| **until_ms <= now_ms).for_each(|(_, until_ms)| *until_ms = 0);
        if lock != before {
            self.change_lock(name, |kept| *kept = lock);
        }
    }

    /// Whether a lock delay keeps out who wants this mode.
    fn is_delayed(&self, name: &str, mode: LockMode) -> bool {
        if crate::mutant!(DelayForgotten) {
            return false;
        }
        let now_ms = self.context.now_ms;
        let mut lock = self.lock(name);
        delays(&mut lock)
            .into_iter()
            .any(|(held, until_ms)| now_ms < *until_ms && conflict(held, mode))
    }

    /// The holder holds it no longer, and has nothing left to convert.
    pub(super) fn vacate(&mut self, name: &str, session_id: u64, how: LockEventKind) {
        let mut claim = self.claim(session_id, name);
        let Some(hold) = &mut claim.hold else { return };
        self.unlist(name, hold);
        self.abdicate(name, session_id, hold);
        self.tell_grant(how, name, session_id, hold);
        self.change_claim(session_id, name, |claim| claim.hold = None);
        let held_ms = self.context.now_ms.saturating_sub(hold.since_ms);
        let output = &mut self.context.output;
        output.counts.locks_released(1);
        output.counts.lock_holds(held_ms);
        output.locks.locks_held -= 1;
        if claim.ordinals.is_empty() {
            return;
        }
        let refusal =
            if self.is_over(session_id) { session_expired() } else { self.not_holder(name) };
        let converts = self.waits(session_id, &claim.ordinals).filter(|(_, wait)| wait.converts);
        for (ordinal, wait) in converts.collect::<Vec<_>>() {
            self.leave(ordinal, &wait);
            self.settle(ordinal, &wait, refusal.clone());
        }
        self.end_several(session_id, name, LockMode::Unspecified, &refusal);
    }

    /// The token of a lock's next grant, larger than every one before it.
    pub(super) fn next_token(&mut self, name: &str) -> u64 {
        let mut counters = self.counters();
        counters.last_token += 1;
        if crate::mutant!(TokenFromLock) {
            counters.last_token = self.lock(name).token + 1;
        }
        self.put_counters(&counters);
        counters.last_token
    }

    /// Grants a lock, with a token that is larger than every one before it.
    pub(super) fn grant(
        &mut self,
        name: &str,
        session_id: u64,
        mode: LockMode,
        acquire: impl FnOnce(&mut Hold),
    ) -> Hold {
        let mut hold = Hold {
            mode: mode.into(),
            token: self.next_token(name),
            since_ms: self.context.now_ms,
            ..Hold::default()
        };
        acquire(&mut hold);
        self.list(name, session_id, &hold);
        self.change_claim(session_id, name, |claim| claim.hold = Some(hold.clone()));
        self.context.output.counts.locks_acquired(1);
        self.tell_grant(LockEventKind::Acquired, name, session_id, &hold);
        self.context.output.locks.locks_held += 1;
        hold
    }

    /// The lock knows of a grant.
    pub(super) fn list(&mut self, name: &str, session_id: u64, hold: &Hold) {
        if hold.mode() == LockMode::Shared {
            let key = self.keys.holder(name, hold.token);
            self.context.txn.put_message(key, &Holder { session_id });
            self.change_lock(name, |lock| lock.shared += 1);
            self.count_permits(name, hold, true);
        } else {
            self.change_lock(name, |lock| {
                *lock = Lock { session_id, token: hold.token, mode: hold.mode, ..*lock };
            });
        }
    }

    /// The lock knows of it no longer.
    pub(super) fn unlist(&mut self, name: &str, hold: &Hold) {
        if hold.mode() == LockMode::Shared {
            self.context.txn.delete(self.keys.holder(name, hold.token));
            self.change_lock(name, |lock| lock.shared = lock.shared.saturating_sub(1));
            self.count_permits(name, hold, false);
        } else {
            self.change_lock(name, |lock| {
                *lock = Lock { session_id: 0, token: 0, mode: 0, ..*lock };
            });
        }
    }

    /// Whether no other holder is in the way of a session.
    pub(super) fn admits(&mut self, name: &str, mode: LockMode, session_id: u64) -> bool {
        let lock = self.lock(name);
        let is_in_the_way =
            lock.session_id != 0 && lock.session_id != session_id && conflict(lock.mode(), mode);
        if is_in_the_way || mode == LockMode::Exclusive && self.oldest_shared(name, session_id) != 0
        {
            return false;
        }
        // Looked at last: a holder that was found dead just now may have left a delay.
        !self.is_delayed(name, mode)
    }

    /// Token of the oldest living session in mode SHARED but for one; 0 where there is none. The dead before it are
    /// taken out, as many as this step may.
    pub(super) fn oldest_shared(&mut self, name: &str, but_for: u64) -> u64 {
        let holders = self.keys.holders(name);
        let end = prefix_end(holders.bytes());
        let mut from = holders;
        while self.lock(name).shared > 0 {
            let Some((key, value)) = self.context.txn.scan(from.bytes(), &end, 1).pop() else {
                break;
            };
            let (token, session_id) = (number_of(&key), decode::<Holder>(&value).session_id);
            if session_id != but_for {
                if self.left == 0 || !self.is_over(session_id) {
                    return token;
                }
                self.left -= 1;
                self.expire_hold(name, session_id);
            }
            from = self.keys.holder(name, token + 1);
        }
        0
    }

    /// Token of a holder, of several the one in mode UPDATE, else the oldest; 0 where there is none.
    pub(super) fn holder_token(&mut self, name: &str) -> u64 {
        let lock = self.lock(name);
        if lock.session_id != 0 && !self.is_over(lock.session_id) {
            return lock.token;
        }
        self.oldest_shared(name, 0)
    }

    /// The answer of a call that did not get what it wants.
    pub(super) fn not_got(&mut self, wait: &Wait) -> answer::Answer {
        if wait.several {
            return self.not_all(&wait.wants);
        }
        if wait.wants[0].permits > 0 {
            return self.no_permits(&wait.wants[0].name);
        }
        let holder_token = self.holder_token(&wait.wants[0].name);
        if wait.converts {
            let response = api::ConvertResponse { holder_token, ..api::ConvertResponse::default() };
            return answer::Answer::Convert(response);
        }
        answer::Answer::Acquire(api::AcquireResponse {
            holder_token,
            ..api::AcquireResponse::default()
        })
    }

    /// Whether somebody is there to take the answer of a waiting call.
    fn is_claimed(&self, wait: &Wait) -> bool {
        wait.claimed_term == self.context.term && wait.lost_at_ms == 0
    }

    /// When a call that nobody claims loses its place; never while somebody does.
    fn lost_by_ms(&self, wait: &Wait) -> u64 {
        let lost_ms = if self.is_claimed(wait) {
            u64::MAX
        } else if wait.claimed_term == self.context.term {
            wait.lost_at_ms
        } else {
            wait.lost_at_ms.max(self.context.term_started_ms)
        };
        lost_ms.saturating_add(WAITER_CLAIM_MS)
    }

    /// Hands a lock on, and each that a wait for several left meanwhile. A step that may do no more leaves it to timers.
    pub(super) fn grant_waiters(&mut self, name: &str) {
        self.grant_waiter(name);
        self.grant_left_waiters();
    }

    /// Hands on what waits for several left behind.
    pub(super) fn grant_left_waiters(&mut self) {
        while let Some(name) = self.left_behind.pop_first() {
            self.grant_waiter(&name);
        }
    }

    /// Grants a lock to its first waiters, one after the other, as long as no holder is in the way, their sessions live
    /// and their deadlines have not passed. One who wants several locks is granted all when it stands first in all of
    /// them, and keeps its place until then. Where nobody is there to take a waiter's answer the lock waits until that
    /// waiter is claimed, or has lost its place; where this step may do no more, it waits as well. A timer goes on.
    fn grant_waiter(&mut self, name: &str) {
        let (mut late, mut again_ms) = (Vec::new(), None);
        loop {
            let lock = self.lock(name);
            if lock.waiters == 0 || lock.mode() == LockMode::Exclusive {
                break;
            }
            if self.left == 0 {
                again_ms = Some(self.context.now_ms);
                break;
            }
            let (ordinal, wait) = self.first_wait(name);
            if !crate::mutant!(DeadWaiter) && self.is_over(wait.session_id) {
                self.leave(ordinal, &wait);
                self.settle(ordinal, &wait, session_expired());
            } else if self.has_passed(&wait) {
                self.time_out(ordinal, &wait);
                late.push((ordinal, wait));
            } else if let Err(refusal) = self.can_ever_have(&wait.wants[0]) {
                self.leave(ordinal, &wait);
                self.settle(ordinal, &wait, refusal);
            } else if crate::mutant!(PartialGrant) && self.grant_early(name, ordinal, &wait) {
                continue;
            } else if !self.is_turn(ordinal, &wait) {
                if self.left == 0 {
                    again_ms = Some(self.context.now_ms);
                }
                break;
            } else if self.context.now_ms >= self.lost_by_ms(&wait) {
                self.leave(ordinal, &wait);
                late.push((ordinal, wait));
            } else if !self.is_claimed(&wait) {
                again_ms = Some(self.lost_by_ms(&wait));
                break;
            } else if wait.several {
                self.grant_several(ordinal, &wait);
            } else {
                self.grant_wait(name, &wait);
            }
        }
        for (ordinal, wait) in late {
            let answer = self.not_got(&wait);
            self.settle(ordinal, &wait, answer);
        }
        if let Some(again_ms) = again_ms {
            let key = self.keys.lock(name);
            timers::set(self.context, again_ms, Kind::Lock, timer_rest(&key));
        }
    }

    /// Whose turn it is.
    fn first_wait(&self, name: &str) -> (u64, Wait) {
        let (key, waiter) = self.first_waiter(name).expect("a lock counts its waiters");
        let (ordinal, session_id) = (ordinal_of(&key), decode::<Waiter>(&waiter).session_id);
        (ordinal, self.wait(session_id, ordinal).expect("a waiter has its wait"))
    }

    /// Ordinal of the first waiter.
    pub(super) fn first_ordinal(&self, name: &str) -> Option<u64> {
        self.first_waiter(name).map(|(key, _)| ordinal_of(&key))
    }

    fn first_waiter(&self, name: &str) -> Option<(Bytes, Bytes)> {
        let waiters = self.keys.waiters(name);
        self.context.txn.scan(waiters.bytes(), &prefix_end(waiters.bytes()), 1).pop()
    }

    /// Grants a lock to a session that waits for it.
    fn grant_wait(&mut self, name: &str, wait: &Wait) {
        let (mode, permits) = (wait.wants[0].mode(), wait.wants[0].permits);
        let waited_ms = self.context.now_ms.saturating_sub(wait.since_ms);
        let counts = &mut self.context.output.counts;
        counts.lock_waits(waited_ms);
        if permits > 0 {
            counts.permit_waits(waited_ms);
        }
        let ordinals = self.claim(wait.session_id, name).ordinals;
        let waits = self.waits(wait.session_id, &ordinals).map(|(ordinal, wait)| {
            let takes = !self.has_passed(&wait) && self.is_claimed(&wait);
            (ordinal, wait, takes)
        });
        let waits = waits.collect::<Vec<_>>();
        let hold = if wait.converts {
            self.regrant(name, wait.session_id, mode)
        } else {
            self.grant(name, wait.session_id, mode, |hold| {
                let fits = |wait: &&(u64, Wait, bool)| {
                    let want = &wait.1.wants[0];
                    wait.2 && want.mode() <= mode && want.permits == permits
                };
                hold.lock_delay_ms = wait.lock_delay_ms;
                hold.permits = permits;
                for (_, wait, _) in waits.iter().filter(fits) {
                    add_waiter_as_acquirer(hold, wait);
                }
            })
        };
        self.succeed(name, mode, &waits);
        // One grant for all waits of a session; it may go on to convert.
        for (ordinal, wait, takes) in waits {
            let is_stronger = wait.wants[0].mode() > mode;
            if wait.converts && is_stronger {
                continue;
            }
            if self.has_passed(&wait) {
                self.count_timeout(&wait);
            }
            self.take_out(ordinal, &wait);
            let answer: Answer = if !takes {
                self.not_got(&wait).into()
            } else if wait.wants[0].permits != permits {
                permits_held(&hold).into()
            } else if is_stronger {
                convert_needed(&hold).into()
            } else if wait.converts {
                converted(&hold).into()
            } else {
                granted(&hold).into()
            };
            self.settle(ordinal, &wait, answer);
        }
    }

    /// Ends a claim of a session that has ended: what it holds goes on, its waits are over.
    pub(super) fn end_claim(&mut self, session_id: u64, name: &str) {
        let claim = self.claim(session_id, name);
        for (ordinal, wait) in self.waits(session_id, &claim.ordinals).collect::<Vec<_>>() {
            self.leave(ordinal, &wait);
            self.settle(ordinal, &wait, session_expired());
        }
        if claim.hold.is_some() {
            self.left = self.left.saturating_sub(1);
            self.expire_hold(name, session_id);
        }
        self.grant_waiters(name);
    }

    /// Takes a call that gets nothing out of the waiters; whoever does so settles it.
    pub(super) fn leave(&mut self, ordinal: u64, wait: &Wait) {
        self.tell_wait(LockEventKind::WaitEnded, wait);
        self.take_out(ordinal, wait);
    }

    pub(super) fn take_out(&mut self, ordinal: u64, wait: &Wait) {
        let key = self.keys.wait(wait.session_id, ordinal);
        timers::clear(self.context, wait.deadline_ms, Kind::Wait, timer_rest(&key));
        self.context.txn.delete(key);
        self.withdraw(ordinal, wait);
        for want in &wait.wants {
            self.change_claim(wait.session_id, &want.name, |claim| {
                claim.ordinals.retain(|other| *other != ordinal);
            });
        }
        for want in wanted(&wait.wants) {
            if wait.several {
                self.left_behind.insert(want.name.clone());
            }
            self.context.txn.delete(self.keys.waiter(&want.name, ordinal, wait.converts));
            self.change_lock(&want.name, |lock| lock.waiters = lock.waiters.saturating_sub(1));
        }
        let mut counters = self.counters();
        counters.waits = counters.waits.saturating_sub(1);
        self.put_counters(&counters);
        self.context.output.locks.locks_waiting -= 1;
        self.left = self.left.saturating_sub(wait.wants.len());
    }

    /// The same for a call whose deadline has passed.
    pub(super) fn time_out(&mut self, ordinal: u64, wait: &Wait) {
        self.leave(ordinal, wait);
        self.count_timeout(wait);
    }

    fn count_timeout(&mut self, wait: &Wait) {
        let counts = &mut self.context.output.counts;
        counts.lock_timeouts(1);
        counts.permit_timeouts(u64::from(wait.wants[0].permits > 0));
    }

    /// Answers a call that waited, or changes what a retry of it is answered.
    pub(super) fn settle(&mut self, ordinal: u64, wait: &Wait, answer: impl Into<Answer>) {
        let waiter = self.waiter_id(wait.session_id, ordinal);
        let request_id = wait.call.as_ref().and_then(|call| call.request_id.clone());
        self.context.output.settled.push(Settled { waiter, request_id, answer: answer.into() });
    }
}
