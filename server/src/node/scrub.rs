//! Reads all state files from the disk, a part at a time, whether or not anybody wants what they hold: rot is found
//! while the other replicas are whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slog::info;
use trefoil_core::ShardId;
use trefoil_core::limits::{SCRUB_BYTES_PER_SECOND, SCRUB_PART_BYTES, SCRUB_PERIOD_MS};

use crate::shared::Shared;
use crate::storage::state_file::StateFile;

/// Shortest pause between two parts.
const PAUSE: Duration = Duration::from_millis(50);
/// Pause before the first part.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The files, and how far it is. It belongs to the thread that writes checkpoints.
#[derive(Debug)]
pub(super) struct Scrub {
    files: BTreeMap<ShardId, StateFile>,
    /// The file that is read, or the next one there is.
    shard: ShardId,
    /// The last key that was seen of it.
    last: Option<Bytes>,
    /// Bytes of this pass.
    bytes: u64,
    begun: Instant,
    due: Instant,
}

impl Scrub {
    pub(super) fn new(files: BTreeMap<ShardId, StateFile>) -> Self {
        let due = Instant::now() + FIRST_PAUSE;
        Self { files, shard: 0, last: None, bytes: 0, begun: due, due }
    }

    /// When the next part is to be read.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// A shard has a new file, or still has this one.
    pub(super) fn take(&mut self, shard: ShardId, file: StateFile) {
        self.files.insert(shard, file);
    }

    /// A file is gone.
    pub(super) fn forget(&mut self, shard: ShardId, path: &Path) {
        if self.files.get(&shard).is_some_and(|file| file.path().as_ref() == path) {
            self.files.remove(&shard);
        }
    }

    /// Reads the next part, where it is time.
    pub(super) fn go_on(&mut self, shared: &Shared) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        let Some((shard, file)) = self.files.range(self.shard..).next() else {
            return self.end_pass(shared);
        };
        let (shard, file) = (*shard, file.clone());
        if shard != self.shard {
            (self.shard, self.last) = (shard, None);
        }
        if self.last.is_none() {
            file.forget_cached();
        }
        let mut pause = PAUSE;
        match file.scrub(self.last.as_ref(), SCRUB_PART_BYTES) {
            Ok(scrubbed) => {
                shared.observer.scrubbed(scrubbed.bytes, false);
                self.bytes += scrubbed.bytes;
                let pause_us = scrubbed.bytes * 1_000_000 / SCRUB_BYTES_PER_SECOND;
                pause = pause.max(Duration::from_micros(pause_us));
                if scrubbed.last.is_none() {
                    self.shard = shard + 1;
                }
                self.last = scrubbed.last;
            }
            Err(damaged) => {
                shared.found_damaged(shard, damaged);
                self.files.remove(&shard);
                (self.shard, self.last) = (shard + 1, None);
            }
        }
        self.due = now + pause;
    }

    fn end_pass(&mut self, shared: &Shared) {
        shared.observer.scrubbed(0, true);
        info!(shared.logger, "the disk still has all state files as they were written";
            "bytes" => self.bytes, "files" => self.files.len());
        let next = self.begun + Duration::from_millis(SCRUB_PERIOD_MS);
        self.begun = next.max(Instant::now());
        self.due = self.begun;
        (self.shard, self.last, self.bytes) = (0, None, 0);
    }
}
