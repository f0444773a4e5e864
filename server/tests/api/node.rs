//! A whole node in this process, on a real disk, behind its real front.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use slog::{Discard, Logger, o};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_server::config::{Config, ServeArgs};
use trefoil_server::server::{Exit, Listeners, run};

use crate::support::operations::*;
use crate::support::{Stream, page, refused, unary};

/// A node that runs until it is told to stop.
struct Running {
    channel: Channel,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), Exit>>,
}

fn config(data_dir: &Path, listen: SocketAddr) -> Config {
    let args = ServeArgs {
        name: Some("n1".to_owned()),
        initial_cluster: Some(vec!["n1=127.0.0.1:1".to_owned()]),
        data_dir: Some(data_dir.to_owned()),
        listen: Some(listen),
        peer_listen: Some("127.0.0.1:0".parse().unwrap()),
        shards: Some(2),
        ..ServeArgs::default()
    };
    args.resolve().unwrap()
}

/// A port that is free now.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn node(data_dir: &Path) -> Running {
    let address = free();
    let config = config(data_dir, address);
    let listeners = Listeners::bind(&config).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let logger = Logger::root(Discard, o!());
    let registry = prometheus::Registry::new();
    let ended = tokio::spawn(run(config, listeners, registry, logger, async move {
        stopped.await.ok();
    }));
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let begin = Instant::now();
    while page(address, "/readyz").await.0 != "HTTP/1.1 200 OK" {
        assert!(begin.elapsed() < Duration::from_secs(30), "the node does not become ready");
        assert!(!ended.is_finished(), "the node ended at its start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Running { channel, address, stop, ended }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_the_process() {
    let disk = tempfile::tempdir().unwrap();
    let first = node(disk.path()).await;
    for n in 0..20 {
        let put = put(&format!("key-{n}"), &n.to_string());
        unary(&first.channel, Operation::Put(put)).await.unwrap();
    }
    let messages = (0..20).map(|n| message(&format!("key-{n}"), "v")).collect();
    unary(&first.channel, Operation::Enqueue(enqueue("q", messages))).await.unwrap();
    let (_, metrics) = page(first.address, "/metrics").await;
    assert!(metrics.contains("trefoil_queue_enqueued_total 20"), "{metrics}");
    assert!(metrics.contains("trefoil_raft_role{shard=\"2\"} 2"));
    assert!(metrics.contains("trefoil_queue_lag{shard=\"1\"}"));

    let mut stream = Stream::open(&first.channel).await;
    stream.call(1, Operation::Get(get("key-1"))).await.unwrap();
    first.stop.send(()).unwrap();
    let status = loop {
        match stream.replies.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream says why it ends"),
            Err(status) => break status,
        }
    };
    let reason = refused(Err(status)).1.reason();
    assert_eq!(reason, trefoil_proto::common::v1::Reason::Stopping);
    first.ended.await.unwrap().unwrap();

    let second = node(disk.path()).await;
    for n in 0..20 {
        let end = unary(&second.channel, Operation::Get(get(&format!("key-{n}")))).await;
        let Ok(Outcome::Get(read)) = end else { panic!("{end:?}") };
        assert_eq!(read.value, text(&n.to_string()));
    }
    let end = unary(&second.channel, Operation::Dequeue(dequeue("q", 100, 0))).await;
    let Ok(Outcome::Dequeue(got)) = end else { panic!("{end:?}") };
    assert_eq!(got.deliveries.len(), 20);
    second.stop.send(()).unwrap();
    second.ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_serves_one_process_and_one_cluster() {
    let disk = tempfile::tempdir().unwrap();
    let first = node(disk.path()).await;
    let start = async |config: Config| {
        let listeners = Listeners::bind(&config).await.unwrap();
        let logger = Logger::root(Discard, o!());
        let forever = std::future::pending();
        run(config, listeners, prometheus::Registry::new(), logger, forever).await.unwrap_err()
    };
    let in_use = start(config(disk.path(), free())).await;
    assert!(matches!(in_use, Exit::Start(_)), "{in_use}");
    let taken = Listeners::bind(&config(disk.path(), first.address)).await.unwrap_err();
    assert!(taken.to_string().starts_with("--listen: cannot listen on 127.0.0.1:"), "{taken}");
    first.stop.send(()).unwrap();
    first.ended.await.unwrap().unwrap();

    let other_shards = Config { shards: 3, ..config(disk.path(), free()) };
    let refusal = start(other_shards).await.to_string();
    assert!(refusal.contains("shards"), "{refusal}");
}
