//! The Raft log of a simulated node: checksummed records in segments on a [`Volume`], with the contract of the real
//! one (`trefoil_server::storage::LogStore`).
//!
//! A record is written and then synced, so that the world can let a crash fall between the two. As in the real log a
//! mark says how far everything was synced: a bad tail above it is cut off, below it the node refuses.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protobuf::Message as _;
use raft_proto::eraftpb::Entry;
use trefoil_core::ShardId;
use trefoil_server::storage::{LogStore, LogWrite};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::mark::{LogMark, MarkFile, SegmentOffset};
use super::shadow::ShadowLog;
use super::volume::{FileId, Volume};
use super::wire::{self, ChangeReader, LogChange};

/// Bytes before the payload of a record: length and checksum.
const HEAD: usize = 4 + 8;
/// Directory of the segments.
pub const DIRECTORY: &str = "log";

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
struct StoredEntry {
    segment: u64,
    offset: u64,
    len: u32,
    checksum: u64,
}

#[derive(Debug, Default)]
struct LoggedShard {
    log: ShadowLog,
    stored: BTreeMap<u64, StoredEntry>,
    uncertain: bool,
}

#[derive(Debug)]
struct LogContents {
    volume: Volume,
    mark: MarkFile,
    segments: BTreeMap<u64, FileId>,
    /// End of the last segment.
    end: u64,
    segment_bytes: u64,
    shards: BTreeMap<ShardId, LoggedShard>,
    /// Goes with the next record.
    pending: Vec<LogChange>,
    /// What was written and is not synced.
    flying: Vec<LogChange>,
    cuts: u64,
    /// What is remembered of other members: as it was written, and as it was synced.
    memory: Vec<u8>,
    kept: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct SimLog(Mutex<LogContents>);

/// What a log holds of a shard when it is opened.
#[derive(Clone, Debug)]
pub struct FoundLog {
    /// Its entries and what goes with them.
    pub log: ShadowLog,
    /// A tail was cut off that may have been acknowledged.
    pub uncertain: bool,
}

fn name(segment: u64) -> String {
    format!("{DIRECTORY}/{segment:08}")
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix(DIRECTORY)?.strip_prefix('/')?.parse().ok()
}

/// Checksum of a record at its place, so that an old record elsewhere is none.
fn checksum(segment: u64, offset: u64, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, segment.rotate_left(40) ^ offset)
}

impl SimLog {
    /// Makes the log with which a node is born.
    ///
    /// # Panics
    /// When the disk of a node that is being set up fails.
    pub fn create(volume: &Volume, shards: impl Iterator<Item = ShardId>, boot: u64) {
        let mark = MarkFile::create(volume, boot).expect("a new disk works");
        let mut inner = LogContents {
            volume: volume.clone(),
            mark,
            segments: BTreeMap::new(),
            end: 0,
            segment_bytes: u64::MAX,
            shards: shards
                .map(|id| (id, LoggedShard { log: ShadowLog::newborn(), ..LoggedShard::default() }))
                .collect(),
            pending: Vec::new(),
            flying: Vec::new(),
            cuts: 0,
            memory: Vec::new(),
            kept: Vec::new(),
        };
        inner.begin_segment(1).and_then(|()| inner.sync()).expect("a new disk works");
        inner.mark.sync().expect("a new disk works");
        volume.sync_directory("");
    }

    /// Opens the log. `boot` names this run of the machine.
    ///
    /// # Errors
    /// When what was acknowledged is damaged or missing; nothing is changed then.
    pub fn open(
        volume: &Volume,
        segment_bytes: u64,
        boot: u64,
    ) -> Result<(Self, BTreeMap<ShardId, FoundLog>), String> {
        let (mark_file, mark) = MarkFile::open(volume, boot).map_err(|error| error.to_string())?;
        let segments =
            volume.list(DIRECTORY).iter().filter_map(|name| number(name)).collect::<Vec<_>>();
        let last = segments.iter().copied().max().unwrap_or(0).max(mark.end.segment);
        if let Some(missing) = (mark.first..=last).find(|segment| !segments.contains(segment)) {
            return Err(format!("segment {missing} is missing"));
        }
        let mut inner = LogContents {
            volume: volume.clone(),
            mark: mark_file,
            segments: (mark.first..=last)
                .map(|segment| (segment, volume.open(&name(segment)).expect("it is listed")))
                .collect(),
            end: 0,
            segment_bytes,
            shards: BTreeMap::new(),
            pending: Vec::new(),
            flying: Vec::new(),
            cuts: 0,
            memory: Vec::new(),
            kept: Vec::new(),
        };
        inner.recover(&mark, boot)?;
        let found = inner.shards.iter().map(|(id, shard)| {
            (*id, FoundLog { log: shard.log.clone(), uncertain: shard.uncertain })
        });
        let found = found.collect();
        Ok((Self(Mutex::new(inner)), found))
    }

    fn lock(&self) -> MutexGuard<'_, LogContents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all batches as one record, which is durable after [`Self::finish`].
    ///
    /// # Errors
    /// StorageFull when nothing was written; any other ends the process.
    pub fn begin(&self, writes: &[LogWrite]) -> io::Result<()> {
        let mut inner = self.lock();
        let pending = std::mem::take(&mut inner.pending);
        let changes =
            pending.iter().cloned().chain(writes.iter().map(LogChange::of)).collect::<Vec<_>>();
        if let Err(error) = inner.append(&changes) {
            inner.pending = pending;
            return Err(error);
        }
        inner.flying = changes;
        Ok(())
    }

    /// Syncs what was written.
    ///
    /// # Errors
    /// Whatever it is, the process has to end.
    pub fn finish(&self) -> io::Result<()> {
        let mut inner = self.lock();
        if !trefoil_core::mutant!(NoSync) {
            inner.sync()?;
        }
        let votes = inner.flying.iter().any(LogChange::votes);
        inner.flying.clear();
        // A vote that rots above the mark would be cut off as a torn tail.
        if votes { inner.mark.sync() } else { Ok(()) }
    }

    /// Makes the mark durable; at least every 100 ms while there are writes.
    ///
    /// # Errors
    /// Whatever it is, the process has to end.
    pub fn sync_mark(&self) -> io::Result<()> {
        self.lock().mark.sync()
    }

    /// The doubt about the end of a shard's log is over.
    pub fn trust(&self, shard: ShardId) {
        self.lock().pending.push(LogChange::Doubt(shard, false));
    }

    /// Keeps what is remembered of other members, with the next record.
    pub fn remember(&self, memory: Vec<u8>) {
        let mut inner = self.lock();
        inner.pending.retain(|change| !matches!(change, LogChange::Remember(_)));
        inner.pending.push(LogChange::Remember(memory));
    }

    /// What a crash now would leave of that.
    #[must_use]
    pub fn remembered(&self) -> Vec<u8> {
        self.lock().kept.clone()
    }

    /// Bad tails that were cut off.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.lock().cuts
    }

    /// What it holds of each shard, as values.
    #[must_use]
    pub fn logs(&self) -> BTreeMap<ShardId, ShadowLog> {
        self.lock().shards.iter().map(|(id, shard)| (*id, shard.log.clone())).collect()
    }

    /// Removes segments that hold nothing of use.
    ///
    /// # Errors
    /// StorageFull when there is no room for the mark; any other ends the process.
    pub fn purge(&self) -> io::Result<()> {
        self.lock().purge()
    }

    /// Entries of a shard, read from the disk.
    ///
    /// # Errors
    /// When they cannot be read, or are damaged.
    pub fn read(
        &self,
        shard: ShardId,
        first: u64,
        last: u64,
        max_bytes: u64,
    ) -> io::Result<Vec<Entry>> {
        self.lock().read(shard, first, last, max_bytes)
    }
}

impl LogStore for SimLog {
    fn write(&self, writes: &[LogWrite]) -> Result<(), io::Error> {
        self.begin(writes)?;
        self.finish()
    }

    fn entries(&self, shard: ShardId, first: u64, last: u64, max_bytes: u64) -> Vec<Entry> {
        self.read(shard, first, last, max_bytes).unwrap_or_else(|error| {
            trefoil_server::storage::die(format_args!("cannot read the log: {error}"))
        })
    }

    fn compact(&self, shard: ShardId, to: u64, term: u64) {
        self.lock().pending.push(LogChange::Compact(shard, to, term));
    }

    fn bytes(&self) -> u64 {
        let inner = self.lock();
        inner.segments.values().map(|id| inner.volume.len(*id)).sum()
    }
}

impl LogContents {
    fn last(&self) -> (u64, FileId) {
        self.segments.last_key_value().map_or((0, 0), |(segment, id)| (*segment, *id))
    }

    /// Appends one record, in a new segment when the last one is full.
    fn append(&mut self, changes: &[LogChange]) -> io::Result<()> {
        if self.end >= self.segment_bytes {
            let (segment, id) = self.last();
            self.volume.sync(id)?;
            self.mark.advance(SegmentOffset { segment, offset: self.end })?;
            self.begin_segment(segment + 1)?;
        }
        let (segment, start) = (self.last().0, self.end);
        for (change, places) in changes.iter().zip(self.put(changes)?) {
            self.place(segment, start, &places);
            self.take(change);
        }
        Ok(())
    }

    /// A new segment begins with what every shard has beside entries.
    fn begin_segment(&mut self, segment: u64) -> io::Result<()> {
        let id = self.volume.create(&name(segment));
        if !trefoil_core::mutant!(NoDirectorySync) {
            self.volume.sync_directory(DIRECTORY);
        }
        let end = std::mem::take(&mut self.end);
        self.segments.insert(segment, id);
        let written = self.put_bases();
        if written.is_err() {
            // As if it had never been: the next attempt begins it again.
            self.segments.remove(&segment);
            self.volume.remove(&name(segment));
            self.volume.sync_directory(DIRECTORY);
            self.end = end;
        }
        written
    }

    /// Writes what every shard has beside entries.
    fn put_bases(&mut self) -> io::Result<()> {
        let bases = self.shards.iter().map(|(id, shard)| shard.log.base(*id, shard.uncertain));
        let bases = bases.chain([LogChange::Remember(self.memory.clone())]).collect::<Vec<_>>();
        self.put(&bases).map(drop)
    }

    /// Writes a record at the end, and says where the entries of each change lie in it.
    fn put(&mut self, changes: &[LogChange]) -> io::Result<Vec<Vec<wire::PlacedEntry>>> {
        let (segment, id) = self.last();
        let mut record = vec![0; HEAD];
        let mut all = Vec::with_capacity(changes.len());
        for change in changes {
            let mut places = Vec::new();
            change.encode(&mut record, &mut places);
            all.push(places);
        }
        let len = u32::try_from(record.len() - HEAD).expect("a record is small");
        record[..4].copy_from_slice(&len.to_le_bytes());
        let sum = checksum(segment, self.end, &record[HEAD..]);
        record[4..HEAD].copy_from_slice(&sum.to_le_bytes());
        if let Err(error) = self.volume.write(id, self.end, &record) {
            if error.kind() == io::ErrorKind::StorageFull {
                // What was written of it is no record, and the next one takes its place.
                self.volume.set_len(id, self.end)?;
            }
            return Err(error);
        }
        self.end += record.len() as u64;
        Ok(all)
    }

    /// Remembers where entries of a record lie that begins at an offset of a segment.
    fn place(&mut self, segment: u64, start: u64, places: &[wire::PlacedEntry]) {
        for placed in places {
            let shard = self.shards.entry(placed.shard).or_default();
            shard.stored.split_off(&placed.index);
            let offset = start + placed.offset;
            let stored =
                StoredEntry { segment, offset, len: placed.len, checksum: placed.checksum };
            shard.stored.insert(placed.index, stored);
        }
    }

    fn take(&mut self, change: &LogChange) {
        if let LogChange::Remember(memory) = change {
            self.memory.clone_from(memory);
            return;
        }
        let shard = self.shards.entry(change.shard()).or_default();
        match change {
            LogChange::Doubt(_, uncertain) => shard.uncertain = *uncertain,
            LogChange::Base { uncertain, .. } => shard.uncertain = *uncertain,
            LogChange::Append(..)
            | LogChange::Compact(..)
            | LogChange::Install { .. }
            | LogChange::Damage(_)
            | LogChange::Rebuild(..)
            | LogChange::Remember(_)
            | LogChange::Move(..) => {}
        }
        shard.log.take(change);
        shard.stored.split_off(&(shard.log.last() + 1));
        let first = shard.log.truncated.0 + 1;
        if shard.stored.first_key_value().is_some_and(|(index, _)| *index < first) {
            shard.stored = shard.stored.split_off(&first);
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let (segment, id) = self.last();
        self.volume.sync(id)?;
        self.kept.clone_from(&self.memory);
        self.mark.advance(SegmentOffset { segment, offset: self.end })
    }

    fn recover(&mut self, mark: &LogMark, boot: u64) -> Result<(), String> {
        let last = self.last().0;
        let mut torn = false;
        for (segment, id) in self.segments.clone() {
            let mut bytes = vec![0; usize::try_from(self.volume.len(id)).expect("small")];
            self.volume.read(id, 0, &mut bytes).map_err(|error| error.to_string())?;
            self.end = 0;
            while let Some(payload) = record(&bytes, segment, self.end) {
                let (mut reader, mut places) = (ChangeReader::new(payload, HEAD), Vec::new());
                while let Some(change) = reader.change(&mut places) {
                    self.place(segment, self.end, &places);
                    places.clear();
                    self.take(&change);
                }
                self.end += (HEAD + payload.len()) as u64;
            }
            let rest = &bytes[usize::try_from(self.end).expect("small")..];
            let whole = rest.iter().all(|byte| *byte == 0);
            let short = segment == mark.end.segment && self.end < mark.end.offset;
            if (segment != last || short) && !trefoil_core::mutant!(RottenIsTorn) {
                if short || !whole {
                    return Err(format!("segment {segment} is damaged at {}", self.end));
                }
            } else if !rest.is_empty() {
                torn = !whole;
                if torn && trefoil_core::mutant!(TornRefused) {
                    return Err(format!("segment {segment} is torn at {}", self.end));
                }
                self.volume.set_len(id, self.end).map_err(|error| error.to_string())?;
            }
        }
        self.cuts += u64::from(torn);
        let doubt = (torn && mark.boot != boot) || mark.uncertain;
        self.settle(doubt, mark).map_err(|error| error.to_string())
    }

    /// The end as it was found becomes durable, before anything is said that rests on it: what the last process wrote
    /// and did not sync is in the kernel alone. A failed sync may have left it marked as clean, so it is written again.
    fn settle(&mut self, doubt: bool, mark: &LogMark) -> io::Result<()> {
        if self.end == 0 {
            // The cut took the record with which the segment began.
            self.put_bases()?;
        }
        let (segment, id) = self.last();
        let from = if mark.end.segment == segment { mark.end.offset } else { 0 };
        if self.end > from && !trefoil_core::mutant!(TailTrusted) {
            let mut tail = vec![0; usize::try_from(self.end - from).expect("small")];
            self.volume.read(id, from, &mut tail)?;
            self.volume.write(id, from, &tail)?;
        }
        if doubt {
            self.mark.set_uncertain(true)?;
            let doubts = self.shards.keys().map(|shard| LogChange::Doubt(*shard, true));
            self.append(&doubts.collect::<Vec<_>>())?;
        }
        if !trefoil_core::mutant!(TailTrusted) {
            self.volume.sync_directory(DIRECTORY);
            self.sync()?;
        }
        if doubt { self.mark.set_uncertain(false) } else { self.mark.note_boot() }
    }

    fn purge(&mut self) -> io::Result<()> {
        let needed = self
            .shards
            .values()
            .filter_map(|shard| shard.stored.first_key_value().map(|(_, stored)| stored.segment));
        // The last segment begins with all that the others say beside entries; it must be durable.
        let (last, _) = self.last();
        let needed = needed.min().unwrap_or(last).min(last);
        let old = self.segments.range(..needed).map(|(segment, _)| *segment).collect::<Vec<_>>();
        if old.is_empty() || !self.flying.is_empty() {
            return Ok(());
        }
        // A segment that was begun on a full disk may have no synced record yet.
        self.sync()?;
        self.mark.forget(needed)?;
        for segment in old {
            self.segments.remove(&segment);
            self.volume.remove(&name(segment));
        }
        self.volume.sync_directory(DIRECTORY);
        Ok(())
    }

    fn read(&self, id: ShardId, first: u64, last: u64, max_bytes: u64) -> io::Result<Vec<Entry>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let Some(shard) = self.shards.get(&id) else { return Ok(entries) };
        for (index, stored) in shard.stored.range(first..last) {
            bytes += u64::from(stored.len);
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            let mut data = vec![0; stored.len as usize];
            self.volume.read(self.segments[&stored.segment], stored.offset, &mut data)?;
            let entry = Entry::parse_from_bytes(&data).ok();
            let entry =
                entry.filter(|entry| xxh3_64(&data) == stored.checksum && entry.index == *index);
            entries.push(entry.ok_or_else(|| io::Error::other("an entry is damaged"))?);
        }
        Ok(entries)
    }
}

/// The payload of the record at an offset; none when there is no whole one.
fn record(bytes: &[u8], segment: u64, offset: u64) -> Option<&[u8]> {
    let rest = bytes.get(usize::try_from(offset).ok()?..)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let payload =
        rest.get(..u32::from_le_bytes(*len) as usize).filter(|payload| !payload.is_empty())?;
    (checksum(segment, offset, payload) == u64::from_le_bytes(*sum)).then_some(payload)
}
