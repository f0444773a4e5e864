//! Who can lead: what keeps this node and its peers from it, whom that makes the better leader, and whether a
//! majority has room for what is written.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use trefoil_proto::cluster::v1::Obstacle;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use super::delivery::DeliveryTimes;
use super::leadership::ELECTION_MS_MAX;
use super::obstacles::{Harm, MUST_NOT_LEAD, Obstacles};
use super::replies::refusal;
use super::{Input, Pressure, Replica};
use crate::{NodeId, limits as l};

/// How long a leader without room makes writes wait for a node that has it, before it refuses them.
const HAND_OVER_MS: u64 = 4 * ELECTION_MS_MAX;

/// Entries by which a node may lag that is given a shard unasked.
pub(super) const LAG_MAX: u64 = 1_000;

/// What is known of who can lead.
#[derive(Debug, Default)]
pub(super) struct Eligibility {
    /// What this node was told of itself.
    told: Obstacles,
    /// What peers said of themselves.
    peers: BTreeMap<NodeId, Obstacles>,
    /// Until when a slow sync counts, in boot ms.
    slow_disk_until_ms: u64,
    pub(super) link: DeliveryTimes,
    /// Since when this node leads, in boot ms.
    leads_since_ms: Option<u64>,
    /// Since when it leads although something keeps it from that.
    unfit_since_ms: Option<u64>,
    /// Ticks for which a due election was left to others.
    deferred: usize,
}

/// What becomes of commands that take room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    There,
    /// They wait until a node with room leads.
    Awaited,
    Missing,
}

impl Replica {
    /// What keeps this node from leading.
    pub(super) fn obstacles(&self) -> Obstacles {
        let no_room = self.pressure.disk_low && !crate::mutant!(FullLeads);
        let slow_disk = self.standing.slow_disk_until_ms > self.now.boot_ms;
        let seen = Obstacles::NONE
            .with(Obstacle::NoRoom, no_room)
            .with(Obstacle::SlowLink, self.is_narrow())
            .with(Obstacle::SlowDisk, slow_disk)
            .with(Obstacle::Damaged, self.repair.is_damaged());
        self.standing.told.and(seen)
    }

    /// Takes what the owner of the node or a peer says of who can lead.
    pub(super) fn note_standing(&mut self, input: Input) {
        match input {
            Input::Obstacle { obstacle, stands } => {
                self.standing.told = self.standing.told.with(obstacle, stands);
            }
            Input::PeerObstacles { node, obstacles } => {
                self.standing.peers.insert(node, obstacles);
            }
            Input::Pressure(pressure) => {
                let wants_checkpoint = pressure.wants_checkpoint || self.pressure.wants_checkpoint;
                self.pressure = Pressure { wants_checkpoint, ..pressure };
            }
            _ => {}
        }
    }

    /// Looks at the time again, once a tick.
    pub(super) fn review_standing(&mut self) {
        let now_ms = self.now.boot_ms;
        if self.disk_is_slower_than(ELECTION_MS_MAX) {
            // A while longer than the sync, so that leaders do not come and go with each.
            self.standing.slow_disk_until_ms = now_ms + l::LEADER_BALANCE_MS;
        }
        if self.cannot_deliver() {
            self.standing.link.is_slow(now_ms);
        }
        let unfit = self.leads() && !self.obstacles().is_empty();
        let since = |before: Option<u64>, stands: bool| stands.then(|| before.unwrap_or(now_ms));
        self.standing.leads_since_ms = since(self.standing.leads_since_ms, self.leads());
        self.standing.unfit_since_ms = since(self.standing.unfit_since_ms, unfit);
    }

    pub(super) fn harm(&self) -> Harm {
        self.obstacles().harm()
    }

    pub(super) fn peer_obstacles(&self, peer: NodeId) -> Obstacles {
        self.standing.peers.get(&peer).copied().unwrap_or_default()
    }

    pub(super) fn others(&self) -> impl Iterator<Item = NodeId> {
        let node = self.config.node;
        self.config.voters.iter().copied().filter(move |voter| *voter != node)
    }

    /// Whether a peer has nearly all of this leader's log.
    fn is_caught_up(&self, peer: NodeId) -> bool {
        let raft = &self.raft.0.raft;
        let last = raft.raft_log.last_index();
        // A leader whose first entries do not arrive knows what is committed there, from answers to heartbeats.
        raft.prs().get(peer).is_some_and(|progress| {
            progress.matched.max(progress.committed_index) + LAG_MAX >= last
        })
    }

    /// Whether a peer answers, and has all that it ever acknowledged.
    fn is_sound(&self, peer: NodeId) -> bool {
        self.leadership.was_heard(peer, self.now, ELECTION_MS_MAX)
            && !self.leadership.is_uncertain_peer(peer)
    }

    /// Whether nothing speaks against a peer as the leader.
    pub(super) fn can_lead(&self, peer: NodeId) -> bool {
        self.is_sound(peer)
            && self.is_caught_up(peer)
            && self.peer_obstacles(peer).is_empty()
            && !self.standing.link.is_late(peer, self.now.boot_ms)
    }

    /// Whether a majority has no more than a peer, as far as this leader knows; it has more itself.
    pub(super) fn can_win(&self, peer: NodeId) -> bool {
        let matched = |peer| self.raft.0.raft.prs().get(peer).map_or(0, |known| known.matched);
        let voters = self.others().filter(|other| matched(*other) <= matched(peer)).count();
        voters > self.config.voters.len() / 2
    }

    /// The peer that should lead rather than any other, of those that what keeps them harms less than this.
    pub(super) fn best_peer(&self, harm: Harm, may_lag: bool) -> Option<NodeId> {
        let matched =
            |peer| self.raft.0.raft.prs().get(peer).map_or(0, |progress| progress.matched);
        self.others()
            .filter(|peer| self.is_sound(*peer) && (may_lag || self.is_caught_up(*peer)))
            .filter(|peer| self.peer_obstacles(*peer).harm() < harm)
            .min_by_key(|peer| {
                let harm = self.peer_obstacles(*peer).harm();
                (!self.is_caught_up(*peer), harm, Reverse(matched(*peer)))
            })
    }

    /// Whether this node may lead under no circumstances.
    pub(super) fn must_not_lead(&self) -> bool {
        self.harm() >= MUST_NOT_LEAD
    }

    /// Whether this node's entries reach no majority in time.
    pub(super) fn is_narrow(&self) -> bool {
        self.standing.link.slow_until_ms > self.now.boot_ms
    }

    /// Whether a leader that must not lead could not hand over.
    pub(super) fn must_fall_silent(&self) -> bool {
        let late = |since| self.now.boot_ms - since > 2 * ELECTION_MS_MAX;
        let has_better = || self.best_peer(self.harm(), false).is_some();
        (self.must_not_lead() || (self.is_narrow() && has_better()))
            && self.standing.unfit_since_ms.is_some_and(late)
    }

    /// Whether an election that is due is left to those who can lead: until each of them had the time for one.
    pub(super) fn defers(&mut self) -> bool {
        let raft = &self.raft.0.raft;
        let due = raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        let harm = self.harm();
        let better = self.others().any(|peer| self.peer_obstacles(peer).harm() < harm);
        if self.leads() || !due || !better {
            self.standing.deferred = 0;
            return false;
        }
        self.standing.deferred += 1;
        self.must_not_lead() || self.standing.deferred <= l::ELECTION_TICKS_MAX
    }

    /// Whether a hand-over to a better leader is tried often: at first, while callers wait for it.
    pub(super) fn is_pressed(&self) -> bool {
        let fresh = |since| self.now.boot_ms - since < HAND_OVER_MS;
        self.standing.unfit_since_ms.is_none_or(fresh)
    }

    /// A command that takes room is committed by a majority that has room, and answered by a leader that has room.
    pub(super) fn room(&self) -> Room {
        if crate::mutant!(FullLeads) {
            return if self.pressure.disk_low { Room::Missing } else { Room::There };
        }
        let here = !self.pressure.disk_low;
        let lacks_room = |peer: &NodeId| self.peer_obstacles(*peer).has(Obstacle::NoRoom);
        if here && !self.others().any(|peer| lacks_room(&peer)) {
            return Room::There;
        }
        let new =
            |since: Option<u64>| since.is_none_or(|at| self.now.boot_ms - at < ELECTION_MS_MAX);
        let new = new(self.standing.leads_since_ms);
        let present =
            |peer: &NodeId| new || self.leadership.was_heard(*peer, self.now, l::PEER_SILENCE_MS);
        let (without, with): (Vec<NodeId>, Vec<NodeId>) =
            self.others().filter(present).partition(lacks_room);
        let with = with.len() + usize::from(here);
        if with <= self.config.voters.len() / 2 && (!here || !without.is_empty()) {
            Room::Missing
        } else if here {
            Room::There
        } else if self.is_pressed() {
            Room::Awaited
        } else {
            Room::Missing
        }
    }

    pub(super) fn no_room() -> Refusal {
        refusal(Reason::DiskFull, "the disks of too many of the shard's members are nearly full")
    }
}
