//! KeepAliveStream: renews a session with each message of its client, and tells what becomes of it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tonic::{Status, Streaming};
use trefoil_core::check::{Check as _, invalid};
use trefoil_core::limits::{CALL_TIMEOUT_MS, JEOPARDY_MS, REQUEST_BYTES_MAX};
use trefoil_core::machine::Body;
use trefoil_core::{ShardId, slot};
use trefoil_proto::common::v1::{Reason, ResponseHeader};
use trefoil_proto::internal::v1::answer::Answer;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::internal::v1::{FindReleaseRequests, Refusal};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::lock::v1::keep_alive_stream_response::News;

use super::server_stream::{ServerStream, StreamCaller, StreamSender};
use super::{Api, CallContext, Decided, Shards, expect_answer, other_answer, refusal};
use crate::authorize::{Access, Resource};
use crate::layer::unreadable;
use crate::watch::{Cursor, Filter, Follower, Seen, Tip, Topic};

/// How often a stream looks whether its shard has a leader.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between two looks whether a session that was not renewed here lives.
const CHECK_MIN: Duration = Duration::from_millis(250);
const CHECK_MAX: Duration = Duration::from_secs(60);

type Messages = Streaming<lock::KeepAliveStreamRequest>;
type Renewed = Result<lock::KeepAliveResponse, Refusal>;
type Renewal = Pin<Box<dyn Future<Output = (Instant, Renewed)> + Send>>;

/// One session stream.
struct SessionKeeper<S> {
    api: Arc<Api<S>>,
    access: Arc<Access>,
    shard: ShardId,
    namespace: String,
    session_id: u64,
    sender: StreamSender<lock::KeepAliveStreamResponse>,
    /// What the session is asked for.
    follower: Follower,
    /// The renewal under way, and since when.
    renewal: Option<(Instant, Renewal)>,
    /// Messages that have come, and which of them the last renewal answers.
    messages: u64,
    answers: u64,
    is_in_jeopardy: bool,
    /// When to look whether the session still lives.
    check: Instant,
}

/// What is to be done next.
enum Next {
    Message(Option<lock::KeepAliveStreamRequest>),
    Renewed(Instant, Renewed),
    Late,
    Asked(Vec<Seen>),
    /// The requests since are no longer here.
    Missed,
    Check,
    Look,
}

impl<S: Shards> Api<S> {
    pub(super) async fn keep_alive_stream(
        self: &Arc<Self>,
        caller: StreamCaller,
        mut messages: Messages,
    ) -> Result<ServerStream<lock::KeepAliveStreamResponse>, Refusal> {
        let deadline = Instant::now() + Duration::from_millis(CALL_TIMEOUT_MS);
        let mut first = match timeout_at(deadline, messages.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(Err(status)) => {
                let gone = || invalid("session_id", "in a first message");
                return Err(unread(&status).unwrap_or_else(gone));
            }
            Ok(Ok(None)) | Err(_) => {
                return Err(invalid("session_id", "in a first message, within 10 s"));
            }
        };
        first.check()?;
        let lock::KeepAliveStreamRequest { namespace, session_id } = first;
        let ask = self.begin(&caller, Resource::Namespace(&namespace))?;
        let shard = self.shard(slot::of_locks(&namespace));
        let (requests, index) = self.release_requests(&namespace, session_id, &ask).await?;
        let topic = Topic::Session { namespace: namespace.clone(), id: session_id };
        let filter = Filter { topic, prefix: String::new() };
        let follower = self.follow(shard, filter, Cursor::after(index), &ask).await?;
        let api = Arc::clone(self);
        Ok(self.tell(|sender| async move {
            let _permit = caller.permit;
            let mut keeper = SessionKeeper {
                api,
                access: ask.access,
                shard,
                namespace,
                session_id,
                sender,
                follower,
                renewal: None,
                messages: 1,
                answers: 0,
                is_in_jeopardy: false,
                check: Instant::now() + CHECK_MAX,
            };
            keeper.renew();
            for request in requests {
                keeper.say(News::ReleaseRequested(request)).await?;
            }
            keeper.run(messages).await
        }))
    }

    /// What a session was asked to release, and the index at which that is so.
    async fn release_requests(
        &self,
        namespace: &str,
        session_id: u64,
        ask: &CallContext,
    ) -> Result<(Vec<lock::ReleaseAsked>, u64), Refusal> {
        let (slot, namespace) = (slot::of_locks(namespace), namespace.to_owned());
        let mut find = FindReleaseRequests { namespace, session_id, after: String::new() };
        let (mut requests, mut first) = (Vec::new(), None);
        loop {
            let query = Query::FindReleaseRequests(find.clone());
            let Decided { header, answer } = self.query(slot, query, ask).await?;
            let Answer::ReleaseRequests(found) = answer else { return Err(other_answer()) };
            // What is asked after the first page may be told again.
            let index = *first.get_or_insert(header.index);
            requests.extend(found.requests);
            if found.after.is_empty() {
                return Ok((requests, index));
            }
            find.after = found.after;
        }
    }
}

/// Why a message of the stream could not be read; none where the client is gone.
fn unread(status: &Status) -> Option<Refusal> {
    unreadable::refusal(status, "request", REQUEST_BYTES_MAX)
}

impl<S: Shards> SessionKeeper<S> {
    async fn run(mut self, mut messages: Messages) -> Result<(), Refusal> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_open = true;
        loop {
            let late = self.renewal.as_ref().map(|(since, _)| *since);
            let late = late.unwrap_or_else(Instant::now) + Duration::from_millis(JEOPARDY_MS);
            let is_renewing = self.renewal.is_some();
            let next = tokio::select! {
                message = messages.message(), if is_open => match message {
                    Ok(message) => Next::Message(message),
                    Err(status) => return unread(&status).map_or(Ok(()), Err),
                },
                (sent, renewed) = renewal(&mut self.renewal), if is_renewing => {
                    Next::Renewed(sent, renewed)
                }
                () = sleep_until(late), if is_renewing && !self.is_in_jeopardy => Next::Late,
                seen = self.follower.next() => seen.map_or(Next::Missed, Next::Asked),
                () = sleep_until(self.check), if !is_renewing => Next::Check,
                _ = looks.tick() => Next::Look,
                refusal = self.sender.stopped() => return Err(refusal),
            };
            let goes_on = match next {
                Next::Message(None) => {
                    is_open = false;
                    true
                }
                Next::Message(Some(message)) => self.message(message)?,
                Next::Renewed(sent, renewed) => self.renewed(sent, renewed).await?,
                Next::Late => self.jeopardy("the renewal is not answered yet").await?,
                Next::Asked(seen) => self.asked(seen).await?,
                Next::Missed => self.catch_up().await?,
                Next::Check => self.check().await?,
                Next::Look if self.api.shards.leader(self.shard).is_none() => {
                    self.jeopardy("this node knows no leader of the shard").await?
                }
                Next::Look => true,
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    fn message(&mut self, mut message: lock::KeepAliveStreamRequest) -> Result<bool, Refusal> {
        message.check()?;
        if message.session_id != self.session_id || message.namespace != self.namespace {
            return Err(invalid("session_id", "that of the first message"));
        }
        self.messages += 1;
        if self.renewal.is_none() {
            self.renew();
        }
        Ok(true)
    }

    fn renew(&mut self) {
        let (api, ask, now) = (Arc::clone(&self.api), self.ask(), Instant::now());
        let (namespace, session_id) = (self.namespace.clone(), self.session_id);
        let renewal = Box::pin(async move {
            let slot = slot::of_locks(&namespace);
            let renew = Command::KeepAlive(lock::KeepAliveRequest { namespace, session_id });
            let renewed = api.command(slot, None, renew, &ask).await;
            (now, renewed.and_then(|decided| expect_answer!(decided, KeepAlive)))
        });
        self.renewal = Some((now, renewal));
        self.answers = self.messages;
    }

    fn ask(&self) -> CallContext {
        let deadline = Instant::now() + Duration::from_millis(CALL_TIMEOUT_MS);
        CallContext { access: Arc::clone(&self.access), deadline, fingerprint: 0 }
    }

    async fn renewed(&mut self, sent: Instant, renewed: Renewed) -> Result<bool, Refusal> {
        self.renewal = None;
        let goes_on = match renewed {
            Ok(lock::KeepAliveResponse { header, remaining_ms }) => {
                self.is_in_jeopardy = false;
                self.check = sent + Duration::from_millis(remaining_ms).max(CHECK_MIN);
                let safe = lock::SessionSafe { remaining_ms, message: self.answers };
                let safe = News::Safe(safe);
                self.say_at(header.unwrap_or_default(), safe).await?;
                true
            }
            Err(refusal) if refusal.reason() == Reason::SessionExpired => self.expired().await?,
            Err(refusal) => {
                self.check = Instant::now() + CHECK_MIN;
                self.jeopardy(&refusal.message).await?
            }
        };
        // Others have come while it was under way.
        if goes_on && self.answers < self.messages {
            self.renew();
        }
        Ok(goes_on)
    }

    /// ServerStream once until the next renewal.
    async fn jeopardy(&mut self, cause: &str) -> Result<bool, Refusal> {
        if !std::mem::replace(&mut self.is_in_jeopardy, true) {
            let cause = cause.to_owned();
            self.say(News::Jeopardy(lock::SessionJeopardy { cause })).await?;
        }
        Ok(true)
    }

    async fn expired(&mut self) -> Result<bool, Refusal> {
        self.say(News::Expired(lock::SessionExpired {})).await?;
        Ok(false)
    }

    async fn asked(&mut self, seen: Vec<Seen>) -> Result<bool, Refusal> {
        for seen in seen {
            let Body::Lock(event) = &seen.event().body;
            let Tip { index, log_time_ms, .. } = seen.tip();
            let request = lock::ReleaseAsked {
                name: event.name.clone(),
                fencing_token: event.fencing_token,
                mode: event.mode,
                requester: event.requester.clone(),
                reason: event.reason.clone(),
                index,
                log_time_ms,
            };
            self.say_at(self.api.header(self.shard, seen.tip()), News::ReleaseRequested(request))
                .await?;
        }
        Ok(true)
    }

    /// Tells what the session is asked for, and follows from there.
    async fn catch_up(&mut self) -> Result<bool, Refusal> {
        let ask = self.ask();
        let found = self.api.release_requests(&self.namespace, self.session_id, &ask).await;
        let (requests, index) = match found {
            Ok(found) => found,
            Err(refusal) if refusal.reason() == Reason::SessionExpired => {
                return self.expired().await;
            }
            Err(refusal) => return Err(refusal),
        };
        let topic = Topic::Session { namespace: self.namespace.clone(), id: self.session_id };
        let filter = Filter { topic, prefix: String::new() };
        self.follower = self.api.follow(self.shard, filter, Cursor::after(index), &ask).await?;
        for request in requests {
            self.say(News::ReleaseRequested(request)).await?;
        }
        Ok(true)
    }

    /// Nothing was renewed here for so long that the session may be over.
    async fn check(&mut self) -> Result<bool, Refusal> {
        let (namespace, session_id) = (self.namespace.clone(), self.session_id);
        let find = FindReleaseRequests { namespace, session_id, after: String::new() };
        let query = Query::FindReleaseRequests(find);
        let found = self.api.query(slot::of_locks(&self.namespace), query, &self.ask()).await;
        let pause = match found {
            Ok(_) => LOOK,
            Err(refusal) if refusal.reason() == Reason::SessionExpired => {
                return self.expired().await;
            }
            Err(refusal) => {
                self.jeopardy(&refusal.message).await?;
                CHECK_MIN
            }
        };
        self.check = Instant::now() + pause.min(CHECK_MAX);
        Ok(true)
    }

    async fn say(&mut self, news: News) -> Result<(), Refusal> {
        let header = self.api.header(self.shard, self.api.shards.feeds().tip(self.shard));
        self.say_at(header, news).await
    }

    async fn say_at(&mut self, header: ResponseHeader, news: News) -> Result<(), Refusal> {
        let session_id = self.session_id;
        self.sender
            .say(lock::KeepAliveStreamResponse {
                header: Some(header),
                session_id,
                news: Some(news),
            })
            .await
    }
}

/// The end of the renewal under way.
async fn renewal(renewal: &mut Option<(Instant, Renewal)>) -> (Instant, Renewed) {
    match renewal {
        Some((_, renewal)) => renewal.await,
        None => (Instant::now(), Err(refusal(Reason::Internal, "no renewal is under way"))),
    }
}
