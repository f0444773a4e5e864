//! Checksums for every block that is read back from a state file, below redb.
//!
//! Block 0 is redb's header. Behind it come groups: a block of checksums, then the [`GROUP`] blocks that they are of.
//! A checksum is XXH3 of the block, seeded with shard, generation and number, so that neither a block that was
//! written to another place nor one of another file passes. Each read is verified; a block that fails is a
//! [`Damage`], and stays one.
//!
//! **Torn is not rotten.** Checksums are written before the sync that covers their blocks, and a crash may tear the
//! one from the other: then blocks that were in flight fail. No committed root leads to them, because redb writes no
//! block that a committed root shows, and makes a root the committed one (a second sync later) only when all that it
//! shows was synced together with its checksums. A block of checksums that is torn itself holds for each block
//! the old checksum or the new one, and for blocks that a committed root shows these are the same.
//!
//! **The header** is the one block that is written in place. redb believes much of it unseen: a flipped bit turns it
//! to the older of its two roots whose pages may be in use again (primary bit), shifts every page (region header
//! pages), or gives it another end (region counts); its own checksums cover the two slots alone. So all that redb
//! writes there goes, with a seal over it, into one sector, which a disk writes whole or not at all. A header that
//! does not fit its seal is damage.
//!
//! What is not seen here is a write that never reached the disk: the old block and its old checksum fit.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use redb::StorageBackend;
use trefoil_core::ShardId;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::records::STATE_FORMAT;

/// Bytes of a block: a page of redb.
const BLOCK: usize = 4096;
const BLOCK_BYTES: u64 = BLOCK as u64;
const SUM_BYTES: usize = size_of::<u64>();
/// Checksums that fill a block.
const SUMS: usize = BLOCK / SUM_BYTES;
/// Blocks whose checksums fill a block.
pub const GROUP: u64 = SUMS as u64;
/// Groups whose checksums stay in memory: 4 MiB for a file of 2 GiB.
const GROUPS_KEPT: usize = 1024;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// Where the seal of the header begins in its sector; redb's own part ends before.
const SEAL: usize = SECTOR - 32;
const SEAL_MAGIC: [u8; 8] = *b"trefoil\n";
/// How a file begins that redb made, with the layer or without it.
const REDB_MAGIC: [u8; 4] = *b"redb";

/// Bytes of a state file are not those that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its block at byte {offset} is damaged")]
pub struct Damage {
    /// Where the block begins in the file.
    pub offset: u64,
}

impl From<Damage> for io::Error {
    fn from(damage: Damage) -> Self {
        Self::new(io::ErrorKind::InvalidData, damage)
    }
}

/// What was found in one file, for all who have it open: redb names the first failed read once and then refuses
/// everything without a reason.
#[derive(Debug, Default)]
pub struct Health(OnceLock<Damage>);

impl Health {
    /// The damage that was met first.
    #[must_use]
    pub fn damage(&self) -> Option<Damage> {
        self.0.get().copied()
    }

    fn report(&self, offset: u64) -> Damage {
        *self.0.get_or_init(|| Damage { offset })
    }
}

/// Why a file is not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error(transparent)]
    Damaged(#[from] Damage),
    #[error("{0}")]
    Foreign(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Checksums of one group as they are or will be on disk.
#[derive(Debug)]
struct SumGroup {
    sums: Box<[u64; SUMS]>,
    dirty: bool,
}

#[derive(Debug, Default)]
struct Sums {
    groups: BTreeMap<u64, SumGroup>,
    /// Where the search for the next one to drop begins.
    hand: u64,
}

/// A backend whose blocks have checksums. Clones are the same file.
#[derive(Debug)]
pub(super) struct Blocks<B> {
    inner: Arc<B>,
    shard: ShardId,
    generation: u64,
    seed: u64,
    sums: Arc<Mutex<Sums>>,
    health: Arc<Health>,
}

impl<B> Clone for Blocks<B> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            sums: Arc::clone(&self.sums),
            health: Arc::clone(&self.health),
            ..*self
        }
    }
}

/// A run of blocks within one group.
struct Run {
    /// First block, not counting the header.
    first: u64,
    /// Where its bytes are among those of the whole.
    bytes: std::ops::Range<usize>,
}

/// Number of the block of checksums of a group.
fn sums_block(group: u64) -> u64 {
    1 + group * (GROUP + 1)
}

/// Number in the file of a block that redb counts without the header.
fn file_block(block: u64) -> u64 {
    sums_block(block / GROUP) + 1 + block % GROUP
}

/// Bytes of the file for so many bytes of redb's.
fn file_len(len: u64) -> u64 {
    let blocks = len.div_ceil(BLOCK_BYTES);
    let own = blocks.saturating_sub(1);
    (blocks + own.div_ceil(GROUP)) * BLOCK_BYTES
}

/// Bytes of redb's for a file of so many; none where no file of ours is so long.
fn redb_len(len: u64) -> Option<u64> {
    let own = (len / BLOCK_BYTES).saturating_sub(1);
    let found = len - own.div_ceil(GROUP + 1) * BLOCK_BYTES;
    (file_len(found) == len).then_some(found)
}

/// Cuts what redb reads or writes at once into runs.
fn runs(offset: u64, len: usize) -> impl Iterator<Item = Run> {
    let mut next = offset / BLOCK_BYTES - 1;
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = ((len - at) / BLOCK) as u64;
        let blocks = left.min(GROUP - next % GROUP);
        let bytes = usize::try_from(blocks).ok()? * BLOCK;
        let run = Run { first: next, bytes: at..at + bytes };
        next += blocks;
        at += bytes;
        (blocks > 0).then_some(run)
    })
}

fn is_whole_blocks(offset: u64, len: usize) -> bool {
    offset >= BLOCK_BYTES && offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK)
}

fn uneven(offset: u64, len: usize) -> io::Error {
    let sentence = format!("{len} bytes at {offset} are neither a header nor blocks");
    io::Error::new(io::ErrorKind::InvalidInput, sentence)
}

impl<B: StorageBackend> Blocks<B> {
    /// Lays the checksums over a file: an empty one becomes one of ours.
    pub(super) fn open(inner: B, shard: ShardId, generation: u64) -> Result<Self, Unfit> {
        let mut name = [0; 16];
        name[..4].copy_from_slice(&shard.to_le_bytes());
        name[8..].copy_from_slice(&generation.to_le_bytes());
        let (sums, health) = (Arc::default(), Arc::default());
        let seed = xxh3_64(&name);
        let blocks = Self { inner: Arc::new(inner), shard, generation, seed, sums, health };
        if blocks.inner.len()? > 0 {
            blocks.check_header()?;
        }
        Ok(blocks)
    }

    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sum(&self, block: u64, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.seed.wrapping_add(block))
    }

    // === The header ===

    fn check_header(&self) -> Result<(), Unfit> {
        if self.inner.len()? < SECTOR as u64 {
            return Err(self.health.report(0).into());
        }
        let mut sector = [0; SECTOR];
        self.inner.read(0, &mut sector)?;
        if sector.starts_with(&REDB_MAGIC) && sector[SEAL..].iter().all(|byte| *byte == 0) {
            return Err(Unfit::Foreign(format!(
                "it has format 1, and this release knows {STATE_FORMAT}"
            )));
        }
        let (sealed, sum) = sector.split_at(SECTOR - SUM_BYTES);
        if sum != xxh3_64(sealed).to_le_bytes() && !trefoil_core::mutant!(UnverifiedBlock) {
            return Err(self.health.report(0).into());
        }
        let own = self.seal();
        if sealed[SEAL..] == own {
            return Ok(());
        }
        let number = |at: usize| {
            u32::from_le_bytes([sealed[at], sealed[at + 1], sealed[at + 2], sealed[at + 3]])
        };
        Err(Unfit::Foreign(format!(
            "it holds shard {} in format {} and generation {}, not shard {} in format {STATE_FORMAT} and generation {}",
            number(SEAL + 12),
            number(SEAL + 8),
            number(SEAL + 16),
            self.shard,
            self.generation
        )))
    }

    /// What the sector says behind redb's part, but for the checksum.
    fn seal(&self) -> [u8; SECTOR - SUM_BYTES - SEAL] {
        let mut seal = [0; SECTOR - SUM_BYTES - SEAL];
        seal[..8].copy_from_slice(&SEAL_MAGIC);
        seal[8..12].copy_from_slice(&STATE_FORMAT.to_le_bytes());
        seal[12..16].copy_from_slice(&self.shard.to_le_bytes());
        seal[16..].copy_from_slice(&self.generation.to_le_bytes());
        seal
    }

    fn read_header(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check_header().map_err(|unfit| match unfit {
            Unfit::Damaged(damage) => damage.into(),
            Unfit::Foreign(sentence) => io::Error::new(io::ErrorKind::InvalidData, sentence),
            Unfit::Io(error) => error,
        })?;
        self.inner.read(offset, out)
    }

    fn write_header(&self, data: &[u8]) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        sector[..data.len()].copy_from_slice(data);
        let (sealed, sum) = sector.split_at_mut(SECTOR - SUM_BYTES);
        sealed[SEAL..].copy_from_slice(&self.seal());
        sum.copy_from_slice(&xxh3_64(sealed).to_le_bytes());
        self.inner.write(0, &sector)
    }

    // === The checksums ===

    /// The checksums of a group, from memory or from the file.
    fn group<'a>(&self, sums: &'a mut Sums, number: u64) -> io::Result<&'a mut SumGroup> {
        if !sums.groups.contains_key(&number) {
            sums.make_room();
            let mut bytes = [0; BLOCK];
            self.inner.read(sums_block(number) * BLOCK_BYTES, &mut bytes)?;
            let mut group = SumGroup { sums: Box::new([0; SUMS]), dirty: false };
            let (found, _) = bytes.as_chunks::<SUM_BYTES>();
            for (sum, bytes) in group.sums.iter_mut().zip(found) {
                *sum = u64::from_le_bytes(*bytes);
            }
            sums.groups.insert(number, group);
        }
        sums.groups.get_mut(&number).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn verify(&self, block: u64, bytes: &[u8]) -> io::Result<()> {
        let found = self.sum(block, bytes);
        let mut sums = self.lock();
        let group = self.group(&mut sums, block / GROUP)?;
        if group.sums[within(block)] == found || trefoil_core::mutant!(UnverifiedBlock) {
            return Ok(());
        }
        Err(self.health.report(file_block(block) * BLOCK_BYTES).into())
    }

    /// Writes the checksums that changed. Others may read meanwhile: what is not on disk yet stays in memory.
    fn write_sums(&self) -> io::Result<()> {
        let dirty = self.lock().dirty();
        for (number, sums) in dirty {
            let mut bytes = [0; BLOCK];
            let (to, _) = bytes.as_chunks_mut::<SUM_BYTES>();
            for (bytes, sum) in to.iter_mut().zip(sums.iter()) {
                *bytes = sum.to_le_bytes();
            }
            self.inner.write(sums_block(number) * BLOCK_BYTES, &bytes)?;
            if let Some(group) = self.lock().groups.get_mut(&number) {
                group.dirty = group.sums != sums;
            }
        }
        Ok(())
    }
}

fn within(block: u64) -> usize {
    (block % GROUP) as usize
}

impl Sums {
    fn dirty(&self) -> Vec<(u64, Box<[u64; SUMS]>)> {
        let dirty = self.groups.iter().filter(|(_, group)| group.dirty);
        dirty.map(|(number, group)| (*number, group.sums.clone())).collect()
    }

    /// Drops one that is on disk, where there are many.
    fn make_room(&mut self) {
        if self.groups.len() < GROUPS_KEPT {
            return;
        }
        let behind = self.groups.range(self.hand..).chain(self.groups.range(..self.hand));
        let clean = behind.filter(|(_, group)| !group.dirty).map(|(number, _)| *number).next();
        if let Some(number) = clean {
            self.groups.remove(&number);
            self.hand = number + 1;
        }
    }
}

impl<B: StorageBackend> StorageBackend for Blocks<B> {
    fn len(&self) -> io::Result<u64> {
        let len = self.inner.len()?;
        redb_len(len).ok_or_else(|| {
            let sentence = format!("no state file is {len} bytes long");
            io::Error::new(io::ErrorKind::InvalidData, sentence)
        })
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 <= SEAL as u64 {
            return self.read_header(offset, out);
        }
        if !is_whole_blocks(offset, out.len()) {
            return Err(uneven(offset, out.len()));
        }
        for run in runs(offset, out.len()) {
            let bytes = &mut out[run.bytes];
            self.inner.read(file_block(run.first) * BLOCK_BYTES, bytes)?;
            for (block, bytes) in (run.first..).zip(bytes.chunks_exact(BLOCK)) {
                self.verify(block, bytes)?;
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let groups = len.div_ceil(BLOCK_BYTES).saturating_sub(1).div_ceil(GROUP);
        self.lock().groups.split_off(&groups);
        self.inner.set_len(file_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.write_sums()?;
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset == 0 && data.len() <= SEAL {
            return self.write_header(data);
        }
        if !is_whole_blocks(offset, data.len()) {
            return Err(uneven(offset, data.len()));
        }
        for run in runs(offset, data.len()) {
            let bytes = &data[run.bytes];
            let found = (run.first..).zip(bytes.chunks_exact(BLOCK));
            let found = found.map(|(block, bytes)| (within(block), self.sum(block, bytes)));
            let found = found.collect::<Vec<_>>();
            {
                let mut sums = self.lock();
                let group = self.group(&mut sums, run.first / GROUP)?;
                group.dirty = true;
                for (at, sum) in found {
                    group.sums[at] = sum;
                }
            }
            self.inner.write(file_block(run.first) * BLOCK_BYTES, bytes)?;
        }
        Ok(())
    }

    super::backend::of_inner!();
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    #[test]
    fn lengths_go_there_and_back() {
        for blocks in (0..3 * GROUP + 5).chain([1 << 20, 1 << 30]) {
            let len = blocks * BLOCK_BYTES;
            let file = file_len(len);
            assert_eq!(redb_len(file), Some(len));
            if blocks > 1 {
                assert_eq!(file, (file_block(blocks - 2) + 1) * BLOCK_BYTES, "{blocks} blocks");
            }
        }
        for len in [1, 5_000, 2 * BLOCK_BYTES, file_len((GROUP + 1) * BLOCK_BYTES) + BLOCK_BYTES] {
            assert_eq!(redb_len(len), None, "{len} bytes");
        }
    }

    fn filled(len: usize, from: u64) -> Vec<u8> {
        (from..).flat_map(u64::to_le_bytes).take(len).collect()
    }

    #[test]
    fn what_was_written_across_groups_is_read_back_and_nothing_else() {
        let blocks = Blocks::open(InMemoryBackend::new(), 1, 1).unwrap();
        let len = (2 * GROUP + 9) * BLOCK_BYTES;
        blocks.set_len(len).unwrap();
        let data = filled(20 * BLOCK, 7);
        let at = (GROUP - 10) * BLOCK_BYTES;
        blocks.write(at, &data).unwrap();
        let mut out = vec![0; data.len()];
        blocks.read(at, &mut out).unwrap();
        assert_eq!(out, data);
        assert_eq!(blocks.health().damage(), None);
        let end = at + data.len() as u64;
        blocks.read(end, &mut [0; BLOCK]).unwrap_err();
        let offset = end + 2 * BLOCK_BYTES;
        assert_eq!(blocks.health().damage(), Some(Damage { offset }), "behind two of checksums");
        assert!(blocks.read(at + 1, &mut [0; BLOCK]).is_err(), "not a block");
        assert!(blocks.read(BLOCK_BYTES, &mut [0; 100]).is_err(), "not a block");
    }

    #[test]
    fn checksums_that_were_dropped_from_memory_are_read_again() {
        // Most of it is a hole.
        let file = redb::backends::FileBackend::new(tempfile::tempfile().unwrap()).unwrap();
        let blocks = Blocks::open(file, 1, 1).unwrap();
        let groups = GROUPS_KEPT as u64 + 20;
        blocks.set_len((groups * GROUP + 1) * BLOCK_BYTES).unwrap();
        let at = |group: u64| (1 + group * GROUP + group % 7) * BLOCK_BYTES;
        let data = |group: u64| filled(BLOCK, group);
        (0..groups).for_each(|group| blocks.write(at(group), &data(group)).unwrap());
        assert_eq!(blocks.lock().groups.len() as u64, groups, "none is on disk yet");
        blocks.sync_data().unwrap();
        for group in (0..groups).chain(0..groups) {
            let mut out = vec![0; BLOCK];
            blocks.read(at(group), &mut out).unwrap();
            assert_eq!(out, data(group));
        }
        let kept = blocks.lock().groups.len() as u64;
        assert!(kept <= groups, "{kept}");
        blocks.set_len(BLOCK_BYTES).unwrap();
        assert!(blocks.lock().groups.is_empty());
    }
}
