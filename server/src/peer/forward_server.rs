//! Calls that a peer forwarded to this node: asked here once, answered on the stream by which they came.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tonic::{Status, Streaming};
use trefoil_core::call::ShardRequest;
use trefoil_core::limits::{
    FORWARD_ALIVE_MS, FORWARD_CALLS_MAX, FORWARD_REPLY_BYTES_MAX, PEER_FRAME_BYTES_MAX,
};
use trefoil_core::replica::{Input, Reply};
use trefoil_core::{CallId, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{
    ForwardCall, ForwardReply, ForwardRequest, ForwardResponse, Refusal, forward_call,
};

use crate::authorize;
use crate::node::call_context::{admission, refusal};
use crate::node::calls::{Permit, Waiter};
use crate::node::clock;
use crate::node::shared::Shared;

/// Frames on their way to the transport.
const FRAMES: usize = 4;

/// The calls of one stream.
#[derive(Debug)]
pub(crate) struct ForwardServer {
    shared: Arc<Shared>,
    replies: mpsc::Sender<Outgoing>,
    /// Calls that were not answered yet, by the id that the peer gave them.
    open: Mutex<HashMap<u64, (ShardId, CallId)>>,
    /// Bytes of replies that wait to be sent.
    bytes: Arc<AtomicUsize>,
}

/// A reply on its way, with what it occupies until it is sent.
#[derive(Debug)]
struct Outgoing {
    reply: ForwardReply,
    size: usize,
    bytes: Arc<AtomicUsize>,
    _permit: Option<Permit>,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// A forwarded call that waits for its answer.
#[derive(Debug)]
pub(crate) struct ForwardedCall {
    server: Arc<ForwardServer>,
    id: u64,
    is_command: bool,
    permit: Permit,
}

impl ForwardedCall {
    /// Asks whether the caller is still there to take a grant.
    pub(crate) fn offer(&self) {
        let (bytes, size) = (Arc::clone(&self.server.bytes), 0);
        let reply = ForwardReply { id: self.id, offer: true, ..ForwardReply::default() };
        // There is room for an offer and an answer of every call that is open; the stream may be gone.
        drop(self.server.replies.try_send(Outgoing { reply, size, bytes, _permit: None }));
    }

    pub(crate) fn answer(self, reply: Reply) {
        let Self { server, id, is_command, permit } = self;
        server.lock().remove(&id);
        let outgoing = server.outgoing(encode(id, reply), is_command, Some(permit));
        // There is room for every call that is open; the stream may be gone.
        drop(server.replies.try_send(outgoing));
    }
}

impl ForwardServer {
    /// Serves a stream of calls: returns where its frames come out.
    pub(super) fn open(
        shared: Arc<Shared>,
        calls: Streaming<ForwardRequest>,
    ) -> mpsc::Receiver<Result<ForwardResponse, Status>> {
        // Offers, and refusals that were not asked of a replica, find room too.
        let (sender, replies) = mpsc::channel(3 * FORWARD_CALLS_MAX);
        let (frames, receiver) = mpsc::channel(FRAMES);
        let bytes = Arc::default();
        let server = Arc::new(Self { shared, replies: sender, open: Mutex::default(), bytes });
        tokio::spawn(async move {
            tokio::select! {
                () = Arc::clone(&server).take_calls(calls) => (),
                () = server.send_replies(replies, frames) => (),
            }
            server.abandon_all();
        });
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (ShardId, CallId)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_calls(self: Arc<Self>, mut calls: Streaming<ForwardRequest>) {
        // A broken stream and one that ends are the same: the peer asks for nothing any more.
        while let Ok(Some(request)) = calls.message().await {
            for call in request.calls {
                let (id, is_command) =
                    (call.id, matches!(call.call, Some(forward_call::Call::Command(_))));
                if let Err(refusal) = self.ask(call) {
                    let outgoing =
                        self.outgoing(encode(id, Reply::Refused(refusal)), is_command, None);
                    if self.replies.send(outgoing).await.is_err() {
                        return;
                    }
                }
            }
            for id in request.claims {
                let offered = self.lock().get(&id).copied();
                if let Some((shard, call)) = offered {
                    self.shared.tell(shard, Input::Claim(call));
                }
            }
            for id in request.cancel {
                let asked = self.lock().remove(&id);
                if let Some((shard, call)) = asked {
                    self.shared.abandon(shard, call);
                }
            }
        }
    }

    /// Asks this node's own replica; a refusal here means that it was not asked.
    fn ask(self: &Arc<Self>, call: ForwardCall) -> Result<(), Refusal> {
        let ForwardCall { id, shard, timeout_ms, call, access } = call;
        let work = match call {
            Some(forward_call::Call::Command(command)) => ShardRequest::Command(command),
            Some(forward_call::Call::Query(query)) => ShardRequest::Query(query),
            None => {
                return Err(refusal(Reason::Internal, "the forwarded call is of another version"));
            }
        };
        authorize::forwarded(self.shared.authorizer, access.as_ref(), &work)?;
        if !self.shared.table.has(shard) {
            return Err(refusal(Reason::Internal, "the cluster has no such shard"));
        }
        let permit = self.shared.calls.admit(admission(&work), work.bytes())?;
        // The answer may come before its call is noted: it waits for the lock.
        let mut open = self.lock();
        if open.len() >= FORWARD_CALLS_MAX || open.contains_key(&id) {
            return Err(refusal(
                Reason::Overloaded,
                "the leader of the shard has as many calls of this node as it takes",
            ));
        }
        let is_command = matches!(work, ShardRequest::Command(_));
        let asked = ForwardedCall { server: Arc::clone(self), id, is_command, permit };
        // A day is more than any wait of a client.
        let left = Duration::from_millis(timeout_ms.min(86_400_000));
        let deadline_ms = clock::boot_deadline(Instant::now() + left);
        let call = self.shared.submit(shard, work, deadline_ms, Waiter::Peer(asked))?;
        open.insert(id, (shard, call));
        Ok(())
    }

    /// Counts a reply in. One that finds no room is replaced by a refusal that says so.
    fn outgoing(&self, reply: ForwardReply, is_command: bool, permit: Option<Permit>) -> Outgoing {
        let size = reply.encoded_len();
        let waiting = self.bytes.fetch_add(size, Ordering::Relaxed);
        let whole = Outgoing { reply, size, bytes: Arc::clone(&self.bytes), _permit: permit };
        if waiting + size <= FORWARD_REPLY_BYTES_MAX {
            return whole;
        }
        let why = if is_command {
            refusal(Reason::MaybeApplied, "the answer found no room on its way")
        } else {
            refusal(Reason::Overloaded, "the answer found no room on its way")
        };
        let reply = encode(whole.reply.id, Reply::Refused(why));
        let size = reply.encoded_len();
        self.bytes.fetch_add(size, Ordering::Relaxed);
        Outgoing { reply, size, bytes: Arc::clone(&self.bytes), _permit: None }
    }

    /// Gathers replies into frames: [`PEER_FRAME_BYTES_MAX`] before the last one. An empty frame is a sign of life for a
    /// peer whose calls wait here.
    async fn send_replies(
        &self,
        mut replies: mpsc::Receiver<Outgoing>,
        frames: mpsc::Sender<Result<ForwardResponse, Status>>,
    ) {
        let mut alive = interval(Duration::from_millis(FORWARD_ALIVE_MS));
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Ok(permit) = frames.reserve().await {
            let first = tokio::select! {
                biased;
                first = replies.recv() => first,
                () = self.waits_for(&mut alive) => {
                    permit.send(Ok(ForwardResponse::default()));
                    continue;
                }
            };
            let Some(first) = first else { return };
            let mut bytes = first.size;
            let mut response = ForwardResponse { replies: vec![first.reply.clone()] };
            while bytes < PEER_FRAME_BYTES_MAX
                && let Ok(next) = replies.try_recv()
            {
                bytes += next.size;
                response.replies.push(next.reply.clone());
            }
            permit.send(Ok(response));
        }
    }

    /// Waits until the peer, whose calls wait here, is to be told that this node is alive.
    async fn waits_for(&self, alive: &mut Interval) {
        loop {
            alive.tick().await;
            if !self.lock().is_empty() {
                return;
            }
        }
    }

    fn abandon_all(&self) {
        let open = std::mem::take(&mut *self.lock());
        let mut open = open.into_values().collect::<Vec<_>>();
        open.sort_unstable();
        for (shard, call) in open {
            self.shared.abandon(shard, call);
        }
    }
}

fn encode(id: u64, reply: Reply) -> ForwardReply {
    match reply {
        Reply::Answered(position, answer) => ForwardReply {
            id,
            term: position.term,
            index: position.index,
            log_time_ms: position.log_time_ms,
            answer: Some(answer),
            ordinal: position.ordinal,
            offer: false,
        },
        Reply::Refused(refusal) => {
            ForwardReply { id, answer: Some(refusal.into()), ..ForwardReply::default() }
        }
    }
}
