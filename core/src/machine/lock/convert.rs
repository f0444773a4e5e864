//! Convert: another mode for a lock that is held, without letting it go.

use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::Hold;
use trefoil_proto::lock::v1::{self as api, LockEventKind, LockMode};

use super::super::{Ruling, Scope, Verdict};
use super::acquire::Call;
use super::place::converts;
use super::{Space, check_name, converted, mode_of, names_grant, stripped};
use crate::store::prefix_end;

pub(in super::super) fn convert(
    scope: &mut Scope<'_>,
    request: &api::ConvertRequest,
    id: Option<&RequestId>,
) -> Ruling {
    let mut space = Space::checked(scope, &request.namespace)?;
    check_name("name", &request.name)?;
    let call = Call {
        session_id: request.session_id,
        name: &request.name,
        mode: mode_of(request.mode, None)?,
        wait_ms: request.wait_ms,
        id: stripped(id),
        converts: true,
        lock_delay_ms: None,
        permits: 0,
    };
    space.renew(call.session_id)?;
    space.must_be_lock(call.name)?;
    space.tidy(call.name);
    let hold = space.claim(call.session_id, call.name).hold;
    let Some(hold) = hold.filter(|hold| names_grant(hold, request.fencing_token)) else {
        return Err(space.not_holder(call.name));
    };
    if hold.mode() == call.mode {
        return Ok(Verdict::Answer(converted(&hold)));
    }
    let is_down = call.mode < hold.mode();
    if is_down
        || !space.has_converts(call.name) && space.admits(call.name, call.mode, call.session_id)
    {
        let hold = space.regrant(call.name, call.session_id, call.mode);
        space.hand_on(call.name);
        return Ok(Verdict::Answer(converted(&hold)));
    }
    let verdict = space.enqueue(call)?;
    space.hand_on(&request.name);
    Ok(verdict)
}

impl Space<'_, '_> {
    /// Whether others wait to convert.
    fn has_converts(&self, name: &str) -> bool {
        if self.lock(name).waiters == 0 {
            return false;
        }
        let waiters = self.place.waiters(name);
        let first = self.scope.txn.scan(waiters.bytes(), &prefix_end(waiters.bytes()), 1);
        first.first().is_some_and(|(key, _)| converts(key))
    }

    /// The holder holds it in another mode from now on: that is another grant, with a token of its own.
    pub(super) fn regrant(&mut self, name: &str, session_id: u64, mode: LockMode) -> Hold {
        if crate::mutant!(ConvertLetsGo) {
            self.vacate(name, session_id, LockEventKind::Released);
            self.hand_on(name);
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
        self.scope.output.counts.locks_converted += 1;
        self.tell_grant(LockEventKind::Converted, name, session_id, &hold);
        hold
    }
}
