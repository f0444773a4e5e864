//! An open state file: what is read of it is what was written, or it is damaged.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase as _, StorageBackend, TableError,
    WriteTransaction,
};
use trefoil_core::ShardId;

use super::blocks::{Blocks, Health, Unfit};
use super::evidence::{Damaged, Unusable};
use super::fault::{StorageError, die, is_no_space};
use super::pace::{Pace, Paced};
use super::records::{Base, FACTS, RECORDS, STATE_FORMAT, verified_value, write_facts};

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
            Unfit::Foreign(sentence) => StorageError::state_file(path, &sentence).into(),
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
    pub(super) fn check_birth(&self) -> Result<Base, Unusable> {
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
            return Err(StorageError::state_file(&self.path, &sentence).into());
        }
        begin().and_then(|read| Ok(read.open_table(RECORDS)?)).map_err(refused)
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
        let Some(value) = verified_value(self.shard, key, stored) else {
            self.damaged("a record is damaged");
        };
        Bytes::copy_from_slice(value)
    }
}

/// Why a file is not used that redb does not open. Where there is no room to open it, nothing is damaged.
fn unusable(path: &Path, health: &Health, error: &redb::Error) -> Unusable {
    match (health.damage(), error) {
        (Some(damage), _) => Damaged::new(path, damage).into(),
        (None, redb::Error::Io(io)) if is_no_space(io) => {
            StorageError::state_file(path, error).into()
        }
        (None, _) => Damaged::new(path, error).into(),
    }
}

fn write_birth(file: &StateFile) -> Result<(), redb::Error> {
    let write = file.begin_write()?;
    write.open_table(RECORDS)?;
    write_facts(&write, file.shard, 0)?;
    Ok(write.commit()?)
}
