//! What becomes of a call whose caller is gone. A cancel names the one call that it is about: applied twice, or before its
//! call, it does nothing.

use trefoil_proto::internal::v1::{
    Acquirer, CallName, CancelAcquire, LoseCaller, Wait, Want, answer,
};
use trefoil_proto::lock::v1::LockEventKind;

use super::super::context::{CommandContext, CommandResult, done};
use super::super::requests;
use super::call::wants_of;
use super::{LockTxn, stripped};
use crate::check;

/// The caller of an Acquire or a Convert is gone. This is no sign of life of its session, so it renews nothing.
pub(in super::super) fn cancel_acquire(
    context: &mut CommandContext<'_>,
    request: &CancelAcquire,
) -> CommandResult {
    let mut wants = wants_of(&request.name, 0, &request.locks)?;
    let several = !request.locks.is_empty();
    wants[0].permits = request.permits;
    let named = check::call_name(request.call.as_ref())?;
    let id = named.request_id.as_ref();
    if id.is_some_and(|id| requests::newest_attempt(context, id) > id.attempt) {
        // The same call was sent again meanwhile: that one still wants the lock, or has it.
        return Ok(done());
    }
    // Nobody knows any more which attempt was answered with the grant; its client goes on with it, unless the cancel
    // says that no attempt is wanted.
    let is_in_use = id.is_some_and(|id| {
        !crate::mutant!(LateCancel)
            && id.attempt < u32::MAX
            && requests::is_acknowledged(context, id)
    });
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    let (call, session_id) = (stripped(named), request.session_id);
    let as_of = if request.as_of == 0 { u64::MAX } else { request.as_of };
    let ordinals = locks.claim(session_id, &wants[0].name).ordinals;
    let mut waits = locks.waits(session_id, &ordinals);
    let found = waits.find(|(_, wait)| is_named(wait.call.as_ref(), &call));
    drop(waits);
    if let Some((ordinal, wait)) = found {
        if wait.claimed_index <= as_of {
            locks.leave(ordinal, &wait);
            let answer = locks.not_got(&wait);
            locks.settle(ordinal, &wait, answer);
        }
    } else if !is_in_use && locks.cancel_grant(session_id, &wants, &call, as_of) {
        // A retry must not be told that it has the lock. No call waits under ordinal 0.
        let wait = Wait { call: Some(call), several, wants: wants.clone(), ..Wait::default() };
        let answer = locks.not_got(&wait);
        locks.settle(0, &wait, answer);
    }
    // A lock may have waited for the caller who is gone.
    wants.iter().for_each(|want| locks.grant_waiters(&want.name));
    Ok(done())
}

/// The last caller of a waiting call is gone: its lock does not go to it before it is sent again.
pub(in super::super) fn lose_caller(
    context: &mut CommandContext<'_>,
    request: &LoseCaller,
) -> CommandResult {
    let locks = LockTxn::checked(context, &request.namespace)?;
    let (term, now_ms) = (locks.context.term, locks.context.now_ms);
    if let Some(mut wait) = locks.wait(request.session_id, request.ordinal) {
        let was_claimed = wait.claimed_term == term && wait.lost_at_ms == 0;
        if was_claimed && wait.claimed_index <= request.index {
            wait.lost_at_ms = now_ms.max(1);
            let key = locks.keys.wait(request.session_id, request.ordinal);
            locks.context.txn.put_message(key, &wait);
        }
    }
    Ok(done())
}

impl LockTxn<'_, '_> {
    /// Releases what no other Acquire was answered with, unless the call was brought by an entry after `as_of`. Says
    /// whether the call had anything.
    pub(super) fn cancel_grant(
        &mut self,
        session_id: u64,
        wants: &[Want],
        call: &CallName,
        as_of: u64,
    ) -> bool {
        let relies = |acquirer: &Acquirer| {
            is_named(acquirer.call.as_ref(), call) && acquirer.claimed_index <= as_of
        };
        let relied_on = |want: &&Want| {
            let hold = self.claim(session_id, &want.name).hold;
            hold.is_some_and(|hold| hold.acquirers.iter().any(relies))
        };
        let names = wants.iter().filter(relied_on).map(|want| &want.name).collect::<Vec<_>>();
        if names.is_empty() {
            return false;
        }
        for name in names {
            let is_unwanted = self.change_claim(session_id, name, |claim| {
                let hold = claim.hold.as_mut()?;
                let keys = hold.acquirers.iter().position(relies)?;
                hold.acquirers.remove(keys);
                Some(hold.acquirers.is_empty() && !hold.kept)
            });
            if is_unwanted == Some(true) && !crate::mutant!(CancelLeavesGrant) {
                self.vacate(name, session_id, LockEventKind::Released);
            }
        }
        wants.iter().for_each(|want| self.grant_waiters(&want.name));
        true
    }

    /// The answer of an Acquire that has nothing of what it asked for.
    pub(super) fn nothing_got(&mut self, several: bool, wants: Vec<Want>) -> answer::Answer {
        self.not_got(&Wait { several, wants, ..Wait::default() })
    }
}

fn is_named(one: Option<&CallName>, call: &CallName) -> bool {
    let is_anonymous = |name: &CallName| name.request_id.is_none();
    one == Some(call)
        || crate::mutant!(AnyAnonymousCall) && is_anonymous(call) && one.is_some_and(is_anonymous)
}
