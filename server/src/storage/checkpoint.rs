//! Checkpoints: what changed since the last one goes to the state file, in one synced transaction.
//!
//! redb keeps what it once took of the disk. A file that holds little for its size is left behind: the checkpoint
//! goes with all that is still there into the file of a new generation, which the log names before anybody relies on
//! it. The old file is whole until then.

use std::io;
use std::path::Path;
use std::sync::Arc;

use redb::ReadableTable as _;
use trefoil_core::limits::{STATE_RECLAIM_BYTES_MIN, STATE_RECLAIM_FACTOR};
use trefoil_core::store::decode;
use trefoil_proto::internal::v1::Progress;

use super::durable;
use super::fault::die;
use super::generations::{create_file, next_generation};
use super::merge::Merge;
use super::overlay::Overlay;
use super::records::{FACTS, RECORDS, encode_record, progress_key, value_bytes, write_facts};
use super::state_file::StateFile;

/// Bytes of a page of redb.
const PAGE_BYTES: u64 = 4096;
/// Room for the pages above the leaves and redb's own bookkeeping.
const SPARE_BYTES: u64 = 4 << 20;

/// A checkpoint to be written: run it on any thread, then hand its result to [`super::StateStore::finish`].
#[derive(Debug)]
pub struct Checkpoint {
    file: StateFile,
    frozen: Arc<Overlay>,
}

/// A checkpoint that is on disk.
#[derive(Debug)]
pub struct Written {
    /// Index that it holds, as the machine says.
    pub index: u64,
    /// Term of that index.
    pub term: u64,
    /// Records that it wrote or removed.
    pub changes: usize,
    /// The file of a new generation, where the old one was left behind. The log must name it before the old one goes.
    pub moved: Option<Moved>,
    pub(super) frozen: Arc<Overlay>,
}

/// The file to which a checkpoint moved the state.
#[derive(Debug)]
pub struct Moved {
    /// Its generation.
    pub generation: u64,
    pub(super) file: StateFile,
}

impl Checkpoint {
    pub(super) fn new(file: StateFile, frozen: Arc<Overlay>) -> Self {
        Self { file, frozen }
    }

    /// The file that it reads, and writes where that stays the one.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The file in which the state is, once the checkpoint is written.
    pub fn left<'a>(&'a self, written: &'a Written) -> &'a StateFile {
        written.moved.as_ref().map_or(&self.file, |moved| &moved.file)
    }

    /// Whether the file holds so little for its size that it is worth a new one, and has grown since it was new.
    fn should_move(&self) -> bool {
        let size = self.file.bytes();
        size >= STATE_RECLAIM_BYTES_MIN
            && size / STATE_RECLAIM_FACTOR >= self.held() + self.frozen.bytes()
            && size / 2 >= self.file.born_bytes
    }

    /// Bytes of the records in the file.
    fn held(&self) -> u64 {
        self.file.fact(&self.file.begin_read(), "bytes")
    }

    /// Writes everything, at most `bytes_per_second` where that is given: to the file or, where that holds little for
    /// its size, into the file of a new generation below `root`.
    ///
    /// # Errors
    /// When there is no room: nothing was touched, and the same job may run again. Any other error ends the process.
    pub fn run(
        &self,
        root: &Path,
        cache_bytes: usize,
        bytes_per_second: Option<u64>,
    ) -> Result<Written, io::Error> {
        if self.should_move()
            && let Some(moved) = self.write_anew(root, cache_bytes, bytes_per_second)
        {
            return Ok(self.written(Some(moved)));
        }
        self.write_in_place(bytes_per_second)
    }

    /// Writes the changes to the file in one synced transaction.
    pub fn write_in_place(&self, bytes_per_second: Option<u64>) -> Result<Written, io::Error> {
        let copied = (self.frozen.len() as u64 * PAGE_BYTES).min(self.file.bytes());
        if !self.has_space(2 * self.frozen.bytes() + copied) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.pace.limit(bytes_per_second);
        let written = self.write();
        self.file.pace.limit(None);
        if let Err(error) = written {
            self.file.give_up(&error);
        }
        Ok(self.written(None))
    }

    /// Writes everything that is left into the file of a new generation. None when there is no room for it, or a
    /// snapshot on its way in took the generation: nothing was touched.
    fn write_anew(
        &self,
        root: &Path,
        cache_bytes: usize,
        bytes_per_second: Option<u64>,
    ) -> Option<Moved> {
        let shard = self.file.shard;
        if !self.has_space(2 * (self.held() + self.frozen.bytes())) {
            return None;
        }
        let generation = next_generation(root, shard).ok()?;
        let (path, backend) = create_file(root, shard, generation).ok()?;
        let mut file = StateFile::open(shard, generation, &path, backend, cache_bytes).ok()?;
        file.pace.limit(bytes_per_second);
        if let Err(error) = self.copy(&file) {
            self.file.give_up(&error);
        }
        file.pace.limit(None);
        let folder = super::DataDirectory::state_path(root);
        if let Err(error) = durable::sync_directory(&folder) {
            die(format_args!("cannot sync {}: {error}", folder.display()));
        }
        file.born_bytes = file.bytes();
        Some(Moved { generation, file })
    }

    fn written(&self, moved: Option<Moved>) -> Written {
        let progress = self.frozen.get(&progress_key()).cloned().flatten();
        let progress = progress.map_or_else(Progress::default, |value| decode(&value));
        Written {
            index: progress.index,
            term: progress.term,
            changes: self.frozen.len(),
            moved,
            frozen: Arc::clone(&self.frozen),
        }
    }

    fn write(&self) -> Result<(), redb::Error> {
        let write = self.file.begin_write()?;
        {
            let mut records = write.open_table(RECORDS)?;
            let mut facts = write.open_table(FACTS)?;
            let mut bytes = facts.get("bytes")?.map_or(0, |bytes| bytes.value());
            let mut buffer = Vec::new();
            for (key, change) in self.frozen.all() {
                let old = match change {
                    Some(value) => {
                        encode_record(self.file.shard, key, value, &mut buffer);
                        bytes += (key.len() + value.len()) as u64;
                        records.insert(key.as_ref(), buffer.as_slice())?
                    }
                    None => records.remove(key.as_ref())?,
                };
                bytes -= old.map_or(0, |old| key.len() as u64 + value_bytes(old.value()));
            }
            facts.insert("bytes", bytes)?;
        }
        Ok(write.commit()?)
    }

    /// Copies the last checkpoint with the changes over it.
    fn copy(&self, to: &StateFile) -> Result<(), redb::Error> {
        let read = self.file.begin_read();
        let base = self.file.records(&read);
        let base = base.range::<&[u8]>(..)?;
        let left = Merge::new(&self.file, self.frozen.all(), None, base);
        let write = to.begin_write()?;
        let mut bytes = 0;
        {
            let mut records = write.open_table(RECORDS)?;
            let mut buffer = Vec::new();
            for (key, value) in left {
                encode_record(to.shard, &key, &value, &mut buffer);
                bytes += (key.len() + value.len()) as u64;
                records.insert(key.as_ref(), buffer.as_slice())?;
            }
        }
        write_facts(&write, to.shard, bytes)?;
        Ok(write.commit()?)
    }

    /// redb gives a file up after a failed write, so room is asked for first. Each change may copy a page, and the
    /// pages that the last checkpoint shows are not free before this one is done.
    fn has_space(&self, bytes: u64) -> bool {
        let Ok(space) = rustix::fs::statvfs(self.file.path.as_ref()) else { return true };
        space.f_bavail.saturating_mul(space.f_frsize) >= bytes + SPARE_BYTES
    }
}
