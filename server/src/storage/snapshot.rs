//! A shard's state on its way to another node: read from the last checkpoint, written into a file of its own.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;
use redb::{
    ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, StorageBackend,
    WriteTransaction,
};
use trefoil_core::ShardId;
use trefoil_core::limits::SNAPSHOT_CHUNK_BYTES;
use trefoil_core::machine::Digest;
use trefoil_proto::internal::v1::{Manifest, Progress, Record, SnapshotChunk};

use super::durable;
use super::fault::StorageError;
use super::generations::create_file;
use super::records::{
    RECORDS, STATE_FORMAT, chunk_checksum, encode_record, progress_key, write_facts,
};
use super::state_file::StateFile;

/// A snapshot to be sent: one transaction on the last finished checkpoint. While it is open, the pages that it shows
/// are not used again.
pub struct SnapshotReader {
    file: StateFile,
    read: ReadTransaction,
    progress: Progress,
    manifest: Manifest,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader")
            .field("file", &self.file)
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}

impl SnapshotReader {
    /// A snapshot of the last finished checkpoint. It may be opened while another one is being written.
    #[must_use]
    pub fn open(file: &StateFile) -> Self {
        let read = file.begin_read();
        let records = file.records(&read);
        let key = progress_key();
        let stored = records.get(key.as_ref()).unwrap_or_else(|error| file.damaged(error));
        let progress = stored.map(|stored| {
            trefoil_core::store::decode::<Progress>(&file.verified(&key, stored.value()))
        });
        let progress = progress.unwrap_or_else(|| file.damaged("it does not say how far it is"));
        let count = records.len().unwrap_or_else(|error| file.damaged(error));
        let bytes = file.fact(&read, "bytes");
        let manifest =
            Manifest { format: STATE_FORMAT, records: count, bytes, chain: progress.chain };
        Self { file: file.clone(), read, progress, manifest }
    }

    /// Index that it holds.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.progress.index
    }

    /// Term of that index.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.progress.term
    }

    /// What it holds, for the receiver to check.
    #[must_use]
    pub fn manifest(&self) -> Manifest {
        self.manifest
    }

    /// The digest of the state, as [`trefoil_core::machine::Machine::digest`] has it. `goes_on` is told of the bytes
    /// that were read, from time to time, and may end it.
    pub fn digest(&self, mut goes_on: impl FnMut(usize) -> bool) -> Option<u64> {
        let mut digest = Digest::default();
        for chunk in self.chunks() {
            let mut bytes = 0;
            for record in &chunk.records {
                digest.add(&record.key, &record.value);
                bytes += record.key.len() + record.value.len();
            }
            if !goes_on(bytes) {
                return None;
            }
        }
        Some(digest.finish())
    }

    /// The file that it reads.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// All records in order, in chunks of at most [`SNAPSHOT_CHUNK_BYTES`] before the last record of each.
    #[must_use]
    pub fn chunks(&self) -> Chunks {
        let records = self.file.records(&self.read);
        let range = records.range::<&[u8]>(..).unwrap_or_else(|error| self.file.damaged(error));
        let mut chunks = Chunks { file: self.file.clone(), range, head: None, ordinal: 0 };
        chunks.head = chunks.read();
        chunks
    }
}

/// The chunks of a snapshot.
pub struct Chunks {
    file: StateFile,
    range: redb::Range<'static, &'static [u8], &'static [u8]>,
    head: Option<Record>,
    ordinal: u64,
}

impl std::fmt::Debug for Chunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunks")
            .field("file", &self.file)
            .field("ordinal", &self.ordinal)
            .finish_non_exhaustive()
    }
}

impl Chunks {
    fn read(&mut self) -> Option<Record> {
        let (key, value) = self.range.next()?.unwrap_or_else(|error| self.file.damaged(error));
        let value = self.file.verified(key.value(), value.value());
        Some(Record { key: Bytes::copy_from_slice(key.value()), value })
    }
}

impl Iterator for Chunks {
    type Item = SnapshotChunk;

    fn next(&mut self) -> Option<SnapshotChunk> {
        let mut records = Vec::new();
        let mut bytes = 0;
        while bytes < SNAPSHOT_CHUNK_BYTES
            && let Some(record) = self.head.take()
        {
            bytes += record.key.len() + record.value.len();
            records.push(record);
            self.head = self.read();
        }
        if records.is_empty() {
            return None;
        }
        let checksum = checksum(&records);
        let ordinal = self.ordinal;
        self.ordinal += 1;
        Some(SnapshotChunk { ordinal, records, checksum, last: self.head.is_none() })
    }
}

fn checksum(records: &[Record]) -> u64 {
    chunk_checksum(records.iter().map(|record| (record.key.as_ref(), record.value.as_ref())))
}

/// A snapshot that is being received. Dropped before it is finished, it removes its file.
pub struct SnapshotWriter {
    folder: PathBuf,
    path: PathBuf,
    manifest: Manifest,
    position: (u64, u64),
    /// None once it is finished.
    open: Option<(StateFile, WriteTransaction)>,
    last_key: Option<Bytes>,
    records: u64,
    bytes: u64,
    ordinal: u64,
    complete: bool,
}

impl std::fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("path", &self.path)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

impl SnapshotWriter {
    /// Begins the file of a generation. `position` is the index and term that the snapshot must hold.
    ///
    /// # Errors
    /// When the format is not ours, or the file cannot be made.
    pub fn create(
        root: &Path,
        shard: ShardId,
        generation: u64,
        position: (u64, u64),
        manifest: Manifest,
    ) -> Result<Self, StorageError> {
        check_format(&manifest)?;
        let (path, backend) = create_file(root, shard, generation)?;
        Self::create_on(&path, shard, generation, position, manifest, backend)
    }

    /// [`Self::create`] on another backend; `path` is the file that goes away when this is dropped.
    ///
    /// # Errors
    /// See there.
    pub fn create_on(
        path: &Path,
        shard: ShardId,
        generation: u64,
        position: (u64, u64),
        manifest: Manifest,
        backend: impl StorageBackend,
    ) -> Result<Self, StorageError> {
        check_format(&manifest)?;
        let path = path.to_owned();
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        let mut writer = Self {
            folder,
            path,
            manifest,
            position,
            open: None,
            last_key: None,
            records: 0,
            bytes: 0,
            ordinal: 0,
            complete: false,
        };
        let file = StateFile::open(shard, generation, &writer.path, backend, WRITER_CACHE_BYTES)?;
        let write = file.begin_write().map_err(|error| writer.failed(&error))?;
        writer.open = Some((file, write));
        Ok(writer)
    }

    /// Takes the next chunk. After an error the whole must be sent again.
    ///
    /// # Errors
    /// When it is not the next one, is damaged, or cannot be written.
    pub fn write(&mut self, chunk: &SnapshotChunk) -> Result<(), StorageError> {
        if self.complete || chunk.ordinal != self.ordinal {
            return Err(StorageError(format!(
                "chunk {} came where {} was due",
                chunk.ordinal, self.ordinal
            )));
        }
        if checksum(&chunk.records) != chunk.checksum {
            return Err(StorageError(format!("chunk {} is damaged", chunk.ordinal)));
        }
        for record in &chunk.records {
            if self.last_key.as_ref().is_some_and(|last| *last >= record.key) {
                return Err(StorageError(format!("chunk {} is out of order", chunk.ordinal)));
            }
            self.last_key = Some(record.key.clone());
            self.bytes += (record.key.len() + record.value.len()) as u64;
        }
        self.insert(&chunk.records).map_err(|error| self.failed(&error))?;
        self.records += chunk.records.len() as u64;
        self.ordinal += 1;
        self.complete = chunk.last;
        if self.records > self.manifest.records || self.bytes > self.manifest.bytes {
            return Err(StorageError("the snapshot holds more than its manifest says".to_owned()));
        }
        Ok(())
    }

    fn insert(&self, records: &[Record]) -> Result<(), redb::Error> {
        let Some((file, write)) = &self.open else { return Ok(()) };
        let mut table = write.open_table(RECORDS)?;
        let mut buffer = Vec::new();
        for record in records {
            encode_record(file.shard, &record.key, &record.value, &mut buffer);
            table.insert(record.key.as_ref(), buffer.as_slice())?;
        }
        Ok(())
    }

    /// Checks the whole against its manifest, and makes file and directory durable.
    ///
    /// # Errors
    /// When something is missing or differs; the file is removed.
    pub fn finish(mut self) -> Result<(), StorageError> {
        if !self.complete
            || self.records != self.manifest.records
            || self.bytes != self.manifest.bytes
        {
            return Err(StorageError(format!(
                "the snapshot holds {} records with {} bytes, and its manifest says {} with {}",
                self.records, self.bytes, self.manifest.records, self.manifest.bytes
            )));
        }
        self.check_progress()?;
        if let Some((file, write)) = self.open.take() {
            let committed =
                write_facts(&write, file.shard, self.bytes).and_then(|()| Ok(write.commit()?));
            committed.map_err(|error| {
                self.remove();
                self.failed(&error)
            })?;
        }
        durable::sync_directory(&self.folder)
            .map_err(|error| StorageError::io("sync", &self.folder, &error))
    }

    fn check_progress(&self) -> Result<(), StorageError> {
        let key = progress_key();
        let progress = match &self.open {
            Some((file, write)) => {
                let stored =
                    write.open_table(RECORDS).map_err(|error| self.failed(&error.into()))?;
                let stored =
                    stored.get(key.as_ref()).map_err(|error| self.failed(&error.into()))?;
                stored.and_then(|stored| Progress::decode(file.verified(&key, stored.value())).ok())
            }
            None => None,
        };
        let found = progress.map(|progress| (progress.index, progress.term, progress.chain));
        if found == Some((self.position.0, self.position.1, self.manifest.chain)) {
            return Ok(());
        }
        Err(StorageError(format!(
            "the snapshot is not of entry {} of term {}",
            self.position.0, self.position.1
        )))
    }

    fn failed(&self, error: &redb::Error) -> StorageError {
        StorageError(format!("cannot write the snapshot {}: {error}", self.path.display()))
    }

    fn remove(&self) {
        // A file that stays is removed by the next start: the log does not name it.
        std::fs::remove_file(&self.path).ok();
    }
}

fn check_format(manifest: &Manifest) -> Result<(), StorageError> {
    if manifest.format == STATE_FORMAT {
        return Ok(());
    }
    Err(StorageError(format!(
        "the snapshot has format {}, and this node knows {STATE_FORMAT}",
        manifest.format
    )))
}

/// Pages of a snapshot are written once and not read again.
const WRITER_CACHE_BYTES: usize = 8 << 20;

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if let Some((file, write)) = self.open.take() {
            drop(write);
            drop(file);
            self.remove();
        }
    }
}
