//! A disk below a state file that remembers every step, so that a test can lose its power after each of them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use trefoil_server::storage::blocks::GROUP;

use super::Random;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
const BLOCK: usize = 4096;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, Vec<u8>),
    Resize(usize),
    Sync,
}

/// What a loss of power leaves of that which was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tear {
    /// Anything, in part or whole.
    Random,
    /// Blocks whose checksums did not arrive.
    BlocksOnly,
    /// Checksums whose blocks did not arrive.
    SumsOnly,
    /// Checksums in part, and all blocks.
    SumsTorn,
}

impl Tear {
    pub(crate) const ALL: [Self; 4] =
        [Self::Random, Self::BlocksOnly, Self::SumsOnly, Self::SumsTorn];
}

/// Whether a write is one of checksums.
fn is_sums(offset: usize) -> bool {
    let group = usize::try_from(GROUP).unwrap() + 1;
    offset >= BLOCK && (offset / BLOCK - 1).is_multiple_of(group)
}

#[derive(Debug, Default)]
struct Disk {
    kernel: Vec<u8>,
    steps: Vec<Step>,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lossy(Arc<Mutex<Disk>>);

fn perform(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, data) => super::resize_and_write(bytes, *offset, data),
        Step::Resize(len) => bytes.resize(*len, 0),
        Step::Sync => {}
    }
}

/// Some of what was not synced arrives.
fn arrive(bytes: &mut Vec<u8>, step: &Step, tear: Tear, random: &mut Random) {
    match (step, tear) {
        (Step::Write(offset, _), Tear::BlocksOnly) if is_sums(*offset) => {}
        (Step::Write(offset, _), Tear::SumsOnly) if !is_sums(*offset) => {}
        (Step::Write(offset, data), Tear::SumsTorn) if is_sums(*offset) => {
            for (n, sector) in data.chunks(SECTOR).enumerate() {
                if random.below(2) == 0 {
                    perform(bytes, &Step::Write(offset + n * SECTOR, sector.to_vec()));
                }
            }
        }
        (step, Tear::Random) => match (step, random.below(3)) {
            (_, 0) => {}
            (Step::Write(offset, data), 1) => {
                let kept = random.below(data.len() / SECTOR + 1) * SECTOR;
                perform(bytes, &Step::Write(*offset, data[..kept].to_vec()));
            }
            (step, _) => perform(bytes, step),
        },
        (step, _) => perform(bytes, step),
    }
}

impl Lossy {
    /// A disk with these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(Disk { kernel: bytes.to_vec(), steps: Vec::new() })))
    }

    /// Changes what the disk has, and nobody is told.
    pub(crate) fn rot(&self, change: impl Fn(&mut [u8])) {
        change(&mut self.lock().kernel);
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    fn step(&self, step: Step) {
        let mut disk = self.lock();
        perform(&mut disk.kernel, &step);
        disk.steps.push(step);
    }

    /// Number of writes, resizes and syncs so far.
    pub(crate) fn steps(&self) -> usize {
        self.lock().steps.len()
    }

    /// The disk as it would be after a loss of power now, had nothing arrived that was not synced.
    pub(crate) fn durable(&self) -> Vec<u8> {
        let mut durable = Vec::new();
        self.each_step(|_, bytes, _| durable.clone_from(bytes));
        durable
    }

    /// Loses power after each step of some, in one way: `check` sees the number of steps before, and the disk.
    pub(crate) fn each_crash(&self, tear: Tear, mut check: impl FnMut(usize, &[u8])) {
        self.each_step(|steps, durable, pending| {
            let mut random = Random(steps as u64);
            let mut bytes = durable.clone();
            for step in pending {
                arrive(&mut bytes, step, tear, &mut random);
            }
            check(steps, &bytes);
        });
    }

    fn each_step(&self, mut see: impl FnMut(usize, &Vec<u8>, &[Step])) {
        let disk = self.lock();
        let (mut durable, mut pending) = (Vec::new(), Vec::new());
        for (n, step) in disk.steps.iter().enumerate() {
            if matches!(step, Step::Sync) {
                pending.drain(..).for_each(|step| perform(&mut durable, &step));
            } else {
                pending.push(step.clone());
            }
            see(n + 1, &durable, &pending);
        }
    }
}

impl StorageBackend for Lossy {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().kernel.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.lock();
        let offset = usize::try_from(offset).unwrap();
        let found =
            disk.kernel.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(Step::Resize(usize::try_from(len).unwrap()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step(Step::Write(usize::try_from(offset).unwrap(), data.to_vec()));
        Ok(())
    }
}

/// A disk with these bytes.
pub(crate) fn memory_of(bytes: &[u8]) -> InMemoryBackend {
    let backend = InMemoryBackend::new();
    backend.set_len(bytes.len() as u64).unwrap();
    backend.write(0, bytes).unwrap();
    backend
}
