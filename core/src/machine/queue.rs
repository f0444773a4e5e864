//! Partitions of queues: messages, leases, acknowledgement.

use bytes::Bytes;
use trefoil_proto::internal::v1::{
    AckLease, AwaitReady, DequeueFrom, EnqueueTo, OpenPartition, ReturnLeases,
};

use super::polls::Polls;
use super::{QueryOutcome, Ruling, Scope};
use crate::CallId;
use crate::store::Store;

pub(super) fn open_partition(scope: &mut Scope<'_>, request: &OpenPartition) -> Ruling {
    unimplemented!()
}
pub(super) fn enqueue(scope: &mut Scope<'_>, request: &EnqueueTo) -> Ruling {
    unimplemented!()
}
pub(super) fn dequeue(scope: &mut Scope<'_>, request: &DequeueFrom, shards: u32) -> Ruling {
    unimplemented!()
}
pub(super) fn ack(scope: &mut Scope<'_>, request: &AckLease) -> Ruling {
    unimplemented!()
}
pub(super) fn return_leases(scope: &mut Scope<'_>, request: &ReturnLeases, shards: u32) -> Ruling {
    unimplemented!()
}
pub(super) fn lease_due(scope: &mut Scope<'_>, rest: &Bytes) {
    unimplemented!()
}
pub(super) fn await_ready(
    store: &impl Store,
    polls: &mut Polls,
    call: CallId,
    request: &AwaitReady,
    shards: u32,
) -> QueryOutcome {
    unimplemented!()
}
