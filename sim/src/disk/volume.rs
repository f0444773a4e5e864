//! Files as bytes, of which a loss of power takes what was not synced: blocks in any order and torn within, lengths,
//! and names that a directory had not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh3::Xxh3;

use crate::rng::Rng;

/// What the kernel writes at a time.
const BLOCK: usize = 4096;
/// What a disk writes at a time.
const SECTOR: usize = 512;

/// Names a file whatever its name.
pub type FileId = u64;

/// An operation that fails once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFault {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A sync: what it should have written is lost with the power, and no later sync knows of it.
    Sync,
}

#[derive(Clone, Debug, Default)]
struct SimFile {
    /// As processes see it.
    now: Vec<u8>,
    /// As a loss of power leaves it.
    durable: Vec<u8>,
    /// Blocks that differ, as far as the kernel knows.
    dirty: BTreeSet<usize>,
    /// Whether operations on it may be made to fail.
    is_log: bool,
}

#[derive(Debug)]
struct VolumeContents {
    files: BTreeMap<FileId, SimFile>,
    names: BTreeMap<String, FileId>,
    durable_names: BTreeMap<String, FileId>,
    last_id: FileId,
    /// Bytes of all files at most.
    capacity: u64,
    fault: Option<IoFault>,
    /// Which process may write: what belongs to an older one has no effect.
    life: u32,
    /// Writes and syncs until the process is gone; none while it lives.
    fuse: Option<u64>,
    errors: u64,
}

/// The disk of a node, for one of its processes.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    inner: Arc<Mutex<VolumeContents>>,
    life: u32,
}

impl Default for VolumeContents {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            last_id: 0,
            capacity: u64::MAX,
            fault: None,
            life: 0,
            fuse: None,
            errors: 0,
        }
    }
}

fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

fn broken(what: &str) -> io::Error {
    io::Error::other(format!("{what}: an injected fault"))
}

impl Volume {
    fn lock(&self) -> MutexGuard<'_, VolumeContents> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same disk for the next process; what the last one still does has no effect.
    #[must_use]
    pub fn next_life(&self) -> Self {
        let mut inner = self.lock();
        inner.life += 1;
        inner.fuse = None;
        Self { inner: Arc::clone(&self.inner), life: inner.life }
    }

    /// Another disk with all files as processes see them.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = self.lock();
        let whole = |file: &SimFile| SimFile {
            durable: file.now.clone(),
            dirty: BTreeSet::new(),
            ..file.clone()
        };
        let mut copy = VolumeContents {
            files: inner.files.iter().map(|(id, file)| (*id, whole(file))).collect(),
            names: inner.names.clone(),
            durable_names: inner.names.clone(),
            last_id: inner.last_id,
            life: inner.life,
            errors: inner.errors,
            ..VolumeContents::default()
        };
        copy.sweep();
        Self { life: copy.life, inner: Arc::new(Mutex::new(copy)) }
    }

    /// Gives a file another name; one of that name is replaced.
    pub fn rename(&self, from: &str, to: &str) {
        let mut inner = self.lock();
        if inner.takes(self.life)
            && let Some(id) = inner.names.remove(from)
        {
            inner.names.insert(to.to_owned(), id);
            inner.sweep();
        }
    }

    /// Makes an empty file; one of that name is replaced.
    #[must_use]
    pub fn create(&self, name: &str) -> FileId {
        let mut inner = self.lock();
        inner.last_id += 1;
        let id = inner.last_id;
        let is_log = name.starts_with("log");
        inner.files.insert(id, SimFile { is_log, ..SimFile::default() });
        if inner.takes(self.life) {
            inner.names.insert(name.to_owned(), id);
        }
        id
    }

    /// The file of a name.
    #[must_use]
    pub fn open(&self, name: &str) -> Option<FileId> {
        self.lock().names.get(name).copied()
    }

    /// All names in a directory, in order.
    #[must_use]
    pub fn list(&self, directory: &str) -> Vec<String> {
        let inner = self.lock();
        inner.names.keys().filter(|name| directory_of(name) == directory).cloned().collect()
    }

    /// Removes a name.
    pub fn remove(&self, name: &str) {
        let mut inner = self.lock();
        if inner.takes(self.life) {
            inner.names.remove(name);
            inner.sweep();
        }
    }

    /// Makes the names of a directory durable.
    pub fn sync_directory(&self, directory: &str) {
        let mut inner = self.lock();
        if !inner.takes(self.life) {
            return;
        }
        let VolumeContents { names, durable_names, .. } = &mut *inner;
        durable_names.retain(|name, _| directory_of(name) != directory);
        let own = names.iter().filter(|(name, _)| directory_of(name) == directory);
        durable_names.extend(own.map(|(name, id)| (name.clone(), *id)));
        inner.sweep();
    }

    /// Bytes of a file.
    #[must_use]
    pub fn len(&self, id: FileId) -> u64 {
        self.lock().files.get(&id).map_or(0, |file| file.now.len() as u64)
    }

    /// Reads exactly so many bytes.
    ///
    /// # Errors
    /// When the disk cannot, or the file is shorter.
    pub fn read(&self, id: FileId, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.fails(id, IoFault::Read, "read")?;
        let start = usize::try_from(offset).expect("a file fits memory");
        let range = start..start.saturating_add(out.len());
        let bytes = inner.files.get(&id).and_then(|file| file.now.get(range));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// Writes; the file grows where it must.
    ///
    /// # Errors
    /// When there is no room, or the disk cannot: a part may have been written.
    pub fn write(&self, id: FileId, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.fails(id, IoFault::Write, "write")?;
        let start = usize::try_from(offset).expect("a file fits memory");
        let end = start + data.len();
        let room = inner.room();
        if !inner.burns(self.life) {
            return Ok(());
        }
        let Some(file) = inner.files.get_mut(&id) else { return Ok(()) };
        let grows = end.saturating_sub(file.now.len());
        // Whoever writes a state file has asked for room before.
        let room = if file.is_log { room } else { u64::MAX };
        let lacks = usize::try_from((grows as u64).saturating_sub(room)).expect("small");
        let data = &data[..data.len() - lacks.min(data.len())];
        let end = start + data.len();
        if end > file.now.len() {
            file.now.resize(end, 0);
        }
        file.now[start..end].copy_from_slice(data);
        if !data.is_empty() {
            file.dirty.extend(start / BLOCK..=(end - 1) / BLOCK);
        }
        if lacks > 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// Cuts or extends a file.
    ///
    /// # Errors
    /// When there is no room.
    pub fn set_len(&self, id: FileId, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        let room = inner.room();
        if !inner.burns(self.life) {
            return Ok(());
        }
        let Some(file) = inner.files.get_mut(&id) else { return Ok(()) };
        if file.is_log && len.saturating_sub(file.now.len() as u64) > room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let len = usize::try_from(len).expect("a file fits memory");
        let from = len.min(file.now.len());
        file.now.resize(len, 0);
        file.dirty.extend(from / BLOCK..=len.max(from) / BLOCK);
        Ok(())
    }

    /// Makes a file durable.
    ///
    /// # Errors
    /// When the disk cannot: then it is not known what is durable.
    pub fn sync(&self, id: FileId) -> io::Result<()> {
        let mut inner = self.lock();
        if !inner.burns(self.life) {
            return Ok(());
        }
        let failed = inner.fails(id, IoFault::Sync, "sync");
        let Some(file) = inner.files.get_mut(&id) else { return Ok(()) };
        let dirty = std::mem::take(&mut file.dirty);
        failed?;
        file.durable.resize(file.now.len(), 0);
        for block in dirty {
            copy(&mut file.durable, &file.now, block * BLOCK, BLOCK);
        }
        Ok(())
    }

    /// Hash of all that is durable.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let inner = self.lock();
        let mut hash = Xxh3::new();
        for (name, id) in &inner.durable_names {
            hash.update(name.as_bytes());
            hash.update(&inner.files[id].durable);
        }
        hash.digest()
    }

    // === What the world does ===

    /// The power is gone, with what was not synced. Says whether anything was lost.
    pub fn lose_power(&self, rng: &mut Rng) -> bool {
        let mut inner = self.lock();
        let VolumeContents { files, names, durable_names, .. } = &mut *inner;
        let mut lost = false;
        let all = names.keys().chain(durable_names.keys()).cloned().collect::<BTreeSet<_>>();
        for name in all {
            let (now, durable) = (names.get(&name).copied(), durable_names.get(&name).copied());
            if now != durable && rng.chance(500) {
                lost = true;
                let _ = match durable {
                    Some(id) => names.insert(name, id),
                    None => names.remove(&name),
                };
            }
        }
        durable_names.clone_from(names);
        for file in files.values_mut() {
            lost |= file.lose(rng);
        }
        inner.sweep();
        lost
    }

    /// One operation of a kind on the log fails.
    pub fn arm(&self, fault: Option<IoFault>) {
        self.lock().fault = fault;
    }

    /// Operations that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.lock().errors
    }

    /// The process dies after so many more writes and syncs.
    pub fn light_fuse(&self, operations: u64) {
        self.lock().fuse = Some(operations);
    }

    /// Leaves room for so many bytes; none is no limit.
    pub fn limit(&self, room: Option<u64>) {
        let mut inner = self.lock();
        inner.capacity = room.map_or(u64::MAX, |room| inner.used() + room);
    }

    /// Whether its room is bounded.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.lock().capacity != u64::MAX
    }

    /// Bytes that can still be written.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.lock().room()
    }

    /// Turns over a bit of what is durable in the files of a directory. Says in which file, and where.
    pub fn flip(&self, rng: &mut Rng, directory: &str) -> Option<(String, usize)> {
        let inner = self.lock();
        let VolumeContents { files, names, .. } = &*inner;
        let own = names.iter().filter(|(name, _)| directory_of(name) == directory);
        let own = own.filter(|(_, id)| files[id].durable.iter().any(|byte| *byte != 0));
        let own = own.map(|(name, id)| (name.clone(), *id)).collect::<Vec<_>>();
        if own.is_empty() {
            return None;
        }
        let name = rng.pick(&own).0.clone();
        drop(inner);
        self.flip_in(rng, &name, 0)
    }

    /// [`Self::flip`] in one file, at an offset or behind it.
    pub fn flip_in(&self, rng: &mut Rng, name: &str, from: u64) -> Option<(String, usize)> {
        let mut inner = self.lock();
        let id = *inner.names.get(name)?;
        let file = inner.files.get_mut(&id)?;
        let from = usize::try_from(from).expect("a file fits memory");
        // Where there is something: space that was allocated ahead says nothing.
        let bytes = file.durable.iter().enumerate().skip(from);
        let full = bytes.filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect::<Vec<_>>();
        if full.is_empty() {
            return None;
        }
        let at = *rng.pick(&full);
        let bit = 1 << rng.between(0, 7);
        file.durable[at] ^= bit;
        if let Some(byte) = file.now.get_mut(at) {
            *byte ^= bit;
        }
        Some((name.to_owned(), at))
    }
}

fn copy(to: &mut [u8], from: &[u8], start: usize, len: usize) {
    let end = (start + len).min(to.len()).min(from.len());
    if start < end {
        to[start..end].copy_from_slice(&from[start..end]);
    }
}

impl SimFile {
    fn lose(&mut self, rng: &mut Rng) -> bool {
        if self.dirty.is_empty() && self.now == self.durable {
            return false;
        }
        let mut kept = self.durable.clone();
        if self.now.len() != kept.len() && rng.chance(500) {
            kept.resize(self.now.len(), 0);
        }
        for block in std::mem::take(&mut self.dirty) {
            let fate = rng.between(0, 2);
            for sector in block * BLOCK / SECTOR..(block + 1) * BLOCK / SECTOR {
                if fate == 0 || (fate == 1 && rng.chance(500)) {
                    copy(&mut kept, &self.now, sector * SECTOR, SECTOR);
                }
            }
        }
        let lost = kept != self.now;
        self.now.clone_from(&kept);
        self.durable = kept;
        lost
    }
}

impl VolumeContents {
    fn takes(&self, life: u32) -> bool {
        self.life == life && self.fuse != Some(0)
    }

    /// Whether a write or sync of a process has an effect.
    fn burns(&mut self, life: u32) -> bool {
        let takes = self.takes(life);
        if let Some(fuse) = &mut self.fuse {
            *fuse = fuse.saturating_sub(1);
        }
        takes
    }

    fn fails(&mut self, id: FileId, fault: IoFault, what: &str) -> io::Result<()> {
        if self.fault != Some(fault) || !self.files.get(&id).is_some_and(|file| file.is_log) {
            return Ok(());
        }
        self.fault = None;
        self.errors += 1;
        Err(broken(what))
    }

    fn used(&self) -> u64 {
        self.names.values().map(|id| self.files[id].now.len() as u64).sum()
    }

    fn room(&self) -> u64 {
        if self.capacity == u64::MAX { u64::MAX } else { self.capacity.saturating_sub(self.used()) }
    }

    /// Drops files that have no name, now or after a loss of power.
    fn sweep(&mut self) {
        let Self { files, names, durable_names, .. } = self;
        let named = names.values().chain(durable_names.values()).collect::<BTreeSet<_>>();
        files.retain(|id, _| named.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(volume: &Volume, id: FileId) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(volume.len(id)).unwrap()];
        volume.read(id, 0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_loss_of_power_leaves_what_was_synced() {
        let (mut lost, mut rng) = (0, Rng::new(7));
        for _ in 0..50 {
            let volume = Volume::default();
            let id = volume.create("log/1");
            volume.write(id, 0, &[1; 3 * BLOCK]).unwrap();
            volume.sync(id).unwrap();
            volume.sync_directory("log");
            volume.write(id, BLOCK as u64, &[2; 2 * BLOCK]).unwrap();
            let late = volume.create("log/2");
            lost += u64::from(volume.lose_power(&mut rng));
            assert_eq!(volume.open("log/1"), Some(id));
            let bytes = read(&volume, id);
            assert_eq!(bytes[..BLOCK], [1; BLOCK], "what was synced is there");
            assert!(bytes[BLOCK..].iter().all(|byte| [1, 2].contains(byte)));
            assert!(volume.open("log/2").is_none_or(|id| id == late));
        }
        assert!(lost > 10, "something was lost {lost} times of 50");
    }

    #[test]
    fn a_failed_sync_proves_nothing_ever_after() {
        let volume = Volume::default();
        let id = volume.create("log/1");
        volume.sync_directory("log");
        volume.write(id, 0, &[1; 10]).unwrap();
        volume.arm(Some(IoFault::Sync));
        assert!(volume.sync(id).is_err());
        assert!(volume.sync(id).is_ok());
        assert_eq!(read(&volume, id), [1; 10], "the kernel shows it");
        volume.lose_power(&mut Rng::new(1));
        assert!(read(&volume, id).iter().all(|byte| *byte == 0), "the disk never had it");
    }

    #[test]
    fn a_full_volume_refuses_and_a_dead_process_has_no_effect() {
        let volume = Volume::default();
        let id = volume.create("log/1");
        volume.limit(Some(5));
        let full = volume.write(id, 0, &[1; 10]).unwrap_err();
        assert_eq!((full.kind(), volume.len(id)), (io::ErrorKind::StorageFull, 5));
        volume.limit(None);
        let next = volume.next_life();
        volume.write(id, 0, &[9; 10]).unwrap();
        assert_eq!(read(&next, id), [1; 5]);
    }
}
