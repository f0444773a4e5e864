//! The thread that writes the log: one write and one sync for every shard that is ready.
//!
//! While it syncs, the next batch gathers. Without space on the disk it keeps what it has and tries again, and
//! writes nothing else meanwhile, so that the log never has a gap. First it gives up what is held back for that case.

use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{info, warn};
use trefoil_core::ShardId;
use trefoil_core::replica::Input;

use super::jobs::{ApplyTask, FileJob, Workers, WriteJob};
use super::keeper::FullDisk;
use crate::shared::Shared;
use crate::shared::clock::Stopwatch;
use crate::shared::mailbox::Mailbox;
use crate::storage::checkpoint::Written;
use crate::storage::{EngineLog, LogStore as _, LogWrite};

/// Bytes of entries that one write takes, before its last batch.
const WRITE_BYTES: usize = 16 << 20;
/// The durable mark itself is synced this often while there are writes.
const MARK_SYNC: Duration = Duration::from_millis(80);
/// Pause between two attempts to write on a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// Whom to tell when a write is synced.
enum WriteDone {
    Persisted(ShardId, u64),
    Installed(ShardId),
    Damaged(ShardId, u64),
    Moved(ShardId, Written),
}

#[derive(Debug)]
pub(super) struct LogWriter {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Arc<EngineLog>,
    pub(super) jobs: Arc<Mailbox<WriteJob>>,
    pub(super) workers: Workers,
    pub(super) full: FullDisk,
    /// When the mark must be synced; none when nothing was written since.
    pub(super) mark_due: Option<Instant>,
}

impl LogWriter {
    /// Runs until its mailbox is closed and everything that waits is written.
    pub(super) fn run(mut self) {
        loop {
            let taken = self.jobs.take(self.mark_due);
            self.carry_out(taken.items);
            if self.mark_due.is_some_and(|due| due <= Instant::now()) || taken.closed {
                self.mark_due = None;
                self.log.sync_mark();
            }
            if taken.closed {
                // No batch will come with which it could go.
                if let Err(error) = self.log.write(&[]) {
                    warn!(self.shared.logger, "what waited for the next batch was not written"; "error" => %error);
                }
                return;
            }
        }
    }

    fn carry_out(&mut self, jobs: Vec<WriteJob>) {
        let (mut writes, mut done, mut bytes) = (Vec::new(), Vec::new(), 0);
        for job in jobs {
            match job {
                WriteJob::Append(shard, batch) => {
                    bytes += batch.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
                    done.push(WriteDone::Persisted(shard, batch.number));
                    writes.push(LogWrite::Append(shard, batch));
                }
                WriteJob::Install(write, shard) => {
                    done.push(WriteDone::Installed(shard));
                    writes.push(write);
                }
                WriteJob::Damage(shard, generation) => {
                    done.push(WriteDone::Damaged(shard, generation));
                    writes.push(LogWrite::Damage(shard));
                }
                WriteJob::Move(shard, written) => {
                    if let Some(moved) = &written.moved {
                        writes.push(LogWrite::Move { shard, generation: moved.generation });
                    }
                    done.push(WriteDone::Moved(shard, written));
                }
                WriteJob::Trust(shard) => self.log.trust(shard),
                WriteJob::Compact { shard, to, term } => {
                    // A cut stays in its place among the writes of its shard.
                    self.write(&mut writes, &mut done);
                    bytes = 0;
                    self.log.compact(shard, to, term);
                }
            }
            if bytes >= WRITE_BYTES {
                self.write(&mut writes, &mut done);
                bytes = 0;
            }
        }
        self.write(&mut writes, &mut done);
    }

    fn write(&mut self, writes: &mut Vec<LogWrite>, done: &mut Vec<WriteDone>) {
        if writes.is_empty() {
            return;
        }
        let mut failures = 0_u32;
        loop {
            let stopwatch = Stopwatch::start();
            let Err(error) = self.log.write(writes) else {
                self.shared.observer.fsync(stopwatch.seconds());
                break;
            };
            if failures == 0 {
                warn!(self.shared.logger, "the log cannot be written: trying again until there is space";
                    "error" => %error);
            }
            failures += 1;
            if self.full.give_up_reserve() {
                continue;
            }
            if self.jobs.is_closed() {
                // Nothing of this was acknowledged to anybody.
                writes.clear();
                done.clear();
                return;
            }
            std::thread::park_timeout(FULL_PAUSE);
        }
        if failures > 0 {
            info!(self.shared.logger, "the log is written again"; "attempts" => failures + 1);
        }
        self.mark_due.get_or_insert_with(|| Instant::now() + MARK_SYNC);
        writes.clear();
        for done in done.drain(..) {
            match done {
                WriteDone::Persisted(shard, number) => {
                    self.shared.tell(shard, Input::Persisted(number))
                }
                WriteDone::Installed(shard) => self.workers.apply(shard, ApplyTask::Installed),
                WriteDone::Damaged(shard, generation) => {
                    self.workers.files.send(FileJob::Keep { shard, generation });
                }
                WriteDone::Moved(shard, written) => {
                    self.workers.apply(shard, ApplyTask::Checkpointed(written))
                }
            }
        }
    }
}
