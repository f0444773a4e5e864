//! What becomes of a shard's state that cannot be believed: it is dropped, that is recorded, its file is kept, and the
//! state of a peer takes its place.

use slog::{error, info, warn};
use trefoil_core::ShardId;
use trefoil_core::machine::{Applied, Machine};
use trefoil_core::replica::{Input, Reply};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use super::applier::{Applier, OpenState, Owned};
use super::files::Files;
use super::jobs::{DigestJob, FileJob, Incoming, Install, WriteJob};
use crate::calls::context::refusal;
use crate::storage::checkpoint::Written;
use crate::storage::generations::{file_path, keep};
use crate::storage::snapshot::SnapshotReader;
use crate::storage::{Damaged, LogWrite, StateStore, Unusable, die, evidence};

/// Why something could not be read of a state.
pub(super) enum Lost {
    /// It was found damaged before.
    Before,
    Now(Damaged),
}

impl Applier {
    /// Reads a state, or applies to it.
    pub(super) fn with<T>(
        &mut self,
        shard: ShardId,
        read: impl FnOnce(&mut Machine, &mut StateStore) -> T,
    ) -> Result<T, Lost> {
        let Some(OpenState { machine, store }) = &mut self.owned(shard).state else {
            return Err(Lost::Before);
        };
        let path = std::sync::Arc::clone(store.file().path());
        evidence::catch(&path, || read(machine, store)).map_err(Lost::Now)
    }

    /// Drops a state that turned out to be damaged.
    pub(super) fn lose(&mut self, shard: ShardId, lost: &Lost) {
        if let Lost::Now(damaged) = lost {
            self.drop_state(shard, damaged);
        }
    }

    /// Somebody else has found a state damaged; it may be one that is not used any more.
    pub(super) fn found_damaged(&mut self, shard: ShardId, damaged: &Damaged) {
        if let Some(state) = &self.owned(shard).state
            && **state.store.file().path() == *damaged.path
        {
            self.drop_state(shard, damaged);
        }
    }

    /// A majority has another state.
    pub(super) fn outvoted(&mut self, shard: ShardId, index: u64) {
        let generation = self.owned(shard).generation;
        let path = file_path(&self.root, shard, generation);
        let what = format!("the others have another state at entry {index}");
        self.drop_state(shard, &Damaged::new(&path, what));
    }

    fn drop_state(&mut self, shard: ShardId, what: &dyn std::fmt::Display) {
        if self.owned(shard).state.is_none() {
            return;
        }
        if self.shared.members.len() == 1 {
            // Nobody else has what it held.
            die(format_args!("{what}; restore the data directory from a copy"));
        }
        self.step_down(shard, &damaged_refusal());
        self.owned(shard).state = None;
        self.owned(shard).digest_at = None;
        for member in &self.shared.members {
            self.links.close_snapshot(shard, member.id);
        }
        self.declare(shard, what);
    }

    /// Says that a shard has no state here, and sees that it is recorded.
    fn declare(&mut self, shard: ShardId, what: &dyn std::fmt::Display) {
        error!(self.shared.logger, "the state of a shard is damaged: it is not used any more, and is to be had from a peer";
            "shard" => shard, "reason" => %what);
        self.shared.observer.damage(shard);
        let generation = self.owned(shard).generation;
        self.workers.writer.send(WriteJob::Damage(shard, generation));
        self.shared.tell(shard, Input::Damaged);
        self.shared.table.set_bytes(shard, 0, 0);
    }

    /// A checkpoint failed because the state that it read is damaged.
    pub(super) fn checkpoint_lost(&mut self, shard: ShardId, what: &str) {
        self.owned(shard).checkpointing = false;
        self.drop_state(shard, &what);
        self.write_incoming(shard);
    }

    /// A checkpoint is on disk whose state was dropped meanwhile.
    pub(super) fn forget_checkpoint(&mut self, shard: ShardId, written: Written) {
        if let Some(moved) = written.moved {
            let generation = moved.generation;
            drop(moved);
            self.workers.files.send(FileJob::Discard { shard, generation });
        }
        self.write_incoming(shard);
    }

    /// Names the generation of a received state in the log: that is when it becomes the state. Not while a checkpoint
    /// of the state that it replaces is being written.
    pub(super) fn write_incoming(&mut self, shard: ShardId) {
        let owned = self.owned(shard);
        let Some(incoming) = &owned.incoming else { return };
        if owned.checkpointing {
            return;
        }
        let write = match incoming {
            Incoming::Snapshot(Install { generation, index, term, hard_state }) => {
                LogWrite::Install {
                    shard,
                    hard_state: hard_state.clone(),
                    truncated: (*index, *term),
                    generation: *generation,
                }
            }
            Incoming::State { generation } => LogWrite::Rebuild { shard, generation: *generation },
        };
        self.workers.writer.send(WriteJob::Install(write, shard));
    }

    /// The log names the received state.
    pub(super) fn installed(&mut self, shard: ShardId) {
        let Some(incoming) = self.owned(shard).incoming.take() else { return };
        self.step_down(
            shard,
            &refusal(Reason::NoQuorum, "the node has taken over another state of the shard"),
        );
        let (generation, from_log) = match &incoming {
            Incoming::Snapshot(install) => (install.generation, None),
            Incoming::State { generation } => (*generation, Some(())),
        };
        let old = self.owned(shard).generation;
        let (owned, applied, damaged) = match self.open(shard, generation) {
            Ok((owned, applied)) => (owned, applied, None),
            Err(Unusable::Refused(refusal)) => die(refusal),
            Err(Unusable::Damaged(damaged)) => {
                (Owned::new(None, generation), Applied::default(), Some(damaged))
            }
        };
        let was_whole = self.owned(shard).state.is_some();
        self.shards.insert(shard, owned);
        if was_whole {
            self.workers.files.send(FileJob::Discard { shard, generation: old });
        }
        if damaged.is_none() {
            self.open_feed(shard);
            self.shared.observer.whole(shard);
            let index = applied.index;
            let what = if from_log.is_some() {
                "a state from a peer is in the place of the damaged one"
            } else {
                "installed a snapshot"
            };
            info!(self.shared.logger, "{}", what; "shard" => shard, "index" => index);
        }
        match incoming {
            Incoming::Snapshot(Install { index, term, .. }) => {
                let applied = if damaged.is_some() {
                    Applied { index, term, ..Applied::default() }
                } else {
                    applied
                };
                let applied = Box::new(applied);
                self.shared.tell(shard, Input::SnapshotInstalled { index, applied });
            }
            Incoming::State { .. } if damaged.is_none() => {
                self.shared.tell(shard, Input::Restored(Box::new(applied)));
            }
            Incoming::State { .. } => (),
        }
        match damaged {
            Some(damaged) => self.declare(shard, &damaged),
            None => self.show(shard),
        }
    }

    /// Opens the state of a generation, and says how far it is.
    fn open(&self, shard: ShardId, generation: u64) -> Result<(Owned, Applied), Unusable> {
        evidence::catch(&file_path(&self.root, shard, generation), || {
            let store =
                StateStore::open_generation(&self.root, shard, generation, self.cache_bytes)?;
            let machine = Machine::open(&store, shard, self.shared.shards);
            let state = OpenState { machine, store };
            let applied = state.standing();
            Ok((Owned::new(Some(state), generation), applied))
        })?
    }

    // === Digests ===

    /// An entry named its index: the state as it stands is frozen by a checkpoint. Where one is being written, this
    /// node has nothing to say this time.
    pub(super) fn begin_digest(&mut self, shard: ShardId, index: u64) {
        if self.owned(shard).checkpointing {
            return;
        }
        self.checkpoint(shard);
        let owned = self.owned(shard);
        owned.digest_at = owned.checkpointing.then_some(index);
    }

    /// A checkpoint is on disk: where it was taken for a digest, that is computed over it.
    pub(super) fn go_on_with_digest(&mut self, shard: ShardId, index: u64) {
        if self.owned(shard).digest_at.take() != Some(index) {
            return;
        }
        match self.with(shard, |_, store| SnapshotReader::open(store.file())) {
            Ok(reader) => self.workers.digests.send(DigestJob { shard, reader }),
            Err(lost) => self.lose(shard, &lost),
        }
    }

    /// Answers a read that the state could not answer.
    pub(super) fn refuse_read(&self, call: trefoil_core::CallId) {
        self.shared.calls.answer(call, Reply::Refused(damaged_refusal()));
    }
}

fn damaged_refusal() -> Refusal {
    refusal(Reason::NoQuorum, "the state of the shard is damaged on this node")
}

impl Files {
    /// Puts a damaged file aside.
    pub(super) fn keep(&mut self, shard: ShardId, generation: u64) {
        self.scrub.forget(shard, &file_path(&self.root, shard, generation));
        match keep(&self.root, shard, generation) {
            Ok(Some(path)) => {
                warn!(self.shared.logger, "a damaged state file is kept until somebody removes it";
                    "shard" => shard, "file" => %path.display());
            }
            Ok(None) => (),
            Err(error) => {
                warn!(self.shared.logger, "a damaged state file could not be put aside";
                    "shard" => shard, "error" => %error);
            }
        }
    }
}
