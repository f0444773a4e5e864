//! Semaphores over real sockets: permits, their order, and callers who go away.

use tonic::Code;
use tonic::transport::Channel;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;

use crate::support::operations::*;
use crate::support::{Served, refused, unary, usual};

async fn described(channel: &Channel) -> lock::DescribeSemaphoreResponse {
    match unary(channel, Operation::DescribeSemaphore(describe_semaphore("s"))).await {
        Ok(Outcome::DescribeSemaphore(response)) => response,
        other => panic!("{other:?}"),
    }
}

async fn taken(
    channel: &Channel,
    session_id: u64,
    permits: u64,
    wait_ms: u64,
) -> lock::AcquirePermitsResponse {
    let take = Operation::AcquirePermits(take(session_id, "s", permits, wait_ms));
    match unary(channel, take).await {
        Ok(Outcome::AcquirePermits(response)) => response,
        other => panic!("{other:?}"),
    }
}

fn waiting(
    channel: &Channel,
    session_id: u64,
    permits: u64,
) -> tokio::task::JoinHandle<lock::AcquirePermitsResponse> {
    let channel = channel.clone();
    tokio::spawn(async move { taken(&channel, session_id, permits, 60_000).await })
}

fn waits_for(permits: u64) -> impl Fn(&Command) -> bool {
    move |command| matches!(command, Command::AcquirePermits(r) if r.wait_ms > 0 && r.permits == permits)
}

async fn sessions(channel: &Channel, count: u64) {
    for _ in 0..count {
        unary(channel, Operation::OpenSession(open_session(60_000))).await.unwrap();
    }
}

#[tokio::test]
async fn who_wants_many_is_served_before_those_behind_who_want_few() {
    let Served { channel, front: _front, fake, .. } = usual().await;
    sessions(&channel, 4).await;
    unary(&channel, Operation::SetPermits(set_permits("s", 3))).await.unwrap();
    let first = taken(&channel, 1, 0, 0).await;
    assert_eq!((first.acquired, first.permits), (true, 1), "one where no number is said");
    let many = waiting(&channel, 2, 3);
    fake.logged(waits_for(3)).await;
    let few = waiting(&channel, 3, 1);
    fake.logged(waits_for(1)).await;
    let missed = taken(&channel, 4, 1, 0).await;
    assert_eq!((missed.acquired, missed.available, missed.waiter_count), (false, 2, 2));
    let shown = described(&channel).await;
    let line = shown.waiters.iter().map(|of| (of.session_id, of.permits)).collect::<Vec<_>>();
    assert_eq!(line, [(2, 3), (3, 1)]);

    unary(&channel, Operation::ReleasePermits(give(1, "s"))).await.unwrap();
    let second = many.await.unwrap();
    assert!(second.acquired && second.fencing_token > first.fencing_token);
    assert!(!few.is_finished(), "there is none left");
    unary(&channel, Operation::SetPermits(set_permits("s", 4))).await.unwrap();
    assert!(few.await.unwrap().fencing_token > second.fencing_token);
    assert_eq!(described(&channel).await.semaphore.unwrap().in_use, 4);
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_no_waiter_and_no_permits() {
    let Served { channel, front: _front, fake, .. } = usual().await;
    sessions(&channel, 3).await;
    unary(&channel, Operation::SetPermits(set_permits("s", 2))).await.unwrap();
    taken(&channel, 1, 1, 0).await;
    let many = waiting(&channel, 2, 2);
    fake.logged(waits_for(2)).await;
    let few = waiting(&channel, 3, 1);
    fake.logged(waits_for(1)).await;
    many.abort();
    fake.logged(|command| matches!(command, Command::CancelAcquire(r) if r.permits == 2)).await;
    assert!(few.await.unwrap().acquired, "nobody is before it any more");
    unary(&channel, Operation::ReleasePermits(give(1, "s"))).await.unwrap();
    let shown = described(&channel).await.semaphore.unwrap();
    assert_eq!((shown.in_use, shown.holder_count, shown.waiter_count), (1, 1, 0));
}

#[tokio::test]
async fn refusals_of_semaphores_say_what_is_wrong() {
    let Served { channel, front: _front, .. } = usual().await;
    sessions(&channel, 2).await;
    let reason = async |operation| {
        let (code, refusal) = refused(unary(&channel, operation).await);
        (code, refusal.reason(), refusal.metadata)
    };
    let (code, unknown, _) = reason(Operation::AcquirePermits(take(1, "s", 1, 0))).await;
    assert_eq!((code, unknown), (Code::NotFound, Reason::UnknownSemaphore));
    unary(&channel, Operation::SetPermits(set_permits("s", 2))).await.unwrap();
    let (code, many, facts) = reason(Operation::AcquirePermits(take(1, "s", 3, 9))).await;
    assert_eq!((code, many), (Code::InvalidArgument, Reason::InvalidField));
    assert_eq!(facts["limit"], "at most 2, the permits of the semaphore");
    taken(&channel, 1, 1, 0).await;
    let (code, held, facts) = reason(Operation::AcquirePermits(take(1, "s", 2, 9))).await;
    assert_eq!((code, held), (Code::FailedPrecondition, Reason::PermitsHeld));
    assert_eq!(facts["permits"], "1");
    let (_, other, facts) = reason(Operation::ReleasePermits(give(2, "s"))).await;
    assert_eq!((other, &*facts["field"]), (Reason::NotHolder, "session_id"));
    let (code, kind, _) = reason(Operation::Acquire(acquire(2, "s", 0))).await;
    assert_eq!((code, kind), (Code::FailedPrecondition, Reason::OtherKind));
    let delete = lock::DeleteSemaphoreRequest { name: "s".to_owned(), ..Default::default() };
    let (_, used, _) = reason(Operation::DeleteSemaphore(delete)).await;
    assert_eq!(used, Reason::SemaphoreInUse);

    for (operation, field, limit) in [
        (Operation::SetPermits(set_permits("", 1)), "name", "1 to 255 bytes"),
        (Operation::SetPermits(set_permits("s", 0)), "permits", "1 to 1000000"),
        (Operation::SetPermits(set_permits("s", 1_000_001)), "permits", "1 to 1000000"),
        (Operation::AcquirePermits(take(0, "s", 1, 0)), "session_id", "set"),
        (Operation::AcquirePermits(take(1, "", 1, 0)), "name", "1 to 255 bytes"),
        (Operation::AcquirePermits(take(1, "s", 1_000_001, 0)), "permits", "1 to 1000000"),
        (Operation::AcquirePermits(take(1, "s", 1, 86_400_001)), "wait_ms", "0 to 86400000"),
        (Operation::ReleasePermits(give(0, "s")), "session_id", "set"),
        (Operation::DescribeSemaphore(describe_semaphore("")), "name", "1 to 255 bytes"),
        (
            Operation::ListSemaphores(lock::ListSemaphoresRequest {
                page_size: 1_001,
                ..Default::default()
            }),
            "page_size",
            "1 to 1000",
        ),
    ] {
        let (code, reason, facts) = reason(operation).await;
        assert_eq!((code, reason), (Code::InvalidArgument, Reason::InvalidField));
        assert_eq!((&*facts["field"], &*facts["limit"]), (field, limit));
    }
}
