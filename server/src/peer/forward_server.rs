//! Calls that a peer forwarded to this node: asked here once, answered on the stream by which they came.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tonic::{Status, Streaming};
use trefoil_core::call::ShardRequest;
use trefoil_core::limits::{FORWARD_ALIVE_MS, FORWARD_CALLS_MAX, PEER_FRAME_BYTES_MAX};
use trefoil_core::replica::Input;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{
    ForwardCall, ForwardRequest, ForwardResponse, Refusal, forward_call,
};

use crate::authorize;
use crate::calls::Waiter;
use crate::calls::context::{admission, refusal};
use crate::calls::forwarded::{ForwardReplies, ForwardedCall, OutgoingReply};
use crate::shared::Shared;
use crate::shared::clock;

/// Frames on their way to the transport.
const FRAMES: usize = 4;

/// The calls of one stream.
#[derive(Debug)]
pub(crate) struct ForwardServer {
    shared: Arc<Shared>,
    replies: Arc<ForwardReplies>,
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
        let server = Self { shared, replies: Arc::new(ForwardReplies::new(sender)) };
        tokio::spawn(async move {
            tokio::select! {
                () = server.take_calls(calls) => (),
                () = server.send_replies(replies, frames) => (),
            }
            server.abandon_all();
        });
        receiver
    }

    async fn take_calls(&self, mut calls: Streaming<ForwardRequest>) {
        // A broken stream and one that ends are the same: the peer asks for nothing any more.
        while let Ok(Some(request)) = calls.message().await {
            for call in request.calls {
                let (id, is_command) =
                    (call.id, matches!(call.call, Some(forward_call::Call::Command(_))));
                if let Err(refusal) = self.ask(call)
                    && !self.replies.refuse(id, is_command, refusal).await
                {
                    return;
                }
            }
            for id in request.claims {
                let offered = self.replies.open().get(&id).copied();
                if let Some((shard, call)) = offered {
                    self.shared.tell(shard, Input::Claim(call));
                }
            }
            for id in request.cancel {
                let asked = self.replies.open().remove(&id);
                if let Some((shard, call)) = asked {
                    self.shared.abandon(shard, call);
                }
            }
        }
    }

    /// Asks this node's own replica; a refusal here means that it was not asked.
    fn ask(&self, call: ForwardCall) -> Result<(), Refusal> {
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
        let mut open = self.replies.open();
        if open.len() >= FORWARD_CALLS_MAX || open.contains_key(&id) {
            return Err(refusal(
                Reason::Overloaded,
                "the leader of the shard has as many calls of this node as it takes",
            ));
        }
        let is_command = matches!(work, ShardRequest::Command(_));
        let asked = ForwardedCall::new(Arc::clone(&self.replies), id, is_command, permit);
        // A day is more than any wait of a client.
        let left = Duration::from_millis(timeout_ms.min(86_400_000));
        let deadline_ms = clock::boot_deadline(Instant::now() + left);
        let call = self.shared.submit(shard, work, deadline_ms, Waiter::Peer(asked))?;
        open.insert(id, (shard, call));
        Ok(())
    }

    /// Gathers replies into frames: [`PEER_FRAME_BYTES_MAX`] before the last one. An empty frame is a sign of life for a
    /// peer whose calls wait here.
    async fn send_replies(
        &self,
        mut replies: mpsc::Receiver<OutgoingReply>,
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
            let mut bytes = first.size();
            let mut response = ForwardResponse { replies: vec![first.reply().clone()] };
            while bytes < PEER_FRAME_BYTES_MAX
                && let Ok(next) = replies.try_recv()
            {
                bytes += next.size();
                response.replies.push(next.reply().clone());
            }
            permit.send(Ok(response));
        }
    }

    /// Waits until the peer, whose calls wait here, is to be told that this node is alive.
    async fn waits_for(&self, alive: &mut Interval) {
        loop {
            alive.tick().await;
            if !self.replies.open().is_empty() {
                return;
            }
        }
    }

    fn abandon_all(&self) {
        let open = std::mem::take(&mut *self.replies.open());
        let mut open = open.into_values().collect::<Vec<_>>();
        open.sort_unstable();
        for (shard, call) in open {
            self.shared.abandon(shard, call);
        }
    }
}
