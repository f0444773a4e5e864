//! Who should lead: election timeouts, the preferred leader, transfers, a leader that another one is better than, and
//! a replica that has lost the end of its log.

use std::collections::{BTreeMap, BTreeSet};

use raft::{RawNode, StateRole};
use raft_proto::eraftpb::{Message, MessageType};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Done, answer};

use super::effect::{Effect, Reply, Role, RoleChange};
use super::input::{Boot, ReplicaConfig};
use super::obstacles::MUST_NOT_LEAD;
use super::replies::{refusal, refuse};
use super::{Log, Replica};
use crate::limits as l;
use crate::{BIRTH_INDEX, BIRTH_TERM, CallId, NodeId, Now, Position};

/// The longest election timeout, in ms.
pub(super) const ELECTION_MS_MAX: u64 = l::ELECTION_TICKS_MAX as u64 * l::TICK_MS;

#[derive(Debug)]
struct Transfer {
    call: CallId,
    deadline_ms: u64,
}

#[derive(Debug)]
pub(super) struct ElectionState {
    generator: ChaCha8Rng,
    timeout: usize,
    drawn_for: (u64, StateRole),
    /// The shard was just born and this node is to lead it: it does not wait for a timeout.
    campaigns_at_once: bool,
    voters: usize,
    uncertain: bool,
    uncertain_peers: BTreeSet<NodeId>,
    transfer: Option<Transfer>,
    balance_at_ms: u64,
    hand_over_at_ms: u64,
    /// When each peer was heard last, in boot ms.
    heard: BTreeMap<NodeId, u64>,
}

impl ElectionState {
    pub(super) fn new(config: &ReplicaConfig, boot: &Boot) -> Self {
        let newborn = boot.last_index == BIRTH_INDEX
            && boot.hard_state.term == BIRTH_TERM
            && boot.hard_state.vote == 0;
        let seed = config.seed ^ (u64::from(config.shard) << 32) ^ config.node.rotate_left(48);
        Self {
            generator: ChaCha8Rng::seed_from_u64(seed),
            timeout: l::ELECTION_TICKS_MIN,
            drawn_for: (0, StateRole::Follower),
            campaigns_at_once: newborn && config.preferred_leader == config.node,
            voters: config.voters.len(),
            uncertain: boot.uncertain,
            uncertain_peers: BTreeSet::new(),
            transfer: None,
            balance_at_ms: 0,
            hand_over_at_ms: 0,
            heard: BTreeMap::new(),
        }
    }

    /// Draws an election timeout and sets it.
    pub(super) fn redraw(&mut self, raft: &mut RawNode<Log>) {
        let span = (l::ELECTION_TICKS_MAX - l::ELECTION_TICKS_MIN) as u64;
        let drawn = usize::try_from(self.generator.next_u64() % span).expect("the span is small");
        self.timeout = l::ELECTION_TICKS_MIN + drawn;
        self.drawn_for = (raft.raft.term, raft.raft.state);
        raft.raft.set_randomized_election_timeout(self.timeout);
    }

    /// raft draws a timeout of its own whenever it resets; ours comes from the seed, one for each term and role.
    pub(super) fn settle(&mut self, raft: &mut RawNode<Log>) {
        if raft.raft.state == StateRole::Leader && raft.raft.commit_to_current_term() {
            // Elected where nobody was certain: what it has is what there is.
            self.uncertain = false;
        }
        if self.drawn_for == (raft.raft.term, raft.raft.state) {
            raft.raft.set_randomized_election_timeout(self.timeout);
        } else {
            self.redraw(raft);
        }
    }

    pub(super) fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    /// A replica that lost the end of its log may have lost what it acknowledged. It takes no part in elections until
    /// it has caught up, unless so many replicas are like it that nobody else could be elected.
    pub(super) fn abstains(&self, raft: &RawNode<Log>) -> bool {
        if crate::mutant!(TornVotes) {
            return false;
        }
        let certain = self.voters - 1 - self.uncertain_peers.len();
        self.uncertain && certain > self.voters / 2 && raft.raft.state != StateRole::Leader
    }

    pub(super) fn peer_is_uncertain(&mut self, node: NodeId, uncertain: bool) {
        if uncertain {
            self.uncertain_peers.insert(node);
        } else {
            self.uncertain_peers.remove(&node);
        }
    }

    /// Whether a peer was said to have lost the end of its log.
    pub(super) fn is_uncertain_peer(&self, node: NodeId) -> bool {
        self.uncertain_peers.contains(&node)
    }

    /// An append of a leader arrived, with `last` as its last entry or the one before them: has this replica taken
    /// it, and caught up with what that leader had committed?
    pub(super) fn appended(
        &mut self,
        raft: &RawNode<Log>,
        term: u64,
        commit: u64,
        last: (u64, u64),
    ) {
        let log = &raft.raft.raft_log;
        if term == raft.raft.term && log.match_term(last.0, last.1) && log.committed >= commit {
            self.uncertain = false;
        }
    }

    pub(super) fn heard(&mut self, node: NodeId, now: Now) {
        self.heard.insert(node, now.boot_ms);
    }

    pub(super) fn was_heard(&self, node: NodeId, now: Now, within_ms: u64) -> bool {
        self.heard.get(&node).is_some_and(|at| now.boot_ms - at <= within_ms)
    }

    pub(super) fn role_changed(&mut self, change: &RoleChange, effects: &mut Vec<Effect>) {
        if change.role != Role::Leader
            && let Some(transfer) = self.transfer.take()
            && transfer.call != 0
        {
            let position = Position { term: change.term, ..Position::default() };
            let done = answer::Answer::Done(Done {}).into();
            effects.push(Effect::Reply(transfer.call, Reply::Answered(position, done)));
        }
    }
}

impl Replica {
    pub(super) fn care_for_leadership(&mut self) {
        if std::mem::take(&mut self.leadership.campaigns_at_once)
            && !self.repair.is_damaged()
            && self.raft.0.campaign().is_err()
        {
            slog::warn!(self.logger, "the first campaign was refused");
        }
        let late = |transfer: &mut Transfer| transfer.deadline_ms <= self.now.boot_ms;
        if let Some(transfer) = self.leadership.transfer.take_if(late)
            && transfer.call != 0
        {
            let why = refusal(Reason::NoQuorum, "the other node did not take over in time");
            self.effects.push(refuse(transfer.call, why));
        }
        let now_ms = self.now.boot_ms;
        if !self.leads() {
            self.leadership.balance_at_ms = now_ms + l::LEADER_BALANCE_MS;
            self.leadership.hand_over_at_ms = 0;
            return;
        }
        let harm = self.harm();
        if harm > 0 {
            self.leadership.balance_at_ms = now_ms + l::LEADER_BALANCE_MS;
            if self.leadership.transfer.is_none()
                && self.leadership.hand_over_at_ms <= now_ms
                && let Some(better) = self.best_peer(harm, false)
            {
                let pause = if self.is_pressed() { ELECTION_MS_MAX } else { l::LEADER_BALANCE_MS };
                self.leadership.hand_over_at_ms = now_ms + pause;
                if self.is_narrow() {
                    // A transfer would wait for what does not arrive. One that cannot win would only raise the term.
                    if self.can_win(better) {
                        self.let_campaign(better);
                    }
                } else {
                    self.transfer(0, Some(better));
                }
            }
        } else if self.leadership.balance_at_ms <= now_ms {
            self.leadership.balance_at_ms = now_ms + l::LEADER_BALANCE_MS;
            self.give_back();
        }
    }

    /// Lets a peer stand for election as it is: those who have no more than it has will vote for it.
    fn let_campaign(&mut self, peer: NodeId) {
        let (term, from) = (self.raft.0.raft.term, self.config.node);
        let mut message = Message { to: peer, from, term, ..Message::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        self.send(vec![message]);
    }

    /// Gives the shard to its preferred leader when that one is healthy.
    fn give_back(&mut self) {
        let preferred = self.config.preferred_leader;
        if preferred != self.config.node && self.can_lead(preferred) && !self.repair.is_disputed() {
            self.transfer(0, Some(preferred));
        }
    }

    pub(super) fn transfer(&mut self, call: CallId, to: Option<NodeId>) {
        let target = if self.leads() { self.transfer_target(to) } else { Err(self.not_leader()) };
        match target {
            Ok(to) => {
                self.raft.0.transfer_leader(to);
                let deadline_ms = self.now.boot_ms + ELECTION_MS_MAX;
                if let Some(before) =
                    self.leadership.transfer.replace(Transfer { call, deadline_ms })
                    && before.call != 0
                {
                    let why = refusal(Reason::NoQuorum, "another transfer took its place");
                    self.effects.push(refuse(before.call, why));
                }
            }
            Err(why) if call != 0 => self.effects.push(refuse(call, why)),
            Err(_) => {}
        }
    }

    pub(super) fn transfer_target(
        &self,
        to: Option<NodeId>,
    ) -> Result<NodeId, trefoil_proto::internal::v1::Refusal> {
        let voters = &self.config.voters;
        match to {
            Some(to) if to == self.config.node || !voters.contains(&to) => {
                Err(crate::check::invalid("to_node_id", "another member of the shard"))
            }
            // One that is no better than this node is none to choose.
            Some(to) if self.peer_obstacles(to).harm() > self.harm() => {
                let why = self.peer_obstacles(to);
                let wanted = format_args!("a member that can lead; that one cannot: {why}");
                Err(crate::check::invalid("to_node_id", wanted))
            }
            Some(to) => Ok(to),
            None => self.best_peer(MUST_NOT_LEAD, true).ok_or_else(|| {
                let why = "no other member of the shard that can lead was heard of lately";
                refusal(Reason::NoQuorum, why)
            }),
        }
    }

    pub(super) fn disk_is_slower_than(&self, ms: u64) -> bool {
        !crate::mutant!(DeadDiskLeads)
            && self.ready.oldest_write_ms().is_some_and(|since| self.now.boot_ms - since > ms)
    }

    /// A leader whose disk hangs or whose data is damaged, and that could not hand over, falls silent: heartbeats must
    /// not hide that from those who can lead.
    pub(super) fn is_muted(&self) -> bool {
        self.leads() && (self.disk_is_slower_than(2 * ELECTION_MS_MAX) || self.must_fall_silent())
    }
}
