//! The threads that own machines and state: each owns some shards, and does what they ask first in, first out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use slog::info;
use trefoil_core::machine::{Applied, Gauges, Machine, QueryOutcome};
use trefoil_core::replica::{ApplyRange, Input, Read, Reply};
use trefoil_core::{CallId, NodeId, Position, ShardId};
use trefoil_proto::internal::v1::{Answer, Progress, Refusal};

use super::jobs::{ApplyJob, ApplyTask, FileJob, Incoming, Workers};
use crate::peer::Links;
use crate::shared::Shared;
use crate::shared::mailbox::Mailbox;
use crate::storage::checkpoint::Written;
use crate::storage::snapshot::SnapshotReader;
use crate::storage::{EngineLog, LogStore as _, StateStore, die};
use crate::watch::Tip;

/// Entries that are applied before the replica is told.
const TELL_ENTRIES: usize = 64;
/// Bytes of entries read from the log at a time.
const READ_BYTES: u64 = 4 << 20;

/// The state of one shard.
#[derive(Debug)]
pub(super) struct OpenState {
    pub(super) machine: Machine,
    pub(super) store: StateStore,
}

/// What an applier has of one shard.
#[derive(Debug)]
pub(super) struct Owned {
    /// None while it is damaged.
    pub(super) state: Option<OpenState>,
    pub(super) generation: u64,
    pub(super) state_bytes: u64,
    pub(super) checkpointing: bool,
    pub(super) incoming: Option<Incoming>,
    /// The index for whose digest a checkpoint is being written.
    pub(super) digest_at: Option<u64>,
}

impl Owned {
    pub(super) fn new(state: Option<OpenState>, generation: u64) -> Self {
        let state_bytes = state.as_ref().map_or(0, |state| state.store.file().bytes());
        Self {
            state,
            generation,
            state_bytes,
            checkpointing: false,
            incoming: None,
            digest_at: None,
        }
    }
}

impl OpenState {
    /// What the machine says of the state as it stands.
    pub(super) fn standing(&self) -> Applied {
        let progress = self.machine.progress();
        Applied {
            index: progress.index,
            term: progress.term,
            log_time_ms: progress.log_time_ms,
            wall_ms: progress.wall_ms,
            chain: progress.chain,
            queue_backlog: progress.queue_backlog,
            next_due_ms: Machine::next_due_ms(&self.store),
            overlay_bytes: self.store.overlay_bytes(),
            ..Applied::default()
        }
    }
}

#[derive(Debug)]
pub(super) struct Applier {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Arc<EngineLog>,
    pub(super) root: PathBuf,
    pub(super) cache_bytes: usize,
    pub(super) jobs: Arc<Mailbox<ApplyJob>>,
    pub(super) workers: Workers,
    pub(super) links: Arc<Links>,
    pub(super) shards: BTreeMap<ShardId, Owned>,
}

impl Applier {
    /// Runs until its mailbox is closed and what waits is done.
    pub(super) fn run(mut self) {
        for shard in self.shards.keys().copied().collect::<Vec<_>>() {
            self.show(shard);
            self.open_feed(shard);
        }
        loop {
            let taken = self.jobs.take(None);
            for ApplyJob { shard, task } in taken.items {
                self.carry_out(shard, task);
            }
            if taken.closed {
                return;
            }
        }
    }

    fn carry_out(&mut self, shard: ShardId, task: ApplyTask) {
        match task {
            ApplyTask::Apply(range) => self.apply(shard, range),
            ApplyTask::Query { reads, term, now_ms } => self.query(shard, reads, term, now_ms),
            ApplyTask::Cancel(call) => {
                if let Some(state) = &mut self.owned(shard).state {
                    state.machine.cancel(call);
                }
            }
            ApplyTask::StepDown(refusal) => self.step_down(shard, &refusal),
            ApplyTask::Checkpoint => self.checkpoint(shard),
            ApplyTask::Checkpointed(written) => self.checkpointed(shard, written),
            ApplyTask::OpenSnapshot(to) => self.open_snapshot(shard, to),
            ApplyTask::CheckpointLost(what) => self.checkpoint_lost(shard, &what),
            ApplyTask::Receive(incoming) => {
                self.owned(shard).incoming = Some(incoming);
                self.write_incoming(shard);
            }
            ApplyTask::Installed => self.installed(shard),
            ApplyTask::Damaged(damaged) => self.found_damaged(shard, &damaged),
            ApplyTask::Outvoted(index) => self.outvoted(shard, index),
        }
    }

    pub(super) fn owned(&mut self, shard: ShardId) -> &mut Owned {
        self.shards.get_mut(&shard).expect("jobs go to the applier that owns the shard")
    }

    pub(super) fn show(&mut self, shard: ShardId) {
        let owned = self.owned(shard);
        let overlay = owned.state.as_ref().map_or(0, |state| state.store.overlay_bytes());
        let state = owned.state_bytes;
        self.shared.table.set_bytes(shard, state, overlay);
    }

    fn apply(&mut self, shard: ShardId, range: ApplyRange) {
        if let Some(state) = &mut self.owned(shard).state {
            state.machine.lead(range.leads);
        }
        if let Some(entries) = range.entries {
            self.apply_entries(shard, range.first, entries.into_iter());
            return;
        }
        let mut next = range.first;
        while next <= range.last {
            let entries = self.log.entries(shard, next, range.last + 1, READ_BYTES);
            if entries.first().is_none_or(|entry| entry.index != next) {
                die(format_args!(
                    "the log does not hold entry {next} of shard {shard}, which is to be applied"
                ));
            }
            let first = next;
            next += entries.len() as u64;
            self.apply_entries(
                shard,
                first,
                entries.into_iter().map(|entry| (entry.term, entry.data)),
            );
        }
    }

    fn apply_entries(
        &mut self,
        shard: ShardId,
        first: u64,
        entries: impl Iterator<Item = (u64, Bytes)>,
    ) {
        let mut all = Vec::new();
        for (index, (term, data)) in (first..).zip(entries) {
            let done = self.with(shard, |machine, store| {
                let mut applied = machine.apply(store, index, term, &data);
                applied.overlay_bytes = store.overlay_bytes();
                (applied, Gauges::from(machine.progress()))
            });
            let (applied, gauges) = match done {
                Ok(done) => done,
                Err(lost) => {
                    if !all.is_empty() {
                        self.tell_applied(shard, std::mem::take(&mut all));
                    }
                    return self.lose(shard, &lost);
                }
            };
            let is_leader = self.shared.table.leads(shard);
            self.shared.observer.applied(shard, is_leader, &applied.counts, &gauges);
            if applied.digest_point {
                self.begin_digest(shard, index);
            }
            all.push(applied);
            if all.len() >= TELL_ENTRIES {
                self.tell_applied(shard, std::mem::take(&mut all));
            }
        }
        if !all.is_empty() {
            self.tell_applied(shard, all);
        }
        self.show(shard);
    }

    /// Whoever asks this node after an answer finds the events of its entry.
    fn tell_applied(&self, shard: ShardId, mut all: Vec<Applied>) {
        self.shared.feeds.publish(shard, &mut all);
        self.shared.tell(shard, Input::Applied(all));
    }

    /// What led to the state is not known here.
    pub(super) fn open_feed(&mut self, shard: ShardId) {
        let Some(state) = &self.owned(shard).state else { return };
        let Progress { index, term, log_time_ms, .. } = *state.machine.progress();
        self.shared.feeds.opened(shard, Tip { index, term, log_time_ms });
    }

    fn query(&mut self, shard: ShardId, reads: Vec<Read>, term: u64, now_ms: u64) {
        for read in reads {
            let done = self.with(shard, |machine, store| {
                (machine.query(store, read.call, &read.query, now_ms), *machine.progress())
            });
            let (outcome, progress) = match done {
                Ok(done) => done,
                Err(lost) => {
                    self.lose(shard, &lost);
                    self.refuse_read(read.call);
                    continue;
                }
            };
            match outcome {
                QueryOutcome::Answered(answer) => {
                    let position = Position {
                        term,
                        index: progress.index,
                        // After every command of that entry.
                        ordinal: u32::MAX,
                        log_time_ms: progress.log_time_ms,
                    };
                    self.answer(read.call, position, answer);
                }
                QueryOutcome::Due(due_ms) => self.shared.tell(shard, Input::Due { read, due_ms }),
                QueryOutcome::Parked => (),
            }
        }
    }

    fn answer(&self, call: CallId, position: Position, answer: Answer) {
        self.shared.calls.answer(call, Reply::Answered(position, answer));
    }

    pub(super) fn step_down(&mut self, shard: ShardId, refusal: &Refusal) {
        let Some(state) = &mut self.owned(shard).state else { return };
        for call in state.machine.step_down() {
            self.shared.calls.answer(call, Reply::Refused(refusal.clone()));
        }
    }

    pub(super) fn checkpoint(&mut self, shard: ShardId) {
        let owned = self.owned(shard);
        let Some(OpenState { machine, store }) = &mut owned.state else { return };
        machine.freeze(store);
        let bytes = store.overlay_bytes();
        if let Some(checkpoint) = store.freeze() {
            owned.checkpointing = true;
            self.workers.files.send(FileJob::Checkpoint { shard, checkpoint, bytes });
        } else if !owned.checkpointing {
            // Nothing has changed: the file holds it all.
            self.shared.tell(shard, Input::Checkpointed { index: 0, overlay_bytes: 0 });
        }
    }

    fn checkpointed(&mut self, shard: ShardId, written: Written) {
        self.owned(shard).checkpointing = false;
        if self.owned(shard).state.is_none() {
            return self.forget_checkpoint(shard, written);
        }
        let index = written.index;
        if let Some(moved) = &written.moved {
            let old = std::mem::replace(&mut self.owned(shard).generation, moved.generation);
            info!(self.shared.logger, "moved the state to a new file"; "shard" => shard, "generation" => moved.generation);
            self.workers.files.send(FileJob::Discard { shard, generation: old });
        }
        let done = self.with(shard, |_, store| {
            store.finish(written);
            (store.file().bytes(), store.overlay_bytes())
        });
        match done {
            Ok((state_bytes, overlay_bytes)) => {
                self.owned(shard).state_bytes = state_bytes;
                self.shared.tell(shard, Input::Checkpointed { index, overlay_bytes });
                self.show(shard);
            }
            Err(lost) => self.lose(shard, &lost),
        }
        self.go_on_with_digest(shard, index);
        self.write_incoming(shard);
    }

    fn open_snapshot(&mut self, shard: ShardId, to: NodeId) {
        let snapshot = match self.with(shard, |_, store| SnapshotReader::open(store.file())) {
            Ok(reader) => {
                let manifest = reader.manifest().encode_to_vec();
                let snapshot = Some((reader.index(), reader.term(), manifest.into()));
                self.links.put_snapshot(shard, to, reader);
                snapshot
            }
            Err(lost) => {
                self.lose(shard, &lost);
                None
            }
        };
        self.shared.tell(shard, Input::SnapshotOpened { to, snapshot });
    }
}
