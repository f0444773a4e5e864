//! How far a simulated log is known to be synced: two checksummed slots, as in the real `log.mark`.

use std::io;

use xxhash_rust::xxh3::xxh3_64;

use super::volume::{FileId, Volume};

const NAME: &str = "log.mark";
const SLOTS: [u64; 2] = [0, 4096];
const WORDS: usize = 7;

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentOffset {
    /// Number of the segment.
    pub segment: u64,
    /// Offset in it.
    pub offset: u64,
}

/// What of the log must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMark {
    /// The first segment.
    pub first: u64,
    /// The end of what was synced.
    pub end: SegmentOffset,
    /// Which run of the machine wrote it.
    pub boot: u64,
    /// A tail was cut off and the shards were not told yet.
    pub uncertain: bool,
}

/// The file.
#[derive(Debug)]
pub struct MarkFile {
    volume: Volume,
    id: FileId,
    mark: LogMark,
    synced: LogMark,
    counter: u64,
    /// The slot that is written; the other holds what was synced last.
    slot: usize,
}

impl MarkFile {
    /// Makes the mark of an empty log.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn create(volume: &Volume, boot: u64) -> io::Result<Self> {
        let mark = LogMark { first: 1, end: SegmentOffset::default(), boot, uncertain: false };
        let id = volume.create(NAME);
        volume.set_len(id, SLOTS[1] + 8 * WORDS as u64)?;
        let mut file = Self { volume: volume.clone(), id, mark, synced: mark, counter: 0, slot: 0 };
        file.write()?;
        volume.sync(id)?;
        file.slot = 1;
        Ok(file)
    }

    /// Opens the mark, and says what it held.
    ///
    /// # Errors
    /// When neither slot is whole.
    pub fn open(volume: &Volume, boot: u64) -> io::Result<(Self, LogMark)> {
        let id = volume.open(NAME).ok_or_else(|| io::Error::other("there is no mark"))?;
        let mut newest = None;
        for (slot, offset) in SLOTS.into_iter().enumerate() {
            let mut bytes = [0; 8 * WORDS];
            volume.read(id, offset, &mut bytes)?;
            newest = newest.max(decode(&bytes).map(|(counter, words)| (counter, slot, words)));
        }
        let (counter, slot, [first, segment, offset, boot_then, uncertain]) =
            newest.ok_or_else(|| io::Error::other("no slot of the mark is whole"))?;
        let end = SegmentOffset { segment, offset };
        let found = LogMark { first, end, boot: boot_then, uncertain: uncertain != 0 };
        let mark = LogMark { boot, ..found };
        let file =
            Self { volume: volume.clone(), id, mark, synced: found, counter, slot: 1 - slot };
        Ok((file, found))
    }

    /// Says which run of the machine this is, so that a kill from now on is not taken for a loss of power.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn note_boot(&mut self) -> io::Result<()> {
        self.write()
    }

    /// Moves the mark to the end of what was just synced.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn advance(&mut self, end: SegmentOffset) -> io::Result<()> {
        if end <= self.mark.end {
            return Ok(());
        }
        self.mark.end = end;
        self.write()
    }

    /// Says, durably, that segments before this one are not needed.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget(&mut self, first: u64) -> io::Result<()> {
        self.mark.first = first;
        self.write()?;
        self.sync()
    }

    /// Says, durably, whether a tail was cut off.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn set_uncertain(&mut self, uncertain: bool) -> io::Result<()> {
        self.mark.uncertain = uncertain;
        self.write()?;
        self.sync()
    }

    /// Makes the mark durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.mark == self.synced {
            return Ok(());
        }
        self.volume.sync(self.id)?;
        self.synced = self.mark;
        self.slot = 1 - self.slot;
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.counter += 1;
        let LogMark { first, end, boot, uncertain } = self.mark;
        let words = [self.counter, first, end.segment, end.offset, boot, u64::from(uncertain)];
        let mut bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        self.volume.write(self.id, SLOTS[self.slot], &bytes)
    }
}

fn decode(bytes: &[u8]) -> Option<(u64, [u64; WORDS - 2])> {
    let (words, sum) = bytes.split_last_chunk::<8>()?;
    if xxh3_64(words) != u64::from_le_bytes(*sum) {
        return None;
    }
    let word =
        |n: usize| words[8 * n..].first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word));
    (word(0) > 0).then(|| (word(0), std::array::from_fn(|n| word(n + 1))))
}
