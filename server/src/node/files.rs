//! The thread that writes checkpoints, one at a time, removes state files that are no longer wanted, and reads the
//! others to see whether they are sound ([`super::scrub`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use slog::warn;
use trefoil_core::ShardId;
use trefoil_core::limits::CHECKPOINT_BYTES_PER_SECOND;

use super::jobs::{ApplyTask, FileJob, Workers, WriteJob};
use super::keeper::FullDisk;
use super::scrub::Scrub;
use crate::shared::Shared;
use crate::shared::clock::Stopwatch;
use crate::shared::mailbox::Mailbox;
use crate::storage::checkpoint::{Checkpoint, Written};
use crate::storage::evidence;
use crate::storage::generations::file_path;

/// Pause between two attempts to write a checkpoint on a full disk.
const FULL_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Files {
    pub(super) shared: Arc<Shared>,
    pub(super) root: PathBuf,
    pub(super) cache_bytes: usize,
    pub(super) jobs: Arc<Mailbox<FileJob>>,
    pub(super) workers: Workers,
    pub(super) full: FullDisk,
    pub(super) scrub: Scrub,
}

impl Files {
    /// Runs until its mailbox is closed. A checkpoint that was not begun by then is not missed: the log has it all.
    pub(super) fn run(mut self) {
        loop {
            let taken = self.jobs.take(Some(self.scrub.due()));
            for job in taken.items {
                match job {
                    FileJob::Checkpoint { shard, checkpoint, bytes } if !self.jobs.is_closed() => {
                        self.checkpoint(shard, &checkpoint, bytes);
                    }
                    FileJob::Checkpoint { .. } => (),
                    FileJob::Discard { shard, generation } => self.discard(shard, generation),
                    FileJob::Keep { shard, generation } => self.keep(shard, generation),
                }
            }
            if taken.closed {
                return;
            }
            self.scrub.go_on(&self.shared);
        }
    }

    fn checkpoint(&mut self, shard: ShardId, checkpoint: &Checkpoint, bytes: u64) {
        let stopwatch = Stopwatch::start();
        let tell = |task| self.workers.apply(shard, task);
        let written = match evidence::catch(checkpoint.path(), || self.write(shard, checkpoint)) {
            Ok(written) => written,
            Err(damaged) => return tell(ApplyTask::CheckpointLost(damaged.to_string())),
        };
        if let Some(written) = written {
            self.scrub.take(shard, checkpoint.left(&written).clone());
            self.shared.observer.checkpoint(shard, stopwatch.seconds(), bytes);
            if written.moved.is_some() {
                return self.workers.writer.send(WriteJob::Move(shard, written));
            }
            tell(ApplyTask::Checkpointed(written));
        }
    }

    /// Tries until there is room, or the node stops.
    fn write(&self, shard: ShardId, checkpoint: &Checkpoint) -> Option<Written> {
        let mut warned = false;
        loop {
            match checkpoint.run(&self.root, self.cache_bytes, Some(CHECKPOINT_BYTES_PER_SECOND)) {
                Ok(written) => return Some(written),
                Err(error) if !warned => {
                    warn!(self.shared.logger, "a checkpoint waits for room on the disk"; "shard" => shard, "error" => %error);
                    warned = true;
                }
                Err(_) => (),
            }
            if self.jobs.is_closed() {
                return None;
            }
            if self.full.give_up_reserve() {
                continue;
            }
            std::thread::park_timeout(FULL_PAUSE);
        }
    }

    fn discard(&mut self, shard: ShardId, generation: u64) {
        let path = file_path(&self.root, shard, generation);
        self.scrub.forget(shard, &path);
        let removed = std::fs::remove_file(path);
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            // The next start removes what the log does not name.
            warn!(self.shared.logger, "a state file could not be removed"; "shard" => shard, "error" => %error);
        }
    }
}
