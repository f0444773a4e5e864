//! A checkpoint that leaves the disk to the log: its writes keep to a rate, and are synced as they go.

use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redb::StorageBackend;

/// Bytes after which a paced writer syncs, so that the last sync finds little to do.
const SYNC_BYTES: u64 = 4 << 20;

/// The rate of one file's writes.
#[derive(Debug, Default)]
pub(super) struct Pace {
    bytes_per_second: AtomicU64,
    progress: Mutex<Option<PaceProgress>>,
}

#[derive(Debug)]
struct PaceProgress {
    since: Instant,
    written: u64,
    unsynced: u64,
}

impl Pace {
    /// Sets the limit from now on; none lifts it.
    pub(super) fn limit(&self, bytes_per_second: Option<u64>) {
        self.bytes_per_second.store(bytes_per_second.unwrap_or(0), Ordering::Release);
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Counts a write: how long to wait after it, and whether to sync.
    fn count(&self, bytes: u64) -> Option<(Duration, bool)> {
        let rate = self.bytes_per_second.load(Ordering::Acquire);
        if rate == 0 {
            return None;
        }
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let progress = progress.get_or_insert(PaceProgress { since: now, written: 0, unsynced: 0 });
        progress.written += bytes;
        progress.unsynced += bytes;
        let sync = progress.unsynced >= SYNC_BYTES;
        if sync {
            progress.unsynced = 0;
        }
        let due = Duration::from_micros(progress.written.saturating_mul(1_000_000) / rate);
        Some((due.saturating_sub(now - progress.since), sync))
    }
}

/// A backend whose writes keep to a [`Pace`].
#[derive(Debug)]
pub(super) struct Paced<B> {
    inner: B,
    pace: Arc<Pace>,
}

impl<B> Paced<B> {
    pub(super) fn new(inner: B, pace: Arc<Pace>) -> Self {
        Self { inner, pace }
    }
}

impl<B: StorageBackend> StorageBackend for Paced<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)?;
        if let Some((wait, sync)) = self.pace.count(data.len() as u64) {
            if sync {
                self.inner.sync_data()?;
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a checkpoint runs on a thread of its own, never in a runtime"
            )]
            std::thread::sleep(wait);
        }
        Ok(())
    }

    super::backend::of_inner!();
}
