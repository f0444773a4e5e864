//! The pipelined stream from the client's side: frames, replies, deadlines, cancels, fail-over, back-pressure.

use std::time::Duration;

use crate::support::{Fake, header, refusal, request_id};
use tokio::time::{Instant, timeout};
use trefoil_client::proto::cache::v1::{GetResponse, PutResponse};
use trefoil_client::proto::cluster::v1::{Member, ShardStatus, SlotMap, StatusResponse};
use trefoil_client::proto::common::v1::{Reason, ResponseHeader};
use trefoil_client::proto::lock::v1::AcquireResponse;
use trefoil_client::proto::pipeline::v1::call::Operation;
use trefoil_client::proto::pipeline::v1::reply::Outcome;
use trefoil_client::proto::queue::v1::{AckResponse, EnqueueResponse, QueueLayout};
use trefoil_client::proto::slot;
use trefoil_client::{Client, Error, Message};

fn stored(version: u64) -> Outcome {
    Outcome::Put(PutResponse { version, header: header(1), ..PutResponse::default() })
}

fn found(version: u64) -> Outcome {
    Outcome::Get(GetResponse { hit: true, version, header: header(1), ..GetResponse::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_share_frames() {
    let fake = Fake::answering(|call| match call.operation.as_ref()? {
        Operation::Put(put) => Some(stored(put.key.parse().ok()?)),
        _ => None,
    });
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    let mut puts = tokio::task::JoinSet::new();
    for n in 0..1_000_u64 {
        let cache = client.cache();
        puts.spawn(async move { (n, cache.put(n.to_string(), "v").await.unwrap().version) });
    }
    for (n, version) in puts.join_all().await {
        assert_eq!(n, version);
    }
    assert!(fake.frames() < 250, "1,000 calls took {} frames", fake.frames());
    assert_eq!(fake.streams(), 1);
}

#[tokio::test]
async fn replies_are_matched_by_id_in_any_order() {
    let mut fake = Fake::silent();
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    let (first, second) = (client.cache(), client.cache());
    let first = tokio::spawn(async move { first.get("a").await });
    let (stream, a) = fake.call().await;
    let second = tokio::spawn(async move { second.get("b").await });
    let (_, b) = fake.call().await;
    fake.reply(stream, b.id, found(2)).await;
    assert_eq!(second.await.unwrap().unwrap().unwrap().version, 2);
    fake.reply(stream, a.id, found(1)).await;
    assert_eq!(first.await.unwrap().unwrap().unwrap().version, 1);
}

#[tokio::test]
async fn a_deadline_ends_a_call_and_tells_what_may_have_happened() {
    let mut fake = Fake::silent();
    let client =
        Client::connect([fake.endpoint()]).await.unwrap().with_timeout(Duration::from_millis(400));
    let started = Instant::now();
    let read = client.cache().get("k").await.unwrap_err();
    assert!(matches!(read, Error::Deadline { timeout_ms: 400 }), "{read}");
    assert!(read.has_no_side_effects() && read.is_retryable());
    assert!((Duration::from_millis(390)..Duration::from_millis(900)).contains(&started.elapsed()));
    let (_, first) = fake.call().await;
    assert!(
        (200..=250).contains(&first.timeout_ms),
        "a try gets a share of the time: {} ms",
        first.timeout_ms
    );
    assert_eq!(fake.cancelled().await, first.id);
    let (_, second) = fake.call().await;
    assert_eq!(fake.cancelled().await, second.id);

    let write = client.cache().put("k", "v").await.unwrap_err();
    assert!(
        matches!(&write, Error::MaybeApplied { last } if matches!(**last, Error::Deadline { .. })),
        "{write}"
    );
    assert!(!write.has_no_side_effects() && !write.is_retryable());
    let ((_, first), (_, second)) = (fake.call().await, fake.call().await);
    assert_eq!(request_id(&first).sequence, request_id(&second).sequence);
    let cancelled = fake.cancelled().await;
    assert_eq!(cancelled, second.id, "the second try may have been told what the first one did");
}

#[tokio::test]
async fn dropping_a_call_cancels_it_and_raises_the_floor() {
    let mut fake = Fake::silent();
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    let cache = client.cache();
    let dropped = tokio::spawn(async move { cache.put("k", "v").await });
    let (_, call) = fake.call().await;
    assert_eq!((request_id(&call).sequence, request_id(&call).first_unacknowledged), (1, 1));
    dropped.abort();
    assert_eq!(fake.cancelled().await, call.id);
    let cache = client.cache();
    let _next = tokio::spawn(async move { cache.put("k", "v").await });
    let (_, call) = fake.call().await;
    assert_eq!((request_id(&call).sequence, request_id(&call).first_unacknowledged), (2, 2));
}

#[tokio::test]
async fn a_call_in_flight_on_a_dead_node_goes_to_another_with_the_same_request_id() {
    let mut first = Fake::silent();
    let client = Client::connect([first.endpoint()]).await.unwrap();
    let mut second = Fake::silent();
    // The first node tells of the second, as a member.
    first.set_status(two_members(&first, &second));
    client.cluster().status().await;

    let cache = client.cache();
    let put = tokio::spawn(async move { cache.put("k", "v").await });
    let (_, sent) = first.call().await;
    first.kill();
    let (stream, again) = second.call().await;
    let (sent, again_id) = (request_id(&sent), request_id(&again));
    assert_eq!((again_id.client, again_id.sequence), (sent.client, sent.sequence));
    assert_eq!((sent.attempt, again_id.attempt), (0, 1));
    second.reply(stream, again.id, stored(7)).await;
    assert_eq!(put.await.unwrap().unwrap().version, 7);

    // What was never sent to the dead node is a first try.
    let cache = client.cache();
    let put = tokio::spawn(async move { cache.put("k", "v").await });
    let (stream, call) = second.call().await;
    assert_eq!((request_id(&call).sequence, request_id(&call).attempt), (2, 0));
    second.reply(stream, call.id, stored(8)).await;
    assert_eq!(put.await.unwrap().unwrap().version, 8);
}

#[tokio::test]
async fn a_retry_that_was_forgotten_is_told_as_maybe_applied() {
    let mut fake = Fake::answering(|call| {
        (request_id(call).attempt > 0).then(|| refusal(Reason::RequestForgotten, &[]))
    });
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    let cache = client.cache();
    let put = tokio::spawn(async move { cache.put("k", "v").await });
    let (stream, _) = fake.call().await;
    fake.hang_up(stream);
    let error = put.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::MaybeApplied { .. }), "{error}");
    assert_eq!(error.reason(), Some(Reason::RequestForgotten));
}

#[tokio::test]
async fn a_first_try_that_a_shard_forgot_is_told_as_maybe_applied() {
    for reason in [Reason::RequestForgotten, Reason::PartlyApplied] {
        let fake = Fake::answering(move |_| Some(refusal(reason, &[])));
        let client = Client::connect([fake.endpoint()]).await.unwrap();
        // The node had tried it more than once.
        let error = client.cache().put("k", "v").await.unwrap_err();
        assert_eq!(error.reason(), Some(reason));
        assert!(!error.has_no_side_effects() && !error.is_retryable(), "{error}");
        assert!(matches!(error, Error::MaybeApplied { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_that_is_not_kept_says_nothing_of_an_earlier_try() {
    let mut fake = Fake::silent();
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    for reason in [Reason::LimitReached, Reason::PermissionDenied, Reason::DiskFull] {
        let cache = client.cache();
        let put = tokio::spawn(async move { cache.put("k", "v").await });
        let (stream, call) = fake.call().await;
        fake.reply(stream, call.id, refusal(Reason::MaybeApplied, &[])).await;
        let (stream, call) = fake.call().await;
        fake.reply(stream, call.id, refusal(reason, &[])).await;
        let error = put.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::MaybeApplied { .. }), "{error}");
        assert!(!error.has_no_side_effects(), "{error}");
    }
}

#[tokio::test]
async fn definite_refusals_are_retried_as_first_tries_and_final_ones_are_not() {
    let mut fake = Fake::silent();
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    let cache = client.cache();
    let put = tokio::spawn(async move { cache.put("k", "v").await });
    for reason in [Reason::NoQuorum, Reason::Overloaded, Reason::Lost, Reason::NotLeader] {
        let (stream, call) = fake.call().await;
        assert_eq!((request_id(&call).sequence, request_id(&call).attempt), (1, 0));
        fake.reply(stream, call.id, refusal(reason, &[])).await;
    }
    let (stream, call) = fake.call().await;
    fake.reply(stream, call.id, refusal(Reason::MaybeApplied, &[])).await;
    let (stream, call) = fake.call().await;
    assert_eq!((request_id(&call).sequence, request_id(&call).attempt), (1, 1));
    fake.reply(
        stream,
        call.id,
        refusal(Reason::InvalidField, &[("field", "key"), ("limit", "1024")]),
    )
    .await;
    let error = put.await.unwrap().unwrap_err();
    let Error::Refused { reason, metadata, .. } = &error else { panic!("{error:?}") };
    assert_eq!(
        (*reason, metadata["field"].as_str(), metadata["limit"].as_str()),
        (Reason::InvalidField, "key", "1024")
    );
    assert!(error.has_no_side_effects() && !error.is_retryable());
}

#[tokio::test]
async fn the_leader_is_computed_and_asked_directly() {
    let mut follower = Fake::silent();
    let mut leader = Fake::silent();
    let status = two_members(&follower, &leader);
    follower.set_status(status.clone());
    let client = Client::connect([follower.endpoint()]).await.unwrap();

    // Without a map any node is asked.
    let cache = client.cache();
    let get = tokio::spawn(async move { cache.get("k").await });
    let (stream, call) = follower.call().await;
    follower.reply(stream, call.id, found(1)).await;
    get.await.unwrap().unwrap();

    let slot_map = Some(SlotMap { epoch: 1, slots: 16_384, data_shards: 1 });
    follower.set_status(StatusResponse { slot_map, ..status });
    let client = Client::connect([follower.endpoint()]).await.unwrap();
    let cache = client.cache();
    let get = tokio::spawn(async move { cache.get("k").await });
    let (stream, call) = leader.call().await;
    leader.reply(stream, call.id, found(2)).await;
    assert_eq!(get.await.unwrap().unwrap().unwrap().version, 2);

    // The leader dies: whoever can be reached forwards.
    leader.kill();
    let cache = client.cache();
    let get = tokio::spawn(async move { cache.get("k").await });
    let (stream, call) = follower.call().await;
    follower.reply(stream, call.id, found(3)).await;
    assert_eq!(get.await.unwrap().unwrap().unwrap().version, 3);
}

#[tokio::test]
async fn calls_of_a_queue_go_to_the_leader_of_the_partition() {
    let (mut follower, mut leader) = (Fake::silent(), Fake::silent());
    let slot_map = Some(SlotMap { epoch: 1, slots: 16_384, data_shards: 2 });
    follower.set_status(StatusResponse { slot_map, ..two_members(&follower, &leader) });
    let client = Client::connect([follower.endpoint()]).await.unwrap();
    // The follower leads nothing that is known, so it gets what is not of shard 1.
    let is_led = |partition| slot::shard(slot::of_partition(3, partition, 2), 2) == 1;
    let layout = Some(QueueLayout { queue_id: 3, partitions: 8, version: 1 });
    for n in 0..20 {
        let key = format!("key-{n}");
        let (queue, message) = (client.queue("q"), Message::new("v").key(key.clone()));
        let enqueue = tokio::spawn(async move { queue.enqueue([message]).await });
        let goes_to_leader = n > 0 && is_led(slot::partition(&key, 8));
        let fake = if goes_to_leader { &mut leader } else { &mut follower };
        let (stream, call) = fake.call().await;
        let stored =
            EnqueueResponse { header: header(1), message_ids: vec!["3-0-1".to_owned()], layout };
        fake.reply(stream, call.id, Outcome::Enqueue(stored)).await;
        enqueue.await.unwrap().unwrap();
    }
    for partition in 0..8 {
        let queue = client.queue("q");
        let lease = format!("3-{partition}-17-3f9c1b6d5a0e77c2b1d20c4c8e6f9a35");
        let ack = tokio::spawn(async move { queue.ack(lease).await });
        let fake = if is_led(partition) { &mut leader } else { &mut follower };
        let (stream, call) = fake.call().await;
        let settled = AckResponse { header: header(1) };
        fake.reply(stream, call.id, Outcome::Ack(settled)).await;
        ack.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_refusal_that_names_the_leader_is_followed() {
    let mut leader = Fake::silent();
    let endpoint = leader.endpoint();
    let follower = Fake::answering(move |_| {
        Some(refusal(Reason::NotLeader, &[("leader_endpoint", &endpoint)]))
    });
    let client = Client::connect([follower.endpoint()]).await.unwrap();
    let cache = client.cache();
    let put = tokio::spawn(async move { cache.put("k", "v").await });
    let (stream, call) = leader.call().await;
    assert_eq!(request_id(&call).attempt, 0);
    leader.reply(stream, call.id, stored(1)).await;
    put.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_is_bounded_and_waits_stand_apart() {
    let mut fake = Fake::silent();
    let client =
        Client::connect([fake.endpoint()]).await.unwrap().with_timeout(Duration::from_secs(60));
    let mut puts = tokio::task::JoinSet::new();
    for _ in 0..3_000 {
        let cache = client.cache();
        puts.spawn(async move { cache.put("k", "v").await });
    }
    eventually(|| fake.waiting() >= 2_048).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.waiting(), 2_048, "the window is closed");
    for _ in 0..100 {
        let (stream, call) = fake.call().await;
        fake.reply(stream, call.id, stored(1)).await;
    }
    eventually(|| fake.waiting() >= 2_048).await;

    // A wait has a connection of its own and is not behind them.
    let acquire = trefoil_client::proto::lock::v1::AcquireRequest {
        name: "l".to_owned(),
        session_id: 1,
        wait_ms: 5_000,
        ..Default::default()
    };
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(acquire).await }
    });
    let (stream, call) = loop {
        let (stream, call) = fake.call().await;
        if matches!(call.operation, Some(Operation::Acquire(_))) {
            break (stream, call);
        }
    };
    assert_ne!(stream, 0);
    assert_eq!(request_id(&call).sequence, 1, "waits have request ids of their own");
    let acquired = AcquireResponse {
        acquired: true,
        fencing_token: 3,
        header: header(1),
        ..AcquireResponse::default()
    };
    fake.reply(stream, call.id, Outcome::Acquire(acquired)).await;
    assert_eq!(waiting.await.unwrap().unwrap().fencing_token, 3);
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let mut fake = Fake::silent();
    fake.kill();
    let refused = timeout(Duration::from_secs(3), Client::connect([fake.endpoint()]))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(&refused, Error::Unreachable { endpoint, .. } if *endpoint == fake.endpoint()),
        "{refused}"
    );
    assert!(refused.has_no_side_effects());
}

fn two_members(first: &Fake, second: &Fake) -> StatusResponse {
    let member = |id, fake: &Fake| Member { id, name: format!("n{id}"), endpoint: fake.endpoint() };
    StatusResponse {
        header: Some(ResponseHeader { node_id: 1, ..ResponseHeader::default() }),
        members: vec![member(1, first), member(2, second)],
        shards: vec![ShardStatus { shard: 1, leader_id: 2, term: 1, ..ShardStatus::default() }],
        ..StatusResponse::default()
    }
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come true within 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
