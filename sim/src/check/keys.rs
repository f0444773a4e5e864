//! By what checkers of the log know calls and locks.

use bytes::Bytes;
use trefoil_proto::common::v1::RequestId;

/// Client and sequence, or what was drawn, with 0.
pub(super) type CallKey = (String, u64);
/// Namespace, and name of a lock, semaphore or latch.
pub(super) type LockKey = (String, String);

pub(super) fn id_of(id: Option<&RequestId>) -> Option<CallKey> {
    id.map(|id| (id.client.clone(), id.sequence))
}

/// The key of a call with a request id or with what was drawn for it.
pub(super) fn call_of(id: Option<&RequestId>, drawn: &Bytes) -> Option<CallKey> {
    id_of(id).or_else(|| (!drawn.is_empty()).then(|| (format!("{drawn:x}"), 0)))
}
