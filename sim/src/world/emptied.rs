//! Directories that are emptied.
//!
//! At the begin of some seeds, before the cluster is formed: where that leaves a promise that nobody can keep, all of
//! them are emptied. At the end of some, when everything else was judged: a majority is emptied while the others are
//! away, which looks like a new cluster; nothing may be formed or answered, and all of them end when the others are back.

use std::collections::BTreeSet;

use trefoil_core::NodeId;
use trefoil_core::member::Stage;

use crate::check::history::Action;
use crate::config::{MILLISECOND, SECOND};
use crate::disk::SimDisk;
use crate::event::{Mend, SimEvent};
use crate::world::faults::NodeSet;
use crate::world::{World, trace};

/// In the place of a client: it does not want the answer.
const NOBODY: u64 = u64::MAX - 1;
/// How long it takes at most until all nodes of a new cluster were started.
const PIECES_US: u64 = 2 * SECOND;
/// How long an operator waits for a cluster to be formed.
const FORMED_US: u64 = 10 * SECOND;
/// How long the others are away at most.
const AWAY_US: u64 = 10 * SECOND;

impl World {
    /// Nodes start one after the other; one of them dies before all are formed, or while they are.
    pub(crate) fn begin_in_pieces(&mut self) {
        let starts = (1..=self.setup.nodes).map(|node| {
            let at = self.shared.rng.between(0, PIECES_US);
            (at, node)
        });
        let starts = starts.collect::<BTreeSet<_>>();
        for (at, node) in &starts {
            self.at(*at, SimEvent::Mend(Mend::Start(*node)));
        }
        let (Some((first, node)), Some((last, _))) = (starts.first(), starts.last()) else {
            return;
        };
        let at = if self.shared.rng.chance(500) {
            self.shared.rng.between(*first, *last)
        } else {
            last + self.shared.rng.between(0, 8 * self.shared.config.delay_us)
        };
        self.at(at, SimEvent::Mend(Mend::Stumble(*node)));
    }

    /// A node dies on its way into its cluster, and its directory is lost where it has promised nothing.
    pub(crate) fn stumble(&mut self, node: NodeId) {
        let identity = self.nodes[&node].disk.identity();
        if identity.is_formed() || !self.nodes[&node].up {
            return;
        }
        let is_new = identity.word.stage == Stage::New;
        let for_us = self.shared.rng.between(1, 500) * MILLISECOND;
        self.crash(node, for_us, false);
        if is_new {
            self.empty(node);
            self.emptied.insert(node);
            self.stats.lost_on_the_way += 1;
        }
        self.at(self.now + FORMED_US, SimEvent::Mend(Mend::FormAnew));
    }

    /// The operator empties all directories where none is formed: nobody was ever served.
    pub(crate) fn form_anew(&mut self) {
        if self.nodes.values().any(|at| at.disk.identity().is_formed()) {
            return;
        }
        trace!(self, "all directories are emptied");
        self.stats.formed_anew += 1;
        self.emptied.clear();
        for node in 1..=self.setup.nodes {
            self.crash(node, SECOND, false);
            self.empty(node);
            self.node(node).ended = false;
            self.soon(SECOND, SimEvent::Mend(Mend::Start(node)));
        }
        self.at(self.now + FORMED_US, SimEvent::Mend(Mend::FormAnew));
    }

    /// A node, which is down, has a new directory.
    fn empty(&mut self, node: NodeId) {
        let incarnation = self.shared.rng.number();
        let disk = SimDisk::new(incarnation, 0..=self.setup.shards, self.setup.disk);
        trace!(self, "n{node} is emptied");
        drop(self.node(node).disk.replace(disk));
        self.agreements.damaged.retain(|(of, ..)| *of != node);
    }

    /// Whether all directories are formed: before that a cluster does not outlive the loss of one.
    pub(crate) fn all_are_formed(&self) -> bool {
        self.nodes.values().all(|at| at.disk.identity().is_formed())
    }

    /// Whether the run ends that way: with a majority that could be taken for a new cluster.
    pub(crate) fn can_empty(&self) -> bool {
        self.shared.config.empties && self.nodes.values().all(|node| node.up && !node.is_out())
    }

    pub(crate) fn empty_a_majority(&mut self) {
        let all = (1..=self.setup.nodes).collect::<NodeSet>();
        let first = self.shared.rng.between(0, self.setup.nodes - 1);
        let majority = self.setup.nodes / 2 + 1;
        let emptied = (first..first + majority).map(|n| 1 + n % self.setup.nodes);
        self.emptied = emptied.collect();
        let others = all.difference(&self.emptied).copied().collect::<NodeSet>();
        trace!(self, "{:?} are emptied while {others:?} are away", self.emptied);
        if self.shared.rng.chance(500) {
            self.split(&others, true, AWAY_US);
        } else {
            for node in &others {
                self.crash(*node, AWAY_US, false);
            }
        }
        for node in self.emptied.clone() {
            let for_us = self.shared.rng.between(1, 2_000) * MILLISECOND;
            self.crash(node, for_us, false);
            self.empty(node);
            self.ask_for_nothing(node);
        }
        self.at(self.now + AWAY_US, SimEvent::Mend(Mend::Return));
    }

    /// Calls to a node that has lost everything: an answer would say that there was never anything.
    fn ask_for_nothing(&mut self, node: NodeId) {
        for n in 0..self.shared.config.keys {
            let request = self.shared.router.request(&Action::Get { key: format!("key-{n}") });
            let from = (NOBODY, n);
            let event = SimEvent::Request { to: node, from, patience_us: AWAY_US, request };
            self.soon(AWAY_US, event);
        }
    }

    /// Whether all that were emptied have ended.
    pub(crate) fn emptied_are_gone(&self) -> bool {
        self.emptied.iter().all(|node| self.nodes[node].ended)
    }
}
