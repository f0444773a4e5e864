//! Which queues there are: kept by the meta shard.

use trefoil_proto::internal::v1::FindQueue;
use trefoil_proto::queue::v1::CreateQueueRequest;

use super::{QueryOutcome, Ruling, Scope};
use crate::store::Store;

pub(super) fn create_queue(scope: &mut Scope<'_>, request: &CreateQueueRequest) -> Ruling {
    unimplemented!()
}
pub(super) fn find_queue(store: &impl Store, request: &FindQueue) -> QueryOutcome {
    unimplemented!()
}
