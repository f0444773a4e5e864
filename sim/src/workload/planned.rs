//! What a client does next: a call, with how it is made and judged, or a rest.

use trefoil_proto::common::v1::RequestId;

use crate::calls::RoutedRequest;
use crate::check::history::Action;
use crate::client_context::ClientContext;
use crate::config::MILLISECOND;

/// Of a thousand writes, those without a request id.
const PLAIN: u64 = 150;

/// What a role wants next.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Wish {
    /// To do something.
    Do(PlannedCall),
    /// To rest for so many microseconds.
    Rest(u64),
}

/// A call that a client is to make, and how.
#[derive(Debug)]
pub struct PlannedCall {
    /// What goes into the history; none for what is not judged.
    pub action: Option<Action>,
    /// What is asked.
    pub request: RoutedRequest,
    /// Whether a request id makes it safe to send again.
    pub idempotent: bool,
    /// How long the answer may wait at the shard.
    pub wait_us: u64,
    /// Whether one try is enough.
    pub once: bool,
    /// When the client hangs up because it no longer wants what it asked for: so long after it asked.
    pub hang_up_us: Option<u64>,
    /// The request id of the call before, which it should not use.
    pub reuses: Option<RequestId>,
}

impl PlannedCall {
    /// A step that is not judged.
    #[must_use]
    pub fn unjudged(request: RoutedRequest, idempotent: bool) -> Self {
        let (action, wait_us, once, hang_up_us, reuses) = (None, 0, false, None, None);
        Self { action, request, idempotent, wait_us, once, hang_up_us, reuses }
    }
}

pub(crate) fn step(action: Action, request: RoutedRequest) -> PlannedCall {
    let renews = matches!(action, Action::KeepAlive { .. } | Action::GuessSession { .. });
    let idempotent = !action.is_read() && !renews;
    let wait_us = action.wait_ms() * MILLISECOND;
    PlannedCall {
        action: Some(action),
        idempotent,
        wait_us,
        ..PlannedCall::unjudged(request, false)
    }
}

pub(super) fn unrecorded(request: RoutedRequest, idempotent: bool) -> Wish {
    Wish::Do(PlannedCall::unjudged(request, idempotent))
}

/// Some clients name no request id: whatever becomes of the call, it is asked once.
pub(super) fn plain_at_times(step: PlannedCall, shared: &mut ClientContext) -> PlannedCall {
    if !step.idempotent || !shared.rng.chance(PLAIN) {
        return step;
    }
    PlannedCall { idempotent: false, once: true, ..step }
}
