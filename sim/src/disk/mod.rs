//! A node's disk: files as bytes ([`volume`]), the Raft log in some of them ([`log`]), state files in others
//! ([`state`]); and what a crash at this moment would leave, for the checkers.

pub mod directory;
pub mod identity;
pub mod log;
pub mod mark;
pub mod options;
pub mod shadow;
pub mod state;
pub mod volume;
pub mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::rc::Rc;

use raft_proto::eraftpb::Entry;
use trefoil_core::ShardId;
use trefoil_core::replica::Boot;
use trefoil_proto::internal::v1::Progress;
use trefoil_server::storage::{LogStore as _, LogWrite, evidence};

use self::identity::DiskIdentity;
use self::log::SimLog;
use self::options::DiskOptions;
use self::shadow::ShadowLog;
use self::state::{CheckpointJob, Image, MachineStore, StateFiles};
use self::volume::Volume;
use self::wire::LogChange;
use crate::check::Violation;
use crate::check::crash;
use crate::rng::Rng;

/// Something for the writer of the log.
#[derive(Debug)]
pub enum DiskWrite {
    /// A batch or a snapshot.
    Log(LogWrite),
    /// Entries up to an index of this term are dropped.
    Compact(ShardId, u64, u64),
    /// The doubt about the end of a shard's log is over.
    Trust(ShardId),
}

/// What a start finds of each shard; no state where that is damaged.
pub type FoundShards = BTreeMap<ShardId, (Boot, Option<MachineStore>)>;

/// How a state file is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// It is gone, or cannot be opened.
    Missing,
    /// The next read fails.
    Unreadable,
    /// Bits of it turned over, wherever.
    Flipped,
    /// A write was lost, and nothing shows it.
    Old,
}

/// The disk of a node.
#[derive(Debug)]
pub struct SimDisk {
    /// The bytes.
    pub volume: Volume,
    /// A bit of it was turned over: the node may refuse to start.
    pub rotten: bool,
    /// A bit was turned over above the mark: what was synced may be gone, and the node must doubt it.
    pub tail_rotten: bool,
    /// The power took something: the next start may doubt the end of the log.
    pub doubtful: bool,
    /// State files that are not what was written, and how.
    pub rot: BTreeMap<(ShardId, u64), Rot>,
    identity: DiskIdentity,
    options: DiskOptions,
    /// The log of the running process.
    log: Option<SimLog>,
    files: StateFiles,
    /// What a crash leaves at least.
    synced: BTreeMap<ShardId, ShadowLog>,
    /// What is being written, and may be there after a crash or not.
    flying: Vec<LogChange>,
    pending: Vec<LogChange>,
    queue: VecDeque<DiskWrite>,
    generations: u64,
    /// Counts the runs of the machine.
    boots: u64,
}

impl SimDisk {
    /// The disk of a node that has just been set up.
    #[must_use]
    pub fn new(
        incarnation: u64,
        shards: impl Iterator<Item = ShardId> + Clone,
        options: DiskOptions,
    ) -> Self {
        let volume = Volume::default();
        let identity = DiskIdentity::new(incarnation);
        identity.write(&volume);
        SimLog::create(&volume, shards.clone(), 1);
        Self {
            files: StateFiles::new(&volume, shards.clone(), options),
            volume,
            rotten: false,
            tail_rotten: false,
            doubtful: false,
            rot: BTreeMap::new(),
            identity,
            options,
            log: None,
            synced: shards.map(|shard| (shard, ShadowLog::newborn())).collect(),
            flying: Vec::new(),
            pending: Vec::new(),
            queue: VecDeque::new(),
            generations: 0,
            boots: 1,
        }
    }

    /// Opens everything for a new process: for each shard what its replica is told and its state.
    ///
    /// # Errors
    /// Why the node does not start.
    pub fn start(&mut self) -> Result<FoundShards, String> {
        let (log, found) = SimLog::open(&self.volume, self.options.segment_bytes, self.boots)?;
        let mut shards = BTreeMap::new();
        for (shard, found) in &found {
            let mut boot = found.log.boot(found.uncertain);
            let generation = found.log.generation;
            boot.damaged |= self.rot.get(&(*shard, generation)) == Some(&Rot::Missing);
            let errors = self.volume.errors();
            let files = &self.files;
            let damaged = boot.damaged;
            let open = || files.open(&self.volume, *shard, generation, &mut boot);
            let state = if damaged {
                None
            } else {
                match evidence::catch(Path::new(state::DIRECTORY), open) {
                    Ok(state) => Some(state?),
                    Err(damaged) if self.volume.errors() > errors => {
                        return Err(damaged.to_string());
                    }
                    Err(_) => None,
                }
            };
            if state.is_some() {
                // The bits were in blocks to which no root leads.
                self.rot.retain(|file, rot| file.0 != *shard || *rot != Rot::Flipped);
            } else {
                (boot.damaged, boot.applied) = (true, boot.truncated);
            }
            self.files.remove_others(&self.volume, *shard, generation);
            self.rot.retain(|file, _| file.0 != *shard || file.1 == generation);
            shards.insert(*shard, (boot, state));
        }
        self.log = Some(log);
        Ok(shards)
    }

    /// Compares what a start found with what was synced, and takes it for synced from now on. What a damaged disk should have
    /// is not known.
    pub fn compare(&mut self, shards: &FoundShards) -> Vec<Violation> {
        let flying = std::mem::take(&mut self.flying);
        let Some(log) = self.log.as_ref().filter(|_| !self.rotten) else { return Vec::new() };
        let mut maybe = self.synced.clone();
        for change in flying {
            maybe.entry(change.shard()).or_default().take(&change);
        }
        let found = log.logs();
        let mut violations = Vec::new();
        for (shard, (boot, _)) in shards {
            let (synced, maybe, found) = (&self.synced[shard], &maybe[shard], &found[shard]);
            let lost = found != synced && found != maybe;
            if self.tail_rotten && lost && boot.uncertain {
                continue;
            }
            let logs = crash::Logs { synced, maybe, found };
            violations.extend(crash::check(*shard, &logs, boot));
        }
        self.synced = found;
        self.tail_rotten = false;
        self.doubtful = false;
        violations
    }

    /// The process is gone; with the power, so is what was not synced. Says whether something was lost.
    pub fn crash(&mut self, rng: &mut Rng, power: bool) -> bool {
        self.log = None;
        self.queue.clear();
        self.pending.clear();
        self.volume = self.volume.next_life();
        let torn = !self.flying.is_empty();
        if power {
            self.boots += 1;
            let lost = self.volume.lose_power(rng);
            self.doubtful |= lost;
            return lost;
        }
        if torn && rng.chance(300) {
            self.tear(rng);
        }
        torn
    }

    /// Turns over a bit of the log above the mark, where there is something. To be called after a loss of power.
    pub fn rot_tail(&mut self, rng: &mut Rng) -> bool {
        let Ok((_, mark)) = mark::MarkFile::open(&self.volume, self.boots) else { return false };
        let Some(name) = self.volume.list(log::DIRECTORY).pop() else { return false };
        let is_marked = name.ends_with(&format!("{:08}", mark.end.segment));
        let from = if is_marked { mark.end.offset } else { 0 };
        self.tail_rotten = self.volume.flip_in(rng, &name, from).is_some();
        self.doubtful |= self.tail_rotten;
        self.tail_rotten
    }

    /// Whether the log of a shard holds nothing but the snapshot at an index.
    #[must_use]
    pub fn holds_only(&self, shard: ShardId, index: u64) -> bool {
        let log = &self.synced[&shard];
        log.truncated.0 == index && log.entries.is_empty()
    }

    /// The process died while the kernel had only a part of its last write.
    fn tear(&self, rng: &mut Rng) {
        let Some(name) = self.volume.list(log::DIRECTORY).pop() else { return };
        let Some(id) = self.volume.open(&name) else { return };
        // More than what was being written is not taken: the mark forbids it.
        let mark = mark::MarkFile::open(&self.volume, self.boots).map_or(u64::MAX, |(_, mark)| {
            if name.ends_with(&format!("{:08}", mark.end.segment)) { mark.end.offset } else { 0 }
        });
        let len = self.volume.len(id);
        if mark < len {
            self.volume.set_len(id, rng.between(mark, len)).expect("a shorter file needs no room");
        }
    }

    // === The log ===

    fn log(&self) -> &SimLog {
        self.log.as_ref().expect("the process runs")
    }

    /// Something waits to be written.
    pub fn enqueue(&mut self, write: DiskWrite) {
        self.queue.push_back(write);
    }

    /// Writes what waits, up to the next cut of a log; what was written is returned, and durable after
    /// [`Self::finish`].
    ///
    /// # Errors
    /// StorageFull when nothing was written; any other ends the process.
    pub fn begin(&mut self) -> io::Result<Vec<LogWrite>> {
        let mut writes = Vec::new();
        while let Some(write) = self.queue.pop_front() {
            match write {
                DiskWrite::Log(write) => writes.push(write),
                cut @ DiskWrite::Compact(..) if !writes.is_empty() => {
                    self.queue.push_front(cut);
                    break;
                }
                DiskWrite::Compact(shard, to, term) => {
                    self.log().compact(shard, to, term);
                    self.pending.push(LogChange::Compact(shard, to, term));
                }
                DiskWrite::Trust(shard) => self.log().trust(shard),
            }
        }
        if writes.is_empty() {
            return Ok(writes);
        }
        let changes =
            self.pending.iter().cloned().chain(writes.iter().map(LogChange::of)).collect();
        if let Err(error) = self.log().begin(&writes) {
            if !trefoil_core::mutant!(GapOnFull) {
                for write in writes.into_iter().rev() {
                    self.queue.push_front(DiskWrite::Log(write));
                }
            }
            return Err(error);
        }
        self.pending.clear();
        self.flying = changes;
        Ok(writes)
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.queue.iter().any(|write| matches!(write, DiskWrite::Log(_)))
    }

    /// Whether something is being written.
    #[must_use]
    pub fn is_flying(&self) -> bool {
        !self.flying.is_empty()
    }

    /// Syncs what was written.
    ///
    /// # Errors
    /// Whatever it is, the process has to end.
    pub fn finish(&mut self) -> io::Result<()> {
        self.log().finish()?;
        for change in std::mem::take(&mut self.flying) {
            self.synced.entry(change.shard()).or_default().take(&change);
        }
        Ok(())
    }

    /// What is to be done from time to time: the mark is synced, old segments go away.
    ///
    /// # Errors
    /// Any but StorageFull ends the process.
    pub fn care(&self, purge: bool) -> io::Result<()> {
        self.log().sync_mark()?;
        if purge { self.log().purge() } else { Ok(()) }
    }

    /// Entries `first..last`, at most `max_bytes` but at least one.
    ///
    /// # Errors
    /// Whatever it is, the process has to end.
    pub fn entries(
        &self,
        shard: ShardId,
        first: u64,
        last: u64,
        max_bytes: u64,
    ) -> io::Result<Vec<Entry>> {
        self.log().read(shard, first, last, max_bytes)
    }

    /// Bad tails that were cut off at the start.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.log.as_ref().map_or(0, SimLog::cuts)
    }

    /// Whether a crash now would leave this entry.
    #[must_use]
    pub fn has_synced(&self, shard: ShardId, index: u64, term: u64) -> bool {
        self.synced[&shard].entries.get(&index).is_some_and(|entry| entry.0 == term)
    }

    /// Whether a crash now would leave everything up to an index, be it in the log or in the state.
    #[must_use]
    pub fn reaches(&self, shard: ShardId, index: u64) -> bool {
        let log = &self.synced[&shard];
        index <= log.truncated.0 || log.entries.contains_key(&index)
    }

    /// Term of an entry that a crash now would leave; none where the state has taken its place.
    #[must_use]
    pub fn term(&self, shard: ShardId, index: u64) -> Option<u64> {
        self.synced[&shard].entries.get(&index).map(|entry| entry.0)
    }

    // === The state ===

    /// The generation that the log names.
    #[must_use]
    pub fn generation(&self, shard: ShardId) -> u64 {
        self.synced[&shard].generation
    }

    /// Begins a checkpoint; none when there is nothing to write.
    pub fn begin_checkpoint(
        &self,
        store: &mut MachineStore,
        machine: &mut trefoil_core::machine::Machine,
    ) -> Option<CheckpointJob> {
        self.files.begin(store, machine)
    }

    /// Whether there is room for a checkpoint.
    #[must_use]
    pub fn has_room(&self, store: &MachineStore) -> bool {
        self.files.has_room(&self.volume, store)
    }

    /// Writes a checkpoint and says its index.
    ///
    /// # Errors
    /// When there is no room.
    pub fn run_checkpoint(
        &mut self,
        shard: ShardId,
        job: &CheckpointJob,
        now: &Progress,
    ) -> io::Result<(u64, Option<trefoil_server::storage::checkpoint::Written>)> {
        let generation = self.generation(shard);
        self.files.run(shard, generation, job, now)
    }

    /// A snapshot of the last checkpoint.
    #[must_use]
    pub fn snapshot(&self, shard: ShardId, store: &MachineStore) -> Rc<Image> {
        self.files.snapshot(shard, self.generation(shard), store).to_send()
    }

    /// A received snapshot is written and synced; returns its generation.
    ///
    /// # Errors
    /// When there is no room.
    pub fn receive(&mut self, shard: ShardId, image: Rc<Image>) -> Result<u64, String> {
        self.generations += 1;
        self.files.receive(&self.volume, shard, self.generations, image)?;
        Ok(self.generations)
    }

    /// The state file of a shard is not what was written from now on; says whether it could be made so.
    pub fn spoil(&mut self, rng: &mut Rng, shard: ShardId, rot: Rot) -> bool {
        let generation = self.generation(shard);
        let done = match rot {
            Rot::Old => self.files.lose_write(shard, generation),
            Rot::Flipped => self.files.flip(&self.volume, rng, shard, generation),
            Rot::Missing | Rot::Unreadable => true,
        };
        if !done {
            return false;
        }
        self.rot.insert((shard, generation), rot);
        true
    }

    /// How the state file of a shard is not what was written.
    #[must_use]
    pub fn rot_of(&self, shard: ShardId) -> Option<Rot> {
        self.rot.get(&(shard, self.generation(shard))).copied()
    }

    /// Whether the log says that the state of a shard must not be believed.
    #[must_use]
    pub fn is_damaged(&self, shard: ShardId) -> bool {
        self.synced[&shard].damaged
    }

    /// Removes a received snapshot.
    pub fn discard(&mut self, shard: ShardId, generation: u64) {
        self.files.remove(&self.volume, shard, generation);
    }

    /// Opens the installed snapshot.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn installed(&mut self, shard: ShardId) -> Result<MachineStore, String> {
        let log = &self.synced[&shard];
        let (generation, mut boot) = (log.generation, log.boot(false));
        let state = self.files.open(&self.volume, shard, generation, &mut boot)?;
        self.rot.retain(|file, _| file.0 != shard);
        self.files.remove_others(&self.volume, shard, generation);
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use raft_proto::eraftpb::HardState;
    use trefoil_core::replica::PersistBatch;

    use super::*;

    const OPTIONS: DiskOptions =
        DiskOptions { segment_bytes: 4_000, real_state: false, request_client_idle_ms: 0 };

    fn batch(first: u64, last: u64, term: u64) -> DiskWrite {
        let entry = |index| Entry { index, term, data: vec![7; 50].into(), ..Entry::default() };
        let hard_state = HardState { term, vote: 1, commit: first, ..HardState::default() };
        let entries = (first..=last).map(entry).collect();
        let batch = PersistBatch { number: first, entries, hard_state: Some(hard_state) };
        DiskWrite::Log(LogWrite::Append(1, batch))
    }

    fn write(disk: &mut SimDisk, write: DiskWrite) {
        disk.enqueue(write);
        disk.begin().unwrap();
        disk.finish().unwrap();
    }

    fn started(disk: &mut SimDisk) -> Boot {
        let mut shards = disk.start().unwrap();
        assert_eq!(disk.compare(&shards), []);
        shards.remove(&1).unwrap().0
    }

    #[test]
    fn a_crash_leaves_what_was_synced() {
        let mut rng = Rng::new(3);
        let mut uncertain = 0;
        for _ in 0..100 {
            let mut disk = SimDisk::new(1, 0..2, OPTIONS);
            started(&mut disk);
            write(&mut disk, batch(11, 40, 2));
            assert_eq!(disk.entries(1, 15, 30, u64::MAX).unwrap().len(), 15);
            disk.enqueue(batch(35, 38, 3));
            disk.begin().unwrap();
            disk.crash(&mut rng, true);
            let boot = started(&mut disk);
            assert!([(40, 2), (38, 3)].contains(&(boot.last_index, boot.hard_state.term)));
            uncertain += u32::from(boot.uncertain);
        }
        assert!(uncertain > 3, "{uncertain} of 100 lost a part of a record");
    }

    #[test]
    fn segments_are_removed_when_nothing_in_them_is_needed() {
        let mut disk = SimDisk::new(1, 0..2, OPTIONS);
        started(&mut disk);
        for n in 0..20 {
            write(&mut disk, batch(11 + 10 * n, 20 + 10 * n, 2));
        }
        let before = disk.volume.list(log::DIRECTORY).len();
        disk.enqueue(DiskWrite::Compact(1, 150, 2));
        write(&mut disk, batch(211, 211, 2));
        disk.care(true).unwrap();
        assert!(disk.volume.list(log::DIRECTORY).len() < before);
        disk.crash(&mut Rng::new(1), false);
        // The state was left behind on purpose.
        let boot = disk.start().unwrap().remove(&1).unwrap().0;
        assert_eq!((boot.truncated, boot.last_index), ((150, 2), 211));
    }

    #[test]
    fn rot_below_the_mark_is_refused() {
        let mut rng = Rng::new(5);
        for _ in 0..50 {
            let mut disk = SimDisk::new(1, 0..2, OPTIONS);
            started(&mut disk);
            write(&mut disk, batch(11, 30, 2));
            disk.care(false).unwrap();
            disk.crash(&mut rng, false);
            assert!(disk.volume.flip(&mut rng, log::DIRECTORY).is_some());
            assert!(disk.start().is_err());
        }
    }
}
