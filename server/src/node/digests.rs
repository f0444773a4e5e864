//! The thread that computes digests of whole states, at a bounded rate: nothing else waits for it.

use std::time::{Duration, Instant};

use trefoil_core::limits::DIGEST_BYTES_PER_SECOND;
use trefoil_core::replica::{Chain, Input};

use super::jobs::DigestJob;
use crate::shared::Shared;
use crate::shared::mailbox::Mailbox;
use crate::storage::evidence;

/// Runs until its mailbox is closed; what is unfinished then is given up.
pub(super) fn run(shared: &Shared, jobs: &Mailbox<DigestJob>) {
    loop {
        let taken = jobs.take(None);
        for job in taken.items {
            digest(shared, jobs, &job);
        }
        if taken.closed {
            return;
        }
    }
}

fn digest(shared: &Shared, jobs: &Mailbox<DigestJob>, job: &DigestJob) {
    let DigestJob { shard, ref reader } = *job;
    let (began, mut bytes) = (Instant::now(), 0);
    let goes_on = |more: usize| {
        bytes += more as u64;
        let due = Duration::from_micros(bytes * 1_000_000 / DIGEST_BYTES_PER_SECOND);
        std::thread::park_timeout(due.saturating_sub(began.elapsed()));
        !jobs.is_closed()
    };
    match evidence::catch(reader.path(), || reader.digest(goes_on)) {
        Ok(Some(hash)) => {
            shared.tell(shard, Input::Digested(Chain { index: reader.index(), hash }));
        }
        Ok(None) => (),
        Err(damaged) => shared.found_damaged(shard, damaged),
    }
}
