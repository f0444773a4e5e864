//! The thread that reads old entries from the log for followers that are behind.

use trefoil_core::ShardId;
use trefoil_core::replica::Input;

use super::mailbox::Mailbox;
use super::shared::Shared;
use crate::storage::{EngineLog, LogStore as _};

#[derive(Debug)]
pub(super) struct ReadJob {
    pub(super) shard: ShardId,
    pub(super) ticket: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) max_bytes: u64,
}

/// Runs until its mailbox is closed.
pub(super) fn run(shared: &Shared, log: &EngineLog, jobs: &Mailbox<ReadJob>) {
    loop {
        let taken = jobs.take(None);
        for ReadJob { shard, ticket, first, last, max_bytes } in taken.items {
            let entries = log.entries(shard, first, last, max_bytes);
            shared.tell(shard, Input::Fetched { ticket, entries });
        }
        if taken.closed {
            return;
        }
    }
}
