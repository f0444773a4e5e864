//! Leases of queues over a real socket: whose they are, what is left of them, and whose turn it is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trefoil_core::slot;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::queue::v1::{DequeueRequest, DequeueResponse};
use trefoil_server::api::Shards as _;

use crate::support::operations::*;
use crate::support::{Served, Setup, refused, serve, unary, usual};

async fn take(served: &Served, request: DequeueRequest) -> DequeueResponse {
    match unary(&served.channel, Operation::Dequeue(request)).await {
        Ok(Outcome::Dequeue(response)) => response,
        other => panic!("{other:?}"),
    }
}

async fn store(served: &Served, queue: &str, key: &str) -> String {
    let enqueue = enqueue(queue, vec![message(key, "v")]);
    match unary(&served.channel, Operation::Enqueue(enqueue)).await {
        Ok(Outcome::Enqueue(mut stored)) => stored.message_ids.remove(0),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_lease_is_good_for_its_queue_and_a_guess_costs_no_entry() {
    let served = usual().await;
    for queue in ["a", "b"] {
        unary(&served.channel, Operation::CreateQueue(create_queue(queue, 1))).await.unwrap();
        store(&served, queue, "k").await;
    }
    let a = take(&served, dequeue("a", 1, 0)).await.deliveries.remove(0);
    let b = take(&served, dequeue("b", 1, 0)).await.deliveries.remove(0);
    assert_ne!(a.message_id, b.message_id, "a message id names its queue");

    let end = a.lease_id.rfind('-').unwrap() + 1;
    let guesses = (end..a.lease_id.len()).map(|place| {
        let other = if &a.lease_id[place..=place] == "0" { "1" } else { "0" };
        format!("{}{other}{}", &a.lease_id[..place], &a.lease_id[place + 1..])
    });
    let foreign = guesses.map(|guess| ("a", guess)).chain([
        ("b", a.lease_id.clone()),
        ("a", b.lease_id.clone()),
        ("a", format!("{}-{}", a.message_id, "0".repeat(32))),
    ]);
    for (queue, lease_id) in foreign {
        let (_, refusal) =
            refused(unary(&served.channel, Operation::Ack(ack(queue, &lease_id))).await);
        assert_eq!(refusal.reason(), Reason::InvalidField, "{lease_id}");
        assert_eq!(refusal.metadata["field"], "lease_id");
    }
    let acks = |served: &Served| {
        let log = served.fake.log();
        log.iter().filter(|op| matches!(op, command::Operation::AckLease(_))).count()
    };
    assert_eq!(acks(&served), 0, "none of them was proposed");
    for (queue, delivery) in [("a", a), ("b", b)] {
        let settle = Operation::Ack(ack(queue, &delivery.lease_id));
        unary(&served.channel, settle.clone()).await.unwrap();
        let (_, refusal) = refused(unary(&served.channel, settle).await);
        assert_eq!(refusal.reason(), Reason::UnknownMessage, "it is settled");
    }
}

#[tokio::test]
async fn what_grants_something_is_drawn_anew_for_each_call() {
    let served = usual().await;
    let drawn = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&drawn);
    served.fake.set_fault(move |_, command| {
        seen.lock().unwrap().extend(command.chance);
        None
    });
    unary(&served.channel, Operation::CreateQueue(create_queue("q", 1))).await.unwrap();
    for key in ["a", "b"] {
        unary(&served.channel, Operation::OpenSession(open_session(60_000))).await.unwrap();
        store(&served, "q", key).await;
        take(&served, dequeue("q", 1, 0)).await;
    }
    let drawn = drawn.lock().unwrap();
    let halves = drawn.iter().flat_map(|drawn| [drawn.high, drawn.low]).collect::<BTreeSet<_>>();
    assert_eq!((drawn.len(), halves.len()), (5, 10));
}

#[tokio::test]
async fn a_retry_says_what_is_left() {
    let served = usual().await;
    for n in 0..12 {
        store(&served, "q", &format!("key-{n}")).await;
    }
    let mut request = DequeueRequest { lease_ms: 2_000, ..dequeue("q", 8, 0) };
    request.request_id = id(9);
    let began = Instant::now();
    let first = take(&served, request.clone()).await;
    assert_eq!((first.deliveries.len(), first.leases_over), (8, 0));
    assert!(first.deliveries.iter().all(|delivery| delivery.lease_ms == 2_000));
    let settled = Operation::Ack(ack("q", &first.deliveries[0].lease_id));
    unary(&served.channel, settled).await.unwrap();
    sleep(Duration::from_millis(700)).await;

    request.request_id.as_mut().unwrap().attempt = 1;
    let again = take(&served, request.clone()).await;
    assert_eq!((again.deliveries.len(), again.leases_over), (7, 1), "one was settled");
    assert!(again.deliveries.iter().all(|delivery| (1..=1_300).contains(&delivery.lease_ms)));
    let known = first.deliveries.iter().map(|told| &told.lease_id).collect::<BTreeSet<_>>();
    assert!(again.deliveries.iter().all(|told| known.contains(&told.lease_id)));

    sleep((began + Duration::from_millis(2_200)).saturating_duration_since(Instant::now())).await;
    request.request_id.as_mut().unwrap().attempt = 2;
    request.wait_ms = 5_000;
    let late = Instant::now();
    let over = take(&served, request.clone()).await;
    assert_eq!((over.deliveries.len(), over.leases_over), (0, 8));
    assert!(late.elapsed() < Duration::from_secs(3), "it does not wait for others");
    request.request_id = id(10);
    assert_eq!(take(&served, request).await.deliveries.len(), 8, "a new call gets them");
}

#[tokio::test]
async fn a_fresh_message_of_a_long_poll_has_its_whole_lease() {
    let served = usual().await;
    unary(&served.channel, Operation::CreateQueue(create_queue("q", 4))).await.unwrap();
    let request = DequeueRequest { lease_ms: 500, ..dequeue("q", 1, 10_000) };
    let sent = Instant::now();
    let (told, stored) = tokio::join!(take(&served, request), async {
        sleep(Duration::from_millis(900)).await;
        store(&served, "q", "k").await
    });
    assert_eq!(told.deliveries[0].message_id, stored);
    assert_eq!(told.deliveries[0].lease_ms, 500);
    let all = sent.elapsed().as_millis();
    assert!(told.waited_ms >= 900 && u128::from(told.waited_ms) <= all, "{told:?} after {all} ms");

    let empty = take(&served, dequeue("q", 1, 300)).await;
    assert!(empty.deliveries.is_empty() && empty.leases_over == 0);
}

#[tokio::test]
async fn messages_without_a_key_fill_all_partitions_and_are_all_delivered() {
    let served = usual().await;
    unary(&served.channel, Operation::CreateQueue(create_queue("other", 8))).await.unwrap();
    let (mut filled, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..40 {
        // Others take turns of their own.
        store(&served, "other", "").await;
        let stored = store(&served, "q", "").await;
        let partition = stored.split('-').nth(1).unwrap().parse::<u32>().unwrap();
        filled.insert(partition);
        let told = take(&served, dequeue("q", 1, 0)).await.deliveries.remove(0);
        unary(&served.channel, Operation::Ack(ack("q", &told.lease_id))).await.unwrap();
        assert!(taken.insert(told.message_id));
    }
    assert_eq!(filled.len(), 8);
    assert_eq!(taken.len(), 40);
    let shards = served.fake.shards();
    let used = filled.iter().map(|n| slot::shard(slot::of_partition(2, *n, shards), shards));
    assert_eq!(used.collect::<BTreeSet<_>>().len(), usize::try_from(shards).unwrap());
}

#[tokio::test]
async fn a_retry_is_told_its_leases_before_anything_else_is_taken() {
    let served = usual().await;
    unary(&served.channel, Operation::CreateQueue(create_queue("q", 8))).await.unwrap();
    store(&served, "q", "only").await;
    let mut request = dequeue("q", 1, 0);
    request.request_id = id(3);
    let first = take(&served, request.clone()).await.deliveries.remove(0);
    // Now other shards have something as well.
    for n in 0..30 {
        store(&served, "q", &format!("key-{n}")).await;
    }
    for attempt in 1..=8 {
        request.request_id.as_mut().unwrap().attempt = attempt;
        let again = take(&served, request.clone()).await.deliveries;
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].lease_id, first.lease_id);
    }
}

#[tokio::test]
async fn a_consumer_may_wait_for_a_queue_that_is_not_there_yet() {
    let served = usual().await;
    let began = Instant::now();
    let nothing = take(&served, dequeue("q", 1, 300)).await;
    assert!(nothing.deliveries.is_empty() && nothing.header.is_none());
    assert!(nothing.waited_ms >= 250 && began.elapsed() >= Duration::from_millis(250));

    let later = async {
        sleep(Duration::from_millis(700)).await;
        (Instant::now(), store(&served, "q", "k").await)
    };
    let (came, (stored, id)) = tokio::join!(take(&served, dequeue("q", 1, 9_000)), later);
    assert_eq!(came.deliveries[0].message_id, id);
    assert!(stored.elapsed() < Duration::from_secs(1), "{:?}", stored.elapsed());
}

#[tokio::test]
async fn where_first_use_creates_no_queue_a_wait_for_it_ends_with_why() {
    let served = serve(Setup { auto_create_queues: false, ..Setup::default() }).await;
    let wait =
        async |wait_ms| unary(&served.channel, Operation::Dequeue(dequeue("q", 1, wait_ms))).await;
    for wait_ms in [0, 300] {
        let began = Instant::now();
        assert_eq!(refused(wait(wait_ms).await).1.reason(), Reason::UnknownQueue);
        assert!(began.elapsed() >= Duration::from_millis(wait_ms.saturating_sub(60)));
    }
    let create = async {
        sleep(Duration::from_millis(100)).await;
        unary(&served.channel, Operation::CreateQueue(create_queue("q", 1))).await.unwrap();
        store(&served, "q", "k").await
    };
    let (came, id) = tokio::join!(take(&served, dequeue("q", 1, 9_000)), create);
    assert_eq!(came.deliveries[0].message_id, id);
}
