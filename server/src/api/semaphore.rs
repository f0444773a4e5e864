//! Semaphores.

use std::sync::Arc;

use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::{CancelAcquire, Refusal};
use trefoil_proto::lock::v1 as lock;

use super::clean_up::{cancel_of, name_call};
use super::{Api, Context, Shards, expect_answer};

impl<S: Shards> Api<S> {
    /// Takes permits, and never leaves behind a waiter or a grant that nobody knows of.
    pub(super) async fn acquire_permits(
        self: &Arc<Self>,
        context: &Context,
        mut request: lock::AcquirePermitsRequest,
    ) -> Result<lock::AcquirePermitsResponse, Refusal> {
        let call = name_call(request.request_id.take());
        let cancel = cancel_of(&request.namespace, request.session_id, &request.name);
        let cancel = CancelAcquire { permits: request.permits, ..cancel };
        let acquire_permits = Command::AcquirePermits(request);
        let decided = self.acquiring(context, call, acquire_permits, cancel).await?;
        expect_answer!(decided, AcquirePermits)
    }
}
