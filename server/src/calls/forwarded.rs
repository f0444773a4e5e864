//! Calls that a peer forwarded to this node, and their replies on the stream by which they came.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use tokio::sync::mpsc;
use trefoil_core::limits::FORWARD_REPLY_BYTES_MAX;
use trefoil_core::replica::Reply;
use trefoil_core::{CallId, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{ForwardReply, Refusal};

use super::context::refusal;
use super::permit::Permit;

/// The replies of one stream.
#[derive(Debug)]
pub(crate) struct ForwardReplies {
    sender: mpsc::Sender<OutgoingReply>,
    /// Calls that were not answered yet, by the id that the peer gave them.
    open: Mutex<HashMap<u64, (ShardId, CallId)>>,
    /// Bytes of replies that wait to be sent.
    bytes: Arc<AtomicUsize>,
}

/// A reply on its way, with what it occupies until it is sent.
#[derive(Debug)]
pub(crate) struct OutgoingReply {
    reply: ForwardReply,
    size: usize,
    bytes: Arc<AtomicUsize>,
    _permit: Option<Permit>,
}

impl Drop for OutgoingReply {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// A forwarded call that waits for its answer.
#[derive(Debug)]
pub(crate) struct ForwardedCall {
    replies: Arc<ForwardReplies>,
    id: u64,
    is_command: bool,
    permit: Permit,
}

impl ForwardedCall {
    pub(crate) fn new(
        replies: Arc<ForwardReplies>,
        id: u64,
        is_command: bool,
        permit: Permit,
    ) -> Self {
        Self { replies, id, is_command, permit }
    }

    /// Asks whether the caller is still there to take a grant.
    pub(crate) fn offer(&self) {
        let (bytes, size) = (Arc::clone(&self.replies.bytes), 0);
        let reply = ForwardReply { id: self.id, offer: true, ..ForwardReply::default() };
        // There is room for an offer and an answer of every call that is open; the stream may be gone.
        drop(self.replies.sender.try_send(OutgoingReply { reply, size, bytes, _permit: None }));
    }

    pub(crate) fn answer(self, reply: Reply) {
        let Self { replies, id, is_command, permit } = self;
        replies.open().remove(&id);
        let outgoing = replies.outgoing(encode(id, reply), is_command, Some(permit));
        // There is room for every call that is open; the stream may be gone.
        drop(replies.sender.try_send(outgoing));
    }
}

impl OutgoingReply {
    pub(crate) fn reply(&self) -> &ForwardReply {
        &self.reply
    }

    /// Its encoded bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }
}

impl ForwardReplies {
    pub(crate) fn new(sender: mpsc::Sender<OutgoingReply>) -> Self {
        Self { sender, open: Mutex::default(), bytes: Arc::default() }
    }

    /// Calls that were not answered yet.
    pub(crate) fn open(&self) -> MutexGuard<'_, HashMap<u64, (ShardId, CallId)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a call of which no replica was asked; false when the stream is gone.
    pub(crate) async fn refuse(&self, id: u64, is_command: bool, refusal: Refusal) -> bool {
        let refused = self.outgoing(encode(id, Reply::Refused(refusal)), is_command, None);
        self.sender.send(refused).await.is_ok()
    }

    /// Counts a reply in. One that finds no room is replaced by a refusal that says so.
    fn outgoing(
        &self,
        reply: ForwardReply,
        is_command: bool,
        permit: Option<Permit>,
    ) -> OutgoingReply {
        let size = reply.encoded_len();
        let waiting = self.bytes.fetch_add(size, Ordering::Relaxed);
        let whole = OutgoingReply { reply, size, bytes: Arc::clone(&self.bytes), _permit: permit };
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
        OutgoingReply { reply, size, bytes: Arc::clone(&self.bytes), _permit: None }
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
