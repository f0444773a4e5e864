//! Semaphores.

use std::sync::Arc;

use trefoil_core::slot;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::{CancelAcquire, Refusal};
use trefoil_proto::lock::v1 as lock;

use super::lock::{Abandoned, name_call};
use super::{Api, Context, Shards, expect_answer};

impl<S: Shards> Api<S> {
    /// Takes permits, and never leaves behind a waiter or a grant that nobody knows of.
    pub(super) async fn acquire_permits(
        self: &Arc<Self>,
        context: &Context,
        mut request: lock::AcquirePermitsRequest,
    ) -> Result<lock::AcquirePermitsResponse, Refusal> {
        let slot = slot::of_locks(&request.namespace);
        let call = name_call(request.request_id.take());
        let cancel = CancelAcquire {
            namespace: request.namespace.clone(),
            session_id: request.session_id,
            name: request.name.clone(),
            call: Some(call.clone()),
            permits: request.permits,
            ..CancelAcquire::default()
        };
        let mut abandoned = Abandoned::of(self, context, cancel);
        let decided = self.called(slot, call, Command::AcquirePermits(request), &context.ask).await;
        abandoned.judge(decided.as_ref().err());
        expect_answer!(decided?, AcquirePermits)
    }
}
