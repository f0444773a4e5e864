//! How long peers take to answer: one exchange of each kind with each peer of each shard is timed at once.

use std::collections::BTreeMap;
use std::time::Duration;

use raft_proto::eraftpb::{Message, MessageType};
use trefoil_core::{NodeId, ShardId};

use crate::shared::clock::Stopwatch;
use crate::shared::observer::PeerOperation;

/// An exchange whose answer is later than this was lost.
const LOST: Duration = Duration::from_secs(10);

/// Exchanges under way.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    waiting: BTreeMap<(NodeId, ShardId, PeerOperation), Sent>,
}

#[derive(Debug)]
struct Sent {
    since: Stopwatch,
    term: u64,
    /// The index that the answer must have reached.
    index: u64,
}

impl Latencies {
    /// A message leaves.
    pub(crate) fn sent(&mut self, shard: ShardId, message: &Message) {
        let (operation, index) = match message.get_msg_type() {
            MessageType::MsgAppend => {
                let last = message.get_entries().last().map_or(message.index, |entry| entry.index);
                (PeerOperation::AppendEntries, last)
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                (PeerOperation::RequestVote, 0)
            }
            MessageType::MsgHeartbeat => (PeerOperation::Heartbeat, 0),
            _ => return,
        };
        let key = (message.to, shard, operation);
        let lost = |sent: &Sent| sent.since.elapsed() > LOST || sent.term != message.term;
        if self.waiting.get(&key).is_none_or(lost) {
            self.waiting.insert(key, Sent { since: Stopwatch::start(), term: message.term, index });
        }
    }

    /// A message arrives: how long what it answers took, where that was timed.
    pub(crate) fn received(
        &mut self,
        shard: ShardId,
        message: &Message,
    ) -> Option<(PeerOperation, f64)> {
        let operation = match message.get_msg_type() {
            MessageType::MsgAppendResponse => PeerOperation::AppendEntries,
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
                PeerOperation::RequestVote
            }
            MessageType::MsgHeartbeatResponse => PeerOperation::Heartbeat,
            _ => return None,
        };
        let key = (message.from, shard, operation);
        let appended = operation == PeerOperation::AppendEntries && !message.reject;
        if appended && self.waiting.get(&key)?.index > message.index {
            return None;
        }
        self.waiting.remove(&key).map(|sent| (operation, sent.since.seconds()))
    }
}

#[cfg(test)]
mod tests {
    use raft_proto::eraftpb::Entry;

    use super::*;

    fn message(kind: MessageType, index: u64) -> Message {
        let mut message = Message { from: 2, to: 2, term: 3, index, ..Message::default() };
        message.set_msg_type(kind);
        message
    }

    #[test]
    fn an_append_is_answered_when_its_last_entry_is() {
        let mut latencies = Latencies::default();
        let mut append = message(MessageType::MsgAppend, 10);
        append.set_entries(
            vec![Entry { index: 11, ..Entry::default() }, Entry { index: 12, ..Entry::default() }]
                .into(),
        );
        latencies.sent(1, &append);
        latencies.sent(1, &message(MessageType::MsgAppend, 13));
        assert_eq!(latencies.received(1, &message(MessageType::MsgAppendResponse, 11)), None);
        assert_eq!(
            latencies.received(0, &message(MessageType::MsgAppendResponse, 12)),
            None,
            "another shard"
        );
        let (operation, seconds) =
            latencies.received(1, &message(MessageType::MsgAppendResponse, 12)).unwrap();
        assert_eq!(operation, PeerOperation::AppendEntries);
        assert!((0.0..1.0).contains(&seconds));
        assert_eq!(
            latencies.received(1, &message(MessageType::MsgAppendResponse, 13)),
            None,
            "answered once"
        );
    }

    #[test]
    fn votes_and_heartbeats_are_timed_apart() {
        let mut latencies = Latencies::default();
        latencies.sent(0, &message(MessageType::MsgRequestPreVote, 0));
        latencies.sent(0, &message(MessageType::MsgHeartbeat, 0));
        let heartbeat = latencies.received(0, &message(MessageType::MsgHeartbeatResponse, 0));
        assert_eq!(heartbeat.unwrap().0, PeerOperation::Heartbeat);
        let vote = latencies.received(0, &message(MessageType::MsgRequestPreVoteResponse, 0));
        assert_eq!(vote.unwrap().0, PeerOperation::RequestVote);
    }
}
