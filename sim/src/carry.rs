//! Carries out what replicas want: writes, applies, messages, snapshots, replies; and checks what it sees.

use std::rc::Rc;

use bytes::Bytes;
use prost::Message as _;
use trefoil_core::machine::{Applied, Machine, Outcome, QueryOutcome};
use trefoil_core::replica::{ApplyRange, Effect, Input, Peer, Read, Reply, Role, RoleChange};
use trefoil_core::{NodeId, Position, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{CancelAcquire, Entry, Manifest, Refusal};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::check::Violation;
use crate::client::Heard;
use crate::disk::{Image, Write};
use crate::event::{Brief, Event, Local, Process};
use crate::knobs::MILLISECOND;
use crate::network::Lane;
use crate::node::{Caller, Task};
use crate::world::{World, trace};

impl World {
    pub(crate) fn carry_out(&mut self, node: NodeId, shard: ShardId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(peer) => self.send(node, shard, *peer),
                Effect::Persist(batch) => {
                    let last = batch.entries.last().map_or(0, |entry| entry.index);
                    for entry in &batch.entries {
                        let place = (shard, entry.index, entry.term);
                        self.agreements.stamped_at.entry(place).or_insert(self.now);
                    }
                    trace!(self, "n{node}/s{shard} writes batch {} to {last}", batch.number);
                    self.write(node, shard, Write::Batch(batch));
                }
                Effect::Apply(range) => self.task(node, shard, Task::Apply(range)),
                Effect::Query { reads, term, now_ms } => {
                    self.task(node, shard, Task::Query { reads, term, now_ms })
                }
                Effect::CancelQuery(call) => self.task(node, shard, Task::Cancel(call)),
                Effect::StepDown { refusal } => self.task(node, shard, Task::StepDown(refusal)),
                Effect::Reply(call, reply) => self.reply(node, shard, call, reply),
                Effect::Fetch { ticket, first, last, max_bytes } => {
                    let local = Local::Fetched { shard, ticket, first, last, max_bytes };
                    self.soon(5 * MILLISECOND, Event::In(self.process(node), local));
                }
                Effect::Checkpoint => self.task(node, shard, Task::Checkpoint),
                Effect::Compact { to, .. } => {
                    trace!(self, "n{node}/s{shard} cuts its log to {to}");
                    self.stats.compactions += 1;
                    self.node(node).disk.write(shard, Write::Compact(to));
                }
                Effect::OpenSnapshot(to) => {
                    self.soon(
                        20 * MILLISECOND,
                        Event::In(self.process(node), Local::Opened(shard, to)),
                    );
                }
                Effect::SendSnapshot(peer) => self.send_snapshot(node, shard, peer),
                Effect::CloseSnapshot(to) => {
                    if let Some(host) = self.node(node).hosts.get_mut(&shard) {
                        host.open.remove(&to);
                    }
                }
                Effect::InstallSnapshot { generation, index, term, hard_state } => {
                    trace!(self, "n{node}/s{shard} installs a snapshot of {index}@{term}");
                    self.task(
                        node,
                        shard,
                        Task::Install { generation, at: (index, term), hard_state },
                    );
                }
                Effect::DiscardSnapshot { generation } => {
                    self.stats.snapshots_discarded += 1;
                    self.node(node).disk.discard(shard, generation);
                }
                Effect::Role(change) => self.note_role(node, shard, change),
                Effect::Diverged { peer, index } => {
                    let what =
                        format!("n{node}/s{shard} says that n{peer} has another state at {index}");
                    self.violations.push(Violation::new(
                        "replicas have the same state at the same index",
                        what,
                    ));
                }
            }
        }
    }

    fn note_role(&mut self, node: NodeId, shard: ShardId, change: RoleChange) {
        let RoleChange { role, term, leader } = change;
        trace!(self, "n{node}/s{shard} is {role:?} of term {term}, leader {leader:?}");
        if role == Role::Leader {
            self.stats.leaders += 1;
            let seen = self.agreements.leaders.saw(shard, term, node, node);
            self.violations.extend(seen.err());
        }
    }

    fn send(&mut self, node: NodeId, shard: ShardId, peer: Peer) {
        let (from, to) = (peer.message.from, peer.message.to);
        let lane = Lane::of(peer.message.get_msg_type());
        let times = self.network.route(
            &mut self.shared.dice,
            &self.shared.knobs,
            self.now,
            (from, to),
            lane,
        );
        if times.is_empty() && self.shared.dice.chance(300) {
            self.soon(
                10 * MILLISECOND,
                Event::In(self.process(node), Local::Unreachable(shard, to)),
            );
        }
        for at in times {
            self.at(at, Event::Peer(to, shard, Box::new(peer.clone())));
        }
    }

    // === The log ===

    fn write(&mut self, node: NodeId, shard: ShardId, write: Write) {
        self.node(node).disk.write(shard, write);
        self.sync(node);
    }

    fn sync(&mut self, node: NodeId) {
        let host = self.node(node);
        if host.syncing > 0 || host.disk.unsynced() == 0 {
            return;
        }
        host.syncing = host.disk.unsynced();
        let floor = host.sync_floor_us;
        let delay = floor + self.shared.dice.between(1, self.shared.knobs.sync_us);
        let event = Event::In(self.process(node), Local::Synced);
        self.at(self.now + delay, event);
    }

    pub(crate) fn synced(&mut self, node: NodeId) {
        let host = self.node(node);
        let writes = std::mem::take(&mut host.syncing);
        let done = host.disk.sync(writes);
        trace!(self, "n{node} synced {writes} writes");
        self.sync(node);
        for (shard, write) in done {
            match write {
                Write::Batch(batch) => self.step(node, shard, Input::Persisted(batch.number)),
                Write::Compact(_) => {}
                Write::Install { at: (index, _), .. } => self.installed(node, shard, index),
            }
        }
    }

    // === The applier ===

    fn task(&mut self, node: NodeId, shard: ShardId, task: Task) {
        let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
        host.tasks.push_back(task);
        self.work(node, shard);
    }

    fn work(&mut self, node: NodeId, shard: ShardId) {
        let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
        if !host.working && !host.tasks.is_empty() {
            host.working = true;
            let most = self.shared.knobs.apply_us;
            self.soon(most, Event::In(self.process(node), Local::Applier(shard)));
        }
    }

    pub(crate) fn applier_done(&mut self, node: NodeId, shard: ShardId) {
        let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
        let Some(task) = host.tasks.pop_front() else { return };
        match task {
            // The applier stands still until the log has it.
            Task::Install { generation, at, hard_state } => {
                return self.write(node, shard, Write::Install { generation, at, hard_state });
            }
            Task::Apply(range) => self.apply(node, shard, range),
            Task::Query { reads, term, now_ms } => self.query(node, shard, reads, term, now_ms),
            Task::Cancel(call) => host.machine.cancel(call),
            Task::StepDown(refusal) => {
                for call in host.machine.step_down() {
                    self.reply(node, shard, call, Reply::Refused(refusal.clone()));
                }
            }
            Task::Checkpoint => {
                let image = Rc::new(Image::new(&host.store, &host.machine));
                host.overlay_bytes = 0;
                let generation = self.nodes[&node].disk.generation(shard);
                let local = Local::Checkpoint(shard, generation, image);
                self.soon(self.shared.knobs.checkpoint_us, Event::In(self.process(node), local));
            }
        }
        if let Some(host) = self.node(node).hosts.get_mut(&shard) {
            host.working = false;
        }
        self.work(node, shard);
    }

    fn apply(&mut self, node: NodeId, shard: ShardId, range: ApplyRange) {
        let entries = range.entries.unwrap_or_else(|| {
            let read = self.nodes[&node].disk.entries(shard, range.first, range.last + 1, u64::MAX);
            read.into_iter().map(|entry| (entry.term, entry.data)).collect()
        });
        let count = range.last + 1 - range.first;
        assert_eq!(entries.len() as u64, count, "the log has {} to {}", range.first, range.last);
        let mut all = Vec::new();
        for (index, (term, data)) in (range.first..).zip(entries) {
            if !self.nodes[&node].disk.has_synced(shard, index, term) {
                let what = format!("n{node}/s{shard} applies {index}@{term}");
                self.violations.push(Violation::new("what is applied is persisted", what));
            }
            let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
            let mut applied = host.machine.apply(&mut host.store, index, term, &data);
            host.overlay_bytes += data.len() as u64;
            applied.overlay_bytes = host.overlay_bytes;
            trace!(
                self,
                "n{node}/s{shard} applied {index}@{term} chain {:x} log time {}",
                applied.chain,
                applied.log_time_ms
            );
            self.saw_applied(node, shard, &data, &applied);
            all.push(applied);
        }
        self.step(node, shard, Input::Applied(all));
    }

    /// Compares an entry and its effect with what other nodes had, and tells the ledger of it once.
    fn saw_applied(&mut self, node: NodeId, shard: ShardId, data: &Bytes, applied: &Applied) {
        let (index, agreements) = (applied.index, &mut self.agreements);
        let entry =
            agreements.entries.saw(shard, index, xxh3_64_with_seed(data, applied.term), node);
        let state = agreements.states.saw(shard, index, applied.chain, node);
        self.violations.extend(entry.err().into_iter().chain(state.err()));
        let last = agreements.ledger_index.entry(shard).or_insert(trefoil_core::BIRTH_INDEX);
        if index != *last + 1 {
            return;
        }
        *last = index;
        let stamped_at = agreements.stamped_at.get(&(shard, index, applied.term)).copied();
        if let (Some(at), false) = (stamped_at, data.is_empty()) {
            self.violations
                .extend(agreements.log_time.stamped(shard, applied.log_time_ms, at).err());
        }
        let counts = &applied.counts;
        self.stats.grants += counts.locks_acquired;
        self.stats.sessions_expired += counts.sessions_expired;
        self.stats.leases_expired += counts.leases_expired;
        self.stats.cache_expired += counts.cache_expired;
        let Ok(entry) = Entry::decode(&data[..]) else { return };
        let ledger = &mut self.shared.ledger;
        for (ordinal, (command, outcome)) in (0..).zip(entry.commands.iter().zip(&applied.outcomes))
        {
            if let Some(Operation::CancelAcquire(CancelAcquire { waiter: Some(id), .. })) =
                &command.operation
            {
                ledger.taken_back(shard, id);
            }
            let Some(id) = &command.request_id else { continue };
            let answer = match outcome {
                Outcome::Answered(answer) => Some(answer),
                Outcome::Waiting(_) => None,
            };
            self.violations.extend(ledger.applied(shard, (index, ordinal), id, answer).err());
        }
        for settled in &applied.settled {
            if let Some(id) = &settled.request_id {
                self.violations.extend(ledger.answered(shard, id, &settled.answer).err());
            }
        }
    }

    fn query(&mut self, node: NodeId, shard: ShardId, reads: Vec<Read>, term: u64, now_ms: u64) {
        for read in reads {
            let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
            let outcome = host.machine.query(&host.store, read.call, &read.query, now_ms);
            let progress = host.machine.progress();
            let (index, log_time_ms) = (progress.index, progress.log_time_ms);
            match outcome {
                QueryOutcome::Answered(answer) => {
                    let position = Position { term, index, ordinal: u32::MAX, log_time_ms };
                    self.reply(node, shard, read.call, Reply::Answered(position, answer));
                }
                QueryOutcome::Due(due_ms) => self.step(node, shard, Input::Due { read, due_ms }),
                QueryOutcome::Parked => {}
            }
        }
    }

    fn reply(&mut self, node: NodeId, shard: ShardId, call: u64, reply: Reply) {
        let Some(caller) = self.node(node).calls.remove(&call) else { return };
        let Caller { client, token, floor, .. } = caller;
        match &reply {
            Reply::Answered(position, _) => {
                trace!(
                    self,
                    "n{node}/s{shard} answers call {call} at {}.{}",
                    position.index,
                    position.ordinal
                );
                self.durable(shard, *position);
                if position.index < floor {
                    let what = format!(
                        "n{node}/s{shard} answers call {call} at {}, after {floor}",
                        position.index
                    );
                    self.violations.push(Violation::new(
                        "an answer sees all that was applied before the call",
                        what,
                    ));
                }
            }
            Reply::Refused(refusal) => {
                trace!(self, "n{node}/s{shard} refuses call {call}: {}", refusal.reason().name());
                self.count(refusal);
            }
        }
        if self.shared.dice.chance(self.shared.knobs.loss) {
            return;
        }
        let delay = self.shared.knobs.delay_us;
        self.soon(delay, Event::Hear(client, token, Heard::Reply(reply)));
    }

    /// An answer means durable on a quorum.
    fn durable(&mut self, shard: ShardId, position: Position) {
        let has = |node: &&crate::node::Node| node.disk.reaches(shard, position.index);
        let copies = self.nodes.values().filter(has).count();
        if copies <= self.nodes.len() / 2 {
            let what = format!("shard {shard} answers at {} with {copies} copies", position.index);
            self.violations.push(Violation::new("an answer is durable on a quorum", what));
        }
    }

    fn count(&mut self, refusal: &Refusal) {
        match refusal.reason() {
            Reason::MaybeApplied => self.stats.maybe_applied += 1,
            Reason::Lost => self.stats.lost_proposals += 1,
            Reason::NotLeader => self.stats.not_leader += 1,
            _ => {}
        }
    }

    // === Checkpoints and snapshots ===

    pub(crate) fn checkpointed(
        &mut self,
        node: NodeId,
        shard: ShardId,
        generation: u64,
        image: Rc<Image>,
    ) {
        let (index, term) = image.at();
        let host = self.node(node);
        if host.disk.generation(shard) != generation {
            return;
        }
        host.disk.checkpoint(shard, generation, image);
        let overlay_bytes = host.hosts.get(&shard).map_or(0, |host| host.overlay_bytes);
        trace!(self, "n{node}/s{shard} has a checkpoint of {index}@{term}");
        self.stats.checkpoints += 1;
        self.step(node, shard, Input::Checkpointed { index, overlay_bytes });
    }

    pub(crate) fn snapshot_opened(&mut self, node: NodeId, shard: ShardId, to: NodeId) {
        let fails = self.shared.dice.chance(self.shared.knobs.broken_streams / 2);
        let host = self.node(node);
        let image = host.disk.image(shard);
        let (index, term) = image.at();
        let manifest = Manifest {
            format: 1,
            records: image.store.records.len() as u64,
            bytes: image
                .store
                .records
                .iter()
                .map(|(key, value)| (key.len() + value.len()) as u64)
                .sum(),
            chain: image.progress.chain,
        };
        let snapshot = (!fails).then(|| (index, term, Bytes::from(manifest.encode_to_vec())));
        if let (Some(host), false) = (host.hosts.get_mut(&shard), fails) {
            host.open.insert(to, image);
        }
        trace!(self, "n{node}/s{shard} snapshot of {index} open for n{to}: {}", !fails);
        self.step(node, shard, Input::SnapshotOpened { to, snapshot });
    }

    fn send_snapshot(&mut self, node: NodeId, shard: ShardId, peer: Box<Peer>) {
        let to = peer.message.to;
        let broken = self.shared.dice.chance(self.shared.knobs.broken_streams);
        let open = self.nodes[&node].hosts.get(&shard).and_then(|host| host.open.get(&to).cloned());
        let image = open.filter(|_| !broken);
        trace!(self, "n{node}/s{shard} {} leaves, whole={}", Brief(&peer.message), image.is_some());
        let delay = self.shared.knobs.delay_us + self.shared.knobs.checkpoint_us;
        self.soon(delay, Event::Stream { from: self.process(node), to, shard, peer, image });
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
        let image = image
            .filter(|_| !cut && self.nodes[&to].up && self.nodes[&from.node].life == from.life);
        trace!(
            self,
            "n{to}/s{shard} end of a snapshot stream of n{}, whole={}",
            from.node,
            image.is_some()
        );
        let local = Local::Sent(shard, to, image.is_some());
        match image {
            Some(image) => {
                let generation = self.node(to).disk.receive(shard, image);
                self.step(to, shard, Input::SnapshotReceived { peer, generation });
            }
            None => self.stats.snapshots_broken += 1,
        }
        let delay = self.shared.knobs.delay_us;
        self.soon(delay, Event::In(from, local));
    }

    fn installed(&mut self, node: NodeId, shard: ShardId, index: u64) {
        let shards = self.setup.shards;
        let host = self.node(node);
        let image = host.disk.image(shard);
        let Some(host) = host.hosts.get_mut(&shard) else { return };
        host.store = image.store.clone();
        host.machine = Machine::open(&host.store, shard, shards);
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

    /// Tells peers when a replica has lost the end of its log, and when it has caught up.
    pub(crate) fn tell_uncertain(&mut self, node: NodeId, shard: ShardId) {
        for to in (1..=self.setup.nodes).filter(|to| *to != node) {
            let peer = &self.nodes[&to];
            let (up, life) = (peer.up, peer.life);
            if !up || self.network.is_cut((node, to)) {
                continue;
            }
            let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
            let uncertain = host.replica.is_uncertain();
            let before = host.told.insert(to, (life, uncertain));
            if before != Some((life, uncertain)) && (uncertain || before.is_some()) {
                let delay = self.shared.knobs.delay_us;
                self.soon(delay, Event::Uncertain { to, shard, node, uncertain });
            }
        }
    }
}
