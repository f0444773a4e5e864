//! Calls that wait for a lock by a stream keep their place while nodes are killed, and are told it.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use trefoil_client::{Client, Guard};

use crate::support::{Cluster, eventually, trefoil};

type Places = Arc<Mutex<Vec<u64>>>;

/// Waits for the lock by a stream, and notes the places that it was told.
fn wait(client: Client, places: &Places) -> JoinHandle<Guard> {
    let places = Arc::clone(places);
    tokio::spawn(async move {
        let session = client.session(Duration::from_secs(60)).await.unwrap();
        let lock = session.lock("line").wait(Duration::from_secs(60));
        let tell = |place: trefoil_client::WaitPlace| places.lock().unwrap().push(place.ahead);
        lock.acquire_telling(tell).await.unwrap().expect("its turn comes")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_in_line_outlives_nodes() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let session = client.session(Duration::from_secs(60)).await.unwrap();
    let held = session.lock("line").acquire().await.unwrap().unwrap();
    let mut waiting = Vec::new();
    for place in 0..2 {
        let places = Places::default();
        waiting.push((wait(cluster.client().await, &places), Arc::clone(&places)));
        eventually("it is told its place", async || places.lock().unwrap().last() == Some(&place))
            .await;
    }
    let mut command =
        trefoil(&cluster, &["lock", "acquire", "line", "--wait", "60s", "--progress"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the command waits as well", async || {
        client.locks().describe("line").await.is_ok_and(|lock| lock.waiter_count == 3)
    })
    .await;
    for n in 0..cluster.nodes.len() {
        cluster.nodes[n].kill();
        sleep(Duration::from_secs(2)).await;
        cluster.nodes[n].start();
        cluster.ready().await;
    }
    let mut token = held.token();
    held.release().await.unwrap();
    let (second, third) = (waiting.remove(0), waiting.remove(0));
    let guard = second.0.await.unwrap();
    assert!(guard.token() > token && !third.0.is_finished(), "first in, first out");
    token = guard.token();
    eventually("the third is told that it is next", async || {
        third.1.lock().unwrap().last() == Some(&0)
    })
    .await;
    guard.release().await.unwrap();
    let guard = third.0.await.unwrap();
    assert!(guard.token() > token);
    guard.release().await.unwrap();
    let output = command.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("trefoil: waiting for line, held by "), "{told}");
    let places = told.lines().filter(|line| line.starts_with("trefoil: waiting, "));
    let places = places.collect::<Vec<_>>();
    assert_eq!(places.first(), Some(&"trefoil: waiting, 2 before this call"), "{told}");
    assert!(places.contains(&"trefoil: waiting, 1 before this call"), "{told}");
}
