//! Observe: who leads an election, and each change of that.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trefoil_core::check::Check as _;
use trefoil_core::limits::{CALL_TIMEOUT_MS, WATCH_PROGRESS_MS};
use trefoil_core::slot;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::lock::v1 as lock;

use super::server_stream::{OpenStream, ServerStream, StreamCaller, StreamSender};
use super::{Api, CallContext, Shards, expect_answer};
use crate::authorize::Resource;
use crate::watch::{Cursor, Filter, Follower, Topic};

impl<S: Shards> Api<S> {
    pub(super) async fn observe(
        self: &Arc<Self>,
        caller: StreamCaller,
        mut request: lock::ObserveRequest,
    ) -> Result<ServerStream<lock::ObserveResponse>, Refusal> {
        request.check()?;
        let lock::ObserveRequest { namespace, name } = request;
        let resource = Resource::Lock { namespace: &namespace, name: &name };
        let ask = self.begin(&caller, resource)?;
        let query = lock::LeaderRequest { namespace, name };
        let first = self.look(&ask, &query).await?;
        let api = Arc::clone(self);
        let open = OpenStream::new(self.metrics.own.watchers.clone());
        Ok(self.tell(|sender| async move {
            let _places = (open, caller.permit);
            api.observe_on(ask, query, first, sender).await
        }))
    }

    /// Tells what it has seen, waits until something has happened to the lock, and looks again. What did not change is
    /// told once in a while, so that the client knows that the stream lives.
    async fn observe_on(
        self: Arc<Self>,
        mut ask: CallContext,
        query: lock::LeaderRequest,
        mut seen: lock::ObserveResponse,
        mut sender: StreamSender<lock::ObserveResponse>,
    ) -> Result<(), Refusal> {
        let mut told = None;
        let silence = Duration::from_millis(WATCH_PROGRESS_MS);
        loop {
            let index = seen.header.as_ref().map_or(0, |header| header.index);
            let leader = seen.leader.as_ref();
            let news = leader.map(|leader| (leader.fencing_token, leader.value.clone()));
            let is_told = told
                .as_ref()
                .is_some_and(|(said, at): &(_, Instant)| *said == news && at.elapsed() < silence);
            if !is_told {
                sender.say(seen).await?;
                told = Some((news, Instant::now()));
            }
            ask.deadline = Instant::now() + Duration::from_millis(CALL_TIMEOUT_MS);
            let mut follower = self.follow_lock(&query, index, &ask).await?;
            tokio::select! {
                // Whether events are missing does not matter: any is a reason to look.
                _ = follower.next() => {}
                () = sleep(silence) => {}
                refusal = sender.stopped() => return Err(refusal),
            }
            ask.deadline = Instant::now() + Duration::from_millis(CALL_TIMEOUT_MS);
            seen = self.look(&ask, &query).await?;
        }
    }

    async fn look(
        &self,
        ask: &CallContext,
        query: &lock::LeaderRequest,
    ) -> Result<lock::ObserveResponse, Refusal> {
        let slot = slot::of_locks(&query.namespace);
        let decided = self.query(slot, Query::Leader(query.clone()), ask).await?;
        let lock::LeaderResponse { header, leader } = expect_answer!(decided, Leader)?;
        Ok(lock::ObserveResponse { header, leader })
    }

    async fn follow_lock(
        &self,
        query: &lock::LeaderRequest,
        index: u64,
        ask: &CallContext,
    ) -> Result<Follower, Refusal> {
        let lock::LeaderRequest { namespace, name } = query.clone();
        let shard = self.shard(slot::of_locks(&namespace));
        let filter = Filter { topic: Topic::Name { namespace, name }, prefix: String::new() };
        self.follow(shard, filter, Cursor::after(index), ask).await
    }
}
