//! Faults from outside: when they begin, and when they end.

use trefoil_core::limits::TICK_MS;
use trefoil_core::replica::{Input, Pressure};
use trefoil_core::{NodeId, ShardId};

use crate::check::Violation;
use crate::client::Heard;
use crate::event::{Event, Local, Mend};
use crate::knobs::{FaultKind, MILLISECOND, SECOND};
use crate::run::Phase;
use crate::world::{World, trace};

impl World {
    pub(crate) fn next_fault(&mut self) {
        if self.phase != Phase::Chaos || self.shared.knobs.faults.is_empty() {
            return;
        }
        let kind = *self.shared.dice.pick(&self.shared.knobs.faults);
        let node = self.shared.dice.between(1, self.setup.nodes);
        let for_us = self.shared.dice.between_doublings(50, 16_000) * MILLISECOND;
        trace!(self, "fault {kind:?} at n{node} for {} ms", for_us / MILLISECOND);
        match kind {
            FaultKind::Crash => self.crash(node, for_us, false),
            FaultKind::PowerLoss => self.crash(node, for_us, true),
            FaultKind::CrashAll => {
                for node in 1..=self.setup.nodes {
                    let for_us = self.shared.dice.between(50, 4_000) * MILLISECOND;
                    let power = self.shared.dice.chance(500);
                    self.crash(node, for_us, power);
                }
            }
            FaultKind::Isolate => {
                for other in (1..=self.setup.nodes).filter(|other| *other != node) {
                    self.cut(node, other, for_us);
                    self.cut(other, node, for_us);
                }
            }
            FaultKind::OneWay => {
                let other = self.shared.dice.between(1, self.setup.nodes);
                self.cut(node, other, for_us);
            }
            FaultKind::Pause => {
                self.stats.pauses += 1;
                let deaf_us = (
                    self.shared.dice.between(0, SECOND / 10),
                    self.shared.dice.between(0, SECOND / 10),
                );
                let until = self.now + for_us;
                let host = self.node(node);
                (host.paused_until, host.deaf_us) = (until, deaf_us);
            }
            FaultKind::SlowDisk => {
                self.node(node).sync_floor_us =
                    self.shared.dice.between_doublings(10, 4_000) * MILLISECOND;
                self.at(self.now + for_us, Event::Mend(Mend::Disk(node)));
            }
            FaultKind::Transfer => {
                let shard = self.any_shard();
                let to = self
                    .shared
                    .dice
                    .chance(700)
                    .then(|| self.shared.dice.between(1, self.setup.nodes));
                self.stats.transfers += 1;
                self.step(node, shard, Input::Transfer { call: 0, to });
            }
            FaultKind::Checkpoint => {
                let shard = self.any_shard();
                let pressure = Pressure { wants_checkpoint: true, disk_low: false };
                self.step(node, shard, Input::Pressure(pressure));
            }
        }
        let calm = self.shared.knobs.calm_us;
        self.soon(calm, Event::NextFault);
    }

    fn any_shard(&mut self) -> ShardId {
        let shard = self.shared.dice.between(0, self.setup.shards.into());
        ShardId::try_from(shard).expect("a small number")
    }

    fn cut(&mut self, from: NodeId, to: NodeId, for_us: u64) {
        self.stats.cuts += 1;
        self.network.cut(from, to);
        self.at(self.now + for_us, Event::Mend(Mend::Link(from, to)));
    }

    /// A process dies, and starts again after a while.
    fn crash(&mut self, node: NodeId, for_us: u64, power: bool) {
        if !self.nodes[&node].up {
            return;
        }
        let unsynced = self.nodes[&node].disk.unsynced() as u64;
        let kept = usize::try_from(self.shared.dice.between(0, unsynced)).expect("a small number");
        let now = self.now;
        let host = self.node(node);
        let calls = std::mem::take(&mut host.calls);
        let lost = host.crash(kept);
        if power {
            host.reboot(now);
        }
        trace!(self, "n{node} dies, {kept} of {unsynced} writes kept");
        self.stats.crashes += 1;
        self.stats.lost_tails += u64::from(lost);
        for (client, token, _) in calls.into_values() {
            let delay = self.shared.knobs.delay_us;
            self.soon(delay, Event::Hear(client, token, Heard::Broken));
        }
        // The tail that was lost may have been torn, and then it looks as if more could be missing.
        if lost && self.shared.dice.chance(300) {
            self.node(node).torn = true;
        }
        self.at(self.now + for_us, Event::Mend(Mend::Start(node)));
    }

    /// Starts the process of a node.
    pub(crate) fn start(&mut self, node: NodeId) {
        let (now, setup, seed) = (self.now, self.setup, self.shared.dice.number());
        let host = self.node(node);
        let uncertain = std::mem::take(&mut host.torn);
        if let Err(why) = host.start(now, &setup, uncertain, seed) {
            self.violations.push(Violation::new(
                "a node starts from what its disk holds",
                format!("n{node}: {why}"),
            ));
            return;
        }
        trace!(self, "n{node} starts, uncertain={uncertain}");
        self.stats.uncertain += u64::from(uncertain);
        let event = Event::In(self.process(node), Local::Tick);
        self.soon(TICK_MS * MILLISECOND, event);
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Start(node) => {
                let stays_down = self.phase != Phase::Chaos && self.kept_down == Some(node);
                if !self.nodes[&node].up && !stays_down {
                    self.start(node);
                }
            }
            Mend::Link(from, to) => self.network.mend(from, to),
            Mend::Disk(node) => self.node(node).sync_floor_us = 0,
        }
    }

    /// Faults are over: everything works, but for one node that may stay down a while longer.
    pub(crate) fn heal(&mut self) {
        trace!(self, "faults are over");
        self.network.mend_all();
        let knobs = &mut self.shared.knobs;
        (knobs.loss, knobs.duplication, knobs.reordering, knobs.broken_streams) = (0, 0, 0, 0);
        if knobs.one_stays_down {
            let node = self.shared.dice.between(1, self.setup.nodes);
            self.crash(node, 3_600 * SECOND, true);
            self.kept_down = Some(node);
        }
        for node in 1..=self.setup.nodes {
            let now = self.now;
            let host = self.node(node);
            host.paused_until = host.paused_until.min(now);
            host.deaf_us = (0, 0);
            host.sync_floor_us = 0;
            self.mend(Mend::Start(node));
        }
    }
}
