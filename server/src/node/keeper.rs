//! The thread that looks after the disk: free space once a second, old log files every ten.
//!
//! Whoever meets a full disk gives up the reserve and wakes this thread, which refuses what takes room until there is
//! so much of it that the reserve can be held back again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slog::{info, warn};
use trefoil_core::ShardId;
use trefoil_core::replica::{Input, Pressure};

use crate::shared::Shared;
use crate::shared::mailbox::Mailbox;
use crate::storage::{EngineLog, Reserve};

const SPACE_PERIOD: Duration = Duration::from_secs(1);
const PURGE_PERIOD: Duration = Duration::from_secs(10);

/// What a thread does that finds the disk full.
#[derive(Clone, Debug)]
pub(super) struct FullDisk {
    pub(super) reserve: Arc<Reserve>,
    pub(super) keeper: Arc<Mailbox<()>>,
}

impl FullDisk {
    /// Gives up what was held back; says whether there was anything.
    pub(super) fn give_up_reserve(&self) -> bool {
        let given = self.reserve.give_up();
        if given {
            self.keeper.send(());
        }
        given
    }
}

#[derive(Debug)]
pub(super) struct DiskKeeper {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Arc<EngineLog>,
    pub(super) root: PathBuf,
    pub(super) reserve: Arc<Reserve>,
    pub(super) min_free_bytes: u64,
    /// Wakes it; closed when the node stops.
    pub(super) wake: Arc<Mailbox<()>>,
    pub(super) disk_low: bool,
}

impl DiskKeeper {
    pub(super) fn run(mut self) {
        let mut purge_at = Instant::now() + PURGE_PERIOD;
        loop {
            self.look_at_space();
            if purge_at <= Instant::now() {
                purge_at = Instant::now() + PURGE_PERIOD;
                self.purge();
            }
            if self.wake.take(Some(Instant::now() + SPACE_PERIOD)).closed {
                return;
            }
        }
    }

    fn look_at_space(&mut self) {
        let free = match rustix::fs::statvfs(&self.root) {
            Ok(space) => space.f_bavail.saturating_mul(space.f_frsize),
            Err(error) => {
                return warn!(self.shared.logger, "free space is unknown"; "error" => %error);
            }
        };
        // More is wanted before writes are taken again, so that they do not come and go.
        let slack = if self.disk_low { self.min_free_bytes / 10 } else { 0 };
        let mut wanted = self.min_free_bytes.saturating_add(slack);
        if !self.reserve.is_held() {
            wanted = wanted.saturating_add(2 * self.reserve.bytes());
        }
        let mut low = free < wanted;
        if !low && let Err(error) = self.reserve.hold() {
            warn!(self.shared.logger, "no room can be held back for a full disk"; "error" => %error);
            low = true;
        }
        self.shared.observer.disk(free, low);
        if low == self.disk_low {
            return;
        }
        self.disk_low = low;
        if low {
            warn!(self.shared.logger, "free space is below the limit: writes are refused";
                "free_bytes" => free, "min_free_bytes" => self.min_free_bytes);
        } else {
            info!(self.shared.logger, "there is free space again"; "free_bytes" => free);
        }
        for shard in self.shared.all_shards() {
            self.press(shard, false);
        }
    }

    fn purge(&self) {
        match self.log.purge() {
            Ok(shards) => shards.into_iter().for_each(|shard| self.press(shard, true)),
            Err(error) => {
                warn!(self.shared.logger, "old log files could not be removed"; "error" => %error)
            }
        }
    }

    fn press(&self, shard: ShardId, wants_checkpoint: bool) {
        self.shared
            .tell(shard, Input::Pressure(Pressure { disk_low: self.disk_low, wants_checkpoint }));
    }
}
