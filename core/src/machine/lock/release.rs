//! Release of one lock, or of all that a session holds.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Claim, Refusal, ReleaseHeld, ReleasedHeld, answer};
use trefoil_proto::lock::v1::{self as api, LockEventKind};

use super::super::context::{CommandContext, CommandOutcome, CommandResult, refuse, refuse_with};
use super::{LockTxn, STEP_MAX, check_name, names_grant, text_of};
use crate::check;
use crate::limits::NAME_BYTES_MAX;
use crate::store::{decode, prefix_end};

/// Claims that one step looks at.
const CLAIMS_SEEN_MAX: usize = 10 * STEP_MAX;

pub(in super::super) fn release(
    context: &mut CommandContext<'_>,
    request: &api::ReleaseRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    locks.renew(request.session_id)?;
    let hold = locks.claim(request.session_id, &request.name).hold;
    let mut holder_id = request.session_id;
    if hold.is_none_or(|hold| !names_grant(&hold, request.fencing_token)) {
        holder_id = locks.lock(&request.name).session_id;
        if !crate::mutant!(AnyoneReleases) || holder_id == 0 {
            return Err(locks.not_holder(&request.name));
        }
    }
    locks.vacate(&request.name, holder_id, LockEventKind::Released);
    locks.grant_waiters(&request.name);
    Ok(CommandOutcome::Answer(answer::Answer::Release(api::ReleaseResponse { header: None })))
}

/// Releases locks of a session in the order of their names. What is left over is for the next command, which knows by
/// the tokens what was granted since the first one.
pub(in super::super) fn release_held(
    context: &mut CommandContext<'_>,
    request: &ReleaseHeld,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check::text("after", &request.after, 0, NAME_BYTES_MAX)?;
    locks.renew(request.session_id)?;
    let up_to_token =
        if request.up_to_token == 0 { locks.counters().last_token } else { request.up_to_token };
    let claims = locks.keys.claims(request.session_id);
    let mut start = locks.keys.claim(request.session_id, &request.after).bytes().to_vec();
    if !request.after.is_empty() {
        start.push(0);
    }
    let seen = locks.context.txn.scan(&start, &prefix_end(claims.bytes()), CLAIMS_SEEN_MAX);
    let (mut released, mut after) = (0, String::new());
    for (n, (key, value)) in seen.iter().enumerate() {
        let name = text_of(&key[claims.bytes().len()..]);
        let hold = decode::<Claim>(value).hold;
        if hold.is_some_and(|hold| hold.token <= up_to_token) {
            locks.vacate(&name, request.session_id, LockEventKind::Released);
            locks.grant_waiters(&name);
            locks.left = locks.left.saturating_sub(1);
            released += 1;
        }
        if locks.left == 0 || n + 1 == CLAIMS_SEEN_MAX {
            after = name;
            break;
        }
    }
    let released = ReleasedHeld { released, after, up_to_token };
    Ok(CommandOutcome::Answer(answer::Answer::ReleasedHeld(released)))
}

impl LockTxn<'_, '_> {
    pub(super) fn not_holder(&mut self, name: &str) -> Refusal {
        let message = "the session does not hold the lock with this token";
        match self.holder_token(name) {
            0 => refuse(Reason::NotHolder, message),
            token => refuse_with(Reason::NotHolder, message, [("holder_token", token.to_string())]),
        }
    }
}
