//! What was acknowledged survives: kill -9 of leaders under load, of all nodes at once, and a long absence.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use trefoil_client::Client;
use trefoil_client::proto::cluster::v1::ShardStatus;
use trefoil_sim::check::history::{Action, RecordedOutcome};

use crate::record::{Recorded, Recorder};
use crate::support::{Cluster, Node, eventually};

const KILLS: usize = 5;
const CALLERS: u64 = 4;
const KEYS: u64 = 16;
const OPERATIONS_MIN: usize = 1_000;
const QUEUE: &str = "load";
/// Longer than a fail-over, and short enough to wait for.
const LEASE_MS: u64 = 10_000;

/// Callers of all three services, until told to stop.
struct Load {
    callers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    recorder: Arc<Recorder>,
}

impl Load {
    async fn start(cluster: &Cluster) -> Self {
        let (stop, recorder) = (Arc::new(AtomicBool::new(false)), Arc::new(Recorder::new()));
        // One partition, so that the order of its messages can be checked.
        cluster.client().await.queue(QUEUE).create(1).await.unwrap();
        let mut callers = JoinSet::new();
        for id in 0..CALLERS {
            let client = cluster.client().await;
            let run = (Arc::clone(&recorder), client, Arc::clone(&stop));
            callers.spawn(use_cache(run.clone(), 4 * id));
            callers.spawn(produce(run.clone(), 4 * id + 1));
            callers.spawn(consume(run.clone(), 4 * id + 2));
            callers.spawn(use_locks(run, 4 * id + 3));
        }
        Self { callers, stop, recorder }
    }

    /// Acknowledged operations of the cache, the queue and the locks.
    fn counts(&self) -> [usize; 3] {
        self.recorder.read(|history| {
            history.answered().fold([0; 3], |mut counts, (call, ..)| {
                let service = match call.action {
                    Action::Put { .. } | Action::Get { .. } | Action::Delete { .. } => 0,
                    Action::Enqueue { .. } | Action::Dequeue { .. } | Action::Ack { .. } => 1,
                    _ => 2,
                };
                counts[service] += 1;
                counts
            })
        })
    }

    /// The longest time without an acknowledged write to the cache since a moment.
    fn longest_gap(&self, since: u64) -> Duration {
        let now = self.recorder.now();
        let mut moments = self.recorder.read(|history| {
            let writes = history
                .answered()
                .filter(|(_, _, outcome)| matches!(outcome, RecordedOutcome::Put { .. }));
            writes.map(|(call, ..)| call.ended_at).filter(|at| *at >= since).collect::<Vec<_>>()
        });
        moments.extend([since, now]);
        moments.sort_unstable();
        Duration::from_micros(moments.windows(2).map(|two| two[1] - two[0]).max().unwrap_or(0))
    }

    /// Stops the callers, reads the final state and checks the whole history; tells how many ends were not seen.
    async fn check(self, client: &Client) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await;
        let audit_from = self.recorder.now();
        let auditor = self.recorder.client(u64::MAX, client);
        for key in 0..KEYS {
            assert!(auditor.get(&key.to_string()).await, "key {key} can be read");
        }
        // What a consumer leased without knowing comes back within its lease.
        while !auditor
            .dequeue(QUEUE, LEASE_MS + 3_000, 600_000)
            .await
            .expect("it answers")
            .is_empty()
        {}
        let (answered, open) = self.recorder.read(|history| {
            (history.answered().count(), history.calls.iter().filter(|call| call.is_open()).count())
        });
        eprintln!("{answered} calls were answered; the end of {open} was not seen");
        assert_eq!(self.recorder.violations(audit_from), []);
        open
    }
}

type Run = (Arc<Recorder>, Client, Arc<AtomicBool>);

async fn use_cache((recorder, client, stop): Run, id: u64) {
    let cache = recorder.client(id, &client);
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = ((n * 7 + id) % KEYS).to_string();
        match n % 8 {
            0..=3 => cache.put(&key, &format!("{id}/{n}")).await,
            7 => cache.delete(&key).await,
            _ => cache.get(&key).await,
        };
    }
}

async fn produce((recorder, client, stop): Run, id: u64) {
    let queue = recorder.client(id, &client);
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        queue.enqueue(QUEUE, &format!("{id}/{n}")).await;
        sleep(Duration::from_millis(5)).await;
    }
}

/// Takes messages and settles every other one; the others come again.
async fn consume((recorder, client, stop): Run, id: u64) {
    let queue = recorder.client(id, &client);
    while !stop.load(Ordering::Relaxed) {
        let deliveries = queue.dequeue(QUEUE, 500, LEASE_MS).await.unwrap_or_default();
        for delivery in deliveries.iter().step_by(2) {
            queue.ack(QUEUE, delivery).await;
        }
    }
}

/// All callers take turns on two locks.
async fn use_locks((recorder, client, stop): Run, id: u64) {
    let name = format!("lock-{}", id % 8 / 4);
    let locks = recorder.client(id, &client);
    while !stop.load(Ordering::Relaxed) {
        let Ok(session) = client.session(Duration::from_secs(15)).await else {
            continue;
        };
        while !stop.load(Ordering::Relaxed) && turn(&locks, session.id(), &name).await {}
    }
}

/// One acquisition and release; false when the session is of no more use.
async fn turn(locks: &Recorded<'_>, session: u64, name: &str) -> bool {
    match locks.acquire(session, name, 2_000).await {
        Some(token) => locks.release(session, name, token).await,
        // Another held it all the time, or the end was not seen and the session may hold it.
        None => false,
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
        let killed = load.recorder.now();
        cluster.nodes[leader].kill();
        sleep(Duration::from_secs(4)).await;
        outages.push(load.longest_gap(killed));
        cluster.nodes[leader].start();
        cluster.ready().await;
    }
    eventually("1,000 operations of each service", async || {
        load.counts().into_iter().all(|count| count >= OPERATIONS_MIN)
    })
    .await;
    outages.sort();
    eprintln!("longest time without an acknowledged put after each kill -9: {outages:?}");
    eprintln!("acknowledged operations of cache, queue and locks: {:?}", load.counts());
    load.check(&cluster.client().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_all_nodes_at_once_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let load = Load::start(&cluster).await;
    let client = cluster.client().await;
    let session = client.session(Duration::from_secs(600)).await.unwrap();
    let held = session.lock("held through it").acquire().await.unwrap().expect("it is free");
    sleep(Duration::from_secs(3)).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.ready().await;
    sleep(Duration::from_secs(2)).await;
    assert!(load.counts().into_iter().all(|count| count > 0));
    load.check(&client).await;

    let other = client.session(Duration::from_secs(10)).await.unwrap();
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
    let stopped = load.recorder.now();
    cluster.nodes[leader].pause();
    sleep(Duration::from_secs(8)).await;
    let outage = load.longest_gap(stopped);
    cluster.nodes[leader].resume();
    sleep(Duration::from_secs(2)).await;
    eprintln!("longest time without an acknowledged put after SIGSTOP: {outage:?}");
    assert!(outage < Duration::from_secs(8), "the others take over");
    load.check(&cluster.client().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_stop_hands_over_without_an_error() {
    let mut cluster = Cluster::start().await;
    let load = Load::start(&cluster).await;
    sleep(Duration::from_secs(1)).await;
    let leader = cluster.busiest().await;
    assert_eq!(cluster.nodes[leader].stop().code(), Some(0));
    sleep(Duration::from_secs(2)).await;
    let unseen = load.check(&cluster.client().await).await;
    assert_eq!(unseen, 0, "no client sees an error that one retry does not mend");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_for_long_catches_up_by_snapshot() {
    const KEY: &str = "big";
    const VALUE_BYTES: usize = 1 << 20;
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await.with_timeout(Duration::from_secs(30));
    client.cache().put(KEY, vec![0; 8]).await.unwrap();
    let shard = client.cache().get(KEY).await.unwrap().unwrap().header.shard;
    let mut roles = Vec::new();
    for node in &cluster.nodes {
        roles.push(seen(node, shard).await.unwrap().role == 2);
    }
    let leader = roles.iter().position(|leads| *leads).expect("the shard has a leader");
    let away = (leader + 1) % cluster.nodes.len();
    let before = seen(&cluster.nodes[away], shard).await.unwrap().last_index;
    cluster.nodes[away].kill();

    // One key again and again: the log grows, the state does not, until the log is cut past what the node had.
    let mut written = 0_u64;
    eventually("the log is cut past what the absent node has", async || {
        for _ in 0..16 {
            written += 1;
            let mut value = vec![7; VALUE_BYTES];
            value[..8].copy_from_slice(&written.to_be_bytes());
            client.cache().put(KEY, value).await.unwrap();
        }
        seen(&cluster.nodes[leader], shard).await.is_some_and(|seen| seen.first_index > before + 1)
    })
    .await;

    cluster.nodes[away].start();
    eventually("it has caught up while writes go on", async || {
        written += 1;
        client.cache().put(KEY, written.to_be_bytes().to_vec()).await.unwrap();
        let there = seen(&cluster.nodes[leader], shard).await;
        let here = seen(&cluster.nodes[away], shard).await;
        here.zip(there).is_some_and(|(here, there)| {
            here.first_index > before && here.applied_index + 64 >= there.commit_index
        })
    })
    .await;
    let entry = client.cache().get(KEY).await.unwrap().unwrap();
    assert_eq!(entry.value.as_bytes(), written.to_be_bytes());
}

/// A shard as a node sees it.
async fn seen(node: &Node, shard: u32) -> Option<ShardStatus> {
    node.status().await.ok()?.shards.into_iter().find(|seen| seen.shard == shard)
}
