//! The thread that reads old entries from the log for followers that are behind.

use trefoil_core::replica::Input;

use super::jobs::ReadJob;
use crate::shared::Shared;
use crate::shared::mailbox::Mailbox;
use crate::storage::{EngineLog, LogStore as _};

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
