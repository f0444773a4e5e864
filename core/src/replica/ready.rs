//! What raft wants, turned into effects in the one legal order.
//!
//! Source: the crate documentation of raft 0.7, "Processing the `Ready` State", in its asynchronous form. A leader's
//! messages leave at once; all others leave only when the batch that they vouch for is synced. What is handed to the
//! applier is committed and persisted here.

use std::collections::VecDeque;

use raft_proto::eraftpb::{Entry, HardState, Message, MessageType};

use super::effect::{ApplyRange, Effect, PersistBatch};
use super::input::{Input, Peer};
use super::replies::refuse;
use super::{Log, Replica};

/// A batch that is being written.
#[derive(Debug)]
struct Outstanding {
    number: u64,
    since_ms: u64,
    /// Raft's term when it was handed out.
    term: u64,
}

/// A snapshot that is being installed: nothing else happens meanwhile.
struct Installing {
    ready: raft::Ready,
    messages: Vec<Message>,
    index: u64,
    term: u64,
}

/// How far the disk and the applier are behind raft.
#[derive(Default)]
pub(super) struct ReadyState {
    outstanding: VecDeque<Outstanding>,
    /// Messages that leave when the batch of their number is synced.
    held: VecDeque<(u64, Vec<Message>)>,
    /// Number of the last ready.
    last_number: u64,
    persisted_term: u64,
    /// A hard state that moved only its commit index: it goes with the next batch, because a start takes the larger
    /// of the commit and the applied index.
    hard_state: Option<HardState>,
    /// Last index handed to the applier.
    handed_out: u64,
    /// An entry was proposed and is not yet in a batch.
    proposed: bool,
    installing: Option<Installing>,
}

impl std::fmt::Debug for ReadyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadyState")
            .field("outstanding", &self.outstanding)
            .field("handed_out", &self.handed_out)
            .finish_non_exhaustive()
    }
}

impl ReadyState {
    pub(super) fn new(applied: u64, term: u64) -> Self {
        Self { handed_out: applied, persisted_term: term, ..Self::default() }
    }

    pub(super) fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// One batch is written while the next entry gathers its commands.
    pub(super) fn may_propose(&self) -> bool {
        self.outstanding.is_empty() && !self.proposed
    }

    pub(super) fn proposed(&mut self) {
        self.proposed = true;
    }

    pub(super) fn handed_out(&self) -> u64 {
        self.handed_out
    }

    /// When the oldest batch that is not synced was handed out, in boot ms.
    pub(super) fn oldest_write_ms(&self) -> Option<u64> {
        self.outstanding.front().map(|batch| batch.since_ms)
    }
}

impl Replica {
    pub(super) fn take_ready(&mut self) {
        let mut ready = self.raft.0.ready();
        self.ready.last_number = ready.number();
        self.ready.proposed = false;
        if let Some(hard_state) = ready.hs() {
            self.ready.hard_state = Some(hard_state.clone());
        }
        for state in ready.take_read_states() {
            self.read_confirmed(&state.request_ctx, state.index);
        }
        let messages = ready.take_messages();
        self.send(messages);
        self.hand_out(ready.take_committed_entries());
        if !ready.snapshot().is_empty() {
            self.begin_install(ready);
            return;
        }
        let (number, must_sync) = (ready.number(), ready.must_sync());
        let entries = ready.take_entries();
        self.raft.0.mut_store().append(&entries);
        if (must_sync && !crate::mutant!(LostVote)) || !entries.is_empty() {
            self.persist(number, entries);
        }
        let held = ready.take_persisted_messages();
        self.hold(number, held);
        self.raft.0.advance_append_async(ready);
        if self.ready.outstanding.is_empty() || crate::mutant!(EarlyPersist) {
            self.raft.0.on_persist_ready(number);
        }
        let keep_after = self.ready.handed_out.min(self.raft.0.raft.raft_log.persisted);
        let bytes = self.config.tuning.log_cache_bytes;
        self.raft.0.mut_store().shrink(bytes, keep_after);
    }

    fn persist(&mut self, number: u64, entries: Vec<Entry>) {
        let mut hard_state = self.ready.hard_state.take();
        if crate::mutant!(HalfVote)
            && let Some(state) = &mut hard_state
        {
            state.vote = 0;
        }
        let (since_ms, term) = (self.now.boot_ms, self.raft.0.raft.term);
        self.ready.outstanding.push_back(Outstanding { number, since_ms, term });
        self.effects.push(Effect::Persist(PersistBatch { number, entries, hard_state }));
    }

    /// Messages of a follower or candidate wait for the disk. Heartbeat responses at a persisted term vouch for
    /// nothing new, so that reads do not wait for a follower's sync.
    fn hold(&mut self, number: u64, messages: Vec<Message>) {
        let heartbeats_only = messages
            .iter()
            .all(|message| message.get_msg_type() == MessageType::MsgHeartbeatResponse);
        let harmless = heartbeats_only && self.raft.0.raft.term == self.ready.persisted_term;
        if self.ready.outstanding.is_empty() || harmless || crate::mutant!(EarlyReply) {
            self.send(messages);
        } else if !messages.is_empty() {
            self.ready.held.push_back((number, messages));
        }
    }

    pub(super) fn persisted(&mut self, number: u64) {
        while let Some(batch) = self.ready.outstanding.pop_front_if(|batch| batch.number <= number)
        {
            self.ready.persisted_term = batch.term;
        }
        // A ready without a batch is as persistent as the one before it.
        let confirmed =
            self.ready.outstanding.front().map_or(self.ready.last_number, |batch| batch.number - 1);
        self.raft.0.on_persist_ready(confirmed);
        while let Some((_, messages)) =
            self.ready.held.pop_front_if(|(number, _)| *number <= confirmed)
        {
            self.send(messages);
        }
    }

    pub(super) fn send(&mut self, messages: Vec<Message>) {
        if self.is_muted() {
            return;
        }
        let time = self.clock.peer_time(self.now);
        let chain = self.chains.back().copied().unwrap_or_default();
        let (digest, wants_state_from) = (self.repair.digest(), self.wants_state_from());
        for message in messages {
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let to = message.to;
            let differs = self.repair.differs(to);
            let peer = Box::new(Peer { message, time, chain, digest, wants_state_from, differs });
            if snapshot {
                self.snapshot_leaves(to);
                self.effects.push(Effect::SendSnapshot(peer));
            } else {
                self.effects.push(Effect::Send(peer));
            }
        }
    }

    fn read_confirmed(&mut self, context: &[u8], index: u64) {
        let Some((term, context)) = context.split_first_chunk::<8>() else { return };
        let Ok(context) = context.try_into().map(u64::from_be_bytes) else { return };
        if u64::from_be_bytes(*term) == self.raft.0.raft.term {
            self.reads.confirmed(context, index);
        }
    }

    /// Hands committed entries to the applier: with their data where it is in memory, as a range to read where not.
    fn hand_out(&mut self, entries: Vec<Entry>) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        let (first, last) = (first.index, last.index);
        self.ready.handed_out = last;
        if self.repair.is_damaged() {
            // Whatever state comes in the place of this one is told of them.
            return;
        }
        let cached_from = self.raft.0.store().cached_from();
        if first < cached_from {
            self.hand_out_stored(first, last.min(cached_from - 1));
        }
        if last >= cached_from {
            let cached = entries.into_iter().filter(|entry| entry.index >= cached_from);
            let entries = cached.map(|entry| (entry.term, entry.data)).collect::<Vec<_>>();
            let (first, leads) = (first.max(cached_from), self.leads());
            let range = ApplyRange { first, last, entries: Some(entries), leads };
            self.effects.push(Effect::Apply(range));
        }
    }

    /// Hands entries to the applier, which reads them from the log.
    pub(super) fn hand_out_stored(&mut self, first: u64, last: u64) {
        let leads = self.leads();
        self.effects.push(Effect::Apply(ApplyRange { first, last, entries: None, leads }));
    }

    fn begin_install(&mut self, mut ready: raft::Ready) {
        let metadata = ready.snapshot().get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        let generation = self
            .disk
            .take_received(index)
            .expect("a snapshot is stepped only after it was received");
        let messages = ready.take_persisted_messages();
        let raft = &self.raft.0.raft;
        let hard_state =
            HardState { term: raft.term, vote: raft.vote, commit: index, ..HardState::default() };
        self.ready.hard_state = None;
        self.ready.installing = Some(Installing { ready, messages, index, term });
        self.effects.push(Effect::InstallSnapshot { generation, index, term, hard_state });
    }

    /// While a snapshot is installed raft may not be touched: what can be refused is refused, the rest is lost as on
    /// a bad network.
    pub(super) fn step_while_installing(&mut self, input: Input) {
        match input {
            Input::SnapshotInstalled { index, applied } => self.installed(index, *applied),
            Input::Propose(proposals) => {
                let why = self.not_leader();
                self.effects.extend(
                    proposals.into_iter().map(|proposal| refuse(proposal.call, why.clone())),
                );
            }
            Input::Read(reads) => self.take_reads(reads),
            Input::Due { read, .. } => self.take_reads(vec![read]),
            Input::Transfer { call, to } => self.transfer(call, to),
            Input::Cancel(call) => {
                self.pending.cancel(call);
                self.effects.push(Effect::CancelQuery(call));
            }
            Input::Claim(call) => self.effects.extend(self.pending.offers.claim(call)),
            Input::Peer(peer) => self.hear_time(&peer.message, peer.time, peer.chain.index),
            Input::Applied(all) => {
                for mut applied in all {
                    self.pending.applied(&mut applied, self.now, &mut self.effects);
                }
            }
            Input::SnapshotReceived { generation, .. } => {
                self.effects.push(Effect::DiscardSnapshot { generation })
            }
            Input::SnapshotOpened { to, .. } | Input::SnapshotSent { to, .. } => {
                self.forget_snapshot(to)
            }
            Input::Checkpointed { .. } => self.disk.checkpoint_ended(),
            Input::Uncertain { node, uncertain } => {
                self.leadership.peer_is_uncertain(node, uncertain)
            }
            Input::Suspect(peer) => self.suspect(peer),
            Input::Pressure(_) | Input::Obstacle { .. } | Input::PeerObstacles { .. } => {
                self.note_standing(input);
            }
            // What was damaged is about to be replaced.
            Input::Damaged | Input::Restored(_) | Input::Digested(_) => {}
            Input::Tick | Input::Persisted(_) | Input::Fetched { .. } | Input::Unreachable(_) => {}
        }
    }

    fn installed(&mut self, index: u64, applied: crate::machine::Applied) {
        let Some(installing) =
            self.ready.installing.take_if(|installing| installing.index == index)
        else {
            return;
        };
        let Installing { ready, messages, index, term } = installing;
        if !crate::mutant!(KeptSuffix) {
            Log::reset(self.raft.0.mut_store(), index, term);
        }
        // The batches before the snapshot were written by the same writer, in order: all are persisted.
        self.ready.outstanding.clear();
        self.ready.persisted_term = self.raft.0.raft.term;
        let held = std::mem::take(&mut self.ready.held);
        // Nothing can be handed out or sent by this: a follower that installs has no entries after the snapshot.
        let light = self.raft.0.advance_append(ready);
        debug_assert!(
            light.committed_entries().is_empty(),
            "nothing is committed after a fresh snapshot"
        );
        self.raft.0.advance_apply_to(index);
        self.ready.handed_out = index;
        self.disk.installed(index, self.now);
        self.clock.applied(applied.log_time_ms, applied.wall_ms, self.now);
        self.chains.clear();
        self.repair.made_whole();
        self.pending.forget_proposed(&mut self.effects);
        self.applied = applied;
        self.send(held.into_iter().flat_map(|(_, messages)| messages).collect());
        self.send(messages);
        self.leadership.settle(&mut self.raft.0);
    }
}
