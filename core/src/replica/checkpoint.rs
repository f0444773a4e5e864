//! What the disk holds of a shard: checkpoints, cutting the log below them, and snapshots on their way.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::{INVALID_INDEX, SnapshotStatus};
use raft_proto::eraftpb::{Snapshot, SnapshotMetadata};

use super::effect::Effect;
use super::input::Peer;
use super::leadership::ELECTION_MS_MAX;
use super::{Replica, log};
use crate::machine::Applied;
use crate::{NodeId, Now, limits as l};

/// Bytes of log that are worth a cut of their own, between checkpoints.
const CUT_BYTES_MIN: u64 = 1 << 20;

/// A snapshot for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutgoingSnapshot {
    Opening,
    /// Open at this index since this moment, in boot ms; the log is not cut beyond it.
    Open(u64, u64),
    Sending(u64),
}

#[derive(Debug)]
pub(super) struct Checkpoints {
    checkpoint: u64,
    checkpointed_at_ms: u64,
    checkpointing: bool,
    /// A peer needs a younger checkpoint than there is.
    wanted: bool,
    outgoing: BTreeMap<NodeId, OutgoingSnapshot>,
    /// An entry was proposed since the last tick.
    proposed: bool,
    /// A received snapshot that raft has taken: (index, generation).
    received: Option<(u64, u64)>,
}

impl Checkpoints {
    pub(super) fn new(checkpoint: u64, now: Now) -> Self {
        Self {
            checkpoint,
            checkpointed_at_ms: now.boot_ms,
            checkpointing: false,
            wanted: false,
            outgoing: BTreeMap::new(),
            proposed: false,
            received: None,
        }
    }

    pub(super) fn checkpoint_index(&self) -> u64 {
        self.checkpoint
    }

    /// Writers wait for a checkpoint while the changes in memory are at their limit.
    pub(super) fn is_full(&self, applied: &Applied) -> bool {
        applied.overlay_bytes > l::OVERLAY_BYTES_MAX
    }

    /// Whether the log may not grow now: a snapshot on its way holds the log for its receiver, so near the limit of
    /// the log one entry goes with each tick, and none at the limit.
    pub(super) fn holds_back(&self, log_bytes: u64, log_bytes_max: u64) -> bool {
        let near = log_bytes >= log_bytes_max / 4 * 3;
        self.pin() < u64::MAX && near && (self.proposed || log_bytes >= log_bytes_max)
    }

    pub(super) fn proposed(&mut self) {
        self.proposed = true;
    }

    pub(super) fn checkpoint_ended(&mut self) {
        self.checkpointing = false;
    }

    /// Whether a snapshot is on its way to a peer, or about to be.
    pub(super) fn sends_to(&self, peer: NodeId) -> bool {
        self.outgoing.contains_key(&peer)
    }

    /// A peer needs a younger checkpoint than there is.
    pub(super) fn want_checkpoint(&mut self) {
        self.wanted = true;
    }

    pub(super) fn take_received(&mut self, index: u64) -> Option<u64> {
        self.received.take_if(|(at, _)| *at == index).map(|(_, generation)| generation)
    }

    pub(super) fn installed(&mut self, index: u64, now: Now) {
        self.checkpoint = index;
        self.checkpointed_at_ms = now.boot_ms;
        self.checkpointing = false;
    }

    /// The lowest index from which a running snapshot's receiver will need the log.
    fn pin(&self) -> u64 {
        let index = |outgoing: &OutgoingSnapshot| match outgoing {
            OutgoingSnapshot::Opening => None,
            OutgoingSnapshot::Open(index, _) | OutgoingSnapshot::Sending(index) => Some(*index),
        };
        self.outgoing.values().filter_map(index).min().unwrap_or(u64::MAX)
    }
}

impl Replica {
    pub(super) fn care_for_disk(&mut self) {
        self.disk.proposed = false;
        self.close_unwanted_snapshots();
        let applied = self.applied.index;
        let tuning = self.config.tuning;
        if !self.disk.checkpointing && !self.repair.is_damaged() && applied > self.disk.checkpoint {
            let log = self.raft.0.store().bytes_between(self.disk.checkpoint, applied);
            let due = log >= tuning.checkpoint_log_bytes
                || self.applied.overlay_bytes >= tuning.checkpoint_overlay_bytes
                || self.now.boot_ms - self.disk.checkpointed_at_ms >= l::CHECKPOINT_AGE_MS
                || self.pressure.wants_checkpoint
                || self.disk.wanted;
            if due {
                self.disk.checkpointing = true;
                self.disk.wanted = false;
                self.pressure.wants_checkpoint = false;
                self.effects.push(Effect::Checkpoint);
            }
        }
        self.cut(CUT_BYTES_MIN.min(tuning.checkpoint_log_bytes));
    }

    pub(super) fn checkpointed(&mut self, index: u64, overlay_bytes: u64) {
        self.disk.checkpointing = false;
        self.disk.checkpoint = self.disk.checkpoint.max(index);
        self.disk.checkpointed_at_ms = self.now.boot_ms;
        self.applied.overlay_bytes = overlay_bytes;
        self.cut(1);
    }

    /// Cuts the log below the checkpoint when that frees `bytes_min`. A leader keeps what peers that answer still
    /// need, as far as the limit allows: a peer beyond it gets a snapshot.
    fn cut(&mut self, bytes_min: u64) {
        let store = self.raft.0.store();
        let checkpoint = if crate::mutant!(CutToApplied) { u64::MAX } else { self.disk.checkpoint };
        let mut to = checkpoint.min(self.applied.index).min(self.disk.pin());
        if self.leads() && store.bytes() <= self.config.tuning.log_bytes_max {
            for voter in self.config.voters.iter().filter(|voter| **voter != self.config.node) {
                if self.leadership.was_heard(*voter, self.now, l::PEER_SILENCE_MS) {
                    to = to.min(
                        self.raft.0.raft.prs().get(*voter).map_or(0, |progress| progress.matched),
                    );
                }
            }
        }
        let before = store.first() - 1;
        if to > before && (store.bytes_between(before, to) >= bytes_min || bytes_min <= 1) {
            let term = self.raft.0.mut_store().compact(to);
            self.effects.extend(term.map(|term| Effect::Compact { to, term }));
        }
    }

    pub(super) fn want_snapshot(&mut self, to: NodeId) {
        match self.disk.outgoing.get(&to) {
            None => {
                self.disk.outgoing.insert(to, OutgoingSnapshot::Opening);
                self.effects.push(Effect::OpenSnapshot(to));
            }
            Some(OutgoingSnapshot::Open(..)) => {
                // Raft did not take the one that is open: it is too old by now.
                self.forget_snapshot(to);
                self.disk.wanted = true;
            }
            Some(OutgoingSnapshot::Opening | OutgoingSnapshot::Sending(_)) => {}
        }
    }

    pub(super) fn snapshot_opened(&mut self, to: NodeId, snapshot: Option<(u64, u64, Bytes)>) {
        let Some((index, term, manifest)) = snapshot else {
            self.disk.outgoing.remove(&to);
            return;
        };
        if !self.leads() || self.disk.outgoing.get(&to) != Some(&OutgoingSnapshot::Opening) {
            return self.forget_snapshot(to);
        }
        let mut metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
        metadata.set_conf_state(log::conf_state(&self.config.voters));
        let mut snapshot = Snapshot { data: manifest, ..Snapshot::default() };
        snapshot.set_metadata(metadata);
        self.disk.outgoing.insert(to, OutgoingSnapshot::Open(index, self.now.boot_ms));
        if !self.send_state(to, &snapshot) {
            self.raft.0.mut_store().put_snapshot(to, snapshot);
        }
    }

    /// Raft sends the opened snapshot now.
    pub(super) fn snapshot_leaves(&mut self, to: NodeId) {
        self.raft.0.mut_store().drop_snapshot(to);
        if let Some(OutgoingSnapshot::Open(index, _)) = self.disk.outgoing.get(&to) {
            let index = *index;
            self.disk.outgoing.insert(to, OutgoingSnapshot::Sending(index));
        }
    }

    pub(super) fn snapshot_sent(&mut self, to: NodeId, ok: bool) {
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        if !crate::mutant!(SilentSnapshot) {
            self.raft.0.report_snapshot(to, status);
        }
        self.forget_snapshot(to);
    }

    pub(super) fn forget_snapshot(&mut self, to: NodeId) {
        self.disk.outgoing.remove(&to);
        self.raft.0.mut_store().drop_snapshot(to);
        self.effects.push(Effect::CloseSnapshot(to));
    }

    /// This replica no longer leads: what is not under way is closed.
    pub(super) fn close_snapshots(&mut self) {
        self.close_snapshots_of(|_| true);
    }

    /// A snapshot that no peer comes for must not hold the log: the peer is gone, has caught up by the log, or does
    /// not answer raft, which sends nothing then. Raft asks again when it does.
    fn close_unwanted_snapshots(&mut self) {
        let (first, now_ms) = (self.raft.0.store().first(), self.now.boot_ms);
        let unwanted = |to, outgoing: &OutgoingSnapshot| {
            let progress = self.raft.0.raft.prs().get(to);
            let has_log = progress.is_some_and(|progress| {
                progress.matched + 1 >= first && progress.pending_request_snapshot == INVALID_INDEX
            });
            let is_left =
                matches!(outgoing, OutgoingSnapshot::Open(_, at) if now_ms - at > ELECTION_MS_MAX);
            has_log || is_left || !self.leadership.was_heard(to, self.now, l::PEER_SILENCE_MS)
        };
        let open = self.disk.outgoing.iter();
        let unwanted = open.filter(|(to, outgoing)| unwanted(**to, outgoing));
        let unwanted = unwanted.map(|(to, _)| *to).collect::<Vec<_>>();
        self.close_snapshots_of(|to| unwanted.contains(&to));
    }

    /// Closes those snapshots that are open and not on their way.
    fn close_snapshots_of(&mut self, of: impl Fn(NodeId) -> bool) {
        let open =
            self.disk.outgoing.iter().filter(|(to, outgoing)| {
                of(**to) && !matches!(outgoing, OutgoingSnapshot::Sending(_))
            });
        for to in open.map(|(to, _)| *to).collect::<Vec<_>>() {
            self.forget_snapshot(to);
        }
    }

    pub(super) fn snapshot_received(&mut self, peer: Peer, generation: u64) {
        let Peer { message, time, chain, .. } = peer;
        self.hear_time(&message, time, chain.index);
        let metadata = message.get_snapshot().get_metadata();
        let (index, snapshot_term) = (metadata.index, metadata.term);
        let replaces = index > self.raft.0.raft.raft_log.committed || self.repair.is_damaged();
        if self.is_suspect(message.from) && replaces {
            // Nothing tells whether it has what is committed here, and it would take its place.
            self.stop_for(message.from);
            return self.effects.push(Effect::DiscardSnapshot { generation });
        }
        let known = self.config.voters.contains(&message.from) && message.to == self.config.node;
        let taken = known && !self.repair.is_restoring() && self.raft.0.step(message).is_ok();
        if taken
            && self.raft.0.snap().is_some_and(|snapshot| snapshot.get_metadata().index == index)
        {
            self.disk.received = Some((index, generation));
        } else if !(known && self.restore(index, snapshot_term, generation)) {
            self.effects.push(Effect::DiscardSnapshot { generation });
        }
    }
}
