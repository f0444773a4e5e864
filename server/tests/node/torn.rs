//! Nodes whose log lost its end in a failure of power: they take no part in elections until they have caught up, or
//! until too few are left that have lost nothing.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use raft_engine::env::DefaultFileSystem;
use tokio::time::sleep;
use trefoil_core::{NodeId, ShardId};
use trefoil_server::node::{Handle, StartError};
use trefoil_server::storage::files;
use trefoil_server::storage::log::LogOptions;
use trefoil_server::storage::mark::{self, LogOffset, LogQueue};
use trefoil_server::storage::{DataDirectory, EngineLog};

use crate::support::{Cluster, SHARDS, get, key_in, put, until};

/// Another run of the machine than this one.
const EARLIER: LogOptions = LogOptions { file_bytes: 64 << 20, purge_bytes: 512 << 20, boot: 1 };
/// Three of the longest election timeouts.
const SEVERAL_ELECTIONS: Duration = Duration::from_millis(3_600);

/// The last file of a stopped node's log, and where it is known to be synced to.
fn marked_end(root: &Path) -> (PathBuf, u64) {
    let (_, mark) = mark::DurableMark::open(&DataDirectory::mark_path(root), EARLIER.boot).unwrap();
    let LogOffset { file, offset } = mark.spans[0].end;
    (DataDirectory::log_path(root).join(files::name(LogQueue::Append, file)), offset)
}

/// Ends the log of a stopped node as a failure of power may: in the middle of a write that was not synced.
fn tear(root: &Path) {
    let (path, end) = marked_end(root);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[7; 100], end).unwrap();
    let shards = (0..=SHARDS).collect::<Vec<ShardId>>();
    let (log, _) =
        EngineLog::open_with(root, &shards, EARLIER, Arc::new(DefaultFileSystem)).unwrap();
    assert!(!log.cuts().is_empty(), "the machine started, and the tail was cut off");
}

fn uncertain(handle: &Handle) -> usize {
    handle.status().iter().filter(|state| state.status.uncertain).count()
}

async fn stop_and_tear(cluster: &mut Cluster, torn: &[NodeId]) {
    for id in cluster.ids() {
        cluster.stop(id).await;
    }
    for id in torn {
        tear(&cluster.directory(*id));
    }
}

async fn assert_whole(cluster: &Cluster, text: &str) {
    for id in cluster.ids() {
        for shard in 1..=SHARDS {
            let found = get(cluster.handle(id), &key_in(shard)).await.unwrap();
            assert_eq!(found.as_deref(), Some(text), "shard {shard} by node {id}");
        }
    }
}

async fn with_data(text: &str) -> Cluster {
    let cluster = Cluster::start(3).await;
    for shard in 1..=SHARDS {
        put(cluster.handle(1), &key_in(shard), text).await.unwrap();
    }
    cluster
}

async fn until_certain(cluster: &Cluster) {
    until("every node has caught up", || {
        cluster.ids().into_iter().all(|id| uncertain(cluster.handle(id)) == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_node_abstains_until_it_has_caught_up() {
    let mut cluster = with_data("v").await;
    stop_and_tear(&mut cluster, &[3]).await;
    cluster.run(1).unwrap();
    cluster.run(3).unwrap();
    assert_eq!(
        uncertain(cluster.handle(3)),
        SHARDS as usize + 1,
        "each shard may have lost something"
    );
    sleep(SEVERAL_ELECTIONS).await;
    for id in [1, 3] {
        let leaders = (0..=SHARDS).filter_map(|shard| cluster.handle(id).leader(shard));
        assert_eq!(leaders.count(), 0, "node 1 alone is no quorum, and node 3 does not vote");
    }
    cluster.run(2).unwrap();
    cluster.wait_for_leaders().await;
    until_certain(&cluster).await;
    assert_whole(&cluster, "v").await;

    // The doubt is over for good.
    put(cluster.handle(3), &key_in(1), "v").await.unwrap();
    stop_and_tear(&mut cluster, &[]).await;
    cluster.run(3).unwrap();
    cluster.run(1).unwrap();
    assert_eq!(uncertain(cluster.handle(3)), 0);
    cluster.wait_for_leaders().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn torn_nodes_elect_when_too_few_are_whole() {
    for torn in [&[2, 3][..], &[1, 2, 3]] {
        let mut cluster = with_data("w").await;
        stop_and_tear(&mut cluster, torn).await;
        for id in cluster.ids() {
            cluster.run(id).unwrap();
        }
        cluster.wait_for_leaders().await;
        until_certain(&cluster).await;
        assert_whole(&cluster, "w").await;
        cluster.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_node_stays_out_and_the_others_serve() {
    let mut cluster = with_data("x").await;
    cluster.stop(3).await;
    let (path, end) = marked_end(&cluster.directory(3));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, end - 20).unwrap();
    file.write_all_at(&[!byte[0]], end - 20).unwrap();
    let before = std::fs::read(&path).unwrap();
    let Err(StartError::Damaged(sentence)) = cluster.run(3) else { panic!("it must not start") };
    assert!(sentence.contains(path.to_str().unwrap()), "{sentence}");
    assert!(std::fs::read(&path).unwrap() == before, "nothing is changed");
    put(cluster.handle(1), &key_in(1), "y").await.unwrap();
    assert_eq!(get(cluster.handle(2), &key_in(1)).await.unwrap().as_deref(), Some("y"));
    cluster.stop_all().await;
}
