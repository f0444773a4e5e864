//! What a leader's entries take to its followers: one whose link is too narrow for them must not lead, though its
//! heartbeats arrive.

use std::collections::BTreeMap;

use trefoil_proto::cluster::v1::Obstacle;

use super::Replica;
use super::leadership::ELECTION_MS_MAX;
use crate::{NodeId, limits as l};

/// The longest time for which a slow link counts, in ms.
const HOLD_MS_MAX: u64 = 64 * l::LEADER_BALANCE_MS;

/// What entries take on their way.
#[derive(Debug, Default)]
pub(super) struct DeliveryTimes {
    /// Until when the links of this node count as slow, in boot ms.
    pub(super) slow_until_ms: u64,
    /// For how long they count when they are found slow: twice as long each time, since nothing is known of them
    /// while another node leads.
    hold_ms: u64,
    /// By peer: an entry that it has not acknowledged, and since when, in boot ms.
    owed: BTreeMap<NodeId, (u64, u64)>,
    /// By peer: until when what it took for an entry speaks against giving it the shard, in boot ms.
    late_until_ms: BTreeMap<NodeId, u64>,
}

impl DeliveryTimes {
    pub(super) fn is_slow(&mut self, now_ms: u64) {
        if self.slow_until_ms <= now_ms {
            let again = now_ms - self.slow_until_ms < 2 * self.hold_ms;
            let longer = (2 * self.hold_ms).min(HOLD_MS_MAX);
            self.hold_ms = if again { longer } else { l::LEADER_BALANCE_MS };
        }
        self.slow_until_ms = now_ms + self.hold_ms;
    }

    /// Whether a peer took longer than an election timeout for an entry, lately.
    pub(super) fn is_late(&self, peer: NodeId, now_ms: u64) -> bool {
        self.late_until_ms.get(&peer).is_some_and(|until| *until > now_ms)
    }

    fn review(&mut self, peer: NodeId, (matched, last): (u64, u64), now_ms: u64) {
        let owed = self.owed.entry(peer).or_default();
        if owed.0 <= matched {
            *owed = if last > matched { (last, now_ms) } else { (0, now_ms) };
        } else if now_ms - owed.1 > ELECTION_MS_MAX {
            self.late_until_ms.insert(peer, now_ms + l::LEADER_BALANCE_MS);
        }
    }

    fn owes(&self, peer: NodeId, now_ms: u64) -> bool {
        let owed = self.owed.get(&peer).copied().unwrap_or_default();
        owed.0 > 0 && now_ms - owed.1 > ELECTION_MS_MAX
    }
}

impl Replica {
    /// Whether this leader's entries reach no majority within an election timeout although a majority answers its
    /// heartbeats, and neither its disk nor theirs is to blame.
    pub(super) fn cannot_deliver(&mut self) -> bool {
        let now_ms = self.now.boot_ms;
        if !self.leads() || crate::mutant!(NarrowLeads) {
            self.standing.link.owed.clear();
            return false;
        }
        let raft = &self.raft.0.raft;
        let last = raft.raft_log.last_index();
        let peers = self.others().collect::<Vec<_>>();
        for peer in &peers {
            let matched = raft.prs().get(*peer).map_or(0, |progress| progress.matched);
            self.standing.link.review(*peer, (matched, last), now_ms);
        }
        let link = &self.standing.link;
        let timely = 1 + peers.iter().filter(|peer| !link.owes(**peer, now_ms)).count();
        let blamed = peers.iter().filter(|peer| {
            link.owes(**peer, now_ms)
                && self.leadership.was_heard(**peer, self.now, ELECTION_MS_MAX)
                && !self.peer_obstacles(**peer).has(Obstacle::SlowDisk)
        });
        let half = self.config.voters.len() / 2;
        timely <= half
            && timely + blamed.count() > half
            && !self.disk_is_slower_than(ELECTION_MS_MAX)
    }
}
