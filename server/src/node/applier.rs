//! The threads that own machines and state: each owns some shards, and does what they ask first in, first out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use raft_proto::eraftpb::HardState;
use slog::info;
use trefoil_core::machine::{Applied, Machine, QueryOutcome};
use trefoil_core::replica::{ApplyRange, Input, Read, Reply};
use trefoil_core::{CallId, NodeId, Position, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Answer, Progress, Refusal};

use super::files;
use super::mailbox::Mailbox;
use super::replicas::Workers;
use super::shared::Shared;
use super::work::refusal;
use super::writer;
use crate::peer::Links;
use crate::storage::checkpoint::Written;
use crate::storage::{EngineLog, LogStore as _, LogWrite, StateStore, die};
use crate::watch::Tip;

/// Entries that are applied before the replica is told.
const TELL_ENTRIES: usize = 64;
/// Bytes of entries read from the log at a time.
const READ_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct Job {
    pub(super) shard: ShardId,
    pub(super) task: Task,
}

#[derive(Debug)]
pub(super) enum Task {
    Apply(ApplyRange),
    Query {
        reads: Vec<Read>,
        term: u64,
        now_ms: u64,
    },
    Cancel(CallId),
    StepDown(Refusal),
    Checkpoint,
    /// A checkpoint of this shard is on disk, and the log names its file.
    Checkpointed(Written),
    OpenSnapshot(NodeId),
    Install(Box<Install>),
    /// The log names the snapshot's generation now.
    InstallWritten,
}

/// A received snapshot that is to become the state.
#[derive(Debug)]
pub(super) struct Install {
    pub(super) generation: u64,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) hard_state: HardState,
}

/// The state of one shard.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) machine: Machine,
    pub(super) store: StateStore,
    pub(super) generation: u64,
    pub(super) state_bytes: u64,
    pub(super) checkpointing: bool,
    pub(super) install: Option<Box<Install>>,
}

impl Owned {
    pub(super) fn new(machine: Machine, store: StateStore, generation: u64) -> Self {
        let state_bytes = store.file().bytes();
        Self { machine, store, generation, state_bytes, checkpointing: false, install: None }
    }

    /// What the machine says of the state as it stands.
    fn standing(&self) -> Applied {
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
    pub(super) jobs: Arc<Mailbox<Job>>,
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
            for Job { shard, task } in taken.items {
                self.carry_out(shard, task);
            }
            if taken.closed {
                return;
            }
        }
    }

    fn carry_out(&mut self, shard: ShardId, task: Task) {
        match task {
            Task::Apply(range) => self.apply(shard, range),
            Task::Query { reads, term, now_ms } => self.query(shard, reads, term, now_ms),
            Task::Cancel(call) => self.owned(shard).machine.cancel(call),
            Task::StepDown(refusal) => self.step_down(shard, &refusal),
            Task::Checkpoint => self.checkpoint(shard),
            Task::Checkpointed(written) => self.checkpointed(shard, written),
            Task::OpenSnapshot(to) => self.open_snapshot(shard, to),
            Task::Install(install) => {
                self.owned(shard).install = Some(install);
                self.write_install(shard);
            }
            Task::InstallWritten => self.installed(shard),
        }
    }

    fn owned(&mut self, shard: ShardId) -> &mut Owned {
        self.shards.get_mut(&shard).expect("jobs go to the applier that owns the shard")
    }

    fn show(&mut self, shard: ShardId) {
        let owned = self.owned(shard);
        let (state, overlay) = (owned.state_bytes, owned.store.overlay_bytes());
        self.shared.table.set_bytes(shard, state, overlay);
    }

    fn apply(&mut self, shard: ShardId, range: ApplyRange) {
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
            let Owned { machine, store, .. } = self.owned(shard);
            let mut applied = machine.apply(store, index, term, &data);
            applied.overlay_bytes = store.overlay_bytes();
            let is_leader = self.shared.table.leads(shard);
            self.shared.observer.applied(shard, is_leader, &applied.counts, applied.queue_backlog);
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
    fn open_feed(&mut self, shard: ShardId) {
        let Progress { index, term, log_time_ms, .. } = *self.owned(shard).machine.progress();
        self.shared.feeds.opened(shard, Tip { index, term, log_time_ms });
    }

    fn query(&mut self, shard: ShardId, reads: Vec<Read>, term: u64, now_ms: u64) {
        for read in reads {
            let Owned { machine, store, .. } = self.owned(shard);
            match machine.query(store, read.call, &read.query, now_ms) {
                QueryOutcome::Answered(answer) => {
                    let progress = machine.progress();
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

    fn step_down(&mut self, shard: ShardId, refusal: &Refusal) {
        for call in self.owned(shard).machine.step_down() {
            self.shared.calls.answer(call, Reply::Refused(refusal.clone()));
        }
    }

    fn checkpoint(&mut self, shard: ShardId) {
        let owned = self.owned(shard);
        let bytes = owned.store.overlay_bytes();
        if let Some(checkpoint) = owned.store.freeze() {
            owned.checkpointing = true;
            self.workers.files.send(files::Job::Checkpoint { shard, checkpoint, bytes });
        } else if !owned.checkpointing {
            // Nothing has changed: the file holds it all.
            self.shared.tell(shard, Input::Checkpointed { index: 0, overlay_bytes: 0 });
        }
    }

    fn checkpointed(&mut self, shard: ShardId, written: Written) {
        let index = written.index;
        if let Some(moved) = &written.moved {
            let old = std::mem::replace(&mut self.owned(shard).generation, moved.generation);
            info!(self.shared.logger, "moved the state to a new file"; "shard" => shard, "generation" => moved.generation);
            self.workers.files.send(files::Job::Discard { shard, generation: old });
        }
        let owned = self.owned(shard);
        owned.store.finish(written);
        owned.checkpointing = false;
        owned.state_bytes = owned.store.file().bytes();
        let overlay_bytes = owned.store.overlay_bytes();
        self.shared.tell(shard, Input::Checkpointed { index, overlay_bytes });
        self.show(shard);
        self.write_install(shard);
    }

    fn open_snapshot(&mut self, shard: ShardId, to: NodeId) {
        let reader = self.owned(shard).store.file().snapshot();
        let manifest = reader.manifest().encode_to_vec();
        let snapshot = Some((reader.index(), reader.term(), manifest.into()));
        self.links.put_snapshot(shard, to, reader);
        self.shared.tell(shard, Input::SnapshotOpened { to, snapshot });
    }

    /// Names the snapshot's generation in the log: that is when it becomes the state. Not while a checkpoint of the
    /// state that it replaces is being written.
    fn write_install(&mut self, shard: ShardId) {
        let owned = self.owned(shard);
        let Some(install) = &owned.install else { return };
        if owned.checkpointing {
            return;
        }
        let write = LogWrite::Install {
            shard,
            hard_state: install.hard_state.clone(),
            truncated: (install.index, install.term),
            generation: install.generation,
        };
        self.workers.writer.send(writer::Job::Install(write, shard));
    }

    fn installed(&mut self, shard: ShardId) {
        let Some(install) = self.owned(shard).install.take() else { return };
        self.step_down(
            shard,
            &refusal(Reason::NoQuorum, "the node has taken over another state of the shard"),
        );
        let opened =
            StateStore::open_generation(&self.root, shard, install.generation, self.cache_bytes);
        let store = opened.unwrap_or_else(|refusal| die(refusal));
        let machine = Machine::open(&store, shard, self.shared.shards);
        let old = self.owned(shard).generation;
        let owned = Owned::new(machine, store, install.generation);
        let applied = Box::new(owned.standing());
        self.shards.insert(shard, owned);
        self.open_feed(shard);
        info!(self.shared.logger, "installed a snapshot"; "shard" => shard, "index" => install.index);
        self.workers.files.send(files::Job::Discard { shard, generation: old });
        self.shared.tell(shard, Input::SnapshotInstalled { index: install.index, applied });
        self.show(shard);
    }
}
