//! The state of a shard: in memory, or in the real state file of the server on a simulated disk.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use redb::StorageBackend;
use trefoil_core::key::Kind;
use trefoil_core::machine::Machine;
use trefoil_core::replica::Boot;
use trefoil_core::store::{MemoryStore, Store};
use trefoil_core::{META_SHARD, ShardId};
use trefoil_proto::internal::v1::Progress;
use trefoil_server::storage::checkpoint::{Checkpoint, Written};
use trefoil_server::storage::snapshot::SnapshotReader;
use trefoil_server::storage::{StateStore, Unusable};

use super::options::DiskOptions;
use super::volume::{FileId, Volume};
use crate::rng::Rng;

/// Directory of the state files.
pub const DIRECTORY: &str = "state";
/// Memory for the pages of one file: all of them.
const CACHE_BYTES: usize = 8 << 20;
/// Bytes of a part of a scrub.
const SCRUB_BYTES: u64 = 64 << 10;
/// Bits that turn over in a file at once.
const FLIPS_MAX: u64 = 32;
/// Room that a checkpoint wants beside what it writes.
const SPARE_BYTES: u64 = 1 << 20;

/// The state of a shard at an index.
#[derive(Clone, Debug)]
pub struct Image {
    /// The records.
    pub store: MemoryStore,
    /// How far they are.
    pub progress: Progress,
}

impl Image {
    /// The state with which every shard is born.
    #[must_use]
    pub fn newborn(request_client_idle_ms: u64) -> Self {
        let mut store = MemoryStore::default();
        Machine::bootstrap_forgetful(&mut store, request_client_idle_ms);
        let progress = *Machine::open(&store, META_SHARD, 1).progress();
        Self { store, progress }
    }

    /// Index and term of the last entry that it has.
    #[must_use]
    pub fn at(&self) -> (u64, u64) {
        (self.progress.index, self.progress.term)
    }

    /// As it is sent to another node.
    #[must_use]
    pub fn to_send(mut self: Rc<Self>) -> Rc<Self> {
        if trefoil_core::mutant!(DedupOnlyHere) {
            let of_requests = [Kind::RequestClient as u8, Kind::RequestAnswer as u8];
            let image = Rc::make_mut(&mut self);
            image.store.records.retain(|key, _| !of_requests.contains(&key[2]));
        }
        self
    }
}

/// What a machine is applied to.
#[derive(Debug)]
pub enum MachineStore {
    /// In memory; its checkpoints are copies.
    Memory(MemoryStore),
    /// Under changes in memory, in a file.
    File(Box<StateStore>),
}

impl Store for MachineStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        match self {
            Self::Memory(store) => store.get(key),
            Self::File(store) => store.get(key),
        }
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
        match self {
            Self::Memory(store) => store.scan(start, end, limit),
            Self::File(store) => store.scan(start, end, limit),
        }
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        match self {
            Self::Memory(store) => store.put(key, value),
            Self::File(store) => store.put(key, value),
        }
    }

    fn delete(&mut self, key: &[u8]) {
        match self {
            Self::Memory(store) => store.delete(key),
            Self::File(store) => store.delete(key),
        }
    }
}

/// A checkpoint that is being written.
#[derive(Debug)]
pub enum CheckpointJob {
    /// A copy, durable at once when it is done.
    Memory(Rc<Image>),
    /// A transaction of the state file.
    File(Box<Checkpoint>),
}

/// A file on a simulated disk, as redb sees it.
#[derive(Debug)]
struct Backend {
    volume: Volume,
    id: FileId,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.volume.len(self.id))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.volume.read(self.id, offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.volume.set_len(self.id, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.volume.sync(self.id)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.volume.write(self.id, offset, data)
    }
}

/// The state files of a node.
#[derive(Clone, Debug)]
pub enum StateFiles {
    /// Copies by shard and generation.
    Memory(BTreeMap<(ShardId, u64), Rc<Image>>),
    /// Real state files on the node's disk.
    Real,
}

fn name(shard: ShardId, generation: u64) -> String {
    format!("{DIRECTORY}/{shard}-{generation}")
}

fn open(volume: &Volume, shard: ShardId, generation: u64) -> Result<StateStore, String> {
    let name = name(shard, generation);
    let id = volume.open(&name).ok_or_else(|| format!("{name} is missing"))?;
    open_at(volume, (shard, generation), id, &name)
}

fn open_at(
    volume: &Volume,
    (shard, generation): (ShardId, u64),
    id: FileId,
    name: &str,
) -> Result<StateStore, String> {
    let backend = Backend { volume: volume.clone(), id };
    // The path is a name in messages: there is nothing below it.
    let store = StateStore::open_on(shard, generation, Path::new(name), backend, CACHE_BYTES);
    store.map_err(|unusable| match unusable {
        Unusable::Damaged(damaged) => damaged.unwind(),
        Unusable::Refused(refusal) => refusal.to_string(),
    })
}

fn write(volume: &Volume, shard: ShardId, generation: u64, image: &Image) -> Result<(), String> {
    let name = name(shard, generation);
    let mut store = open_at(volume, (shard, generation), volume.create(&name), &name)?;
    for (key, value) in &image.store.records {
        store.put(key.clone(), value.clone());
    }
    let checkpoint = store.freeze().ok_or("an image has records")?;
    checkpoint.write_in_place(None).map_err(|error| error.to_string())?;
    volume.sync_directory(DIRECTORY);
    Ok(())
}

impl StateFiles {
    /// The files of a new node.
    ///
    /// # Panics
    /// When the disk of a node that is being set up fails.
    #[must_use]
    pub fn new(
        volume: &Volume,
        shards: impl Iterator<Item = ShardId>,
        options: DiskOptions,
    ) -> Self {
        let newborn = Rc::new(Image::newborn(options.request_client_idle_ms));
        if options.real_state {
            for shard in shards {
                write(volume, shard, 0, &newborn).expect("a new disk works");
            }
            return Self::Real;
        }
        Self::Memory(shards.map(|shard| ((shard, 0), Rc::clone(&newborn))).collect())
    }

    /// Opens the state that the log names, and fills in what it knows of the start.
    ///
    /// # Errors
    /// When it does not fit the log.
    pub fn open(
        &self,
        volume: &Volume,
        shard: ShardId,
        generation: u64,
        boot: &mut Boot,
    ) -> Result<MachineStore, String> {
        match self {
            Self::Memory(files) => {
                let image = files.get(&(shard, generation)).ok_or("the state is missing")?;
                boot.applied = image.at();
                boot.log_time_ms = image.progress.log_time_ms;
                boot.wall_ms = image.progress.wall_ms;
                boot.next_due_ms = Machine::next_due_ms(&image.store);
                Ok(MachineStore::Memory(image.store.clone()))
            }
            Self::Real => {
                let store = open(volume, shard, generation)?;
                store.complete(boot).map_err(|error| error.to_string())?;
                scrub(&store);
                // Damage that no checksum shows, shows here.
                Machine::open(&store, META_SHARD, 1).check(&store)?;
                Ok(MachineStore::File(Box::new(store)))
            }
        }
    }

    /// Begins a checkpoint; none when there is nothing to write.
    pub fn begin(&self, store: &mut MachineStore, machine: &mut Machine) -> Option<CheckpointJob> {
        machine.freeze(store);
        match store {
            MachineStore::Memory(store) => {
                let image = Image { store: store.clone(), progress: *machine.progress() };
                Some(CheckpointJob::Memory(Rc::new(image)))
            }
            MachineStore::File(store) => {
                store.freeze().map(|job| CheckpointJob::File(Box::new(job)))
            }
        }
    }

    /// Whether there is room for a checkpoint.
    #[must_use]
    pub fn has_room(&self, volume: &Volume, store: &MachineStore) -> bool {
        match store {
            MachineStore::Memory(_) => true,
            MachineStore::File(store) => volume.room() >= 8 * store.overlay_bytes() + SPARE_BYTES,
        }
    }

    /// Writes a checkpoint. `now` is how far the machine is by then.
    ///
    /// # Errors
    /// When there is no room.
    pub fn run(
        &mut self,
        shard: ShardId,
        generation: u64,
        job: &CheckpointJob,
        now: &Progress,
    ) -> io::Result<(u64, Option<Written>)> {
        match (self, job) {
            (Self::Memory(files), CheckpointJob::Memory(image)) => {
                let mut image = Rc::clone(image);
                if trefoil_core::mutant!(AppliedIndexFirst) {
                    Rc::make_mut(&mut image).name(now);
                }
                let index = image.progress.index;
                files.insert((shard, generation), image);
                Ok((index, None))
            }
            (_, CheckpointJob::File(job)) => {
                let written = job.write_in_place(None)?;
                Ok((written.index, Some(written)))
            }
            (Self::Real, CheckpointJob::Memory(_)) => unreachable!("a node has one kind of state"),
        }
    }

    /// A snapshot of the last checkpoint.
    #[must_use]
    pub fn snapshot(&self, shard: ShardId, generation: u64, store: &MachineStore) -> Rc<Image> {
        match (self, store) {
            (_, MachineStore::File(store)) => Rc::new(read(store)),
            (Self::Memory(files), MachineStore::Memory(_)) => {
                Rc::clone(&files[&(shard, generation)])
            }
            (Self::Real, MachineStore::Memory(_)) => unreachable!("a node has one kind of state"),
        }
    }

    /// A received snapshot becomes a file of its own.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn receive(
        &mut self,
        volume: &Volume,
        shard: ShardId,
        generation: u64,
        image: Rc<Image>,
    ) -> Result<(), String> {
        match self {
            Self::Memory(files) => {
                files.insert((shard, generation), image);
                Ok(())
            }
            Self::Real => write(volume, shard, generation, &image).inspect_err(|_| {
                volume.remove(&name(shard, generation));
            }),
        }
    }

    /// Bits of a file turn over; says whether there is a file.
    pub fn flip(&self, volume: &Volume, rng: &mut Rng, shard: ShardId, generation: u64) -> bool {
        let flips = rng.between_doublings(1, FLIPS_MAX);
        let name = name(shard, generation);
        matches!(self, Self::Real) && (0..flips).all(|_| volume.flip_in(rng, &name, 0).is_some())
    }

    /// A record is again what it was long ago; says whether this kind of state can lose a write.
    pub fn lose_write(&mut self, shard: ShardId, generation: u64) -> bool {
        let Self::Memory(files) = self else { return false };
        let Some(image) = files.get_mut(&(shard, generation)) else { return false };
        // Of no service, so that no answer depends on it: only a digest can tell.
        let key = Bytes::from_static(&[0, 0, 0xee, 1]);
        Rc::make_mut(image).store.put(key, Bytes::from_static(b"old"));
        true
    }

    /// Removes a file.
    pub fn remove(&mut self, volume: &Volume, shard: ShardId, generation: u64) {
        match self {
            Self::Memory(files) => drop(files.remove(&(shard, generation))),
            Self::Real => {
                volume.remove(&name(shard, generation));
                volume.sync_directory(DIRECTORY);
            }
        }
    }

    /// Removes all files of a shard but one.
    pub fn remove_others(&mut self, volume: &Volume, shard: ShardId, keep: u64) {
        match self {
            Self::Memory(files) => files.retain(|file, _| file.0 != shard || file.1 == keep),
            Self::Real => {
                let (own, kept) = (format!("{DIRECTORY}/{shard}-"), name(shard, keep));
                for name in volume.list(DIRECTORY) {
                    if name.starts_with(&own) && name != kept {
                        volume.remove(&name);
                    }
                }
                volume.sync_directory(DIRECTORY);
            }
        }
    }
}

impl Image {
    /// Says another index than the records have.
    fn name(&mut self, progress: &Progress) {
        use prost::Message as _;
        let key = trefoil_core::key::Key::system(Kind::Progress);
        self.store.put(key.into(), progress.encode_to_vec().into());
        self.progress = *progress;
    }
}

/// Looks at all of a file, in parts; damage unwinds.
fn scrub(store: &StateStore) {
    let mut last = None;
    loop {
        let part = store.file().scrub(last.as_ref(), SCRUB_BYTES);
        last = part.unwrap_or_else(|damaged| damaged.unwind()).last;
        if last.is_none() {
            return;
        }
    }
}

/// Reads the last checkpoint of a file through its snapshot.
fn read(store: &StateStore) -> Image {
    let mut records = MemoryStore::default();
    for chunk in SnapshotReader::open(store.file()).chunks() {
        for record in chunk.records {
            records.put(record.key, record.value);
        }
    }
    let progress = *Machine::open(&records, META_SHARD, 1).progress();
    Image { store: records, progress }
}
