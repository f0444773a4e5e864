//! Latches and barriers over real sockets: who waits, for how long, and what becomes of who goes away.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::Code;
use tonic::transport::Channel;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::pipeline::v1::OpenRequest;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;

use crate::support::operations::*;
use crate::support::{Served, Stream, refused, unary, usual};

type End = Result<Outcome, tonic::Status>;

fn start(channel: &Channel, operation: Operation) -> JoinHandle<End> {
    let channel = channel.clone();
    tokio::spawn(async move { unary(&channel, operation).await })
}

async fn sessions(channel: &Channel, count: u64) {
    for _ in 0..count {
        unary(channel, Operation::OpenSession(open_session(60_000))).await.unwrap();
    }
}

async fn present(channel: &Channel) -> u32 {
    let get = lock::GetBarrierRequest { name: "b".to_owned(), ..Default::default() };
    match unary(channel, Operation::GetBarrier(get)).await {
        Ok(Outcome::GetBarrier(got)) => got.barrier.unwrap().present,
        other => panic!("{other:?}"),
    }
}

async fn until_present(channel: &Channel, count: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while present(channel).await != count {
        assert!(Instant::now() < deadline, "there are never {count} in the barrier");
        sleep(Duration::from_millis(10)).await;
    }
}

fn entered(end: End) -> lock::EnterBarrierResponse {
    match end {
        Ok(Outcome::EnterBarrier(response)) => response,
        other => panic!("{other:?}"),
    }
}

fn left(end: End) -> lock::LeaveBarrierResponse {
    match end {
        Ok(Outcome::LeaveBarrier(response)) => response,
        other => panic!("{other:?}"),
    }
}

fn awaited(end: End) -> lock::AwaitLatchResponse {
    match end {
        Ok(Outcome::AwaitLatch(response)) => response,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_latch_opens_for_all_who_wait() {
    let Served { channel, front: _front, .. } = usual().await;
    let (_, refusal) =
        refused(unary(&channel, Operation::AwaitLatch(await_latch("t", 5_000))).await);
    assert_eq!(refusal.reason(), Reason::UnknownLatch);
    unary(&channel, Operation::SetLatch(set_latch("t", 2))).await.unwrap();
    let waiting = (0..5).map(|_| start(&channel, Operation::AwaitLatch(await_latch("t", 60_000))));
    let waiting = waiting.collect::<Vec<_>>();
    let short = awaited(unary(&channel, Operation::AwaitLatch(await_latch("t", 200))).await);
    assert_eq!((short.open, short.count), (false, 2), "it waited in vain");
    unary(&channel, Operation::CountDown(count_down("t"))).await.unwrap();
    unary(&channel, Operation::CountDown(count_down("t"))).await.unwrap();
    for call in waiting {
        let answer = awaited(call.await.unwrap());
        assert_eq!((answer.open, answer.count, answer.round), (true, 0, short.round));
    }
    let (code, refusal) = refused(
        unary(
            &channel,
            Operation::SetLatch(lock::SetLatchRequest { expected: Some(7), ..set_latch("t", 1) }),
        )
        .await,
    );
    assert_eq!((code, refusal.reason()), (Code::FailedPrecondition, Reason::LatchCount));
}

#[tokio::test]
async fn a_deleted_latch_ends_the_wait() {
    let Served { channel, front: _front, .. } = usual().await;
    unary(&channel, Operation::SetLatch(set_latch("t", 2))).await.unwrap();
    let waiting = start(&channel, Operation::AwaitLatch(await_latch("t", 60_000)));
    sleep(Duration::from_millis(200)).await;
    let delete = lock::DeleteLatchRequest { name: "t".to_owned(), ..Default::default() };
    unary(&channel, Operation::DeleteLatch(delete)).await.unwrap();
    let (code, refusal) = refused(waiting.await.unwrap());
    assert_eq!((code, refusal.reason()), (Code::NotFound, Reason::UnknownLatch));
}

#[tokio::test]
async fn sessions_enter_and_leave_together_and_the_next_round_waits_for_them() {
    let Served { channel, front: _front, .. } = usual().await;
    sessions(&channel, 4).await;
    let first = start(&channel, Operation::EnterBarrier(enter(1, "b", 2, 60_000)));
    until_present(&channel, 1).await;
    let second = entered(unary(&channel, Operation::EnterBarrier(enter(2, "b", 2, 60_000))).await);
    let first = entered(first.await.unwrap());
    assert!(first.entered && second.entered && first.round == second.round);

    // Two more begin the next round once the first two have left.
    let next = [3, 4].map(|id| start(&channel, Operation::EnterBarrier(enter(id, "b", 2, 60_000))));
    let leaving = start(&channel, Operation::LeaveBarrier(leave(1, "b", 60_000)));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(present(&channel).await, 1, "they wait outside");
    let last = left(unary(&channel, Operation::LeaveBarrier(leave(2, "b", 0))).await);
    assert!(last.all_left && left(leaving.await.unwrap()).all_left);
    for call in next {
        let end = entered(call.await.unwrap());
        assert!(end.entered && end.round > first.round);
    }
    let alone = left(unary(&channel, Operation::LeaveBarrier(leave(3, "b", 200))).await);
    assert_eq!((alone.all_left, alone.present), (false, 1));
    let (code, refusal) = refused(unary(&channel, Operation::LeaveBarrier(leave(3, "b", 0))).await);
    assert_eq!((code, refusal.reason()), (Code::FailedPrecondition, Reason::NotEntered));
}

#[tokio::test]
async fn a_wait_that_ends_gives_the_place_up() {
    let Served { channel, front: _front, .. } = usual().await;
    sessions(&channel, 3).await;
    let end = entered(unary(&channel, Operation::EnterBarrier(enter(1, "b", 2, 200))).await);
    assert_eq!((end.entered, end.round), (false, 0));
    assert_eq!(present(&channel).await, 0);

    let waiting = start(&channel, Operation::EnterBarrier(enter(2, "b", 2, 60_000)));
    until_present(&channel, 1).await;
    let (_, refusal) =
        refused(unary(&channel, Operation::EnterBarrier(enter(1, "b", 3, 60_000))).await);
    assert_eq!(refusal.reason(), Reason::BarrierParties);
    assert_eq!(refusal.metadata["parties"], "2");
    let close = lock::CloseSessionRequest { session_id: 2, ..Default::default() };
    unary(&channel, Operation::CloseSession(close)).await.unwrap();
    let (_, refusal) = refused(waiting.await.unwrap());
    assert_eq!(refusal.reason(), Reason::SessionExpired, "its session is closed");
    assert_eq!(present(&channel).await, 0);
}

#[tokio::test]
async fn a_caller_that_hangs_up_gives_the_place_up() {
    let served = usual().await;
    let channel = &served.channel;
    sessions(channel, 2).await;
    let waiting = start(channel, Operation::EnterBarrier(enter(1, "b", 2, 60_000)));
    until_present(channel, 1).await;
    waiting.abort();
    until_present(channel, 0).await;

    // By a pipelined stream that says so, at once; by one that breaks, once it had time to come back.
    let request = |sequence| lock::EnterBarrierRequest {
        request_id: id(sequence),
        ..enter(1, "b", 2, 60_000)
    };
    let stream = Stream::open(channel).await;
    stream.send(5, 0, Operation::EnterBarrier(request(1))).await;
    until_present(channel, 1).await;
    let begin = Instant::now();
    stream.calls.send(OpenRequest { calls: Vec::new(), cancel: vec![5] }).await.unwrap();
    until_present(channel, 0).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "who says so need not come back");

    stream.send(6, 0, Operation::EnterBarrier(request(2))).await;
    until_present(channel, 1).await;
    drop(stream);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(present(channel).await, 1, "it may come back");
    let mut stream = Stream::open(channel).await;
    let mut again = request(2);
    again.request_id.as_mut().unwrap().attempt = 1;
    stream.send(7, 0, Operation::EnterBarrier(again)).await;
    served.fake.logged(|c| matches!(c, Command::WithdrawBarrier(w) if w.call.as_ref().unwrap().request_id == id(2))).await;
    let second = entered(unary(channel, Operation::EnterBarrier(enter(2, "b", 2, 60_000))).await);
    let reply = stream.reply().await;
    let Some(Outcome::EnterBarrier(first)) = reply.outcome else { panic!("{reply:?}") };
    assert!(first.entered && second.entered && first.round == second.round);
}

#[tokio::test]
async fn bad_fields_of_latches_and_barriers_are_named_with_their_limits() {
    let Served { channel, front: _front, .. } = usual().await;
    for (operation, field, limit) in [
        (Operation::SetLatch(set_latch("", 1)), "name", "1 to 255 bytes"),
        (Operation::SetLatch(set_latch("t", 0)), "count", "1 to 4294967295"),
        (Operation::CountDown(count_down("")), "name", "1 to 255 bytes"),
        (Operation::AwaitLatch(await_latch("t", 86_400_001)), "wait_ms", "0 to 86400000"),
        (Operation::GetLatch(lock::GetLatchRequest::default()), "name", "1 to 255 bytes"),
        (Operation::DeleteLatch(lock::DeleteLatchRequest::default()), "name", "1 to 255 bytes"),
        (
            Operation::ListLatches(lock::ListLatchesRequest {
                page_size: 1_001,
                ..Default::default()
            }),
            "page_size",
            "1 to 1000",
        ),
        (Operation::EnterBarrier(enter(0, "b", 2, 0)), "session_id", "set"),
        (Operation::EnterBarrier(enter(1, "", 2, 0)), "name", "1 to 255 bytes"),
        (Operation::EnterBarrier(enter(1, "b", 0, 0)), "parties", "1 to 1000"),
        (Operation::EnterBarrier(enter(1, "b", 1_001, 0)), "parties", "1 to 1000"),
        (Operation::EnterBarrier(enter(1, "b", 2, 86_400_001)), "wait_ms", "0 to 86400000"),
        (Operation::LeaveBarrier(leave(0, "b", 0)), "session_id", "set"),
        (Operation::LeaveBarrier(leave(1, "b", 86_400_001)), "wait_ms", "0 to 86400000"),
        (Operation::GetBarrier(lock::GetBarrierRequest::default()), "name", "1 to 255 bytes"),
        (
            Operation::ListBarriers(lock::ListBarriersRequest {
                page_size: 1_001,
                ..Default::default()
            }),
            "page_size",
            "1 to 1000",
        ),
    ] {
        let (code, refusal) = refused(unary(&channel, operation.clone()).await);
        assert_eq!(code, Code::InvalidArgument, "{operation:?}");
        assert_eq!(refusal.metadata["field"], field, "{operation:?}");
        assert_eq!(refusal.metadata["limit"], limit, "{operation:?}");
    }
}
