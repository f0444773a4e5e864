//! SendQueue to one peer for shards that it leads: one stream, replies matched by id.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use trefoil_core::call::{Failure, ShardRequest, failure, unseen};
use trefoil_core::limits::{
    FORWARD_CALLS_MAX, FORWARD_CALLS_RESERVED, FORWARD_WAITING_MAX, PEER_FRAME_BYTES_MAX,
};
use trefoil_core::{NodeId, Position, ShardId};
use trefoil_proto::common::v1::{AdmissionClass, Reason};
use trefoil_proto::internal::v1::{
    Access, Answer, ForwardCall, ForwardReply, ForwardRequest, Refusal, answer, forward_call,
};

use super::dial::{self, Backoff, Dialler, Ended, GREETING_WAIT};
use crate::calls::context::{Answered, admission, refusal};
use crate::shared::clock;

/// Frames on their way to the transport.
const FRAMES: usize = 4;
/// SendQueue that a frame takes at most.
const FRAME_CALLS: usize = 1_024;

/// The calls to one peer.
#[derive(Debug, Default)]
pub(super) struct ForwardClient {
    state: Mutex<ForwardState>,
    last: AtomicU64,
    /// When the peer was heard last, by the boot clock.
    heard_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct ForwardState {
    /// Where calls go; none while there is no stream.
    stream: Option<mpsc::Sender<ForwardItem>>,
    waiting: HashMap<u64, (oneshot::Sender<ForwardEnd>, AdmissionClass)>,
    /// Of these, those that wait at the leader.
    long: usize,
}

#[derive(Debug)]
enum ForwardItem {
    Call(Box<ForwardCall>),
    Cancel(u64),
    Claim(u64),
}

/// How a forwarded call ended.
#[derive(Debug)]
enum ForwardEnd {
    Reply(Box<ForwardReply>),
    /// The stream was lost before the call left.
    NotSent,
}

impl ForwardState {
    /// SendQueue that wait leave room for those that end their wait, and all of them for what keeps sessions alive.
    fn has_room(&self, class: AdmissionClass) -> bool {
        let most = match class {
            AdmissionClass::Reserved => FORWARD_CALLS_MAX,
            _ => FORWARD_CALLS_MAX - FORWARD_CALLS_RESERVED,
        };
        self.waiting.len() < most
            && (class != AdmissionClass::Waiting || self.long < FORWARD_WAITING_MAX)
    }

    fn take(&mut self, id: u64) -> Option<oneshot::Sender<ForwardEnd>> {
        let (sender, class) = self.waiting.remove(&id)?;
        self.long -= usize::from(class == AdmissionClass::Waiting);
        Some(sender)
    }
}

/// A call that waits; given up when it is dropped.
struct PendingForward<'a> {
    forward: &'a ForwardClient,
    id: u64,
}

impl Drop for PendingForward<'_> {
    fn drop(&mut self) {
        let mut state = self.forward.lock();
        if state.take(self.id).is_some()
            && let Some(stream) = &state.stream
        {
            // Where there is no room, the call ends by its own deadline.
            drop(stream.try_send(ForwardItem::Cancel(self.id)));
        }
    }
}

impl ForwardClient {
    fn lock(&self) -> MutexGuard<'_, ForwardState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the peer once. A call that did not leave did not happen; one whose stream is lost may have.
    pub(super) async fn ask(
        &self,
        peer: NodeId,
        shard: ShardId,
        work: ShardRequest,
        access: &Access,
        deadline_ms: u64,
    ) -> Result<Answered, (Refusal, Failure)> {
        let class = admission(&work);
        let (is_command, call) = match work {
            ShardRequest::Command(command) => (true, forward_call::Call::Command(command)),
            ShardRequest::Query(query) => (false, forward_call::Call::Query(query)),
        };
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let timeout_ms = deadline_ms.saturating_sub(clock::boot_ms());
        let access = Some(access.clone());
        let call = ForwardCall { id, shard, timeout_ms, call: Some(call), access };
        let receiver = self.begin(call, class)?;
        let _waiting = PendingForward { forward: self, id };
        match receiver.await {
            Ok(ForwardEnd::Reply(reply)) => open(peer, shard, *reply),
            Ok(ForwardEnd::NotSent) => Err(away()),
            Err(_) if is_command => Err(unseen(true)),
            Err(_) => Err(away()),
        }
    }

    /// When the peer gave its last sign of life.
    pub(super) fn heard_ms(&self) -> u64 {
        self.heard_ms.load(Ordering::Relaxed)
    }

    fn hears(&self) {
        self.heard_ms.store(clock::boot_ms(), Ordering::Relaxed);
    }

    fn begin(
        &self,
        call: ForwardCall,
        class: AdmissionClass,
    ) -> Result<oneshot::Receiver<ForwardEnd>, (Refusal, Failure)> {
        let mut state = self.lock();
        let Some(stream) = &state.stream else { return Err(away()) };
        let full = || {
            (
                refusal(
                    Reason::Overloaded,
                    "too many calls are on their way to the shard's leader",
                ),
                Failure::Final,
            )
        };
        let (sender, receiver) = oneshot::channel();
        let id = call.id;
        if !state.has_room(class) {
            return Err(full());
        }
        match stream.try_send(ForwardItem::Call(Box::new(call))) {
            Ok(()) => (),
            Err(mpsc::error::TrySendError::Full(_)) => return Err(full()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(away()),
        }
        state.long += usize::from(class == AdmissionClass::Waiting);
        state.waiting.insert(id, (sender, class));
        Ok(receiver)
    }

    fn open(&self, stream: mpsc::Sender<ForwardItem>) {
        self.lock().stream = Some(stream);
    }

    /// The leader has a grant for a call: asks for it where the caller is still there.
    fn offered(&self, id: u64) {
        let state = self.lock();
        if state.waiting.contains_key(&id)
            && let Some(stream) = &state.stream
        {
            // Where there is no room, the leader takes the grant back and the call is tried again.
            drop(stream.try_send(ForwardItem::Claim(id)));
        }
    }

    fn end(&self, id: u64, end: ForwardEnd) {
        let waiting = self.lock().take(id);
        if let Some(sender) = waiting {
            // A caller that has gone away wants no answer.
            drop(sender.send(end));
        }
    }

    /// The stream is gone: what had not left did not happen, the rest ends unseen.
    fn close(&self, items: &mut mpsc::Receiver<ForwardItem>) {
        self.lock().stream = None;
        items.close();
        while let Ok(item) = items.try_recv() {
            if let ForwardItem::Call(call) = item {
                self.end(call.id, ForwardEnd::NotSent);
            }
        }
        let mut state = self.lock();
        state.waiting.clear();
        state.long = 0;
    }
}

fn away() -> (Refusal, Failure) {
    (
        refusal(Reason::NotLeader, "the leader of the shard cannot be reached from this node"),
        Failure::Definite,
    )
}

/// A reply without an index was decided by no state machine.
fn open(peer: NodeId, shard: ShardId, reply: ForwardReply) -> Result<Answered, (Refusal, Failure)> {
    let ForwardReply { term, index, log_time_ms, answer, ordinal, .. } = reply;
    match answer.and_then(|answer| answer.answer) {
        Some(answer::Answer::Refusal(refusal)) => {
            let failure = if index == 0 { failure(refusal.reason()) } else { Failure::Final };
            Err((refusal, failure))
        }
        Some(answer) => {
            let position = Position { term, index, ordinal, log_time_ms };
            Ok(Answered { node: peer, shard, position, answer: Answer { answer: Some(answer) } })
        }
        None => Err((
            refusal(Reason::Internal, "the leader's answer is of another version"),
            Failure::Final,
        )),
    }
}

/// Keeps a stream to the peer for ever.
pub(super) async fn keep(dialler: Dialler, forward: Arc<ForwardClient>) {
    let mut backoff = Backoff::new();
    loop {
        let (sender, items) = mpsc::channel(FORWARD_CALLS_MAX);
        let mut calls = SendQueue { forward: &forward, items };
        let ended = talk(&dialler, sender, &mut calls, &mut backoff).await;
        drop(calls);
        dialler.note("forward", &ended.err().unwrap_or_else(hung_up), &backoff);
        dialler.pause(&mut backoff).await;
    }
}

/// What is to be sent. Dropped, its calls end, also where the runtime ends under them.
struct SendQueue<'a> {
    forward: &'a ForwardClient,
    items: mpsc::Receiver<ForwardItem>,
}

impl Drop for SendQueue<'_> {
    fn drop(&mut self) {
        self.forward.close(&mut self.items);
    }
}

fn hung_up() -> Ended {
    Ended::Away("the peer hung up".to_owned())
}

async fn talk(
    dialler: &Dialler,
    sender: mpsc::Sender<ForwardItem>,
    calls: &mut SendQueue<'_>,
    backoff: &mut Backoff,
) -> Result<(), Ended> {
    let mut client = dial::connect(&dialler.address).await?;
    let (frames, receiver) = mpsc::channel(FRAMES);
    let greeting = Some(dialler.introductions.greeting(dialler.peer));
    frames
        .send(ForwardRequest { greeting, ..ForwardRequest::default() })
        .await
        .map_err(|_| hung_up())?;
    let mut answers =
        timeout(GREETING_WAIT, client.forward(ReceiverStream::new(receiver))).await??.into_inner();
    let SendQueue { forward, items } = calls;
    forward.hears();
    forward.open(sender);
    dialler.note_open("forward");
    backoff.reset();
    loop {
        tokio::select! {
            answer = answers.message() => {
                let Some(answer) = answer? else { return Ok(()) };
                forward.hears();
                for reply in answer.replies {
                    if reply.offer {
                        forward.offered(reply.id);
                    } else {
                        forward.end(reply.id, ForwardEnd::Reply(Box::new(reply)));
                    }
                }
            }
            next = next(&frames, items) => {
                let (permit, item) = next.ok_or_else(hung_up)?;
                permit.send(frame(item, items));
            }
        }
    }
}

/// Room for a frame first, then a call for it: a call that waits for room has not left.
async fn next<'a>(
    frames: &'a mpsc::Sender<ForwardRequest>,
    items: &mut mpsc::Receiver<ForwardItem>,
) -> Option<(mpsc::Permit<'a, ForwardRequest>, ForwardItem)> {
    let permit = frames.reserve().await.ok()?;
    Some((permit, items.recv().await?))
}

/// Gathers what waits: [`PEER_FRAME_BYTES_MAX`] before the last call.
fn frame(first: ForwardItem, items: &mut mpsc::Receiver<ForwardItem>) -> ForwardRequest {
    let mut request = ForwardRequest::default();
    let mut bytes = put(&mut request, first);
    while bytes < PEER_FRAME_BYTES_MAX
        && request.calls.len() + request.cancel.len() + request.claims.len() < FRAME_CALLS
        && let Ok(item) = items.try_recv()
    {
        bytes += put(&mut request, item);
    }
    request
}

fn put(request: &mut ForwardRequest, item: ForwardItem) -> usize {
    match item {
        ForwardItem::Call(call) => {
            let bytes = call.encoded_len();
            request.calls.push(*call);
            bytes
        }
        ForwardItem::Cancel(id) => {
            request.cancel.push(id);
            size_of::<u64>()
        }
        ForwardItem::Claim(id) => {
            request.claims.push(id);
            size_of::<u64>()
        }
    }
}

#[cfg(test)]
mod tests {
    use trefoil_proto::internal::v1::{Command, Done, Query};

    use super::*;

    async fn ask_once(
        forward: &ForwardClient,
        work: ShardRequest,
    ) -> Result<Answered, (Refusal, Failure)> {
        forward.ask(2, 1, work, &Access::default(), clock::boot_ms() + 5_000).await
    }

    fn command() -> ShardRequest {
        ShardRequest::Command(Command::default())
    }

    fn ask(
        forward: &Arc<ForwardClient>,
        work: ShardRequest,
    ) -> tokio::task::JoinHandle<Result<Answered, (Refusal, Failure)>> {
        let forward = Arc::clone(forward);
        tokio::spawn(async move { ask_once(&forward, work).await })
    }

    fn open_stream(forward: &ForwardClient) -> mpsc::Receiver<ForwardItem> {
        let (sender, items) = mpsc::channel(8);
        forward.open(sender);
        items
    }

    fn reason(end: Result<Answered, (Refusal, Failure)>) -> (Reason, Failure) {
        end.map_err(|(refusal, failure)| (refusal.reason(), failure)).expect_err("it was refused")
    }

    #[tokio::test]
    async fn what_left_may_have_happened_and_what_did_not_leave_did_not() {
        let forward = Arc::new(ForwardClient::default());
        let nobody = ask_once(&forward, command()).await;
        assert_eq!(reason(nobody), (Reason::NotLeader, Failure::Definite), "there is no stream");

        let mut items = open_stream(&forward);
        let (sent, read) =
            (ask(&forward, command()), ask(&forward, ShardRequest::Query(Query::default())));
        for _ in 0..2 {
            assert!(matches!(items.recv().await, Some(ForwardItem::Call(_))));
        }
        let unsent = ask(&forward, command());
        while items.is_empty() {
            tokio::task::yield_now().await;
        }
        forward.close(&mut items);
        assert_eq!(reason(sent.await.unwrap()), (Reason::MaybeApplied, Failure::Unknown));
        assert_eq!(reason(read.await.unwrap()), (Reason::NotLeader, Failure::Definite));
        assert_eq!(reason(unsent.await.unwrap()), (Reason::NotLeader, Failure::Definite));
    }

    /// Sends two calls and drops one: the other, the ids of both, and which was cancelled.
    async fn keep_one_of_two(
        forward: &Arc<ForwardClient>,
        items: &mut mpsc::Receiver<ForwardItem>,
    ) -> (tokio::task::JoinHandle<Result<Answered, (Refusal, Failure)>>, Vec<u64>, u64) {
        let (kept, dropped) = (ask(forward, command()), ask(forward, command()));
        let mut ids = Vec::new();
        for _ in 0..2 {
            let Some(ForwardItem::Call(call)) = items.recv().await else {
                panic!("a call is sent")
            };
            ids.push(call.id);
        }
        dropped.abort();
        let Some(ForwardItem::Cancel(cancelled)) = items.recv().await else {
            panic!("a cancel is sent")
        };
        (kept, ids, cancelled)
    }

    #[tokio::test]
    async fn a_grant_is_asked_for_only_where_its_caller_is_still_there() {
        let forward = Arc::new(ForwardClient::default());
        let mut items = open_stream(&forward);
        let (kept, ids, cancelled) = keep_one_of_two(&forward, &mut items).await;
        ids.iter().for_each(|id| forward.offered(*id));
        let Some(ForwardItem::Claim(claimed)) = items.recv().await else {
            panic!("a claim is sent")
        };
        assert!(claimed != cancelled && ids.contains(&claimed));
        assert!(items.is_empty() && !kept.is_finished(), "the answer comes after the claim");
    }

    #[tokio::test]
    async fn replies_find_their_calls_and_a_dropped_call_is_cancelled() {
        let forward = Arc::new(ForwardClient::default());
        let mut items = open_stream(&forward);
        let (kept, ids, cancelled) = keep_one_of_two(&forward, &mut items).await;
        let id = ids.into_iter().find(|id| *id != cancelled).unwrap();
        let answer = Some(answer::Answer::Done(Done {}).into());
        let reply =
            ForwardReply { id, term: 3, index: 20, ordinal: 4, answer, ..ForwardReply::default() };
        forward.end(id, ForwardEnd::Reply(Box::new(reply)));
        let answered = kept.await.unwrap().unwrap();
        assert_eq!((answered.node, answered.position.index, answered.position.ordinal), (2, 20, 4));
    }
}
