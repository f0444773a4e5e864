//! The thread that owns every replica of the node: inputs go in, effects go out, nothing slow happens.
//!
//! It never waits for another thread: what it hands on goes to mailboxes, which take at once, and what waits for it
//! is taken all together, so that the commands of a shard gather into one entry and the batches of all shards into
//! one sync.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{debug, error, info};
use trefoil_core::limits::TICK_MS;
use trefoil_core::replica::{Effect, Input, Peer, Proposal, Read, Replica, Role, RoleChange};
use trefoil_core::{NodeId, Now, ShardId};
use trefoil_proto::internal::v1::Command;

use super::handle::Handle;
use super::jobs::{ApplyJob, ApplyTask, FileJob, Incoming, Install, ReadJob, Workers, WriteJob};
use crate::peer::latency::Latencies;
use crate::peer::{Announced, Links};
use crate::shared::clock;
use crate::shared::{ReplicaEvent, Shared};

#[derive(Debug)]
pub(super) struct Replicas {
    shared: Arc<Shared>,
    /// By shard.
    replicas: Vec<Replica>,
    workers: Workers,
    links: Arc<Links>,
    latencies: Latencies,
    out: Out,
    /// What peers know of the replicas.
    announced: Announced,
}

/// Jobs of one turn, handed over at its end.
#[derive(Debug, Default)]
struct Out {
    writer: Vec<WriteJob>,
    reader: Vec<ReadJob>,
    appliers: Vec<Vec<ApplyJob>>,
    /// Peers to which a message was dropped.
    unreachable: BTreeSet<(ShardId, NodeId)>,
}

/// The inputs of one turn, by shard.
struct Turn {
    shards: Vec<Inputs>,
}

#[derive(Default)]
struct Inputs {
    inputs: Vec<Input>,
    /// Where the commands and the reads of this turn gather.
    commands: Option<usize>,
    reads: Option<usize>,
}

impl Inputs {
    fn propose(&mut self, proposal: Proposal) {
        if let Some(Input::Propose(proposals)) =
            self.commands.and_then(|at| self.inputs.get_mut(at))
        {
            return proposals.push(proposal);
        }
        self.commands = Some(self.inputs.len());
        self.inputs.push(Input::Propose(vec![proposal]));
    }

    fn read(&mut self, read: Read) {
        if let Some(Input::Read(reads)) = self.reads.and_then(|at| self.inputs.get_mut(at)) {
            return reads.push(read);
        }
        self.reads = Some(self.inputs.len());
        self.inputs.push(Input::Read(vec![read]));
    }
}

impl Turn {
    fn new(shards: usize) -> Self {
        Self { shards: (0..shards).map(|_| Inputs::default()).collect() }
    }

    fn of(&mut self, shard: ShardId) -> &mut Inputs {
        &mut self.shards[usize::try_from(shard).expect("a shard number fits a usize")]
    }
}

impl Replicas {
    pub(super) fn new(
        shared: Arc<Shared>,
        replicas: Vec<Replica>,
        workers: Workers,
        links: Arc<Links>,
    ) -> Self {
        let appliers = workers.appliers.iter().map(|_| Vec::new()).collect();
        let mut replicas = Self {
            shared,
            replicas,
            workers,
            links,
            latencies: Latencies::default(),
            out: Out { appliers, ..Out::default() },
            announced: Announced::default(),
        };
        for shard in replicas.shared.all_shards() {
            replicas.show(shard, clock::now());
        }
        replicas
    }

    /// Runs until the inbox is closed; `held` happened before.
    pub(super) fn run(mut self, mut held: Vec<ReplicaEvent>) {
        let tick = Duration::from_millis(TICK_MS);
        let mut next_tick = Instant::now();
        loop {
            let taken = self.shared.inbox.take(Some(next_tick));
            let mut turn = Turn::new(self.replicas.len());
            for (shard, node) in std::mem::take(&mut self.out.unreachable) {
                turn.of(shard).inputs.push(Input::Unreachable(node));
            }
            for event in held.drain(..).chain(taken.items) {
                self.sort(event, &mut turn);
            }
            if self.shared.is_impostor() {
                // Not one more word to peers, and no vote: its owner ends the process.
                if taken.closed {
                    return;
                }
                next_tick = Instant::now() + tick;
                continue;
            }
            let moment = Instant::now();
            if moment >= next_tick {
                // Ticks that a pause of the process swallowed are not made up for: they would start elections.
                next_tick = (next_tick + tick).max(moment);
                for inputs in &mut turn.shards {
                    inputs.inputs.push(Input::Tick);
                }
            }
            self.step(turn);
            if taken.closed {
                return;
            }
        }
    }

    fn sort(&mut self, event: ReplicaEvent, turn: &mut Turn) {
        match event {
            ReplicaEvent::Propose(shard, proposal) => turn.of(shard).propose(proposal),
            ReplicaEvent::Read(shard, read) => turn.of(shard).read(read),
            ReplicaEvent::Peer(shard, peer, bytes) => {
                self.shared.received(bytes);
                if let Some((operation, seconds)) = self.latencies.received(shard, &peer.message) {
                    self.shared.observer.rpc(operation, seconds);
                }
                turn.of(shard).inputs.push(Input::Peer(peer));
            }
            ReplicaEvent::Input(shard, input) => turn.of(shard).inputs.push(input),
            ReplicaEvent::Damaged(shard, damaged) => self.apply(shard, ApplyTask::Damaged(damaged)),
        }
    }

    fn step(&mut self, turn: Turn) {
        let now = clock::now();
        for (shard, inputs) in (0..).zip(turn.shards) {
            if inputs.inputs.is_empty() {
                continue;
            }
            for input in inputs.inputs {
                let effects = self.replica(shard).step(now, input);
                for effect in effects {
                    self.perform(shard, effect);
                }
            }
            self.show(shard, now);
        }
        self.workers.writer.send_all(&mut self.out.writer);
        self.workers.reader.send_all(&mut self.out.reader);
        for (applier, jobs) in self.workers.appliers.iter().zip(&mut self.out.appliers) {
            applier.send_all(jobs);
        }
    }

    fn replica(&mut self, shard: ShardId) -> &mut Replica {
        &mut self.replicas[usize::try_from(shard).expect("a shard number fits a usize")]
    }

    /// Tells everybody else what a replica looks like now.
    fn show(&mut self, shard: ShardId, now: Now) {
        let replica = self.replica(shard);
        let status = replica.status(now);
        self.shared.table.set_status(shard, status);
        let Announced { uncertain, obstacles } = &mut self.announced;
        let doubted = uncertain.contains(&shard);
        let kept = obstacles.get(&shard).copied().unwrap_or_default();
        if (doubted, kept) == (status.uncertain, status.obstacles) {
            return;
        }
        if status.uncertain {
            uncertain.insert(shard);
        } else if uncertain.remove(&shard) {
            self.out.writer.push(WriteJob::Trust(shard));
        }
        if status.obstacles.is_empty() {
            obstacles.remove(&shard);
        } else {
            obstacles.insert(shard, status.obstacles);
        }
        self.links.announce(&self.announced);
        if kept != status.obstacles {
            info!(self.shared.logger, "what keeps this node from leading a shard has changed";
                "shard" => shard, "obstacles" => %status.obstacles, "before" => %kept);
            let of_shards = self.announced.obstacles.values().copied().collect::<Vec<_>>();
            self.shared.observer.obstacles(&of_shards);
        }
    }

    fn perform(&mut self, shard: ShardId, effect: Effect) {
        match effect {
            Effect::Send(peer) => self.send(shard, peer),
            Effect::Persist(batch) => self.out.writer.push(WriteJob::Append(shard, batch)),
            Effect::Compact { to, term } => {
                self.out.writer.push(WriteJob::Compact { shard, to, term });
            }
            Effect::Fetch { ticket, first, last, max_bytes } => {
                self.out.reader.push(ReadJob { shard, ticket, first, last, max_bytes });
            }
            Effect::Apply(range) => self.apply(shard, ApplyTask::Apply(range)),
            Effect::Query { reads, term, now_ms } => {
                self.apply(shard, ApplyTask::Query { reads, term, now_ms })
            }
            Effect::CancelQuery(call) => self.apply(shard, ApplyTask::Cancel(call)),
            Effect::StepDown { refusal } => self.apply(shard, ApplyTask::StepDown(refusal)),
            Effect::Checkpoint => self.apply(shard, ApplyTask::Checkpoint),
            Effect::OpenSnapshot(to) => self.apply(shard, ApplyTask::OpenSnapshot(to)),
            Effect::InstallSnapshot { generation, index, term, hard_state } => {
                let install = Install { generation, index, term, hard_state };
                self.apply(shard, ApplyTask::Receive(Incoming::Snapshot(install)));
            }
            Effect::Restore { generation, .. } => {
                self.apply(shard, ApplyTask::Receive(Incoming::State { generation }));
            }
            Effect::Outvoted { index } => self.apply(shard, ApplyTask::Outvoted(index)),
            Effect::Disputed(disputed) => self.note_dispute(shard, disputed),
            Effect::SendSnapshot(peer) => self.links.send_snapshot(shard, peer),
            Effect::CloseSnapshot(to) => self.links.close_snapshot(shard, to),
            Effect::DiscardSnapshot { generation } => {
                self.workers.files.send(FileJob::Discard { shard, generation });
            }
            Effect::Reply(call, reply) => self.shared.calls.answer(call, reply),
            Effect::Offer(call) => self.shared.calls.offer(call),
            Effect::TakeBack(command) => self.take_back(shard, *command),
            Effect::Role(change) => self.on_role_change(shard, change),
            Effect::TwoHistories { peer, index } => {
                error!(self.shared.logger,
                    "a shard has stopped: a peer has another history of it, so that acknowledged entries are lost on one side";
                    "shard" => shard, "peer" => peer, "committed" => index);
                self.shared.observer.two_histories(shard);
            }
            Effect::Diverged { peer, index } => {
                error!(self.shared.logger, "a peer applied the same entries to another state";
                    "shard" => shard, "peer" => peer, "index" => index);
                self.shared.observer.diverged(shard);
            }
        }
    }

    fn note_dispute(&self, shard: ShardId, disputed: bool) {
        if disputed {
            error!(self.shared.logger, "the replicas of a shard hold different states and no majority agrees: it is not \
                served until another replica has decided, or a person (docs/operations.md)"; "shard" => shard);
        } else {
            info!(self.shared.logger, "a majority agrees about the state of a shard again"; "shard" => shard);
        }
        self.shared.observer.disputed(shard, disputed);
    }

    /// Takes a grant back that nobody asked for, wherever the shard is led by now.
    fn take_back(&self, shard: ShardId, command: Command) {
        debug!(self.shared.logger, "takes a grant back"; "shard" => shard);
        let handle = Handle { shared: Arc::clone(&self.shared), links: Arc::clone(&self.links) };
        self.links.spawn(async move { handle.take_back(shard, command).await });
    }

    fn on_role_change(&self, shard: ShardId, change: RoleChange) {
        if change.role == Role::Leader {
            info!(self.shared.logger, "leads a shard"; "shard" => shard, "term" => change.term);
        } else if self.shared.table.leads(shard) {
            info!(self.shared.logger, "leads a shard no longer"; "shard" => shard, "term" => change.term);
        }
        self.shared.observer.role(shard, change.role, change.term);
    }

    fn apply(&mut self, shard: ShardId, task: ApplyTask) {
        let applier = self.workers.applier(shard);
        self.out.appliers[applier].push(ApplyJob { shard, task });
    }

    fn send(&mut self, shard: ShardId, peer: Box<Peer>) {
        let to = peer.message.to;
        self.latencies.sent(shard, &peer.message);
        if !self.links.send(shard, peer) {
            self.out.unreachable.insert((shard, to));
        }
    }
}
