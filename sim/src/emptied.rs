//! The end of some seeds, when everything else was judged: a majority of the directories is emptied while the others are
//! away, which looks like a new cluster. Nothing may be formed or answered, and all of them end when the others are back.

use trefoil_core::NodeId;

use crate::check::history::Action;
use crate::disk::Disk;
use crate::event::{Event, Mend};
use crate::faults::Group;
use crate::knobs::{MILLISECOND, SECOND};
use crate::world::{World, trace};

/// In the place of a client: it does not want the answer.
const NOBODY: u64 = u64::MAX - 1;
/// How long the others are away at most.
const AWAY_US: u64 = 10 * SECOND;

impl World {
    /// Whether the run ends that way: with a majority that could be taken for a new cluster.
    pub(crate) fn can_empty(&self) -> bool {
        self.shared.knobs.empties && self.nodes.values().all(|node| node.up && !node.is_out())
    }

    pub(crate) fn empty_a_majority(&mut self) {
        let all = (1..=self.setup.nodes).collect::<Group>();
        let first = self.shared.dice.between(0, self.setup.nodes - 1);
        let majority = self.setup.nodes / 2 + 1;
        let emptied = (first..first + majority).map(|n| 1 + n % self.setup.nodes);
        self.emptied = emptied.collect();
        let others = all.difference(&self.emptied).copied().collect::<Group>();
        trace!(self, "{:?} are emptied while {others:?} are away", self.emptied);
        if self.shared.dice.chance(500) {
            self.split(&others, true, AWAY_US);
        } else {
            for node in &others {
                self.crash(*node, AWAY_US, false);
            }
        }
        for node in self.emptied.clone() {
            let for_us = self.shared.dice.between(1, 2_000) * MILLISECOND;
            self.crash(node, for_us, false);
            let incarnation = self.shared.dice.number();
            let disk = Disk::new(incarnation, 0..=self.setup.shards, self.setup.disk);
            drop(self.node(node).disk.replace(disk));
            self.agreements.damaged.retain(|(of, ..)| *of != node);
            self.ask_for_nothing(node);
        }
        self.at(self.now + AWAY_US, Event::Mend(Mend::Return));
    }

    /// Calls to a node that has lost everything: an answer would say that there was never anything.
    fn ask_for_nothing(&mut self, node: NodeId) {
        for n in 0..self.shared.knobs.keys {
            let request = self.shared.router.request(&Action::Get { key: format!("key-{n}") });
            let from = (NOBODY, n);
            let event = Event::Request { to: node, from, patience_us: AWAY_US, request };
            self.soon(AWAY_US, event);
        }
    }

    pub(crate) fn return_of_the_others(&mut self) {
        self.heal();
    }

    /// Whether all that were emptied have ended.
    pub(crate) fn emptied_are_gone(&self) -> bool {
        self.emptied.iter().all(|node| self.nodes[node].ended)
    }
}
