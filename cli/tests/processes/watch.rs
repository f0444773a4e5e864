//! A watch of locks goes on over the loss of any node, and tells each event once and in order.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use trefoil_client::{Client, LockEvent, LockEventKind, LockWatch, Reason, WatchPosition};

use crate::support::{Cluster, PATIENCE, trefoil};

/// Names that one worker goes through.
const LOCKS: usize = 4;

/// Acquires and releases until told to stop, and says which grants it had.
async fn work(client: Client, stop: tokio::sync::watch::Receiver<bool>) -> Vec<(String, u64)> {
    let session = client.session(Duration::from_secs(60)).owner("worker").await;
    let session = session.unwrap();
    let mut granted = Vec::new();
    for n in 0.. {
        if *stop.borrow() {
            break;
        }
        let name = format!("job/{}", n % LOCKS);
        let lock = session.lock(name.as_str()).wait(Duration::from_secs(20));
        let guard = lock.acquire().await.unwrap().expect("nobody else wants it");
        granted.push((name, guard.token()));
        guard.release().await.unwrap();
        sleep(Duration::from_millis(2)).await;
    }
    session.lock("job/end").acquire().await.unwrap().expect("it is free").release().await.unwrap();
    granted
}

/// Everything up to the release of the last lock.
async fn watch(mut watch: LockWatch) -> Vec<LockEvent> {
    let mut seen = Vec::new();
    loop {
        let event = timeout(PATIENCE, watch.next()).await.expect("it goes on").unwrap();
        let is_last = event.name == "job/end" && event.kind() == LockEventKind::Released;
        seen.push(event);
        if is_last {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_every_event_once_while_nodes_are_killed() {
    let mut cluster = Cluster::start().await;
    let mut first = cluster.client().await.locks().watch("job/");
    let begun = first.started().await.unwrap();
    let watching = tokio::spawn(watch(first));
    let mut command = trefoil(&cluster, &["lock", "watch", "--prefix", "job/", "-o", "json"]);
    let after = format!("{}/{}/{}", begun.cluster_id, begun.shard, begun.index);
    let mut program = command.args(["--after", &after]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap());
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let working = tokio::spawn(work(cluster.client().await, stopping));

    for n in 0..cluster.nodes.len() {
        sleep(Duration::from_secs(1)).await;
        cluster.nodes[n].kill();
        sleep(Duration::from_secs(2)).await;
        cluster.nodes[n].start();
        cluster.ready().await;
    }
    stop.send(true).unwrap();
    let granted = working.await.unwrap();
    let seen = watching.await.unwrap();

    assert!(granted.len() > 100, "{} grants", granted.len());
    assert!(seen.is_sorted_by(|a, b| (a.index, a.ordinal) < (b.index, b.ordinal)), "in order");
    let acquired = seen.iter().filter(|event| event.kind() == LockEventKind::Acquired);
    let acquired = acquired.map(|event| (event.name.clone(), event.fencing_token));
    let acquired = acquired.filter(|(name, _)| name != "job/end").collect::<Vec<_>>();
    assert_eq!(acquired, granted, "each grant once, and none else");
    for name in (0..LOCKS).map(|n| format!("job/{n}")) {
        let of_lock = seen.iter().filter(|event| event.name == name).collect::<Vec<_>>();
        for pair in of_lock.chunks(2) {
            assert_eq!(pair[0].kind(), LockEventKind::Acquired);
            assert_eq!(pair[1].kind(), LockEventKind::Released);
            assert_eq!(pair[0].fencing_token, pair[1].fencing_token);
            assert_eq!(pair[0].owner, "worker");
        }
    }

    // The program on the command line saw the same. It goes on, so no line more than these is read.
    for (event, line) in seen.iter().zip(lines.lines()) {
        let line = serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap();
        let place = (line["index"].as_u64(), line["ordinal"].as_u64(), line["lock"].as_str());
        assert_eq!(
            place,
            (Some(event.index), Some(event.ordinal.into()), Some(event.name.as_str()))
        );
    }
    program.kill().unwrap();
    program.wait().unwrap();

    // No node knows what led to the beginning, whether all of them can be asked or not.
    let endpoints = cluster.endpoints();
    let from = |index| {
        let (endpoints, begun) = (endpoints.clone(), begun.clone());
        async move {
            let client = Client::builder(endpoints).timeout(Duration::from_secs(4)).connect().await;
            let watch = client.unwrap().locks().watch("");
            let mut watch = watch.after(WatchPosition { index, ordinal: None, ..begun });
            watch.next().await.unwrap_err().reason()
        }
    };
    assert_eq!(from(1).await, Some(Reason::PositionCompacted));
    assert_eq!(from(1 << 40).await, Some(Reason::InvalidField));
    cluster.nodes[0].kill();
    assert_eq!(from(1).await, Some(Reason::PositionCompacted));
}
