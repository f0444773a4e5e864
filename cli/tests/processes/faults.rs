//! What was acknowledged survives: kill -9 of leaders under load, of all nodes at once, and a long absence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use trefoil_client::{Client, Message, Value};

use crate::support::{Cluster, eventually};

const KILLS: usize = 5;
const CALLERS: u64 = 4;
const OPERATIONS_MIN: usize = 1_000;

/// What was acknowledged.
#[derive(Default)]
struct Acknowledged {
    /// Cache: key to value.
    puts: BTreeMap<String, String>,
    /// Queue: message id to value.
    messages: BTreeMap<String, String>,
    /// Locks: name to the tokens of its grants, in the order of their answers.
    tokens: BTreeMap<String, Vec<u64>>,
    /// When each put was acknowledged.
    put_at: Vec<Instant>,
    /// Calls that ended without an answer.
    unanswered: usize,
}

type Log = Arc<Mutex<Acknowledged>>;

/// Callers of all three services, until told to stop.
struct Load {
    callers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    log: Log,
}

impl Load {
    async fn start(cluster: &Cluster) -> Self {
        let (stop, log) = (Arc::new(AtomicBool::new(false)), Log::default());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let client = cluster.client().await;
            callers.spawn(puts(client.clone(), caller, Arc::clone(&stop), Arc::clone(&log)));
            callers.spawn(messages(client.clone(), caller, Arc::clone(&stop), Arc::clone(&log)));
            callers.spawn(locks(client, caller, Arc::clone(&stop), Arc::clone(&log)));
        }
        Self { callers, stop, log }
    }

    async fn counts(&self) -> [usize; 3] {
        let log = self.log.lock().await;
        [log.puts.len(), log.messages.len(), log.tokens.values().map(Vec::len).sum()]
    }

    async fn stop(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await;
        std::mem::take(&mut *self.log.lock().await)
    }
}

async fn puts(client: Client, caller: u64, stop: Arc<AtomicBool>, log: Log) {
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (key, value) = (format!("{caller}/{n}"), format!("value {n}"));
        let put = client.cache().put(key.clone(), value.clone()).await;
        let mut log = log.lock().await;
        match put {
            Ok(_) => {
                log.puts.insert(key, value);
                log.put_at.push(Instant::now());
            }
            Err(_) => log.unanswered += 1,
        }
    }
}

async fn messages(client: Client, caller: u64, stop: Arc<AtomicBool>, log: Log) {
    let queue = client.queue("load");
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let value = format!("{caller}/{n}");
        let enqueued = queue.enqueue([Message::new(value.clone()).key(format!("key-{n}"))]).await;
        let mut log = log.lock().await;
        match enqueued {
            Ok(ids) => drop(log.messages.insert(ids[0].clone(), value)),
            Err(_) => log.unanswered += 1,
        }
    }
}

/// All callers take turns on one lock; a grant counts when it was released while it was certainly held.
async fn locks(client: Client, caller: u64, stop: Arc<AtomicBool>, log: Log) {
    let name = format!("lock-{}", caller % 2);
    'sessions: while !stop.load(Ordering::Relaxed) {
        let Ok(session) = client.locks().open_session(Duration::from_secs(15)).await else {
            log.lock().await.unanswered += 1;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            match session.lock(name.as_str()).wait(Duration::from_secs(5)).acquire().await {
                Ok(Some(guard)) => {
                    // Held while it is written down, so that the order written is the order of the grants.
                    log.lock().await.tokens.entry(name.clone()).or_default().push(guard.token());
                    guard.release().await.ok();
                }
                Ok(None) => {}
                Err(_) => {
                    log.lock().await.unanswered += 1;
                    continue 'sessions;
                }
            }
        }
    }
}

/// Everything that was acknowledged is there, and nothing twice that was acknowledged once.
async fn check(client: &Client, told: &Acknowledged) {
    for (key, value) in &told.puts {
        let entry = client.cache().get(key.as_str()).await.unwrap();
        assert_eq!(entry.map(|entry| entry.value), Some(Value::from(value.as_str())), "{key}");
    }
    let mut delivered = BTreeMap::new();
    loop {
        let deliveries = client
            .queue("load")
            .dequeue()
            .max(500)
            .wait(Duration::from_secs(2))
            .lease(Duration::from_secs(120))
            .await
            .unwrap();
        if deliveries.is_empty() {
            break;
        }
        for delivery in deliveries {
            let value = delivery.value().as_text().unwrap_or_default().to_owned();
            assert_eq!(
                delivered.insert(delivery.message_id().to_owned(), value),
                None,
                "a leased message came again"
            );
        }
    }
    for (id, value) in &told.messages {
        assert_eq!(delivered.get(id), Some(value), "message {id} was acknowledged");
    }
    let values = delivered.values().collect::<BTreeSet<_>>();
    assert_eq!(values.len(), delivered.len(), "a retried enqueue stored its message once");
    for (name, tokens) in &told.tokens {
        assert!(tokens.windows(2).all(|two| two[0] < two[1]), "tokens of {name} rise");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_leader_of_most_shards_under_load_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let load = Load::start(&cluster).await;
    let mut outages = Vec::new();
    for _ in 0..KILLS {
        sleep(Duration::from_secs(1)).await;
        let leader = cluster.busiest().await;
        let killed = Instant::now();
        cluster.nodes[leader].kill();
        sleep(Duration::from_secs(4)).await;
        outages.push(longest_gap(&load.log, killed).await);
        cluster.nodes[leader].start();
        cluster.ready().await;
    }
    eventually("1,000 operations of each service", async || {
        load.counts().await.into_iter().all(|count| count >= OPERATIONS_MIN)
    })
    .await;
    let told = load.stop().await;
    outages.sort();
    eprintln!("longest time without an acknowledged put after each kill -9: {outages:?}");
    eprintln!(
        "acknowledged: {} puts, {} messages, {} grants; {} calls without an answer",
        told.puts.len(),
        told.messages.len(),
        told.tokens.values().map(Vec::len).sum::<usize>(),
        told.unanswered
    );
    check(&cluster.client().await, &told).await;
}

/// The longest time between two acknowledged puts since a moment, or since the last of them.
async fn longest_gap(log: &Log, since: Instant) -> Duration {
    let log = log.lock().await;
    let acknowledged = log.put_at.iter().copied().filter(|at| *at >= since);
    let moments =
        std::iter::once(since).chain(acknowledged).chain([Instant::now()]).collect::<Vec<_>>();
    moments.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_all_nodes_at_once_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let load = Load::start(&cluster).await;
    let client = cluster.client().await;
    let session = client.locks().open_session(Duration::from_secs(600)).await.unwrap();
    let held = session.lock("held through it").acquire().await.unwrap().expect("it is free");
    sleep(Duration::from_secs(3)).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.ready().await;
    let told = load.stop().await;
    assert!(!told.puts.is_empty() && !told.messages.is_empty() && !told.tokens.is_empty());
    check(&client, &told).await;

    let other = client.locks().open_session(Duration::from_secs(10)).await.unwrap();
    assert!(other.lock("held through it").acquire().await.unwrap().is_none(), "the grant survives");
    held.release().await.unwrap();
    assert!(other.lock("held through it").acquire().await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_costs_no_acknowledged_write() {
    let cluster = Cluster::start().await;
    let load = Load::start(&cluster).await;
    sleep(Duration::from_secs(1)).await;
    let leader = cluster.busiest().await;
    let stopped = Instant::now();
    cluster.nodes[leader].pause();
    sleep(Duration::from_secs(8)).await;
    let outage = longest_gap(&load.log, stopped).await;
    cluster.nodes[leader].resume();
    sleep(Duration::from_secs(2)).await;
    let told = load.stop().await;
    eprintln!("longest time without an acknowledged put after SIGSTOP: {outage:?}");
    assert!(outage < Duration::from_secs(8), "the others take over");
    check(&cluster.client().await, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_for_long_catches_up_by_snapshot() {
    const VALUE_BYTES: usize = 1 << 20;
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await.with_timeout(Duration::from_secs(30));
    client.cache().put("big", vec![0; 8]).await.unwrap();
    let shard = client.cache().get("big").await.unwrap().unwrap().header.shard;
    let seen = cluster.nodes[0].status().await.unwrap();
    let leader = seen.shards.iter().find(|seen| seen.shard == shard).unwrap().leader_id;
    let mut away = None;
    for (n, node) in cluster.nodes.iter().enumerate() {
        if node.status().await.unwrap().header.unwrap().node_id != leader {
            away = Some(n);
        }
    }
    let away = away.expect("two of three nodes do not lead it");
    let last_index = async |node: &crate::support::Node| {
        let status = node.status().await.ok()?;
        status.shards.into_iter().find(|seen| seen.shard == shard)
    };
    let before = last_index(&cluster.nodes[away]).await.unwrap().last_index;
    cluster.nodes[away].kill();

    // One key again and again: the log grows, the state does not, until the log is cut past what the node had.
    let leader =
        cluster.nodes.iter().position(|node| node.name != cluster.nodes[away].name).unwrap();
    let mut written = 0_u64;
    eventually("the log is cut past what the absent node has", async || {
        for _ in 0..16 {
            written += 1;
            let mut value = vec![7; VALUE_BYTES];
            value[..8].copy_from_slice(&written.to_be_bytes());
            client.cache().put("big", value).await.unwrap();
        }
        last_index(&cluster.nodes[leader]).await.is_some_and(|seen| seen.first_index > before + 1)
    })
    .await;

    cluster.nodes[away].start();
    eventually("it has caught up while writes go on", async || {
        written += 1;
        client.cache().put("big", written.to_be_bytes().to_vec()).await.unwrap();
        let there = last_index(&cluster.nodes[leader]).await.map(|seen| seen.commit_index);
        let here = last_index(&cluster.nodes[away]).await;
        here.zip(there).is_some_and(|(here, there)| {
            here.first_index > before && here.applied_index + 64 >= there
        })
    })
    .await;
    let entry = client.cache().get("big").await.unwrap().unwrap();
    assert_eq!(entry.value.as_bytes(), written.to_be_bytes());
}
