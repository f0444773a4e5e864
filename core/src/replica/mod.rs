//! One member of one shard's Raft group: inputs in, effects out, nothing in between.
//!
//! [`Replica::step`] takes one [`Input`] and returns [`Effect`]s to be carried out in order. It is the only user of
//! raft-rs. `ready` turns what raft wants into effects; `log` is what raft reads; `pending` and `reads` hold the
//! calls that wait; `clock` is log time; `leadership` says who should lead, `standing` and `delivery` who can; `disk`
//! cuts the log and moves snapshots; `repair` is what becomes of a damaged state.

mod checkpoint;
mod clock;
mod delivery;
mod effect;
mod histories;
mod input;
mod leadership;
mod log;
pub mod obstacles;
mod offers;
mod pending;
mod raft_config;
mod reads;
mod ready;
mod repair;
mod replies;
mod standing;
mod status;

use std::collections::VecDeque;

use prost::Message as _;
use raft::{GetEntriesContext, RawNode, StateRole};
use raft_proto::eraftpb::{Message, MessageType};
use slog::Logger;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Entry, Refusal};

use self::clock::LogClock;
use self::log::Log;
use self::pending::PendingProposals;
use self::raft_config::raft_config;
use self::reads::Reads;
use self::replies::{refusal, refuse};
use self::standing::Room;
use crate::limits as l;
use crate::machine::Applied;
use crate::{MACHINE_VERSION, NodeId, Now};

pub use self::effect::{ApplyRange, Effect, PersistBatch, Reply, Role, RoleChange};
pub use self::input::{
    Boot, Chain, Input, Peer, PeerTime, Pressure, Proposal, Read, ReplicaConfig, Tuning,
};
pub use self::status::Status;

/// One member of one shard's Raft group.
#[derive(Debug)]
pub struct Replica {
    config: ReplicaConfig,
    logger: Logger,
    raft: RawNodeDebug,
    now: Now,
    clock: LogClock,
    effects: Vec<Effect>,
    role: RoleChange,
    leadership: leadership::ElectionState,
    disk: checkpoint::Checkpoints,
    ready: ready::ReadyState,
    pending: PendingProposals,
    reads: Reads,
    /// What the machine said last.
    applied: Applied,
    /// State hashes at recent indexes, ascending.
    chains: VecDeque<Chain>,
    repair: repair::Repair,
    histories: histories::Histories,
    pressure: Pressure,
    standing: standing::Eligibility,
    /// Index of the last entry proposed here that moves log time.
    advance_index: u64,
}

/// raft's node has no debug form.
struct RawNodeDebug(RawNode<Log>);

impl std::fmt::Debug for RawNodeDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawNode").field("term", &self.0.raft.term).finish_non_exhaustive()
    }
}

/// Hashes of states that are remembered to be compared with what peers say.
const CHAINS_KEPT: usize = 1_024;

impl Replica {
    /// Starts from what the disk holds.
    ///
    /// # Errors
    /// When the disk contradicts itself: the sentence says how.
    pub fn new(
        config: ReplicaConfig,
        boot: &Boot,
        now: Now,
        logger: &Logger,
    ) -> Result<Self, String> {
        let (applied, applied_term) = boot.applied;
        if applied > boot.last_index || applied < boot.truncated.0 {
            return Err(format!(
                "shard {}: the state is at index {applied} and the log has {} to {}",
                config.shard,
                boot.truncated.0 + 1,
                boot.last_index
            ));
        }
        let log = Log::new(boot, &config.voters);
        if log.term_at(applied) != Some(applied_term) {
            return Err(format!(
                "shard {}: the state and the log disagree on the term of index {applied}",
                config.shard
            ));
        }
        let raft = RawNode::new(&raft_config(&config, boot), log, logger)
            .map_err(|error| error.to_string())?;
        let mut replica = Self {
            clock: LogClock::new(boot.log_time_ms, boot.wall_ms, now),
            leadership: leadership::ElectionState::new(&config, boot),
            disk: checkpoint::Checkpoints::new(applied, now),
            ready: ready::ReadyState::new(applied, boot.hard_state.term),
            applied: Applied {
                index: applied,
                term: applied_term,
                log_time_ms: boot.log_time_ms,
                next_due_ms: boot.next_due_ms,
                ..Applied::default()
            },
            role: RoleChange { term: boot.hard_state.term, ..RoleChange::default() },
            raft: RawNodeDebug(raft),
            logger: logger.clone(),
            now,
            effects: Vec::new(),
            pending: PendingProposals::default(),
            reads: Reads::default(),
            chains: VecDeque::new(),
            repair: repair::Repair::new(boot.damaged),
            histories: histories::Histories::default(),
            pressure: Pressure::default(),
            standing: standing::Eligibility::default(),
            advance_index: 0,
            config,
        };
        replica.leadership.redraw(&mut replica.raft.0);
        Ok(replica)
    }

    /// Takes one input and says what to do about it, in order.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        debug_assert!(now.boot_ms >= self.now.boot_ms, "the boot clock does not go back");
        self.now = now;
        let steps = crate::mutant!(StepInstalling) && matches!(input, Input::Peer(_));
        if self.histories.is_stopped() {
            self.step_while_stopped(input);
        } else if self.ready.is_installing() && !steps {
            self.step_while_installing(input);
        } else {
            self.take(input);
        }
        if !self.ready.is_installing() && !self.histories.is_stopped() {
            self.flush();
        }
        std::mem::take(&mut self.effects)
    }

    /// See [`Status::uncertain`].
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        self.leadership.is_uncertain()
    }

    fn leads(&self) -> bool {
        self.role.role == Role::Leader
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Tick => self.tick(),
            Input::Peer(peer) => self.on_message(*peer),
            Input::Propose(proposals) => self.take_proposals(proposals),
            Input::Read(reads) => self.take_reads(reads),
            Input::Cancel(call) => {
                self.pending.cancel(call);
                self.reads.cancel(call);
                self.effects.push(Effect::CancelQuery(call));
            }
            Input::Claim(call) => self.effects.extend(self.pending.offers.claim(call)),
            Input::Persisted(number) => self.persisted(number),
            Input::Applied(all) => all.into_iter().for_each(|applied| self.take_applied(applied)),
            Input::Due { read, due_ms } => self.take_due(read, due_ms),
            Input::Checkpointed { index, overlay_bytes } => self.checkpointed(index, overlay_bytes),
            Input::Fetched { ticket, entries } => self.fetched(ticket, entries),
            Input::SnapshotOpened { to, snapshot } => self.snapshot_opened(to, snapshot),
            Input::SnapshotSent { to, ok } => self.snapshot_sent(to, ok),
            Input::SnapshotReceived { peer, generation } => {
                self.snapshot_received(*peer, generation)
            }
            // Only asked for while installing.
            Input::SnapshotInstalled { .. } => {}
            Input::Damaged => self.damaged(),
            Input::Restored(applied) => self.restored(*applied),
            Input::Digested(digest) => self.digested(digest),
            Input::Unreachable(node) => self.raft.0.report_unreachable(node),
            Input::Uncertain { node, uncertain } => self.peer_is_uncertain(node, uncertain),
            Input::Suspect(peer) => self.suspect(peer),
            Input::Transfer { call, to } => self.transfer(call, to),
            Input::Pressure(_) | Input::Obstacle { .. } | Input::PeerObstacles { .. } => {
                self.note_standing(input);
            }
        }
        self.leadership.settle(&mut self.raft.0);
    }

    fn take_proposals(&mut self, proposals: Vec<Proposal>) {
        let room = self.room();
        for proposal in proposals {
            let refused = if !self.leads() {
                Some(self.not_leader())
            } else if self.repair.answers_nothing() {
                Some(self.silent_refusal())
            } else if room == Room::Missing && !pending::frees_space(&proposal.command) {
                Some(Self::no_room())
            } else {
                None
            };
            let effect = match refused {
                Some(why) => Some(refuse(proposal.call, why)),
                None => self.pending.enqueue(proposal),
            };
            self.effects.extend(effect);
        }
    }

    fn take_reads(&mut self, reads: Vec<Read>) {
        if self.leads() && !self.repair.answers_nothing() {
            for read in self.reads.enqueue(reads) {
                let why = refusal(Reason::Overloaded, "too many reads wait for this shard");
                self.effects.push(refuse(read.call, why));
            }
        } else {
            let why = if self.leads() { self.silent_refusal() } else { self.not_leader() };
            self.effects.extend(reads.into_iter().map(|read| refuse(read.call, why.clone())));
        }
    }

    fn take_due(&mut self, read: Read, due_ms: u64) {
        if self.leads() && !self.repair.answers_nothing() {
            self.reads.wait_for_time(due_ms, read);
            self.reads.time_is(self.applied.log_time_ms);
        } else {
            let why = self.not_leader();
            self.effects.push(refuse(read.call, why));
        }
    }

    /// The refusal of a replica that does not lead, with the leader where it is known.
    fn not_leader(&self) -> Refusal {
        match self.role.leader {
            Some(leader) if leader != self.config.node => Refusal {
                metadata: [("leader".to_owned(), leader.to_string())].into(),
                ..refusal(Reason::NotLeader, "this node does not lead the shard")
            },
            _ => refusal(Reason::NoQuorum, "the shard has no leader with a quorum"),
        }
    }

    fn tick(&mut self) {
        // Above the limit of apply lag a follower takes no more and does not stand for election either.
        let stuck = self.apply_is_behind() && !self.leads();
        if self.repair.is_damaged() {
            self.tick_damaged();
        } else if !stuck && !self.leadership.abstains(&self.raft.0) && !self.defers() {
            self.raft.0.tick();
        }
        self.reads.sweep();
        self.pending.sweep(self.applied.index, self.now);
        self.pending.offers.expire(self.config.node, self.now, &mut self.effects);
        if self.leads() {
            self.pending.propose_lost(self.config.node);
        }
        let why = refusal(Reason::NoQuorum, "the shard could not confirm its leader in time");
        self.reads.expire(self.now, &why, &mut self.effects);
        let why =
            refusal(Reason::DeadlinePassed, "the deadline passed before the command was proposed");
        self.pending.expire(self.now, &why, &mut self.effects);
        self.review_standing();
        if self.leads() && self.room() == Room::Missing {
            self.pending.refuse_what_takes_room(&Self::no_room(), &mut self.effects);
        }
        self.care_for_leadership();
        self.care_for_disk();
    }

    fn on_message(&mut self, peer: Peer) {
        let Peer { mut message, time, chain, digest, wants_state_from, differs } = peer;
        if !self.config.voters.contains(&message.from) || message.to != self.config.node {
            return;
        }
        self.hear_time(&message, time, chain.index);
        self.leadership.heard(message.from, self.now);
        self.compare(message.from, chain, digest);
        self.peer_wants_state(message.from, wants_state_from);
        if self.stops_for(&message) {
            return;
        }
        if message.term >= self.raft.0.raft.term {
            self.told_to_differ(message.from, differs);
        }
        match message.get_msg_type() {
            // Never taken from a peer: proposals and reads reach a leader by forwarding, snapshots by their stream.
            MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp
            | MessageType::MsgTransferLeader
            | MessageType::MsgSnapshot => return,
            MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
            | MessageType::MsgTimeoutNow
                if self.leadership.abstains(&self.raft.0) =>
            {
                return;
            }
            MessageType::MsgTimeoutNow if self.must_not_lead() => return,
            MessageType::MsgAppend if self.apply_is_behind() => return,
            // What its leader believes that it has may be lost with the end of its log, or be another leader's entry.
            MessageType::MsgHeartbeat if self.is_uncertain() => {
                message.commit = message.commit.min(self.raft.0.raft.raft_log.committed);
            }
            _ => {}
        }
        let (kind, from) = (message.get_msg_type(), message.from);
        let (term, commit) = (message.term, message.commit);
        let prior = (message.index, message.log_term);
        let last = message.entries.last().map_or(prior, |entry| (entry.index, entry.term));
        // An error here is a message that raft has no use for.
        if self.raft.0.step(message).is_err() {
            return;
        }
        if kind == MessageType::MsgAppend {
            self.leadership.appended(&self.raft.0, term, commit, last);
        }
        if kind == MessageType::MsgHeartbeatResponse
            && self.leads()
            && self.leadership.is_uncertain_peer(from)
        {
            // Only an append can make it certain, and without new entries none would come.
            self.raft.0.raft.send_append(from);
        }
    }

    /// A peer may have lost what it acknowledged: its leader forgets what it knew of its log, and looks for where they
    /// agree. raft would take every refusal below what was acknowledged for an old one, and send nothing again.
    fn peer_is_uncertain(&mut self, node: NodeId, uncertain: bool) {
        self.leadership.peer_is_uncertain(node, uncertain);
        let next = self.raft.0.raft.raft_log.last_index() + 1;
        if uncertain
            && self.leads()
            && let Some(progress) = self.raft.0.raft.mut_prs().get_mut(node)
        {
            progress.matched = 0;
            progress.become_probe();
            progress.next_idx = next;
        }
    }

    /// The leader that stamps is the clock of its shard. What another replica reckons may be more, from before the
    /// last stamps: to come back to it would end early what those stamps set.
    fn hear_time(&mut self, message: &Message, time: PeerTime, applied: u64) {
        let of_leader = matches!(
            message.get_msg_type(),
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
        );
        let raft = &self.raft.0.raft;
        if of_leader && message.term >= raft.term {
            // Only that leader made entries of its term: one of them at our end stands on what the leader has.
            let has_its_log = raft.raft_log.last_term() == message.term;
            self.clock.follow(time, has_its_log, self.now);
        } else if applied >= raft.raft_log.last_index() {
            self.clock.heard(time, self.now);
        }
    }

    fn take_applied(&mut self, mut applied: Applied) {
        self.clock.applied(applied.log_time_ms, applied.wall_ms, self.now);
        // A state that took the place of a damaged one may begin before what raft was told of.
        if applied.index > self.raft.0.raft.raft_log.applied() {
            self.raft.0.advance_apply_to(applied.index);
        }
        if self.leads() && self.raft.0.raft.apply_to_current_term() {
            self.clock.resume(self.now);
        }
        let chain = Chain { index: applied.index, hash: applied.chain };
        self.note_state(chain, applied.digest_point);
        for (call, answer) in std::mem::take(&mut applied.polls) {
            let position = crate::Position {
                term: applied.term,
                index: applied.index,
                ordinal: u32::MAX,
                log_time_ms: applied.log_time_ms,
            };
            self.effects.push(Effect::Reply(call, Reply::Answered(position, answer)));
        }
        self.pending.applied(&mut applied, self.now, &mut self.effects);
        self.reads.time_is(applied.log_time_ms);
        self.applied = Applied { events: Vec::new(), ..applied };
    }

    fn fetched(&mut self, ticket: u64, entries: Vec<raft_proto::eraftpb::Entry>) {
        let context: Option<GetEntriesContext> =
            self.raft.0.mut_store().begin_fetch(ticket, entries);
        if let Some(context) = context {
            self.raft.0.on_entries_fetched(context);
        }
        self.raft.0.mut_store().end_fetch();
    }

    /// Does what can be done now: proposes, begins a round of reads, and carries out what raft wants.
    fn flush(&mut self) {
        loop {
            // Raft's role first: it would forward a proposal of a follower silently.
            self.note_role();
            self.propose();
            self.begin_reads();
            if !self.raft.0.has_ready() {
                break;
            }
            self.take_ready();
            self.leadership.settle(&mut self.raft.0);
            if self.ready.is_installing() {
                return;
            }
        }
        self.note_role();
        self.ask_ready_reads();
        self.ask_for_log();
    }

    fn propose(&mut self) {
        // One entry is written while the next gathers.
        while self.leads()
            && !self.repair.is_damaged()
            && self.ready.may_propose()
            && (self.clock.may_stamp() || crate::mutant!(ForgottenTime))
            && !self.apply_is_behind()
            && !self.disk.is_full(&self.applied)
            && !self.holds_back()
        {
            let frees_only = self.room() != Room::There;
            let mut batch = self.pending.next_batch(self.now, frees_only, &mut self.effects);
            let digest_point = self.should_digest();
            if batch.is_empty() && !digest_point && !self.should_advance() {
                return;
            }
            let term = self.raft.0.raft.term;
            let entry = Entry {
                log_time_ms: self.clock.read(self.now),
                wall_ms: self.now.wall_ms,
                term,
                machine_version: MACHINE_VERSION,
                digest_point,
                commands: batch
                    .iter_mut()
                    .map(|proposal| std::mem::take(&mut proposal.command))
                    .collect(),
            };
            let data = entry.encode_to_vec();
            if self.raft.0.propose(Vec::new(), data).is_err() {
                // A transfer is under way, or too much is uncommitted: later.
                for (proposal, command) in batch.iter_mut().zip(entry.commands) {
                    proposal.command = command;
                }
                self.pending.put_back(batch);
                return;
            }
            let index = self.raft.0.raft.raft_log.last_index();
            self.advance_index = index;
            self.ready.proposed();
            self.disk.proposed();
            self.pending.proposed(index, term, &batch, &entry.commands);
        }
    }

    fn holds_back(&self) -> bool {
        self.disk.holds_back(self.raft.0.store().bytes(), self.config.tuning.log_bytes_max)
    }

    /// Whether log time has to move although nobody proposes anything.
    fn should_advance(&self) -> bool {
        let under_way = self.advance_index > self.applied.index;
        if under_way || self.repair.is_disputed() || !self.raft.0.raft.apply_to_current_term() {
            return false;
        }
        let now_ms = self.clock.read(self.now);
        let due = [self.applied.next_due_ms, self.reads.next_due_ms()].into_iter().flatten().min();
        due.is_some_and(|due| due <= now_ms)
    }

    fn begin_reads(&mut self) {
        // Before an entry of its own term is committed, a leader's commit index may be old, and raft would drop the round.
        let may_be_old = !self.raft.0.raft.commit_to_current_term();
        if !self.leads() || (may_be_old && !crate::mutant!(ReadOldTerm)) {
            return;
        }
        if let Some(context) = self.reads.begin_round(self.now, leadership::ELECTION_MS_MAX) {
            let (at_once, early) = (crate::mutant!(ReadWithoutRound), crate::mutant!(ReadOldTerm));
            if at_once || (may_be_old && early) {
                return self.reads.confirmed(context, self.raft.0.raft.raft_log.committed);
            }
            let context = [self.raft.0.raft.term.to_be_bytes(), context.to_be_bytes()].concat();
            self.raft.0.read_index(context);
        }
    }

    fn ask_ready_reads(&mut self) {
        let reads = self.reads.ready(self.ready.handed_out());
        if !reads.is_empty() {
            let (term, now_ms) = (self.role.term, self.clock.read(self.now));
            self.effects.push(Effect::Query { reads, term, now_ms });
        }
    }

    fn ask_for_log(&mut self) {
        let store = self.raft.0.mut_store();
        while let Some((ticket, first, last, max_bytes)) = store.next_fetch() {
            self.effects.push(Effect::Fetch { ticket, first, last, max_bytes });
        }
        for to in self.raft.0.mut_store().take_wanted_snapshots() {
            self.want_snapshot(to);
        }
    }

    fn apply_is_behind(&self) -> bool {
        let log = self.raft.0.store();
        log.bytes_between(self.applied.index, self.ready.handed_out()) > l::APPLY_LAG_BYTES_MAX
    }

    /// Tells who this replica is now, when that changed.
    fn note_role(&mut self) {
        let raft = &self.raft.0.raft;
        let role = match raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        let leader = Some(raft.leader_id).filter(|leader| *leader != 0);
        let change = RoleChange { role, term: raft.term, leader };
        if change == self.role {
            return;
        }
        let led = std::mem::replace(&mut self.role, change);
        if led.role != role || led.term != change.term {
            self.repair.role_changed();
        }
        if led.role == Role::Leader && (role != Role::Leader || led.term != change.term) {
            self.step_down();
        }
        if role == Role::Leader && (led.role != Role::Leader || led.term != change.term) {
            // Indexes are about to be used again.
            self.pending.forget_proposed(&mut self.effects);
            self.advance_index = 0;
        }
        self.leadership.role_changed(&self.role, &mut self.effects);
        self.effects.push(Effect::Role(change));
    }

    fn step_down(&mut self) {
        let why = self.not_leader();
        self.stop_answering(&why);
        self.close_snapshots();
    }

    fn stop_answering(&mut self, why: &Refusal) {
        self.reads.refuse_all(why, &mut self.effects);
        let give_up_ms = self.now.boot_ms + leadership::ELECTION_MS_MAX;
        self.pending.step_down(why, give_up_ms, &mut self.effects);
        self.effects.push(Effect::StepDown { refusal: why.clone() });
    }
}
