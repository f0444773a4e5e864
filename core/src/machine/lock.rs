//! Sessions and locks.

use bytes::Bytes;
use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::CancelAcquire;
use trefoil_proto::lock::v1 as api;

use super::{Ruling, Scope};

pub(super) fn open_session(scope: &mut Scope<'_>, request: &api::OpenSessionRequest) -> Ruling {
    unimplemented!()
}
pub(super) fn keep_alive(scope: &mut Scope<'_>, request: &api::KeepAliveRequest) -> Ruling {
    unimplemented!()
}
pub(super) fn close_session(scope: &mut Scope<'_>, request: &api::CloseSessionRequest) -> Ruling {
    unimplemented!()
}
pub(super) fn acquire(
    scope: &mut Scope<'_>,
    request: &api::AcquireRequest,
    id: Option<&RequestId>,
) -> Ruling {
    unimplemented!()
}
pub(super) fn release(scope: &mut Scope<'_>, request: &api::ReleaseRequest) -> Ruling {
    unimplemented!()
}
pub(super) fn cancel_acquire(scope: &mut Scope<'_>, request: &CancelAcquire) -> Ruling {
    unimplemented!()
}
pub(super) fn session_due(scope: &mut Scope<'_>, rest: &Bytes) {
    unimplemented!()
}
pub(super) fn waiter_due(scope: &mut Scope<'_>, rest: &Bytes) {
    unimplemented!()
}
