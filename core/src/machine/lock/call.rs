//! What a call wants of locks, and how a grant knows the calls that it answered.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Acquirer, CallName, Hold, Refusal, Wait, Want};
use trefoil_proto::lock::v1::{self as api, LockMode};

use super::super::context::refuse_with;
use super::{check_name, mode_of};
use crate::check;
use crate::limits::ACQUIRES_PER_CLAIM_MAX;

/// What a call wants, and for how long.
pub(super) struct AcquireCall {
    pub(super) session_id: u64,
    /// One lock, or several.
    pub(super) wants: Vec<Want>,
    pub(super) several: bool,
    pub(super) wait_ms: u64,
    pub(super) name: CallName,
    pub(super) converts: bool,
    /// The lock delay of the grant, where the call says one.
    pub(super) lock_delay_ms: Option<u64>,
}

/// The locks that an Acquire names, one or several; what names them may be anything.
pub(super) fn wants_of(
    name: &str,
    mode: i32,
    locks: &[api::LockWish],
) -> Result<Vec<Want>, Refusal> {
    let want = |name: &str, mode| {
        let mode = mode_of(mode, Some(LockMode::Exclusive))?.into();
        Ok(Want { name: name.to_owned(), mode, ..Want::default() })
    };
    if locks.is_empty() {
        check_name("name", name)?;
        return Ok(vec![want(name, mode)?]);
    }
    check::wishes(locks)?;
    locks.iter().map(|wish| want(&wish.name, wish.mode)).collect()
}

/// The locks of a wait in whose order it stands.
pub(super) fn wanted(wants: &[Want]) -> impl Iterator<Item = &Want> {
    wants.iter().filter(|want| !want.held)
}

/// The session holds permits already, and not as many as it asks for.
pub(super) fn permits_held(hold: &Hold) -> Refusal {
    refuse_with(
        Reason::PermitsHeld,
        format!("the session holds {} permits of the semaphore", hold.permits),
        [("permits", hold.permits.to_string()), ("fencing_token", hold.token.to_string())],
    )
}

/// A call that waited is answered with a grant.
pub(super) fn add_waiter_as_acquirer(hold: &mut Hold, wait: &Wait) {
    add_acquirer(hold, wait.call.as_ref().expect("a wait is that of a call"), wait.claimed_index);
}

/// An Acquire is answered with a grant, perhaps once more.
pub(super) fn add_acquirer(hold: &mut Hold, call: &CallName, index: u64) {
    if let Some(known) = hold.acquirers.iter_mut().find(|other| other.call.as_ref() == Some(call)) {
        known.claimed_index = index;
    } else if hold.acquirers.len() < ACQUIRES_PER_CLAIM_MAX {
        hold.acquirers.push(Acquirer { call: Some(call.clone()), claimed_index: index });
    } else {
        hold.kept = true;
    }
}
