//! Raft messages that wait to be sent to one peer: two lanes, bounded, and full means dropped.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protobuf::Message as _;
use raft_proto::eraftpb::{Message, MessageType};
use tokio::sync::Notify;
use trefoil_core::ShardId;
use trefoil_core::limits::{PEER_FRAME_BYTES_MAX, PEER_QUEUE_BYTES_MAX, PEER_QUEUE_MAX};
use trefoil_core::replica::Peer;
use trefoil_proto::internal::v1::Envelope;

#[derive(Debug, Default)]
pub(super) struct SendBuffer {
    lanes: Mutex<Lanes>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    /// Whether there is a stream to the peer.
    open: bool,
    /// Heartbeats and votes: they go first, so that a full pipe starts no election.
    urgent: VecDeque<QueuedMessage>,
    /// Appends and their responses, in order.
    bulk: VecDeque<QueuedMessage>,
    bytes: usize,
}

#[derive(Debug)]
struct QueuedMessage {
    shard: ShardId,
    peer: Box<Peer>,
    bytes: usize,
}

fn is_urgent(message: &Message) -> bool {
    matches!(
        message.get_msg_type(),
        MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgTimeoutNow
    )
}

impl SendBuffer {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; false when it is dropped, for want of a stream or of room.
    #[must_use]
    pub(super) fn offer(&self, shard: ShardId, peer: Box<Peer>) -> bool {
        let entries =
            peer.message.get_entries().iter().map(|entry| entry.data.len() + 32).sum::<usize>();
        let bytes = entries + 128;
        let mut lanes = self.lock();
        let full = lanes.urgent.len() + lanes.bulk.len() >= PEER_QUEUE_MAX
            || lanes.bytes + bytes > PEER_QUEUE_BYTES_MAX;
        if !lanes.open || full {
            return false;
        }
        lanes.bytes += bytes;
        let item = QueuedMessage { shard, peer, bytes };
        if is_urgent(&item.peer.message) {
            lanes.urgent.push_back(item);
        } else {
            lanes.bulk.push_back(item);
        }
        drop(lanes);
        self.wake.notify_one();
        true
    }

    /// A stream to the peer is there.
    pub(super) fn open(&self) {
        self.lock().open = true;
    }

    /// The stream is gone, and with it what waited.
    pub(super) fn close(&self) {
        *self.lock() = Lanes::default();
    }

    /// Waits for messages and takes those of one frame: [`PEER_FRAME_BYTES_MAX`] before the last one.
    pub(super) async fn frame(&self) -> Vec<Envelope> {
        loop {
            let items = self.take();
            if !items.is_empty() {
                return items.into_iter().map(|item| envelope(item.shard, &item.peer)).collect();
            }
            self.wake.notified().await;
        }
    }

    fn take(&self) -> Vec<QueuedMessage> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        let mut lanes = self.lock();
        while bytes < PEER_FRAME_BYTES_MAX
            && let Some(item) = lanes.urgent.pop_front().or_else(|| lanes.bulk.pop_front())
        {
            bytes += item.bytes;
            items.push(item);
        }
        lanes.bytes -= bytes;
        items
    }
}

fn envelope(shard: ShardId, peer: &Peer) -> Envelope {
    let message = peer.message.write_to_bytes().expect("a message of raft can be encoded");
    Envelope {
        shard,
        log_time_ms: peer.time.log_time_ms,
        continuous: peer.time.continuous,
        chain_index: peer.chain.index,
        chain: peer.chain.hash,
        message: message.into(),
        digest_index: peer.digest.index,
        digest: peer.digest.hash,
        wants_state_from: peer.wants_state_from,
        differs_index: peer.differs.index,
        differs: peer.differs.hash,
    }
}

#[cfg(test)]
mod tests {
    use raft_proto::eraftpb::Entry;

    use super::*;

    fn message(kind: MessageType, data: usize) -> Box<Peer> {
        let mut message = Message::default();
        message.set_msg_type(kind);
        if data > 0 {
            message
                .set_entries(vec![Entry { data: vec![1; data].into(), ..Entry::default() }].into());
        }
        Box::new(Peer { message, ..Peer::default() })
    }

    fn kinds(envelopes: &[Envelope]) -> Vec<MessageType> {
        let parse = |envelope: &Envelope| {
            Message::parse_from_bytes(&envelope.message).unwrap().get_msg_type()
        };
        envelopes.iter().map(parse).collect()
    }

    #[tokio::test]
    async fn heartbeats_go_ahead_and_frames_are_bounded() {
        let queue = SendBuffer::default();
        assert!(!queue.offer(1, message(MessageType::MsgAppend, 10)), "no stream, no queue");
        queue.open();
        for _ in 0..3 {
            assert!(queue.offer(1, message(MessageType::MsgAppend, 200 << 10)));
        }
        assert!(queue.offer(1, message(MessageType::MsgHeartbeat, 0)));
        let first = queue.frame().await;
        assert_eq!(
            kinds(&first),
            [MessageType::MsgHeartbeat, MessageType::MsgAppend, MessageType::MsgAppend]
        );
        assert_eq!(kinds(&queue.frame().await), [MessageType::MsgAppend]);
    }

    #[test]
    fn a_full_queue_drops() {
        let queue = SendBuffer::default();
        queue.open();
        let taken = (0..100)
            .take_while(|_| queue.offer(0, message(MessageType::MsgAppend, 1 << 20)))
            .count();
        assert!((32..100).contains(&taken), "{taken} messages of a MiB fit");
        queue.close();
        queue.open();
        assert!(
            queue.offer(0, message(MessageType::MsgAppend, 1 << 20)),
            "what waited is gone with its stream"
        );
    }
}
