//! What holds of every state between two commands, however it came about: what is counted is there, and what refers to a record
//! finds it. Tests and the simulator look after each entry; it reads everything, so a node never does.

mod cache;
mod lock;
mod queue;

use super::Machine;
use crate::store::Store;

pub use self::lock::{LockState, is_delayed};

/// Says what does not hold.
macro_rules! ensure {
    ($holds:expr, $what:literal $(,)?) => {
        if !$holds {
            return Err(format!("it does not hold that {}", $what));
        }
    };
}
use ensure;

/// Says what two things are that should be equal.
macro_rules! equal {
    ($one:expr, $other:expr, $what:literal $(,)?) => {
        match (&$one, &$other) {
            (one, other) if *one != *other => {
                return Err(format!("it does not hold that {}: {one:?}, {other:?}", $what));
            }
            _ => {}
        }
    };
}
use equal;

impl Machine {
    /// Looks whether everything holds that must hold of the state of a shard.
    ///
    /// # Errors
    /// What does not.
    ///
    /// # Panics
    /// When a record is not what this version wrote, or one that others need is missing.
    pub fn check(&self, store: &impl Store) -> Result<(), String> {
        let records = self.records(store);
        LockState::of(&records).check()?;
        queue::check(&records, &self.progress)?;
        cache::check(&records)
    }
}
