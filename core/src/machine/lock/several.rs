//! Several locks in one Acquire: all of them are granted in one entry, or none.
//!
//! Such a wait stands in the order of each lock that its session does not hold, under one ordinal, and is granted when it
//! stands first in all of them and nobody is in the way. A lock that the session holds counts as held as long as it does:
//! the wait is in the claim, and ends when the lock is let go. No other wait of its session touches its locks, so that one
//! step may grant it or end it.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Hold, Refusal, Wait, Want, answer};
use trefoil_proto::lock::v1::{self as api, LockMode};

use super::super::context::refuse_with;
use super::call::AcquireCall;
use super::call::add_waiter_as_acquirer;
use super::call::wanted;
use super::{LockTxn, convert_needed, is_wanted};

impl LockTxn<'_, '_> {
    /// Finds what the session holds already; refuses where that is too weak.
    pub(super) fn find_held(&self, call: &mut AcquireCall) -> Result<(), Refusal> {
        for want in &mut call.wants {
            let Some(hold) = self.claim(call.session_id, &want.name).hold else { continue };
            if hold.mode() < want.mode() {
                return Err(of_lock(convert_needed(&hold), &want.name));
            }
            want.held = true;
        }
        Ok(())
    }

    /// Whether all locks of a call are held by its session, or may be: nobody waits for them, and nobody is in the way.
    pub(super) fn all_open(&mut self, call: &AcquireCall) -> bool {
        let session_id = call.session_id;
        wanted(&call.wants).all(|want| {
            let lock = self.lock(&want.name);
            let is_next = lock.waiters == 0
                || crate::mutant!(ReaderOvertakes) && want.mode() == LockMode::Shared;
            !is_wanted(&lock) || is_next && self.admits(&want.name, want.mode(), session_id)
        })
    }

    /// Grants all locks that the session does not hold, in the order of the request. The call relies on all of them.
    pub(super) fn grant_all(&mut self, wait: &Wait) -> answer::Answer {
        let session_id = wait.session_id;
        let rely_all = |hold: &mut Hold| add_waiter_as_acquirer(hold, wait);
        let mut grants = Vec::new();
        for want in &wait.wants {
            let hold = if want.held {
                self.change_claim(session_id, &want.name, |claim| {
                    let hold = claim.hold.as_mut().expect("a lock that counts as held is held");
                    rely_all(hold);
                    hold.clone()
                })
            } else {
                self.grant(&want.name, session_id, want.mode(), |hold| {
                    hold.lock_delay_ms = wait.lock_delay_ms;
                    rely_all(hold);
                })
            };
            let name = want.name.clone();
            grants.push(api::LockGrant { name, fencing_token: hold.token, mode: hold.mode });
        }
        answer::Answer::Acquire(api::AcquireResponse {
            acquired: true,
            locks: grants,
            ..api::AcquireResponse::default()
        })
    }

    /// Grants a wait whose turn has come in all its orders.
    pub(super) fn grant_several(&mut self, ordinal: u64, wait: &Wait) {
        let waited_ms = self.context.now_ms.saturating_sub(wait.since_ms);
        self.context.output.counts.lock_waits(waited_ms);
        self.take_out(ordinal, wait);
        let answer = self.grant_all(wait);
        self.settle(ordinal, wait, answer);
    }

    /// Whether a wait that stands first for one lock does so for all, and no holder is in its way.
    pub(super) fn is_turn(&mut self, ordinal: u64, wait: &Wait) -> bool {
        wanted(&wait.wants).all(|want| {
            (!wait.several || self.first_ordinal(&want.name) == Some(ordinal))
                && self.leaves_room(&want.name, want.permits)
                && self.admits(&want.name, want.mode(), wait.session_id)
        })
    }

    /// The mutant: whether a wait for several locks got one of them, and goes on to wait for the others.
    pub(super) fn grant_early(&mut self, name: &str, ordinal: u64, wait: &Wait) -> bool {
        let (mut wait, session_id) = (wait.clone(), wait.session_id);
        let others = wanted(&wait.wants).count() > 1;
        let Some(want) = wait.wants.iter_mut().find(|want| want.name == name) else { return false };
        if !wait.several || !others || !self.admits(name, want.mode(), session_id) {
            return false;
        }
        want.held = true;
        self.context.txn.delete(self.keys.waiter(name, ordinal, false));
        self.change_lock(name, |lock| lock.waiters -= 1);
        self.grant(name, session_id, want.mode(), |hold| hold.lock_delay_ms = wait.lock_delay_ms);
        self.context.txn.put_message(self.keys.wait(session_id, ordinal), &wait);
        true
    }

    /// The answer of a call for several locks that got none: the first that others hold.
    pub(super) fn not_all(&mut self, wants: &[Want]) -> answer::Answer {
        let mut response = api::AcquireResponse::default();
        for want in wanted(wants) {
            response.holder_token = self.holder_token(&want.name);
            if response.holder_token > 0 {
                response.held_lock.clone_from(&want.name);
                break;
            }
        }
        answer::Answer::Acquire(response)
    }

    /// Ends the waits for several locks that count on this one: the session let it go, or holds it too weakly now.
    pub(super) fn end_several(
        &mut self,
        session_id: u64,
        name: &str,
        held: LockMode,
        why: &Refusal,
    ) {
        let ordinals = self.claim(session_id, name).ordinals;
        let counts = |want: &Want| want.name == name && want.mode() > held;
        let waits = self.waits(session_id, &ordinals);
        let ended = waits.filter(|(_, wait)| wait.several && wait.wants.iter().any(counts));
        for (ordinal, wait) in ended.collect::<Vec<_>>() {
            self.leave(ordinal, &wait);
            self.settle(ordinal, &wait, of_lock(why.clone(), name));
        }
    }

    /// Refuses a second wait of a session for a lock where either of the two wants several.
    pub(super) fn may_wait_beside(&self, call: &AcquireCall) -> Result<(), Refusal> {
        for want in &call.wants {
            let ordinals = self.claim(call.session_id, &want.name).ordinals;
            let mut waits = self.waits(call.session_id, &ordinals);
            if waits.any(|(_, wait)| call.several || wait.several) {
                return Err(refuse_with(
                    Reason::AlreadyWaiting,
                    "the session waits for the lock by another call, and one of the two wants several locks",
                    [("lock", want.name.clone())],
                ));
            }
        }
        Ok(())
    }
}

/// A refusal that says which of several locks it is about.
fn of_lock(mut refusal: Refusal, name: &str) -> Refusal {
    refusal.metadata.insert("lock".to_owned(), name.to_owned());
    refusal
}
