//! Everything that a node has on disk, opened together at its start.

use std::path::{Path, PathBuf};

use trefoil_core::machine::Machine;
use trefoil_core::{META_SHARD, ShardId};

use super::fault::{OpenError, StorageError};
use super::generations::{file_path, keep, remove_other_generations};
use super::log::BIRTH_GENERATION;
use super::{
    DataDirectory, EngineLog, Expected, LogStore as _, LogWrite, Recovered, StateStore, Unusable,
    evidence,
};

/// What a node has on disk. The directory, which is locked, is dropped last.
#[derive(Debug)]
pub struct Disk {
    /// Log and state of each shard, the meta shard first; no state where it is damaged.
    pub shards: Vec<(Recovered, Option<StateStore>)>,
    /// Damaged state files that are kept.
    pub kept: Vec<PathBuf>,
    /// The Raft log of all shards.
    pub log: EngineLog,
    /// The directory; it is locked until this is dropped.
    pub directory: DataDirectory,
}

/// Opens the data directory of a node; an empty one becomes the directory of a newborn node. `cache_bytes` is
/// shared by the state files of all shards.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub fn open(path: &Path, expected: &Expected, cache_bytes: usize) -> Result<Disk, OpenError> {
    let (mut directory, identity, new) = DataDirectory::open(path, expected)?;
    let shards = (META_SHARD..=identity.shards).collect::<Vec<_>>();
    let cache_bytes = cache_bytes / shards.len();
    if new {
        for &shard in &shards {
            give_birth(path, shard, cache_bytes)?;
        }
        EngineLog::create(path, &shards)?;
        directory.born()?;
    }
    let (log, recovered) = EngineLog::open(path, &shards)?;
    let mut open = Vec::with_capacity(shards.len());
    let mut kept = Vec::new();
    for mut recovered in recovered {
        let store = match open_state(path, &mut recovered, cache_bytes) {
            // Nobody else has what it held.
            Err(Unusable::Damaged(damaged)) if identity.members.len() == 1 => {
                return Err(StorageError::from(damaged).into());
            }
            Err(Unusable::Damaged(damaged)) => {
                log.write(&[LogWrite::Damage(recovered.shard)]).map_err(|error| {
                    StorageError::io("write", &DataDirectory::log_path(path), &error)
                })?;
                recovered.damage = Some(damaged.to_string());
                None
            }
            Err(Unusable::Refused(refusal)) => return Err(refusal.into()),
            Ok(store) => store,
        };
        if store.is_none() {
            kept.extend(keep(path, recovered.shard, recovered.generation)?);
            recovered.boot.damaged = true;
            recovered.boot.applied = recovered.boot.truncated;
        }
        remove_other_generations(path, recovered.shard, recovered.generation)?;
        open.push((recovered, store));
    }
    Ok(Disk { shards: open, kept, log, directory })
}

/// Opens the state that the log names; none where it is known to be damaged.
fn open_state(
    root: &Path,
    recovered: &mut Recovered,
    cache_bytes: usize,
) -> Result<Option<StateStore>, Unusable> {
    let (shard, generation) = (recovered.shard, recovered.generation);
    if recovered.boot.damaged {
        return Ok(None);
    }
    evidence::catch(&file_path(root, shard, generation), || {
        let store = StateStore::open_generation(root, shard, generation, cache_bytes)?;
        store.complete(&mut recovered.boot)?;
        Ok(Some(store))
    })?
}

fn give_birth(path: &Path, shard: ShardId, cache_bytes: usize) -> Result<(), StorageError> {
    let mut store = StateStore::create(path, shard, BIRTH_GENERATION, cache_bytes)?;
    Machine::bootstrap(&mut store);
    let checkpoint = store.freeze().expect("a machine is born with a record");
    checkpoint
        .write_in_place(None)
        .map(drop)
        .map_err(|error| StorageError::io("write the state below", path, &error))
}
