//! Older copies of data directories: how a node comes to start with one, and what its operator does when it has ended.

use trefoil_core::NodeId;

use crate::config::{FaultKind, MILLISECOND, SECOND};
use crate::disk::directory::DiskCopy;
use crate::event::{Mend, SimEvent};
use crate::phase::RunPhase;
use crate::world::{World, trace};

/// How often it is looked at whether a copy may be put in place, and the pause between two looks.
const LOOKS: u64 = 20;
const LOOK_US: u64 = SECOND;

impl World {
    /// A copy of a node's disk is taken, which will take its place: mostly while the node is stopped.
    pub(crate) fn copy(&mut self, node: NodeId) {
        if self.setup.nodes < 3 || self.nodes[&node].is_out() || self.copies.contains_key(&node) {
            return;
        }
        if self.shared.rng.chance(700) {
            let for_us = self.shared.rng.between(50, 1_000) * MILLISECOND;
            self.crash(node, for_us, false);
        }
        let disk = self.nodes[&node].disk.copy();
        let starts = disk.identity().starts.clone();
        trace!(self, "n{node} is copied after {} starts", starts.count);
        self.copies.insert(node, DiskCopy { disk, starts });
        self.soon(20 * SECOND, SimEvent::Mend(Mend::Replace(node, LOOKS)));
    }

    /// The copy takes the place of the disk where all others would know after any crash that it is older, and no other
    /// node has lost anything.
    pub(crate) fn replace(&mut self, node: NodeId, looks: u64) {
        if self.phase != RunPhase::Chaos || looks == 0 {
            self.copies.remove(&node);
            return;
        }
        let out = self.nodes.values().filter(|at| at.is_out()).count() as u64;
        let most = (self.setup.nodes - 1) / 2;
        let Some(copy) = self.copies.get(&node) else { return };
        if out >= most
            || self.any_doubt()
            || self.nodes[&node].is_out()
            || !self.is_known(copy, node)
        {
            return self.at(self.now + LOOK_US, SimEvent::Mend(Mend::Replace(node, looks - 1)));
        }
        let for_us = self.shared.rng.between(50, 1_000) * MILLISECOND;
        self.crash(node, for_us, false);
        if let Some(copy) = self.copies.remove(&node) {
            trace!(
                self,
                "n{node} has an older copy of its disk, after {} starts", copy.starts.count
            );
            let at = self.node(node);
            at.shelf = Some(Box::new(at.disk.replace(copy.disk)));
            self.stats.older_copies += 1;
        }
    }

    /// Whether the disks of all others remember a start of a node that its copy does not have.
    fn is_known(&self, copy: &DiskCopy, node: NodeId) -> bool {
        let mut others = self.nodes.values().filter(|other| other.id != node);
        others.all(|other| {
            let memory = other.disk.remembered();
            memory.peers.get(&node).is_some_and(|known| known.starts.count > copy.starts.count)
        })
    }

    /// A node is told that its directory is not the one that it was: it ends. Its operator restores the one with which
    /// it stopped last, unless that is lost: then the node stays out.
    pub(crate) fn is_refused(&mut self, node: NodeId, peer: NodeId) {
        trace!(self, "n{node} ends: n{peer} knows that its directory is not the one that it was");
        self.stats.copies_refused += 1;
        self.crash(node, 0, false);
        let at = self.node(node);
        at.ended = true;
        if at.shelf.is_none() {
            return self.is_wrongly_refused(node, peer);
        }
        // Where power takes more from another node, nobody could be elected without this one.
        let power = self.shared.config.faults.contains(&FaultKind::PowerLoss);
        if power || self.shared.rng.chance(600) {
            let after = self.shared.rng.between(1, 10) * SECOND;
            self.at(self.now + after, SimEvent::Mend(Mend::Restore(node)));
        }
    }

    /// The operator restores the disk with which a node stopped last.
    pub(crate) fn restore(&mut self, node: NodeId) {
        let at = self.node(node);
        let Some(newest) = at.shelf.take() else { return };
        drop(at.disk.replace(*newest));
        at.ended = false;
        trace!(self, "n{node} has its newest disk again");
        self.stats.copies_restored += 1;
        self.mend(Mend::Start(node));
    }

    /// All directories but those of a group are known to be of one cluster: only an emptied one may be refused.
    fn is_wrongly_refused(&mut self, node: NodeId, peer: NodeId) {
        if !self.emptied.contains(&node) {
            let what = format!("n{peer} refuses n{node}, which has lost nothing");
            let promise = "a node with the directory with which it stopped is not refused";
            self.violations.push(crate::check::Violation::new(promise, what));
        }
    }
}
