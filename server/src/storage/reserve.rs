//! Room on the disk that is held back for a disk that is full all the same: given up, it lets acks, releases and
//! deletes be written, which make room again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};

use super::durable;

const NAME: &str = "reserve";

/// A file that takes the room, and holds nothing.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: Mutex<bool>,
}

impl Reserve {
    /// The reserve of a data directory, as an earlier run left it.
    #[must_use]
    pub fn open(root: &Path, bytes: u64) -> Self {
        let path = root.join(NAME);
        let held = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes);
        Self { path, bytes, held: Mutex::new(held) }
    }

    /// Bytes that it holds back.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the room is held back now.
    #[must_use]
    pub fn is_held(&self) -> bool {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the room back; nothing happens where it is held already.
    ///
    /// # Errors
    /// When there is no such room; none is taken then.
    pub fn hold(&self) -> io::Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held {
            return Ok(());
        }
        self.remove()?;
        let taken = durable::open_file(&self.path, true).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?;
            file.sync_all()
        });
        if taken.is_err() {
            self.remove()?;
        }
        *held = taken.is_ok();
        taken
    }

    /// Gives the room back to whoever needs it; says whether there was any.
    pub fn give_up(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, false) && self.remove().is_ok()
    }

    fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn it_takes_its_room_and_gives_it_back_once() {
        let root = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(root.path(), 1 << 20);
        assert!(!reserve.is_held());
        reserve.hold().unwrap();
        reserve.hold().unwrap();
        let blocks = std::fs::metadata(root.path().join(NAME)).unwrap().blocks();
        assert!(blocks * 512 >= 1 << 20, "{blocks} blocks are less than the room");
        assert!(Reserve::open(root.path(), 1 << 20).is_held(), "the next start finds it");
        assert!(!Reserve::open(root.path(), 2 << 20).is_held(), "not one of another size");

        assert!(reserve.give_up());
        assert!(!reserve.give_up(), "there is only one");
        assert!(!root.path().join(NAME).exists());
        reserve.hold().unwrap();
        assert!(reserve.is_held());
    }

    #[test]
    fn room_that_is_not_there_is_not_held() {
        let root = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(root.path(), 1 << 60);
        assert!(reserve.hold().is_err());
        assert!(!reserve.is_held());
        assert!(!root.path().join(NAME).exists(), "a part of it is of no use");
    }
}
