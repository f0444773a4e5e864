//! Three real nodes: each has the same events at the same positions, after a restart as well.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use trefoil_core::machine::{Body, Event};
use trefoil_core::{BIRTH_INDEX, ShardId, slot};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Command, Drawn, answer};
use trefoil_proto::lock::v1::{self as lock, LockEventKind};
use trefoil_server::authorize::{Access, Action};
use trefoil_server::node::{Answered, CallContext, Handle};
use trefoil_server::watch::{Cursor, Filter, Topic};

use crate::support::{Cluster, SHARDS, WAIT};

const NAMESPACE: &str = "default";

fn shard() -> ShardId {
    slot::shard(slot::of_locks(NAMESPACE), SHARDS)
}

async fn command(handle: &Handle, action: Action, name: &str, operation: Operation) -> Answered {
    let (namespace, name) = (NAMESPACE.to_owned(), name.to_owned());
    let access = Access { action: action.into(), namespace, name, ..Access::default() };
    let ask =
        CallContext { access: access.into(), deadline: Instant::now() + WAIT, fingerprint: 0 };
    let command = Command {
        slot: slot::of_locks(NAMESPACE).into(),
        map_epoch: slot::MAP_EPOCH,
        drawn: rand::random::<[u8; 16]>().to_vec().into(),
        chance: Some(Drawn { high: rand::random(), low: rand::random() }),
        operation: Some(operation),
        ..Command::default()
    };
    handle.command(shard(), command, &ask).await.unwrap()
}

async fn open(handle: &Handle) -> u64 {
    let request = lock::OpenSessionRequest {
        namespace: NAMESPACE.to_owned(),
        ttl_ms: 60_000,
        ..Default::default()
    };
    let opened = command(handle, Action::UseSession, "", Operation::OpenSession(request)).await;
    match opened.answer.answer {
        Some(answer::Answer::OpenSession(opened)) => opened.session_id,
        other => panic!("{other:?}"),
    }
}

/// Acquires and releases; answers the index of the last release.
async fn work(handle: &Handle, session_id: u64, times: usize) -> u64 {
    let mut index = 0;
    for n in 0..times {
        let (namespace, name) = (NAMESPACE.to_owned(), format!("lock-{}", n % 3));
        let acquire = lock::AcquireRequest {
            namespace: namespace.clone(),
            session_id,
            name: name.clone(),
            ..Default::default()
        };
        command(handle, Action::UseLock, &name, Operation::Acquire(acquire)).await;
        let release = lock::ReleaseRequest {
            namespace,
            session_id,
            name: name.clone(),
            ..Default::default()
        };
        let released = command(handle, Action::UseLock, &name, Operation::Release(release)).await;
        index = released.position.index;
    }
    index
}

/// All events that a node has after an index, up to another one.
async fn events(handle: &Handle, after: u64, until: u64) -> Vec<(u64, u32, Event)> {
    let feeds = handle.feeds();
    timeout(WAIT, feeds.reached(shard(), until)).await.expect("the node applies what it gets");
    let filter = Filter { topic: Topic::Namespace(NAMESPACE.to_owned()), prefix: String::new() };
    let mut follower = feeds.follow(shard(), filter, Cursor::after(after)).unwrap();
    let mut all = Vec::new();
    loop {
        let (seen, more) = follower.take().unwrap();
        let seen = seen.iter().map(|seen| (seen.tip().index, seen.ordinal, seen.event().clone()));
        all.extend(seen);
        if !more {
            all.retain(|(index, ..)| *index <= until);
            return all;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_has_the_same_events_at_the_same_positions() {
    let mut cluster = Cluster::start(3).await;
    let session = open(cluster.handle(1)).await;
    let until = work(cluster.handle(2), session, 50).await;
    let first = events(cluster.handle(1), BIRTH_INDEX, until).await;
    assert_eq!(first.len(), 100);
    for id in cluster.ids() {
        assert_eq!(events(cluster.handle(id), BIRTH_INDEX, until).await, first);
    }
    // Whoever waits at a follower is woken by what it applies.
    let filter = Filter {
        topic: Topic::Name { namespace: NAMESPACE.to_owned(), name: "lock-1".to_owned() },
        prefix: String::new(),
    };
    let id = cluster.ids().into_iter().find(|id| cluster.handle(*id).leader(shard()) != Some(*id));
    let id = id.expect("two nodes follow");
    let mut follower =
        cluster.handle(id).feeds().follow(shard(), filter, Cursor::after(until)).unwrap();
    let waiting = tokio::spawn(async move { follower.next().await.unwrap() });
    let until = work(cluster.handle(1), session, 5).await;
    let seen = timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    let Body::Lock(event) = &seen[0].event().body;
    assert_eq!((event.kind(), event.name.as_str()), (LockEventKind::Acquired, "lock-1"));
    drop(seen);

    // A node that starts again knows what came after its last checkpoint, and goes on like the others.
    let away =
        cluster.ids().into_iter().find(|id| cluster.handle(*id).leader(shard()) != Some(*id));
    let away = away.unwrap();
    cluster.stop(away).await;
    let other = away % 3 + 1;
    let until = work(cluster.handle(other), session, 5).await.max(until);
    cluster.run(away).unwrap();
    let here = cluster.handle(away).feeds();
    timeout(WAIT, here.reached(shard(), until)).await.unwrap();
    let filter = Filter { topic: Topic::Namespace(NAMESPACE.to_owned()), prefix: String::new() };
    let from = match here.follow(shard(), filter, Cursor::after(BIRTH_INDEX)) {
        Ok(_) => BIRTH_INDEX,
        Err(gone) => gone.oldest,
    };
    let (ours, theirs) = (
        events(cluster.handle(away), from, until).await,
        events(cluster.handle(other), from, until).await,
    );
    assert!(ours.len() >= 10, "at least what it was away for: {}", ours.len());
    assert_eq!(ours, theirs);
    cluster.stop_all().await;
}
