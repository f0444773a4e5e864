//! KeepAliveStream over a real socket: safe, jeopardy, expired, and what a session is asked for.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::lock::v1::keep_alive_stream_response::News;
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::status::from_status;
use trefoil_server::authorize::Action;

use crate::support::operations::*;
use crate::support::{Served, Setup, serve, unary, usual};

const PATIENCE: Duration = Duration::from_secs(10);

/// A session stream from the client's side.
struct Session {
    messages: mpsc::Sender<lock::KeepAliveStreamRequest>,
    told: Streaming<lock::KeepAliveStreamResponse>,
}

impl Session {
    async fn open(served: &Served, session_id: u64) -> Result<Self, Status> {
        let (messages, outbound) = mpsc::channel(4);
        messages.send(message(session_id)).await.unwrap();
        let mut client = LockServiceClient::new(served.channel.clone());
        let told = client.keep_alive_stream(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(Self { messages, told })
    }

    async fn renew(&self, session_id: u64) {
        self.messages.send(message(session_id)).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<News>, Status> {
        let told = timeout(PATIENCE, self.told.message()).await.expect("it tells in time")?;
        Ok(told.map(|told| {
            assert!(told.header.is_some_and(|header| header.index > 0) && told.session_id > 0);
            told.news.unwrap()
        }))
    }

    async fn news(&mut self) -> News {
        self.next().await.unwrap().expect("the stream goes on")
    }

    async fn safe(&mut self) -> u64 {
        match self.news().await {
            News::Safe(safe) => safe.remaining_ms,
            other => panic!("{other:?}"),
        }
    }
}

fn message(session_id: u64) -> lock::KeepAliveStreamRequest {
    lock::KeepAliveStreamRequest { session_id, ..Default::default() }
}

fn request(name: &str, reason: &str) -> Operation {
    Operation::RequestRelease(lock::RequestReleaseRequest {
        name: name.to_owned(),
        requester: "operator".to_owned(),
        reason: reason.to_owned(),
        ..Default::default()
    })
}

async fn call(served: &Served, operation: Operation) -> Outcome {
    unary(&served.channel, operation).await.unwrap()
}

#[tokio::test]
async fn a_session_is_renewed_by_each_message_and_ends_without_them() {
    let served = usual().await;
    call(&served, Operation::OpenSession(open_session(1_500))).await;
    let mut session = Session::open(&served, 1).await.unwrap();
    for _ in 0..4 {
        let remaining = session.safe().await;
        assert!((1_000..=1_500).contains(&remaining), "{remaining}");
        tokio::time::sleep(Duration::from_millis(600)).await;
        session.renew(1).await;
    }
    session.safe().await;
    assert_eq!(session.news().await, News::Expired(lock::SessionExpired {}));
    assert_eq!(session.next().await.unwrap(), None, "the stream ends with it");
    let gone = Session::open(&served, 1).await.err().expect("it is over");
    assert_eq!(from_status(&gone).unwrap().reason(), Reason::SessionExpired);
}

#[tokio::test]
async fn a_holder_is_told_who_asks_for_its_lock_now_and_later() {
    let served = usual().await;
    for _ in 0..2 {
        call(&served, Operation::OpenSession(open_session(60_000))).await;
    }
    call(&served, Operation::Acquire(acquire(1, "a", 0))).await;
    let mut holder = Session::open(&served, 1).await.unwrap();
    let mut other = Session::open(&served, 2).await.unwrap();
    holder.safe().await;
    other.safe().await;
    let asked = call(&served, request("a", "maintenance")).await;
    assert!(matches!(asked, Outcome::RequestRelease(asked) if asked.asked == 1));
    let News::ReleaseRequested(told) = holder.news().await else { panic!() };
    assert_eq!((told.name.as_str(), told.fencing_token), ("a", 1));
    assert_eq!((told.requester.as_str(), told.reason.as_str()), ("operator", "maintenance"));
    assert!(told.index > 0 && told.log_time_ms > 0 && told.mode() == lock::LockMode::Exclusive);
    // The other one hears nothing of it: its next news is its renewal.
    other.renew(2).await;
    other.safe().await;

    // A stream that opens later is told as well, until the lock is released.
    let mut later = Session::open(&served, 1).await.unwrap();
    let first = later.news().await;
    assert_eq!(first, News::ReleaseRequested(told));
    call(&served, Operation::Release(release(1, "a"))).await;
    let mut free = Session::open(&served, 1).await.unwrap();
    free.safe().await;
    let refused = unary(&served.channel, request("a", "")).await.unwrap_err();
    assert_eq!(from_status(&refused).unwrap().reason(), Reason::NotHolder);
}

#[tokio::test]
async fn jeopardy_is_told_once_and_ends_with_a_renewal() {
    let served = usual().await;
    call(&served, Operation::OpenSession(open_session(60_000))).await;
    let mut session = Session::open(&served, 1).await.unwrap();
    session.safe().await;
    served.fake.set_leaderless(true);
    assert!(matches!(session.news().await, News::Jeopardy(_)));
    served.fake.set_leaderless(false);
    session.renew(1).await;
    session.safe().await;
    served.fake.set_fault(|_, command| {
        matches!(command.operation, Some(Command::KeepAlive(_))).then_some(Reason::NoQuorum)
    });
    session.renew(1).await;
    assert!(matches!(session.news().await, News::Jeopardy(why) if !why.cause.is_empty()));
    session.renew(1).await;
    served.fake.clear_fault();
    served.fake.set_delay(Duration::from_millis(1_600));
    session.renew(1).await;
    session.safe().await;
    session.renew(1).await;
    assert!(matches!(session.news().await, News::Jeopardy(_)), "a renewal that is late");
    session.safe().await;
}

#[tokio::test]
async fn what_is_no_session_stream_is_refused() {
    let served = usual().await;
    call(&served, Operation::OpenSession(open_session(60_000))).await;
    let none = Session::open(&served, 0).await.err().unwrap();
    assert_eq!(from_status(&none).unwrap().metadata["field"], "session_id");
    let mut session = Session::open(&served, 1).await.unwrap();
    session.safe().await;
    session.renew(2).await;
    let other = session.next().await.unwrap_err();
    assert_eq!(from_status(&other).unwrap().metadata["field"], "session_id");

    // A client that has no more to send is still told.
    let Session { messages, told } = Session::open(&served, 1).await.unwrap();
    drop(messages);
    let (messages, _) = mpsc::channel(1);
    let mut listening = Session { messages, told };
    listening.safe().await;
    served.front.announce_end().await;
    let stopped = listening.next().await.unwrap_err();
    assert_eq!(from_status(&stopped).unwrap().reason(), Reason::Stopping);

    let deny: trefoil_server::authorize::Authorizer = |_, action, _| match action {
        Action::UseSession => Err(trefoil_proto::internal::v1::Refusal {
            reason: Reason::PermissionDenied.into(),
            ..Default::default()
        }),
        _ => Ok(()),
    };
    let served = serve(Setup { authorizer: deny, ..Setup::default() }).await;
    let denied = Session::open(&served, 1).await.err().unwrap();
    assert_eq!(from_status(&denied).unwrap().reason(), Reason::PermissionDenied);
}
