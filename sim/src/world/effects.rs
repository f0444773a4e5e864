//! Carries out what replicas want: applies, messages, replies; and checks what it sees. What goes to a disk is in
//! `storage`.

use std::path::Path;

use bytes::Bytes;
use prost::Message as _;
use raft_proto::eraftpb::MessageType;
use trefoil_core::machine::{Applied, Counts, Outcome, QueryOutcome};
use trefoil_core::replica::{
    ApplyRange, Effect, Input, Peer, PersistBatch, Read, Reply, Role, RoleChange,
};
use trefoil_core::{NodeId, Position, ShardId, slot};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{CancelAcquire, Entry, Refusal};
use trefoil_server::storage::{LogWrite, evidence};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::check::lives::EntryTimes;
use crate::check::{Violation, ballot, completeness, quorum};
use crate::config::MILLISECOND;
use crate::disk::DiskWrite;
use crate::event::{ProcessEvent, SimEvent};
use crate::lives::Lives;
use crate::network::LinkStream;
use crate::node::ApplierTask;
use crate::node::forwarding::CallOrigin;
use crate::world::faults::is_doubtful;
use crate::world::{World, trace};

/// What is counted in a state is there, and what refers to a record finds it.
const WHOLE: &str = "the state is whole";

impl World {
    pub(crate) fn carry_out(&mut self, node: NodeId, shard: ShardId, effects: Vec<Effect>) {
        let life = self.nodes[&node].life;
        for effect in effects {
            // What came before may have ended the process.
            if !self.nodes[&node].up || self.nodes[&node].life != life {
                return;
            }
            match effect {
                Effect::Send(peer) => self.send(node, shard, *peer),
                Effect::Persist(batch) => self.persist(node, shard, batch),
                Effect::Apply(range) => self.task(node, shard, ApplierTask::Apply(range)),
                Effect::Query { reads, term, now_ms } => {
                    self.task(node, shard, ApplierTask::Query { reads, term, now_ms })
                }
                Effect::CancelQuery(call) => self.task(node, shard, ApplierTask::Cancel(call)),
                Effect::StepDown { refusal } => {
                    self.task(node, shard, ApplierTask::StepDown(refusal))
                }
                Effect::Reply(call, reply) => self.reply(node, shard, call, reply),
                Effect::Offer(call) => self.offer(node, call),
                Effect::TakeBack(command) => self.take_back(node, shard, *command),
                Effect::Fetch { ticket, first, last, max_bytes } => {
                    let local = ProcessEvent::Fetched { shard, ticket, first, last, max_bytes };
                    self.soon(5 * MILLISECOND, SimEvent::In(self.process(node), local));
                }
                Effect::Checkpoint => self.task(node, shard, ApplierTask::Checkpoint),
                Effect::Compact { to, term } => {
                    trace!(self, "n{node}/s{shard} cuts its log to {to}");
                    self.stats.compactions += 1;
                    self.node(node).disk.enqueue(DiskWrite::Compact(shard, to, term));
                }
                Effect::OpenSnapshot(to) => {
                    self.soon(
                        20 * MILLISECOND,
                        SimEvent::In(self.process(node), ProcessEvent::Opened(shard, to)),
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
                        ApplierTask::Install { generation, at: (index, term), hard_state },
                    );
                }
                Effect::Restore { generation, index, term } => {
                    trace!(self, "n{node}/s{shard} takes the state {index}@{term} for its own");
                    self.task(node, shard, ApplierTask::Restore(generation));
                }
                Effect::Outvoted { index } => self.outvoted(node, shard, index),
                Effect::Disputed(disputed) => self.dispute(node, shard, disputed),
                Effect::DiscardSnapshot { generation } => {
                    self.stats.snapshots_discarded += 1;
                    self.node(node).disk.discard(shard, generation);
                }
                Effect::Role(change) => self.on_role_change(node, shard, change),
                // An old message may tell of a state that has been replaced.
                Effect::Diverged { .. } if self.stats.writes_lost > 0 => {}
                Effect::TwoHistories { peer, index } => {
                    self.says(node, shard, ("a shard has one history", peer), index);
                }
                Effect::Diverged { peer, index } => {
                    let promise = "replicas have the same state at the same index";
                    self.says(node, shard, (promise, peer), index);
                }
            }
        }
    }

    /// A replica says of another that a promise is broken.
    fn says(
        &mut self,
        node: NodeId,
        shard: ShardId,
        (promise, peer): (&'static str, NodeId),
        index: u64,
    ) {
        let what = format!("n{node}/s{shard} says that n{peer} has another one at {index}");
        self.violations.push(Violation::new(promise, what));
    }

    fn on_role_change(&mut self, node: NodeId, shard: ShardId, change: RoleChange) {
        let RoleChange { role, term, leader } = change;
        trace!(self, "n{node}/s{shard} is {role:?} of term {term}, leader {leader:?}");
        let alone = self.setup.nodes == 1;
        let now_ms = self.nodes[&node].clocks(self.now).boot_ms;
        self.at(self.now, SimEvent::In(self.process(node), ProcessEvent::Moved(shard)));
        if let Some(host) = self.node(node).hosts.get_mut(&shard) {
            let found = host.ballot.note(term, role == Role::Candidate, alone);
            if host.role.leader.is_some() && leader.is_none() {
                host.leaderless_since_ms = now_ms;
            }
            host.role = change;
            if role != Role::Leader {
                host.handed.stop(0);
            }
            self.violations.extend(found.map(|_| ballot::violation(shard, node, term)));
        }
        if role == Role::Leader {
            self.stats.leaders += 1;
            let seen = self.agreements.leaders.saw(shard, term, node, node);
            self.violations.extend(seen.err());
            let last = self.nodes[&node].hosts.get(&shard).map_or(0, |host| {
                host.replica.status(self.nodes[&node].clocks(self.now)).last_index
            });
            let applied = self.agreements.applied_before(shard, term);
            let led = self.agreements.led.entry(shard).or_default();
            *led = term.max(*led);
            self.violations.extend(completeness::check(shard, node, term, last, applied));
        }
    }

    fn persist(&mut self, node: NodeId, shard: ShardId, batch: PersistBatch) {
        let last = batch.entries.last().map_or(0, |entry| entry.index);
        trace!(self, "n{node}/s{shard} writes batch {} to {last}", batch.number);
        self.speaks(node, shard);
        let mut before = None;
        for entry in &batch.entries {
            let place = (shard, entry.index, entry.term);
            self.agreements.stamped_at.entry(place).or_insert(self.now);
            let hash = xxh3_64_with_seed(&entry.data, 0);
            let seen =
                self.agreements.logs.saw(shard, (entry.index, entry.term), before, hash, node);
            self.violations.extend(seen.err());
            before = Some(entry.term);
        }
        self.write(node, DiskWrite::Log(LogWrite::Append(shard, batch)));
    }

    /// Sees that a leader has told a replica the time.
    pub(crate) fn follows(&mut self, node: NodeId, shard: ShardId, peer: &Peer) {
        let of_leader = matches!(
            peer.message.get_msg_type(),
            MessageType::MsgAppend | MessageType::MsgHeartbeat
        );
        let now = self.nodes[&node].clocks(self.now);
        if let Some(host) = self.node(node).hosts.get_mut(&shard) {
            let current = peer.message.term >= host.replica.status(now).role.term;
            host.followed |= peer.time.continuous && of_leader && current;
            let kind = peer.message.get_msg_type();
            if (kind == MessageType::MsgRequestPreVoteResponse && !peer.message.reject)
                || kind == MessageType::MsgTimeoutNow
            {
                host.ballot.asked();
            }
        }
    }

    /// Sees that a replica goes on by its wall clock: it knows the time, and no leader has told it.
    fn resumes(&mut self, node: NodeId, shard: ShardId, peer: &Peer) {
        if let Some(host) = self.node(node).hosts.get_mut(&shard)
            && peer.time.continuous
            && !std::mem::replace(&mut host.followed, true)
        {
            self.agreements.resumed.insert((shard, peer.message.term));
        }
    }

    fn send(&mut self, node: NodeId, shard: ShardId, peer: Peer) {
        self.speaks(node, shard);
        self.resumes(node, shard, &peer);
        let (from, to) = (peer.message.from, peer.message.to);
        let lane = LinkStream::of(peer.message.get_msg_type());
        let entries = peer.message.entries.iter().map(|entry| entry.data.len());
        let bytes = 64 + entries.sum::<usize>();
        let receiver = self.reached(node, to);
        let (rng, config) = (&mut self.shared.rng, &self.shared.config);
        let times = self.network.route(rng, config, self.now, (from, to), (lane, bytes as u64));
        let times = if receiver.is_some() { times } else { Vec::new() };
        if times.is_empty() && self.shared.rng.chance(300) {
            self.soon(
                10 * MILLISECOND,
                SimEvent::In(self.process(node), ProcessEvent::Unreachable(shard, to)),
            );
        }
        let start = self.start_of(node);
        for (at, receiver) in times.into_iter().zip(receiver.into_iter().cycle()) {
            self.at(at, SimEvent::Peer(receiver, shard, start, Box::new(peer.clone())));
        }
    }

    // === The applier ===

    fn task(&mut self, node: NodeId, shard: ShardId, task: ApplierTask) {
        let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
        host.tasks.push_back(task);
        self.work(node, shard);
    }

    pub(crate) fn work(&mut self, node: NodeId, shard: ShardId) {
        let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
        if !host.working && !host.tasks.is_empty() {
            host.working = true;
            let most = self.shared.config.apply_us;
            self.soon(most, SimEvent::In(self.process(node), ProcessEvent::Applier(shard)));
        }
    }

    pub(crate) fn applier_done(&mut self, node: NodeId, shard: ShardId) {
        let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
        let Some(task) = host.tasks.pop_front() else { return };
        match task {
            // The applier stands still until the log has it.
            ApplierTask::Restore(generation) => {
                let rebuild = LogWrite::Rebuild { shard, generation };
                return self.write(node, DiskWrite::Log(rebuild));
            }
            ApplierTask::Install { generation, at: truncated, hard_state } => {
                let install = LogWrite::Install { shard, hard_state, truncated, generation };
                return self.write(node, DiskWrite::Log(install));
            }
            ApplierTask::Apply(range) => self.apply(node, shard, range),
            ApplierTask::Query { reads, term, now_ms } => {
                self.query(node, shard, reads, term, now_ms)
            }
            ApplierTask::Cancel(call) => host.machine.cancel(call),
            ApplierTask::StepDown(refusal) => {
                for call in host.machine.step_down() {
                    self.reply(node, shard, call, Reply::Refused(refusal.clone()));
                }
            }
            ApplierTask::Checkpoint => self.begin_checkpoint(node, shard),
        }
        if let Some(host) = self.node(node).hosts.get_mut(&shard) {
            host.working = false;
        }
        self.work(node, shard);
    }

    fn apply(&mut self, node: NodeId, shard: ShardId, range: ApplyRange) {
        let entries = match range.entries {
            Some(entries) => entries,
            None => match self.read_log(node, shard, (range.first, range.last + 1), u64::MAX) {
                Some(read) => read.into_iter().map(|entry| (entry.term, entry.data)).collect(),
                None => return,
            },
        };
        let count = range.last + 1 - range.first;
        assert_eq!(entries.len() as u64, count, "the log has {} to {}", range.first, range.last);
        if self.is_damaged(node, shard) {
            return;
        }
        if let Some(host) = self.node(node).hosts.get_mut(&shard) {
            host.machine.lead(range.leads);
        }
        let mut all = Vec::new();
        for (index, (term, data)) in (range.first..).zip(entries) {
            if !self.nodes[&node].disk.has_synced(shard, index, term) {
                let what = format!("n{node}/s{shard} applies {index}@{term}");
                self.violations.push(Violation::new("what is applied is persisted", what));
            }
            let first =
                index == self.agreements.ledger_index.get(&shard).map_or(index, |last| last + 1);
            let shards = self.setup.shards;
            let host = self.nodes.get_mut(&node).and_then(|node| node.hosts.get_mut(&shard));
            let Some(host) = host else { return };
            let read = evidence::catch(Path::new(""), || {
                let lives = first.then(|| Lives::of(&host.store, shard, shards));
                let applied = host.machine.apply(&mut host.store, index, term, &data);
                let wrong = first.then(|| host.machine.check(&host.store).err()).flatten();
                (lives, applied, wrong)
            });
            let Ok((lives, mut applied, wrong)) = read else {
                self.step(node, shard, Input::Applied(all));
                return self.find_damage(node, shard);
            };
            let broken = wrong.into_iter().map(|what| {
                Violation::new(WHOLE, format!("n{node}/s{shard} after {index}@{term}: {what}"))
            });
            self.violations.extend(broken);
            host.overlay_bytes += data.len() as u64;
            applied.overlay_bytes = host.changed_bytes();
            if host.role.role == Role::Leader && host.role.term == term {
                host.handed.applied(&applied);
            }
            trace!(
                self,
                "n{node}/s{shard} applied {index}@{term} chain {:x} log time {}",
                applied.chain,
                applied.log_time_ms
            );
            self.saw_applied(node, shard, &data, &applied, lives.as_ref());
            if applied.digest_point {
                self.digest(node, shard, index);
            }
            all.push(applied);
        }
        self.step(node, shard, Input::Applied(all));
    }

    fn tally(&mut self, counts: &Counts) {
        self.stats.grants += counts.locks_acquired;
        self.stats.permits_taken += counts.permits_acquired;
        self.stats.conversions += counts.locks_converted;
        self.stats.deadlocks += counts.deadlocks;
        self.stats.forced += counts.locks_forced;
        self.stats.sessions_expired += counts.sessions_expired;
        self.stats.leases_expired += counts.leases_expired;
        self.stats.cache_expired += counts.cache_expired;
    }

    /// Compares an entry and its effect with what other nodes had, and tells the ledger of it once.
    fn saw_applied(
        &mut self,
        node: NodeId,
        shard: ShardId,
        data: &Bytes,
        applied: &Applied,
        lives: Option<&Lives>,
    ) {
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
        agreements.terms.insert((shard, index), applied.term);
        let led = agreements.led.get(&shard).copied().unwrap_or_default();
        agreements.applied_by.insert((shard, led), index);
        let now_ms = applied.log_time_ms;
        let grace_until_ms = agreements.expiry.grace_until_ms(shard, applied.term, now_ms);
        let times = EntryTimes { now_ms, grace_until_ms };
        self.saw_time(shard, data, applied);
        self.tally(&applied.counts);
        let Ok(entry) = Entry::decode(&data[..]) else { return };
        if let Some(lives) = lives {
            self.violations.extend(lives.check(&entry, applied, times));
        }
        if !data.is_empty() {
            let shards = self.setup.shards;
            let is_here = |name: &str| slot::shard(slot::of_locks(name), shards) == shard;
            let services = &mut self.agreements.services;
            let found = services.applied(shard, &entry.commands, applied, times, is_here);
            self.violations.extend(found);
        }
        let mut taken_back = Vec::new();
        let ledger = &mut self.shared.ledger;
        ledger.time_is(shard, now_ms);
        for (ordinal, (command, outcome)) in (0..).zip(entry.commands.iter().zip(&applied.outcomes))
        {
            if let Some(Operation::CancelAcquire(CancelAcquire { call: Some(call), .. })) =
                &command.operation
                && let Some(id) = &call.request_id
            {
                ledger.taken_back(shard, id);
                taken_back.push((&id.client, id.sequence));
            }
            let plain = self.agreements.plain.applied(shard, (index, ordinal), command);
            self.stats.plain += u64::from(plain == Ok(true));
            self.violations.extend(plain.err());
            let answer = match outcome {
                Outcome::Answered(answer) => Some(answer),
                Outcome::Waiting(_) => None,
            };
            let recalled = applied.recalled.iter().find(|(recalled, _)| *recalled == ordinal);
            let recalled = recalled.map(|(_, first)| *first);
            let place = (index, ordinal);
            let found = ledger.applied(shard, place, command, answer, recalled);
            self.violations.extend(found.err());
        }
        for settled in &applied.settled {
            if let Some(id) = &settled.request_id {
                // Granted and taken back in one entry.
                if taken_back.contains(&(&id.client, id.sequence)) {
                    ledger.taken_back(shard, id);
                }
                let place = (index, u32::MAX);
                let found = ledger.answered(shard, place, id, &settled.answer);
                self.violations.extend(found.err());
            }
        }
    }

    /// Log time against time, and against the sessions that it ended.
    fn saw_time(&mut self, shard: ShardId, data: &Bytes, applied: &Applied) {
        if data.is_empty() {
            return;
        }
        let log_time_ms = applied.log_time_ms;
        let ended = applied.counts.sessions_expired > 0;
        let grace = self.agreements.expiry.stamped(shard, applied.term, log_time_ms, ended);
        match grace {
            Ok(true) => self.stats.expired_after_change += 1,
            Ok(false) => {}
            Err(violation) => self.violations.push(violation),
        }
        let stamped_at = self.agreements.stamped_at.get(&(shard, applied.index, applied.term));
        let Some(at) = stamped_at.copied() else { return };
        let before = self.agreements.last_stamp.insert(shard, at).unwrap_or_default();
        let restarted = self.nodes.values().all(|node| node.started_at > before);
        // One that resumed may have told the leaders after it before it stamped anything.
        let resumed = self.agreements.resumed.range((shard, 0)..=(shard, applied.term));
        let resumed = resumed.copied().collect::<Vec<_>>();
        self.agreements.resumed.retain(|of| !resumed.contains(of));
        if self.shared.config.wrong_wall_clocks && (restarted || !resumed.is_empty()) {
            self.agreements.log_time.jumps(shard);
            self.stats.wall_clock_decided += 1;
        }
        self.violations.extend(self.agreements.log_time.stamped(shard, log_time_ms, at).err());
    }

    fn query(&mut self, node: NodeId, shard: ShardId, reads: Vec<Read>, term: u64, now_ms: u64) {
        for read in reads {
            let damaged = self.is_damaged(node, shard);
            let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
            let outcome = evidence::catch(Path::new(""), || {
                (!damaged).then(|| host.machine.query(&host.store, read.call, &read.query, now_ms))
            });
            let Ok(Some(outcome)) = outcome else {
                if outcome.is_err() {
                    self.find_damage(node, shard);
                }
                let why = Refusal { reason: Reason::NoQuorum.into(), ..Refusal::default() };
                self.reply(node, shard, read.call, Reply::Refused(why));
                continue;
            };
            let Some(host) = self.node(node).hosts.get_mut(&shard) else { return };
            let progress = host.machine.progress();
            let (index, log_time_ms) = (progress.index, progress.log_time_ms);
            match outcome {
                QueryOutcome::Answered(answer) => {
                    if index == self.agreements.applied_index(shard) {
                        let services = &mut self.agreements.services;
                        self.violations.extend(services.read(shard, &read.query, &answer));
                    }
                    let position = Position { term, index, ordinal: u32::MAX, log_time_ms };
                    self.reply(node, shard, read.call, Reply::Answered(position, answer));
                }
                QueryOutcome::Due(due_ms) => self.step(node, shard, Input::Due { read, due_ms }),
                QueryOutcome::Parked => {}
            }
        }
    }

    pub(crate) fn reply(&mut self, node: NodeId, shard: ShardId, call: u64, reply: Reply) {
        let Some(caller) = self.node(node).calls.remove(&call) else { return };
        let CallOrigin { asker, floor, .. } = caller;
        match &reply {
            Reply::Answered(position, _) => {
                self.speaks(node, shard);
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
        self.tell_asker(node, call, asker, reply);
    }

    /// An answer means durable on a quorum.
    fn durable(&mut self, shard: ShardId, position: Position) {
        let term = self.agreements.terms.get(&(shard, position.index)).copied();
        let has = |node: &&crate::node::SimNode| {
            // What an operator has put aside is not lost.
            let disk = node.shelf.as_deref().unwrap_or(&node.disk);
            disk.reaches(shard, position.index)
                && disk.term(shard, position.index).is_none_or(|at| term.is_none_or(|t| t == at))
        };
        // One node may have lost what it had: until it has caught up that is no fault of the others.
        let lost = self.lost_tail.is_some_and(|node| is_doubtful(&self.nodes[&node]));
        let copies = self.nodes.values().filter(has).count() + usize::from(lost);
        let found = quorum::check(shard, position.index, copies, self.nodes.len());
        self.violations.extend(found);
    }

    pub(crate) fn count(&mut self, refusal: &Refusal) {
        match refusal.reason() {
            Reason::MaybeApplied => self.stats.maybe_applied += 1,
            Reason::Lost => self.stats.lost_proposals += 1,
            Reason::NotLeader => self.stats.not_leader += 1,
            _ => {}
        }
    }
}
