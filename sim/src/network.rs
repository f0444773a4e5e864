//! The network between nodes: delay, loss, duplication, reordering, and links that are cut in one direction.

use std::collections::{BTreeMap, BTreeSet};

use raft_proto::eraftpb::MessageType;
use trefoil_core::NodeId;

use crate::config::{MILLISECOND, RunConfig, SECOND};
use crate::rng::Rng;

/// Streams of one direction of a link: heartbeats and votes go ahead of appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkStream {
    /// Small messages.
    Ahead,
    /// Appends and their responses.
    Bulk,
    /// Calls and their answers.
    Calls,
    /// What members tell each other of themselves.
    Members,
}

impl LinkStream {
    /// The lane of a kind of message.
    #[must_use]
    pub fn of(kind: MessageType) -> Self {
        match kind {
            MessageType::MsgAppend | MessageType::MsgAppendResponse | MessageType::MsgSnapshot => {
                Self::Bulk
            }
            _ => Self::Ahead,
        }
    }
}

/// How long appends may wait for a narrow link.
const QUEUE_US: u64 = 30 * SECOND;

/// All links.
#[derive(Debug, Default)]
pub struct Network {
    /// Nodes between which all links work.
    core: BTreeSet<NodeId>,
    /// Directions that lose everything.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// When the last message of each stream arrives.
    busy: BTreeMap<(NodeId, NodeId, LinkStream), u64>,
    /// Longest delay of links that are slower than the others.
    slow: BTreeMap<(NodeId, NodeId), u64>,
    /// Nodes behind a narrow link: bytes of appends in a second that leave each of them to each other one.
    narrow: BTreeMap<NodeId, u64>,
    /// When the last append of each narrow link has left.
    left: BTreeMap<(NodeId, NodeId), u64>,
}

impl Network {
    /// All links as a seed draws them.
    pub fn draw(rng: &mut Rng, config: &RunConfig) -> Self {
        let mut network = Self::default();
        for from in 1..=config.nodes {
            for to in (1..=config.nodes).filter(|to| *to != from) {
                if rng.chance(config.slow_links) {
                    let most = rng.between_doublings(32, 2_048) * MILLISECOND;
                    network.slow.insert((from, to), most);
                }
            }
        }
        network
    }

    /// When copies of a message arrive; none when it is lost. Inside the core nothing is lost or slow.
    pub fn route(
        &mut self,
        rng: &mut Rng,
        config: &RunConfig,
        now: u64,
        link: (NodeId, NodeId),
        (lane, bytes): (LinkStream, u64),
    ) -> Vec<u64> {
        let safe = self.core.contains(&link.0) && self.core.contains(&link.1);
        if self.is_cut(link) || (!safe && rng.chance(config.loss)) {
            return Vec::new();
        }
        let slow = self.slow.get(&link).copied().filter(|_| !safe);
        let Some(queued) = self.queue(now, link, lane, bytes) else { return Vec::new() };
        let at = queued + 1 + rng.between(0, slow.unwrap_or(config.delay_us));
        let mut times = vec![at];
        if !rng.chance(config.reordering) {
            // A stream keeps its order.
            let busy = self.busy.entry((link.0, link.1, lane)).or_default();
            *busy = at.max(*busy);
            times[0] = *busy;
        }
        if rng.chance(config.duplication) {
            times.push(at + rng.between(0, 4 * config.delay_us));
        }
        if rng.chance(config.replay) {
            times.push(at + rng.between_doublings(SECOND / 2, 64 * SECOND));
        }
        times
    }

    /// When a message of a stream arrives, after those before it; none when it is lost, and the stream with it. Most of
    /// what the network loses is sent again.
    pub fn stream(
        &mut self,
        rng: &mut Rng,
        config: &RunConfig,
        now: u64,
        link: (NodeId, NodeId),
        lane: LinkStream,
    ) -> Option<u64> {
        let safe = self.core.contains(&link.0) && self.core.contains(&link.1);
        let again = !safe && rng.chance(config.loss);
        if self.is_cut(link) || (again && rng.chance(100)) {
            return None;
        }
        let slow = self.slow.get(&link).copied().filter(|_| !safe);
        let delay = rng.between(0, slow.unwrap_or(config.delay_us));
        let at = now + 1 + delay + if again { SECOND / 5 } else { 0 };
        let busy = self.busy.entry((link.0, link.1, lane)).or_default();
        *busy = at.max(*busy);
        Some(*busy)
    }

    /// When a message has left; none when too much waits before it. Heartbeats and votes go ahead of what waits.
    fn queue(
        &mut self,
        now: u64,
        link: (NodeId, NodeId),
        lane: LinkStream,
        bytes: u64,
    ) -> Option<u64> {
        let Some(rate) = self.narrow.get(&link.0).filter(|_| lane == LinkStream::Bulk) else {
            return Some(now);
        };
        let left = self.left.entry(link).or_default();
        let begin = now.max(*left);
        if begin - now > QUEUE_US {
            return None;
        }
        *left = begin + bytes * SECOND / rate;
        Some(*left)
    }

    /// From now on so many bytes of appends in a second leave a node to each other one; none is no limit.
    pub fn narrow(&mut self, node: NodeId, rate: Option<u64>) {
        self.left.retain(|link, _| link.0 != node);
        // What waits for the link as it was does not hold up what is sent on it from now on.
        self.busy.retain(|(from, _, lane), _| *from != node || *lane != LinkStream::Bulk);
        match rate {
            Some(rate) => self.narrow.insert(node, rate),
            None => self.narrow.remove(&node),
        };
    }

    /// Whether a direction loses everything.
    #[must_use]
    pub fn is_cut(&self, link: (NodeId, NodeId)) -> bool {
        self.cut.contains(&link)
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        if !self.core.contains(&from) || !self.core.contains(&to) {
            self.cut.insert((from, to));
        }
    }

    /// Mends one direction.
    pub fn mend(&mut self, from: NodeId, to: NodeId) {
        self.cut.remove(&(from, to));
    }

    /// Mends everything.
    pub fn mend_all(&mut self) {
        self.cut.clear();
        self.slow.clear();
        self.narrow.clear();
        self.left.clear();
        self.busy.retain(|(_, _, lane), _| *lane != LinkStream::Bulk);
    }

    /// From now on nothing happens to links between these nodes.
    pub fn protect(&mut self, core: &BTreeSet<NodeId>) {
        self.cut.retain(|(from, to)| !core.contains(from) || !core.contains(to));
        self.core.clone_from(core);
    }
}
