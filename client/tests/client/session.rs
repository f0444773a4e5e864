//! Sessions and guards: renewed in the background, never believed for longer than was promised.

use std::time::Duration;

use crate::support::{Fake, header, refusal};
use tokio::time::{Instant, timeout};
use trefoil_client::proto::common::v1::Reason;
use trefoil_client::proto::lock::v1::{
    AcquireResponse, CloseSessionResponse, ConvertResponse, KeepAliveResponse, LockGrant, LockMode,
    LockWish, OpenSessionResponse, ReleaseResponse,
};
use trefoil_client::proto::pipeline::v1::Call;
use trefoil_client::proto::pipeline::v1::call::Operation;
use trefoil_client::proto::pipeline::v1::reply::Outcome;
use trefoil_client::{Client, Guard, Session};

const TTL: Duration = Duration::from_millis(900);

/// Answers everything but the renewals.
fn answers(call: &Call) -> Option<Outcome> {
    let header = header(1);
    Some(match call.operation.as_ref()? {
        Operation::OpenSession(open) => {
            let (session_id, ttl_ms) = (9, open.ttl_ms);
            let remaining_ms = ttl_ms;
            Outcome::OpenSession(OpenSessionResponse { header, session_id, ttl_ms, remaining_ms })
        }
        Operation::Acquire(acquire) if !acquire.locks.is_empty() => {
            let grant = |(n, wish): (usize, &LockWish)| LockGrant {
                name: wish.name.clone(),
                fencing_token: 5 + n as u64,
                mode: wish.mode,
            };
            let locks = acquire.locks.iter().enumerate().map(grant).collect();
            let acquired = true;
            Outcome::Acquire(AcquireResponse {
                header,
                acquired,
                locks,
                ..AcquireResponse::default()
            })
        }
        Operation::Acquire(_) => Outcome::Acquire(AcquireResponse {
            header,
            acquired: true,
            fencing_token: 4,
            mode: LockMode::Exclusive.into(),
            ..AcquireResponse::default()
        }),
        _ => return None,
    })
}

async fn held(fake: &Fake) -> (Session, Guard) {
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    let session = client.session(TTL).owner("test").await.unwrap();
    let guard = session.lock("l").acquire().await.unwrap().expect("the lock is free");
    (session, guard)
}

#[tokio::test]
async fn a_session_is_renewed_at_a_third_of_its_ttl_and_believed_from_before_the_request() {
    let mut fake = Fake::answering(answers);
    let (session, guard) = held(&fake).await;
    let opened = Instant::now();
    assert!(guard.remaining() <= TTL);
    for _ in 0..3 {
        let (stream, call) = fake.call().await;
        let Some(Operation::KeepAlive(renewal)) = &call.operation else { panic!("{call:?}") };
        assert_eq!(renewal.session_id, 9);
        // The renewal is answered late: what it promises counts from when it was sent.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let renewed = KeepAliveResponse { header: header(1), remaining_ms: 900 };
        fake.reply(stream, call.id, Outcome::KeepAlive(renewed)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(guard.remaining() <= Duration::from_millis(750), "{:?}", guard.remaining());
        assert!(guard.remaining() > Duration::from_millis(400), "{:?}", guard.remaining());
    }
    let elapsed = opened.elapsed();
    assert!(
        (Duration::from_millis(850)..Duration::from_millis(1_600)).contains(&elapsed),
        "{elapsed:?}"
    );
    assert!(timeout(Duration::from_millis(1), session.lost()).await.is_err());
    assert_eq!(guard.token(), 4);
}

#[tokio::test]
async fn a_session_that_cannot_be_renewed_is_lost_when_its_promise_ends() {
    let fake = Fake::answering(answers);
    let (session, guard) = held(&fake).await;
    let held = Instant::now();
    timeout(Duration::from_secs(5), guard.lost()).await.expect("it is lost");
    let elapsed = held.elapsed();
    assert!(
        (Duration::from_millis(700)..Duration::from_millis(1_100)).contains(&elapsed),
        "{elapsed:?}"
    );
    assert_eq!(guard.remaining(), Duration::ZERO);
    let again = session.lock("l").wait(Duration::from_secs(9)).acquire().await.unwrap_err();
    assert_eq!(again.reason(), Some(Reason::SessionExpired));
    // What is over needs no end.
    guard.release().await.unwrap();
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_session_that_the_cluster_does_not_know_is_lost_at_once() {
    let mut fake = Fake::answering(answers);
    let (_session, guard) = held(&fake).await;
    let (stream, call) = fake.call().await;
    fake.reply(stream, call.id, refusal(Reason::SessionExpired, &[])).await;
    timeout(Duration::from_millis(300), guard.lost()).await.expect("it is lost");
}

#[tokio::test]
async fn a_dropped_guard_is_released_with_its_token_and_a_dropped_session_closed() {
    let mut fake = Fake::answering(answers);
    let (session, guard) = held(&fake).await;
    drop(guard);
    let (stream, call) = fake.call().await;
    let Some(Operation::Release(release)) = &call.operation else { panic!("{call:?}") };
    assert_eq!((release.session_id, release.name.as_str(), release.fencing_token), (9, "l", 4));
    fake.reply(stream, call.id, Outcome::Release(ReleaseResponse { header: header(1) })).await;

    drop(session);
    let (_, call) = fake.call().await;
    assert!(
        matches!(&call.operation, Some(Operation::CloseSession(close)) if close.session_id == 9),
        "{call:?}"
    );
}

#[tokio::test]
async fn a_lock_with_a_session_of_its_own_closes_it_in_the_end() {
    let mut fake = Fake::answering(answers);
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    let guard = client.lock("l").exclusive().ttl(TTL).owner("test").acquire().await.unwrap();
    let guard = guard.expect("the lock is free");
    assert!(guard.token() == 4 && guard.remaining() <= TTL, "{guard:?}");
    let release = tokio::spawn(guard.release());
    let (stream, call) = fake.call().await;
    assert!(matches!(call.operation, Some(Operation::Release(_))), "{call:?}");
    fake.reply(stream, call.id, Outcome::Release(ReleaseResponse { header: header(1) })).await;
    release.await.unwrap().unwrap();
    let (_, call) = fake.call().await;
    let Some(Operation::CloseSession(close)) = &call.operation else { panic!("{call:?}") };
    assert_eq!(close.session_id, 9);
}

#[tokio::test]
async fn release_and_close_answer_and_are_sent_once() {
    let mut fake = Fake::answering(answers);
    let (session, guard) = held(&fake).await;
    let release = tokio::spawn(guard.release());
    let (stream, call) = fake.call().await;
    fake.reply(stream, call.id, refusal(Reason::NotHolder, &[("holder_token", "5")])).await;
    release.await.unwrap().expect("what was lost before is no error");

    let close = tokio::spawn(session.close());
    let (stream, call) = fake.call().await;
    assert!(matches!(call.operation, Some(Operation::CloseSession(_))));
    let closed = CloseSessionResponse { header: header(1), released: 0 };
    fake.reply(stream, call.id, Outcome::CloseSession(closed)).await;
    close.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(fake.waiting(), 0, "nothing more is sent, no renewal either");
}

#[tokio::test]
async fn a_converted_guard_has_the_mode_and_the_token_of_its_new_grant() {
    let mut fake = Fake::answering(answers);
    let (_session, mut guard) = held(&fake).await;
    let says = |converted, fencing_token, mode: LockMode| {
        let (header, mode) = (header(1), mode.into());
        Outcome::Convert(ConvertResponse {
            header,
            converted,
            fencing_token,
            mode,
            holder_token: 3,
        })
    };
    for (answer, mode, token) in [
        (says(false, 0, LockMode::Unspecified), LockMode::Exclusive, 4),
        (says(true, 7, LockMode::Shared), LockMode::Shared, 7),
    ] {
        let convert = tokio::spawn(async move {
            let converted = guard.convert(LockMode::Shared, Duration::ZERO).await.unwrap();
            (converted, guard)
        });
        let (stream, call) = fake.call().await;
        let Some(Operation::Convert(request)) = &call.operation else { panic!("{call:?}") };
        assert_eq!(
            (request.session_id, request.fencing_token, request.mode()),
            (9, 4, LockMode::Shared)
        );
        fake.reply(stream, call.id, answer).await;
        let converted;
        (converted, guard) = convert.await.unwrap();
        assert_eq!((converted, guard.mode(), guard.token()), (token == 7, mode, token));
    }
    drop(guard);
    let (_, call) = fake.call().await;
    assert!(
        matches!(&call.operation, Some(Operation::Release(release)) if release.fencing_token == 7),
        "{call:?}"
    );
}

#[tokio::test]
async fn guards_of_several_locks_release_each_with_its_token() {
    let mut fake = Fake::answering(answers);
    let client = Client::connect([fake.endpoint()]).await.unwrap();
    let session = client.session(TTL).await.unwrap();
    let acquire = || session.locks(["a", "b"]).and("c", LockMode::Shared).acquire();
    let guards = acquire().await.unwrap().expect("all are free");
    let tokens = ["a", "b", "c", "d"].map(|name| guards.get(name).map(Guard::token));
    assert_eq!(tokens, [Some(5), Some(6), Some(7), None]);
    assert_eq!(guards.iter().last().map(Guard::mode), Some(LockMode::Shared));

    // One that was lost keeps none of the others, and is no error; any other end is one.
    let release = tokio::spawn(guards.release());
    for (name, token) in [("c", 7), ("b", 6), ("a", 5)] {
        let (stream, call) = fake.call().await;
        let Some(Operation::Release(request)) = &call.operation else { panic!("{call:?}") };
        assert_eq!((request.name.as_str(), request.fencing_token), (name, token));
        let answer = match name {
            "c" => refusal(Reason::NotHolder, &[("holder_token", "9")]),
            "b" => refusal(Reason::LimitReached, &[]),
            _ => Outcome::Release(ReleaseResponse { header: header(1) }),
        };
        fake.reply(stream, call.id, answer).await;
    }
    assert_eq!(release.await.unwrap().unwrap_err().reason(), Some(Reason::LimitReached));

    drop(acquire().await.unwrap());
    let mut names = Vec::new();
    for _ in 0..3 {
        let (_, call) = fake.call().await;
        let Some(Operation::Release(request)) = call.operation else { panic!("{call:?}") };
        names.push((request.name, request.fencing_token));
    }
    names.sort();
    assert_eq!(names, [("a".to_owned(), 5), ("b".to_owned(), 6), ("c".to_owned(), 7)]);
}
