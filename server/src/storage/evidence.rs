//! State that must not be believed: how those who read it hear of that, and what becomes of its file.
//!
//! Reads of a machine cannot fail, and there are hundreds of them. One that finds damage unwinds with a [`Damaged`] to
//! [`catch`], which stands around everything that reads a state; whoever called it drops that state and all that was
//! read from it. No panic hook runs, and nothing is printed
//! ([decision 11](../../../docs/decisions/0011-damaged-state.md)).

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use trefoil_core::ShardId;

use super::fault::StorageError;
use super::state::file_path;
use super::{DataDirectory, durable};

/// The state of a shard is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state file {} is damaged: {what}", .path.display())]
pub struct Damaged {
    /// Its file.
    pub path: PathBuf,
    /// What was found.
    pub what: String,
}

impl Damaged {
    /// Damage of a file.
    pub(crate) fn new(path: &Path, what: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), what: what.to_string() }
    }

    /// Unwinds to [`catch`].
    pub fn unwind(self) -> ! {
        resume_unwind(Box::new(self))
    }
}

impl From<Damaged> for StorageError {
    fn from(damaged: Damaged) -> Self {
        Self(format!("{damaged}; treat this data directory as lost, as docs/operations.md says"))
    }
}

/// Why a state file is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is damaged: the others have what it held.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// It is not this node's to use, or of another version: somebody has to look.
    #[error(transparent)]
    Refused(#[from] StorageError),
}

impl From<Unusable> for StorageError {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Damaged(damaged) => damaged.into(),
            Unusable::Refused(refusal) => refusal,
        }
    }
}

thread_local! {
    /// Whether [`catch`] is under way on this thread.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    /// The words of the last panic of redb that the hook let pass.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs what reads the state in a file; a state that turns out to be damaged is an error. A panic that is none of that
/// goes on.
///
/// # Errors
/// What was found. Nothing that `read` had hold of may be used again.
pub fn catch<T>(path: &Path, read: impl FnOnce() -> T) -> Result<T, Damaged> {
    let outer = CATCHING.replace(true);
    let done = catch_unwind(AssertUnwindSafe(read));
    CATCHING.set(outer);
    done.map_err(|payload| match payload.downcast::<Damaged>() {
        Ok(damaged) => *damaged,
        Err(payload) => match PANIC.take() {
            Some(what) => Damaged::new(path, what),
            None => resume_unwind(payload),
        },
    })
}

/// Ends the process at every panic: a program with a fault in it must not go on. Only where redb trips over a file that
/// holds what it never wrote, and somebody waits for that, it is the file that has the fault.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let of_redb = info.location().is_some_and(|at| at.file().contains("/redb-"));
        if of_redb && CATCHING.get() {
            return PANIC.set(Some(info.to_string().replace('\n', " ")));
        }
        print(info);
        std::process::abort();
    }));
}

const SUFFIX: &str = ".redb.damaged";

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
    fn damage_comes_to_who_waits_for_it_and_other_panics_go_on() {
        let path = Path::new("state/1-1.redb");
        assert_eq!(catch(path, || 7), Ok(7));
        let damaged = Damaged::new(path, "a block");
        assert_eq!(catch(path, || -> u8 { damaged.clone().unwind() }), Err(damaged.clone()));
        assert_eq!(damaged.to_string(), "the state file state/1-1.redb is damaged: a block");
        let bug = catch_unwind(|| catch(path, || -> u8 { panic!("a bug") }));
        assert_eq!(bug.unwrap_err().downcast_ref::<&str>(), Some(&"a bug"));
    }

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
