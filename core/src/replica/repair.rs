//! A replica whose state is damaged, or is not what the others have.
//!
//! What is damaged is the state, never the log: the replica goes on to persist, to acknowledge and to vote, so that a
//! quorum stays as large as it was. It does not apply or answer until a state of its leader has taken the place of its
//! own; its log goes on from there. It leads only where nobody else is elected, to bring its log to one who can. The
//! state may be any that its own log leads on from, so that nothing that it acknowledged is ever dropped, and raft
//! itself does not hear of the change (docs/decisions/0011-damaged-state.md).
//!
//! Damage is found by the shell, which cannot read what it wrote, or by comparing states: every message tells the hash
//! of all writes so far, and the digest of the whole state at the last index that an entry named for it. The leader
//! compares. Whoever differs while a majority agrees is damaged; while there is no such majority, the leader refuses
//! everything.

use std::collections::BTreeMap;

use protobuf::SingularPtrField;
use raft::StateRole;
use raft_proto::eraftpb::{Message, MessageType, Snapshot};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use super::effect::Effect;
use super::input::Chain;
use super::replies::refusal;
use super::{CHAINS_KEPT, Replica};
use crate::machine::Applied;
use crate::{NodeId, limits as l};

/// What a peer said of its state, compared with this replica's.
#[derive(Clone, Copy, Debug)]
struct Compared {
    theirs: Chain,
    equal: bool,
}

/// The last comparison of each kind.
#[derive(Clone, Copy, Debug, Default)]
struct Peers {
    chain: Option<Compared>,
    digest: Option<Compared>,
}

/// Ticks that a damaged replica leaves elections to others (9.6 s).
const LAST_RESORT_TICKS: usize = 8 * l::ELECTION_TICKS_MAX;

#[derive(Debug, Default)]
pub(super) struct Repair {
    damaged: bool,
    /// A received state is being put in the place of the damaged one.
    restoring: bool,
    /// No majority agrees with this leader, and none against it.
    disputed: bool,
    /// Digest of the state at the last index that was named for it.
    digest: Chain,
    /// The last index that was named: index, and when that was seen here, in boot ms.
    named: (u64, u64),
    peers: BTreeMap<NodeId, Peers>,
    /// What peers whose state is not that of a majority said of it.
    differs: BTreeMap<NodeId, Chain>,
    /// Peers whose state is damaged, and when each may be sent another one, in boot ms.
    wanting: BTreeMap<NodeId, u64>,
    /// Peers for which a state is being opened.
    opening: Vec<NodeId>,
}

impl Repair {
    pub(super) fn new(damaged: bool) -> Self {
        Self { damaged, ..Self::default() }
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged
    }

    pub(super) fn is_disputed(&self) -> bool {
        self.disputed
    }

    /// Whether this replica answers nothing, also as the leader.
    pub(super) fn answers_nothing(&self) -> bool {
        self.disputed || self.damaged
    }

    pub(super) fn is_restoring(&self) -> bool {
        self.restoring
    }

    pub(super) fn digest(&self) -> Chain {
        self.digest
    }

    /// What to tell a peer about its state.
    pub(super) fn differs(&self, peer: NodeId) -> Chain {
        self.differs.get(&peer).copied().unwrap_or_default()
    }

    /// ElectionState changed: who leads compares anew.
    pub(super) fn role_changed(&mut self) {
        self.disputed = false;
        self.peers.clear();
        self.differs.clear();
        self.wanting.clear();
        self.opening.clear();
    }

    /// A whole state has come in the place of the old one.
    pub(super) fn made_whole(&mut self) {
        *self = Self { named: self.named, ..Self::default() };
    }
}

impl Replica {
    /// The state cannot be believed any more: neither leads nor answers from here on.
    pub(super) fn damaged(&mut self) {
        if crate::mutant!(DamagedLeads) {
            return;
        }
        self.repair.restoring = false;
        if std::mem::replace(&mut self.repair.damaged, true) {
            return;
        }
        self.chains.clear();
        self.repair.digest = Chain::default();
        let raft = &mut self.raft.0.raft;
        if raft.state == StateRole::Leader
            && let Ok(to) = self.transfer_target(None)
        {
            // It need not wait for the silence of this one.
            self.raft.0.raft.send_timeout_now(to);
        }
        let raft = &mut self.raft.0.raft;
        if raft.state != StateRole::Follower {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        self.note_role();
    }

    /// Time of a replica that leaves elections to others: only its patience with a silent leader runs out, so that
    /// it votes for another one. Where nobody is elected for long, those who can lead may lack entries that it has, and
    /// the others may abstain: then it stands, brings them its log, and hands over.
    pub(super) fn tick_damaged(&mut self) {
        let raft = &self.raft.0.raft;
        let stands = raft.state != StateRole::Follower || raft.election_elapsed > LAST_RESORT_TICKS;
        if stands && !self.leadership.abstains(&self.raft.0) {
            self.raft.0.tick();
        } else {
            let raft = &mut self.raft.0.raft;
            raft.election_elapsed = raft.election_elapsed.saturating_add(1);
        }
    }

    /// Why a leader answers nothing.
    pub(super) fn silent_refusal(&self) -> Refusal {
        if self.repair.disputed {
            return disputed_refusal();
        }
        refusal(Reason::NoQuorum, "no replica that leads the shard has its state whole")
    }

    /// The index at which a state must be at least for this log to lead on from it; 0 when none is wanted.
    pub(super) fn wants_state_from(&self) -> u64 {
        if self.repair.damaged && !self.repair.restoring {
            self.raft.0.raft.store().first() - 1
        } else {
            0
        }
    }

    /// A snapshot arrived that raft has no use for: it may be the state that this replica waits for.
    pub(super) fn restore(&mut self, index: u64, term: u64, generation: u64) -> bool {
        let log = self.raft.0.raft.store();
        let fits = index + 1 >= log.first()
            && index <= self.ready.handed_out()
            && log.term_at(index) == Some(term);
        if !self.repair.damaged || self.repair.restoring || !fits {
            return false;
        }
        self.repair.restoring = true;
        self.effects.push(Effect::Restore { generation, index, term });
        true
    }

    /// The received state is this replica's state now: what was committed after it is applied from the log.
    pub(super) fn restored(&mut self, applied: Applied) {
        if !std::mem::take(&mut self.repair.restoring) {
            return;
        }
        self.repair.made_whole();
        let index = applied.index;
        self.disk.installed(index, self.now);
        self.clock.applied(applied.log_time_ms, applied.wall_ms, self.now);
        self.chains.clear();
        self.applied = applied;
        if index > self.raft.0.raft.raft_log.applied() {
            self.raft.0.advance_apply_to(index);
        }
        let last = self.ready.handed_out();
        if index < last {
            self.hand_out_stored(index + 1, last);
        }
    }

    // === The leader's part ===

    /// A peer's state is damaged: it is sent the last checkpoint, or the next one where that is too old for its log.
    pub(super) fn peer_wants_state(&mut self, peer: NodeId, from: u64) {
        if from == 0 {
            if self.repair.wanting.get(&peer).is_some_and(|at| *at <= self.now.boot_ms) {
                self.repair.wanting.remove(&peer);
            }
            return;
        }
        // What it said of its state before is no argument any more.
        self.repair.peers.remove(&peer);
        self.repair.differs.remove(&peer);
        let at_ms = *self.repair.wanting.entry(peer).or_default();
        self.judge();
        let busy = self.disk.sends_to(peer) || at_ms > self.now.boot_ms;
        if !self.leads() || self.repair.damaged || self.repair.disputed || busy {
            return;
        }
        if self.disk.checkpoint_index() < from {
            return self.disk.want_checkpoint();
        }
        self.repair.wanting.insert(peer, self.now.boot_ms + l::STATE_RETRY_MS);
        self.repair.opening.push(peer);
        self.want_snapshot(peer);
    }

    /// Sends an opened snapshot to a damaged peer, past raft, to which that peer is whole; false when raft wants it.
    pub(super) fn send_state(&mut self, to: NodeId, snapshot: &Snapshot) -> bool {
        let Some(n) = self.repair.opening.iter().position(|peer| *peer == to) else { return false };
        self.repair.opening.remove(n);
        let mut message = Message {
            from: self.config.node,
            to,
            term: self.raft.0.raft.term,
            snapshot: SingularPtrField::some(snapshot.clone()),
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgSnapshot);
        self.send(vec![message]);
        true
    }

    /// The digest of the state at an index that an entry named is known.
    pub(super) fn digested(&mut self, digest: Chain) {
        if !self.repair.damaged && digest.index > self.repair.digest.index {
            self.repair.digest = digest;
        }
    }

    /// Remembers the hash after an entry, and whether the entry named its index for a digest.
    pub(super) fn note_state(&mut self, chain: Chain, named: bool) {
        self.chains.push_back(chain);
        if self.chains.len() > CHAINS_KEPT {
            self.chains.pop_front();
        }
        if named {
            self.repair.named = (chain.index, self.now.boot_ms);
        }
    }

    /// Whether the next entry shall name its index for a digest.
    pub(super) fn should_digest(&self) -> bool {
        let (index, at_ms) = self.repair.named;
        let (applied, age_ms) = (self.applied.index, self.now.boot_ms - at_ms);
        let due = applied >= index + self.config.tuning.digest_entries
            && age_ms >= self.config.tuning.digest_age_ms;
        let soon = self.repair.disputed && applied >= index && age_ms >= l::STATE_RETRY_MS;
        (due || soon)
            && self.config.voters.len() > 1
            && self.advance_index <= applied
            && self.raft.0.raft.apply_to_current_term()
    }

    /// Compares what a peer says of its state with this one.
    pub(super) fn compare(&mut self, peer: NodeId, chain: Chain, digest: Chain) {
        if self.repair.damaged || chain.index == 0 {
            return;
        }
        let ours = self.chains.binary_search_by_key(&chain.index, |chain| chain.index);
        let ours = ours.ok().map(|n| self.chains[n]);
        if let Some(ours) = ours {
            self.compare_history(peer, chain, ours.hash == chain.hash);
        }
        let own_digest = self.repair.digest;
        let known = self.repair.peers.entry(peer).or_default();
        let before = known.differs();
        note(&mut known.chain, chain, ours);
        if digest.index > 0 && !crate::mutant!(DigestIgnored) {
            let ours = Some(own_digest).filter(|ours| ours.index == digest.index);
            note(&mut known.digest, digest, ours);
        }
        let after = known.differs();
        if let Some(theirs) = after
            && before.is_none()
        {
            self.effects.push(Effect::Diverged { peer, index: theirs.index });
        }
        if self.leads() {
            self.judge();
        }
    }

    /// A leader of this term says that this replica's state is not that of a majority. One that may have lost what is here
    /// has no say in that.
    pub(super) fn told_to_differ(&mut self, by: NodeId, said: Chain) {
        let is_ours = said.index > 0
            && (self.repair.digest == said || self.chains.binary_search(&said).is_ok());
        if !is_ours || self.repair.damaged || self.leads() {
            return;
        }
        if self.is_suspect(by) {
            self.stop_for(by);
        } else {
            self.outvoted(said.index);
        }
    }

    /// Who is right: those who agree with this leader, if they are a majority with it.
    fn judge(&mut self) {
        if !self.leads() || self.repair.damaged {
            return;
        }
        let majority = self.config.voters.len() / 2 + 1;
        let mut disputed = false;
        self.repair.differs.clear();
        for kind in [|peers: &Peers| peers.chain, |peers: &Peers| peers.digest] {
            let seen = self.repair.peers.iter();
            let seen = seen.filter_map(|(peer, peers)| Some((*peer, kind(peers)?)));
            let seen = seen.collect::<Vec<_>>();
            let differ = seen.iter().filter(|(_, compared)| !compared.equal).collect::<Vec<_>>();
            let Some(at) = differ.iter().map(|(_, compared)| compared.theirs.index).max() else {
                continue;
            };
            let agree = seen
                .iter()
                .filter(|(_, compared)| compared.equal && compared.theirs.index >= at)
                .count();
            if agree + 1 >= majority {
                let differ = differ.iter().map(|(peer, compared)| (*peer, compared.theirs));
                self.repair.differs.extend(differ);
            } else if differ.len() >= majority {
                return self.outvoted(at);
            } else {
                disputed = true;
            }
        }
        if disputed && !self.repair.disputed {
            self.effects.push(Effect::Disputed(true));
            let why = disputed_refusal();
            self.stop_answering(&why);
            self.pending.forget_proposed(&mut self.effects);
        } else if self.repair.disputed && !disputed {
            self.effects.push(Effect::Disputed(false));
        }
        self.repair.disputed = disputed;
    }

    fn outvoted(&mut self, index: u64) {
        self.effects.push(Effect::Outvoted { index });
        self.damaged();
    }
}

/// Why a leader refuses everything while no majority agrees with it.
fn disputed_refusal() -> Refusal {
    refusal(
        Reason::StateDisputed,
        "the replicas of the shard hold different states and no majority agrees",
    )
}

impl Peers {
    fn differs(&self) -> Option<Chain> {
        let compared = [self.chain, self.digest].into_iter().flatten();
        compared.filter(|compared| !compared.equal).map(|compared| compared.theirs).next()
    }
}

/// Notes a comparison, unless it is older than the last one.
fn note(last: &mut Option<Compared>, theirs: Chain, ours: Option<Chain>) {
    if let Some(ours) = ours
        && last.is_none_or(|last| last.theirs.index <= theirs.index)
    {
        *last = Some(Compared { theirs, equal: ours.hash == theirs.hash });
    }
}
