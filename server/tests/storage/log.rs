//! The Raft log through every crash: what was acknowledged is there, or the node refuses and changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_engine::env::{DefaultFileSystem, FileSystem};
use raft_proto::eraftpb::{Entry, HardState};
use trefoil_core::replica::PersistBatch;
use trefoil_core::{BIRTH_INDEX, BIRTH_TERM, ShardId};
use trefoil_server::storage::fault::on_fault;
use trefoil_server::storage::log::LogOptions;
use trefoil_server::storage::mark;
use trefoil_server::storage::{EngineLog, LogStore, LogWrite, Recovered, StorageError};
use xxhash_rust::xxh3::xxh3_64;

use crate::support::{Fault, Images, Random, Recorder, Step, contents, restore, scratch};

const SHARDS: [ShardId; 2] = [0, 3];
const OPTIONS: LogOptions = LogOptions { file_bytes: 3_000, purge_bytes: 12_000, boot: 1 };
const AFTER_POWER_LOSS: LogOptions = LogOptions { boot: 2, ..OPTIONS };
/// Notes from here on say that the mark was synced.
const MARK_SYNCED: usize = usize::MAX;

/// What a log should hold of one shard.
#[derive(Clone, Debug, PartialEq)]
struct Shard {
    hard_state: (u64, u64, u64),
    truncated: (u64, u64),
    generation: u64,
    /// Term of each index, with length and XXH3 of its data.
    entries: BTreeMap<u64, (u64, usize, u64)>,
}

type Model = BTreeMap<ShardId, Shard>;

fn birth() -> Model {
    let shard = Shard {
        hard_state: (BIRTH_TERM, 0, BIRTH_INDEX),
        truncated: (BIRTH_INDEX, BIRTH_TERM),
        generation: 1,
        entries: BTreeMap::new(),
    };
    SHARDS.into_iter().map(|id| (id, shard.clone())).collect()
}

fn hard_state((term, vote, commit): (u64, u64, u64)) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

impl Shard {
    fn last(&self) -> (u64, u64) {
        self.entries.last_key_value().map_or(self.truncated, |(&index, &(term, ..))| (index, term))
    }

    /// Appends entries, sometimes over the last ones, as a new leader would.
    fn append(&mut self, random: &mut Random) -> PersistBatch {
        let (last, term) = self.last();
        let overwrite = if random.below(6) == 0 { random.below(3) as u64 } else { 0 };
        let first = (last + 1 - overwrite).max(self.truncated.0 + 1);
        let term = if first <= last { term + 1 } else { term };
        let mut batch = PersistBatch::default();
        for index in first..=first + random.below(4) as u64 {
            let data = vec![u8::try_from(random.below(255)).unwrap() + 1; random.below(300)];
            self.entries.retain(|&kept, _| kept < index);
            self.entries.insert(index, (term, data.len(), xxh3_64(&data)));
            let mut entry = Entry { term, index, ..Entry::default() };
            entry.data = data.into();
            batch.entries.push(entry);
        }
        if random.below(2) == 0 {
            self.hard_state = (term, 2, first - 1);
            batch.hard_state = Some(hard_state(self.hard_state));
        }
        batch
    }

    fn install(&mut self, shard: ShardId) -> LogWrite {
        let truncated = (self.last().0 + 7, self.last().1 + 1);
        self.entries.clear();
        self.truncated = truncated;
        self.generation += 1;
        self.hard_state = (truncated.1, 0, truncated.0);
        let generation = self.generation;
        LogWrite::Install { shard, hard_state: hard_state(self.hard_state), truncated, generation }
    }
}

fn open(root: &Path, options: LogOptions) -> Result<(EngineLog, Vec<Recovered>), StorageError> {
    EngineLog::open_with(root, &SHARDS, options, Arc::new(DefaultFileSystem))
}

/// What an opened log holds; the summaries for the replica must say the same as the entries.
fn read<F: FileSystem + 'static>(log: &EngineLog<F>, recovered: &[Recovered]) -> Model {
    let shards = recovered.iter().map(|recovered| {
        let boot = &recovered.boot;
        let entries =
            log.entries(recovered.shard, boot.truncated.0 + 1, boot.last_index + 1, u64::MAX);
        let mut terms = Vec::new();
        for entry in &entries {
            if terms.last().is_none_or(|&(_, term)| term != entry.term) {
                terms.push((entry.index, entry.term));
            }
        }
        assert_eq!(boot.terms, terms, "terms are those of the entries");
        assert_eq!(boot.last_index, entries.last().map_or(boot.truncated.0, |entry| entry.index));
        let entries = entries
            .into_iter()
            .map(|entry| (entry.index, (entry.term, entry.data.len(), xxh3_64(&entry.data))));
        let state = &boot.hard_state;
        let shard = Shard {
            hard_state: (state.term, state.vote, state.commit),
            truncated: boot.truncated,
            generation: recovered.generation,
            entries: entries.collect(),
        };
        (recovered.shard, shard)
    });
    shards.collect()
}

/// A run that was recorded: the log after each step of the test, and how it came there.
struct Run {
    root: tempfile::TempDir,
    models: Vec<Model>,
    steps: Vec<(Step, Vec<u8>)>,
}

fn run(seed: u64, rounds: usize) -> Run {
    let root = scratch();
    let mark = root.path().join("log.mark");
    let recorder = Recorder::new(&mark);
    let files = Arc::new(recorder.clone());
    EngineLog::create_with(root.path(), &SHARDS, OPTIONS, Arc::clone(&files)).unwrap();
    let (log, _) = EngineLog::open_with(root.path(), &SHARDS, OPTIONS, files).unwrap();
    let mut random = Random(seed);
    let mut models = vec![birth()];
    recorder.note(0);
    recorder.note(MARK_SYNCED);
    for _ in 0..rounds {
        let mut model = models.last().unwrap().clone();
        let mut acknowledged = false;
        match random.below(16) {
            0 => {
                let shard = SHARDS[random.below(2)];
                let write = model.get_mut(&shard).unwrap().install(shard);
                log.write(&[write]).unwrap();
                acknowledged = true;
            }
            1..4 => {
                let id = SHARDS[random.below(2)];
                let shard = model.get_mut(&id).unwrap();
                let to = shard.truncated.0 + random.below(shard.entries.len() + 1) as u64;
                if let Some(&(term, ..)) = shard.entries.get(&to) {
                    shard.entries.retain(|&index, _| index > to);
                    shard.truncated = (to, term);
                    // It goes with the next write, or a purge.
                    log.compact(id, to, term);
                }
            }
            4 => {
                log.sync_mark();
                recorder.note(MARK_SYNCED);
            }
            5 => drop(log.purge().unwrap()),
            _ => {
                let writes = model
                    .iter_mut()
                    .map(|(&id, shard)| LogWrite::Append(id, shard.append(&mut random)));
                log.write(&writes.collect::<Vec<_>>()).unwrap();
                acknowledged = true;
            }
        }
        models.push(model);
        if acknowledged {
            recorder.note(models.len() - 1);
        }
    }
    // What waited for the next batch goes with this one.
    log.write(&[]).unwrap();
    recorder.note(models.len() - 1);
    let steps = recorder.steps();
    drop(log);
    Run { root, models, steps }
}

impl Run {
    /// Calls with every moment: the files, the mark, the mark as it was last synced, and what was acknowledged.
    fn moments(&self, mut at: impl FnMut(&Images, &[u8], &[u8], usize)) {
        let (mut images, mut synced, mut acknowledged) = (Images::default(), None, None);
        for (step, mark) in &self.steps {
            images.step(step);
            match step {
                Step::Note(MARK_SYNCED) | Step::Delete(_) => synced = Some(mark.clone()),
                Step::Note(note) => acknowledged = Some(*note),
                _ => {}
            }
            if let (Some(synced), Some(acknowledged)) = (&synced, acknowledged) {
                at(&images, mark, synced, acknowledged);
            }
        }
    }

    fn put(&self, files: &BTreeMap<PathBuf, Vec<u8>>, mark: &[u8]) -> tempfile::TempDir {
        let root = scratch();
        restore(self.root.path(), root.path(), files);
        std::fs::write(root.path().join("log.mark"), mark).unwrap();
        root
    }

    fn check(&self, root: &Path, options: LogOptions, acknowledged: usize) -> bool {
        let (log, recovered) =
            open(root, options).expect("a crash alone never keeps a node from starting");
        let found = read(&log, &recovered);
        let allowed = &self.models[acknowledged..];
        assert!(
            allowed.contains(&found),
            "found {found:?}\nacknowledged {:?}\nlatest {:?}",
            allowed[0],
            allowed.last()
        );
        let uncertain = recovered.iter().any(|shard| shard.boot.uncertain);
        assert_eq!(uncertain, options.boot != OPTIONS.boot && !log.cuts().is_empty());
        uncertain
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed_anywhere() {
    let run = run(1, 120);
    let mut random = Random(2);
    run.moments(|images, mark, _, acknowledged| {
        for torn in [0, 1 + random.below(200)] {
            let root = run.put(&images.killed(torn), mark);
            assert!(!run.check(root.path(), OPTIONS, acknowledged), "a kill leaves no doubt");
        }
    });
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes_anywhere() {
    let run = run(3, 120);
    let mut random = Random(4);
    let mut doubts = 0;
    run.moments(|images, mark, synced, acknowledged| {
        for mark in [mark, synced] {
            let root = run.put(&images.power_lost(&mut random), mark);
            doubts += u32::from(run.check(root.path(), AFTER_POWER_LOSS, acknowledged));
        }
    });
    assert!(doubts > 0, "some tails were torn");
}

#[test]
fn what_a_killed_process_did_not_sync_is_durable_before_anything_rests_on_it() {
    let run = run(7, 60);
    run.moments(|images, mark, _, _| {
        let root = run.put(&images.killed(0), mark);
        let recorder = Recorder::new(&root.path().join("log.mark"));
        let (log, recovered) =
            EngineLog::open_with(root.path(), &SHARDS, OPTIONS, Arc::new(recorder.clone()))
                .unwrap();
        let found = read(&log, &recovered);
        let mark = std::fs::read(root.path().join("log.mark")).unwrap();
        // Nothing was written since, so nobody asked for a sync; then the power goes.
        let mut images = images.moved(run.root.path(), root.path());
        for (step, _) in recorder.steps() {
            images.step(&step);
        }
        drop(log);
        let again = scratch();
        restore(root.path(), again.path(), &images.durable());
        std::fs::write(again.path().join("log.mark"), mark).unwrap();
        let (log, recovered) = open(again.path(), AFTER_POWER_LOSS).unwrap();
        assert_eq!(read(&log, &recovered), found);
    });
}

#[test]
fn purging_moves_what_is_needed_and_removes_files() {
    let run = run(5, 400);
    let removed = run.steps.iter().filter(|(step, _)| matches!(step, Step::Delete(_))).count();
    assert!(removed > 3, "{removed} files were removed");
    let (log, recovered) = open(run.root.path(), OPTIONS).unwrap();
    assert_eq!(&read(&log, &recovered), run.models.last().unwrap());
}

/// A log with a mark that is some batches old, as after a loss of power.
fn old_mark() -> (tempfile::TempDir, Model) {
    let root = scratch();
    let files = Arc::new(DefaultFileSystem);
    let options = LogOptions { file_bytes: 1 << 20, purge_bytes: 8 << 20, ..OPTIONS };
    EngineLog::create_with(root.path(), &SHARDS, options, Arc::clone(&files)).unwrap();
    let (log, _) = EngineLog::open_with(root.path(), &SHARDS, options, files).unwrap();
    let (mut model, mut random) = (birth(), Random(6));
    let mut mark = Vec::new();
    for round in 0..9 {
        let writes =
            model.iter_mut().map(|(&id, shard)| LogWrite::Append(id, shard.append(&mut random)));
        log.write(&writes.collect::<Vec<_>>()).unwrap();
        if round == 6 {
            log.sync_mark();
            mark = std::fs::read(root.path().join("log.mark")).unwrap();
        }
    }
    drop(log);
    std::fs::write(root.path().join("log.mark"), mark).unwrap();
    (root, model)
}

fn log_file(root: &Path) -> PathBuf {
    root.join("log/0000000000000001.raftlog")
}

fn marked_offset(root: &Path) -> usize {
    let probe = scratch();
    restore(root, probe.path(), &contents(root));
    let (log, _) = open(probe.path(), OPTIONS).unwrap();
    usize::try_from(log.mark().spans[0].end.offset).unwrap()
}

/// Opens what must be refused, and sees that nothing changed.
fn assert_refused(root: &Path, what: &str) {
    let before = contents(root);
    let Err(StorageError(sentence)) = open(root, AFTER_POWER_LOSS) else {
        panic!("{what} was not refused")
    };
    assert!(sentence.contains(root.to_str().unwrap()) && !sentence.contains('\n'), "{sentence}");
    assert!(before == contents(root), "{what} was refused and yet something changed");
}

#[test]
fn a_log_cut_at_any_byte_boots_above_the_mark_and_is_refused_below() {
    let (root, model) = old_mark();
    let marked = marked_offset(root.path());
    let whole = contents(root.path());
    let bytes = &whole[&log_file(root.path())];
    let (mut booted, mut doubts) = (0, 0);
    for end in marked.saturating_sub(300)..=bytes.len() {
        let cut = scratch();
        restore(root.path(), cut.path(), &whole);
        std::fs::write(log_file(cut.path()), &bytes[..end]).unwrap();
        if end < marked {
            assert_refused(cut.path(), &format!("a log cut at {end} of {marked}"));
            continue;
        }
        let (log, recovered) = open(cut.path(), AFTER_POWER_LOSS).unwrap();
        booted += 1;
        doubts += u32::from(recovered[0].boot.uncertain);
        for (id, shard) in read(&log, &recovered) {
            assert!(
                shard.last().0 <= model[&id].last().0 + 4,
                "shard {id} holds nothing that was never written"
            );
        }
    }
    assert!(booted > 200 && doubts > 200 && doubts < booted, "{booted} booted, {doubts} in doubt");
}

#[test]
fn a_flipped_bit_below_the_mark_is_refused_and_nothing_changes() {
    let (root, _) = old_mark();
    let marked = marked_offset(root.path());
    let whole = contents(root.path());
    let intact = {
        let (log, recovered) = open(root.path(), AFTER_POWER_LOSS).unwrap();
        read(&log, &recovered)
    };
    let mut harmless = Vec::new();
    for offset in 0..marked {
        let rotten = scratch();
        restore(root.path(), rotten.path(), &whole);
        let mut bytes = whole[&log_file(root.path())].clone();
        bytes[offset] ^= 1 << (offset % 8);
        std::fs::write(log_file(rotten.path()), bytes).unwrap();
        let before = contents(rotten.path());
        match open(rotten.path(), AFTER_POWER_LOSS) {
            Err(_) => assert!(
                before == contents(rotten.path()),
                "refused at {offset} and yet something changed"
            ),
            Ok((log, recovered)) => {
                assert_eq!(
                    read(&log, &recovered),
                    intact,
                    "a bit at {offset} changed what the log holds"
                );
                harmless.push(offset);
            }
        }
    }
    assert!(harmless.len() <= 8, "bits without a meaning: {harmless:?}");
}

#[test]
fn missing_files_are_refused() {
    let run = run(7, 120);
    let files = contents(run.root.path());
    let mut refused = 0;
    let mark = open(run.root.path(), OPTIONS).unwrap().0.mark();
    for path in files.keys() {
        let probe = scratch();
        restore(run.root.path(), probe.path(), &files);
        let gone = probe.path().join(path.strip_prefix(run.root.path()).unwrap());
        std::fs::remove_file(&gone).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let needed = name == "log.mark" || name.ends_with(".raftlog") || mark.spans[1].end.file > 0;
        if needed {
            assert_refused(probe.path(), name);
            refused += 1;
        }
    }
    assert!(refused > 3, "{refused} missing files were refused");
}

#[test]
fn a_doubt_outlives_restarts_until_it_is_lifted() {
    let (root, _) = old_mark();
    let path = log_file(root.path());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    for boot in [2, 2, 3] {
        let (log, recovered) = open(root.path(), LogOptions { boot, ..OPTIONS }).unwrap();
        assert!(recovered.iter().all(|shard| shard.boot.uncertain));
        log.trust(99);
        log.write(&[]).unwrap();
    }
    let (log, _) = open(root.path(), OPTIONS).unwrap();
    log.trust(SHARDS[1]);
    log.write(&[]).unwrap();
    drop(log);
    let (_, recovered) = open(root.path(), OPTIONS).unwrap();
    assert_eq!(
        recovered.iter().map(|shard| shard.boot.uncertain).collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn a_kill_after_a_loss_of_power_is_no_loss_of_power() {
    let root = scratch();
    EngineLog::create_with(root.path(), &SHARDS, OPTIONS, Arc::new(DefaultFileSystem)).unwrap();
    drop(open(root.path(), AFTER_POWER_LOSS).unwrap());
    // Killed while it wrote for the first time since.
    let file = log_file(root.path());
    let mut bytes = std::fs::read(&file).unwrap();
    let end = marked_offset(root.path());
    bytes.resize(bytes.len().max(end + 100), 0);
    bytes[end..end + 100].fill(7);
    std::fs::write(&file, bytes).unwrap();
    let (log, recovered) = open(root.path(), AFTER_POWER_LOSS).unwrap();
    assert!(!log.cuts().is_empty());
    assert!(recovered.iter().all(|shard| !shard.boot.uncertain));
}

#[test]
fn a_vote_is_below_the_durable_mark_before_it_is_told() {
    let root = scratch();
    let files = Arc::new(DefaultFileSystem);
    EngineLog::create_with(root.path(), &SHARDS, OPTIONS, files).unwrap();
    let (log, _) = open(root.path(), OPTIONS).unwrap();
    let vote = |term, vote, commit| {
        let hard_state = Some(hard_state((term, vote, commit)));
        LogWrite::Append(SHARDS[1], PersistBatch { hard_state, ..PersistBatch::default() })
    };
    let mut ends = Vec::new();
    for write in [vote(7, 2, 10), vote(7, 2, 11), vote(8, 0, 11), vote(8, 3, 11), vote(8, 3, 12)] {
        log.write(&[write]).unwrap();
        ends.push(log.mark().spans[0].end);
    }
    // What the power took: the slot that was written after the last sync.
    let path = root.path().join("log.mark");
    let mut bytes = std::fs::read(&path).unwrap();
    let counter = |at: usize| u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
    let newest = if counter(0) > counter(4096) { 0 } else { 4096 };
    bytes[newest..newest + 88].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let (_, synced) = mark::DurableMark::open(&path, 1).unwrap();
    assert_eq!(synced.spans[0].end, ends[3], "of {ends:?}");
}

#[test]
fn a_full_disk_refuses_a_batch_and_takes_it_later() {
    let root = scratch();
    let recorder = Recorder::new(&root.path().join("log.mark"));
    let files = Arc::new(recorder.clone());
    EngineLog::create_with(root.path(), &SHARDS, OPTIONS, Arc::clone(&files)).unwrap();
    let (log, _) = EngineLog::open_with(root.path(), &SHARDS, OPTIONS, files).unwrap();
    let (mut model, mut random) = (birth(), Random(8));
    for round in 0..30 {
        let writes =
            model.iter_mut().map(|(&id, shard)| LogWrite::Append(id, shard.append(&mut random)));
        let writes = writes.collect::<Vec<_>>();
        if round % 3 == 0 {
            recorder.set_fault(Fault::NoSpace);
            for _ in 0..3 {
                assert_eq!(log.write(&writes).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
            }
            recorder.set_fault(Fault::None);
        }
        log.write(&writes).unwrap();
    }
    let files = contents(&root.path().join("log")).len();
    assert!(files < 15, "{files} files: one for each failed attempt is too many");
    drop(log);
    let (log, recovered) = open(root.path(), OPTIONS).unwrap();
    assert_eq!(read(&log, &recovered), model);
}

#[test]
fn a_failed_sync_ends_the_process() {
    on_fault(|sentence| panic!("the process ends: {sentence}"));
    let root = scratch();
    let recorder = Recorder::new(&root.path().join("log.mark"));
    let files = Arc::new(recorder.clone());
    EngineLog::create_with(root.path(), &SHARDS, OPTIONS, Arc::clone(&files)).unwrap();
    let (log, _) = EngineLog::open_with(root.path(), &SHARDS, OPTIONS, files).unwrap();
    let mut model = birth();
    let append = model.get_mut(&0).unwrap().append(&mut Random(9));
    recorder.set_fault(Fault::SyncFails);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        log.write(&[LogWrite::Append(0, append)])
    }));
    let words = result.unwrap_err().downcast::<String>().unwrap();
    assert!(words.contains("cannot sync the log file"), "{words}");
    recorder.set_fault(Fault::None);
}

#[test]
fn entries_are_read_within_their_bounds() {
    let (root, model) = old_mark();
    let (log, recovered) = open(root.path(), OPTIONS).unwrap();
    let (first, last) = (recovered[0].boot.truncated.0 + 1, recovered[0].boot.last_index);
    let count = |first, last, bytes| log.entries(0, first, last, bytes).len() as u64;
    assert_eq!(count(first, last + 1, u64::MAX), model[&0].entries.len() as u64);
    assert_eq!(count(first, last + 100, u64::MAX), last + 1 - first, "the end is the log's");
    assert_eq!(count(first, last + 1, 0), 1, "at least one");
    assert_eq!(count(first - 1, last, u64::MAX), 0, "what was cut is not there");
    assert_eq!(count(last + 1, last + 2, u64::MAX), 0);
    assert_eq!(log.entries(42, 1, 2, 1), [], "a shard that is not there");
}
