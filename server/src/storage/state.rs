//! The state of one shard: what changed since the last checkpoint in memory, everything else in a redb file.
//!
//! A checkpoint freezes what changed and writes it in one synced transaction, on whatever thread runs the job. Reads
//! look into the changes, then the frozen changes, then the file as the last finished checkpoint left it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, ReadOnlyTable, ReadTransaction, ReadableDatabase as _, StorageBackend,
    TableDefinition, TableError, WriteTransaction,
};
use trefoil_core::ShardId;
use trefoil_core::key::{Key, Kind};
use trefoil_core::machine::Machine;
use trefoil_core::replica::Boot;
use trefoil_core::store::Store;
use trefoil_proto::internal::v1::Progress;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::blocks::{Blocks, Health, Unfit};
use super::checkpoint::{Checkpoint, Written};
use super::evidence::{Damaged, Unusable};
use super::fault::{StorageError, die, is_no_space};
use super::gaps::{Gaps, PASSED_MIN};
use super::merge::Merge;
use super::pace::{Pace, Paced};
use super::{durable, snapshot};

/// Version of the records in a state file.
pub const STATE_FORMAT: u32 = 2;
/// Memory for the pages of all state files of a node, where the configuration says nothing.
pub const CACHE_BYTES_DEFAULT: usize = 64 << 20;

/// Bytes that a change takes beside key and value: node of the map, two shared buffers.
const CHANGE_BYTES: usize = 96;
const CHECKSUM_BYTES: usize = 8;

pub(super) type Records = TableDefinition<'static, &'static [u8], &'static [u8]>;
/// Key to checksum and value.
pub(super) const RECORDS: Records = TableDefinition::new("records");
/// Facts of the file.
pub(super) const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");

/// Changes in order; none is a deletion.
pub(super) type Changes = BTreeMap<Bytes, Option<Bytes>>;
pub(super) type Base = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// An open state file, shared by whoever reads it. A read that fails unwinds with a [`Damaged`].
#[derive(Clone)]
pub struct StateFile {
    pub(super) shard: ShardId,
    pub(super) path: Arc<Path>,
    pub(super) database: Arc<Database>,
    /// What lies below the database.
    pub(super) blocks: Arc<dyn StorageBackend>,
    health: Arc<Health>,
    pub(super) pace: Arc<Pace>,
    /// Size of the file when it was written anew; 0 when that is not known.
    pub(super) born_bytes: u64,
}

impl std::fmt::Debug for StateFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateFile")
            .field("shard", &self.shard)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Name of the state file of a shard under a generation; `root` is the data directory.
#[must_use]
pub fn file_path(root: &Path, shard: ShardId, generation: u64) -> PathBuf {
    super::DataDirectory::state_path(root).join(format!("{shard}-{generation}.redb"))
}

impl StateFile {
    /// Opens or makes a file on a backend.
    pub(super) fn open(
        shard: ShardId,
        generation: u64,
        path: &Path,
        backend: impl StorageBackend,
        cache_bytes: usize,
    ) -> Result<Self, Unusable> {
        let pace = Arc::new(Pace::default());
        let backend = Paced::new(backend, Arc::clone(&pace));
        let blocks = Blocks::open(backend, shard, generation).map_err(|unfit| match unfit {
            Unfit::Foreign(sentence) => refuse(path, &sentence).into(),
            Unfit::Damaged(_) | Unfit::Io(_) => Unusable::from(Damaged::new(path, unfit)),
        })?;
        let (below, health) = (Arc::new(blocks.clone()), blocks.health());
        let database = Builder::new().set_cache_size(cache_bytes).create_with_backend(blocks);
        let database = database.map_err(|error| unusable(path, &health, &error.into()))?;
        let (path, database) = (path.into(), Arc::new(database));
        Ok(Self { shard, path, database, blocks: below, health, pace, born_bytes: 0 })
    }

    /// Begins a transaction whose commit is synced, and after which opening takes no repair.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_quick_repair(true);
        Ok(write)
    }

    pub(super) fn begin_read(&self) -> ReadTransaction {
        self.database.begin_read().unwrap_or_else(|error| self.damaged(error))
    }

    pub(super) fn records(&self, read: &ReadTransaction) -> Base {
        read.open_table(RECORDS).unwrap_or_else(|error| self.damaged(error))
    }

    pub(super) fn fact(&self, read: &ReadTransaction, name: &str) -> u64 {
        self.find_fact(read, name)
            .unwrap_or_else(|error| self.damaged(error))
            .unwrap_or_else(|| self.damaged(format_args!("it does not say its {name}")))
    }

    fn find_fact(&self, read: &ReadTransaction, name: &str) -> Result<Option<u64>, redb::Error> {
        Ok(read.open_table(FACTS)?.get(name)?.map(|fact| fact.value()))
    }

    /// Looks whether it is the state of its shard, and makes it so when it is new.
    fn check_birth(&self) -> Result<Base, Unusable> {
        let refused = |error: redb::Error| unusable(&self.path, &self.health, &error);
        let begin = || Ok(self.database.begin_read()?);
        let facts = begin().and_then(|read| match read.open_table(FACTS) {
            Err(TableError::TableDoesNotExist(_)) => {
                write_birth(self)?;
                Ok((Some(STATE_FORMAT.into()), Some(self.shard.into())))
            }
            _ => Ok((self.find_fact(&read, "format")?, self.find_fact(&read, "shard")?)),
        });
        let (format, shard) = facts.map_err(refused)?;
        if (format, shard) != (Some(STATE_FORMAT.into()), Some(self.shard.into())) {
            let sentence = format!("it holds shard {shard:?} in format {format:?}");
            return Err(refuse(&self.path, &sentence).into());
        }
        begin().and_then(|read| Ok(read.open_table(RECORDS)?)).map_err(refused)
    }

    /// A snapshot of the last finished checkpoint. It may be opened while another one is being written.
    #[must_use]
    pub fn snapshot(&self) -> snapshot::Reader {
        snapshot::Reader::open(self.clone())
    }

    /// Its name.
    #[must_use]
    pub fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }

    /// The damage that was met first, by whoever reads the file.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What cannot be read, or is not what was written, is not believed. redb names the first damage once.
    pub(super) fn damaged(&self, what: impl std::fmt::Display) -> ! {
        let damaged = match self.health.damage() {
            Some(damage) => Damaged::new(&self.path, damage),
            None => Damaged::new(&self.path, what),
        };
        damaged.unwind()
    }

    /// A checkpoint failed. What could not be read is damage; after a write or a sync that failed nobody knows what is on
    /// the disk, and the process ends.
    pub(super) fn give_up(&self, error: &redb::Error) -> ! {
        if self.health.damage().is_some() || matches!(error, redb::Error::Corrupted(_)) {
            self.damaged(error);
        }
        die(format_args!("cannot write the state file {}: {error}", self.path.display()))
    }

    /// The value of a stored record, once its checksum is seen to be right.
    pub(super) fn verified(&self, key: &[u8], stored: &[u8]) -> Bytes {
        let value = stored.split_first_chunk::<CHECKSUM_BYTES>();
        let value = value
            .filter(|(sum, value)| u64::from_le_bytes(**sum) == checksum(self.shard, key, value));
        let Some((_, value)) = value else {
            self.damaged("a record is damaged");
        };
        Bytes::copy_from_slice(value)
    }
}

fn refuse(path: &Path, error: &dyn std::fmt::Display) -> StorageError {
    StorageError(format!(
        "cannot open the state file {}: {error}; treat this data directory as lost, as docs/operations.md says",
        path.display()
    ))
}

/// Why a file is not used that redb does not open. Where there is no room to open it, nothing is damaged.
fn unusable(path: &Path, health: &Health, error: &redb::Error) -> Unusable {
    match (health.damage(), error) {
        (Some(damage), _) => Damaged::new(path, damage).into(),
        (None, redb::Error::Io(io)) if is_no_space(io) => refuse(path, error).into(),
        (None, _) => Damaged::new(path, error).into(),
    }
}

/// Checksum of a record over shard, key and value.
fn checksum(shard: ShardId, key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64_with_seed(key, u64::from(shard)))
}

/// A record as it is stored: the checksum before the value.
pub(super) fn encode_record(shard: ShardId, key: &[u8], value: &[u8], buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(&checksum(shard, key, value).to_le_bytes());
    buffer.extend_from_slice(value);
}

/// Bytes of a record's value as they are counted: without the checksum.
pub(super) fn value_bytes(stored: &[u8]) -> u64 {
    (stored.len() - CHECKSUM_BYTES) as u64
}

/// The key under which the machine says how far it is.
pub(super) fn progress_key() -> Bytes {
    Key::system(Kind::Progress).into()
}

/// The state of one shard.
pub struct StateStore {
    file: StateFile,
    base: Base,
    overlay: Changes,
    overlay_bytes: u64,
    frozen: Option<Arc<Frozen>>,
    gaps: RefCell<Gaps>,
}

impl std::fmt::Debug for StateStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateStore")
            .field("file", &self.file)
            .field("overlay", &self.overlay.len())
            .field("overlay_bytes", &self.overlay_bytes)
            .field("frozen", &self.frozen.as_ref().map(|frozen| frozen.changes.len()))
            .finish_non_exhaustive()
    }
}

/// Changes that are being written.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) changes: Changes,
    pub(super) bytes: u64,
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
        let backend = FileBackend::new(file).map_err(|error| refuse(&path, &error))?;
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
        let (overlay, gaps) = (Changes::new(), RefCell::default());
        Ok(Self { file, base, overlay, overlay_bytes: 0, frozen: None, gaps })
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
            return Err(refuse(&self.file.path, &sentence).into());
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
        self.overlay_bytes + self.frozen.as_ref().map_or(0, |frozen| frozen.bytes)
    }

    /// Begins a checkpoint: what changed since the last one is frozen and handed to a job. None when nothing changed,
    /// or while another one runs.
    pub fn freeze(&mut self) -> Option<Checkpoint> {
        if self.frozen.is_some() || self.overlay.is_empty() {
            return None;
        }
        let frozen = Arc::new(Frozen {
            changes: std::mem::take(&mut self.overlay),
            bytes: self.overlay_bytes,
        });
        self.overlay_bytes = 0;
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

    fn change(&mut self, key: Bytes, value: Option<Bytes>) {
        self.overlay_bytes += change_bytes(&key, value.as_ref());
        if let Some(old) = self.overlay.insert(key.clone(), value) {
            self.overlay_bytes -= change_bytes(&key, old.as_ref());
        }
    }

    /// Whether a key has a value in the layers below the overlay.
    fn is_below(&self, key: &[u8]) -> bool {
        match self.frozen.as_ref().and_then(|frozen| frozen.changes.get(key)) {
            Some(change) => change.is_some(),
            None => self.base.get(key).unwrap_or_else(|error| self.file.damaged(error)).is_some(),
        }
    }
}

/// Bytes of a change in memory.
fn change_bytes(key: &Bytes, value: Option<&Bytes>) -> u64 {
    (key.len() + CHANGE_BYTES + value.map_or(0, Bytes::len)) as u64
}

impl Store for StateStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        if let Some(change) = self.overlay.get(key) {
            return change.clone();
        }
        if let Some(change) = self.frozen.as_ref().and_then(|frozen| frozen.changes.get(key)) {
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
        let overlay = self.overlay.range::<[u8], _>(range);
        let frozen = self.frozen.as_ref().map(|frozen| frozen.changes.range::<[u8], _>(range));
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
        self.change(key, Some(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.gaps.get_mut().delete(key);
        if self.is_below(key) {
            self.change(Bytes::copy_from_slice(key), None);
        } else if let Some((key, old)) = self.overlay.remove_entry(key) {
            // Nothing is left to hide: what came and went since the last checkpoint leaves no trace for scans to pass.
            self.overlay_bytes -= change_bytes(&key, old.as_ref());
        }
    }
}

/// Makes the file of a generation, which must not be there.
pub(super) fn create_file(
    root: &Path,
    shard: ShardId,
    generation: u64,
) -> Result<(PathBuf, FileBackend), StorageError> {
    let folder = super::DataDirectory::state_path(root);
    durable::make_directory(&folder).map_err(|error| StorageError::io("make", &folder, &error))?;
    let path = file_path(root, shard, generation);
    let file =
        durable::open_file(&path, true).map_err(|error| StorageError::io("make", &path, &error))?;
    let backend = FileBackend::new(file).map_err(|error| refuse(&path, &error))?;
    Ok((path, backend))
}

fn write_birth(file: &StateFile) -> Result<(), redb::Error> {
    let write = file.begin_write()?;
    write.open_table(RECORDS)?;
    write_facts(&write, file.shard, 0)?;
    Ok(write.commit()?)
}

pub(super) fn write_facts(
    write: &WriteTransaction,
    shard: ShardId,
    bytes: u64,
) -> Result<(), redb::Error> {
    let mut facts = write.open_table(FACTS)?;
    facts.insert("format", u64::from(STATE_FORMAT))?;
    facts.insert("shard", u64::from(shard))?;
    facts.insert("bytes", bytes)?;
    Ok(())
}

/// Removes the state files of a shard that the log does not name. To be called once the one it names is open.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove_other_generations(
    root: &Path,
    shard: ShardId,
    keep: u64,
) -> Result<(), StorageError> {
    let mut removed = false;
    for generation in generations(root, shard)? {
        if generation != keep {
            let path = file_path(root, shard, generation);
            std::fs::remove_file(&path)
                .map_err(|error| StorageError::io("remove", &path, &error))?;
            removed = true;
        }
    }
    let folder = super::DataDirectory::state_path(root);
    if removed {
        durable::sync_directory(&folder)
            .map_err(|error| StorageError::io("sync", &folder, &error))?;
    }
    Ok(())
}

/// A generation above all whose file is there.
///
/// # Errors
/// When the directory cannot be read.
pub fn next_generation(root: &Path, shard: ShardId) -> Result<u64, StorageError> {
    let kept = super::evidence::kept(root, shard)?.map(|(generation, _)| generation);
    Ok(generations(root, shard)?.into_iter().chain(kept).max().unwrap_or(0) + 1)
}

fn generations(root: &Path, shard: ShardId) -> Result<Vec<u64>, StorageError> {
    let folder = super::DataDirectory::state_path(root);
    let mut found = Vec::new();
    for entry in
        std::fs::read_dir(&folder).map_err(|error| StorageError::io("read", &folder, &error))?
    {
        let name = entry.map_err(|error| StorageError::io("read", &folder, &error))?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_suffix(".redb")?.strip_prefix(&format!("{shard}-")));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(found)
}

/// XXH3 of the records of a snapshot chunk, in order.
pub(super) fn chunk_checksum<'a>(records: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> u64 {
    records.fold(0, |sum, (key, value)| {
        xxh3_64_with_seed(value, xxh3_64_with_seed(key, sum).wrapping_add(1))
    })
}
