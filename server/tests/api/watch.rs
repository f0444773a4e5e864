//! Watches of locks over a real socket: what they tell, how they go on, and how they end.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::{Code, Status, Streaming};
use trefoil_core::limits::{WATCH_LEADERLESS_MS, WATCH_PROGRESS_MS, WATCH_WINDOW_EVENTS_MAX};
use trefoil_core::machine::{Applied, Body, Event};
use trefoil_core::slot;
use trefoil_proto::common::v1::{Reason, WatchPosition};
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_proto::lock::v1::{LockEvent, LockEventKind, WatchLocksRequest, WatchLocksResponse};
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::status::from_status;
use trefoil_server::api::Shards as _;
use trefoil_server::authorize::Action;
use trefoil_server::config::Service;

use crate::support::operations::*;
use crate::support::{Served, Setup, metric, serve, unary, usual};

const PATIENCE: Duration = Duration::from_secs(10);

async fn watch(
    served: &Served,
    request: WatchLocksRequest,
) -> Result<Streaming<WatchLocksResponse>, Status> {
    let mut client = LockServiceClient::new(served.channel.clone());
    client.watch_locks(request).await.map(tonic::Response::into_inner)
}

async fn next(stream: &mut Streaming<WatchLocksResponse>) -> Result<WatchLocksResponse, Status> {
    let response = timeout(PATIENCE, stream.message()).await.expect("something comes in time");
    Ok(response?.expect("a watch ends with a status"))
}

/// Events one by one, each with the position of its response.
async fn events(stream: &mut Streaming<WatchLocksResponse>, count: usize) -> Vec<LockEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(next(stream).await.unwrap().events);
    }
    assert_eq!(events.len(), count);
    events
}

fn reason(status: &Status) -> Refusal {
    from_status(status).unwrap_or_else(|| panic!("{status:?} carries no reason"))
}

async fn call(served: &Served, operation: Operation) {
    unary(&served.channel, operation).await.unwrap();
}

/// After an entry of the shard of the default namespace's locks.
fn at(served: &Served, index: u64) -> Option<WatchPosition> {
    let (slot, shards) = (slot::of_locks("default"), served.fake.shards());
    let cluster_id = served.fake.cluster_id().expect("a cluster has an id");
    let cluster_id = cluster_id.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(WatchPosition { index, ordinal: None, shard: slot::shard(slot, shards), cluster_id })
}

fn named(name: &str) -> WatchLocksRequest {
    WatchLocksRequest { name: name.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_watch_tells_what_happens_and_goes_on_after_any_position() {
    let served = usual().await;
    call(&served, Operation::OpenSession(open_session(60_000))).await;
    call(&served, Operation::Acquire(acquire(1, "before", 0))).await;
    let mut all = watch(&served, WatchLocksRequest::default()).await.unwrap();
    let first = next(&mut all).await.unwrap();
    let header = first.header.unwrap();
    assert!(first.events.is_empty() && header.index > 0 && header.term > 0 && header.node_id == 1);
    assert_eq!(first.position, at(&served, header.index));
    assert_eq!(first.position, Some(header.into()));
    let mut one = watch(&served, named("b")).await.unwrap();
    let prefix = WatchLocksRequest { prefix: "a".to_owned(), ..Default::default() };
    let mut prefix = watch(&served, prefix).await.unwrap();
    next(&mut one).await.unwrap();
    next(&mut prefix).await.unwrap();

    for name in ["a", "b", "ab"] {
        call(&served, Operation::Acquire(acquire(1, name, 0))).await;
        call(&served, Operation::Release(release(1, name))).await;
    }
    let seen = events(&mut all, 6).await;
    let short = |event: &LockEvent| (event.kind(), event.name.clone());
    let pairs = ["a", "b", "ab"].into_iter().flat_map(|name| {
        [LockEventKind::Acquired, LockEventKind::Released].map(|kind| (kind, name.to_owned()))
    });
    assert_eq!(seen.iter().map(short).collect::<Vec<_>>(), pairs.collect::<Vec<_>>());
    assert!(seen.iter().all(|event| event.session_id == 1 && event.log_time_ms > 0));
    assert!(seen.is_sorted_by_key(|event| (event.index, event.ordinal)));
    assert!(seen[0].fencing_token == seen[1].fencing_token && seen[0].fencing_token > 0);
    assert_eq!(events(&mut one, 2).await, seen[2..4]);
    assert_eq!(events(&mut prefix, 4).await, [&seen[..2], &seen[4..]].concat());

    // From the beginning, and after each event.
    let from = |after| WatchLocksRequest { after, ..Default::default() };
    for n in 0..=seen.len() {
        let after = if n == 0 { first.position.clone() } else { at(&served, seen[n - 1].index) };
        let mut again = watch(&served, from(after.clone())).await.unwrap();
        assert_eq!(next(&mut again).await.unwrap().position, after);
        if n < seen.len() {
            assert_eq!(events(&mut again, seen.len() - n).await, seen[n..]);
        }
    }
    let metrics = served.front.api().metrics();
    assert!(metric(metrics, "trefoil_watch_events_total") >= 12.0);
    assert!(metric(metrics, "trefoil_watchers") >= 3.0);
    drop((all, one, prefix));
    for _ in 0..100 {
        if metric(metrics, "trefoil_watchers") == 0.0 {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("watches that are gone are counted");
}

#[tokio::test]
async fn a_silent_watch_tells_its_position_now_and_then() {
    let served = usual().await;
    let mut one = watch(&served, named("quiet")).await.unwrap();
    let begun = next(&mut one).await.unwrap().position.unwrap();
    call(&served, Operation::OpenSession(open_session(60_000))).await;
    call(&served, Operation::Acquire(acquire(1, "other", 0))).await;
    let patience = Duration::from_millis(WATCH_PROGRESS_MS) + Duration::from_secs(4);
    let later = timeout(patience, next(&mut one)).await.expect("it tells in time").unwrap();
    assert!(later.events.is_empty());
    assert!(later.position.as_ref().unwrap().index >= begun.index + 2, "{later:?}");
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let served = usual().await;
    let refused = async |request| reason(&watch(&served, request).await.unwrap_err());
    let both = WatchLocksRequest { prefix: "a".to_owned(), ..named("a") };
    assert_eq!(refused(both).await.metadata["field"], "prefix");
    let long = named(&"x".repeat(256));
    assert_eq!(refused(long).await.metadata["field"], "name");
    let ahead = WatchLocksRequest { after: at(&served, 1_000_000), ..Default::default() };
    assert_eq!(refused(ahead).await.metadata["field"], "after.index");
    let nothing = WatchLocksRequest { after: at(&served, 0), ..Default::default() };
    assert_eq!(refused(nothing).await.metadata["field"], "after.index");

    let here = || at(&served, 1).unwrap();
    for (after, field) in [
        (WatchPosition { shard: here().shard + 1, ..here() }, "after.shard"),
        (WatchPosition { shard: 0, ..here() }, "after.shard"),
        (WatchPosition { cluster_id: "00".repeat(16), ..here() }, "after.cluster_id"),
        (WatchPosition { cluster_id: String::new(), ..here() }, "after.cluster_id"),
    ] {
        let other = WatchLocksRequest { after: Some(after), ..Default::default() };
        let refusal = refused(other).await;
        assert_eq!(
            (refusal.reason(), &refusal.metadata["field"][..]),
            (Reason::InvalidField, field)
        );
    }

    let old = WatchLocksRequest { after: at(&served, 1), ..Default::default() };
    let status = watch(&served, old).await.unwrap_err();
    let gone = reason(&status);
    assert_eq!((status.code(), gone.reason()), (Code::OutOfRange, Reason::PositionCompacted));
    let oldest = gone.metadata["oldest"].parse().unwrap();
    let from = WatchLocksRequest { after: at(&served, oldest), ..Default::default() };
    assert!(watch(&served, from).await.is_ok());

    let services = [Service::Queue].into();
    let served = serve(Setup { services, ..Setup::default() }).await;
    let off = watch(&served, named("a")).await.unwrap_err();
    assert_eq!(reason(&off).reason(), Reason::ServiceOff);
    let deny: trefoil_server::authorize::Authorizer = |_, action, _| match action {
        Action::ReadLocks => {
            Err(Refusal { reason: Reason::PermissionDenied.into(), ..Refusal::default() })
        }
        _ => Ok(()),
    };
    let served = serve(Setup { authorizer: deny, ..Setup::default() }).await;
    let denied = watch(&served, named("a")).await.unwrap_err();
    assert_eq!(reason(&denied).reason(), Reason::PermissionDenied);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_ended_and_holds_up_nobody() {
    let served = usual().await;
    let shard = slot::shard(slot::of_locks("default"), 3);
    let mut slow = watch(&served, WatchLocksRequest::default()).await.unwrap();
    let mut position = next(&mut slow).await.unwrap().position.unwrap();
    // The idle one watches something else, and is not disturbed.
    let mut idle = watch(&served, named("idle")).await.unwrap();
    next(&mut idle).await.unwrap();
    let event = LockEvent { name: "x".repeat(250), ..LockEvent::default() };
    let event = Event { namespace: "default".to_owned(), body: Body::Lock(event) };
    let rounds = WATCH_WINDOW_EVENTS_MAX as u64 / 1_000 + 2;
    for index in 1..=rounds {
        let events = vec![event.clone(); 1_000];
        let index = position.index + index;
        let mut entry = [Applied { index, term: 9, events, ..Applied::default() }];
        served.fake.feeds().publish(shard, &mut entry);
        if index % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut seen = 0;
    let status = loop {
        match next(&mut slow).await {
            Ok(response) => {
                seen += response.events.len();
                position = response.position.unwrap();
            }
            Err(status) => break status,
        }
    };
    let behind = reason(&status);
    assert_eq!((status.code(), behind.reason()), (Code::ResourceExhausted, Reason::WatcherBehind));
    assert_eq!(behind.metadata["index"], position.index.to_string(), "the last that it was sent");
    assert!(seen < usize::try_from(rounds).unwrap() * 1_000);
    let metrics = served.front.api().metrics();
    assert!(metric(metrics, "trefoil_watches_ended_total{reason=\"behind\"}") >= 1.0);

    let name = "idle".to_owned();
    let event = Event { body: Body::Lock(LockEvent { name, ..LockEvent::default() }), ..event };
    let index = position.index + 10_000;
    let mut entry = [Applied { index, events: vec![event], ..Applied::default() }];
    served.fake.feeds().publish(shard, &mut entry);
    assert_eq!(events(&mut idle, 1).await[0].index, index);
}

#[tokio::test]
async fn a_watch_ends_where_it_cannot_go_on() {
    let served = usual().await;
    let mut cut_off = watch(&served, named("a")).await.unwrap();
    next(&mut cut_off).await.unwrap();
    served.fake.set_leaderless(true);
    let patience = Duration::from_millis(WATCH_LEADERLESS_MS) + Duration::from_secs(4);
    let end = timeout(patience, next(&mut cut_off)).await.expect("it ends in time").unwrap_err();
    assert_eq!((end.code(), reason(&end).reason()), (Code::Unavailable, Reason::NoQuorum));
    let refused = watch(&served, named("a")).await.unwrap_err();
    assert_eq!(reason(&refused).reason(), Reason::NoQuorum, "nor does another begin here");
    served.fake.set_leaderless(false);

    let mut stopped = watch(&served, named("a")).await.unwrap();
    next(&mut stopped).await.unwrap();
    served.front.announce_end().await;
    let end = next(&mut stopped).await.unwrap_err();
    assert_eq!((end.code(), reason(&end).reason()), (Code::Unavailable, Reason::Stopping));
    let refused = watch(&served, named("a")).await.unwrap_err();
    assert_eq!(reason(&refused).reason(), Reason::Stopping);
}
