//! Sessions and locks.

use std::sync::Arc;

use trefoil_core::slot;
use trefoil_proto::internal::v1::answer::Answer;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::{CallName, CancelAcquire, ForceStep, Refusal, ReleaseHeld};
use trefoil_proto::lock::v1 as lock;

use super::clean_up::{cancel_of, name_call};
use super::{Api, Context, Decided, Shards, expect_answer, other_answer, partly};

impl<S: Shards> Api<S> {
    /// Acquires, and never leaves behind a waiter or a grant that nobody knows of.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        context: &Context,
        mut request: lock::AcquireRequest,
    ) -> Result<lock::AcquireResponse, Refusal> {
        let call = name_call(request.request_id.take());
        self.acquire_as(context, request, call).await
    }

    /// The same for a call that has its name already.
    pub(super) async fn acquire_as(
        self: &Arc<Self>,
        context: &Context,
        request: lock::AcquireRequest,
        call: CallName,
    ) -> Result<lock::AcquireResponse, Refusal> {
        let cancel = cancel_acquire(&request);
        let acquire = Command::Acquire(request);
        expect_answer!(self.acquiring(context, call, acquire, cancel).await?, Acquire)
    }

    /// Converts, and never leaves behind a waiter that nobody knows of.
    pub(super) async fn convert(
        self: &Arc<Self>,
        context: &Context,
        mut request: lock::ConvertRequest,
    ) -> Result<lock::ConvertResponse, Refusal> {
        let call = name_call(request.request_id.take());
        let cancel = cancel_of(&request.namespace, request.session_id, &request.name);
        let convert = Command::Convert(request);
        expect_answer!(self.acquiring(context, call, convert, cancel).await?, Convert)
    }

    /// Releases batch after batch. The request id goes with the first one, whose answer says how to go on: a retry
    /// goes on from there, and releases nothing that was granted since.
    pub(super) async fn release_all(
        &self,
        context: &Context,
        request: lock::ReleaseAllRequest,
    ) -> Result<lock::ReleaseAllResponse, Refusal> {
        let slot = slot::of_locks(&request.namespace);
        let mut id = request.request_id;
        let mut batch = ReleaseHeld {
            namespace: request.namespace,
            session_id: request.session_id,
            ..ReleaseHeld::default()
        };
        let (mut released, mut goes_on) = (0, false);
        loop {
            let command = Command::ReleaseHeld(batch.clone());
            let decided = self.command(slot, id.take(), command, &context.ask).await;
            let Decided { header, answer } = decided.map_err(|why| went_on(why, goes_on))?;
            let Answer::ReleasedHeld(done) = answer else { return Err(other_answer()) };
            released += done.released;
            (batch.after, batch.up_to_token, goes_on) = (done.after, done.up_to_token, true);
            if batch.after.is_empty() {
                return Ok(lock::ReleaseAllResponse { header: Some(header), released });
            }
        }
    }

    /// Takes away batch after batch; as with [`Self::release_all`] the first one says how to go on.
    pub(super) async fn force_release(
        &self,
        context: &Context,
        request: lock::ForceReleaseRequest,
    ) -> Result<lock::ForceReleaseResponse, Refusal> {
        let slot = slot::of_locks(&request.namespace);
        let mut id = request.request_id;
        let lock::ForceReleaseRequest { namespace, name, fencing_token, .. } = request;
        let mut step = ForceStep { namespace, name, fencing_token, token: 0 };
        let (mut released, mut goes_on) = (0, false);
        loop {
            let command = Command::ForceStep(step.clone());
            let decided = self.command(slot, id.take(), command, &context.ask).await;
            let Decided { header, answer } = decided.map_err(|why| went_on(why, goes_on))?;
            let Answer::ForcedStep(done) = answer else { return Err(other_answer()) };
            released += done.released;
            (step.token, goes_on) = (done.token, true);
            if !done.more {
                let (header, fencing_token) = (Some(header), done.token);
                return Ok(lock::ForceReleaseResponse { header, released, fencing_token });
            }
        }
    }
}

/// How a step of a call ended that has several: after the first one something is done already.
fn went_on(why: Refusal, goes_on: bool) -> Refusal {
    if goes_on { partly(&why) } else { why }
}

/// What cancels an Acquire, but for the name of its call.
pub(super) fn cancel_acquire(request: &lock::AcquireRequest) -> CancelAcquire {
    let cancel = cancel_of(&request.namespace, request.session_id, &request.name);
    CancelAcquire { locks: request.locks.clone(), ..cancel }
}
