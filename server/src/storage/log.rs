//! The Raft log of all shards in one raft-engine: one batch and one sync for every shard that has something to write.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protobuf::Message as _;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle as _, Permission};
use raft_engine::{
    Command, Config, Engine, Error, LogBatch, MessageExt, ReadableSize, RecoveryMode,
};
use raft_proto::eraftpb::{Entry, HardState};
use trefoil_core::limits::LOG_PURGE_BYTES;
use trefoil_core::replica::{Boot, PersistBatch};
use trefoil_core::{BIRTH_INDEX, BIRTH_TERM, ShardId};

use super::fault::{StorageError, die, is_no_space};
use super::files::{Guarded, TailGuard, check_files};
use super::mark::{self, LogOffset, LogQueue, Mark};
use super::regions::{MEMBERS_REGION, region, shard_of};
use super::{DataDirectory, LogStore, LogWrite, Recovered, durable};

/// Keys of a shard beside its entries.
const HARD_STATE: &[u8] = b"hard_state";
const TRUNCATED: &[u8] = b"truncated";
const GENERATION: &[u8] = b"generation";
/// There while the end of the shard's log may have been lost.
const UNCERTAIN: &[u8] = b"uncertain";
/// There while the state of the shard must not be believed.
const DAMAGED: &[u8] = b"damaged";

const MEMORY: &[u8] = b"memory";

/// Generation of the state file with which a shard is born.
pub const BIRTH_GENERATION: u64 = 1;

/// Bytes of entries read at once at the start.
const SCAN_BYTES: usize = 4 << 20;
/// Bytes that are written again at once at the start.
const AGAIN_BYTES: usize = 64 << 10;
/// A reader whose file was removed under it looks again, this often.
const READ_ATTEMPTS: u32 = 5;

/// Sizes of the log, and where it runs.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all files above which shards are asked to cut their log.
    pub purge_bytes: u64,
    /// Names this run of the machine: after another one the kernel may have lost what was not synced.
    pub boot: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { file_bytes: 64 << 20, purge_bytes: LOG_PURGE_BYTES, boot: mark::boot_id() }
    }
}

/// Tells raft-engine how to read an entry.
struct Wire;

impl MessageExt for Wire {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// [`LogStore`] over raft-engine.
pub struct EngineLog<F: FileSystem = DefaultFileSystem> {
    engine: Engine<Guarded<F>>,
    guard: Arc<TailGuard>,
    path: PathBuf,
    /// Goes with the next batch. Nothing is ever written without a sync: raft-engine removes the file that holds the
    /// old value of a key as soon as a new one is written, synced or not.
    pending: Mutex<Vec<PendingWrite>>,
    /// Held while a batch is written: what was pending must not come after what was written later.
    turn: Mutex<Votes>,
}

/// Term and vote that each shard wrote last.
type Votes = BTreeMap<ShardId, (u64, u64)>;

/// What can wait for the next batch.
#[derive(Clone, Debug)]
enum PendingWrite {
    /// What is remembered of other members.
    Remember(Vec<u8>),
    /// Entries of a shard up to an index, whose term is given, are not needed any more.
    Compact(ShardId, u64, u64),
    /// The end of the shard's log is known to be whole.
    Trust(ShardId),
}

impl<F: FileSystem> std::fmt::Debug for EngineLog<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineLog")
            .field("path", &self.path)
            .field("mark", &self.guard.mark().mark())
            .finish_non_exhaustive()
    }
}

impl EngineLog {
    /// Writes the log with which all shards of a new node are born; `root` is the data directory.
    ///
    /// # Errors
    /// When it cannot be written, or is there.
    pub fn create(root: &Path, shards: &[ShardId]) -> Result<(), StorageError> {
        Self::create_with(root, shards, LogOptions::default(), Arc::new(DefaultFileSystem))
    }

    /// Opens the log, and says what it holds of each shard; the parts of [`Boot`] that the state knows are empty.
    ///
    /// # Errors
    /// When acknowledged entries are damaged or missing. Nothing of them is changed on disk.
    pub fn open(root: &Path, shards: &[ShardId]) -> Result<(Self, Vec<Recovered>), StorageError> {
        Self::open_with(root, shards, LogOptions::default(), Arc::new(DefaultFileSystem))
    }
}

impl<F: FileSystem + 'static> EngineLog<F> {
    /// [`EngineLog::create`] on another file system.
    ///
    /// # Errors
    /// See there.
    pub fn create_with(
        root: &Path,
        shards: &[ShardId],
        options: LogOptions,
        files: Arc<F>,
    ) -> Result<(), StorageError> {
        let path = DataDirectory::log_path(root);
        durable::make_directory(&path).map_err(|error| StorageError::io("make", &path, &error))?;
        let mark_path = DataDirectory::mark_path(root);
        let mark = mark::DurableMark::create(&mark_path, options.boot)
            .map_err(|error| StorageError::io("make", &mark_path, &error))?;
        let log = Self::start(path, options, files, TailGuard::new(mark, false))?;
        let mut batch = LogBatch::default();
        for &shard in shards {
            let mut hard_state = HardState::default();
            hard_state.set_term(BIRTH_TERM);
            hard_state.set_commit(BIRTH_INDEX);
            put_base(&mut batch, shard, &hard_state, (BIRTH_INDEX, BIRTH_TERM), BIRTH_GENERATION);
        }
        log.engine.write(&mut batch, true).map_err(|error| {
            StorageError(format!("cannot write {}: {error}", log.path.display()))
        })?;
        log.sync_mark();
        for directory in [log.path.as_path(), root] {
            durable::sync_directory(directory)
                .map_err(|error| StorageError::io("sync", directory, &error))?;
        }
        Ok(())
    }

    /// [`EngineLog::open`] on another file system.
    ///
    /// # Errors
    /// See there.
    pub fn open_with(
        root: &Path,
        shards: &[ShardId],
        options: LogOptions,
        files: Arc<F>,
    ) -> Result<(Self, Vec<Recovered>), StorageError> {
        let path = DataDirectory::log_path(root);
        let mark_path = DataDirectory::mark_path(root);
        let (mark_file, mark) = mark::DurableMark::open(&mark_path, options.boot).map_err(|error| {
            StorageError(format!(
                "cannot use {}, which says how far the log is synced: {error}; restore it from a copy, or treat this data directory as lost, as docs/operations.md says",
                mark_path.display()
            ))
        })?;
        check_files(&path, &mark)?;
        settle(&path, &mark, &files)
            .map_err(|error| StorageError::io("write again the end of", &path, &error))?;
        // Only a loss of power can take what the kernel had.
        let power_lost = mark.boot == 0 || mark.boot != options.boot;
        let log = Self::start(path, options, files, TailGuard::new(mark_file, power_lost))?;
        if log.mark().uncertain {
            log.doubt(shards).map_err(|error| StorageError::io("write", &log.path, &error))?;
        }
        let recovered = shards.iter().map(|&shard| log.recover(shard)).collect::<Result<_, _>>()?;
        log.guard
            .mark()
            .note_boot()
            .map_err(|error| StorageError::io("write", &mark_path, &error))?;
        Ok((log, recovered))
    }

    fn start(
        path: PathBuf,
        options: LogOptions,
        files: Arc<F>,
        guard: TailGuard,
    ) -> Result<Self, StorageError> {
        let guard = Arc::new(guard);
        let dir = path
            .to_str()
            .ok_or_else(|| StorageError(format!("the path {} is not UTF-8", path.display())))?;
        let config = Config {
            dir: dir.to_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 2,
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(options.file_bytes),
            purge_threshold: ReadableSize(options.purge_bytes),
            // A recycled file ends in old batches: every kill would look like rot.
            enable_log_recycle: false,
            ..Config::default()
        };
        // raft-engine would make its lock file readable to all.
        let lock = path.join("LOCK");
        if !lock.exists() {
            durable::open_file(&lock, true)
                .map_err(|error| StorageError::io("make", &lock, &error))?;
        }
        let files = Arc::new(Guarded::new(files, Arc::clone(&guard)));
        let engine = Engine::open_with_file_system(config, files);
        let engine = engine.map_err(|error| damaged(&path, guard.refused(), &error))?;
        Ok(Self { engine, guard, path, pending: Mutex::default(), turn: Mutex::default() })
    }

    /// Moves the doubt from the mark to each shard, which loses it when it has caught up.
    fn doubt(&self, shards: &[ShardId]) -> Result<(), std::io::Error> {
        let mut batch = LogBatch::default();
        for &shard in shards {
            put(&mut batch, region(shard), UNCERTAIN, vec![1]);
        }
        self.engine.write(&mut batch, true).map_err(|error| self.no_space(error))?;
        self.guard.mark().set_uncertain(false)
    }

    /// Ends the doubt about the end of a shard's log ([`Boot::uncertain`]): it has caught up with a leader. Until
    /// then the doubt outlives restarts. It goes with the next batch: a doubt that comes back is only a delay.
    pub fn trust(&self, shard: ShardId) {
        self.pending().push(PendingWrite::Trust(shard));
    }

    /// Keeps what is remembered of other members: it goes with the next batch, see `trefoil_core::member::memory`.
    pub fn remember(&self, memory: Vec<u8>) {
        let mut pending = self.pending();
        pending.retain(|pending| !matches!(pending, PendingWrite::Remember(_)));
        pending.push(PendingWrite::Remember(memory));
    }

    /// What was remembered last; none in a new log.
    pub fn remembered(&self) -> Option<Vec<u8>> {
        self.engine.get(MEMBERS_REGION, MEMORY)
    }

    /// Places at which a bad tail was cut off when the log was opened, for the operator's log.
    #[must_use]
    pub fn cuts(&self) -> Vec<(LogQueue, LogOffset)> {
        self.guard.cuts()
    }

    /// What the log holds of a shard. Every entry is read: raft-engine itself checks only the last batch of a file.
    fn recover(&self, shard: ShardId) -> Result<Recovered, StorageError> {
        let region = region(shard);
        let missing = |what: &str| {
            StorageError(format!(
                "{} does not hold the {what} of shard {shard}: treat this data directory as lost, as docs/operations.md says",
                self.path.display()
            ))
        };
        let hard_state = self.engine.get_message::<HardState>(region, HARD_STATE).ok().flatten();
        let hard_state = hard_state.ok_or_else(|| missing("hard state"))?;
        let truncated = self.engine.get(region, TRUNCATED).and_then(|bytes| decode_pair(&bytes));
        let truncated = truncated.ok_or_else(|| missing("truncated index"))?;
        let generation = self
            .engine
            .get(region, GENERATION)
            .and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        let generation = generation.ok_or_else(|| missing("generation"))?;
        let uncertain = self.engine.get(region, UNCERTAIN).is_some();
        let damaged = self.engine.get(region, DAMAGED).is_some();
        let last_index = truncated.0;
        let mut boot =
            Boot { hard_state, truncated, last_index, uncertain, damaged, ..Boot::default() };
        if let (Some(first), Some(last)) =
            (self.engine.first_index(region), self.engine.last_index(region))
            && last > truncated.0
        {
            if first > truncated.0 + 1 {
                return Err(missing(&format!("entries {} to {}", truncated.0 + 1, first - 1)));
            }
            self.scan(shard, last, &mut boot)?;
        }
        let damage = damaged.then(|| "it was found damaged before this start".to_owned());
        Ok(Recovered { shard, boot, generation, damage })
    }

    fn scan(&self, shard: ShardId, last: u64, boot: &mut Boot) -> Result<(), StorageError> {
        let mut next = boot.truncated.0 + 1;
        let mut entries = Vec::new();
        while next <= last {
            entries.clear();
            let read = self.engine.fetch_entries_to::<Wire>(
                region(shard),
                next,
                last + 1,
                Some(SCAN_BYTES),
                &mut entries,
            );
            read.map_err(|error| damaged(&self.path, None, &error))?;
            for entry in &entries {
                if boot.terms.last().is_none_or(|&(_, term)| term != entry.term) {
                    boot.terms.push((entry.index, entry.term));
                }
                boot.log_bytes += u64::from(entry.compute_size());
            }
            next += entries.len() as u64;
        }
        boot.last_index = last;
        Ok(())
    }

    /// Makes the durable mark durable itself. To be called at least every 100 ms while there are writes, by the
    /// thread that writes.
    pub fn sync_mark(&self) {
        if let Err(error) = self.guard.mark().sync() {
            die(format_args!("cannot sync the mark of {}: {error}", self.path.display()));
        }
    }

    /// Removes files that hold nothing of use. To be called every few seconds, by any one thread. The shards that
    /// are named hold old files and must take a checkpoint and cut their log.
    ///
    /// # Errors
    /// When there is no space to move what is still needed.
    pub fn purge(&self) -> Result<Vec<ShardId>, std::io::Error> {
        self.write(&[])?;
        match self.engine.purge_expired_files() {
            Ok(regions) => Ok(regions.into_iter().filter_map(shard_of).collect()),
            Err(error) => Err(self.no_space(error)),
        }
    }

    /// The durable mark as it is now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.guard.mark().mark()
    }

    /// Passes an error on that leaves everything as it was, and ends the process for any other.
    fn no_space(&self, error: Error) -> std::io::Error {
        match error {
            Error::Io(error) if is_no_space(&error) => error,
            error => die(format_args!("cannot write {}: {error}", self.path.display())),
        }
    }

    fn pending(&self) -> MutexGuard<'_, Vec<PendingWrite>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill_pending(&self, batch: &mut LogBatch, pending: &PendingWrite) {
        match *pending {
            PendingWrite::Compact(shard, to, term) => {
                batch.add_command(region(shard), Command::Compact { index: to + 1 });
                put(batch, region(shard), TRUNCATED, encode_pair((to, term)));
            }
            PendingWrite::Trust(shard) => batch.delete(region(shard), UNCERTAIN.to_vec()),
            PendingWrite::Remember(ref memory) => {
                put(batch, MEMBERS_REGION, MEMORY, memory.clone())
            }
        }
    }

    fn fill(&self, batch: &mut LogBatch, write: &LogWrite) {
        match write {
            LogWrite::Append(shard, append) => {
                let region = region(*shard);
                batch
                    .add_entries::<Wire>(region, &append.entries)
                    .expect("a batch is far below 2 GiB");
                if let Some(hard_state) = &append.hard_state {
                    put(batch, region, HARD_STATE, encode_message(hard_state));
                }
            }
            LogWrite::Install { shard, hard_state, truncated, generation } => {
                batch.add_command(region(*shard), Command::Clean);
                put_base(batch, *shard, hard_state, *truncated, *generation);
            }
            LogWrite::Move { shard, generation } => {
                put_generation(batch, region(*shard), *generation);
            }
            LogWrite::Damage(shard) => put(batch, region(*shard), DAMAGED, vec![1]),
            LogWrite::Rebuild { shard, generation } => {
                put_generation(batch, region(*shard), *generation);
                batch.delete(region(*shard), DAMAGED.to_vec());
            }
        }
    }
}

impl<F: FileSystem + 'static> LogStore for EngineLog<F> {
    fn write(&self, writes: &[LogWrite]) -> Result<(), std::io::Error> {
        let mut votes = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = LogBatch::with_capacity(2 * writes.len());
        let pending = std::mem::take(&mut *self.pending());
        for pending in &pending {
            self.fill_pending(&mut batch, pending);
        }
        for write in writes {
            self.fill(&mut batch, write);
        }
        self.engine.write(&mut batch, true).map_err(|error| {
            let error = self.no_space(error);
            self.pending().splice(..0, pending);
            error
        })?;
        if note_votes(&mut votes, writes) {
            // A vote that rots above the mark would be cut off as a torn tail, and might be given a second time.
            self.sync_mark();
        }
        Ok(())
    }

    fn entries(&self, shard: ShardId, first: u64, last: u64, max_bytes: u64) -> Vec<Entry> {
        let region = region(shard);
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let mut attempt = 0;
        loop {
            let (Some(low), Some(high)) =
                (self.engine.first_index(region), self.engine.last_index(region))
            else {
                return Vec::new();
            };
            let last = last.min(high + 1);
            if first < low || first >= last {
                return Vec::new();
            }
            let mut entries = Vec::new();
            match self.engine.fetch_entries_to::<Wire>(
                region,
                first,
                last,
                Some(max_bytes),
                &mut entries,
            ) {
                Ok(_) => return entries,
                // The log was cut, or a file was rewritten and removed, between looking it up and reading it.
                Err(_) if attempt < READ_ATTEMPTS => attempt += 1,
                Err(error) => die(format_args!(
                    "cannot read entries {first} to {last} of shard {shard} in {}: {error}",
                    self.path.display()
                )),
            }
        }
    }

    fn compact(&self, shard: ShardId, to: u64, term: u64) {
        self.pending().push(PendingWrite::Compact(shard, to, term));
    }

    fn bytes(&self) -> u64 {
        self.engine.get_used_size() as u64
    }
}

/// Whether a vote is among the writes that its shard did not write before.
fn note_votes(votes: &mut Votes, writes: &[LogWrite]) -> bool {
    let mut is_new = false;
    for write in writes {
        if let LogWrite::Append(shard, PersistBatch { hard_state: Some(state), .. }) = write {
            let vote = (state.term, state.vote);
            is_new |= votes.insert(*shard, vote) != Some(vote) && state.vote != 0;
        }
    }
    is_new
}

fn put(batch: &mut LogBatch, region: u64, key: &[u8], value: Vec<u8>) {
    batch.put(region, key.to_vec(), value).expect("our keys are not raft-engine's own");
}

/// All that a shard has beside entries.
fn put_base(
    batch: &mut LogBatch,
    shard: ShardId,
    hard_state: &HardState,
    truncated: (u64, u64),
    generation: u64,
) {
    let region = region(shard);
    put(batch, region, HARD_STATE, encode_message(hard_state));
    put(batch, region, TRUNCATED, encode_pair(truncated));
    put_generation(batch, region, generation);
}

fn put_generation(batch: &mut LogBatch, region: u64, generation: u64) {
    put(batch, region, GENERATION, generation.to_le_bytes().to_vec());
}

fn encode_message(message: &HardState) -> Vec<u8> {
    message.write_to_bytes().expect("a hard state can be encoded")
}

fn encode_pair((index, term): (u64, u64)) -> Vec<u8> {
    [index.to_le_bytes(), term.to_le_bytes()].concat()
}

fn decode_pair(bytes: &[u8]) -> Option<(u64, u64)> {
    let (index, term) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*index), u64::from_le_bytes(term.try_into().ok()?)))
}

fn damaged(path: &Path, refused: Option<(LogQueue, LogOffset)>, error: &Error) -> StorageError {
    let (path, place) = match refused {
        Some((queue, LogOffset { file, offset })) => {
            (path.join(super::files::name(queue, file)), format!(" at offset {offset}"))
        }
        None => (path.to_owned(), String::new()),
    };
    StorageError(format!(
        "{} is damaged{place} where it was acknowledged; nothing was changed: treat this data directory as lost, as docs/operations.md says ({error})",
        path.display()
    ))
}

/// Makes durable what the last process wrote above the mark and did not sync: it is in the kernel alone, and from now
/// on the replica vouches for it. A failed sync may have left it marked as clean, so it is written again.
fn settle<F: FileSystem>(path: &Path, mark: &Mark, files: &Arc<F>) -> std::io::Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.extend(entry?.file_name().to_str().map(str::to_owned));
    }
    names.sort();
    for name in names {
        let Some((queue, file)) = super::files::parse(&name) else { continue };
        let end = mark.spans[queue as usize].end;
        if file >= end.file {
            let from = if file == end.file { end.offset } else { 0 };
            write_again(&path.join(name), from, files)?;
        }
    }
    durable::sync_directory(path)
}

/// Writes a file again from an offset on, but for the zeros at its end, and syncs it.
fn write_again<F: FileSystem>(path: &Path, from: u64, files: &Arc<F>) -> std::io::Result<()> {
    let handle = Arc::new(files.open(path, Permission::ReadWrite)?);
    let (mut reader, mut writer) =
        (files.new_reader(Arc::clone(&handle))?, files.new_writer(Arc::clone(&handle))?);
    reader.seek(SeekFrom::Start(from))?;
    let (mut at, mut buffer) = (from, vec![0; AGAIN_BYTES]);
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return handle.sync();
        }
        if let Some(last) = buffer[..read].iter().rposition(|&byte| byte != 0) {
            writer.seek(SeekFrom::Start(at))?;
            writer.write_all(&buffer[..=last])?;
        }
        at += read as u64;
    }
}
