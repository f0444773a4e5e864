//! What is taken back when a caller has not seen the end of its call: a waiter, a grant, a place, a lease.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng as _;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use trefoil_core::limits::{CLIENT_CLEAN_UPS_MAX, WAITER_CLAIM_MS};
use trefoil_core::{DRAWN_BYTES, slot};
use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::{
    Access, CallName, CancelAcquire, Refusal, WithdrawBarrier, answer,
};
use trefoil_proto::reason::RefusalEffect;

use super::{Api, CallContext, Context, Decided, Shards};
use crate::calls::repeat::repeat;

/// How long a command that may be repeated is tried.
const REPEAT_TIME: Duration = Duration::from_secs(10);
/// How long a caller who is gone may take to ask again, by another node, under the same request id. A clean-up that
/// comes later than the retry does nothing.
const COME_BACK: Duration = Duration::from_millis(WAITER_CLAIM_MS);

/// Places for clean-ups. Without one, a session's or a lease's own end cleans up.
#[derive(Debug)]
pub(super) struct CleanUps {
    places: Arc<Semaphore>,
}

impl Default for CleanUps {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(CLIENT_CLEAN_UPS_MAX)) }
    }
}

impl CleanUps {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        // Without a runtime the process is about to end.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                work.await;
                drop(place);
            });
        }
    }
}

/// What a call leaves at shards until its caller has seen the end; by default nothing.
pub(super) trait Leftover: Default {
    /// What takes it back. A caller who is gone may come back by another node, unless it said that it does not want this.
    fn take_back<S: Shards>(self, api: &Api<S>, is_unwanted: bool) -> Vec<TakeBack>;
}

/// A command that is harmless to repeat, for the shard of a slot.
#[derive(Debug)]
pub(super) struct TakeBack {
    pub(super) slot: u16,
    pub(super) command: Command,
    pub(super) pause: Duration,
}

/// What the caller has not seen yet. Dropped in that state, it is taken back.
#[derive(Debug)]
pub(super) struct Unseen<S: Shards, L: Leftover> {
    api: Arc<Api<S>>,
    access: Arc<Access>,
    cancelled: Option<Arc<AtomicBool>>,
    pub(super) left: L,
}

impl<S: Shards, L: Leftover> Unseen<S, L> {
    pub(super) fn new(api: &Arc<Api<S>>, context: &Context, left: L) -> Self {
        let (access, cancelled) = (Arc::clone(&context.ask.access), context.cancelled.clone());
        Self { api: Arc::clone(api), access, cancelled, left }
    }

    /// The caller has its answer.
    pub(super) fn is_seen(&mut self) {
        self.left = L::default();
    }

    /// The command was refused, or not: nothing is left where nothing can have happened.
    pub(super) fn judge(&mut self, refusal: Option<&Refusal>) {
        if refusal.is_some_and(|refusal| refusal.reason().row().effect != RefusalEffect::Unknown) {
            self.is_seen();
        }
    }
}

impl<S: Shards, L: Leftover> Drop for Unseen<S, L> {
    fn drop(&mut self) {
        let is_unwanted = self.cancelled.as_ref().is_some_and(|told| told.load(Ordering::Relaxed));
        for take_back in std::mem::take(&mut self.left).take_back(&self.api, is_unwanted) {
            let (api, access) = (Arc::clone(&self.api), Arc::clone(&self.access));
            self.api.clean_ups.spawn(async move {
                let TakeBack { slot, command, pause } = take_back;
                sleep(pause).await;
                // What could not be taken back goes with its session or its lease.
                drop(api.repeat(slot, command, &access).await);
            });
        }
    }
}

impl Leftover for Option<CancelAcquire> {
    fn take_back<S: Shards>(self, _: &Api<S>, is_unwanted: bool) -> Vec<TakeBack> {
        let take_back = self.map(|mut cancel| TakeBack {
            slot: slot::of_locks(&cancel.namespace),
            pause: pause_before(cancel.call.as_mut(), is_unwanted),
            command: Command::CancelAcquire(cancel),
        });
        take_back.into_iter().collect()
    }
}

impl Leftover for Option<WithdrawBarrier> {
    fn take_back<S: Shards>(self, _: &Api<S>, is_unwanted: bool) -> Vec<TakeBack> {
        let take_back = self.map(|mut withdraw| TakeBack {
            slot: slot::of_locks(&withdraw.namespace),
            pause: pause_before(withdraw.call.as_mut(), is_unwanted),
            command: Command::WithdrawBarrier(withdraw),
        });
        take_back.into_iter().collect()
    }
}

impl<S: Shards> Api<S> {
    /// Has a call carried out that waits or acquires, and leaves neither a waiter nor a grant behind that nobody knows of.
    pub(super) async fn acquiring(
        self: &Arc<Self>,
        context: &Context,
        call: CallName,
        command: Command,
        cancel: CancelAcquire,
    ) -> Result<Decided, Refusal> {
        let slot = slot::of_locks(&cancel.namespace);
        let cancel = CancelAcquire { call: Some(call.clone()), ..cancel };
        let mut unseen = Unseen::new(self, context, Some(cancel));
        let decided = self.called(slot, call, command, &context.ask).await;
        match &decided {
            Ok(_) => unseen.is_seen(),
            Err(refusal) => unseen.judge(Some(refusal)),
        }
        decided
    }

    /// Has a command applied that is harmless to repeat, and tries for as long as that can help.
    pub(super) async fn repeat(
        &self,
        slot: u16,
        command: Command,
        access: &Arc<Access>,
    ) -> Result<answer::Answer, Refusal> {
        let deadline = Instant::now() + REPEAT_TIME;
        let ask = CallContext { access: Arc::clone(access), deadline, fingerprint: 0 };
        let decided = repeat(deadline, || self.command(slot, None, command.clone(), &ask)).await?;
        Ok(decided.answer)
    }
}

/// What cancels a call that acquires, but for the name of that call.
pub(super) fn cancel_of(namespace: &str, session_id: u64, name: &str) -> CancelAcquire {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    CancelAcquire { namespace, session_id, name, ..CancelAcquire::default() }
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
fn pause_before(call: Option<&mut CallName>, is_unwanted: bool) -> Duration {
    match call.and_then(|call| call.request_id.as_mut()) {
        Some(id) if is_unwanted => {
            // No later attempt is to be spared.
            id.attempt = u32::MAX;
            Duration::ZERO
        }
        Some(_) => COME_BACK,
        None => Duration::ZERO,
    }
}
