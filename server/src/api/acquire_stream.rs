//! AcquireStream: an Acquire that tells its place in line while it waits.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use trefoil_core::check::Check as _;
use trefoil_core::limits::{CALL_TIMEOUT_MS, PLACE_PAUSE_MS, PLACE_PAUSE_PER_WAITER_MS};
use trefoil_core::{ShardId, slot};
use trefoil_proto::internal::v1::answer::Answer;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::internal::v1::{CallName, CancelAcquire, FindPlace, Refusal};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::lock::v1::acquire_stream_response::Step;

use super::clean_up::{Unseen, name_call};
use super::lock::cancel_acquire;
use super::operation::Operation;
use super::server_stream::{ServerStream, StreamCaller, StreamSender};
use super::{Api, Context, Decided, Shards, answer_within, fingerprint, other_answer};
use crate::authorize::Resource;
use crate::watch::{Cursor, Filter, Follower, Topic};

/// Time that a call has to be granted at once, before anybody asks for its place.
const FIRST_LOOK: Duration = Duration::from_millis(50);

/// Looks at the place of one call.
struct Looks<S> {
    api: Arc<Api<S>>,
    shard: ShardId,
    find: FindPlace,
    /// Wakes when something happens to the lock, of several to the one before which most stand.
    follower: Option<Follower>,
    /// What was told last, and when the next look may be.
    told: Option<(u64, bool)>,
    next: Instant,
}

impl<S: Shards> Api<S> {
    #[allow(clippy::unused_async, reason = "every stream is begun alike")]
    pub(super) async fn acquire_stream(
        self: &Arc<Self>,
        caller: StreamCaller,
        mut request: lock::AcquireStreamRequest,
    ) -> Result<ServerStream<lock::AcquireStreamResponse>, Refusal> {
        request.check()?;
        let acquire = request.acquire.unwrap_or_default();
        let resource = Resource::of_locks(&acquire.namespace, &acquire.name, &acquire.locks);
        let mut ask = self.begin(&caller, resource)?;
        let longest = Duration::from_millis(CALL_TIMEOUT_MS + acquire.wait_ms);
        ask.deadline = Instant::now() + answer_within(caller.timeout, longest);
        ask.fingerprint = fingerprint::of(&mut Operation::Acquire(acquire.clone()));
        let waiting = self.admission.wait(&caller.permit)?;
        let context = Context { ask, cancelled: None, fence: None };
        let api = Arc::clone(self);
        Ok(self.tell(|sender| async move {
            let _places = (waiting, caller.permit);
            api.acquire_and_tell(&context, acquire, sender).await
        }))
    }

    async fn acquire_and_tell(
        self: Arc<Self>,
        context: &Context,
        mut request: lock::AcquireRequest,
        mut sender: StreamSender<lock::AcquireStreamResponse>,
    ) -> Result<(), Refusal> {
        let call = name_call(request.request_id.take());
        let mut looks = Looks::new(&self, &request, &call);
        let cancel = CancelAcquire { call: Some(call.clone()), ..cancel_acquire(&request) };
        let answer = {
            let mut acquire = pin!(self.acquire_as(context, request, call));
            loop {
                let place = tokio::select! {
                    answer = &mut acquire => break answer?,
                    place = looks.next(context) => place?,
                    refusal = sender.stopped() => return Err(refusal),
                };
                sender
                    .say(lock::AcquireStreamResponse { step: Some(Step::Waiting(place)) })
                    .await?;
            }
        };
        // A grant that the client did not take is withdrawn.
        let mut unseen = Unseen::new(&self, context, answer.acquired.then_some(cancel));
        sender.say(lock::AcquireStreamResponse { step: Some(Step::Answer(answer)) }).await?;
        if unseen.left.is_some() && sender.is_taken().await {
            unseen.is_seen();
        }
        Ok(())
    }
}

impl<S: Shards> Looks<S> {
    fn new(api: &Arc<Api<S>>, request: &lock::AcquireRequest, call: &CallName) -> Self {
        let find = FindPlace {
            namespace: request.namespace.clone(),
            session_id: request.session_id,
            name: request.name.clone(),
            call: Some(call.clone()),
            locks: request.locks.clone(),
        };
        let shard = api.shard(slot::of_locks(&find.namespace));
        let next = Instant::now() + FIRST_LOOK;
        Self { api: Arc::clone(api), shard, find, follower: None, told: None, next }
    }

    /// The next place that is another than before.
    async fn next(&mut self, context: &Context) -> Result<lock::WaitPlace, Refusal> {
        loop {
            self.changed().await;
            sleep_until(self.next).await;
            let query = Query::FindPlace(self.find.clone());
            let slot = slot::of_locks(&self.find.namespace);
            let Ok(decided) = self.api.query(slot, query, &context.ask).await else {
                // The Acquire itself says what is wrong; this is only a hint.
                sleep(Duration::from_millis(PLACE_PAUSE_MS)).await;
                continue;
            };
            let Decided { header, answer } = decided;
            let Answer::Place(place) = answer else { return Err(other_answer()) };
            let pause = PLACE_PAUSE_MS + PLACE_PAUSE_PER_WAITER_MS * place.ahead;
            self.next = Instant::now() + Duration::from_millis(pause);
            self.follow(place.name, header.index);
            if place.waits && self.told != Some((place.ahead, place.or_more)) {
                self.told = Some((place.ahead, place.or_more));
                let (ahead, or_more) = (place.ahead, place.or_more);
                return Ok(lock::WaitPlace { header: Some(header), ahead, or_more });
            }
        }
    }

    /// Waits until something has happened to the lock since the last look.
    async fn changed(&mut self) {
        if let Some(follower) = &mut self.follower {
            // Whether events are missing does not matter: any is a reason to look.
            follower.next().await.ok();
        }
    }

    fn follow(&mut self, name: String, index: u64) {
        let namespace = self.find.namespace.clone();
        let filter = Filter { topic: Topic::Name { namespace, name }, prefix: String::new() };
        self.follower =
            self.api.shards.feeds().follow(self.shard, filter, Cursor::after(index)).ok();
    }
}
