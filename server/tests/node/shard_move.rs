//! A state that holds little for the size of its file moves to a new one, whole at every moment.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::time::Instant;
use trefoil_core::limits::STATE_RECLAIM_BYTES_MIN;
use trefoil_core::machine::Machine;
use trefoil_core::replica::Tuning;
use trefoil_core::store::Store as _;
use trefoil_core::{BIRTH_INDEX, ShardId};
use trefoil_server::storage::checkpoint::Written;
use trefoil_server::storage::generations::{file_path, remove_other_generations};
use trefoil_server::storage::log::BIRTH_GENERATION;
use trefoil_server::storage::{EngineLog, LogStore as _, LogWrite, StateStore};

use crate::support::{Cluster, WAIT, get, put, shard_of, until};

const SHARD: ShardId = 1;
const CACHE_BYTES: usize = 1 << 20;
const VALUE_BYTES: usize = 1 << 20;
/// Values that make a file large enough.
const VALUES: u32 = (STATE_RECLAIM_BYTES_MIN / VALUE_BYTES as u64) as u32 + 8;

fn key(n: u32) -> Bytes {
    n.to_be_bytes().to_vec().into()
}

fn checkpoint(root: &Path, store: &mut StateStore) -> Written {
    store.freeze().unwrap().run(root, CACHE_BYTES, None).unwrap()
}

/// A node with one shard, whose file is large.
fn large(root: &Path) -> StateStore {
    let mut store = StateStore::create(root, SHARD, BIRTH_GENERATION, CACHE_BYTES).unwrap();
    Machine::bootstrap(&mut store);
    for n in 0..VALUES {
        store.put(key(n), vec![n as u8; VALUE_BYTES].into());
    }
    let written = checkpoint(root, &mut store);
    assert!(written.moved.is_none(), "it is full of what it holds");
    store.finish(written);
    assert!(store.file().bytes() >= STATE_RECLAIM_BYTES_MIN);
    EngineLog::create(root, &[SHARD]).unwrap();
    store
}

fn everything(store: &StateStore) -> Vec<(Bytes, Bytes)> {
    store.scan(&[], &[0xff; 8], usize::MAX)
}

fn restart(root: &Path) -> (u64, StateStore) {
    let (_log, recovered) = EngineLog::open(root, &[SHARD]).unwrap();
    let generation = recovered[0].generation;
    let store = StateStore::open_generation(root, SHARD, generation, CACHE_BYTES).unwrap();
    remove_other_generations(root, SHARD, generation).unwrap();
    (generation, store)
}

#[test]
fn a_large_file_that_holds_little_is_left_behind() {
    let root = tempfile::tempdir().unwrap();
    let mut store = large(root.path());
    for n in 4..VALUES {
        store.delete(&key(n));
    }
    let written = checkpoint(root.path(), &mut store);
    assert!(written.moved.is_none(), "the file did hold it all");
    store.finish(written);
    let held = everything(&store);
    store.put(key(2), Bytes::from_static(b"changed"));
    let before = everything(&store);
    let written = checkpoint(root.path(), &mut store);
    let generation = written.moved.as_ref().unwrap().generation;
    assert_eq!(generation, BIRTH_GENERATION + 1);
    store.put(key(7), Bytes::from_static(b"meanwhile"));

    // A crash now: the log names the old file, which is as it was.
    let copy = tempfile::tempdir().unwrap();
    copy_directory(root.path(), copy.path());
    let (named, old) = restart(copy.path());
    assert_eq!((named, everything(&old)), (BIRTH_GENERATION, held));
    assert!(!file_path(copy.path(), SHARD, generation).exists(), "nobody relied on it");

    let (log, _) = EngineLog::open(root.path(), &[SHARD]).unwrap();
    log.write(&[LogWrite::Move { shard: SHARD, generation }]).unwrap();
    store.finish(written);
    assert_eq!(store.get(&key(7)), Some(Bytes::from_static(b"meanwhile")));
    assert!(store.file().bytes() < STATE_RECLAIM_BYTES_MIN / 2, "{} bytes", store.file().bytes());
    let written = checkpoint(root.path(), &mut store);
    assert!(written.moved.is_none(), "it is as large as it must be");
    store.finish(written);
    let after = everything(&store);
    assert_eq!(after.len(), before.len() + 1);

    drop((log, store));
    let (named, new) = restart(root.path());
    assert_eq!((named, everything(&new)), (generation, after));
    assert_eq!(new.progress().unwrap().index, BIRTH_INDEX);
    assert!(!file_path(root.path(), SHARD, BIRTH_GENERATION).exists());
}

fn copy_directory(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_moves_the_state_of_a_shard_and_starts_from_the_new_file() {
    let mut cluster = Cluster::new(1);
    cluster.tuning = Tuning { checkpoint_overlay_bytes: 8 << 20, ..Tuning::default() };
    cluster.run(1).unwrap();
    cluster.wait_for_leaders().await;
    let keys = (0..).map(|n| format!("key-{n}")).filter(|key| shard_of(key) == SHARD);
    let keys = keys.take(VALUES as usize + 16).collect::<Vec<_>>();
    let text = "x".repeat(VALUE_BYTES);
    for key in &keys {
        put(cluster.handle(1), key, &text).await.unwrap();
    }
    let state = cluster.directory(1).join("state");
    let file = || -> Option<(PathBuf, u64)> {
        let named = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(&format!("{SHARD}-")).then(|| entry.path())
        };
        let mut files = std::fs::read_dir(&state).unwrap().filter_map(|entry| named(entry.ok()?));
        let only = files.next().filter(|_| files.next().is_none())?;
        let bytes = std::fs::metadata(&only).ok()?.len();
        Some((only, bytes))
    };
    until("a checkpoint fills the file", || {
        file().is_some_and(|(_, bytes)| bytes > STATE_RECLAIM_BYTES_MIN)
    })
    .await;
    let (first, _) = file().unwrap();

    let (large, small) = keys.split_at(12);
    for key in small {
        put(cluster.handle(1), key, "small").await.unwrap();
    }
    let has_moved =
        || file().is_some_and(|(path, bytes)| path != first && bytes < STATE_RECLAIM_BYTES_MIN);
    let deadline = Instant::now() + WAIT;
    while !has_moved() {
        assert!(Instant::now() < deadline, "the state has not moved within {WAIT:?}");
        // What changes asks for the next checkpoint.
        for key in large {
            put(cluster.handle(1), key, &text).await.unwrap();
        }
    }
    cluster.stop(1).await;
    cluster.run(1).unwrap();
    cluster.wait_for_leaders().await;
    for key in large {
        assert_eq!(get(cluster.handle(1), key).await.unwrap().as_ref(), Some(&text));
    }
    for key in small {
        assert_eq!(get(cluster.handle(1), key).await.unwrap(), Some("small".to_owned()));
    }
    cluster.stop_all().await;
}
