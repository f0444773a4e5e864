//! What a retry of a call is told that was answered with a grant: the answer that is remembered, as long as that is true.

use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{CallName, Command, Hold, Want, answer};

use super::super::context::{CommandContext, CommandOutcome, CommandResult};
use super::call::add_acquirer;
use super::call::wants_of;
use super::{LockTxn, names_grant};

/// Looks whether a remembered grant lasts, and notes that its call was brought once more. An Acquire whose grant is over
/// got nothing, and what is left of several locks goes with it; a Convert is one of somebody who does not hold the lock.
pub(in super::super) fn recheck(
    context: &mut CommandContext<'_>,
    command: &Command,
    remembered: answer::Answer,
) -> CommandResult {
    use answer::Answer as A;
    let Some(operation) = &command.operation else { return Ok(CommandOutcome::Answer(remembered)) };
    let call = &context.call_name()?;
    let (namespace, session_id, name, wishes, token) = match (operation, &remembered) {
        (Operation::Acquire(r), A::Acquire(got)) if got.acquired => {
            (&r.namespace, r.session_id, &r.name, r.locks.as_slice(), got.fencing_token)
        }
        (Operation::Campaign(r), A::Acquire(got)) if got.acquired => {
            (&r.namespace, r.session_id, &r.name, [].as_slice(), got.fencing_token)
        }
        (Operation::AcquirePermits(r), A::AcquirePermits(got)) if got.acquired => {
            (&r.namespace, r.session_id, &r.name, [].as_slice(), got.fencing_token)
        }
        (Operation::Convert(r), A::Convert(got)) if got.converted => {
            let mut locks = LockTxn::checked(context, &r.namespace)?;
            locks.living(r.session_id)?;
            let hold = locks.claim(r.session_id, &r.name).hold;
            let lasts = hold.is_some_and(|hold| names_grant(&hold, got.fencing_token));
            return if lasts {
                Ok(CommandOutcome::Answer(remembered))
            } else {
                Err(locks.not_holder(&r.name))
            };
        }
        _ => return Ok(CommandOutcome::Answer(remembered)),
    };
    let mut wants = wants_of(name, 0, wishes)?;
    if let A::AcquirePermits(got) = &remembered {
        wants[0].permits = got.permits;
    }
    let mut locks = LockTxn::checked(context, namespace)?;
    locks.living(session_id)?;
    wants.iter().for_each(|want| locks.reclaim_expired(&want.name));
    let lasts = |want: &Want| {
        let hold = locks.claim(session_id, &want.name).hold;
        // One that is not listed any more is known by its token; of several locks none was told alone.
        let is_kept = |hold: &Hold| hold.kept && (token == 0 || names_grant(hold, token));
        hold.is_some_and(|hold| has_acquirer(&hold, call) || is_kept(&hold))
    };
    if wants.iter().all(lasts) || crate::mutant!(EndedGrantRemembered) {
        let index = locks.context.index;
        for want in &wants {
            locks.change_claim(session_id, &want.name, |claim| {
                claim
                    .hold
                    .as_mut()
                    .filter(|hold| has_acquirer(hold, call))
                    .map(|hold| add_acquirer(hold, call, index))
            });
        }
        return Ok(CommandOutcome::Answer(remembered));
    }
    locks.cancel_grant(session_id, &wants, call, u64::MAX);
    let answer = locks.nothing_got(!wishes.is_empty(), wants);
    Ok(CommandOutcome::Answer(answer))
}

fn has_acquirer(hold: &Hold, call: &CallName) -> bool {
    hold.acquirers.iter().any(|acquirer| acquirer.call.as_ref() == Some(call))
}
