//! Faults from outside: when they begin, and when they end.

use std::collections::BTreeSet;

use trefoil_core::limits::TICK_MS;
use trefoil_core::member::Standing;
use trefoil_core::replica::{Input, Pressure, Role};
use trefoil_core::{NodeId, ShardId};
use trefoil_server::storage::LogWrite;

use crate::check::Violation;
use crate::config::{FaultKind, MILLISECOND, SECOND};
use crate::disk::DiskWrite;
use crate::disk::volume::IoFault;
use crate::event::{Mend, ProcessEvent, SimEvent};
use crate::node::{ApplierTask, Host, SimNode};
use crate::phase::RunPhase;
use crate::world::storage::LOW_BYTES;
use crate::world::{World, trace};

/// Whether the end of a node's log is in doubt, or will be when it starts.
pub(crate) fn is_doubtful(node: &SimNode) -> bool {
    node.disk.doubtful || node.hosts.values().any(|host| host.replica.is_uncertain())
}

/// What is wrong with a leader that is left out of those that work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaderFault {
    Deaf,
    HungDisk,
    FullDisk,
    NarrowLink,
}

/// Some of the nodes.
pub(crate) type NodeSet = BTreeSet<NodeId>;

impl World {
    pub(crate) fn next_fault(&mut self) {
        let goes_on = matches!(self.phase, RunPhase::Chaos | RunPhase::Core);
        if !goes_on || self.shared.config.faults.is_empty() {
            return;
        }
        let kind = *self.shared.rng.pick(&self.shared.config.faults);
        let node = self.any_node();
        let for_us = self.shared.rng.between_doublings(50, 16_000) * MILLISECOND;
        trace!(self, "fault {kind:?} at n{node} for {} ms", for_us / MILLISECOND);
        if !self.core.contains(&node) && (!kind.loses_data() || self.all_are_formed()) {
            self.fault(kind, node, for_us);
        }
        let calm = self.shared.config.calm_us;
        self.soon(calm, SimEvent::NextFault);
    }

    fn fault(&mut self, kind: FaultKind, node: NodeId, for_us: u64) {
        match kind {
            FaultKind::Crash => self.crash(node, for_us, false),
            FaultKind::PowerLoss => {
                let power = !self.spares_power();
                self.crash(node, for_us, power);
            }
            FaultKind::CrashAll => self.crash_all(),
            FaultKind::Isolate => {
                let group = NodeSet::from([node]);
                self.split(&group, true, for_us);
            }
            FaultKind::OneWay => {
                let other = self.shared.rng.between(1, self.setup.nodes);
                self.cut(node, other, for_us);
            }
            FaultKind::Split => {
                let all = 1..=self.setup.nodes;
                let group = all.filter(|_| self.shared.rng.chance(500)).collect::<NodeSet>();
                let both = self.shared.rng.chance(500);
                self.split(&group, both, for_us);
            }
            FaultKind::NarrowLink => {
                let rate = self.shared.rng.between_doublings(64, 16 << 10);
                self.network.narrow(node, Some(rate));
                self.at(self.now + 2 * for_us, SimEvent::Mend(Mend::Width(node)));
            }
            FaultKind::Bridge => self.bridge(node, for_us),
            FaultKind::Ring => self.ring(for_us),
            FaultKind::Flap => self.flap(node),
            FaultKind::Pause => self.pause(node, for_us, false),
            FaultKind::Suspend => self.pause(node, for_us, true),
            FaultKind::Transfer => {
                let shard = self.any_shard();
                let to = self.shared.rng.between(1, self.setup.nodes);
                let to = self.shared.rng.chance(700).then_some(to);
                self.stats.transfers += 1;
                self.step(node, shard, Input::Transfer { call: 0, to });
            }
            FaultKind::Checkpoint => {
                let shard = self.any_shard();
                let pressure = Pressure { wants_checkpoint: true, disk_low: self.nodes[&node].low };
                self.step(node, shard, Input::Pressure(pressure));
            }
            FaultKind::WallClock => {
                // Far beyond every TTL of a run, and below what makes a shard forget idle clients.
                let most = trefoil_core::limits::REQUEST_CLIENT_IDLE_MS / 30;
                let ahead = i64::try_from(self.shared.rng.between(0, most)).expect("small");
                let back = i64::try_from(self.shared.rng.between(0, most)).expect("small");
                self.node(node).set_wall_clock(ahead - back);
            }
            FaultKind::OlderCopy => self.copy(node),
            disk => self.disk_fault(disk, node, for_us),
        }
    }

    fn disk_fault(&mut self, kind: FaultKind, node: NodeId, for_us: u64) {
        let mend = SimEvent::Mend(Mend::Disk(node));
        match kind {
            FaultKind::SlowDisk => {
                self.node(node).sync_floor_us =
                    self.shared.rng.between_doublings(10, 4_000) * MILLISECOND;
                self.at(self.now + for_us, mend);
            }
            FaultKind::HungDisk => {
                self.node(node).hung = true;
                self.stats.hung_disks += 1;
                // Longer than a leader waits before it gives its shard away.
                self.at(self.now + 2 * for_us, mend);
            }
            FaultKind::FullDisk => {
                let room = self.shared.rng.between_doublings(256, 64 << 10);
                if self.shared.rng.chance(500) {
                    self.node(node).scarce = true;
                } else {
                    self.node(node).disk.volume.limit(Some(room));
                }
                self.at(self.now + for_us, SimEvent::Mend(Mend::Room(node)));
            }
            FaultKind::DiskError => {
                let fault = *self.shared.rng.pick(&[
                    IoFault::Read,
                    IoFault::Write,
                    IoFault::Sync,
                    IoFault::Sync,
                ]);
                self.node(node).disk.volume.arm(Some(fault));
            }
            FaultKind::BitFlip => self.rot(node),
            FaultKind::RottenTail => self.rot_tail(node, for_us),
            FaultKind::DamagedState => self.spoil(node),
            other => unreachable!("{other:?} is no fault of a disk"),
        }
    }

    /// A bit turns over below the mark of a node's log, unless as many nodes are damaged as a cluster survives.
    fn rot(&mut self, node: NodeId) {
        let rotten = self.nodes.values().filter(|node| node.disk.rotten).count() as u64;
        if rotten >= (self.setup.nodes - 1) / 2 || self.nodes[&node].disk.rotten {
            return;
        }
        // While the process runs nobody sees it, and what it writes may hide it.
        self.crash(node, SECOND, false);
        let rng = &mut self.shared.rng;
        let disk = &mut self.nodes.get_mut(&node).expect("every id has a node").disk;
        if let Some((file, at)) = disk.volume.flip(rng, crate::disk::log::DIRECTORY) {
            disk.rotten = true;
            trace!(self, "n{node} has a bad bit in {file} at {at}");
            self.stats.bit_flips += 1;
        }
    }

    /// The end of a node's log is lost although it was synced. It may be one node at a time: of two whose ends are in
    /// doubt nobody can say which one still has what was acknowledged.
    fn rot_tail(&mut self, node: NodeId, for_us: u64) {
        let leader = self.any_node();
        let other = (1..=self.setup.nodes).find(|other| ![node, leader].contains(other));
        let Some(other) = other.filter(|_| self.setup.nodes == 3 && leader != node) else {
            return self.lose_tail(node, for_us);
        };
        // What the other one misses is on the leader and the node alone, and the leader dies when the node has lost it.
        let misses_us = self.shared.rng.between(200, 2_000) * MILLISECOND;
        self.split(&NodeSet::from([other]), true, misses_us);
        self.at(self.now + misses_us, SimEvent::Mend(Mend::RotTail(node, leader)));
    }

    fn rot_tail_goes_on(&mut self, node: NodeId, leader: NodeId) {
        if self.phase != RunPhase::Chaos {
            return;
        }
        self.lose_tail(node, SECOND / 4);
        if self.lost_tail == Some(node) {
            let for_us = self.shared.rng.between(2, 6) * SECOND;
            self.crash(leader, for_us, false);
        }
    }

    fn lose_tail(&mut self, node: NodeId, for_us: u64) {
        let damaged = self.nodes.values().any(|node| node.disk.rotten);
        if self.setup.nodes < 3 || !self.nodes[&node].up || damaged || self.any_doubt() {
            return;
        }
        self.crash(node, for_us, true);
        let rng = &mut self.shared.rng;
        let disk = &mut self.nodes.get_mut(&node).expect("every id has a node").disk;
        if disk.rot_tail(rng) {
            trace!(self, "n{node} has a bad bit above the mark");
            self.stats.rotten_tails += 1;
            self.lost_tail = Some(node);
        }
    }

    /// Whether the end of any log is in doubt, or will be when its node starts.
    pub(crate) fn any_doubt(&self) -> bool {
        self.nodes.values().any(|node| !node.refused && !node.ended && is_doubtful(node))
    }

    /// Whether a node has lost what it had acknowledged, and has not caught up: then no other may lose its power.
    fn spares_power(&mut self) -> bool {
        if let Some(node) = self.lost_tail
            && !is_doubtful(&self.nodes[&node])
        {
            self.lost_tail = None;
        }
        // What an older copy has forgotten, too, is as good as lost until its node is back.
        self.lost_tail.is_some() || self.nodes.values().any(|node| node.shelf.is_some())
    }

    fn crash_all(&mut self) {
        for node in 1..=self.setup.nodes {
            let for_us = self.shared.rng.between(50, 4_000) * MILLISECOND;
            let power = self.shared.rng.chance(500)
                && !self.spares_power()
                && self.shared.config.faults.contains(&FaultKind::PowerLoss);
            if !self.core.contains(&node) {
                self.crash(node, for_us, power);
            }
        }
    }

    // === The network ===

    /// Cuts a group off from the others, or only what it sends.
    pub(crate) fn split(&mut self, group: &NodeSet, both: bool, for_us: u64) {
        for from in 1..=self.setup.nodes {
            for to in 1..=self.setup.nodes {
                let leaves = group.contains(&from) && !group.contains(&to);
                let enters = !group.contains(&from) && group.contains(&to);
                if leaves || (both && enters) {
                    self.cut(from, to, for_us);
                }
            }
        }
    }

    fn bridge(&mut self, bridge: NodeId, for_us: u64) {
        for from in 1..=self.setup.nodes {
            for to in 1..=self.setup.nodes {
                let same = (from < bridge) == (to < bridge);
                if from != bridge && to != bridge && !same {
                    self.cut(from, to, for_us);
                }
            }
        }
    }

    fn ring(&mut self, for_us: u64) {
        let nodes = self.setup.nodes;
        for from in 1..=nodes {
            for to in 1..=nodes {
                let apart = from.abs_diff(to);
                if apart > 1 && apart < nodes - 1 {
                    self.cut(from, to, for_us);
                }
            }
        }
    }

    fn flap(&mut self, node: NodeId) {
        let other = self.shared.rng.between(1, self.setup.nodes);
        let both = self.shared.rng.chance(500);
        let mut at = self.now;
        for _ in 0..self.shared.rng.between(3, 12) {
            let links = [(node, other), (other, node)];
            at += self.shared.rng.between(50, 1_500) * MILLISECOND;
            for (from, to) in links.into_iter().take(1 + usize::from(both)) {
                self.at(at, SimEvent::Mend(Mend::Cut(from, to)));
            }
            at += self.shared.rng.between(50, 1_500) * MILLISECOND;
            for (from, to) in links {
                self.at(at, SimEvent::Mend(Mend::Link(from, to)));
            }
        }
    }

    /// Any node, or one that leads: that is where faults hurt.
    fn any_node(&mut self) -> NodeId {
        let shard = self.any_shard();
        let leads = |node: &&SimNode| {
            let host = node.hosts.get(&shard);
            host.is_some_and(|host| {
                host.replica.status(node.clocks(self.now)).role.role == Role::Leader
            })
        };
        let leader = self.nodes.values().find(leads).map(|node| node.id);
        let any = self.shared.rng.between(1, self.setup.nodes);
        leader.filter(|_| self.shared.rng.chance(500)).unwrap_or(any)
    }

    pub(crate) fn any_shard(&mut self) -> ShardId {
        let shard = self.shared.rng.between(0, self.setup.shards.into());
        ShardId::try_from(shard).expect("a small number")
    }

    fn cut(&mut self, from: NodeId, to: NodeId, for_us: u64) {
        self.stats.cuts += 1;
        self.network.cut(from, to);
        self.at(self.now + for_us, SimEvent::Mend(Mend::Link(from, to)));
    }

    // === Processes ===

    /// A process stands still for a while, and with it its clock, unless it does so already.
    fn pause(&mut self, node: NodeId, for_us: u64, with_clock: bool) {
        if self.nodes[&node].paused_until > self.now {
            return;
        }
        let mut deaf = || self.shared.rng.between(0, SECOND / 10);
        let deaf_us = (deaf(), deaf());
        let until = self.now + for_us;
        let host = self.node(node);
        (host.paused_until, host.deaf_us) = (until, deaf_us);
        if with_clock {
            host.stall(until - for_us, until);
        }
        self.stats.pauses += 1;
    }

    /// A process dies, and starts again after a while.
    pub(crate) fn crash(&mut self, node: NodeId, for_us: u64, power: bool) {
        if !self.nodes[&node].up {
            return;
        }
        let now = self.now;
        let at = self.node(node);
        at.life += 1;
        let mut hosts = at.die();
        let installs = |host: &Host| {
            matches!(host.tasks.front(), Some(ApplierTask::Install { .. }))
                || (host.working && host.tasks.is_empty())
        };
        self.stats.installs_interrupted +=
            hosts.values().filter(|host| installs(host)).count() as u64;
        for (shard, host) in &mut hosts {
            if let Some(job) = host.checkpoint.take() {
                self.die_writing(node, *shard, &job);
            }
        }
        self.end_links(node, power);
        let at = self.nodes.get_mut(&node).expect("every id has a node");
        at.disk.doubtful |= hosts.values().any(|host| host.doubted);
        let lost = at.disk.crash(&mut self.shared.rng, power);
        drop(hosts);
        if power {
            at.reboot(now);
        }
        trace!(self, "n{node} dies, power={power}, lost={lost}");
        self.stats.crashes += 1;
        self.stats.lost_tails += u64::from(lost && power);
        self.forget_calls(node, power);
        self.at(self.now + for_us, SimEvent::Mend(Mend::Start(node)));
    }

    /// Starts the process of a node.
    pub(crate) fn start(&mut self, node: NodeId) {
        let (now, setup, seed) = (self.now, self.setup, self.shared.rng.number());
        let at = self.node(node);
        let errors = at.disk.volume.errors();
        let shards = match at.disk.start() {
            Ok(shards) => shards,
            Err(why) if at.disk.rotten || at.disk.tail_rotten => {
                at.disk.rotten = true;
                at.refused = true;
                trace!(self, "n{node} refuses to start: {why}");
                self.stats.refusals += 1;
                return;
            }
            Err(_) if at.disk.volume.errors() > errors => {
                trace!(self, "n{node} does not start: its disk failed");
                self.stats.disk_errors += 1;
                return self.at(now + SECOND, SimEvent::Mend(Mend::Start(node)));
            }
            // A torn tail is noted in the log before anything else.
            Err(why) if at.disk.volume.is_limited() => {
                trace!(self, "n{node} does not start: {why}");
                self.stats.full_disks += 1;
                return self.at(now + SECOND, SimEvent::Mend(Mend::Start(node)));
            }
            Err(why) => return self.does_not_start(node, &why),
        };
        let violations = at.disk.compare(&shards);
        let torn = at.disk.cuts();
        let uncertain = shards.values().any(|(boot, _)| boot.uncertain);
        let damaged = self.saw_start(node, &shards);
        let number = self.shared.rng.number();
        let at = self.node(node);
        let boots = shards.iter().map(|(shard, (boot, _))| (*shard, boot));
        let own = Standing::at_start(at.disk.count_start(number), boots);
        let started = at.start(now, &setup, shards, seed);
        self.violations.extend(violations);
        if let Err(why) = started {
            return self.does_not_start(node, &why);
        }
        trace!(self, "n{node} starts, uncertain={uncertain}");
        self.stats.torn_tails += torn;
        self.stats.uncertain += u64::from(uncertain);
        self.introduce(node, own);
        for shard in damaged {
            self.write(node, DiskWrite::Log(LogWrite::Damage(shard)));
        }
        let event = SimEvent::In(self.process(node), ProcessEvent::Tick);
        self.soon(TICK_MS * MILLISECOND, event);
    }

    fn does_not_start(&mut self, node: NodeId, why: &str) {
        let what = format!("n{node}: {why}");
        self.violations.push(Violation::new("a node starts from what its disk holds", what));
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Start(node) => {
                let at = &self.nodes[&node];
                if !at.up && !at.refused && !at.ended {
                    self.start(node);
                }
            }
            Mend::Replace(node, looks) => self.replace(node, looks),
            Mend::Restore(node) => self.restore(node),
            Mend::Return => self.heal(),
            Mend::Stumble(node) => self.stumble(node),
            Mend::FormAnew => self.form_anew(),
            Mend::Cut(from, to) => {
                if matches!(self.phase, RunPhase::Chaos | RunPhase::Core) {
                    self.network.cut(from, to);
                }
            }
            // Who is left out stays as it is.
            Mend::Width(node) | Mend::Disk(node) | Mend::Room(node)
                if self.phase == RunPhase::Core && !self.core.contains(&node) => {}
            Mend::Link(from, to) => self.network.mend(from, to),
            Mend::Width(node) => self.network.narrow(node, None),
            Mend::Disk(node) => self.mend_disk(node),
            Mend::Room(node) => self.free(node),
            Mend::RotTail(node, leader) => self.rot_tail_goes_on(node, leader),
        }
    }

    fn free(&mut self, node: NodeId) {
        let at = self.node(node);
        at.scarce = false;
        at.disk.volume.limit(None);
    }

    fn mend_disk(&mut self, node: NodeId) {
        let at = self.node(node);
        at.sync_floor_us = 0;
        if std::mem::take(&mut at.hung) && at.disk.is_flying() {
            let event = SimEvent::In(self.process(node), ProcessEvent::Synced);
            self.at(self.now, event);
        }
    }

    /// A node works: its process runs, and its disk is as it should be.
    fn heal_node(&mut self, node: NodeId) {
        let now = self.now;
        let at = self.node(node);
        if at.paused_until > now {
            // A clock that stood still goes on at once.
            at.resume(now);
        }
        at.paused_until = at.paused_until.min(now);
        at.deaf_us = (0, 0);
        self.network.narrow(node, None);
        let at = self.node(node);
        at.disk.volume.arm(None);
        self.free(node);
        self.mend_disk(node);
        self.mend(Mend::Start(node));
    }

    /// Faults are over: everything works, but for nodes whose disk is damaged.
    pub(crate) fn heal(&mut self) {
        trace!(self, "faults are over");
        self.network.mend_all();
        let config = &mut self.shared.config;
        (config.loss, config.duplication, config.reordering) = (0, 0, 0);
        (config.replay, config.broken_streams) = (0, 0);
        for node in 1..=self.setup.nodes {
            self.heal_node(node);
        }
    }

    /// Chooses a majority that works and whose links work from now on; everything else stays as it is, and faults go
    /// on outside of it.
    pub(crate) fn choose_core(&mut self) {
        let majority = usize::try_from(self.setup.nodes / 2 + 1).expect("a small number");
        let sound = self.nodes.values().filter(|node| !node.is_out()).map(|node| node.id);
        let mut sound = sound.filter(|node| !self.is_spoilt(*node)).collect::<Vec<_>>();
        // A leader that is left out is what harms the others most.
        let leader = Some(self.any_node()).filter(|leader| {
            self.shared.rng.chance(700) && sound.contains(leader) && sound.len() > majority
        });
        sound.retain(|node| Some(*node) != leader);
        let mut core = NodeSet::new();
        while core.len() < majority {
            let n = self.shared.rng.between(0, sound.len() as u64 - 1);
            core.insert(sound.remove(usize::try_from(n).expect("a small number")));
        }
        // A node that lost the end of its log waits for one that did not: then all are needed.
        if self.any_doubt() {
            core.extend(self.nodes.values().filter(|node| !node.is_out()).map(|node| node.id));
        }
        for node in &core {
            self.heal_node(*node);
        }
        trace!(self, "from now on {core:?} work");
        self.network.protect(&core);
        self.core = core;
        if let Some(leader) = leader.filter(|leader| !self.core.contains(leader)) {
            self.harm_leader(leader);
        }
        self.awaited = self.clients.iter().map(|(id, client)| (*id, client.ended().1)).collect();
    }

    /// A leader outside of the core that the core goes on hearing: it hears nobody, its disk hangs, or has no room.
    fn harm_leader(&mut self, leader: NodeId) {
        let harm = *self.shared.rng.pick(&[
            LeaderFault::Deaf,
            LeaderFault::HungDisk,
            LeaderFault::FullDisk,
            LeaderFault::NarrowLink,
        ]);
        trace!(self, "n{leader} is left out: {harm:?}");
        self.heal_node(leader);
        for node in self.core.clone() {
            self.network.mend(leader, node);
            self.network.mend(node, leader);
            if harm == LeaderFault::Deaf {
                self.network.cut(node, leader);
            }
        }
        match harm {
            LeaderFault::Deaf => {}
            LeaderFault::HungDisk => self.node(leader).hung = true,
            LeaderFault::FullDisk => {
                if self.shared.rng.chance(700) {
                    self.node(leader).scarce = true;
                } else {
                    let room = self.shared.rng.between_doublings(256, LOW_BYTES - 1);
                    self.node(leader).disk.volume.limit(Some(room));
                }
                self.stats.full_leaders += 1;
            }
            LeaderFault::NarrowLink => {
                let rate = self.shared.rng.between_doublings(8, 256);
                self.network.narrow(leader, Some(rate));
                self.stats.narrow_leaders += 1;
            }
        }
        if [LeaderFault::FullDisk, LeaderFault::NarrowLink].contains(&harm) {
            // Nothing else is wrong with it.
            let mut sound = self.core.clone();
            sound.insert(leader);
            self.network.protect(&sound);
        }
        self.shared.config.faults.clear();
    }
}
