//! The state of one shard: what changed since the last checkpoint in memory, everything else in a redb file.
//!
//! A checkpoint freezes what changed and writes it in one synced transaction, on whatever thread runs the job. Reads
//! look into the changes, then the frozen changes, then the file as the last finished checkpoint left it.

use std::cell::RefCell;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::StorageBackend;
use redb::backends::FileBackend;
use trefoil_core::ShardId;
use trefoil_core::machine::Machine;
use trefoil_core::replica::Boot;
use trefoil_core::store::Store;
use trefoil_proto::internal::v1::Progress;

use super::checkpoint::{Checkpoint, Written};
use super::durable;
use super::evidence::{Damaged, Unusable};
use super::fault::StorageError;
use super::gaps::{Gaps, PASSED_MIN};
use super::generations::{create_file, file_path};
use super::merge::Merge;
use super::overlay::Overlay;
use super::records::{Base, progress_key};
use super::state_file::StateFile;

/// The state of one shard.
pub struct StateStore {
    file: StateFile,
    base: Base,
    overlay: Overlay,
    frozen: Option<Arc<Overlay>>,
    gaps: RefCell<Gaps>,
}

impl std::fmt::Debug for StateStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateStore")
            .field("file", &self.file)
            .field("overlay", &self.overlay.len())
            .field("overlay_bytes", &self.overlay.bytes())
            .field("frozen", &self.frozen.as_ref().map(|frozen| frozen.len()))
            .finish_non_exhaustive()
    }
}

impl StateStore {
    /// Makes the state file of a new shard; what [`trefoil_core::machine::Machine::bootstrap`] writes is to follow,
    /// with a checkpoint.
    ///
    /// # Errors
    /// When the file cannot be written, or is there.
    pub fn create(
        root: &Path,
        shard: ShardId,
        generation: u64,
        cache_bytes: usize,
    ) -> Result<Self, StorageError> {
        let (path, backend) = create_file(root, shard, generation)?;
        let store = Self::open_on(shard, generation, &path, backend, cache_bytes)?;
        let folder = super::DataDirectory::state_path(root);
        durable::sync_directory(&folder)
            .map_err(|error| StorageError::io("sync", &folder, &error))?;
        Ok(store)
    }

    /// Opens the state file of a generation.
    ///
    /// # Errors
    /// When it is missing or not what it should be.
    pub fn open_generation(
        root: &Path,
        shard: ShardId,
        generation: u64,
        cache_bytes: usize,
    ) -> Result<Self, Unusable> {
        let path = file_path(root, shard, generation);
        let file = durable::open_file(&path, false).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Damaged::new(&path, "it is missing").into(),
            _ => Unusable::from(StorageError::io("open", &path, &error)),
        })?;
        let backend =
            FileBackend::new(file).map_err(|error| StorageError::state_file(&path, &error))?;
        Self::open_on(shard, generation, &path, backend, cache_bytes)
    }

    /// Opens the state on a backend: an empty one becomes an empty state. `path` is its name in messages.
    ///
    /// # Errors
    /// When it is not the state of this shard.
    pub fn open_on(
        shard: ShardId,
        generation: u64,
        path: &Path,
        backend: impl StorageBackend,
        cache_bytes: usize,
    ) -> Result<Self, Unusable> {
        let file = StateFile::open(shard, generation, path, backend, cache_bytes)?;
        let base = file.check_birth()?;
        let (overlay, gaps) = (Overlay::default(), RefCell::default());
        Ok(Self { file, base, overlay, frozen: None, gaps })
    }

    /// The file, for whoever reads it on another thread.
    #[must_use]
    pub fn file(&self) -> &StateFile {
        &self.file
    }

    /// How far the machine is, as the state says; none before it was bootstrapped.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.get(&progress_key()).map(|value| trefoil_core::store::decode(&value))
    }

    /// Fills in what the state knows of a shard's start. To be called before anything is applied.
    ///
    /// # Errors
    /// When the state is ahead of the log, or is not what was written.
    pub fn complete(&self, boot: &mut Boot) -> Result<(), Unusable> {
        let Some(progress) = self.progress() else {
            self.file.damaged("it does not say how far it is");
        };
        if progress.index > boot.last_index {
            let sentence = format!(
                "it holds entry {} and the log ends at {}",
                progress.index, boot.last_index
            );
            return Err(StorageError::state_file(&self.file.path, &sentence).into());
        }
        if progress.index < boot.truncated.0 {
            let sentence = format!(
                "it ends at entry {} and the log begins after {}",
                progress.index, boot.truncated.0
            );
            return Err(Damaged::new(&self.file.path, sentence).into());
        }
        boot.applied = (progress.index, progress.term);
        boot.log_time_ms = progress.log_time_ms;
        boot.wall_ms = progress.wall_ms;
        boot.next_due_ms = Machine::next_due_ms(self);
        Ok(())
    }

    /// Bytes of changes that are not in the file yet, those of a running checkpoint included.
    #[must_use]
    pub fn overlay_bytes(&self) -> u64 {
        self.overlay.bytes() + self.frozen.as_ref().map_or(0, |frozen| frozen.bytes())
    }

    /// Begins a checkpoint: what changed since the last one is frozen and handed to a job. None when nothing changed,
    /// or while another one runs.
    pub fn freeze(&mut self) -> Option<Checkpoint> {
        if self.frozen.is_some() || self.overlay.is_empty() {
            return None;
        }
        let frozen = Arc::new(std::mem::take(&mut self.overlay));
        self.frozen = Some(Arc::clone(&frozen));
        Some(Checkpoint::new(self.file.clone(), frozen))
    }

    /// Ends a checkpoint whose job is done: reads go to the file for what was frozen. Where it is a new file, the log
    /// must name that one by now.
    ///
    /// # Panics
    /// When the job was another store's.
    pub fn finish(&mut self, done: Written) {
        let frozen = self.frozen.take().expect("a checkpoint was begun");
        assert!(Arc::ptr_eq(&frozen, &done.frozen), "the checkpoint was begun here");
        if let Some(moved) = done.moved {
            self.file = moved.file;
        }
        self.base = self.file.records(&self.file.begin_read());
        // Most deletions are gone.
        self.gaps.get_mut().forget();
    }

    /// Whether a key has a value in the layers below the overlay.
    fn is_below(&self, key: &[u8]) -> bool {
        match self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            Some(change) => change.is_some(),
            None => self.base.get(key).unwrap_or_else(|error| self.file.damaged(error)).is_some(),
        }
    }
}

impl Store for StateStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        if let Some(change) = self.overlay.get(key) {
            return change.clone();
        }
        if let Some(change) = self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            return change.clone();
        }
        let stored = self.base.get(key).unwrap_or_else(|error| self.file.damaged(error));
        stored.map(|stored| self.file.verified(key, stored.value()))
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
        let gap_end = self.gaps.borrow().end_of(start);
        let from = gap_end.as_deref().unwrap_or(start);
        if from >= end {
            return Vec::new();
        }
        let range = (Bound::Included(from), Bound::Excluded(end));
        let base = self.base.range::<&[u8]>(range).unwrap_or_else(|error| self.file.damaged(error));
        let overlay = self.overlay.range(range);
        let frozen = self.frozen.as_ref().map(|frozen| frozen.range(range));
        let mut merge = Merge::new(&self.file, overlay, frozen, base);
        let first = merge.next();
        if merge.passed() >= PASSED_MIN {
            let until = first.as_ref().map_or(end, |(key, _)| key);
            self.gaps.borrow_mut().note(start, until);
        }
        first.into_iter().chain(merge).take(limit).collect()
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        self.gaps.get_mut().put(&key);
        self.overlay.insert(key, Some(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.gaps.get_mut().delete(key);
        if self.is_below(key) {
            self.overlay.insert(Bytes::copy_from_slice(key), None);
        } else {
            // Nothing is left to hide: what came and went since the last checkpoint leaves no trace for scans to pass.
            self.overlay.remove(key);
        }
    }
}
