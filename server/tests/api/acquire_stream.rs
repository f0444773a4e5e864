//! AcquireStream over a real socket: places in line, the answer, and what hanging up leaves behind.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::{Status, Streaming};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::lock::v1::acquire_stream_response::Step;
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_proto::lock::v1::{AcquireRequest, AcquireStreamRequest, AcquireStreamResponse};
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::status::from_status;
use trefoil_server::authorize::{Action, Resource};

use crate::support::operations::*;
use crate::support::{Served, Setup, serve, unary, usual};

const PATIENCE: Duration = Duration::from_secs(10);

async fn stream(
    served: &Served,
    acquire: AcquireRequest,
) -> Result<Streaming<AcquireStreamResponse>, Status> {
    let request = AcquireStreamRequest { acquire: Some(acquire) };
    let mut client = LockServiceClient::new(served.channel.clone());
    client.acquire_stream(request).await.map(tonic::Response::into_inner)
}

async fn step(steps: &mut Streaming<AcquireStreamResponse>) -> Result<Step, Status> {
    let response = timeout(PATIENCE, steps.message()).await.expect("something comes in time")?;
    Ok(response.expect("an answer comes before the end").step.unwrap())
}

async fn ahead(steps: &mut Streaming<AcquireStreamResponse>) -> u64 {
    match step(steps).await.unwrap() {
        Step::Waiting(place) => {
            assert!(place.header.unwrap().index > 0 && !place.or_more);
            place.ahead
        }
        Step::Answer(answer) => panic!("{answer:?}"),
    }
}

/// Sessions 1 to 3, and a lock that the first one holds.
async fn three() -> Served {
    let served = usual().await;
    for _ in 0..3 {
        unary(&served.channel, Operation::OpenSession(open_session(60_000))).await.unwrap();
    }
    unary(&served.channel, Operation::Acquire(acquire(1, "a", 0))).await.unwrap();
    served
}

#[tokio::test]
async fn a_call_is_told_its_place_and_then_its_grant() {
    let served = three().await;
    let mut second = stream(&served, acquire(2, "a", 60_000)).await.unwrap();
    assert_eq!(ahead(&mut second).await, 0);
    let mut third = stream(&served, acquire(3, "a", 60_000)).await.unwrap();
    assert_eq!(ahead(&mut third).await, 1);

    unary(&served.channel, Operation::Release(release(1, "a"))).await.unwrap();
    let Step::Answer(answer) = step(&mut second).await.unwrap() else { panic!() };
    assert!(answer.acquired && answer.fencing_token == 2 && answer.header.is_some());
    assert!(second.message().await.unwrap().is_none(), "the stream ends with the answer");
    assert_eq!(ahead(&mut third).await, 0);
    unary(&served.channel, Operation::Release(release(2, "a"))).await.unwrap();
    let Step::Answer(answer) = step(&mut third).await.unwrap() else { panic!() };
    assert_eq!(answer.fencing_token, 3);
    // Nothing takes the grant back.
    sleep(Duration::from_millis(200)).await;
    let cancels = served.fake.log().into_iter();
    assert_eq!(cancels.filter(|c| matches!(c, Command::CancelAcquire(_))).count(), 0);

    let mut late = stream(&served, acquire(1, "a", 200)).await.unwrap();
    assert_eq!(ahead(&mut late).await, 0);
    let Step::Answer(answer) = step(&mut late).await.unwrap() else { panic!() };
    assert_eq!((answer.acquired, answer.holder_token), (false, 3));
    let mut free = stream(&served, acquire(1, "b", 0)).await.unwrap();
    assert!(matches!(step(&mut free).await.unwrap(), Step::Answer(answer) if answer.acquired));
}

fn wish(name: &str) -> lock::LockWish {
    lock::LockWish { name: name.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_call_for_several_locks_is_told_its_place_where_most_stand_before_it() {
    let served = three().await;
    unary(&served.channel, Operation::Acquire(acquire(2, "b", 0))).await.unwrap();
    let mut before = stream(&served, acquire(2, "a", 60_000)).await.unwrap();
    assert_eq!(ahead(&mut before).await, 0);
    let locks = vec![wish("b"), wish("a")];
    let both = AcquireRequest { locks, ..acquire(3, "", 60_000) };
    let mut both = stream(&served, both).await.unwrap();
    assert_eq!(ahead(&mut both).await, 1);

    unary(&served.channel, Operation::Release(release(1, "a"))).await.unwrap();
    let Step::Answer(answer) = step(&mut before).await.unwrap() else { panic!() };
    assert!(answer.acquired);
    assert_eq!(ahead(&mut both).await, 0);
    for name in ["a", "b"] {
        unary(&served.channel, Operation::Release(release(2, name))).await.unwrap();
    }
    let Step::Answer(answer) = step(&mut both).await.unwrap() else { panic!() };
    let names = answer.locks.iter().map(|grant| grant.name.as_str()).collect::<Vec<_>>();
    assert!(answer.acquired && names == ["b", "a"], "{answer:?}");
}

#[tokio::test]
async fn who_hangs_up_waits_no_longer() {
    let served = three().await;
    let mut second = stream(&served, acquire(2, "a", 60_000)).await.unwrap();
    assert_eq!(ahead(&mut second).await, 0);
    drop(second);
    served.fake.logged(|operation| matches!(operation, Command::CancelAcquire(_))).await;
    let mut third = stream(&served, acquire(3, "a", 60_000)).await.unwrap();
    unary(&served.channel, Operation::Release(release(1, "a"))).await.unwrap();
    loop {
        match step(&mut third).await.unwrap() {
            Step::Waiting(_) => {}
            Step::Answer(answer) => {
                assert!(answer.acquired);
                break;
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_acquired_is_refused() {
    let served = three().await;
    let mut client = LockServiceClient::new(served.channel.clone());
    let refused = client.acquire_stream(AcquireStreamRequest::default()).await.unwrap_err();
    assert_eq!(from_status(&refused).unwrap().metadata["field"], "acquire");
    let refused = stream(&served, acquire(1, "", 0)).await.unwrap_err();
    assert_eq!(from_status(&refused).unwrap().metadata["field"], "name");
    let mut gone = stream(&served, acquire(9, "a", 1_000)).await.unwrap();
    let refused = step(&mut gone).await.unwrap_err();
    assert_eq!(from_status(&refused).unwrap().reason(), Reason::SessionExpired);

    let mut waits = stream(&served, acquire(2, "a", 60_000)).await.unwrap();
    assert_eq!(ahead(&mut waits).await, 0);
    served.front.announce_end().await;
    let stopped = step(&mut waits).await.unwrap_err();
    assert_eq!(from_status(&stopped).unwrap().reason(), Reason::Stopping);
    let described = unary(
        &served.channel,
        Operation::DescribeLock(trefoil_proto::lock::v1::DescribeLockRequest {
            name: "a".to_owned(),
            ..Default::default()
        }),
    );
    let Ok(Outcome::DescribeLock(described)) = described.await else { panic!() };
    assert_eq!(described.holder_count, 1);
}

#[tokio::test]
async fn who_may_not_use_a_lock_may_not_wait_for_it() {
    let deny: trefoil_server::authorize::Authorizer = |_, action, resource| match resource {
        Resource::Lock { namespace: "default", name: "a" } if action == Action::UseLock => {
            Err(Refusal { reason: Reason::PermissionDenied.into(), ..Refusal::default() })
        }
        _ => Ok(()),
    };
    let served = serve(Setup { authorizer: deny, ..Setup::default() }).await;
    unary(&served.channel, Operation::OpenSession(open_session(60_000))).await.unwrap();
    let denied = stream(&served, acquire(1, "a", 0)).await.unwrap_err();
    assert_eq!(from_status(&denied).unwrap().reason(), Reason::PermissionDenied);
    let both = AcquireRequest { locks: vec![wish("b"), wish("a")], ..acquire(1, "", 0) };
    let denied = stream(&served, both).await.unwrap_err();
    assert_eq!(from_status(&denied).unwrap().reason(), Reason::PermissionDenied);
    let ask = Operation::RequestRelease(lock::RequestReleaseRequest {
        name: "a".to_owned(),
        ..Default::default()
    });
    let denied = unary(&served.channel, ask).await.unwrap_err();
    assert_eq!(from_status(&denied).unwrap().reason(), Reason::PermissionDenied);
    let mut allowed = stream(&served, acquire(1, "b", 0)).await.unwrap();
    assert!(matches!(step(&mut allowed).await.unwrap(), Step::Answer(answer) if answer.acquired));
}
