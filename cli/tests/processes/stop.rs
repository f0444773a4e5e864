//! SIGTERM under load: every call has its answer within a second, whatever it is and whichever way it came. STOPS says
//! how often (2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::{Request, Status};
use trefoil_client::Client;
use trefoil_client::proto::cache::v1::cache_service_client::CacheServiceClient;
use trefoil_client::proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_client::proto::lock::v1::{AcquireRequest, WatchLocksRequest};
use trefoil_client::proto::queue::v1::DequeueRequest;
use trefoil_client::proto::queue::v1::queue_service_client::QueueServiceClient;

use crate::raw;
use crate::support::{Cluster, Node};

const CALLERS: usize = 12;
const WAIT: Duration = Duration::from_secs(60);
/// In which a call is answered.
const ANSWERED: Duration = Duration::from_secs(1);

/// One call: when it began and ended, and how.
type Ended = (&'static str, Instant, Instant, Result<(), Status>);

fn repeats() -> usize {
    std::env::var("STOPS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// Puts of one caller over a connection of its own, until the node is gone.
async fn puts(node: tonic::transport::Channel, caller: usize) -> Vec<Ended> {
    let mut cache = CacheServiceClient::new(node);
    let mut calls = Vec::new();
    for n in 0.. {
        let began = Instant::now();
        let mut request = Request::new(raw::put_request(&format!("{caller}/{n}")));
        request.set_timeout(Duration::from_secs(10));
        let end = cache.put(request).await.map(drop);
        let is_gone = end.as_ref().is_err_and(raw::was_not_sent);
        calls.push(("put", began, Instant::now(), end));
        if is_gone {
            break;
        }
    }
    calls
}

/// Calls that wait for what does not come, and a watch.
async fn waits(node: tonic::transport::Channel, session: u64) -> Vec<Ended> {
    let wait_ms = u64::try_from(WAIT.as_millis()).unwrap();
    let began = Instant::now();
    let acquire = {
        let mut locks = LockServiceClient::new(node.clone());
        let request = AcquireRequest {
            session_id: session,
            name: "held".to_owned(),
            wait_ms,
            ..AcquireRequest::default()
        };
        async move {
            let end = locks.acquire(request).await.map(drop);
            ("acquire", began, Instant::now(), end)
        }
    };
    let dequeue = {
        let mut queues = QueueServiceClient::new(node.clone());
        let request =
            DequeueRequest { queue: "empty".to_owned(), wait_ms, ..DequeueRequest::default() };
        async move {
            let end = queues.dequeue(request).await.map(drop);
            ("dequeue", began, Instant::now(), end)
        }
    };
    let watch = async move {
        let mut locks = LockServiceClient::new(node);
        let request =
            WatchLocksRequest { prefix: "nothing".to_owned(), ..WatchLocksRequest::default() };
        let mut events = match locks.watch_locks(request).await {
            Ok(events) => events.into_inner(),
            Err(status) => return ("watch", began, Instant::now(), Err(status)),
        };
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return ("watch", began, Instant::now(), Ok(())),
                Err(status) => return ("watch", began, Instant::now(), Err(status)),
            }
        }
    };
    let (one, two, three) = tokio::join!(acquire, dequeue, watch);
    vec![one, two, three]
}

/// Puts of the client at any node: none may fail.
async fn client_puts(client: Client, caller: usize, stop: Arc<AtomicBool>) -> usize {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        client.cache().put(format!("sdk {caller}/{done}"), "x").await.unwrap();
        done += 1;
    }
    done
}

fn judge(calls: &[Ended], stopped: Instant, exited: Instant) {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for (what, began, ended, end) in calls {
        let since = (*began).max(stopped);
        let word = match end {
            Ok(()) => "done".to_owned(),
            Err(status) if raw::was_not_sent(status) => "not sent".to_owned(),
            Err(status) => {
                let reason = raw::reason(status);
                let at = (since - stopped, *ended - since);
                assert!(reason.is_some(), "{what} has no answer: {status:?}, from {at:?}");
                format!("{:?}", reason.unwrap())
            }
        };
        assert!(*ended <= since + ANSWERED, "{what}: {word} after {:?}", *ended - since);
        if *ended >= stopped {
            *counts.entry(format!("{what}: {word}")).or_default() += 1;
        }
    }
    eprintln!("ended after {:?}; calls that ended meanwhile: {counts:?}", exited - stopped);
}

async fn stop_under_load(cluster: &mut Cluster, client: &Client) {
    let node: usize = cluster.busiest().await;
    let target: &Node = &cluster.nodes[node];
    let holder = client.session(WAIT).await.unwrap();
    let _held = holder.lock("held").acquire().await.unwrap().expect("it is free");
    let waiter = client.session(WAIT).await.unwrap();
    let mut calls = JoinSet::new();
    for caller in 0..CALLERS {
        calls.spawn(puts(raw::channel(target), caller));
    }
    // Beside the puts of a connection that all share, and on one of their own.
    let shared = raw::channel(target);
    calls.spawn(puts(shared.clone(), CALLERS));
    calls.spawn(waits(shared, waiter.id()));
    calls.spawn(waits(raw::channel(target), waiter.id()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for caller in 0..4 {
        clients.spawn(client_puts(cluster.client().await, caller, Arc::clone(&stop)));
    }
    sleep(Duration::from_millis(700)).await;
    let stopped = Instant::now();
    let process = &mut cluster.nodes[node];
    let status = process.stop();
    let exited = Instant::now();
    assert_eq!(status.code(), Some(0));
    let calls = calls.join_all().await.into_iter().flatten().collect::<Vec<_>>();
    stop.store(true, Ordering::Relaxed);
    let done = clients.join_all().await;
    assert!(done.iter().all(|count| *count > 0), "{done:?}");
    judge(&calls, stopped, exited);
    cluster.nodes[node].start();
    cluster.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_has_its_answer_within_a_second_of_sigterm() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.queue("empty").create(4).await.unwrap();
    for _ in 0..repeats() {
        stop_under_load(&mut cluster, &client).await;
    }
}
