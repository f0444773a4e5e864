//! Callers who go away: nothing that they waited for, or were granted, stays behind.

use std::time::Duration;

use tokio::time::sleep;
use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1::LockWish;
use trefoil_proto::pipeline::v1::OpenRequest;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;

use crate::support::operations::*;
use crate::support::{Served, Stream, refused, unary, usual};

/// A front on which one session holds a lock and another may wait for it.
async fn contended() -> (Served, u64, u64) {
    let served = usual().await;
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let end = unary(&served.channel, Operation::OpenSession(open_session(60_000))).await;
        let Ok(Outcome::OpenSession(opened)) = end else { panic!("{end:?}") };
        sessions.push(opened.session_id);
    }
    let held = unary(&served.channel, Operation::Acquire(acquire(sessions[0], "l", 0))).await;
    assert!(matches!(held, Ok(Outcome::Acquire(acquired)) if acquired.acquired));
    (served, sessions[0], sessions[1])
}

fn is_cancel(command: &Command) -> bool {
    matches!(command, Command::CancelAcquire(_))
}

/// After the holder has released it, the lock must be free: nobody waits for it.
async fn nobody_waits(served: &Served, holder: u64) {
    unary(&served.channel, Operation::Release(release(holder, "l"))).await.unwrap();
    let free = unary(&served.channel, Operation::Acquire(acquire(holder, "l", 0))).await;
    assert!(matches!(free, Ok(Outcome::Acquire(acquired)) if acquired.acquired));
}

#[tokio::test]
async fn a_unary_acquire_that_is_hung_up_is_cancelled() {
    let (served, holder, waiter) = contended().await;
    let channel = served.channel.clone();
    let call = tokio::spawn(async move {
        unary(&channel, Operation::Acquire(acquire(waiter, "l", 60_000))).await
    });
    served.fake.logged(|c| matches!(c, Command::Acquire(a) if a.wait_ms > 0)).await;
    call.abort();
    served.fake.logged(is_cancel).await;
    nobody_waits(&served, holder).await;
}

#[tokio::test]
async fn an_acquire_of_several_locks_that_is_hung_up_is_cancelled_for_all() {
    let (served, holder, waiter) = contended().await;
    let channel = served.channel.clone();
    let wish = |name: &str| LockWish { name: name.to_owned(), ..Default::default() };
    let mut request = acquire(waiter, "", 60_000);
    request.locks = vec![wish("k"), wish("l")];
    let call = tokio::spawn(async move { unary(&channel, Operation::Acquire(request)).await });
    served.fake.logged(|c| matches!(c, Command::Acquire(a) if a.wait_ms > 0)).await;
    call.abort();
    let Command::CancelAcquire(cancel) = served.fake.logged(is_cancel).await else { panic!() };
    assert_eq!(cancel.locks.iter().map(|wish| &wish.name).collect::<Vec<_>>(), ["k", "l"]);
    nobody_waits(&served, holder).await;
    let free = unary(&served.channel, Operation::Acquire(acquire(holder, "k", 0))).await;
    assert!(matches!(free, Ok(Outcome::Acquire(acquired)) if acquired.acquired));
}

#[tokio::test]
async fn a_pipelined_acquire_is_cancelled_by_its_id() {
    let (served, holder, waiter) = contended().await;
    let stream = Stream::open(&served.channel).await;
    let mut request = acquire(waiter, "l", 60_000);
    request.request_id = id(1);
    stream.send(5, 0, Operation::Acquire(request)).await;
    served.fake.logged(|c| matches!(c, Command::Acquire(a) if a.wait_ms > 0)).await;
    let begin = std::time::Instant::now();
    stream.calls.send(OpenRequest { calls: Vec::new(), cancel: vec![5] }).await.unwrap();
    let Command::CancelAcquire(cancel) = served.fake.logged(is_cancel).await else { panic!() };
    assert!(begin.elapsed() < Duration::from_secs(1), "who says so need not come back");
    let named = cancel.call.unwrap().request_id;
    assert_eq!(named, id(1).map(|id| RequestId { attempt: u32::MAX, ..id }));
    nobody_waits(&served, holder).await;
}

#[tokio::test]
async fn a_stream_that_breaks_leaves_time_to_come_back() {
    let (served, holder, waiter) = contended().await;
    let mut request = acquire(waiter, "l", 60_000);
    request.request_id = id(1);
    let stream = Stream::open(&served.channel).await;
    stream.send(5, 0, Operation::Acquire(request.clone())).await;
    served.fake.logged(|c| matches!(c, Command::Acquire(a) if a.wait_ms > 0)).await;
    drop(stream);
    sleep(Duration::from_millis(500)).await;
    assert!(!served.fake.log().iter().any(is_cancel), "it may come back");
    // It comes back by another stream, and the clean-up of the first attempt must not end the second.
    let mut stream = Stream::open(&served.channel).await;
    request.request_id.as_mut().unwrap().attempt = 1;
    stream.send(6, 0, Operation::Acquire(request)).await;
    served.fake.logged(is_cancel).await;
    unary(&served.channel, Operation::Release(release(holder, "l"))).await.unwrap();
    let reply = stream.reply().await;
    let Some(Outcome::Acquire(acquired)) = reply.outcome else { panic!("{reply:?}") };
    assert!(acquired.acquired && acquired.fencing_token > 1);
}

#[tokio::test]
async fn an_acquire_whose_deadline_passes_is_cancelled() {
    let (served, holder, waiter) = contended().await;
    let mut stream = Stream::open(&served.channel).await;
    stream.send(1, 200, Operation::Acquire(acquire(waiter, "l", 60_000))).await;
    let reply = stream.reply().await;
    assert!(matches!(reply.outcome, Some(Outcome::Error(_))), "{reply:?}");
    served.fake.logged(is_cancel).await;
    nobody_waits(&served, holder).await;

    // The same by the header of a unary call.
    let mut request = tonic::Request::new(acquire(waiter, "l", 60_000));
    request.set_timeout(Duration::from_millis(200));
    let mut client = trefoil_proto::lock::v1::lock_service_client::LockServiceClient::new(
        served.channel.clone(),
    );
    client.acquire(request).await.unwrap_err();
    let cancels = || served.fake.log().iter().filter(|command| is_cancel(command)).count();
    while cancels() < 2 {
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn grants_that_reach_nobody_are_returned() {
    let served = usual().await;
    let messages = vec![message("a", "v"), message("b", "v"), message("c", "v")];
    unary(&served.channel, Operation::Enqueue(enqueue("q", messages))).await.unwrap();
    served.fake.set_delay(Duration::from_millis(300));
    let channel = served.channel.clone();
    let call =
        tokio::spawn(async move { unary(&channel, Operation::Dequeue(dequeue("q", 9, 0))).await });
    served.fake.logged(|c| matches!(c, Command::DequeueFrom(_))).await;
    call.abort();
    served.fake.logged(|c| matches!(c, Command::ReturnLeases(_))).await;
    served.fake.set_delay(Duration::ZERO);
    sleep(Duration::from_millis(700)).await;
    let end = unary(&served.channel, Operation::Dequeue(dequeue("q", 9, 0))).await;
    let Ok(Outcome::Dequeue(got)) = end else { panic!("{end:?}") };
    assert_eq!(got.deliveries.len(), 3, "all are there again");
    assert!(got.deliveries.iter().all(|delivery| delivery.delivery_count == 1));
}

#[tokio::test]
async fn what_waits_is_sent_elsewhere_when_the_node_stops() {
    let (served, _, waiter) = contended().await;
    unary(&served.channel, Operation::CreateQueue(create_queue("q", 8))).await.unwrap();
    let waiting = [
        Operation::Acquire(acquire(waiter, "l", 60_000)),
        Operation::Dequeue(dequeue("q", 1, 60_000)),
    ];
    let calls = waiting.map(|operation| {
        let channel = served.channel.clone();
        tokio::spawn(async move { unary(&channel, operation).await })
    });
    served.fake.logged(|c| matches!(c, Command::Acquire(a) if a.wait_ms > 0)).await;
    sleep(Duration::from_millis(100)).await;
    served.front.announce_end().await;
    for call in calls {
        let (code, refusal) = refused(call.await.unwrap());
        assert_eq!(code, tonic::Code::Unavailable);
        assert_eq!(refusal.reason(), trefoil_proto::common::v1::Reason::Stopping);
    }
    // What does not wait is still answered, until the front stops.
    unary(&served.channel, Operation::Get(get("k"))).await.unwrap();
    served.front.stop().await;
    assert!(unary(&served.channel, Operation::Get(get("k"))).await.is_err());
}
