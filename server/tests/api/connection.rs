//! One HTTP/2 connection with many calls, as plain gRPC clients have: what waits leaves room for what renews and for
//! what ends waits, and who cancels many calls at once keeps the connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use trefoil_core::limits::{CONNECTION_STREAMS_MAX, CONNECTION_WAITS_MAX};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1::{AwaitLatchRequest, KeepAliveRequest};
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;

use crate::support::operations::*;
use crate::support::{Served, refused, unary, usual};

/// Longest time for a call that does not wait.
const SOON: Duration = Duration::from_secs(5);

/// A channel of one connection, and how many connections it made.
fn counted(address: SocketAddr) -> (Channel, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let connector = tower::service_fn(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { TcpStream::connect(address).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    (endpoint.connect_with_connector_lazy(connector), made)
}

async fn session(channel: &Channel) -> u64 {
    let end = unary(channel, Operation::OpenSession(open_session(60_000))).await;
    let Ok(Outcome::OpenSession(opened)) = end else { panic!("{end:?}") };
    opened.session_id
}

async fn soon(channel: &Channel, operation: Operation) -> Outcome {
    let name = format!("{operation:?}");
    let end = timeout(SOON, unary(channel, operation)).await;
    end.unwrap_or_else(|_| panic!("{name} has no answer")).unwrap()
}

fn await_latch(wait_ms: u64) -> Operation {
    let name = "gate".to_owned();
    Operation::AwaitLatch(AwaitLatchRequest { name, wait_ms, ..AwaitLatchRequest::default() })
}

/// Waits until so many commands or queries wait in the front.
async fn waiting(served: &Served, count: usize) {
    let reached = async {
        while served.fake.waits() < count {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), reached).await.expect("the calls wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_starve_neither_renewals_nor_what_ends_their_wait() {
    let served = usual().await;
    let (channel, made) = counted(served.address);
    let holder = session(&channel).await;
    soon(&channel, Operation::Acquire(acquire(holder, "l", 0))).await;
    soon(&channel, Operation::SetLatch(set_latch("gate", 1))).await;

    // More than a connection once had streams: they wait for a lock, each in a session of its own.
    let mut acquires = JoinSet::new();
    for _ in 0..300 {
        let (waiter, channel) = (session(&channel).await, channel.clone());
        acquires.spawn(async move {
            unary(&channel, Operation::Acquire(acquire(waiter, "l", 600_000))).await
        });
    }
    waiting(&served, 300).await;
    let renewal = KeepAliveRequest { session_id: holder, ..KeepAliveRequest::default() };
    soon(&channel, Operation::KeepAlive(renewal.clone())).await;

    // As many as may wait: the next one is told which limit it is.
    let mut latches = JoinSet::new();
    for _ in 300..CONNECTION_WAITS_MAX {
        let channel = channel.clone();
        latches.spawn(async move { unary(&channel, await_latch(600_000)).await });
    }
    waiting(&served, CONNECTION_WAITS_MAX).await;
    let (code, refusal) = refused(unary(&channel, await_latch(600_000)).await);
    assert_eq!((code, refusal.reason()), (tonic::Code::ResourceExhausted, Reason::Overloaded));
    assert!(refusal.message.contains("CONNECTION_WAITS_MAX"), "{}", refusal.message);

    // What renews, what is short, and what ends waits goes on.
    soon(&channel, Operation::KeepAlive(renewal)).await;
    soon(&channel, await_latch(0)).await;
    soon(&channel, Operation::Release(release(holder, "l"))).await;
    let next = timeout(SOON, acquires.join_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(next, Ok(Outcome::Acquire(acquired)) if acquired.acquired));
    soon(&channel, Operation::CountDown(count_down("gate"))).await;
    while let Some(opened) = timeout(SOON, latches.join_next()).await.unwrap() {
        assert!(matches!(opened.unwrap(), Ok(Outcome::AwaitLatch(_))));
    }
    assert_eq!(made.load(Ordering::Relaxed), 1, "all of this was one connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_under_way_that_are_cancelled_at_once_leave_their_connection() {
    let served = usual().await;
    let (channel, made) = counted(served.address);
    let holder = session(&channel).await;
    soon(&channel, Operation::Acquire(acquire(holder, "l", 0))).await;
    soon(&channel, Operation::SetLatch(set_latch("gate", 1))).await;
    for count in [65, 1_000, 1_000] {
        let mut calls = JoinSet::new();
        for _ in 0..count {
            let channel = channel.clone();
            calls.spawn(async move { unary(&channel, await_latch(600_000)).await });
        }
        waiting(&served, count).await;
        calls.shutdown().await;
        soon(&channel, Operation::Acquire(acquire(holder, "m", 0))).await;
        assert_eq!(made.load(Ordering::Relaxed), 1, "after {count} calls");
    }
    let released = |command: &Command| matches!(command, Command::Release(_));
    soon(&channel, Operation::Release(release(holder, "l"))).await;
    served.fake.logged(released).await;
}

/// A connection that speaks frames of HTTP/2.
struct Frames(TcpStream);

impl Frames {
    async fn open(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        Self(stream)
    }

    /// The next frame of a type: its stream and payload.
    async fn next(&mut self, wanted: u8) -> (u32, Vec<u8>) {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.expect("the connection goes on");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.0.read_exact(&mut payload).await.unwrap();
            let why = String::from_utf8_lossy(&payload);
            assert_ne!(head[3], 7, "GOAWAY: {why}");
            if head[3] == wanted {
                return (stream, payload);
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()[..]].concat();
    [&head[..], payload].concat()
}

/// The headers of a call, without Huffman codes and the dynamic table (RFC 7541).
fn headers(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let mut block = vec![0x83, 0x86, 0x04];
    block.extend(text(path));
    block.push(0x01);
    block.extend(text("trefoil"));
    block.extend([0x0f, 0x10]);
    block.extend(text("application/grpc"));
    block.push(0x00);
    block.extend(text("te"));
    block.extend(text("trailers"));
    block
}

#[tokio::test]
async fn calls_that_are_cancelled_before_they_are_seen_leave_their_connection() {
    let served = usual().await;
    let headers = headers("/trefoil.cluster.v1.ClusterService/Status");
    for count in [65, 1_000, CONNECTION_STREAMS_MAX] {
        let mut frames = Frames::open(served.address).await;
        // All in one write: the server reads every reset before it takes up the first call.
        let mut burst = Vec::new();
        for n in 0..count {
            burst.extend(frame(1, 4, 2 * n + 1, &headers));
            burst.extend(frame(3, 0, 2 * n + 1, &8_u32.to_be_bytes()));
        }
        frames.0.write_all(&burst).await.unwrap();
        let last = 2 * count + 1;
        let call = [frame(1, 4, last, &headers), frame(0, 1, last, &[0, 0, 0, 0, 0])].concat();
        frames.0.write_all(&call).await.unwrap();
        let answered = async { while frames.next(1).await.0 != last {} };
        timeout(SOON, answered).await.unwrap_or_else(|_| panic!("no answer after {count} calls"));
    }
}
