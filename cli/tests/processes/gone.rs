//! Callers who are gone, and those who are not, through nodes that do not lead: with kill -9, SIGSTOP and calls that hang up.
//! None of the calls has a request id. `TREFOIL_TEST_ROUNDS` says how often each case is repeated.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tonic::transport::Channel;
use trefoil_client::Client;
use trefoil_client::proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_client::proto::lock::v1::{
    AcquireRequest, AcquireResponse, DescribeLockRequest, OpenSessionRequest, ReleaseRequest,
};

use crate::raw;
use crate::support::{Cluster, eventually};
use crate::waits::leading;

/// The promise, and the time that a slow machine may take on top.
const TAKEN_BACK: Duration = Duration::from_millis(2_400 + 1_600);
const LOCK: &str = "l";

type Locks = LockServiceClient<Channel>;

/// How often a case is repeated.
fn rounds() -> u64 {
    std::env::var("TREFOIL_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// Which nodes there are: the one that leads the lock's shard, and the two others.
async fn places(cluster: &Cluster, client: &Client) -> (usize, usize, usize) {
    let leader = leading(client).await;
    let mut others = (0..cluster.nodes.len()).filter(|n| *n != leader);
    (leader, others.next().unwrap(), others.next().unwrap())
}

fn locks(cluster: &Cluster, node: usize) -> Locks {
    LockServiceClient::new(raw::channel(&cluster.nodes[node]))
}

async fn open(locks: &mut Locks) -> u64 {
    let namespace = "default".to_owned();
    let request = OpenSessionRequest { namespace, ttl_ms: 120_000, ..Default::default() };
    locks.open_session(request).await.unwrap().into_inner().session_id
}

fn request(session_id: u64, wait_ms: u64) -> AcquireRequest {
    let (namespace, name) = ("default".to_owned(), LOCK.to_owned());
    AcquireRequest { namespace, session_id, name, wait_ms, ..Default::default() }
}

/// An Acquire that waits, on its way by a node.
fn acquiring(
    locks: &Locks,
    session: u64,
    wait_ms: u64,
) -> JoinHandle<Result<AcquireResponse, tonic::Status>> {
    let mut locks = locks.clone();
    tokio::spawn(async move {
        locks.acquire(request(session, wait_ms)).await.map(tonic::Response::into_inner)
    })
}

async fn release(locks: &mut Locks, session_id: u64) {
    let (namespace, name) = ("default".to_owned(), LOCK.to_owned());
    let request = ReleaseRequest { namespace, session_id, name, ..Default::default() };
    locks.release(request).await.unwrap();
}

async fn waiters(locks: &mut Locks) -> u64 {
    let (namespace, name) = ("default".to_owned(), LOCK.to_owned());
    let request = DescribeLockRequest { namespace, name };
    locks.describe_lock(request).await.unwrap().into_inner().waiter_count
}

/// A lock that one session holds; another waits for it through `by`, and behind it a third through the leader.
struct Line {
    leader: Locks,
    holder: u64,
    first: JoinHandle<Result<AcquireResponse, tonic::Status>>,
    second: JoinHandle<Result<AcquireResponse, tonic::Status>>,
    next: u64,
}

impl Line {
    async fn form(cluster: &Cluster, leader: usize, by: usize) -> Self {
        let (mut leader, by) = (locks(cluster, leader), locks(cluster, by));
        let (holder, first, next) =
            (open(&mut leader).await, open(&mut leader).await, open(&mut leader).await);
        assert!(leader.acquire(request(holder, 0)).await.unwrap().into_inner().acquired);
        let stands = async |count| {
            eventually("a call waits", async || waiters(&mut leader.clone()).await == count).await;
        };
        let first = acquiring(&by, first, 60_000);
        stands(1).await;
        let second = acquiring(&leader, next, 60_000);
        stands(2).await;
        Self { leader, holder, first, second, next }
    }

    /// The next in line has the lock within the time in which an unclaimed grant is taken back.
    async fn passes_on(self, since: Instant) -> Duration {
        let Self { mut leader, second, next, .. } = self;
        let got = second.await.unwrap().unwrap();
        let took = since.elapsed();
        assert!(got.acquired && took < TAKEN_BACK, "after {took:?}");
        release(&mut leader, next).await;
        took
    }
}

#[tokio::test]
async fn a_grant_for_the_caller_of_a_node_that_is_killed_is_taken_back() {
    let mut cluster = Cluster::start().await;
    for round in 0..rounds() {
        let client = cluster.client().await;
        let (leader, by, _) = places(&cluster, &client).await;
        let mut line = Line::form(&cluster, leader, by).await;
        cluster.nodes[by].kill();
        sleep(Duration::from_millis(round % 6)).await;
        let since = Instant::now();
        release(&mut line.leader, line.holder).await;
        let took = line.passes_on(since).await;
        eprintln!("killed {} ms before the release: the next in line waits {took:?}", round % 6);
        cluster.nodes[by].start();
        cluster.ready().await;
    }
}

#[tokio::test]
async fn a_grant_for_the_caller_of_a_node_that_hangs_is_taken_back() {
    let cluster = Cluster::start().await;
    for round in 0..rounds() {
        let client = cluster.client().await;
        let (leader, by, other) = places(&cluster, &client).await;
        let mut line = Line::form(&cluster, leader, by).await;
        cluster.nodes[by].pause();
        line.first.abort();
        let since = Instant::now();
        release(&mut line.leader, line.holder).await;
        let moves = round % 2 == 1;
        if moves {
            // Another node leads before the grant is taken back; who waited there is still in line.
            let shard = client.locks().barrier("b").await.unwrap().header.unwrap().shard;
            let to = u64::try_from(other).unwrap() + 1;
            client.cluster().transfer_leader(shard, to).await.unwrap();
        }
        let took = line.passes_on(since).await;
        eprintln!("hung, leader moved {moves}: the next in line waits {took:?}");
        cluster.nodes[by].resume();
        cluster.ready().await;
    }
}

#[tokio::test]
async fn a_living_holder_keeps_its_lock_whatever_other_calls_of_it_are_hung_up() {
    let cluster = Cluster::start().await;
    for _ in 0..rounds() {
        let client = cluster.client().await;
        let (leader, by, _) = places(&cluster, &client).await;
        let (mut leader, mut by) = (locks(&cluster, leader), locks(&cluster, by));
        let (holder, rival) = (open(&mut leader).await, open(&mut leader).await);
        let got = by.acquire(request(holder, 0)).await.unwrap().into_inner();
        assert!(got.acquired);
        for n in 0..40 {
            let again = acquiring(&by, holder, 5_000);
            sleep(Duration::from_millis(n % 4)).await;
            again.abort();
        }
        let refused = leader.acquire(request(rival, 500)).await.unwrap().into_inner();
        assert!(!refused.acquired && refused.holder_token == got.fencing_token);
        release(&mut leader, holder).await;
    }
}

#[tokio::test]
async fn each_call_of_a_session_waits_for_as_long_as_it_says() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (leader, by, _) = places(&cluster, &client).await;
    let (mut leader, by) = (locks(&cluster, leader), locks(&cluster, by));
    let (holder, waiter) = (open(&mut leader).await, open(&mut leader).await);
    assert!(leader.acquire(request(holder, 0)).await.unwrap().into_inner().acquired);
    let since = Instant::now();
    let waits = [3_000, 500, 1_500].map(|wait_ms| {
        let call = acquiring(&by, waiter, wait_ms);
        async move {
            let got = call.await.unwrap().unwrap();
            assert!(!got.acquired);
            (wait_ms, since.elapsed())
        }
    });
    eventually("all of them wait", async || waiters(&mut leader.clone()).await == 3).await;
    for wait in waits.map(tokio::spawn) {
        let (wait_ms, took) = wait.await.unwrap();
        let wait = Duration::from_millis(wait_ms);
        assert!(took >= wait && took < wait + Duration::from_millis(900), "{wait:?}: {took:?}");
    }
}
