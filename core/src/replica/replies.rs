//! What callers are told.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use super::effect::{Effect, Reply};
use crate::CallId;

/// In the place of a caller who is not there.
pub(super) const NOBODY: CallId = 0;

pub(super) fn refusal(reason: Reason, message: &str) -> Refusal {
    Refusal { reason: reason.into(), message: message.to_owned(), ..Refusal::default() }
}

pub(super) fn refuse(call: CallId, refusal: Refusal) -> Effect {
    Effect::Reply(call, Reply::Refused(refusal))
}
