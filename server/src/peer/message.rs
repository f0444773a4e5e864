//! Messages of raft as they come from a peer: only what raft may be shown is taken.

use protobuf::Message as _;
use raft_proto::eraftpb::{Message, MessageType};
use trefoil_core::NodeId;
use trefoil_core::replica::{Chain, Peer, PeerTime};
use trefoil_proto::internal::v1::Envelope;

use crate::shared::Shared;

/// Decodes a message and sees that raft can take it.
pub(super) fn open(
    shared: &Shared,
    from: NodeId,
    envelope: Envelope,
) -> Result<Peer, &'static str> {
    if !shared.table.has(envelope.shard) {
        return Err("there is no such shard");
    }
    let message = decode(&envelope.message, from, shared.node)?;
    match message.get_msg_type() {
        MessageType::MsgAppend
        | MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow => (),
        _ => return Err("a message of this type does not travel by this stream"),
    }
    let time = PeerTime { log_time_ms: envelope.log_time_ms, continuous: envelope.continuous };
    let chain = Chain { index: envelope.chain_index, hash: envelope.chain };
    let digest = Chain { index: envelope.digest_index, hash: envelope.digest };
    let differs = Chain { index: envelope.differs_index, hash: envelope.differs };
    let wants_state_from = envelope.wants_state_from;
    Ok(Peer { message, time, chain, digest, wants_state_from, differs })
}

/// Decodes a message of raft that `from` sent to this node.
pub(super) fn decode(bytes: &[u8], from: NodeId, to: NodeId) -> Result<Message, &'static str> {
    let message = Message::parse_from_bytes(bytes).map_err(|_| "a message cannot be decoded")?;
    if message.from != from || message.to != to {
        return Err("a message is of another sender or for another receiver");
    }
    let mut before = (message.index, message.log_term);
    for entry in message.get_entries() {
        if Some(entry.index) != before.0.checked_add(1)
            || entry.term < before.1
            || entry.term > message.term
        {
            return Err("entries are not in a row");
        }
        before = (entry.index, entry.term);
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use raft_proto::eraftpb::Entry;

    use super::*;

    fn append(indexes: &[u64]) -> Message {
        let mut message =
            Message { from: 2, to: 1, term: 5, index: 10, log_term: 4, ..Message::default() };
        let entries =
            indexes.iter().map(|index| Entry { index: *index, term: 5, ..Entry::default() });
        message.set_entries(entries.collect::<Vec<_>>().into());
        message
    }

    fn check(message: &Message) -> Result<Message, &'static str> {
        decode(&message.write_to_bytes().unwrap(), 2, 1)
    }

    #[test]
    fn only_what_raft_sends_is_taken() {
        assert!(check(&append(&[11, 12])).is_ok());
        for wrong in [&[12][..], &[11, 13], &[10]] {
            assert!(check(&append(wrong)).is_err(), "entries {wrong:?} after index 10");
        }
        let mut old = append(&[11]);
        old.term = 4;
        assert!(check(&old).is_err(), "an entry of a later term than its message");
        assert!(decode(&append(&[]).write_to_bytes().unwrap(), 3, 1).is_err(), "another sender");
        assert!(decode(&append(&[]).write_to_bytes().unwrap(), 2, 3).is_err(), "another receiver");
        assert!(decode(&[0xff; 9], 2, 1).is_err(), "no message at all");
        let last = Message { index: u64::MAX, ..append(&[0]) };
        assert!(check(&last).is_err(), "an index that cannot be followed");
    }
}
