//! What becomes of a call whose caller is gone.

use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::{Acquirer, CancelAcquire, LoseCaller, Wait, Want};
use trefoil_proto::lock::v1::LockEventKind;

use super::super::{Ruling, Scope, done, requests};
use super::acquire::{is_call, wants_of};
use super::{Space, stripped};
use crate::check;

/// The caller of an Acquire or a Convert is gone. This is no sign of life of its session, so it renews nothing.
pub(in super::super) fn cancel_acquire(scope: &mut Scope<'_>, request: &CancelAcquire) -> Ruling {
    let mut wants = wants_of(&request.name, request.mode, &request.locks)?;
    let several = !request.locks.is_empty();
    wants[0].permits = request.permits;
    if let Some(waiter) = &request.waiter {
        check::command_id(waiter)?;
    }
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
    let session_id = request.session_id;
    let same = |wait: &Wait| is_call(wait, id.as_ref(), request.converts, several, &wants);
    let ordinals = space.claim(session_id, &wants[0].name).ordinals;
    let found = space.waits(session_id, &ordinals).find(|(_, wait)| same(wait));
    if let Some((ordinal, wait)) = found {
        space.cancel_wait(ordinal, wait);
    } else if !request.converts && !is_in_use {
        space.cancel_grant(session_id, several, &wants, id);
    }
    // A lock may have waited for the caller who is gone.
    wants.iter().for_each(|want| space.hand_on(&want.name));
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
    fn cancel_wait(&mut self, ordinal: u64, mut wait: Wait) {
        if wait.callers > 1 {
            wait.callers -= 1;
            self.scope.txn.put_message(self.place.wait(wait.session_id, ordinal), &wait);
        } else {
            self.leave(ordinal, &wait);
            let answer = self.not_got(&wait);
            self.settle(ordinal, &wait, answer);
        }
    }

    /// Releases what no other Acquire was answered with.
    fn cancel_grant(
        &mut self,
        session_id: u64,
        several: bool,
        wants: &[Want],
        id: Option<RequestId>,
    ) {
        let relies = |acquirer: &Acquirer| acquirer.request_id == id;
        let relied_on = |want: &&Want| {
            let hold = self.claim(session_id, &want.name).hold;
            hold.is_some_and(|hold| {
                hold.permits == want.permits && hold.acquirers.iter().any(relies)
            })
        };
        let names = wants.iter().filter(relied_on).map(|want| &want.name).collect::<Vec<_>>();
        // Without request id the acquire of all is one that got all.
        if names.is_empty() || id.is_none() && names.len() < wants.len() {
            return;
        }
        for name in names {
            let is_unwanted = self.change_claim(session_id, name, |claim| {
                let hold = claim.hold.as_mut()?;
                let place = hold.acquirers.iter().position(relies)?;
                hold.acquirers.remove(place);
                Some(hold.acquirers.is_empty() && !hold.kept)
            });
            if is_unwanted == Some(true) && !crate::mutant!(CancelLeavesGrant) {
                self.vacate(name, session_id, LockEventKind::Released);
            }
        }
        wants.iter().for_each(|want| self.hand_on(&want.name));
        // A retry must not be told that it has the lock. No call waits under ordinal 0.
        let wait = Wait { request_id: id, several, wants: wants.to_vec(), ..Wait::default() };
        let answer = self.not_got(&wait);
        self.settle(0, &wait, answer);
    }
}
