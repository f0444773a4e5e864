//! How soon calls succeed again when a leader dies, hangs or is cut off, and how soon all others end. The figures are for
//! people; what is asserted is loose. FAILOVERS says how many of each kind (2).

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::Request;
use tonic::transport::Channel;
use trefoil_client::proto::cache::v1::PutRequest;
use trefoil_client::proto::cache::v1::cache_service_client::CacheServiceClient;
use trefoil_client::proto::common::v1::{RequestId, Value, value};
use trefoil_client::{Client, Reason};

use crate::proxy::Wires;
use crate::raw;
use crate::support::{Cluster, eventually};

/// Between two calls of one caller.
const PAUSE: Duration = Duration::from_millis(20);
/// Longer than any fail-over.
const WATCHED: Duration = Duration::from_secs(4);
/// A leader that stays has gaps of 9 s.
const NARROW_WATCHED: Duration = Duration::from_secs(15);
/// A call that ends later than that was held.
const HELD_MAX: Duration = Duration::from_secs(6);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Killed,
    Stopped,
    Cut,
}

fn repeats() -> usize {
    std::env::var("FAILOVERS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// A key whose shard a node leads.
async fn led_by(client: &Client, cluster: &Cluster, node: usize) -> String {
    let seen = cluster.nodes[node].status().await.unwrap();
    let led = |shard: u32| seen.shards.iter().any(|seen| seen.shard == shard && seen.role == 2);
    for n in 0.. {
        let key = format!("key {n}");
        if led(client.cache().put(&key, "first").await.unwrap().header.shard) {
            return key;
        }
    }
    unreachable!("there are more keys than shards")
}

/// Plain calls through one node that lives on, half of them with a request id: each its start and its end, and whether
/// it succeeded.
async fn call(put: PutRequest, node: Channel, until: Instant) -> Vec<(Instant, Instant, bool)> {
    let mut calls = JoinSet::new();
    for n in 1.. {
        let (mut cache, mut put) = (CacheServiceClient::new(node.clone()), put.clone());
        put.request_id = (n % 2 == 0).then(|| RequestId {
            client: "failover".to_owned(),
            sequence: n,
            first_unacknowledged: 1,
            attempt: 0,
        });
        calls.spawn(async move {
            let mut request = Request::new(put);
            request.set_timeout(Duration::from_secs(10));
            let began = Instant::now();
            let is_done = cache.put(request).await.is_ok();
            (began, Instant::now(), is_done)
        });
        if Instant::now() >= until {
            break;
        }
        sleep(PAUSE).await;
    }
    calls.join_all().await
}

/// Three nodes behind wires, the one that leads most, and a key that it leads.
async fn wired() -> (Wires, Cluster, usize, String) {
    let wires = Wires::lay(3).await;
    let mut cluster = Cluster::prepare_behind(&wires.addresses(), &[]).await;
    for (n, node) in cluster.nodes.iter_mut().enumerate() {
        wires.lead_to(n, node.peer_listen);
        node.start();
    }
    cluster.ready().await;
    let leader = cluster.busiest().await;
    let client = cluster.client().await;
    let key = led_by(&client, &cluster, leader).await;
    (wires, cluster, leader, key)
}

/// From the fault to the first success of a call that began after it, and the longest call.
async fn fail_over(fault: Fault) -> (Duration, Duration) {
    let (wires, mut cluster, leader, key) = wired().await;
    let through = raw::channel(&cluster.nodes[(leader + 1) % 3]);
    let began = Instant::now();
    let calls = tokio::spawn(call(raw::put_request(&key), through, began + WATCHED));
    sleep(Duration::from_millis(500)).await;
    let broken = Instant::now();
    match fault {
        Fault::Killed => cluster.nodes[leader].kill(),
        Fault::Stopped => cluster.nodes[leader].pause(),
        Fault::Cut => wires.cut(cluster.nodes[leader].id()),
    }
    let calls = calls.await.unwrap();
    if fault == Fault::Stopped {
        cluster.nodes[leader].resume();
    }
    let later = calls.iter().filter(|(began, _, is_done)| *is_done && *began >= broken);
    let first = later.map(|(_, ended, _)| *ended).min().expect("calls succeed again");
    let longest = calls.iter().map(|(began, ended, _)| *ended - *began).max().unwrap();
    (first - broken, longest)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

async fn measure(fault: Fault) {
    let (mut firsts, mut longest) = (Vec::new(), Vec::new());
    for _ in 0..repeats() {
        let (first, long) = fail_over(fault).await;
        firsts.push(first);
        longest.push(long);
    }
    firsts.sort();
    longest.sort();
    eprintln!(
        "{fault:?}, {} times: first success after {:?} (p50), {:?} (p99); longest call {:?} (p50), {:?} (p99)",
        firsts.len(),
        percentile(&firsts, 50),
        percentile(&firsts, 99),
        percentile(&longest, 50),
        percentile(&longest, 99),
    );
    assert!(firsts.last().unwrap() < &WATCHED, "{firsts:?}");
    assert!(longest.last().unwrap() < &HELD_MAX, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_succeed_soon_after_a_leader_was_killed() {
    measure(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_succeed_soon_after_a_leader_was_stopped() {
    measure(Fault::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_succeed_soon_after_a_leader_was_cut_off() {
    measure(Fault::Cut).await;
}

/// Fifty values of 16 KiB a second are 25 times what the wires of the leader carry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_behind_a_narrow_link_hands_over() {
    let (wires, cluster, leader, key) = wired().await;
    let mut put = raw::put_request(&key);
    let text = value::Kind::Text("x".repeat(16 << 10));
    put.value = Some(Value { kind: Some(text) });
    let through = raw::channel(&cluster.nodes[(leader + 1) % 3]);
    let until = Instant::now() + NARROW_WATCHED;
    let calls = tokio::spawn(call(put, through, until));
    sleep(Duration::from_millis(500)).await;
    let narrowed = Instant::now();
    wires.narrow(cluster.nodes[leader].id(), 32_000);
    let calls = calls.await.unwrap();
    let mut ends = calls.iter().filter(|call| call.2).map(|call| call.1).collect::<Vec<_>>();
    ends.retain(|end| *end > narrowed);
    ends.extend([narrowed, until]);
    ends.sort();
    let longest = ends.windows(2).map(|two| two[1] - two[0]).max().expect("two ends");
    eprintln!("behind a narrow link: {} successes, longest gap {longest:?}", ends.len() - 2);
    assert!(longest < HELD_MAX, "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_quorum_answers_what_waits_and_then_at_once() {
    let cluster = Cluster::start().await;
    let alone = cluster.nodes[0].endpoint();
    let client = Client::builder([alone]).timeout(Duration::from_secs(10)).build().unwrap();
    let key = led_by(&client, &cluster, 0).await;
    for node in &cluster.nodes[1..] {
        node.pause();
    }
    // The raw call: the client itself would go on asking until its own deadline.
    let ask = async || {
        let began = Instant::now();
        let refused = raw::put(&cluster.nodes[0], &key, Duration::from_secs(9)).await;
        (refused.expect_err("nobody could take it"), began.elapsed())
    };
    let (why, after) = ask().await;
    eprintln!("a call that was under way ended with {why:?} after {after:?}");
    assert!(matches!(why, Some(Reason::NoQuorum | Reason::MaybeApplied)), "{why:?}");
    assert!(after < Duration::from_secs(5), "{after:?}");
    eventually("a call that comes later is answered at once", async || {
        let (why, after) = ask().await;
        why == Some(Reason::NoQuorum) && after < Duration::from_millis(100)
    })
    .await;
    for node in &cluster.nodes[1..] {
        node.resume();
    }
    let works = async || timeout(WATCHED, client.cache().put(&key, "later")).await;
    eventually("it works again", async || matches!(works().await, Ok(Ok(_)))).await;
}
