//! Damaged states: how they come about, how they are found, and what takes their place.

use trefoil_core::replica::{Chain, Input, Reply};
use trefoil_core::store::Store as _;
use trefoil_core::{NodeId, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;
use trefoil_server::storage::LogWrite;

use crate::check::Violation;
use crate::config::SECOND;
use crate::disk::state::MachineStore;
use crate::disk::{DiskWrite, FoundShards, Rot};
use crate::event::{ProcessEvent, SimEvent};
use crate::world::{World, trace};

/// Ticks in a thousand in which a scrub comes to what cannot be read.
const SCRUBS: u64 = 5;
/// Digests in a thousand that a replica has no time for.
const DIGESTS_MISSED: u64 = 100;

impl World {
    /// A state is not what was written any more, on one node at a time: of two nobody could say which one is right.
    pub(crate) fn spoil(&mut self, node: NodeId) {
        let sound = self.nodes.values().all(|node| !node.disk.rotten && node.disk.rot.is_empty());
        let whole = self.nodes.values().flat_map(|node| node.hosts.values());
        let whole = sound && whole.clone().all(|host| !host.damaged);
        if self.setup.nodes < 3 || !whole || !self.nodes[&node].up {
            return;
        }
        let kinds: &[Rot] = if self.setup.disk.real_state {
            &[Rot::Missing, Rot::Unreadable, Rot::Flipped, Rot::Flipped]
        } else {
            &[Rot::Missing, Rot::Unreadable, Rot::Old]
        };
        let rot = *self.shared.rng.pick(kinds);
        // The meta shard has too few entries for a digest in time.
        let shard = if rot == Rot::Old { 1 } else { self.any_shard() };
        if rot != Rot::Unreadable {
            let for_us = self.shared.rng.between(1, 3) * SECOND;
            self.crash(node, for_us, false);
        }
        let at = self.nodes.get_mut(&node).expect("every id has a node");
        if at.disk.spoil(&mut self.shared.rng, shard, rot) {
            trace!(self, "n{node}/s{shard} has a state that is {rot:?}");
            match rot {
                Rot::Missing => self.stats.states_missing += 1,
                Rot::Unreadable | Rot::Flipped => self.stats.states_unreadable += 1,
                Rot::Old => self.stats.writes_lost += 1,
            }
        }
    }

    /// Whether a write of this shard's state was lost anywhere, and nobody has made up for it.
    pub(crate) fn lost_write(&self, shard: ShardId) -> bool {
        self.nodes.values().any(|node| node.disk.rot_of(shard) == Some(Rot::Old))
    }

    /// A majority has another state.
    pub(crate) fn outvoted(&mut self, node: NodeId, shard: ShardId, index: u64) {
        trace!(self, "n{node}/s{shard} is outvoted at {index}");
        self.stats.outvoted += 1;
        self.lose_state(node, shard);
    }

    /// A leader knows no majority that agrees with it, or knows one again.
    pub(crate) fn dispute(&mut self, node: NodeId, shard: ShardId, disputed: bool) {
        trace!(self, "n{node}/s{shard} knows no majority: {disputed}");
        self.stats.disputed += u64::from(disputed);
    }

    /// Whether a node is not to be relied on because of the state of any shard.
    pub(crate) fn is_spoilt(&self, node: NodeId) -> bool {
        let at = &self.nodes[&node];
        !at.disk.rot.is_empty()
            || (0..=self.setup.shards).any(|shard| at.disk.is_damaged(shard))
            || at.hosts.values().any(|host| host.damaged)
    }

    /// Whether a node has no state of a shard to read: a read that would fail finds that out.
    pub(crate) fn is_damaged(&mut self, node: NodeId, shard: ShardId) -> bool {
        let at = self.node(node);
        let unreadable = at.disk.rot_of(shard) == Some(Rot::Unreadable);
        let Some(host) = at.hosts.get_mut(&shard) else { return true };
        if host.damaged || !unreadable {
            return host.damaged;
        }
        if trefoil_core::mutant!(DamagedLeads) {
            // What cannot be read is taken for what is not there.
            at.disk.rot.clear();
            if let MachineStore::Memory(store) = &mut host.store {
                let keys = store.records.keys().filter(|key| key[2] != 0).cloned();
                for key in keys.collect::<Vec<_>>() {
                    store.delete(&key);
                }
            }
            return false;
        }
        self.find_damage(node, shard);
        true
    }

    /// What nobody asks for is read as well from time to time.
    pub(crate) fn scrub(&mut self, node: NodeId, shard: ShardId) {
        let unreadable = self.nodes[&node].disk.rot_of(shard) == Some(Rot::Unreadable);
        if unreadable && self.shared.rng.chance(SCRUBS) {
            self.is_damaged(node, shard);
        }
    }

    /// A read of the state failed.
    pub(crate) fn find_damage(&mut self, node: NodeId, shard: ShardId) {
        trace!(self, "n{node}/s{shard} finds its state damaged");
        self.lose_state(node, shard);
        self.step(node, shard, Input::Damaged);
    }

    /// The state is not used any more, and that is recorded.
    pub(crate) fn lose_state(&mut self, node: NodeId, shard: ShardId) {
        let shards = self.setup.shards;
        let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
        let calls = host.lose_state(shard, shards);
        for call in calls {
            let why = Refusal { reason: Reason::NoQuorum.into(), ..Refusal::default() };
            self.reply(node, shard, call, Reply::Refused(why));
        }
        self.write(node, DiskWrite::Log(LogWrite::Damage(shard)));
    }

    /// A start: what it finds damaged is recorded, and what was recorded is not believed.
    pub(crate) fn saw_start(&mut self, node: NodeId, shards: &FoundShards) -> Vec<ShardId> {
        let mut news = Vec::new();
        for (shard, (boot, _)) in shards {
            let disk = &self.nodes[&node].disk;
            let place = (node, *shard, disk.generation(*shard));
            if boot.damaged && !disk.is_damaged(*shard) {
                news.push(*shard);
            } else if !boot.damaged && self.agreements.damaged.contains(&place) {
                let what = format!("n{node}/s{shard} begins with generation {}", place.2);
                let promise = "a state that was found damaged is not believed after a restart";
                self.violations.push(Violation::new(promise, what));
            }
        }
        news
    }

    /// The digest of a state is computed, and takes a while.
    pub(crate) fn digest(&mut self, node: NodeId, shard: ShardId, index: u64) {
        if self.shared.rng.chance(DIGESTS_MISSED) {
            return;
        }
        let Some(host) = self.nodes[&node].hosts.get(&shard) else { return };
        let digest = Chain { index, hash: host.machine.digest(&host.store) };
        let delay = self.shared.config.checkpoint_us;
        self.stats.digests += 1;
        self.soon(delay, SimEvent::In(self.process(node), ProcessEvent::Digested(shard, digest)));
    }

    /// A received state is in the place of the damaged one.
    pub(crate) fn restored(&mut self, node: NodeId, shard: ShardId) {
        let shards = self.setup.shards;
        let at = self.node(node);
        let Some(host) = at.hosts.get_mut(&shard) else { return };
        match at.disk.installed(shard) {
            Ok(store) => host.store = store,
            Err(why) => {
                let what = format!("n{node}/s{shard}: {why}");
                let promise = "a state that was received can be opened";
                return self.violations.push(Violation::new(promise, what));
            }
        }
        host.open_machine(shard, shards);
        (host.damaged, host.working) = (false, false);
        let applied = Box::new(host.restored());
        let index = applied.index;
        trace!(self, "n{node}/s{shard} is whole again from {index}");
        self.stats.states_restored += 1;
        let seen = self.agreements.states.saw(shard, index, applied.chain, node);
        self.violations.extend(seen.err());
        self.step(node, shard, Input::Restored(applied));
        self.work(node, shard);
    }
}
