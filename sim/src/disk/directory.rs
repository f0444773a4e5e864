//! A disk as the data directory of a node: whose it is, what it remembers of other members, and copies of it.

use std::collections::VecDeque;

use trefoil_core::member::{Memory, Stage, Starts};

use super::SimDisk;
use super::identity::DiskIdentity;
use super::log::SimLog;

/// An older copy of a disk.
#[derive(Debug)]
pub struct DiskCopy {
    /// What was copied.
    pub disk: SimDisk,
    /// How often its node had started by then.
    pub starts: Starts,
}

impl SimDisk {
    /// A copy of all files together, as a process that is killed now would leave them.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            volume: self.volume.copy(),
            rot: self.rot.clone(),
            identity: self.identity.clone(),
            log: None,
            files: self.files.clone(),
            synced: self.synced.clone(),
            flying: self.flying.clone(),
            pending: Vec::new(),
            queue: VecDeque::new(),
            ..*self
        }
    }

    /// The files of another disk are on this machine from now on.
    #[must_use]
    pub fn replace(&mut self, mut by: Self) -> Self {
        by.boots = self.boots;
        by.volume.arm(None);
        by.volume.limit(None);
        std::mem::replace(self, by)
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> &DiskIdentity {
        &self.identity
    }

    /// Records another start, durably.
    pub fn count_start(&mut self, number: u64) -> Starts {
        self.identity = DiskIdentity::read(&self.volume);
        self.identity.starts = self.identity.starts.next(number);
        self.identity.write(&self.volume);
        self.identity.starts.clone()
    }

    /// Records, durably, how far the node is on its way into its cluster.
    pub fn reach(&mut self, stage: &Stage) {
        self.identity.word.stage = stage.clone();
        self.identity.write(&self.volume);
    }

    /// Keeps what is remembered of other members, with the next record.
    pub fn remember(&self, memory: Vec<u8>) {
        self.log().remember(memory);
    }

    /// What a crash now would leave of it; nothing while the process is down.
    #[must_use]
    pub fn remembered(&self) -> Memory {
        let kept = self.log.as_ref().map(SimLog::remembered).unwrap_or_default();
        Memory::decode(&kept).unwrap_or_default()
    }
}
