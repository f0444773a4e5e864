//! The state files of a shard in the data directory, each of a generation of its own.

use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use trefoil_core::ShardId;

use super::fault::StorageError;
use super::{DataDirectory, durable};

/// Of a damaged file that is kept.
const SUFFIX: &str = ".redb.damaged";

/// Name of the state file of a shard under a generation; `root` is the data directory.
#[must_use]
pub fn file_path(root: &Path, shard: ShardId, generation: u64) -> PathBuf {
    DataDirectory::state_path(root).join(format!("{shard}-{generation}.redb"))
}

/// Makes the file of a generation, which must not be there.
pub(super) fn create_file(
    root: &Path,
    shard: ShardId,
    generation: u64,
) -> Result<(PathBuf, FileBackend), StorageError> {
    let folder = DataDirectory::state_path(root);
    durable::make_directory(&folder).map_err(|error| StorageError::io("make", &folder, &error))?;
    let path = file_path(root, shard, generation);
    let file =
        durable::open_file(&path, true).map_err(|error| StorageError::io("make", &path, &error))?;
    let backend =
        FileBackend::new(file).map_err(|error| StorageError::state_file(&path, &error))?;
    Ok((path, backend))
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
    let folder = DataDirectory::state_path(root);
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
    let kept = kept(root, shard)?.map(|(generation, _)| generation);
    Ok(generations(root, shard)?.into_iter().chain(kept).max().unwrap_or(0) + 1)
}

fn generations(root: &Path, shard: ShardId) -> Result<Vec<u64>, StorageError> {
    let folder = DataDirectory::state_path(root);
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

/// Puts a damaged file aside for whoever wants to know what happened to it, under a name of its own. One is kept for
/// each shard, the first: a later one is removed.
///
/// # Errors
/// When it cannot be renamed or removed.
pub fn keep(root: &Path, shard: ShardId, generation: u64) -> Result<Option<PathBuf>, StorageError> {
    let path = file_path(root, shard, generation);
    if !path.exists() {
        return Ok(kept(root, shard)?.map(|(_, path)| path));
    }
    let folder = DataDirectory::state_path(root);
    let before = kept(root, shard)?;
    let to = folder.join(format!("{shard}-{generation}{SUFFIX}"));
    let moved = match before {
        Some(_) => std::fs::remove_file(&path),
        None => std::fs::rename(&path, &to),
    };
    moved.map_err(|error| StorageError::io("put aside", &path, &error))?;
    durable::sync_directory(&folder).map_err(|error| StorageError::io("sync", &folder, &error))?;
    Ok(Some(before.map_or(to, |(_, path)| path)))
}

/// The damaged file of a shard that is kept, and its generation.
pub(super) fn kept(root: &Path, shard: ShardId) -> Result<Option<(u64, PathBuf)>, StorageError> {
    let folder = DataDirectory::state_path(root);
    let unread = |error: std::io::Error| StorageError::io("read", &folder, &error);
    for entry in std::fs::read_dir(&folder).map_err(unread)? {
        let name = entry.map_err(unread)?.file_name();
        let generation = name
            .to_str()
            .and_then(|name| name.strip_suffix(SUFFIX)?.strip_prefix(&format!("{shard}-")))
            .and_then(|generation| generation.parse().ok());
        if let Some(generation) = generation {
            return Ok(Some((generation, folder.join(name))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_damaged_file_of_a_shard_is_kept() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(DataDirectory::state_path(root.path())).unwrap();
        let write = |shard, generation| {
            std::fs::write(file_path(root.path(), shard, generation), [9]).unwrap();
        };
        assert_eq!(keep(root.path(), 1, 1), Ok(None));
        write(1, 1);
        write(11, 1);
        let first = keep(root.path(), 1, 1).unwrap().unwrap();
        assert!(first.ends_with("1-1.redb.damaged") && first.exists());
        write(1, 2);
        assert_eq!(keep(root.path(), 1, 2), Ok(Some(first.clone())));
        assert!(first.exists() && !file_path(root.path(), 1, 2).exists());
        assert!(file_path(root.path(), 11, 1).exists(), "another shard's");
    }
}
