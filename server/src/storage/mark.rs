//! How far the Raft log is known to be synced.
//!
//! raft-engine cuts a bad tail off while it opens, before anyone can tell a torn write from rot. So each sync of a
//! log file writes its end into one of two checksummed slots of `log.mark`; whoever cuts below it destroys what was
//! acknowledged. The mark itself is synced at least every 100 ms, by [`DurableMark::sync`]: after a loss of power it may be
//! that old, while after a mere kill it is exact, which the boot id tells apart.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use xxhash_rust::xxh3::xxh3_64;

use super::durable;

/// The slots lie in pages of their own, so that writing one cannot tear the other.
const SLOT_OFFSETS: [u64; 2] = [0, 4096];
const WORDS: usize = 11;
const SLOT_BYTES: usize = WORDS * 8;
/// "TREFMRK" and the version of the slot.
const MAGIC: u64 = 0x5452_4546_4d52_4b01;

/// One of raft-engine's two queues of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogQueue {
    /// What is written first.
    Append = 0,
    /// What is still needed of files that are to be removed.
    Rewrite = 1,
}

/// A place in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogOffset {
    /// Number of the file, from 1; 0 is before all.
    pub file: u64,
    /// Offset in it.
    pub offset: u64,
}

/// What of a queue must be on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first file; those before it were removed.
    pub first: u64,
    /// The end of what was synced.
    pub end: LogOffset,
}

/// What of the log must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// By [`LogQueue`].
    pub spans: [Span; 2],
    /// Which run of the machine wrote it; 0 when that is not known.
    pub boot: u64,
    /// A tail was cut off after a loss of power, and the shards were not yet told.
    pub uncertain: bool,
}

/// The file `log.mark`.
#[derive(Debug)]
pub struct DurableMark {
    state: Mutex<MarkState>,
}

#[derive(Debug)]
struct MarkState {
    file: std::fs::File,
    mark: Mark,
    /// What is known to be on disk.
    synced: Mark,
    /// Rises with each slot written.
    counter: u64,
    /// The slot that is written; the other holds what was synced last and is left alone.
    slot: usize,
}

impl DurableMark {
    /// Makes the mark of an empty log; `boot` names this run of the machine. The caller syncs the directory.
    ///
    /// # Errors
    /// When it cannot be written, or is there.
    pub fn create(path: &Path, boot: u64) -> std::io::Result<Self> {
        let file = durable::open_file(path, true)?;
        let mark = Mark {
            spans: [Span { first: 1, end: LogOffset::default() }; 2],
            boot,
            uncertain: false,
        };
        let mut state = MarkState { file, mark, synced: mark, counter: 0, slot: 0 };
        state.write()?;
        state.sync()?;
        Ok(Self { state: Mutex::new(state) })
    }

    /// Opens the mark, and says what it held; `boot` names this run of the machine.
    ///
    /// # Errors
    /// NotFound when there is none, InvalidData when neither slot is whole.
    pub fn open(path: &Path, boot: u64) -> std::io::Result<(Self, Mark)> {
        let file = durable::open_file(path, false)?;
        let slots = SLOT_OFFSETS.map(|offset| read_slot(&file, offset));
        let newest = (0..2)
            .filter_map(|slot| slots[slot].map(|(counter, mark)| (counter, slot, mark)))
            .max_by_key(|s| s.0);
        let (counter, slot, found) = newest.ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, "no slot is whole")
        })?;
        let mark = Mark { boot, ..found };
        let state = MarkState { file, mark, synced: found, counter, slot: 1 - slot };
        Ok((Self { state: Mutex::new(state) }, found))
    }

    /// Says which run of the machine this is, so that a kill from now on is not taken for a loss of power. To be called
    /// once the end of the log was judged.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_boot(&self) -> std::io::Result<()> {
        self.lock().write()
    }

    /// Moves the mark to the end of what was just synced.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn advance(&self, queue: LogQueue, end: LogOffset) -> std::io::Result<()> {
        let mut state = self.lock();
        let span = &mut state.mark.spans[queue as usize];
        if end <= span.end {
            return Ok(());
        }
        span.end = end;
        state.write()
    }

    /// Says, durably, that a file is no longer needed; only then it may be removed.
    ///
    /// # Errors
    /// When it cannot be written or synced.
    pub fn forget(&self, queue: LogQueue, file: u64) -> std::io::Result<()> {
        let mut state = self.lock();
        let span = &mut state.mark.spans[queue as usize];
        span.first = span.first.max(file + 1);
        if state.synced.spans[queue as usize].first > file {
            return Ok(());
        }
        state.write()?;
        state.sync()
    }

    /// Says, durably, whether a tail was cut off that may have been acknowledged.
    ///
    /// # Errors
    /// When it cannot be written or synced.
    pub fn set_uncertain(&self, uncertain: bool) -> std::io::Result<()> {
        let mut state = self.lock();
        state.mark.uncertain = uncertain;
        state.write()?;
        state.sync()
    }

    /// Makes the mark durable.
    ///
    /// # Errors
    /// When it cannot be synced.
    pub fn sync(&self) -> std::io::Result<()> {
        self.lock().sync()
    }

    /// The mark as it is now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.lock().mark
    }

    fn lock(&self) -> MutexGuard<'_, MarkState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl MarkState {
    fn write(&mut self) -> std::io::Result<()> {
        self.counter += 1;
        self.file.write_all_at(&encode(self.counter, &self.mark), SLOT_OFFSETS[self.slot])
    }

    fn sync(&mut self) -> std::io::Result<()> {
        if self.synced == self.mark && self.counter > 1 {
            return Ok(());
        }
        self.file.sync_data()?;
        self.synced = self.mark;
        self.slot = 1 - self.slot;
        Ok(())
    }
}

fn encode(counter: u64, mark: &Mark) -> [u8; SLOT_BYTES] {
    let [append, rewrite] = mark.spans;
    let words = [
        MAGIC,
        counter,
        mark.boot,
        u64::from(mark.uncertain),
        append.first,
        append.end.file,
        append.end.offset,
        rewrite.first,
        rewrite.end.file,
        rewrite.end.offset,
    ];
    let mut bytes = [0; SLOT_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let checksum = xxh3_64(&bytes[..SLOT_BYTES - 8]);
    bytes[SLOT_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn read_slot(file: &std::fs::File, offset: u64) -> Option<(u64, Mark)> {
    let mut bytes = [0; SLOT_BYTES];
    file.read_exact_at(&mut bytes, offset).ok()?;
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().ok()?);
    }
    let [
        magic,
        counter,
        boot,
        uncertain,
        a_first,
        a_file,
        a_offset,
        r_first,
        r_file,
        r_offset,
        checksum,
    ] = words;
    if magic != MAGIC || checksum != xxh3_64(&bytes[..SLOT_BYTES - 8]) {
        return None;
    }
    let append = Span { first: a_first, end: LogOffset { file: a_file, offset: a_offset } };
    let rewrite = Span { first: r_first, end: LogOffset { file: r_file, offset: r_offset } };
    Some((counter, Mark { spans: [append, rewrite], boot, uncertain: uncertain != 0 }))
}

/// Names this run of the machine; 0 where the kernel does not say.
pub fn boot_id() -> u64 {
    std::fs::read("/proc/sys/kernel/random/boot_id").map_or(0, |id| xxh3_64(&id))
}
