//! Acquire, release, and the cancel of an acquire.

use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{CancelAcquire, Lock, LoseCaller, Refusal, Wait, Waiter, answer};
use trefoil_proto::lock::v1 as api;

use super::super::{Ruling, Scope, Verdict, done, refuse, refuse_with, requests};
use super::handoff::{granted, held, rely};
use super::{Space, check_name, claims_anything, limit_reached, stripped};
use crate::check;
use crate::limits::{ACQUIRES_PER_CLAIM_MAX, LOCKS_PER_SESSION_MAX, WAITERS_PER_LOCK_MAX};

pub(in super::super) fn acquire(
    scope: &mut Scope<'_>,
    request: &api::AcquireRequest,
    id: Option<&RequestId>,
) -> Ruling {
    let mut space = Space::checked(scope, &request.namespace)?;
    check_name("name", &request.name)?;
    space.renew(request.session_id)?;
    let mut lock = space.lock(&request.name);
    space.free_from_the_dead(&request.name, &mut lock);
    let id = stripped(id);
    let verdict = if lock.session_id == request.session_id {
        rely(&mut lock, id.as_ref());
        Verdict::Answer(granted(lock.token))
    } else if lock.session_id == 0 && lock.waiters == 0 {
        space.may_claim(request)?;
        space.grant(&request.name, &mut lock, request.session_id);
        rely(&mut lock, id.as_ref());
        Verdict::Answer(granted(lock.token))
    } else {
        let verdict = space.wait(request, &mut lock, id)?;
        // A lock that waited for this caller goes to it now.
        space.hand_on(&request.name, &mut lock);
        verdict
    };
    space.put_lock(&request.name, &lock);
    Ok(verdict)
}

pub(in super::super) fn release(scope: &mut Scope<'_>, request: &api::ReleaseRequest) -> Ruling {
    let mut space = Space::checked(scope, &request.namespace)?;
    check_name("name", &request.name)?;
    space.renew(request.session_id)?;
    let mut lock = space.lock(&request.name);
    let is_token = request.fencing_token == 0 || request.fencing_token == lock.token;
    let is_holder = lock.session_id == request.session_id && is_token;
    let may = is_holder || (crate::mutant!(AnyoneReleases) && lock.session_id != 0);
    if !may {
        return Err(space.not_holder(&lock));
    }
    space.vacate(&request.name, &mut lock);
    space.hand_on(&request.name, &mut lock);
    space.put_lock(&request.name, &lock);
    Ok(Verdict::Answer(answer::Answer::Release(api::ReleaseResponse { header: None })))
}

/// The caller of an Acquire is gone. This is no sign of life of its session, so it renews nothing.
pub(in super::super) fn cancel_acquire(scope: &mut Scope<'_>, request: &CancelAcquire) -> Ruling {
    check_name("name", &request.name)?;
    if let Some(waiter) = &request.waiter {
        check::command_id(waiter)?;
    }
    if let Some(id) = &request.waiter
        && requests::newest_attempt(scope, id) > id.attempt
    {
        // The same Acquire was sent again meanwhile: that call still wants the lock, or has it.
        return Ok(done());
    }
    let mut space = Space::checked(scope, &request.namespace)?;
    let id = stripped(request.waiter.as_ref());
    let mut lock = space.lock(&request.name);
    let claim = space.claim(request.session_id, &request.name);
    if let Some(wait) = claim.waits.into_iter().find(|wait| wait.request_id == id) {
        space.cancel_wait(request, &mut lock, &wait);
        // The lock may have waited for the caller who is gone.
        space.hand_on(&request.name, &mut lock);
    } else if claim.holds {
        space.cancel_grant(request, &mut lock, id);
    }
    space.put_lock(&request.name, &lock);
    Ok(done())
}

/// The last caller of a waiting Acquire is gone: its lock does not go to it before it is sent again.
pub(in super::super) fn lose_caller(scope: &mut Scope<'_>, request: &LoseCaller) -> Ruling {
    check_name("name", &request.name)?;
    let mut space = Space::checked(scope, &request.namespace)?;
    let (term, now_ms) = (space.scope.term, space.scope.now_ms);
    if let Some(Waiter { session_id }) = space.waiter(&request.name, request.ordinal) {
        space.change_wait(session_id, &request.name, request.ordinal, |wait| {
            let was_claimed = wait.claimed_term == term && wait.lost_at_ms == 0;
            if was_claimed && wait.claimed_index <= request.index {
                wait.lost_at_ms = now_ms.max(1);
            }
        });
    }
    Ok(done())
}

impl Space<'_, '_> {
    /// Waits for a lock that is held, unless the caller does not want to.
    fn wait(
        &mut self,
        request: &api::AcquireRequest,
        lock: &mut Lock,
        id: Option<RequestId>,
    ) -> Ruling {
        let (session_id, name) = (request.session_id, &request.name);
        let waits = self.claim(session_id, name).waits;
        if let Some(wait) = waits.iter().find(|wait| wait.request_id == id) {
            if !self.has_passed(wait) && (id.is_some() || request.wait_ms > 0) {
                self.attach(request, wait);
                return Ok(Verdict::Wait(self.waiter_id(name, wait.ordinal)));
            }
            if self.has_passed(wait) {
                self.leave(name, lock, session_id, wait);
                self.settle(name, wait, held(lock.token));
                if id.is_some() {
                    return Ok(Verdict::Answer(held(lock.token)));
                }
            }
        }
        if request.wait_ms == 0 {
            self.scope.output.counts.locks_blocked += 1;
            return Ok(Verdict::Answer(held(lock.token)));
        }
        self.may_claim(request)?;
        if lock.waiters >= WAITERS_PER_LOCK_MAX {
            return Err(limit_reached("WAITERS_PER_LOCK_MAX", WAITERS_PER_LOCK_MAX));
        }
        if self.claim(session_id, name).waits.len() >= ACQUIRES_PER_CLAIM_MAX {
            return Err(limit_reached("ACQUIRES_PER_CLAIM_MAX", ACQUIRES_PER_CLAIM_MAX));
        }
        self.scope.output.counts.locks_blocked += 1;
        let ordinal = self.join(lock, request, id);
        Ok(Verdict::Wait(self.waiter_id(name, ordinal)))
    }

    /// One more call waits where an Acquire waits already. A retry that has a request id is the same call again.
    fn attach(&mut self, request: &api::AcquireRequest, wait: &Wait) {
        let (term, index) = (self.scope.term, self.scope.index);
        self.change_wait(request.session_id, &request.name, wait.ordinal, |wait| {
            if wait.request_id.is_none() {
                wait.callers = wait.callers.saturating_add(1);
            }
            (wait.claimed_term, wait.claimed_index, wait.lost_at_ms) = (term, index, 0);
        });
    }

    fn change_wait(
        &mut self,
        session_id: u64,
        name: &str,
        ordinal: u64,
        change: impl FnOnce(&mut Wait),
    ) {
        self.change_claim(session_id, name, |claim| {
            claim.waits.iter_mut().find(|wait| wait.ordinal == ordinal).map(change)
        });
    }

    fn cancel_wait(&mut self, request: &CancelAcquire, lock: &mut Lock, wait: &Wait) {
        if wait.callers > 1 {
            self.change_wait(request.session_id, &request.name, wait.ordinal, |wait| {
                wait.callers -= 1
            });
        } else {
            self.leave(&request.name, lock, request.session_id, wait);
            self.settle(&request.name, wait, held(lock.token));
        }
    }

    /// Releases a grant that no other Acquire was answered with.
    fn cancel_grant(&mut self, request: &CancelAcquire, lock: &mut Lock, id: Option<RequestId>) {
        let Some(place) = lock.acquirers.iter().position(|acquirer| acquirer.request_id == id)
        else {
            return;
        };
        lock.acquirers.remove(place);
        if lock.acquirers.is_empty() && !lock.kept {
            self.vacate(&request.name, lock);
            self.hand_on(&request.name, lock);
        }
        // A retry must not be told that it has the lock. No call waits under ordinal 0.
        let wait = Wait { request_id: id, ..Wait::default() };
        self.settle(&request.name, &wait, held(lock.token));
    }

    /// Refuses a session that has as many locks as it may, unless it has to do with this one already.
    fn may_claim(&self, request: &api::AcquireRequest) -> Result<(), Refusal> {
        let claims = self.session(request.session_id).map_or(0, |session| session.claims);
        if claims < LOCKS_PER_SESSION_MAX
            || claims_anything(&self.claim(request.session_id, &request.name))
        {
            return Ok(());
        }
        Err(limit_reached("LOCKS_PER_SESSION_MAX", LOCKS_PER_SESSION_MAX))
    }

    fn not_holder(&self, lock: &Lock) -> Refusal {
        let message = "the session does not hold the lock with this token";
        if self.session(lock.session_id).is_some_and(|session| self.is_living(&session)) {
            return refuse_with(
                Reason::NotHolder,
                message,
                [("holder_token", lock.token.to_string())],
            );
        }
        refuse(Reason::NotHolder, message)
    }
}
