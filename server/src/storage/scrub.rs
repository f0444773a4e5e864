//! A look at what the disk still has of a checkpoint that nobody reads: all blocks to which its root leads, past the
//! pages that redb keeps in memory. Free blocks are left alone, since a crash may have torn them.
//!
//! A part at a time, each over the root of the last checkpoint: while it is read, the blocks that it shows are not
//! used again, and that must not last.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use redb::{Builder, ReadableDatabase as _, ReadableTable as _, StorageBackend, StorageError};
use rustix::fs::Advice;

use super::evidence::Damaged;
use super::records::{FACTS, RECORDS};
use super::state_file::StateFile;

/// Memory for the pages above the leaves.
const CACHE_BYTES: usize = 256 << 10;
/// Bytes of redb's header.
const HEADER: usize = 320;
/// Where it says how the last process ended, and that it has not.
const GOD_BYTE: usize = 9;
const RECOVERY_REQUIRED: u8 = 2;

/// A part of a file that is as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes that were read from the disk.
    pub bytes: u64,
    /// The last key that was seen, where there is more; none at the end of the file.
    pub last: Option<Bytes>,
}

/// A file as the last checkpoint left it: a database that nobody has open.
#[derive(Debug)]
struct CheckpointView {
    blocks: Arc<dyn StorageBackend>,
    len: u64,
    header: [u8; HEADER],
    read: Arc<AtomicU64>,
}

impl CheckpointView {
    fn of(blocks: &Arc<dyn StorageBackend>) -> io::Result<Self> {
        let mut header = [0; HEADER];
        blocks.read(0, &mut header)?;
        header[GOD_BYTE] &= !RECOVERY_REQUIRED;
        let (len, read) = (blocks.len()?, Arc::default());
        Ok(Self { blocks: Arc::clone(blocks), len, header, read })
    }
}

impl StorageBackend for CheckpointView {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read.fetch_add(out.len() as u64, Ordering::Relaxed);
        if offset > 0 {
            return self.blocks.read(offset, out);
        }
        out.copy_from_slice(self.header.get(..out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl StateFile {
    /// Reads about so many bytes of the last checkpoint from the disk, behind a key. Not while another thread writes
    /// a checkpoint to this file.
    ///
    /// # Errors
    /// When something is not as it was written.
    pub fn scrub(&self, after: Option<&Bytes>, bytes: u64) -> Result<Scrubbed, Damaged> {
        self.try_scrub(after, bytes).map_err(|error| match self.health().damage() {
            Some(damage) => Damaged::new(self.path(), damage),
            None => Damaged::new(self.path(), error),
        })
    }

    /// Lets the kernel forget what it has of the file, so that a scrub sees what the disk has.
    pub fn forget_cached(&self) {
        if let Ok(file) = File::open(self.path()) {
            // It is a hint: where it is not taken the scrub sees less.
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).ok();
        }
    }

    fn try_scrub(&self, after: Option<&Bytes>, bytes: u64) -> Result<Scrubbed, redb::Error> {
        let pin = self.database.begin_read()?;
        let view = CheckpointView::of(&self.blocks).map_err(StorageError::from)?;
        let done = Arc::clone(&view.read);
        let done = || done.load(Ordering::Relaxed);
        let database =
            Builder::new().set_cache_size(CACHE_BYTES).open_read_only_with_backend(view)?;
        let read = database.begin_read()?;
        let records = read.open_table(RECORDS)?;
        let start = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_ref()));
        let opened = done();
        for record in records.range::<&[u8]>((start, Bound::Unbounded))? {
            let (key, _) = record?;
            if done() - opened >= bytes {
                let last = Some(Bytes::copy_from_slice(key.value()));
                return Ok(Scrubbed { bytes: done(), last });
            }
        }
        for fact in read.open_table(FACTS)?.iter()? {
            fact?;
        }
        drop(pin);
        Ok(Scrubbed { bytes: done(), last: None })
    }
}
