//! Convert: another mode for a lock that is held, without letting it go.

use trefoil_proto::internal::v1::{Hold, Want};
use trefoil_proto::lock::v1::{self as api, LockEventKind, LockMode};

use super::super::context::{CommandContext, CommandOutcome, CommandResult};
use super::call::AcquireCall;
use super::keys::converts;
use super::{LockTxn, check_name, convert_needed, converted, mode_of, names_grant};
use crate::store::prefix_end;

pub(in super::super) fn convert(
    context: &mut CommandContext<'_>,
    request: &api::ConvertRequest,
) -> CommandResult {
    let call = context.call_name()?;
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    let (session_id, name, mode) =
        (request.session_id, &request.name, mode_of(request.mode, None)?);
    let call = AcquireCall {
        session_id,
        wants: vec![Want { name: name.clone(), mode: mode.into(), ..Want::default() }],
        several: false,
        wait_ms: request.wait_ms,
        name: call,
        converts: true,
        lock_delay_ms: None,
    };
    locks.renew(session_id)?;
    locks.must_be_lock(name)?;
    locks.reclaim_expired(name);
    let hold = locks.claim(session_id, name).hold;
    let Some(hold) = hold.filter(|hold| names_grant(hold, request.fencing_token)) else {
        return Err(locks.not_holder(name));
    };
    if hold.mode() == mode {
        return Ok(CommandOutcome::Answer(converted(&hold)));
    }
    let is_down = mode < hold.mode();
    if is_down || !locks.has_converts(name) && locks.admits(name, mode, session_id) {
        let hold = locks.regrant(name, session_id, mode);
        locks.grant_waiters(name);
        return Ok(CommandOutcome::Answer(converted(&hold)));
    }
    locks.wait_for(call)
}

impl LockTxn<'_, '_> {
    /// Whether others wait to convert.
    fn has_converts(&self, name: &str) -> bool {
        if self.lock(name).waiters == 0 {
            return false;
        }
        let waiters = self.keys.waiters(name);
        let first = self.context.txn.scan(waiters.bytes(), &prefix_end(waiters.bytes()), 1);
        first.first().is_some_and(|(key, _)| converts(key))
    }

    /// The holder holds it in another mode from now on: that is another grant, with a token of its own.
    pub(super) fn regrant(&mut self, name: &str, session_id: u64, mode: LockMode) -> Hold {
        if crate::mutant!(ConvertLetsGo) {
            self.vacate(name, session_id, LockEventKind::Released);
            self.grant_waiters(name);
            return self.grant(name, session_id, mode, |_| {});
        }
        let claim = self.claim(session_id, name);
        let mut hold = claim.hold.expect("who converts holds the lock");
        self.unlist(name, &hold);
        self.abdicate(name, session_id, &mut hold);
        (hold.former_token, hold.token) = (hold.token, self.next_token(name));
        hold.mode = mode.into();
        self.list(name, session_id, &hold);
        self.change_claim(session_id, name, |claim| claim.hold = Some(hold.clone()));
        self.context.output.counts.locks_converted(1);
        self.tell_grant(LockEventKind::Converted, name, session_id, &hold);
        self.end_several(session_id, name, mode, &convert_needed(&hold));
        hold
    }
}
