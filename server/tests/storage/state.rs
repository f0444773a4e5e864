//! The state under its overlay: what it shows, what a crash leaves of it, and how it travels.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use redb::StorageBackend;
use redb::backends::{FileBackend, InMemoryBackend};
use trefoil_core::key::{Key, Kind};
use trefoil_core::machine::Machine;
use trefoil_core::replica::{Boot, PersistBatch};
use trefoil_core::store::{MemoryStore, Store};
use trefoil_core::{BIRTH_INDEX, BIRTH_TERM, ShardId};
use trefoil_proto::internal::v1::Progress;
use trefoil_server::storage::generations::{file_path, next_generation, remove_other_generations};
use trefoil_server::storage::log::BIRTH_GENERATION;
use trefoil_server::storage::snapshot::{SnapshotReader, SnapshotWriter};
use trefoil_server::storage::{EngineLog, LogStore as _, LogWrite, StateStore, StorageError};

use crate::support::Random;
use crate::support::lossy::{Lossy, Tear, memory_of};

const SHARD: ShardId = 3;
const CACHE_BYTES: usize = 1 << 20;

fn in_memory() -> StateStore {
    StateStore::open_on(SHARD, 1, Path::new("memory"), InMemoryBackend::new(), CACHE_BYTES).unwrap()
}

/// Puts the record that says how far the state is.
fn put_progress(store: &mut impl Store, index: u64) {
    use prost::Message as _;
    let progress = Progress { index, term: 2, chain: index * 31, ..Progress::default() };
    store.put(Key::system(Kind::Progress).into(), progress.encode_to_vec().into());
}

fn everything(store: &impl Store) -> Vec<(Bytes, Bytes)> {
    store.scan(&[], &[0xff; 8], usize::MAX)
}

fn checkpoint(store: &mut StateStore) {
    if let Some(checkpoint) = store.freeze() {
        let written = checkpoint.write_in_place(None).unwrap();
        store.finish(written);
    }
}

#[derive(Clone, Debug)]
enum Act {
    Put(u8, u8),
    Delete(u8),
    /// Deletes from one to the other.
    DeleteAll(u8, u8),
    /// Freezes, and leaves the job for later.
    Freeze,
    /// Runs the job, and leaves its end for later.
    Run,
    Finish,
    Get(u8),
    Scan(u8, u8, usize),
}

fn act() -> impl Strategy<Value = Act> {
    let key = 0..24_u8;
    prop_oneof![
        6 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Act::Put(key, value)),
        4 => key.clone().prop_map(Act::Delete),
        1 => (key.clone(), key.clone()).prop_map(|(start, end)| Act::DeleteAll(start, end)),
        1 => Just(Act::Freeze),
        1 => Just(Act::Run),
        1 => Just(Act::Finish),
        3 => key.clone().prop_map(Act::Get),
        4 => (key.clone(), key, 0..30_usize).prop_map(|(start, end, limit)| Act::Scan(start, end, limit)),
    ]
}

/// Keys of three kinds: one that is kept in order between two that are asked for whole.
fn record(n: u8) -> Bytes {
    let kind = [Kind::Partition, Kind::Ready, Kind::CacheItem][usize::from(n / 8)];
    Key::new(7, kind).tail(&[n]).into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_store_shows_what_a_map_shows(acts in proptest::collection::vec(act(), 1..300)) {
        let (mut store, mut map) = (in_memory(), MemoryStore::default());
        let (mut job, mut written) = (None, None);
        for act in acts {
            match act {
                Act::Put(key, value) => {
                    store.put(record(key), vec![value; usize::from(value % 5)].into());
                    map.put(record(key), vec![value; usize::from(value % 5)].into());
                }
                Act::Delete(key) => {
                    store.delete(&record(key));
                    map.delete(&record(key));
                }
                Act::DeleteAll(start, end) => for key in start..end {
                    store.delete(&record(key));
                    map.delete(&record(key));
                },
                Act::Freeze => job = store.freeze().or(job),
                Act::Run => if let Some(job) = job.take() {
                    written = Some(job.write_in_place(None).unwrap());
                },
                Act::Finish => if let Some(written) = written.take() {
                    store.finish(written);
                },
                Act::Get(key) => prop_assert_eq!(store.get(&record(key)), map.get(&record(key))),
                Act::Scan(start, end, limit) => {
                    prop_assert_eq!(store.scan(&record(start), &record(end), limit), map.scan(&record(start), &record(end), limit));
                }
            }
        }
        prop_assert_eq!(everything(&store), everything(&map));
    }
}

#[test]
fn overlay_bytes_return_to_nothing_after_a_checkpoint() {
    let mut store = in_memory();
    assert_eq!(store.overlay_bytes(), 0);
    assert!(store.freeze().is_none(), "nothing to write");
    store.put(Bytes::from_static(b"k"), vec![1; 1000].into());
    store.put(Bytes::from_static(b"k"), vec![1; 10].into());
    let one = store.overlay_bytes();
    assert!((11..500).contains(&one), "{one} bytes for one small record");
    let first = store.freeze().unwrap();
    store.put(Bytes::from_static(b"l"), vec![1; 10].into());
    assert_eq!(store.overlay_bytes(), 2 * one, "what is being written counts until it is there");
    assert!(store.freeze().is_none(), "one checkpoint at a time");
    let written = first.write_in_place(None).unwrap();
    store.finish(written);
    assert_eq!(store.overlay_bytes(), one);
    checkpoint(&mut store);
    assert_eq!(store.overlay_bytes(), 0);
}

/// Changes a state at random, in a few checkpoints; returns what it shows after each, with the steps of the disk by then.
fn checkpoints(lossy: &Lossy, rounds: u64) -> Vec<(usize, Vec<(Bytes, Bytes)>)> {
    let mut store =
        StateStore::open_on(SHARD, 1, Path::new("lossy"), lossy.clone(), CACHE_BYTES).unwrap();
    let mut random = Random(1);
    let mut states = vec![(lossy.steps(), Vec::new())];
    for round in 0..rounds {
        for _ in 0..60 {
            let key = Bytes::from(vec![u8::try_from(random.below(200)).unwrap()]);
            if random.below(3) == 0 {
                store.delete(&key)
            } else {
                store.put(key, vec![7; random.below(900)].into())
            }
        }
        put_progress(&mut store, round);
        checkpoint(&mut store);
        states.push((lossy.steps(), everything(&store)));
    }
    states
}

#[test]
fn a_crash_leaves_the_last_checkpoint_or_the_one_before() {
    let lossy = Lossy::default();
    let states = checkpoints(&lossy, 8);
    for tear in Tear::ALL {
        let mut checked = 0;
        lossy.each_crash(tear, |steps, disk| {
            let Some(done) = states.iter().rposition(|(at, _)| *at <= steps) else { return };
            let disk = memory_of(disk);
            let store = StateStore::open_on(SHARD, 1, Path::new("crashed"), disk, CACHE_BYTES);
            let found = everything(&store.unwrap());
            let next = states.get(done + 1).is_some_and(|(_, state)| *state == found);
            assert!(
                found == states[done].1 || next,
                "{tear:?}: after step {steps} it is neither checkpoint {done} nor the next"
            );
            checked += 1;
        });
        assert!(checked > 100, "{checked} crashes");
    }
}

#[test]
fn what_a_crash_tore_is_written_over_and_read_again() {
    let lossy = Lossy::default();
    let states = checkpoints(&lossy, 3);
    let last = states.last().unwrap().0;
    for tear in Tear::ALL {
        lossy.each_crash(tear, |steps, disk| {
            if steps <= states[0].0 || (steps % 3 > 0 && steps < last) {
                return;
            }
            // The blocks that the crash tore are free, and the next checkpoints take them.
            let next = Lossy::default();
            next.set_len(disk.len() as u64).unwrap();
            next.write(0, disk).unwrap();
            next.sync_data().unwrap();
            let after = checkpoints(&next, 4).pop().unwrap().1;
            let path = Path::new("again");
            let again =
                StateStore::open_on(SHARD, 1, path, memory_of(&next.durable()), CACHE_BYTES);
            assert_eq!(everything(&again.unwrap()), after, "{tear:?} after step {steps}");
        });
    }
}

#[test]
fn a_damaged_root_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut store = StateStore::create(root.path(), SHARD, 1, CACHE_BYTES).unwrap();
    let value = b"a value that is easy to find";
    store.put(Bytes::from_static(b"key"), Bytes::from_static(value));
    checkpoint(&mut store);
    drop(store);
    let path = file_path(root.path(), SHARD, 1);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
    bytes[at + 3] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let StorageError(words) = StateStore::open_generation(root.path(), SHARD, 1, CACHE_BYTES)
        .map(drop)
        .unwrap_err()
        .into();
    assert!(words.contains(path.to_str().unwrap()) && words.contains("damaged"), "{words}");
}

#[test]
fn a_missing_or_foreign_file_is_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(StateStore::create(root.path(), SHARD, 1, CACHE_BYTES).unwrap());
    let refused = |shard, generation| {
        let StorageError(sentence) =
            StateStore::open_generation(root.path(), shard, generation, CACHE_BYTES)
                .map(drop)
                .unwrap_err()
                .into();
        assert!(
            sentence.contains(file_path(root.path(), shard, generation).to_str().unwrap()),
            "{sentence}"
        );
    };
    refused(SHARD, 2);
    std::fs::copy(file_path(root.path(), SHARD, 1), file_path(root.path(), 4, 1)).unwrap();
    refused(4, 1);
    std::fs::write(file_path(root.path(), 5, 1), b"not a state").unwrap();
    refused(5, 1);
}

#[test]
fn a_state_that_does_not_fit_its_log_is_refused() {
    let mut store = in_memory();
    put_progress(&mut store, 20);
    let boot =
        |truncated, last_index| Boot { truncated: (truncated, 1), last_index, ..Boot::default() };
    let mut fits = boot(15, 25);
    store.complete(&mut fits).unwrap();
    assert_eq!(fits.applied, (20, 2));
    assert!(
        store.complete(&mut boot(15, 19)).unwrap_err().to_string().contains("the log ends at 19")
    );
    assert!(
        store
            .complete(&mut boot(21, 25))
            .unwrap_err()
            .to_string()
            .contains("the log begins after 21")
    );
}

fn filled(root: &Path, records: u32) -> StateStore {
    let mut store = StateStore::create(root, SHARD, BIRTH_GENERATION, CACHE_BYTES).unwrap();
    for n in 0..records {
        store.put(Bytes::from(n.to_be_bytes().to_vec()), vec![1; 700].into());
    }
    put_progress(&mut store, 77);
    checkpoint(&mut store);
    store
}

#[test]
fn a_snapshot_arrives_whole() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut store = filled(from.path(), 1_000);
    let sent = everything(&store);
    let reader = SnapshotReader::open(store.file());
    assert_eq!((reader.index(), reader.term(), reader.manifest().records), (77, 2, 1_001));
    // What changes while it is sent, checkpoint included, is not in it.
    store.put(Bytes::from_static(b"later"), Bytes::from_static(b"x"));
    store.delete(&5_u32.to_be_bytes());
    put_progress(&mut store, 78);
    checkpoint(&mut store);
    let chunks = reader.chunks().collect::<Vec<_>>();
    assert!(chunks.len() > 2, "{} chunks", chunks.len());
    let generation = next_generation(from.path(), SHARD).unwrap();
    assert_eq!(generation, 2);
    let mut writer =
        SnapshotWriter::create(to.path(), SHARD, generation, (77, 2), reader.manifest()).unwrap();
    for chunk in &chunks {
        writer.write(chunk).unwrap();
    }
    writer.finish().unwrap();
    let received = StateStore::open_generation(to.path(), SHARD, generation, CACHE_BYTES).unwrap();
    assert_eq!(everything(&received), sent);
    assert_eq!(SnapshotReader::open(received.file()).manifest(), reader.manifest());
}

#[test]
fn a_bad_snapshot_is_refused_and_leaves_no_file() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = filled(from.path(), 1_000);
    let reader = SnapshotReader::open(store.file());
    let chunks = reader.chunks().collect::<Vec<_>>();
    let manifest = reader.manifest();
    let receive = |position, manifest, chunks: &[_]| {
        let mut writer = SnapshotWriter::create(to.path(), SHARD, 9, position, manifest)?;
        chunks.iter().try_for_each(|chunk| writer.write(chunk))?;
        writer.finish()
    };
    let refused = |position, manifest, chunks: &[_], words: &str| {
        let StorageError(sentence) = receive(position, manifest, chunks).unwrap_err();
        assert!(sentence.contains(words), "{sentence}");
        assert!(!file_path(to.path(), SHARD, 9).exists(), "{words}: the file is gone");
    };
    let mut damaged = chunks.clone();
    damaged[1].records[3].value = Bytes::from_static(b"other");
    refused((77, 2), manifest, &damaged, "chunk 1 is damaged");
    refused((77, 2), manifest, &chunks[1..], "chunk 1 came where 0 was due");
    refused((77, 2), manifest, &chunks[..2], "its manifest says");
    refused((78, 2), manifest, &chunks, "not of entry 78");
    let other = |change: fn(&mut trefoil_proto::internal::v1::Manifest)| {
        let mut manifest = manifest;
        change(&mut manifest);
        manifest
    };
    refused((77, 2), other(|manifest| manifest.chain += 1), &chunks, "not of entry 77");
    refused((77, 2), other(|manifest| manifest.records += 1), &chunks, "its manifest says");
    refused((77, 2), other(|manifest| manifest.bytes -= 1), &chunks, "more than its manifest says");
    refused((77, 2), other(|manifest| manifest.format += 1), &chunks, "has format 3");
    receive((77, 2), manifest, &chunks).unwrap();
}

#[test]
fn an_interrupted_snapshot_of_a_lossy_disk_is_no_state() {
    let from = tempfile::tempdir().unwrap();
    let reader = SnapshotReader::open(filled(from.path(), 300).file());
    let lossy = Lossy::default();
    let path = from.path().join("state/incoming");
    let mut writer =
        SnapshotWriter::create_on(&path, SHARD, 1, (77, 2), reader.manifest(), lossy.clone())
            .unwrap();
    reader.chunks().for_each(|chunk| writer.write(&chunk).unwrap());
    let before = lossy.steps();
    writer.finish().unwrap();
    let expected = reader.manifest();
    let open = |disk: &[u8]| StateStore::open_on(SHARD, 1, &path, memory_of(disk), CACHE_BYTES);
    let durable = open(&lossy.durable()).unwrap();
    assert_eq!(
        SnapshotReader::open(durable.file()).manifest(),
        expected,
        "what is finished is synced"
    );
    for tear in Tear::ALL {
        lossy.each_crash(tear, |steps, disk| {
            // Either it cannot be opened, or it is an empty state: never a part of the snapshot.
            if steps <= before
                && let Ok(store) = open(disk)
            {
                assert!(store.progress().is_none() && everything(&store).is_empty());
            }
        });
    }
}

/// A node with one shard, in which a snapshot has arrived and is not installed yet.
fn before_install() -> (tempfile::TempDir, u64, Vec<(Bytes, Bytes)>) {
    let (root, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut born = StateStore::create(root.path(), SHARD, BIRTH_GENERATION, CACHE_BYTES).unwrap();
    Machine::bootstrap(&mut born);
    checkpoint(&mut born);
    EngineLog::create(root.path(), &[SHARD]).unwrap();
    let (log, _) = EngineLog::open(root.path(), &[SHARD]).unwrap();
    let entries = (BIRTH_INDEX + 1..BIRTH_INDEX + 4)
        .map(|index| raft_proto::eraftpb::Entry { index, term: 1, ..Default::default() })
        .collect();
    log.write(&[LogWrite::Append(SHARD, PersistBatch { number: 1, entries, hard_state: None })])
        .unwrap();
    let store = filled(from.path(), 100);
    let reader = SnapshotReader::open(store.file());
    let generation = next_generation(root.path(), SHARD).unwrap();
    let mut writer =
        SnapshotWriter::create(root.path(), SHARD, generation, (77, 2), reader.manifest()).unwrap();
    reader.chunks().for_each(|chunk| writer.write(&chunk).unwrap());
    writer.finish().unwrap();
    (root, generation, everything(&store))
}

fn restart(root: &Path) -> Result<(Boot, StateStore), StorageError> {
    let (_, mut recovered) = EngineLog::open(root, &[SHARD])?;
    let mut recovered = recovered.remove(0);
    let store = StateStore::open_generation(root, SHARD, recovered.generation, CACHE_BYTES)?;
    store.complete(&mut recovered.boot)?;
    remove_other_generations(root, SHARD, recovered.generation)?;
    Ok((recovered.boot, store))
}

#[test]
fn a_crash_before_the_install_batch_keeps_the_old_state() {
    let (root, generation, _) = before_install();
    let (boot, store) = restart(root.path()).unwrap();
    assert_eq!((boot.applied, boot.last_index), ((BIRTH_INDEX, BIRTH_TERM), BIRTH_INDEX + 3));
    assert_eq!(everything(&store).len(), 1, "the record of a newborn machine");
    assert!(
        !file_path(root.path(), SHARD, generation).exists(),
        "what the log does not name is removed"
    );
}

#[test]
fn a_crash_after_the_install_batch_has_the_snapshot_and_nothing_else() {
    let (root, generation, sent) = before_install();
    let (log, _) = EngineLog::open(root.path(), &[SHARD]).unwrap();
    let hard_state = raft_proto::eraftpb::HardState { term: 2, commit: 77, ..Default::default() };
    log.write(&[LogWrite::Install { shard: SHARD, hard_state, truncated: (77, 2), generation }])
        .unwrap();
    drop(log);
    let (boot, store) = restart(root.path()).unwrap();
    assert_eq!((boot.truncated, boot.applied, boot.last_index), ((77, 2), (77, 2), 77));
    assert_eq!(
        (boot.terms.len(), boot.hard_state.commit),
        (0, 77),
        "no suffix of the old log is left"
    );
    assert_eq!(everything(&store), sent);
    assert!(!file_path(root.path(), SHARD, BIRTH_GENERATION).exists());
    drop(store);
    std::fs::remove_file(file_path(root.path(), SHARD, generation)).unwrap();
    let StorageError(sentence) = restart(root.path()).map(drop).unwrap_err();
    assert!(sentence.contains(&format!("{SHARD}-{generation}.redb")), "{sentence}");
}

#[test]
fn a_paced_checkpoint_keeps_to_its_rate() {
    let root = tempfile::tempdir().unwrap();
    let mut store = StateStore::create(root.path(), SHARD, 1, CACHE_BYTES).unwrap();
    for n in 0..1_000_u32 {
        store.put(Bytes::from(n.to_be_bytes().to_vec()), vec![1; 1_000].into());
    }
    let job = store.freeze().unwrap();
    let begun = std::time::Instant::now();
    let written = job.write_in_place(Some(4 << 20)).unwrap();
    let took = begun.elapsed();
    assert!(took.as_millis() > 200, "a megabyte at 4 MiB a second took {took:?}");
    store.finish(written);
    assert_eq!(everything(&store).len(), 1_000);
}

#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    drop(StateStore::create(root.path(), SHARD, 1, CACHE_BYTES).unwrap());
    let mode = std::fs::metadata(file_path(root.path(), SHARD, 1)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = std::fs::File::open(file_path(root.path(), SHARD, 1)).unwrap();
    drop(FileBackend::new(again).unwrap());
}

#[test]
fn stored_maps_of_a_machine_are_equal_to_those_in_memory() {
    let (mut store, mut memory) = (in_memory(), MemoryStore::default());
    Machine::bootstrap(&mut store);
    Machine::bootstrap(&mut memory);
    checkpoint(&mut store);
    assert_eq!(everything(&store), everything(&memory));
    let records = everything(&memory).into_iter().collect::<BTreeMap<_, _>>();
    assert_eq!(records, memory.records);
}
