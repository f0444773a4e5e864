//! A shard with two histories: it stops, so that neither is served beside the other or silently lost.
//!
//! Where a majority has gone on with an older copy of a data directory, what the one that was away knows to be
//! committed may be gone (see `member::memory`). Raft takes a leader's log for the truth and would cut it off. So a
//! replica compares: an append of a leader of its term, or a later one, that differs below its own commit index cannot
//! come from the same history. A restart may know less of the commit index than was acknowledged, and a snapshot cannot be
//! compared like that. So of a peer that is suspected, since its memory contradicts this node's, nothing is taken that
//! would cut off any entry, and no snapshot, before both were seen to have the same state, which the chain hashes tell. Which of two histories is to be kept a person must say: docs/operations.md.

use std::collections::BTreeMap;

use raft_proto::eraftpb::{Message, MessageType};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use super::Replica;
use super::effect::Effect;
use super::input::{Chain, Input, Proposal, Read};
use super::replies::{refusal, refuse};
use crate::{CallId, NodeId};

#[derive(Debug, Default)]
pub(super) struct Histories {
    stopped: bool,
    /// Peers whose history may be another one, each with this replica's last index when that was learned.
    suspects: BTreeMap<NodeId, u64>,
}

impl Histories {
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }
}

impl Replica {
    pub(super) fn suspect(&mut self, peer: NodeId) {
        let last = self.raft.0.raft.raft_log.last_index();
        self.histories.suspects.insert(peer, last);
    }

    pub(super) fn is_suspect(&self, peer: NodeId) -> bool {
        self.histories.suspects.contains_key(&peer)
    }

    /// A peer's state at an index that this replica has applied, too.
    pub(super) fn compare_history(&mut self, peer: NodeId, theirs: Chain, equal: bool) {
        let Some(last) = self.histories.suspects.get(&peer).copied() else { return };
        if !equal {
            self.stop_for(peer);
        } else if theirs.index >= last {
            self.histories.suspects.remove(&peer);
        }
    }

    /// Whether this replica has stopped, or does since a message contradicts what it has.
    pub(super) fn stops_for(&mut self, message: &Message) -> bool {
        if message.get_msg_type() == MessageType::MsgAppend && self.contradicts(message) {
            self.stop_for(message.from);
        }
        self.histories.stopped
    }

    /// Whether an append of a leader contradicts what is, or for a suspected one may be, acknowledged.
    fn contradicts(&self, message: &Message) -> bool {
        let raft = &self.raft.0.raft;
        let is_suspect = self.is_suspect(message.from);
        let kept = if is_suspect { raft.raft_log.last_index() } else { raft.raft_log.committed };
        if message.term < raft.term {
            return false;
        }
        let before = std::iter::once((message.index, message.log_term));
        let entries = message.entries.iter().map(|entry| (entry.index, entry.term));
        let known = before.chain(entries).take_while(|(index, _)| *index <= kept);
        known
            .into_iter()
            .any(|(index, term)| raft.store().term_at(index).is_some_and(|own| own != term))
    }

    /// Nothing is said, taken or answered any more.
    pub(super) fn stop_for(&mut self, peer: NodeId) {
        if std::mem::replace(&mut self.histories.stopped, true) {
            return;
        }
        let raft = &mut self.raft.0.raft;
        let index = raft.raft_log.committed;
        raft.become_follower(raft.term, 0);
        self.note_role();
        self.effects.push(Effect::TwoHistories { peer, index });
    }

    pub(super) fn step_while_stopped(&mut self, input: Input) {
        match input {
            Input::Propose(proposals) => {
                self.refuse_calls(proposals.into_iter().map(|Proposal { call, .. }| call));
            }
            Input::Read(reads) => {
                self.refuse_calls(reads.into_iter().map(|Read { call, .. }| call))
            }
            Input::Due { read, .. } => self.refuse_calls([read.call]),
            Input::Transfer { call, .. } if call != 0 => self.refuse_calls([call]),
            Input::Cancel(call) => self.effects.push(Effect::CancelQuery(call)),
            Input::Applied(all) => {
                for mut applied in all {
                    self.pending.applied(&mut applied, self.now, &mut self.effects);
                }
            }
            Input::SnapshotReceived { generation, .. } => {
                self.effects.push(Effect::DiscardSnapshot { generation });
            }
            Input::SnapshotOpened { to, .. } | Input::SnapshotSent { to, .. } => {
                self.forget_snapshot(to);
            }
            Input::Checkpointed { .. } => self.disk.checkpoint_ended(),
            _ => {}
        }
    }

    fn refuse_calls(&mut self, calls: impl IntoIterator<Item = CallId>) {
        for call in calls {
            self.effects.push(refuse(call, two_histories()));
        }
    }
}

/// What a call of such a shard is told.
pub(super) fn two_histories() -> Refusal {
    refusal(
        Reason::NoQuorum,
        "the shard has stopped: an older copy of a data directory took part, and nodes have two histories of it; a \
         person must decide, as docs/operations.md says",
    )
}
