//! What operations answer, by both ways in.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::Code;
use trefoil_proto::cache::v1::LineState;
use trefoil_proto::common::v1::{Reason, ResponseHeader};
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::queue::v1::{DequeueResponse, EnqueueRequest};
use trefoil_server::authorize::{Action, Principal, Resource};
use trefoil_server::config::Service;

use crate::support::operations::*;
use crate::support::{Served, Setup, Stream, metric, refused, serve, unary, usual};

/// What an answer says, without when.
fn timeless(mut end: Result<Outcome, tonic::Status>) -> Result<Outcome, (Code, Refusal)> {
    fn clear(header: &mut Option<ResponseHeader>) {
        let header = header.as_mut().expect("every answer has a header");
        assert_eq!(header.cluster_id, "ab".repeat(16));
        assert!(header.node_id == 1 && header.term > 0 && header.index > 0);
        (header.index, header.log_time_ms) = (0, 0);
    }
    if let Ok(outcome) = &mut end {
        clear(outcome.header_mut().expect("errors are statuses"));
        match outcome {
            Outcome::KeepAlive(r) => {
                r.remaining_ms = 0;
            }
            Outcome::DescribeLock(r) => {
                r.holders.iter_mut().for_each(|holder| holder.held_ms = 0);
            }
            Outcome::ListLocks(r) => {
                let holders = r.locks.iter_mut().filter_map(|lock| lock.holder.as_mut());
                holders.for_each(|holder| holder.held_ms = 0);
            }
            Outcome::GetSession(r) => {
                r.session.as_mut().expect("it is shown").remaining_ms = 0;
                r.locks.iter_mut().for_each(|lock| lock.held_ms = 0);
            }
            Outcome::ValidateToken(r) => {
                r.holder.iter_mut().for_each(|holder| holder.held_ms = 0);
            }
            Outcome::ListSessions(r) => {
                r.sessions.iter_mut().for_each(|session| session.remaining_ms = 0);
            }
            Outcome::Leader(r) => {
                r.leader.iter_mut().for_each(|leader| leader.leading_ms = 0);
            }
            Outcome::GetLatch(r) => {
                r.latch.iter_mut().for_each(|latch| latch.age_ms = 0);
            }
            Outcome::ListLatches(r) => {
                r.latches.iter_mut().for_each(|latch| latch.age_ms = 0);
            }
            Outcome::GetBarrier(r) => {
                r.barrier.iter_mut().for_each(|barrier| barrier.age_ms = 0);
            }
            Outcome::ListBarriers(r) => {
                r.barriers.iter_mut().for_each(|barrier| barrier.age_ms = 0);
            }
            Outcome::DescribeSemaphore(r) => {
                r.holders.iter_mut().for_each(|holder| holder.held_ms = 0);
            }
            Outcome::Dequeue(r) => {
                r.waited_ms = 0;
                for delivery in &mut r.deliveries {
                    // Its end is drawn.
                    let end = delivery.lease_id.rfind('-').expect("a lease id has parts");
                    delivery.lease_id.truncate(end);
                    delivery.enqueued_at_ms = 0;
                }
            }
            Outcome::Status(r) => {
                r.uptime_ms = 0;
                r.shards.iter_mut().for_each(|shard| shard.applied_index = 0);
            }
            _ => {}
        }
    }
    end.map_err(|status| refused(Err(status)))
}

fn deliveries(end: Result<Outcome, tonic::Status>) -> DequeueResponse {
    match end.unwrap() {
        Outcome::Dequeue(response) => response,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pipelined_call_answers_what_a_unary_one_does() {
    let (one, other) = (usual().await, usual().await);
    let mut stream = Stream::open(&other.channel).await;
    let mut good = 0;
    // Twice, so that the second round meets what the first one left.
    for (n, operation) in (1..).zip([one_of_each(), one_of_each()].concat()) {
        let first = timeless(unary(&one.channel, operation.clone()).await);
        let second = timeless(stream.call(n, operation.clone()).await);
        assert_eq!(first, second, "{operation:?}");
        good += usize::from(first.is_ok());
    }
    assert!(good >= 32, "most of these succeed: {good}");
}

#[tokio::test]
async fn answers_say_what_happened() {
    let Served { channel, front, .. } = usual().await;
    let call = async |operation| unary(&channel, operation).await;
    let Ok(Outcome::Put(stored)) = call(Operation::Put(put("k", "v"))).await else { panic!() };
    assert_eq!((stored.version, stored.state()), (1, LineState::Modified));
    let Ok(Outcome::Get(read)) = call(Operation::Get(get("k"))).await else { panic!() };
    assert_eq!((read.hit, read.value.clone(), read.version), (true, text("v"), 1));
    assert_eq!(read.state(), LineState::Modified, "put then get on one node");
    let Ok(Outcome::Get(read)) = call(Operation::Get(get("other"))).await else { panic!() };
    assert!(!read.hit);
    let metrics = front.api().metrics();
    assert_eq!(metric(metrics, "trefoil_cache_hits_total"), 1.0);
    assert_eq!(metric(metrics, "trefoil_cache_misses_total"), 1.0);

    let messages = (0..50).map(|n| message(&format!("key-{n}"), &n.to_string())).collect();
    let Ok(Outcome::Enqueue(stored)) = call(Operation::Enqueue(enqueue("q", messages))).await
    else {
        panic!()
    };
    let mut taken = BTreeSet::new();
    while taken.len() < 50 {
        let got = deliveries(call(Operation::Dequeue(dequeue("q", 7, 0))).await).deliveries;
        assert!((1..=7).contains(&got.len()), "never more than was asked for, never nothing");
        for delivery in got {
            // The ids came back in the order of the request.
            let n = delivery.key.strip_prefix("key-").unwrap().parse::<usize>().unwrap();
            assert_eq!(stored.message_ids[n], delivery.message_id);
            assert!(taken.insert(n), "{n} was delivered twice");
            call(Operation::Ack(ack("q", &delivery.lease_id))).await.unwrap();
        }
    }
    assert!(deliveries(call(Operation::Dequeue(dequeue("q", 7, 0))).await).deliveries.is_empty());
}

#[tokio::test]
async fn the_wait_that_closes_a_circle_is_refused_at_once_with_all_of_it() {
    let Served { channel, front: _front, .. } = usual().await;
    let call = async |operation| unary(&channel, operation).await;
    for _ in 0..2 {
        call(Operation::OpenSession(open_session(60_000))).await.unwrap();
    }
    for (session, name) in [(1, "a"), (2, "b")] {
        call(Operation::Acquire(acquire(session, name, 0))).await.unwrap();
    }
    let first = tokio::spawn({
        let channel = channel.clone();
        async move { unary(&channel, Operation::Acquire(acquire(1, "b", 60_000))).await }
    });
    let waiters = async || {
        let describe = lock::DescribeLockRequest { name: "b".to_owned(), ..Default::default() };
        let Ok(Outcome::DescribeLock(lock)) = call(Operation::DescribeLock(describe)).await else {
            panic!()
        };
        lock.waiters.len()
    };
    while waiters().await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let begin = std::time::Instant::now();
    let (code, refusal) = refused(call(Operation::Acquire(acquire(2, "a", 60_000))).await);
    assert!(begin.elapsed() < Duration::from_secs(1), "it did not wait");
    assert_eq!((code, refusal.reason()), (Code::Aborted, Reason::Deadlock));
    let facts = ["length", "edge_0_session_id", "edge_0_lock", "edge_0_waits_for", "edge_1_lock"];
    assert_eq!(facts.map(|fact| refusal.metadata[fact].as_str()), ["2", "2", "a", "1", "b"]);
    let Ok(Outcome::ListDeadlocks(listed)) =
        call(Operation::ListDeadlocks(lock::ListDeadlocksRequest::default())).await
    else {
        panic!()
    };
    assert_eq!((listed.deadlocks.len(), listed.deadlocks[0].session_id), (1, 2));
    // The one who was refused lets go, and the other goes on.
    call(Operation::Release(release(2, "b"))).await.unwrap();
    let Ok(Outcome::Acquire(got)) = first.await.unwrap() else { panic!() };
    assert!(got.acquired);
}

#[tokio::test]
async fn a_lock_of_many_readers_is_taken_away_and_their_tokens_are_no_longer_valid() {
    let Served { channel, front: _front, .. } = usual().await;
    let call = async |operation| unary(&channel, operation).await;
    let shared = |session| lock::AcquireRequest {
        mode: lock::LockMode::Shared.into(),
        ..acquire(session, "l", 0)
    };
    let mut tokens = Vec::new();
    for session in 1..=200 {
        call(Operation::OpenSession(open_session(60_000))).await.unwrap();
        let Ok(Outcome::Acquire(got)) = call(Operation::Acquire(shared(session))).await else {
            panic!()
        };
        tokens.push(got.fencing_token);
    }
    let validate = async |fencing_token| {
        let name = "l".to_owned();
        let request = lock::ValidateTokenRequest { name, fencing_token, ..Default::default() };
        match call(Operation::ValidateToken(request)).await {
            Ok(Outcome::ValidateToken(answer)) => answer,
            other => panic!("{other:?}"),
        }
    };
    let answer = validate(tokens[7]).await;
    assert_eq!((answer.valid, answer.holder.unwrap().session_id), (true, 8));
    let force = lock::ForceReleaseRequest { name: "l".to_owned(), ..Default::default() };
    let Ok(Outcome::ForceRelease(forced)) = call(Operation::ForceRelease(force)).await else {
        panic!()
    };
    assert_eq!(forced.released, 200);
    assert!(tokens.iter().all(|token| *token < forced.fencing_token));
    let answer = validate(tokens[7]).await;
    assert_eq!((answer.valid, answer.holder_token), (false, 0));
    let Ok(Outcome::Acquire(got)) = call(Operation::Acquire(acquire(1, "l", 0))).await else {
        panic!()
    };
    assert!(got.fencing_token > forced.fencing_token);
    let (_, refusal) = refused(call(Operation::Release(release(2, "l"))).await);
    assert_eq!(refusal.reason(), Reason::NotHolder);
    assert_eq!(refusal.metadata["holder_token"], got.fencing_token.to_string());
}

#[tokio::test]
async fn no_handler_avoids_the_authorizer() {
    fn deny(_: &Principal, _: Action, _: Resource<'_>) -> Result<(), Refusal> {
        Err(Refusal { reason: Reason::PermissionDenied.into(), ..Refusal::default() })
    }
    let served = serve(Setup { authorizer: deny, ..Setup::default() }).await;
    let mut stream = Stream::open(&served.channel).await;
    for (n, operation) in (1..).zip(one_of_each()) {
        for end in [
            unary(&served.channel, operation.clone()).await,
            stream.call(n, operation.clone()).await,
        ] {
            let (code, refusal) = refused(end);
            let denied = (Code::PermissionDenied, Reason::PermissionDenied);
            assert_eq!((code, refusal.reason()), denied, "{operation:?}");
        }
    }
    assert!(served.fake.log().is_empty(), "nothing reached a shard");
}

#[tokio::test]
async fn a_service_that_is_off_says_so() {
    let services = [Service::Cache].into();
    let served = serve(Setup { services, ..Setup::default() }).await;
    for operation in one_of_each() {
        let is_on = matches!(
            operation,
            Operation::Put(_)
                | Operation::Get(_)
                | Operation::Delete(_)
                | Operation::Status(_)
                | Operation::TransferLeader(_)
                | Operation::CreateNamespace(_)
                | Operation::UpdateNamespace(_)
                | Operation::GetNamespace(_)
                | Operation::ListNamespaces(_)
                | Operation::DeleteNamespace(_)
                | Operation::GetNamespacePolicy(_)
                | Operation::SetNamespacePolicy(_)
        );
        let end = unary(&served.channel, operation).await;
        if is_on {
            end.unwrap();
        } else {
            let (code, refusal) = refused(end);
            assert_eq!((code, refusal.reason()), (Code::Unimplemented, Reason::ServiceOff));
        }
    }
}

#[tokio::test]
async fn a_long_poll_ends_with_the_first_message() {
    let Served { channel, front: _front, .. } = usual().await;
    unary(&channel, Operation::CreateQueue(create_queue("q", 8))).await.unwrap();
    let waiting = tokio::spawn({
        let channel = channel.clone();
        async move { unary(&channel, Operation::Dequeue(dequeue("q", 5, 60_000))).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begin = std::time::Instant::now();
    unary(&channel, Operation::Enqueue(enqueue("q", vec![message("k", "v")]))).await.unwrap();
    assert_eq!(deliveries(waiting.await.unwrap()).deliveries.len(), 1);
    assert!(begin.elapsed() < Duration::from_secs(2), "it did not wait for a round to end");

    let begin = std::time::Instant::now();
    let empty = deliveries(unary(&channel, Operation::Dequeue(dequeue("q", 5, 300))).await);
    assert!(empty.deliveries.is_empty() && empty.header.is_some());
    let took = begin.elapsed();
    assert!((300..2_000).contains(&took.as_millis()), "it waited {took:?} of 300 ms");
}

#[tokio::test]
async fn a_poll_that_cannot_see_every_shard_does_not_say_that_there_is_nothing() {
    let Served { channel, fake, front: _front, .. } = usual().await;
    unary(&channel, Operation::CreateQueue(create_queue("q", 8))).await.unwrap();
    assert!(
        deliveries(unary(&channel, Operation::Dequeue(dequeue("q", 1, 0))).await)
            .deliveries
            .is_empty()
    );
    fake.set_leaderless(true);
    for wait_ms in [0, 200] {
        let end = unary(&channel, Operation::Dequeue(dequeue("q", 1, wait_ms))).await;
        let (code, refusal) = refused(end);
        assert_eq!((code, refusal.reason()), (Code::Unavailable, Reason::NoQuorum));
    }
}

fn with_id(queue: &str, sequence: u64, attempt: u32, keys: &[&str]) -> EnqueueRequest {
    let mut request = enqueue(queue, keys.iter().map(|key| message(key, "v")).collect());
    request.request_id = id(sequence);
    request.request_id.as_mut().unwrap().attempt = attempt;
    request
}

#[tokio::test]
async fn a_retried_batch_is_stored_once() {
    let Served { channel, fake, front: _front, .. } = usual().await;
    // Keys of several partitions of one shard, and two messages without a key.
    let keys = (0..40).map(|n| format!("key-{n}")).collect::<Vec<_>>();
    let mut keys = keys.iter().map(String::as_str).collect::<Vec<_>>();
    keys.extend(["", ""]);
    let first = Operation::Enqueue(with_id("q", 7, 0, &keys));
    let Ok(Outcome::Enqueue(first)) = unary(&channel, first).await else { panic!() };
    assert_eq!(first.message_ids.iter().collect::<BTreeSet<_>>().len(), keys.len());
    // Other calls go between, so that rounds go on.
    for _ in 0..3 {
        unary(&channel, Operation::Dequeue(dequeue("q", 1, 0))).await.unwrap();
    }
    let again = Operation::Enqueue(with_id("q", 7, 1, &keys));
    let Ok(Outcome::Enqueue(again)) = unary(&channel, again).await else { panic!() };
    assert_eq!(first.message_ids, again.message_ids);
    let shards =
        fake.log().iter().filter(|command| matches!(command, Command::EnqueueTo(_))).count();
    assert!(shards >= 16, "every partition was sent to twice: {shards}");
}

#[tokio::test]
async fn a_batch_that_was_stored_in_part_says_that_it_may_be() {
    let Served { channel, fake, front: _front, .. } = usual().await;
    unary(&channel, Operation::CreateQueue(create_queue("q", 8))).await.unwrap();
    let keys = (0..40).map(|n| format!("key-{n}")).collect::<Vec<_>>();
    let keys = keys.iter().map(String::as_str).collect::<Vec<_>>();
    fake.set_fault(|shard, _| (shard == 2).then_some(Reason::Overloaded));
    let batch = enqueue("q", keys.iter().map(|key| message(key, "v")).collect());
    let (code, refusal) = refused(unary(&channel, Operation::Enqueue(batch)).await);
    assert_eq!((code, refusal.reason()), (Code::Aborted, Reason::MaybeApplied));
    assert_eq!(refusal.metadata["cause"], "OVERLOADED");

    let batch = Operation::Enqueue(with_id("q", 1, 0, &keys));
    let (code, refusal) = refused(unary(&channel, batch).await);
    assert_eq!((code, refusal.reason()), (Code::Unavailable, Reason::MaybeApplied));

    fake.set_fault(|_, _| Some(Reason::Overloaded));
    let batch = enqueue("q", keys.iter().map(|key| message(key, "v")).collect());
    let (code, refusal) = refused(unary(&channel, Operation::Enqueue(batch)).await);
    assert_eq!((code, refusal.reason()), (Code::ResourceExhausted, Reason::Overloaded));
}

#[tokio::test]
async fn a_retried_dequeue_returns_the_same_leases() {
    let Served { channel, front: _front, .. } = usual().await;
    let keys = (0..20).map(|n| message(&format!("key-{n}"), "v")).collect();
    unary(&channel, Operation::Enqueue(enqueue("q", keys))).await.unwrap();
    let mut request = dequeue("q", 20, 0);
    request.request_id = id(9);
    let first = deliveries(unary(&channel, Operation::Dequeue(request.clone())).await).deliveries;
    assert_eq!(first.len(), 20);
    request.request_id.as_mut().unwrap().attempt = 1;
    let again = deliveries(unary(&channel, Operation::Dequeue(request)).await).deliveries;
    let ids = |list: &[trefoil_proto::queue::v1::Delivery]| {
        list.iter().map(|delivery| delivery.lease_id.clone()).collect::<BTreeSet<_>>()
    };
    assert_eq!(ids(&first), ids(&again));
}
