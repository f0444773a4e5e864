//! ForceRelease: an operator takes a lock from whoever holds it.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{ForceStep, ForcedStep, Holder, Refusal, answer};
use trefoil_proto::lock::v1::LockEventKind;

use super::super::context::{CommandContext, CommandOutcome, CommandResult, refuse, refuse_with};
use super::keys::number_of;
use super::{LockTxn, check_name, delays};
use crate::store::{decode, prefix_end};

/// Takes away grants, the one in mode UPDATE or EXCLUSIVE first. What is left over is for the next command, which knows
/// by the tokens what was granted since the first one.
pub(in super::super) fn force_step(
    context: &mut CommandContext<'_>,
    request: &ForceStep,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    let name = &request.name;
    locks.reclaim_expired(name);
    let is_first = request.token == 0;
    let token = if is_first { locks.next_token(&request.name) } else { request.token };
    let wanted =
        |other| other < token && (request.fencing_token == 0 || other == request.fencing_token);
    let lock = locks.lock(name);
    let mut released = 0;
    if lock.session_id != 0 && wanted(lock.token) {
        locks.vacate(name, lock.session_id, LockEventKind::Forced);
        released += 1;
    }
    let first = locks.keys.holder(name, request.fencing_token);
    let end = prefix_end(locks.keys.holders(name).bytes());
    let most = if request.fencing_token == 0 { locks.left } else { 1 };
    let shared = locks.context.txn.scan(first.bytes(), &end, most);
    let shared = shared.iter().filter(|(key, _)| wanted(number_of(key)));
    for session_id in
        shared.map(|(_, value)| decode::<Holder>(value).session_id).collect::<Vec<_>>()
    {
        if locks.left == 0 {
            break;
        }
        locks.left -= 1;
        locks.vacate(name, session_id, LockEventKind::Forced);
        released += 1;
    }
    if is_first && request.fencing_token > 0 && released == 0 {
        return Err(locks.nobody_holds(name));
    }
    if request.fencing_token == 0 {
        locks.change_lock(name, |lock| delays(lock).into_iter().for_each(|(_, until)| *until = 0));
    }
    let more = request.fencing_token == 0
        && locks.left == 0
        && (1..token).contains(&locks.oldest_shared(name, 0));
    locks.grant_waiters(name);
    locks.context.output.counts.locks_forced(u64::from(released));
    Ok(CommandOutcome::Answer(answer::Answer::ForcedStep(ForcedStep { released, more, token })))
}

impl LockTxn<'_, '_> {
    pub(super) fn nobody_holds(&mut self, name: &str) -> Refusal {
        let message = "nobody holds the lock with this token";
        match self.holder_token(name) {
            0 => refuse(Reason::NotHolder, message),
            token => refuse_with(Reason::NotHolder, message, [("holder_token", token.to_string())]),
        }
    }
}
