//! Cached values.

use bytes::Bytes;
use trefoil_proto::cache::v1 as api;

use super::{Directory, QueryOutcome, Ruling, Scope};
use crate::store::Store;

pub(super) fn put(scope: &mut Scope<'_>, request: &api::PutRequest) -> Ruling {
    unimplemented!()
}
pub(super) fn delete(scope: &mut Scope<'_>, request: &api::DeleteRequest) -> Ruling {
    unimplemented!()
}
pub(super) fn item_due(scope: &mut Scope<'_>, rest: &Bytes) {
    unimplemented!()
}
pub(super) fn get(
    store: &impl Store,
    directory: &mut Directory,
    slot: u16,
    request: &api::GetRequest,
    agent: u64,
    log_time_ms: u64,
    now_ms: u64,
) -> QueryOutcome {
    unimplemented!()
}
