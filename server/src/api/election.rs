//! Elections.

use std::sync::Arc;

use trefoil_core::slot;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1 as lock;

use super::clean_up::{cancel_of, name_call};
use super::{Api, Context, Shards, expect_answer};

impl<S: Shards> Api<S> {
    /// Campaigns, and never leaves behind a waiter or a leadership that nobody knows of.
    pub(super) async fn campaign(
        self: &Arc<Self>,
        context: &Context,
        mut request: lock::CampaignRequest,
    ) -> Result<lock::CampaignResponse, Refusal> {
        let call = name_call(request.request_id.take());
        let cancel = cancel_of(&request.namespace, request.session_id, &request.name);
        let campaign = Command::Campaign(request);
        let decided = self.acquiring(context, call, campaign, cancel).await?;
        let response: Result<lock::AcquireResponse, Refusal> = expect_answer!(decided, Acquire);
        let lock::AcquireResponse { header, acquired, fencing_token, holder_token, .. } = response?;
        Ok(lock::CampaignResponse {
            header,
            elected: acquired,
            fencing_token,
            leader_token: holder_token,
        })
    }

    /// A leadership ends as its lock is released.
    pub(super) async fn resign(
        &self,
        context: &Context,
        request: lock::ResignRequest,
    ) -> Result<lock::ResignResponse, Refusal> {
        let lock::ResignRequest { namespace, session_id, name, fencing_token, request_id } =
            request;
        let slot = slot::of_locks(&namespace);
        let release = Command::Release(lock::ReleaseRequest {
            namespace,
            session_id,
            name,
            fencing_token,
            request_id: None,
        });
        let released = self.command(slot, request_id, release, &context.ask).await?;
        let released: lock::ReleaseResponse = expect_answer!(released, Release)?;
        let header = released.header;
        Ok(lock::ResignResponse { header })
    }
}
