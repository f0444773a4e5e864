//! Sessions and locks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng as _;
use trefoil_core::limits::WAITER_CLAIM_MS;
use trefoil_core::{DRAWN_BYTES, slot};
use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::answer::Answer;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::{CallName, CancelAcquire, ForceStep, Refusal, ReleaseHeld};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::reason::Effect;

use super::{Api, Context, Decided, Shards, expect_answer, other_answer, partly};

/// How long a caller who is gone may take to ask again, by another node, under the same request id. A clean-up that
/// comes later than the retry does nothing.
const COME_BACK: Duration = Duration::from_millis(WAITER_CLAIM_MS);

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
        let slot = slot::of_locks(&request.namespace);
        let mut abandoned = Abandoned::new(self, context, &request, &call);
        let decided = self.called(slot, call, Command::Acquire(request), &context.ask).await;
        abandoned.judge(decided.as_ref().err());
        expect_answer!(decided?, Acquire)
    }

    /// Converts, and never leaves behind a waiter that nobody knows of.
    pub(super) async fn convert(
        self: &Arc<Self>,
        context: &Context,
        mut request: lock::ConvertRequest,
    ) -> Result<lock::ConvertResponse, Refusal> {
        let slot = slot::of_locks(&request.namespace);
        let call = name_call(request.request_id.take());
        let cancel = CancelAcquire {
            namespace: request.namespace.clone(),
            session_id: request.session_id,
            name: request.name.clone(),
            call: Some(call.clone()),
            ..CancelAcquire::default()
        };
        let mut abandoned = Abandoned::of(self, context, cancel);
        let decided = self.called(slot, call, Command::Convert(request), &context.ask).await;
        abandoned.judge(decided.as_ref().err());
        expect_answer!(decided?, Convert)
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

/// Names a call that waits or acquires: by its request id, or by what is drawn where it has none. Its waiter and its grant know
/// it by that, whichever of its tries made them, and its cancel means it alone.
pub(super) fn name_call(request_id: Option<RequestId>) -> CallName {
    if request_id.is_some() {
        return CallName { request_id, drawn: Bytes::new() };
    }
    let drawn = rand::rng().random::<[u8; DRAWN_BYTES]>();
    CallName { request_id, drawn: Bytes::copy_from_slice(&drawn) }
}

/// How long the cancel of a call waits: one that has a request id may come back, unless its caller said that it does not
/// want it. Nobody else can ask for what this node named.
pub(super) fn pause_before(call: Option<&mut CallName>, is_told: bool) -> Duration {
    match call.and_then(|call| call.request_id.as_mut()) {
        Some(id) if is_told => {
            // No later attempt is to be spared.
            id.attempt = u32::MAX;
            Duration::ZERO
        }
        Some(_) => COME_BACK,
        None => Duration::ZERO,
    }
}

/// How a step of a call ended that has several: after the first one something is done already.
fn went_on(why: Refusal, goes_on: bool) -> Refusal {
    if goes_on { partly(&why) } else { why }
}

/// An Acquire or a Convert whose end the caller has not seen. Dropped in that state, it is cancelled.
pub(super) struct Abandoned<'a, S: Shards> {
    api: Arc<Api<S>>,
    context: &'a Context,
    cancel: Option<CancelAcquire>,
}

impl<'a, S: Shards> Abandoned<'a, S> {
    /// A call that acquires, and that the command would take back.
    pub(super) fn of(api: &Arc<Api<S>>, context: &'a Context, cancel: CancelAcquire) -> Self {
        Self { api: Arc::clone(api), context, cancel: Some(cancel) }
    }

    /// An Acquire that is about to be sent.
    pub(super) fn new(
        api: &Arc<Api<S>>,
        context: &'a Context,
        request: &lock::AcquireRequest,
        call: &CallName,
    ) -> Self {
        let cancel = CancelAcquire {
            namespace: request.namespace.clone(),
            session_id: request.session_id,
            name: request.name.clone(),
            call: Some(call.clone()),
            locks: request.locks.clone(),
            ..CancelAcquire::default()
        };
        Self::of(api, context, cancel)
    }

    /// The caller has its answer.
    pub(super) fn is_answered(&mut self) {
        self.cancel = None;
    }

    /// The command ended. Only an end that leaves open whether it waits or holds is followed by a cancellation.
    pub(super) fn judge(&mut self, refusal: Option<&Refusal>) {
        let open_ended =
            refusal.is_some_and(|refusal| refusal.reason().row().effect == Effect::Unknown);
        if !open_ended {
            self.cancel = None;
        }
    }

    /// Whether the caller said that it does not want the lock, and is not merely gone.
    fn is_told(&self) -> bool {
        self.context.cancelled.as_ref().is_some_and(|told| told.load(Ordering::Relaxed))
    }
}

impl<S: Shards> Drop for Abandoned<'_, S> {
    fn drop(&mut self) {
        let Some(mut cancel) = self.cancel.take() else { return };
        let slot = slot::of_locks(&cancel.namespace);
        let pause = pause_before(cancel.call.as_mut(), self.is_told());
        let access = &self.context.ask.access;
        self.api.clean_up(slot, Command::CancelAcquire(cancel), access, pause);
    }
}
