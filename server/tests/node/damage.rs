//! Nodes whose state files are damaged: nobody is told anything wrong, and the state is whole again without anybody's
//! help, while the damaged file stays.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use trefoil_core::machine::{Counts, Gauges};
use trefoil_core::replica::{Role, Tuning};
use trefoil_core::store::Store as _;
use trefoil_core::{NodeId, ShardId};
use trefoil_server::node::{Handle, Observer, PeerOperation};
use trefoil_server::storage::{DataDirectory, StateStore};

use crate::support::{Cluster, get, key_in, put, until};

const SHARD: ShardId = 1;
/// Values beside the one that is looked at, so that its block is not read for another reason.
const OTHERS: usize = 60;

/// Counts what was found.
#[derive(Debug, Default)]
struct Found {
    damage: AtomicUsize,
    whole: AtomicUsize,
}

impl Found {
    fn damage(&self) -> usize {
        self.damage.load(Ordering::Relaxed)
    }
}

impl Observer for Found {
    fn role(&self, _: ShardId, _: Role, _: u64) {}
    fn applied(&self, _: ShardId, _: bool, _: &Counts, _: &Gauges) {}
    fn fsync(&self, _: f64) {}
    fn checkpoint(&self, _: ShardId, _: f64, _: u64) {}
    fn scrubbed(&self, _: u64, _: bool) {}
    fn disk(&self, _: u64, _: bool) {}
    fn obstacles(&self, _: &[trefoil_core::replica::obstacles::Obstacles]) {}
    fn rpc(&self, _: PeerOperation, _: f64) {}
    fn diverged(&self, _: ShardId) {}
    fn damage(&self, _: ShardId) {
        self.damage.fetch_add(1, Ordering::Relaxed);
    }
    fn whole(&self, _: ShardId) {
        self.whole.fetch_add(1, Ordering::Relaxed);
    }
    fn disputed(&self, _: ShardId, _: bool) {}
    fn two_histories(&self, _: ShardId) {}
    fn forwarded(&self, _: ShardId) {}
}

/// Three nodes that take checkpoints often, with values in one shard that are all in their state files.
async fn with_data(digest_entries: u64) -> (Cluster, Arc<Found>) {
    let mut cluster = Cluster::new(3);
    let found = Arc::new(Found::default());
    cluster.observer = Arc::clone(&found) as Arc<dyn Observer>;
    cluster.tuning = Tuning {
        checkpoint_overlay_bytes: 4 << 10,
        digest_entries,
        digest_age_ms: 200,
        ..Tuning::default()
    };
    for id in cluster.ids() {
        cluster.run(id).unwrap();
    }
    cluster.wait_for_leaders().await;
    put(cluster.handle(1), &key_in(SHARD), &value()).await.unwrap();
    for n in 0..OTHERS {
        put(cluster.handle(1), &other(n), &format!("{n} {}", "x".repeat(1_000))).await.unwrap();
    }
    until("all is in the state files", || {
        cluster.ids().iter().all(|id| {
            let status = state(cluster.handle(*id));
            status.checkpoint_index + 10 > status.last_index
        })
    })
    .await;
    (cluster, found)
}

/// The value that is looked at: it fills a block.
fn value() -> String {
    format!("the value {}", "v".repeat(3_000))
}

/// Another key of the shard.
fn other(n: usize) -> String {
    let mut keys = (0..).map(|n| format!("other-{n}"));
    keys.by_ref().filter(|key| crate::support::shard_of(key) == SHARD).nth(n).unwrap()
}

fn state(handle: &Handle) -> trefoil_core::replica::Status {
    handle.status().iter().find(|state| state.shard == SHARD).unwrap().status
}

/// The state files of the shard on a node, by the end of their names.
fn files(cluster: &Cluster, id: NodeId, end: &str) -> Vec<PathBuf> {
    let folder = DataDirectory::state_path(&cluster.directory(id));
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_shard = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(&format!("{SHARD}-")) && name.ends_with(end)
    };
    names.filter(of_shard).collect()
}

/// Turns over a bit wherever this text stands in a file; says how often that was.
fn flip(path: &Path, text: &str) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let places =
        bytes.windows(text.len()).enumerate().filter(|(_, window)| *window == text.as_bytes());
    let places = places.map(|(at, _)| at).collect::<Vec<_>>();
    for at in &places {
        file.write_all_at(&[bytes[*at] ^ 4], *at as u64).unwrap();
    }
    places.len()
}

async fn until_whole(cluster: &Cluster, id: NodeId) {
    until("the state is whole again", || {
        let status = state(cluster.handle(id));
        !status.damaged && status.applied_index == status.last_index
    })
    .await;
}

async fn lead(cluster: &Cluster, id: NodeId) {
    let wait = tokio::time::Instant::now() + crate::support::WAIT;
    while cluster.handle(1).leader(SHARD) != Some(id) {
        assert!(tokio::time::Instant::now() < wait, "node {id} does not lead");
        for from in cluster.ids() {
            // Only who leads can hand over.
            drop(cluster.handle(from).transfer_leader(SHARD, id).await);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_read_a_value_tells_nothing_wrong_and_is_rebuilt() {
    let (mut cluster, found) = with_data(u64::MAX).await;
    cluster.stop(1).await;
    let file = files(&cluster, 1, ".redb").remove(0);
    assert!(flip(&file, "the value") > 0, "the value is in the file");
    cluster.run(1).unwrap();
    lead(&cluster, 1).await;
    for id in cluster.ids() {
        let told = get(cluster.handle(id), &key_in(SHARD)).await.unwrap();
        assert_eq!(told.as_deref(), Some(value().as_str()), "by node {id}");
    }
    assert_eq!(found.damage(), 1);
    until_whole(&cluster, 1).await;
    let kept = files(&cluster, 1, ".redb.damaged");
    assert_eq!(kept.len(), 1, "the damaged file is kept");
    assert!(!file.exists() && files(&cluster, 1, ".redb").len() == 1, "another took its place");

    // What it has now is what the others have, also after a restart.
    cluster.stop(1).await;
    cluster.run(1).unwrap();
    lead(&cluster, 1).await;
    let told = get(cluster.handle(1), &key_in(SHARD)).await.unwrap();
    assert_eq!(told.as_deref(), Some(value().as_str()));
    assert_eq!((found.damage(), files(&cluster, 1, ".redb.damaged")), (1, kept));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_that_nobody_reads_is_found_by_the_scrub() {
    let (cluster, found) = with_data(u64::MAX).await;
    // While it runs: all of it is in memory.
    let file = files(&cluster, 2, ".redb").remove(0);
    assert!(flip(&file, &format!("7 {}", "x".repeat(1_000))) > 0, "the value is in the file");
    let told = get(cluster.handle(2), &other(7)).await.unwrap();
    assert!(told.is_some_and(|value| value.starts_with("7 xx")));
    assert_eq!(found.damage(), 0, "nobody reads the disk");
    until("the scrub finds it", || found.damage() == 1).await;
    until_whole(&cluster, 2).await;
    assert_eq!(files(&cluster, 2, ".redb.damaged").len(), 1);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_file_that_is_gone_or_no_file_of_ours_is_rebuilt_at_the_start() {
    let (mut cluster, found) = with_data(u64::MAX).await;
    for (n, spoil) in [
        |path: &Path| std::fs::remove_file(path).unwrap(),
        |path: &Path| std::fs::write(path, vec![7; 100_000]).unwrap(),
    ]
    .into_iter()
    .enumerate()
    {
        cluster.stop(2).await;
        spoil(&files(&cluster, 2, ".redb")[0]);
        cluster.run(2).unwrap();
        assert_eq!(found.damage(), n + 1);
        until_whole(&cluster, 2).await;
        lead(&cluster, 2).await;
        let told = get(cluster.handle(2), &key_in(SHARD)).await.unwrap();
        assert_eq!(told.as_deref(), Some(value().as_str()));
        assert_eq!(files(&cluster, 2, ".redb.damaged").len(), n, "what there was is kept");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_lost_a_write_is_found_by_its_digest_and_rebuilt() {
    let (mut cluster, found) = with_data(5).await;
    cluster.stop(3).await;
    let file = files(&cluster, 3, ".redb").remove(0);
    let name = file.file_stem().unwrap().to_str().unwrap();
    let generation = name.split_once('-').unwrap().1.parse().unwrap();
    let root = cluster.directory(3);
    let mut store = StateStore::open_generation(&root, SHARD, generation, 1 << 20).unwrap();
    store.put(Bytes::from_static(&[0, 0, 0xee]), Bytes::from_static(b"older"));
    store.freeze().unwrap().write_in_place(None).unwrap();
    drop(store);
    cluster.run(3).unwrap();
    cluster.wait_for_leaders().await;
    for n in 0..OTHERS {
        put(cluster.handle(1), &other(n), "again").await.unwrap();
        if found.damage() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until("somebody says so", || found.damage() == 1).await;
    until_whole(&cluster, 3).await;
    assert_eq!(files(&cluster, 3, ".redb.damaged").len(), 1);
    lead(&cluster, 3).await;
    let told = get(cluster.handle(3), &key_in(SHARD)).await.unwrap();
    assert_eq!(told.as_deref(), Some(value().as_str()));
    cluster.stop_all().await;
}
