//! Three real nodes on loopback: they elect, answer from every side, come and go, and keep strangers out.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use trefoil_core::ShardId;
use trefoil_core::machine::{Counts, Gauges};
use trefoil_core::replica::obstacles::Obstacles;
use trefoil_core::replica::{Role, Tuning};
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::Refusal;
use trefoil_server::node::{FatalError, Observer, PeerOperation};

use trefoil_server::authorize::{Action, Principal, Resource};

use crate::support::{
    Cluster, SHARDS, WAIT, ask, get, get_query, key_in, put, put_command, shard_of, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_node_answers_for_every_shard() {
    let cluster = Cluster::start(3).await;
    for id in cluster.ids() {
        for shard in 1..=SHARDS {
            let (key, text) = (key_in(shard), format!("by {id}"));
            let answered = put(cluster.handle(id), &key, &text).await.unwrap();
            assert_eq!(Some(answered.node), cluster.handle(id).leader(shard));
            for reader in cluster.ids() {
                assert_eq!(get(cluster.handle(reader), &key).await.unwrap(), Some(text.clone()));
            }
        }
        let endpoint = cluster.handle(id).endpoint_of(id % 3 + 1);
        assert_eq!(endpoint, Some(format!("http://node-{}", id % 3 + 1)));
    }
    assert_eq!(get(cluster.handle(1), "nobody put this").await.unwrap(), None);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_are_spread() {
    let cluster = Cluster::start(3).await;
    until("every shard is led where it prefers", || {
        (0..=SHARDS).all(|shard| cluster.handle(1).leader(shard) == Some(u64::from(shard) % 3 + 1))
    })
    .await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_alone_is_a_cluster_and_keeps_what_it_was_told() {
    let mut cluster = Cluster::start(1).await;
    put(cluster.handle(1), "k", "v").await.unwrap();
    cluster.stop(1).await;
    cluster.run(1).unwrap();
    assert_eq!(get(cluster.handle(1), "k").await.unwrap(), Some("v".to_owned()));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_while_nodes_are_restarted_one_after_another() {
    let mut cluster = Cluster::start(3).await;
    for id in cluster.ids() {
        let writer = cluster.handle(id % 3 + 1).clone();
        let writing = tokio::spawn(async move {
            let began = Instant::now();
            let mut written = 0;
            while began.elapsed() < Duration::from_secs(3) {
                let key = format!("{id}-{written}");
                // With a request id a put whose end was not seen is tried again, and has one effect.
                let request_id = RequestId {
                    client: format!("writer-{id}"),
                    sequence: written + 1,
                    first_unacknowledged: written,
                    attempt: 0,
                };
                let command = put_command(&writer, &key, "v", Some(request_id));
                let ask = ask(Action::WriteValue, &key, WAIT);
                writer.command(shard_of(&key), command, &ask).await.unwrap();
                written += 1;
            }
            written
        });
        cluster.stop(id).await;
        cluster.run(id).unwrap();
        cluster.wait_for_leaders().await;
        let written = writing.await.unwrap();
        assert!(written > 10, "{written} puts in three seconds");
        for key in [0, written - 1] {
            assert_eq!(
                get(cluster.handle(id), &format!("{id}-{key}")).await.unwrap(),
                Some("v".to_owned())
            );
        }
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_for_long_catches_up_by_snapshot() {
    let mut cluster = Cluster::new(3);
    cluster.tuning = Tuning {
        checkpoint_log_bytes: 1 << 20,
        log_bytes_max: 2 << 20,
        log_cache_bytes: 256 << 10,
        ..Tuning::default()
    };
    for id in cluster.ids() {
        cluster.run(id).unwrap();
    }
    cluster.wait_for_leaders().await;
    put(cluster.handle(1), "before", "v").await.unwrap();
    let behind = cluster.handle(3).status();
    cluster.stop(3).await;

    let text = "x".repeat(32 << 10);
    for n in 0..300 {
        put(cluster.handle(1), &format!("key-{n}"), &text).await.unwrap();
    }
    until("the log was cut beyond what node 3 has", || {
        let ahead = cluster.handle(1).status().into_iter().chain(cluster.handle(2).status());
        let cut = |shard: ShardId| {
            let before = behind[shard as usize].status.last_index;
            ahead
                .clone()
                .filter(|state| state.shard == shard)
                .all(|state| state.status.first_index > before + 1)
        };
        (1..=SHARDS).all(cut)
    })
    .await;

    cluster.run(3).unwrap();
    cluster.wait_for_leaders().await;
    // Writes go on while it catches up.
    for n in 0..50 {
        put(cluster.handle(3), &format!("key-{n}"), "new").await.unwrap();
    }
    until("node 3 has applied what the others have", || {
        let (ours, theirs) = (cluster.handle(3).status(), cluster.handle(1).status());
        ours.iter()
            .zip(&theirs)
            .all(|(ours, theirs)| ours.status.applied_index >= theirs.status.applied_index)
    })
    .await;
    // It can lead by what it has.
    for shard in 1..=SHARDS {
        let leader = cluster.handle(3).leader(shard).unwrap();
        if leader != 3 {
            cluster.handle(leader).transfer_leader(shard, 3).await.unwrap();
        }
    }
    cluster.wait_for_leaders().await;
    assert_eq!(get(cluster.handle(3), "before").await.unwrap(), Some("v".to_owned()));
    assert_eq!(get(cluster.handle(3), "key-7").await.unwrap(), Some("new".to_owned()));
    assert_eq!(get(cluster.handle(3), "key-299").await.unwrap(), Some(text));

    // And what it received survives a restart.
    cluster.stop(3).await;
    cluster.run(3).unwrap();
    cluster.wait_for_leaders().await;
    assert_eq!(get(cluster.handle(3), "before").await.unwrap(), Some("v".to_owned()));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_stopped_and_started_have_everything() {
    let mut cluster = Cluster::start(3).await;
    for n in 0..50 {
        put(cluster.handle(n % 3 + 1), &format!("key-{n}"), &n.to_string()).await.unwrap();
    }
    for id in cluster.ids() {
        cluster.stop(id).await;
    }
    for id in cluster.ids() {
        cluster.run(id).unwrap();
    }
    cluster.wait_for_leaders().await;
    for n in 0..50 {
        assert_eq!(
            get(cluster.handle(n % 3 + 1), &format!("key-{n}")).await.unwrap(),
            Some(n.to_string())
        );
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_is_kept_out() {
    let mut cluster = Cluster::start(3).await;
    cluster.stop(3).await;
    let own = std::mem::replace(&mut cluster.setup, *b"another cluster!");
    let elsewhere = cluster.root.path().join("elsewhere");
    let config = cluster.config(3, &elsewhere);
    let observer = Arc::new(trefoil_server::node::Unobserved);
    let (stranger, handle) =
        trefoil_server::node::start(config, observer, crate::support::logger()).unwrap();
    let refusal = handle
        .query(
            1,
            get_query(&handle, &key_in(1)),
            &ask(Action::ReadValue, &key_in(1), Duration::from_secs(3)),
        )
        .await;
    assert_eq!(
        refusal.unwrap_err().reason(),
        Reason::NoQuorum,
        "it finds no leader among strangers"
    );
    for shard in handle.status() {
        assert_eq!(shard.status.commit_index, trefoil_core::BIRTH_INDEX, "it heard nothing");
    }
    assert_eq!(handle.endpoint_of(1), None);
    put(cluster.handle(1), &key_in(1), "v").await.unwrap();
    stranger.stop().await;
    cluster.setup = own;
    cluster.run(3).unwrap();
    cluster.wait_for_leaders().await;
    assert_eq!(get(cluster.handle(3), &key_in(1)).await.unwrap(), Some("v".to_owned()));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_decides_again_about_a_forwarded_call() {
    fn deny_secrets(_: &Principal, action: Action, on: Resource<'_>) -> Result<(), Refusal> {
        match on {
            Resource::Key { key, .. }
                if key.starts_with("secret") && action == Action::ReadValue =>
            {
                Err(Refusal { reason: Reason::PermissionDenied.into(), ..Refusal::default() })
            }
            _ => Ok(()),
        }
    }
    let mut cluster = Cluster::new(3);
    cluster.authorizer = deny_secrets;
    for id in cluster.ids() {
        cluster.run(id).unwrap();
    }
    cluster.wait_for_leaders().await;
    let shard = shard_of("secret");
    let leader = cluster.handle(1).leader(shard).unwrap();
    let follower = cluster.handle(leader % 3 + 1);
    put(follower, "secret", "v").await.unwrap();

    let denied = get(follower, "secret").await.unwrap_err();
    assert_eq!(denied.reason(), Reason::PermissionDenied, "the policy of the leader");
    // Leave for one thing is no leave for another.
    for other in [
        ask(Action::WriteValue, "another", WAIT),
        ask(Action::ReadValue, "secret", WAIT),
        ask(Action::Unspecified, "secret", WAIT),
    ] {
        let command = put_command(follower, "secret", "w", None);
        let denied = follower.command(shard, command, &other).await.unwrap_err();
        assert_eq!(denied.reason(), Reason::PermissionDenied, "{other:?}");
    }
    let there = get(cluster.handle(leader), "secret").await.unwrap();
    assert_eq!(there, Some("v".to_owned()), "no denied call had an effect");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_emptied_directory_fails_and_says_so() {
    let mut cluster = Cluster::start(3).await;
    put(cluster.handle(1), "k", "v").await.unwrap();
    cluster.stop(3).await;
    std::fs::remove_dir_all(cluster.directory(3)).unwrap();
    cluster.run(3).unwrap();
    let failure = timeout(WAIT, cluster.node(3).failed()).await.expect("a peer tells it");
    assert!(matches!(failure, FatalError::Replaced { peer: 1 | 2, .. }), "{failure:?}");
    assert!(failure.to_string().contains("docs/operations.md"));
    let voted = cluster
        .handle(3)
        .status()
        .into_iter()
        .any(|state| state.status.commit_index > trefoil_core::BIRTH_INDEX);
    assert!(!voted, "it took no part");
    assert_eq!(get(cluster.handle(1), "k").await.unwrap(), Some("v".to_owned()));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_calls_end_by_their_deadline_and_say_why() {
    let mut cluster = Cluster::start(3).await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    until("node 1 knows that it has no quorum", || {
        cluster.handle(1).status().iter().all(|state| state.status.role.role != Role::Leader)
    })
    .await;
    let (handle, key) = (cluster.handle(1), key_in(1));
    let began = Instant::now();
    let command = put_command(handle, &key, "v", None);
    let refusal = handle
        .command(1, command, &ask(Action::WriteValue, &key, Duration::from_millis(700)))
        .await
        .unwrap_err();
    assert_eq!(refusal.reason(), Reason::NoQuorum);
    assert!(began.elapsed() < Duration::from_secs(1));
    let refusal = handle
        .query(
            1,
            get_query(handle, &key),
            &ask(Action::ReadValue, &key, Duration::from_millis(300)),
        )
        .await;
    assert_eq!(refusal.unwrap_err().reason(), Reason::NoQuorum);
    let refusal = handle.transfer_leader(1, 2).await.unwrap_err();
    assert_eq!(refusal.reason(), Reason::NoQuorum);
    assert_eq!(handle.calls_in_flight(), 0);
    cluster.stop_all().await;
}

/// Remembers what it is told.
#[derive(Debug, Default)]
struct Recorder {
    seen: Mutex<Vec<String>>,
}

impl Recorder {
    fn note(&self, what: String) {
        let mut seen = self.seen.lock().unwrap();
        if !seen.contains(&what) {
            seen.push(what);
        }
    }
}

impl Observer for Recorder {
    fn role(&self, shard: ShardId, role: Role, _: u64) {
        self.note(format!("role {shard} {role:?}"));
    }
    fn applied(&self, _: ShardId, is_leader: bool, _: &Counts, _: &Gauges) {
        self.note(format!("applied {is_leader}"));
    }
    fn fsync(&self, seconds: f64) {
        self.note(format!("fsync {}", seconds > 0.0));
    }
    fn checkpoint(&self, _: ShardId, _: f64, bytes: u64) {
        self.note(format!("checkpoint {}", bytes > 0));
    }
    fn scrubbed(&self, _: u64, _: bool) {}
    fn disk(&self, free_bytes: u64, low: bool) {
        self.note(format!("disk {} {low}", free_bytes > 0));
    }
    fn obstacles(&self, of_shards: &[Obstacles]) {
        self.note(format!("obstacles {of_shards:?}"));
    }
    fn rpc(&self, operation: PeerOperation, _: f64) {
        self.note(format!("rpc {}", operation.name()));
    }
    fn diverged(&self, _: ShardId) {
        self.note("diverged".to_owned());
    }
    fn damage(&self, _: ShardId) {
        self.note("damage".to_owned());
    }
    fn whole(&self, _: ShardId) {}
    fn disputed(&self, _: ShardId, _: bool) {
        self.note("disputed".to_owned());
    }
    fn two_histories(&self, _: ShardId) {
        self.note("two histories".to_owned());
    }
    fn forwarded(&self, shard: ShardId) {
        self.note(format!("forwarded {shard}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_sees_roles_applies_syncs_checkpoints_and_exchanges() {
    let recorder = Arc::new(Recorder::default());
    let mut cluster = Cluster::new(3);
    cluster.observer = Arc::clone(&recorder) as Arc<dyn Observer>;
    cluster.tuning.checkpoint_overlay_bytes = 4 << 10;
    for id in cluster.ids() {
        cluster.run(id).unwrap();
    }
    cluster.wait_for_leaders().await;
    for n in 0..30 {
        // Two of the three have to forward it.
        for id in cluster.ids() {
            put(cluster.handle(id), &format!("key-{n}"), &"x".repeat(1 << 10)).await.unwrap();
        }
    }
    let expected = [
        "role 0 Leader",
        "role 0 Follower",
        "applied true",
        "applied false",
        "fsync true",
        "checkpoint true",
        "disk true false",
        "rpc append_entries",
        "rpc request_vote",
        "rpc heartbeat",
        "forwarded 1",
        "forwarded 2",
        "forwarded 3",
    ];
    until("all of it was seen", || {
        let seen = recorder.seen.lock().unwrap();
        expected.iter().all(|expected| seen.iter().any(|seen| seen == expected))
    })
    .await;
    assert!(!recorder.seen.lock().unwrap().contains(&"diverged".to_owned()));
    cluster.stop_all().await;
}
