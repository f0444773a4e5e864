//! Which data directory may be which member: a cluster is formed once, of all its members, and an older copy of a
//! directory is told from the one that went on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use trefoil_core::NodeId;
use trefoil_server::node::FatalError;

use crate::support::{Cluster, SHARDS, WAIT, get, key_in, put, until};

/// What is remembered of members is told every 200 ms.
const TOLD: Duration = Duration::from_millis(700);

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

async fn failure(cluster: &Cluster, id: NodeId) -> FatalError {
    timeout(WAIT, cluster.node(id).failed()).await.expect("a peer refuses it")
}

async fn write(cluster: &Cluster, by: NodeId, text: &str) {
    for shard in 1..=SHARDS {
        let deadline = Instant::now() + WAIT;
        // Twice is once; a leader may change on a busy machine.
        while let Err(refusal) = put(cluster.handle(by), &key_in(shard), text).await {
            assert!(Instant::now() < deadline, "shard {shard}: {refusal:?}");
        }
    }
}

async fn assert_has(cluster: &Cluster, by: NodeId, text: &str) {
    for shard in 1..=SHARDS {
        let found = get(cluster.handle(by), &key_in(shard)).await.unwrap();
        assert_eq!(found.as_deref(), Some(text), "shard {shard}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_emptied_nodes_form_no_cluster_without_the_third() {
    let mut cluster = Cluster::start(3).await;
    let formed = cluster.handle(1).cluster_id().unwrap();
    assert_eq!(cluster.handle(3).cluster_id(), Some(formed));
    write(&cluster, 1, "v").await;
    for id in cluster.ids() {
        cluster.stop(id).await;
    }
    let saved = cluster.root.path().join("saved");
    for id in [1, 2] {
        copy(&cluster.directory(id), &saved.with_extension(id.to_string()));
        std::fs::remove_dir_all(cluster.directory(id)).unwrap();
        cluster.run(id).unwrap();
    }
    sleep(Duration::from_secs(2)).await;
    for id in [1, 2] {
        assert_eq!(cluster.handle(id).cluster_id(), None, "node {id} waits for the third");
        let refused = put(cluster.handle(id), &key_in(1), "fresh").await.unwrap_err();
        assert!(refused.message.contains("not formed yet"), "{refused:?}");
    }
    // The third says that it belongs to a cluster, which had other directories.
    cluster.run(3).unwrap();
    for id in [1, 2] {
        let failure = failure(&cluster, id).await;
        assert!(matches!(failure, FatalError::Replaced { peer: 3, .. }), "{failure:?}");
        assert!(failure.to_string().contains("docs/operations.md"), "{failure}");
        cluster.stop(id).await;
        copy(&saved.with_extension(id.to_string()), &cluster.directory(id));
    }
    cluster.run(1).unwrap();
    cluster.run(2).unwrap();
    cluster.wait_for_leaders().await;
    assert_has(&cluster, 2, "v").await;

    // The same flags form another cluster once all are new.
    for id in cluster.ids() {
        cluster.stop(id).await;
        std::fs::remove_dir_all(cluster.directory(id)).unwrap();
    }
    for id in cluster.ids() {
        cluster.run(id).unwrap();
    }
    cluster.wait_for_leaders().await;
    assert_ne!(cluster.handle(1).cluster_id(), Some(formed));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_is_refused_by_a_node_that_had_been_away() {
    let mut cluster = Cluster::start(3).await;
    cluster.stop(2).await;
    let copied = cluster.root.path().join("copy");
    copy(&cluster.directory(2), &copied);
    cluster.run(2).unwrap();
    cluster.wait_for_leaders().await;
    write(&cluster, 1, "old").await;
    sleep(TOLD).await;
    cluster.stop(3).await;
    cluster.wait_for_leaders().await;
    write(&cluster, 1, "new").await;
    for id in [1, 2] {
        cluster.stop(id).await;
    }
    let newest = cluster.root.path().join("newest");
    copy(&cluster.directory(2), &newest);
    copy(&copied, &cluster.directory(2));

    cluster.run(3).unwrap();
    cluster.run(2).unwrap();
    let failure = failure(&cluster, 2).await;
    assert!(matches!(failure, FatalError::OlderCopy { peer: 3, .. }), "{failure:?}");
    let directory = cluster.directory(2);
    assert!(failure.to_string().contains(directory.to_str().unwrap()), "{failure}");
    cluster.stop(2).await;

    copy(&newest, &cluster.directory(2));
    cluster.run(2).unwrap();
    cluster.wait_for_leaders().await;
    assert_has(&cluster, 3, "new").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_went_on_with_an_older_copy_the_third_stops_the_shards() {
    let mut cluster = Cluster::start(3).await;
    write(&cluster, 1, "before").await;
    // Node 3 is away before anything tells the copy from what it was copied from.
    cluster.stop(3).await;
    cluster.stop(2).await;
    let copied = cluster.root.path().join("copy");
    copy(&cluster.directory(2), &copied);
    cluster.run(2).unwrap();
    cluster.wait_for_leaders().await;
    for _ in 0..10 {
        write(&cluster, 1, "acknowledged").await;
    }
    cluster.stop(2).await;
    cluster.stop(1).await;
    copy(&copied, &cluster.directory(2));

    // Nobody of these two can know better.
    cluster.run(2).unwrap();
    cluster.run(3).unwrap();
    cluster.wait_for_leaders().await;
    write(&cluster, 3, "another history").await;

    cluster.run(1).unwrap();
    let failure = failure(&cluster, 2).await;
    assert!(matches!(failure, FatalError::OlderCopy { .. }), "{failure:?}");
    cluster.stop(2).await;
    until("no shard with two histories is served", || {
        let both = [1, 3].map(|id| cluster.handle(id).status());
        (1..=SHARDS as usize).all(|shard| {
            both.iter().any(|states| states[shard].status.two_histories)
                && [1, 3].iter().all(|id| !leads(&cluster, *id, shard))
        })
    })
    .await;
    for id in [1, 3] {
        let refused = get(cluster.handle(id), &key_in(1)).await.unwrap_err();
        assert!(refused.message.contains("quorum") || refused.message.contains("two histories"));
    }
    cluster.stop_all().await;
}

fn leads(cluster: &Cluster, id: NodeId, shard: usize) -> bool {
    cluster.handle(id).leader(shard as u32) == Some(id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_directory_and_its_original_do_not_both_take_part() {
    let mut cluster = Cluster::start(3).await;
    write(&cluster, 1, "v").await;
    cluster.stop(3).await;
    let cloned = cluster.root.path().join("clone");
    copy(&cluster.directory(3), &cloned);
    cluster.run(3).unwrap();
    cluster.wait_for_leaders().await;
    write(&cluster, 3, "w").await;
    sleep(TOLD).await;

    let mut config = cluster.config_elsewhere(3, &cloned);
    config.endpoint = "http://clone".to_owned();
    let observer = std::sync::Arc::clone(&cluster.observer);
    let (clone, _handle) =
        trefoil_server::node::start(config, observer, crate::support::logger()).unwrap();
    let failure = timeout(WAIT, clone.failed()).await.expect("the others know another start");
    assert!(matches!(failure, FatalError::OlderCopy { .. }), "{failure:?}");
    clone.stop().await;
    assert_has(&cluster, 3, "w").await;
    write(&cluster, 3, "x").await;
    assert_has(&cluster, 2, "x").await;
    cluster.stop_all().await;
}
