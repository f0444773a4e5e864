//! Watches: what happens to something, in the order of the log, from this node's own applied entries.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use trefoil_core::check::{Check as _, invalid};
use trefoil_core::limits::{WATCH_LEADERLESS_MS, WATCH_PROGRESS_MS};
use trefoil_core::machine::Body;
use trefoil_core::{ShardId, slot};
use trefoil_proto::common::v1::{Reason, ResponseHeader, WatchPosition};
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::lock::v1 as lock;

use super::server_stream::{OpenStream, ServerStream, StreamCaller, StreamSender};
use super::{Api, CallContext, Shards, refusal};
use crate::authorize::Resource;
use crate::layer::admission::AdmissionPermit;
use crate::metrics::WatchEnd;
use crate::watch::{Cursor, Filter, Follower, Gone, Seen, Tip, Topic};

/// How often a watch looks whether its shard has a leader.
const LOOK: Duration = Duration::from_secs(1);

/// A watch that runs.
struct OpenWatch<S, R> {
    api: Arc<Api<S>>,
    shard: ShardId,
    follower: Follower,
    respond: fn(ResponseHeader, Vec<Seen>, WatchPosition) -> R,
    _open: OpenStream,
    _permit: Arc<AdmissionPermit>,
}

impl<S: Shards> Api<S> {
    pub(super) async fn watch_locks(
        self: &Arc<Self>,
        caller: StreamCaller,
        mut request: lock::WatchLocksRequest,
    ) -> Result<ServerStream<lock::WatchLocksResponse>, Refusal> {
        request.check()?;
        let lock::WatchLocksRequest { namespace, name, prefix, after } = request.clone();
        let resource = if name.is_empty() {
            Resource::Namespace(&namespace)
        } else {
            Resource::Lock { namespace: &namespace, name: &name }
        };
        let ask = self.begin(&caller, resource)?;
        let slot = slot::of_locks(&namespace);
        let topic = if name.is_empty() {
            Topic::Namespace(namespace)
        } else {
            Topic::Name { namespace, name }
        };
        // Even where a position is given: only the shard knows whether that is one, and a node that is cut off must not
        // take a watch.
        let now = self.query(slot, Query::WatchLocks(request), &ask).await?.header.index;
        let cursor = self.begins_after(self.shard(slot), after, now)?;
        let filter = Filter { topic, prefix };
        let follower = self.follow(self.shard(slot), filter, cursor, &ask).await?;
        Ok(self.watch(caller, self.shard(slot), follower, locks_response))
    }

    /// Waits until this node has applied what the watcher has seen, and follows from there.
    pub(super) async fn follow(
        &self,
        shard: ShardId,
        filter: Filter,
        after: Cursor,
        ask: &CallContext,
    ) -> Result<Follower, Refusal> {
        let feeds = self.shards.feeds();
        timeout_at(ask.deadline, feeds.reached(shard, after.index)).await.map_err(|_| {
            refusal(
                Reason::DeadlinePassed,
                "this node has not yet applied what the watch begins after",
            )
        })?;
        feeds.follow(shard, filter, after).map_err(|gone| {
            self.metrics.watch_ended(WatchEnd::Compacted);
            compacted(gone)
        })
    }

    fn watch<R: Send + 'static>(
        self: &Arc<Self>,
        caller: StreamCaller,
        shard: ShardId,
        follower: Follower,
        respond: fn(ResponseHeader, Vec<Seen>, WatchPosition) -> R,
    ) -> ServerStream<R> {
        let watch = OpenWatch {
            api: Arc::clone(self),
            shard,
            follower,
            respond,
            _open: OpenStream::new(self.metrics.own.watchers.clone()),
            _permit: caller.permit,
        };
        self.tell(|sender| watch.run(sender))
    }

    /// Where a watch begins: after a position that there is in this shard, or after everything up to now.
    fn begins_after(
        &self,
        here: ShardId,
        after: Option<WatchPosition>,
        now: u64,
    ) -> Result<Cursor, Refusal> {
        let own = self.cluster_id();
        if own.is_empty() {
            // A position that is told must name the cluster.
            return Err(refusal(Reason::NoQuorum, "the cluster is not formed yet"));
        }
        let Some(WatchPosition { index, ordinal, shard, cluster_id }) = after else {
            return Ok(Cursor::after(now));
        };
        if cluster_id != own {
            let limit = format_args!("{own}, the cluster that is asked");
            return Err(invalid("after.cluster_id", limit));
        }
        if shard != here {
            let limit = format_args!("{here}, the shard of what is watched");
            return Err(invalid("after.shard", limit));
        }
        if index > now {
            let limit = format_args!("at most {now}, where the shard is now");
            return Err(invalid("after.index", limit));
        }
        Ok(Cursor { index, ordinal })
    }

    /// The header of something that this node tells by itself.
    pub(super) fn header(&self, shard: ShardId, tip: Tip) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id(),
            node_id: self.shards.node_id(),
            shard,
            term: tip.term,
            index: tip.index,
            log_time_ms: tip.log_time_ms,
        }
    }
}

impl<S: Shards, R: Send + 'static> OpenWatch<S, R> {
    async fn run(mut self, mut sender: StreamSender<R>) -> Result<(), Refusal> {
        sender.say(self.response(Vec::new())).await?;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut led) = (Instant::now(), Instant::now());
        loop {
            let seen = tokio::select! {
                seen = self.follower.next() => seen,
                refusal = sender.stopped() => return Err(refusal),
                _ = looks.tick() => {
                    if self.api.shards.leader(self.shard).is_some() {
                        led = Instant::now();
                    } else if led.elapsed() >= Duration::from_millis(WATCH_LEADERLESS_MS) {
                        self.api.metrics.watch_ended(WatchEnd::Leaderless);
                        return Err(refusal(Reason::NoQuorum, "this node knows no leader of the shard"));
                    }
                    if told.elapsed() < Duration::from_millis(WATCH_PROGRESS_MS) {
                        continue;
                    }
                    self.follower.take().map(|(seen, _)| seen)
                }
            };
            let seen = seen.map_err(|gone| self.ended(gone))?;
            self.api.metrics.own.watch_events.inc_by(seen.len() as u64);
            let response = self.response(seen);
            sender.say(response).await?;
            told = Instant::now();
        }
    }

    fn response(&self, seen: Vec<Seen>) -> R {
        let position = self.follower.cursor();
        let tip = match seen.last() {
            Some(last) => last.tip(),
            None => self.api.shards.feeds().tip(self.shard),
        };
        let header = self.api.header(self.shard, Tip { index: position.index, ..tip });
        let cluster_id = self.api.cluster_id();
        let Cursor { index, ordinal } = position;
        let position = WatchPosition { index, ordinal, shard: self.shard, cluster_id };
        (self.respond)(header, seen, position)
    }

    fn ended(&self, gone: Gone) -> Refusal {
        if !gone.was_slow {
            self.api.metrics.watch_ended(WatchEnd::Compacted);
            return compacted(gone);
        }
        self.api.metrics.watch_ended(WatchEnd::Behind);
        let message = "the watcher read too slowly: what comes next is gone from this node";
        lost(Reason::WatcherBehind, message, gone)
    }
}

fn compacted(gone: Gone) -> Refusal {
    let message = "this node no longer has all that happened after the position";
    lost(Reason::PositionCompacted, message, gone)
}

fn lost(reason: Reason, message: &str, gone: Gone) -> Refusal {
    let mut refusal = refusal(reason, message);
    refusal.metadata.insert("index".to_owned(), gone.after.index.to_string());
    refusal.metadata.insert("oldest".to_owned(), gone.oldest.to_string());
    refusal
}

fn locks_response(
    header: ResponseHeader,
    seen: Vec<Seen>,
    position: WatchPosition,
) -> lock::WatchLocksResponse {
    let events = seen.iter().map(|seen| {
        let Body::Lock(event) = &seen.event().body;
        let Tip { index, log_time_ms, .. } = seen.tip();
        lock::LockEvent { index, ordinal: seen.ordinal, log_time_ms, ..event.clone() }
    });
    let events = events.collect();
    lock::WatchLocksResponse { header: Some(header), events, position: Some(position) }
}
