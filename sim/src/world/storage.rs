//! What goes to a node's disk and comes from it: writes of the log, checkpoints, snapshots.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use prost::Message as _;
use raft_proto::eraftpb::Entry;
use trefoil_core::replica::{Input, Peer, Pressure};
use trefoil_core::{NodeId, ShardId};
use trefoil_proto::internal::v1::Manifest;
use trefoil_server::storage::{LogWrite, evidence};

use crate::check::Violation;
use crate::config::{MILLISECOND, SECOND};
use crate::disk::DiskWrite;
use crate::disk::state::{CheckpointJob, DIRECTORY, Image, MachineStore};
use crate::event::{Brief, ProcessEvent, SimEvent};
use crate::node::process::Process;
use crate::world::{World, trace};

/// Pause between two attempts to write on a full disk.
const FULL_PAUSE_US: u64 = 200 * MILLISECOND;
/// Free bytes below which a node should not lead, and takes only what makes room.
pub(crate) const LOW_BYTES: u64 = 8 << 10;

impl World {
    /// The process cannot trust its disk any more.
    pub(crate) fn disk_failed(&mut self, node: NodeId, error: &io::Error) {
        trace!(self, "n{node} ends: {error}");
        self.stats.disk_errors += 1;
        let for_us = self.shared.rng.between(1, 4) * SECOND;
        self.crash(node, for_us, false);
    }

    // === The log ===

    pub(crate) fn write(&mut self, node: NodeId, write: DiskWrite) {
        self.node(node).disk.enqueue(write);
        self.sync(node);
    }

    pub(crate) fn sync(&mut self, node: NodeId) {
        let host = self.node(node);
        if !host.up || host.full || host.disk.is_flying() || !host.disk.waits() {
            return;
        }
        match host.disk.begin() {
            Ok(writes) => {
                host.writing = writes;
                if host.hung {
                    return;
                }
                let floor = host.sync_floor_us;
                let delay = floor + self.shared.rng.between(1, self.shared.config.sync_us);
                let event = SimEvent::In(self.process(node), ProcessEvent::Synced);
                self.at(self.now + delay, event);
            }
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                trace!(self, "n{node} has no room for the log");
                self.node(node).full = true;
                self.stats.full_disks += 1;
                let event = SimEvent::In(self.process(node), ProcessEvent::RetryWrite);
                self.at(self.now + FULL_PAUSE_US, event);
            }
            Err(error) => self.disk_failed(node, &error),
        }
    }

    pub(crate) fn retry_write(&mut self, node: NodeId) {
        self.node(node).full = false;
        self.sync(node);
    }

    pub(crate) fn synced(&mut self, node: NodeId) {
        let host = self.node(node);
        let writes = std::mem::take(&mut host.writing);
        if let Err(error) = host.disk.finish() {
            self.stats.sync_errors += 1;
            return self.disk_failed(node, &error);
        }
        trace!(self, "n{node} synced {} writes", writes.len());
        let life = self.nodes[&node].life;
        for write in writes {
            if !self.nodes[&node].up || self.nodes[&node].life != life {
                return;
            }
            match write {
                LogWrite::Append(shard, batch) => {
                    self.step(node, shard, Input::Persisted(batch.number));
                }
                LogWrite::Install { shard, truncated: (index, _), .. } => {
                    self.installed(node, shard, index);
                }
                LogWrite::Damage(shard) => {
                    let disk = &self.nodes[&node].disk;
                    // Another state may have come with the same batch.
                    if disk.is_damaged(shard) || trefoil_core::mutant!(DamageForgotten) {
                        let place = (node, shard, disk.generation(shard));
                        self.agreements.damaged.insert(place);
                    }
                }
                LogWrite::Rebuild { shard, .. } => self.restored(node, shard),
                LogWrite::Move { .. } => unreachable!("simulated states stay in their files"),
            }
        }
        self.sync(node);
    }

    /// What a node does for its disk from time to time.
    pub(crate) fn care(&mut self, node: NodeId) {
        let purge = self.shared.rng.chance(100);
        match self.nodes[&node].disk.care(purge) {
            Err(error) if error.kind() != ErrorKind::StorageFull => {
                return self.disk_failed(node, &error);
            }
            _ => {}
        }
        let at = &self.nodes[&node];
        let low = at.scarce || at.disk.volume.room() < LOW_BYTES;
        if low != self.nodes[&node].low {
            self.node(node).low = low;
            trace!(self, "n{node} is low on room: {low}");
            for shard in 0..=self.setup.shards {
                let pressure = Pressure { disk_low: low, wants_checkpoint: low };
                self.step(node, shard, Input::Pressure(pressure));
            }
        }
    }

    /// Entries from the log; none when that ended the process.
    pub(crate) fn read_log(
        &mut self,
        node: NodeId,
        shard: ShardId,
        (first, last): (u64, u64),
        max_bytes: u64,
    ) -> Option<Vec<Entry>> {
        match self.nodes[&node].disk.entries(shard, first, last, max_bytes) {
            Ok(entries) => Some(entries),
            Err(error) => {
                self.disk_failed(node, &error);
                None
            }
        }
    }

    // === Checkpoints ===

    pub(crate) fn begin_checkpoint(&mut self, node: NodeId, shard: ShardId) {
        let at = self.node(node);
        let Some(host) = at.hosts.get_mut(&shard).filter(|host| !host.damaged) else { return };
        host.checkpoint = at.disk.begin_checkpoint(&mut host.store, &mut host.machine);
        host.overlay_bytes = 0;
        let delay = self.shared.config.checkpoint_us;
        let generation = self.nodes[&node].disk.generation(shard);
        let event = SimEvent::In(self.process(node), ProcessEvent::Checkpoint(shard, generation));
        self.soon(delay, event);
    }

    pub(crate) fn checkpointed(&mut self, node: NodeId, shard: ShardId, generation: u64) {
        let at = self.node(node);
        let Some(host) = at.hosts.get_mut(&shard) else { return };
        if at.disk.generation(shard) != generation {
            return;
        }
        let Some(job) = host.checkpoint.take() else { return };
        let done = if at.disk.has_room(&host.store) {
            let progress = host.machine.progress();
            let run = || at.disk.run_checkpoint(shard, &job, progress);
            match evidence::catch(Path::new(DIRECTORY), run) {
                Ok(done) => done,
                Err(_) => return self.find_damage(node, shard),
            }
        } else {
            Err(ErrorKind::StorageFull.into())
        };
        let Ok((index, written)) = done else {
            host.checkpoint = Some(job);
            self.stats.full_checkpoints += 1;
            let event =
                SimEvent::In(self.process(node), ProcessEvent::Checkpoint(shard, generation));
            return self.at(self.now + SECOND, event);
        };
        if let (MachineStore::File(store), Some(written)) = (&mut host.store, written) {
            let finished = evidence::catch(Path::new(DIRECTORY), || store.finish(written));
            if finished.is_err() {
                return self.find_damage(node, shard);
            }
        }
        let overlay_bytes = host.changed_bytes();
        trace!(self, "n{node}/s{shard} has a checkpoint of {index}");
        self.stats.checkpoints += 1;
        self.step(node, shard, Input::Checkpointed { index, overlay_bytes });
    }

    // === Snapshots ===

    pub(crate) fn snapshot_opened(&mut self, node: NodeId, shard: ShardId, to: NodeId) {
        let fails = self.shared.rng.chance(self.shared.config.broken_streams / 2);
        if self.nodes[&node].hosts.get(&shard).is_some_and(|host| host.damaged) {
            return self.step(node, shard, Input::SnapshotOpened { to, snapshot: None });
        }
        let at = self.node(node);
        let Some(host) = at.hosts.get_mut(&shard) else { return };
        let read = || at.disk.snapshot(shard, &host.store);
        let Ok(image) = evidence::catch(Path::new(DIRECTORY), read) else {
            self.find_damage(node, shard);
            return self.step(node, shard, Input::SnapshotOpened { to, snapshot: None });
        };
        let (index, term) = image.at();
        let records = &image.store.records;
        let bytes = records.iter().map(|(key, value)| (key.len() + value.len()) as u64);
        let manifest = Manifest {
            format: 2,
            records: records.len() as u64,
            bytes: bytes.sum(),
            chain: image.progress.chain,
        };
        let snapshot = (!fails).then(|| (index, term, Bytes::from(manifest.encode_to_vec())));
        if !fails {
            host.open.insert(to, image);
        }
        trace!(self, "n{node}/s{shard} snapshot of {index} open for n{to}: {}", !fails);
        self.step(node, shard, Input::SnapshotOpened { to, snapshot });
    }

    pub(crate) fn send_snapshot(&mut self, node: NodeId, shard: ShardId, peer: Box<Peer>) {
        let to = peer.message.to;
        let broken = self.shared.rng.chance(self.shared.config.broken_streams);
        let open = self.nodes[&node].hosts.get(&shard).and_then(|host| host.open.get(&to).cloned());
        let image = open.filter(|_| !broken);
        trace!(self, "n{node}/s{shard} {} leaves, whole={}", Brief(&peer.message), image.is_some());
        let delay = self.shared.config.delay_us + self.shared.config.checkpoint_us;
        self.soon(delay, SimEvent::Stream { from: self.process(node), to, shard, peer, image });
    }

    pub(crate) fn stream_ends(
        &mut self,
        from: Process,
        to: NodeId,
        shard: ShardId,
        peer: Box<Peer>,
        image: Option<Rc<Image>>,
    ) {
        let cut = self.network.is_cut((from.node, to)) || self.network.is_cut((to, from.node));
        let alive = self.nodes[&to].up
            && self.nodes[&from.node].life == from.life
            && self.takes(to, (from.node, self.start_of(from.node)));
        let image = image.filter(|_| !cut && alive);
        let received = image.map(|image| self.node(to).disk.receive(shard, image));
        let whole = matches!(received, Some(Ok(_)));
        trace!(self, "n{to}/s{shard} end of a snapshot stream of n{}, whole={whole}", from.node);
        match received {
            Some(Ok(generation)) => {
                self.step(to, shard, Input::SnapshotReceived { peer, generation });
            }
            Some(Err(_)) | None => self.stats.snapshots_broken += 1,
        }
        let delay = self.shared.config.delay_us;
        self.soon(delay, SimEvent::In(from, ProcessEvent::Sent(shard, to, whole)));
    }

    fn installed(&mut self, node: NodeId, shard: ShardId, index: u64) {
        let shards = self.setup.shards;
        let at = self.node(node);
        let Some(host) = at.hosts.get_mut(&shard) else { return };
        host.checkpoint = None;
        if !at.disk.holds_only(shard, index) {
            let what = format!("n{node}/s{shard} at {index}");
            let invariant = "an installed snapshot takes the place of the log";
            self.violations.push(Violation::new(invariant, what));
            return;
        }
        match at.disk.installed(shard) {
            Ok(store) => host.store = store,
            Err(why) => {
                let what = format!("n{node}/s{shard}: {why}");
                let violation = Violation::new("an installed snapshot can be opened", what);
                return self.violations.push(violation);
            }
        }
        host.open_machine(shard, shards);
        host.damaged = false;
        host.overlay_bytes = 0;
        host.working = false;
        let applied = Box::new(host.restored());
        trace!(self, "n{node}/s{shard} installed a snapshot of {index}");
        self.stats.snapshots_installed += 1;
        let seen = self.agreements.states.saw(shard, index, applied.chain, node);
        self.violations.extend(seen.err());
        self.step(node, shard, Input::SnapshotInstalled { index, applied });
        self.work(node, shard);
    }

    /// A checkpoint that a process was writing when it died may be there in part.
    pub(crate) fn die_writing(&mut self, node: NodeId, shard: ShardId, job: &CheckpointJob) {
        let CheckpointJob::File(_) = job else { return };
        let operations = self.shared.rng.between(0, 12);
        let at = self.node(node);
        at.disk.volume.light_fuse(operations);
        let progress = trefoil_proto::internal::v1::Progress::default();
        // Whatever it says: nobody is there to hear it.
        at.disk.run_checkpoint(shard, job, &progress).ok();
    }

    /// Tells peers when a replica has lost the end of its log, when it has caught up, and what keeps it from leading.
    pub(crate) fn announce(&mut self, node: NodeId, shard: ShardId) {
        let now_us = self.now;
        for to in (1..=self.setup.nodes).filter(|to| *to != node) {
            let Some(Process { life, .. }) = self.reached(node, to) else { continue };
            if self.network.is_cut((node, to)) {
                continue;
            }
            let from = (node, self.start_of(node));
            let at = self.node(node);
            let now = at.clocks(now_us);
            let Some(host) = at.hosts.get_mut(&shard) else { return };
            let status = host.replica.status(now);
            let announced = (status.uncertain, status.obstacles);
            let before = host.told.insert(to, (life, announced));
            let news = announced.0 || !announced.1.is_empty() || before.is_some();
            if before != Some((life, announced)) && news {
                let delay = self.shared.config.delay_us;
                let said_at = self.now;
                self.soon(delay, SimEvent::Announced { to, shard, from, announced, said_at });
            }
        }
        let at = self.node(node);
        let Some(host) = at.hosts.get_mut(&shard) else { return };
        if host.doubted && !host.replica.is_uncertain() {
            host.doubted = false;
            at.disk.enqueue(DiskWrite::Trust(shard));
        }
    }
}
