//! State that must not be believed: how those who read it hear of that, and what becomes of its file.
//!
//! Reads of a machine cannot fail, and there are hundreds of them. One that finds damage unwinds with a [`Damaged`] to
//! [`catch`], which stands around everything that reads a state; whoever called it drops that state and all that was
//! read from it. No panic hook runs, and nothing is printed
//! ([decision 11](../../../docs/decisions/0011-damaged-state.md)).

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use super::fault::StorageError;

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
}
