//! Bits that turn over in a state file: whoever reads it gets what was written, or an error, and never anything else.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use bytes::Bytes;
use prost::Message as _;
use redb::backends::FileBackend;
use redb::{Builder, StorageBackend, TableDefinition};
use trefoil_core::ShardId;
use trefoil_core::store::Store;
use trefoil_proto::internal::v1::Progress;
use trefoil_server::storage::blocks::GROUP;
use trefoil_server::storage::fault::on_fault;
use trefoil_server::storage::generations::file_path;
use trefoil_server::storage::snapshot::SnapshotReader;
use trefoil_server::storage::{StateStore, StorageError, evidence};

use crate::support::Random;
use crate::support::lossy::{Lossy, memory_of};

const SHARD: ShardId = 3;
const GENERATION: u64 = 7;
const CACHE_BYTES: usize = 1 << 20;
/// So little that nearly every page comes from the disk.
const SMALL_CACHE_BYTES: usize = 32 << 10;
const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const RECORDS: u32 = 4_000;

type Model = BTreeMap<Bytes, Bytes>;

/// A file as it was left, and what it should show.
struct Sound {
    bytes: Vec<u8>,
    model: Model,
}

fn key(n: usize) -> Bytes {
    Bytes::from(format!("key-{n:06}"))
}

fn value(random: &mut Random) -> Bytes {
    let long = random.below(400) == 0;
    let byte = u8::try_from(random.below(256)).unwrap();
    vec![byte; if long { random.below(40_000) } else { random.below(900) }].into()
}

fn checkpoint(store: &mut StateStore) {
    if let Some(checkpoint) = store.freeze() {
        let written = checkpoint.write_in_place(None).unwrap();
        store.finish(written);
    }
}

fn open_on(disk: impl StorageBackend) -> Result<StateStore, StorageError> {
    let path = Path::new("rotten.redb");
    Ok(StateStore::open_on(SHARD, GENERATION, path, disk, SMALL_CACHE_BYTES)?)
}

/// A state of several thousand records after many changes, in more than one group of blocks.
fn sound() -> Sound {
    let disk = Lossy::default();
    let path = Path::new("sound.redb");
    let mut store =
        StateStore::open_on(SHARD, GENERATION, path, disk.clone(), CACHE_BYTES).unwrap();
    let (mut model, mut random) = (Model::new(), Random(5));
    let progress = Progress { index: 9, term: 2, ..Progress::default() };
    let position = trefoil_core::key::Key::system(trefoil_core::key::Kind::Progress);
    let mut put = |store: &mut StateStore, key: Bytes, value: Bytes| {
        store.put(key.clone(), value.clone());
        model.insert(key, value);
    };
    put(&mut store, position.into(), progress.encode_to_vec().into());
    for n in 0..RECORDS {
        put(&mut store, key(n as usize), value(&mut random));
    }
    checkpoint(&mut store);
    for _ in 0..3 {
        for _ in 0..300 {
            put(&mut store, key(random.below(RECORDS as usize)), value(&mut random));
        }
        checkpoint(&mut store);
    }
    for _ in 0..200 {
        let key = key(random.below(RECORDS as usize));
        store.delete(&key);
        model.remove(&key);
    }
    checkpoint(&mut store);
    // As a process leaves it that is killed.
    let bytes = disk.durable();
    assert!(bytes.len() / BLOCK > usize::try_from(GROUP).unwrap(), "{} bytes", bytes.len());
    Sound { bytes, model }
}

/// Panics of these tests are our own last words, thousands of them; whatever else panics fails the test all the same.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        on_fault(|sentence| std::panic::panic_any(LastWords(sentence.to_owned())));
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.payload().is::<LastWords>() {
                hook(panic);
            }
        }));
    });
}

struct LastWords(String);

/// Runs something that may find damage, or end the process: what it returned, what was found, or our last words.
fn lives<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let other = |panic: Box<dyn Any + Send>| match panic.downcast::<LastWords>() {
        Ok(words) => words.0,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    let run =
        || evidence::catch(Path::new("rotten.redb"), run).map_err(|damaged| damaged.to_string());
    catch_unwind(AssertUnwindSafe(run)).map_err(other)?
}

/// How a trial ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Nothing was noticed, and everything was right.
    Unseen,
    Refused(String),
    Died(String),
}

/// Opens the file, lets `rot` change it before or after that, and reads it in every way there is.
fn trial(bytes: &[u8], model: &Model, seed: u64, rot: impl Fn(&mut [u8])) -> End {
    let disk = Lossy::of(bytes);
    let late = seed.is_multiple_of(2);
    let mut random = Random(seed);
    if !late {
        disk.rot(&rot);
    }
    let mut store = match lives(|| open_on(disk.clone())) {
        Ok(Ok(store)) => store,
        Ok(Err(StorageError(sentence))) => return End::Refused(sentence),
        Err(words) => panic!("opening a file ends no process: {words}"),
    };
    if late {
        disk.rot(&rot);
    }
    let read = lives(|| {
        for _ in 0..30 {
            let key = key(random.below(RECORDS as usize + 100));
            assert_eq!(store.get(&key), model.get(&key).cloned(), "a wrong value, or none");
        }
        if seed.is_multiple_of(3) {
            let chunks = SnapshotReader::open(store.file()).chunks().collect::<Vec<_>>();
            let sent = chunks.into_iter().flat_map(|chunk| chunk.records);
            assert!(sent.map(|record| (record.key, record.value)).eq(model.clone()));
        }
        let all = store.scan(&[], &[0xff; 8], usize::MAX);
        assert!(all.into_iter().eq(model.clone()), "a scan shows something else");
    });
    let wrote = read.and_then(|()| {
        lives(|| {
            for n in 0..20 {
                store.put(key(n * 190), Bytes::from_static(b"new"));
            }
            checkpoint(&mut store);
            store.get(&key(190))
        })
    });
    match wrote {
        Ok(value) => {
            assert_eq!(value.as_deref(), Some(&b"new"[..]));
            End::Unseen
        }
        Err(words) => End::Died(words),
    }
}

#[test]
fn flipped_bits_anywhere_in_a_state_file_are_never_believed() {
    quiet();
    let Sound { bytes, model } = sound();
    assert_eq!(trial(&bytes, &model, 0, |_| ()), End::Unseen);
    let mut random = Random(11);
    let (mut refused, mut died, mut unseen) = (0, 0, 0);
    for seed in 0..1_200 {
        let flips = if random.below(4) == 0 { 1 + random.below(5) } else { 1 };
        let flips = (0..flips).map(|_| (random.below(bytes.len()), 1 << random.below(8)));
        let flips = flips.collect::<Vec<(usize, u8)>>();
        let rot = |bytes: &mut [u8]| flips.iter().for_each(|(at, bit)| bytes[*at] ^= bit);
        match trial(&bytes, &model, seed, rot) {
            End::Unseen => unseen += 1,
            End::Refused(sentence) => {
                assert!(
                    sentence.contains("rotten.redb") && sentence.contains("is damaged"),
                    "{sentence}"
                );
                refused += 1;
            }
            End::Died(sentence) => {
                assert!(
                    sentence.contains("rotten.redb is damaged: its block at byte"),
                    "{sentence}"
                );
                died += 1;
            }
        }
    }
    println!("{refused} refused, {died} ended the process, {unseen} were in free blocks");
    assert!(refused > 5 && died > 200, "{refused} {died} {unseen}");
}

#[test]
fn no_bit_of_the_header_turns_over_unseen() {
    quiet();
    let Sound { mut bytes, .. } = sound();
    for bit in 0..SECTOR * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let StorageError(sentence) = open_on(memory_of(&bytes)).map(drop).unwrap_err();
        assert!(sentence.contains("its block at byte 0 is damaged"), "bit {bit}: {sentence}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Where a block of redb's lies, and its checksum.
fn places(block: usize) -> (usize, usize) {
    let group = usize::try_from(GROUP).unwrap();
    let sums = (1 + block / group * (group + 1)) * BLOCK;
    (sums + (1 + block % group) * BLOCK, sums + block % group * 8)
}

#[test]
fn a_block_in_the_place_of_another_is_never_believed() {
    quiet();
    let Sound { bytes, model } = sound();
    let blocks = bytes.len() / BLOCK - 4;
    let mut random = Random(3);
    let mut seen = 0;
    for seed in 0..300 {
        let (from, to) = (places(random.below(blocks)), places(random.below(blocks)));
        if from == to || bytes[from.0..from.0 + BLOCK] == bytes[to.0..to.0 + BLOCK] {
            continue;
        }
        let rot = |bytes: &mut [u8]| {
            bytes.copy_within(from.0..from.0 + BLOCK, to.0);
            bytes.copy_within(from.1..from.1 + 8, to.1);
        };
        seen += u32::from(trial(&bytes, &model, seed, rot) != End::Unseen);
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn a_file_of_another_shard_generation_or_format_is_refused_as_that() {
    let root = tempfile::tempdir().unwrap();
    drop(StateStore::create(root.path(), SHARD, 1, CACHE_BYTES).unwrap());
    let refusal = |shard, generation| {
        StateStore::open_generation(root.path(), shard, generation, CACHE_BYTES)
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    for (shard, generation) in [(SHARD, 2), (4, 1)] {
        let other = file_path(root.path(), shard, generation);
        std::fs::copy(file_path(root.path(), SHARD, 1), other).unwrap();
        let sentence = refusal(shard, generation);
        assert!(sentence.contains("it holds shard 3 in format 2 and generation 1"), "{sentence}");
    }
    // As the release before this one made them.
    let path = file_path(root.path(), 5, 1);
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let old = Builder::new().create_with_backend(FileBackend::new(file.unwrap()).unwrap()).unwrap();
    let write = old.begin_write().unwrap();
    write.open_table(TableDefinition::<&str, u64>::new("facts")).unwrap().insert("a", 1).unwrap();
    write.commit().unwrap();
    drop(old);
    let sentence = refusal(5, 1);
    assert!(sentence.contains("it has format 1, and this release knows 2"), "{sentence}");
    std::fs::write(file_path(root.path(), 6, 1), vec![0; 9_000]).unwrap();
    assert!(refusal(6, 1).contains("damaged"));
}

/// Scrubs a whole file; returns the number of parts.
fn scrub(store: &StateStore, part: u64, mut between: impl FnMut()) -> Result<u64, String> {
    let (mut parts, mut last) = (0, None);
    loop {
        let scrubbed =
            store.file().scrub(last.as_ref(), part).map_err(|damaged| damaged.to_string())?;
        parts += 1;
        last = scrubbed.last;
        if last.is_none() {
            return Ok(parts);
        }
        between();
    }
}

#[test]
fn a_scrub_finds_what_the_disk_has_lost_behind_the_cache() {
    quiet();
    let Sound { bytes, model } = sound();
    let mut random = Random(17);
    let (mut found, mut free) = (0, 0);
    for _ in 0..150 {
        let disk = Lossy::of(&bytes);
        let path = Path::new("rotten.redb");
        let store = StateStore::open_on(SHARD, GENERATION, path, disk.clone(), 64 << 20).unwrap();
        let all = store.scan(&[], &[0xff; 8], usize::MAX);
        assert!(all.into_iter().eq(model.clone()), "everything is in memory now");
        let (at, bit) = (random.below(bytes.len()), 1 << random.below(8));
        disk.rot(|bytes| bytes[at] ^= bit);
        let scrubbed = scrub(&store, 300_000, || ());
        let all = store.scan(&[], &[0xff; 8], usize::MAX);
        assert!(all.into_iter().eq(model.clone()), "and nobody sees it but the scrub");
        // What another process finds that reads all of it.
        let mut rotten = bytes.clone();
        rotten[at] ^= bit;
        let cold = lives(|| {
            let store = open_on(memory_of(&rotten)).map_err(|StorageError(sentence)| sentence)?;
            store.scan(&[], &[0xff; 8], usize::MAX);
            Ok::<_, String>(())
        });
        match (scrubbed, cold) {
            (Err(sentence), _) => {
                assert!(
                    sentence.contains("rotten.redb is damaged: its block at byte"),
                    "{sentence}"
                );
                found += 1;
            }
            (Ok(parts), Ok(Ok(()))) => {
                assert!(parts > 3, "{parts}");
                free += 1;
            }
            // redb's own tables are read when it opens a file, and before each commit.
            (Ok(_), Ok(Err(_))) => {}
            (Ok(_), Err(sentence)) => panic!("the scrub passed over it: {sentence}"),
        }
    }
    println!("{found} found, {free} in free blocks");
    assert!(found > 30 && free > 10, "{found} {free}");
}

#[test]
fn a_scrub_and_checkpoints_take_turns() {
    quiet();
    let Sound { bytes, mut model } = sound();
    let disk = Lossy::of(&bytes);
    let mut store = open_on(disk.clone()).unwrap();
    let mut random = Random(23);
    let mut last = None;
    let mut parts = 0;
    for _ in 0..40 {
        for _ in 0..100 {
            let (key, value) = (key(random.below(RECORDS as usize)), value(&mut random));
            store.put(key.clone(), value.clone());
            model.insert(key, value);
        }
        checkpoint(&mut store);
        last = store.file().scrub(last.as_ref(), 200_000).unwrap().last;
        parts += 1;
        if last.is_none() {
            break;
        }
    }
    assert!(last.is_none() && parts > 5, "{parts} parts");
    assert!(store.scan(&[], &[0xff; 8], usize::MAX).into_iter().eq(model));
}
