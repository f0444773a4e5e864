//! What becomes of a call whose caller is gone.

use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::{CancelAcquire, LoseCaller, Wait};
use trefoil_proto::lock::v1::{LockEventKind, LockMode};

use super::super::{Ruling, Scope, done, requests};
use super::{Space, check_name, mode_of, stripped};
use crate::check;

/// The caller of an Acquire or a Convert is gone. This is no sign of life of its session, so it renews nothing.
pub(in super::super) fn cancel_acquire(scope: &mut Scope<'_>, request: &CancelAcquire) -> Ruling {
    check_name("name", &request.name)?;
    if let Some(waiter) = &request.waiter {
        check::command_id(waiter)?;
    }
    let mode = mode_of(request.mode, Some(LockMode::Exclusive))?;
    if let Some(id) = &request.waiter
        && requests::newest_attempt(scope, id) > id.attempt
    {
        // The same call was sent again meanwhile: that one still wants the lock, or has it.
        return Ok(done());
    }
    // Nobody knows any more which attempt was answered with the grant; its client goes on with it, unless the cancel
    // says that no attempt is wanted.
    let is_in_use = request.waiter.as_ref().is_some_and(|id| {
        !crate::mutant!(LateCancel) && id.attempt < u32::MAX && requests::is_acknowledged(scope, id)
    });
    let mut space = Space::checked(scope, &request.namespace)?;
    let id = stripped(request.waiter.as_ref());
    let claim = space.claim(request.session_id, &request.name);
    let same = |wait: &Wait| {
        let wants_same =
            wait.wants.iter().any(|want| want.mode() == mode && want.permits == request.permits);
        wait.request_id == id && wait.converts == request.converts && (id.is_some() || wants_same)
    };
    let found = space.waits(request.session_id, &claim.ordinals).find(|(_, wait)| same(wait));
    if let Some((ordinal, wait)) = found {
        space.cancel_wait(&request.name, ordinal, wait);
        // The lock may have waited for the caller who is gone.
        space.hand_on(&request.name);
    } else if claim.hold.is_some_and(|hold| hold.permits == request.permits)
        && !request.converts
        && !is_in_use
    {
        space.cancel_grant(request, id);
    }
    Ok(done())
}

/// The last caller of a waiting call is gone: its lock does not go to it before it is sent again.
pub(in super::super) fn lose_caller(scope: &mut Scope<'_>, request: &LoseCaller) -> Ruling {
    let space = Space::checked(scope, &request.namespace)?;
    let (term, now_ms) = (space.scope.term, space.scope.now_ms);
    if let Some(mut wait) = space.wait(request.session_id, request.ordinal) {
        let was_claimed = wait.claimed_term == term && wait.lost_at_ms == 0;
        if was_claimed && wait.claimed_index <= request.index {
            wait.lost_at_ms = now_ms.max(1);
            let key = space.place.wait(request.session_id, request.ordinal);
            space.scope.txn.put_message(key, &wait);
        }
    }
    Ok(done())
}

impl Space<'_, '_> {
    fn cancel_wait(&mut self, name: &str, ordinal: u64, mut wait: Wait) {
        if wait.callers > 1 {
            wait.callers -= 1;
            self.scope.txn.put_message(self.place.wait(wait.session_id, ordinal), &wait);
        } else {
            self.leave(ordinal, &wait);
            let answer = self.held(name, wait.converts);
            self.settle(ordinal, &wait, answer);
        }
    }

    /// Releases a grant that no other Acquire was answered with.
    fn cancel_grant(&mut self, request: &CancelAcquire, id: Option<RequestId>) {
        let found = self.change_claim(request.session_id, &request.name, |claim| {
            let hold = claim.hold.as_mut()?;
            let place = hold.acquirers.iter().position(|acquirer| acquirer.request_id == id)?;
            hold.acquirers.remove(place);
            Some(hold.acquirers.is_empty() && !hold.kept)
        });
        let Some(is_unwanted) = found else { return };
        if is_unwanted && !crate::mutant!(CancelLeavesGrant) {
            self.vacate(&request.name, request.session_id, LockEventKind::Released);
            self.hand_on(&request.name);
        }
        // A retry must not be told that it has the lock. No call waits under ordinal 0.
        let wait = Wait { request_id: id, ..Wait::default() };
        let answer = self.held(&request.name, false);
        self.settle(0, &wait, answer);
    }
}
