//! What a node takes from its peer port: an impostor speaks as the third member of a cluster of which two run.

use std::path::Path;
use std::time::Duration;

use prost::Message as _;
use protobuf::Message as _;
use raft_proto::eraftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use trefoil_core::NodeId;
use trefoil_proto::internal::v1::peer_service_client::PeerServiceClient;
use trefoil_proto::internal::v1::snapshot_request::Part;
use trefoil_proto::internal::v1::{
    Envelope, Formation, Greeting, Incarnation, Manifest, Memory, RaftRequest, RaftResponse,
    Record, SnapshotChunk, SnapshotHead, SnapshotRequest, Standing,
};

use crate::support::{Cluster, WAIT, get, key_in, put, until};

const IMPOSTOR: NodeId = 3;

/// What node 3 would say of itself at another start.
fn greeting(cluster: &Cluster) -> Greeting {
    let identity = cluster.identity(IMPOSTOR);
    let starts = identity.starts().next(99);
    let members = identity.incarnations.iter();
    let members =
        members.map(|(node, incarnation)| Incarnation { node: *node, incarnation: *incarnation });
    let cluster_id = cluster.handle(1).cluster_id().expect("it is formed").to_vec().into();
    let standing = Standing {
        node: IMPOSTOR,
        starts: starts.count,
        numbers: starts.numbers,
        ..Standing::default()
    };
    Greeting {
        setup: cluster.setup_on_the_wire().into(),
        from: IMPOSTOR,
        to: 1,
        incarnation: identity.incarnation,
        protocol: 2,
        epoch: 1,
        endpoint: "http://impostor".to_owned(),
        formation: Some(Formation { members: members.collect(), cluster_id }),
        memory: Some(Memory { standings: vec![standing] }),
    }
}

async fn two_of_three() -> Cluster {
    let mut cluster = Cluster::start(3).await;
    cluster.stop(IMPOSTOR).await;
    cluster.wait_for_leaders().await;
    cluster
}

async fn client(cluster: &Cluster) -> PeerServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.addresses[0])).unwrap();
    PeerServiceClient::new(endpoint.connect().await.unwrap())
}

/// A stream of Raft messages whose greeting was accepted.
#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<RaftRequest>,
    answers: Streaming<RaftResponse>,
}

async fn open(cluster: &Cluster, greeting: Greeting) -> Result<Stream, Status> {
    let (requests, receiver) = mpsc::channel(16);
    requests
        .send(RaftRequest { greeting: Some(greeting), ..RaftRequest::default() })
        .await
        .unwrap();
    let mut answers = client(cluster).await.raft(ReceiverStream::new(receiver)).await?.into_inner();
    let theirs = answers.message().await?.expect("a greeting").greeting.expect("a greeting");
    assert_eq!((theirs.from, theirs.to), (1, IMPOSTOR));
    Ok(Stream { requests, answers })
}

impl Stream {
    async fn send(&self, shard: u32, message: &[u8]) {
        let envelope = Envelope { shard, message: message.to_vec().into(), ..Envelope::default() };
        let request = RaftRequest { envelopes: vec![envelope], ..RaftRequest::default() };
        self.requests.send(request).await.unwrap();
    }

    /// What the stream ends with.
    async fn end(&mut self) -> Status {
        timeout(WAIT, self.answers.message())
            .await
            .expect("the stream ends")
            .expect_err("with a reason")
    }
}

fn message(kind: MessageType) -> Message {
    let mut message = Message { from: IMPOSTOR, to: 1, term: 2, ..Message::default() };
    message.set_msg_type(kind);
    message
}

fn fault(status: &Status) -> &str {
    status.metadata().get("trefoil-peer-fault").expect("a fault").to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_is_checked_before_anything_else() {
    let cluster = two_of_three().await;
    let right = greeting(&cluster);
    let members = right.formation.clone().unwrap().members;
    let elsewhere = Formation { members, cluster_id: vec![7; 16].into() };
    let wrong = [
        ("other-setup", Greeting { setup: vec![1; 16].into(), ..right.clone() }),
        ("other-setup", Greeting { setup: Vec::new().into(), ..right.clone() }),
        ("other-cluster", Greeting { formation: Some(elsewhere), ..right.clone() }),
        ("behind", Greeting { formation: None, ..right.clone() }),
        ("older-copy", Greeting { memory: None, ..right.clone() }),
        ("other-protocol", Greeting { protocol: 1, ..right.clone() }),
        ("wrong-node", Greeting { to: 2, ..right.clone() }),
        ("unknown-member", Greeting { from: 4, ..right.clone() }),
        ("unknown-member", Greeting { from: 1, ..right.clone() }),
    ];
    for (expected, wrong) in wrong {
        let status = open(&cluster, wrong.clone()).await.expect_err("refused");
        assert_eq!(fault(&status), expected, "{wrong:?}");
    }
    let (requests, receiver) = mpsc::channel(1);
    requests.send(RaftRequest::default()).await.unwrap();
    let silent =
        client(&cluster).await.raft(ReceiverStream::new(receiver)).await.expect_err("refused");
    assert_eq!(fault(&silent), "no-greeting");

    let first = open(&cluster, right.clone()).await.unwrap();
    let other = open(&cluster, Greeting { incarnation: 98, epoch: 2, ..right.clone() })
        .await
        .expect_err("refused");
    assert_eq!(fault(&other), "other-incarnation");
    let older = open(&cluster, Greeting { epoch: 0, ..right.clone() }).await.expect_err("refused");
    assert_eq!(fault(&older), "old-stream");
    drop(first);
    assert_eq!(cluster.handle(1).endpoint_of(IMPOSTOR), Some("http://impostor".to_owned()));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_is_closed() {
    let mut cluster = Cluster::new(1);
    cluster.run(1).unwrap();
    let mut silent = TcpStream::connect(cluster.addresses[0]).await.unwrap();
    let mut said = Vec::new();
    let read = timeout(WAIT, silent.read_to_end(&mut said)).await.expect("it is closed");
    assert!(read.is_err() || said.len() < 100, "nothing but the beginning of HTTP/2 was said");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_raft_does_not_send_ends_the_stream_and_nothing_else() {
    let cluster = two_of_three().await;
    let mut other_sender = message(MessageType::MsgHeartbeat);
    other_sender.from = 2;
    let mut gap = message(MessageType::MsgAppend);
    gap.set_entries(vec![Entry { index: 7, term: 1, ..Entry::default() }].into());
    let bad = [
        (1, vec![0xff; 20]),
        (99, message(MessageType::MsgHeartbeat).write_to_bytes().unwrap()),
        (1, message(MessageType::MsgHup).write_to_bytes().unwrap()),
        (1, message(MessageType::MsgPropose).write_to_bytes().unwrap()),
        (1, message(MessageType::MsgSnapshot).write_to_bytes().unwrap()),
        (1, other_sender.write_to_bytes().unwrap()),
        (1, gap.write_to_bytes().unwrap()),
    ];
    for (epoch, (shard, bytes)) in (1..).zip(bad) {
        let mut stream = open(&cluster, Greeting { epoch, ..greeting(&cluster) }).await.unwrap();
        stream.send(shard, &bytes).await;
        assert_eq!(stream.end().await.code(), tonic::Code::InvalidArgument, "message {epoch}");
        put(cluster.handle(1), &key_in(1), &epoch.to_string()).await.unwrap();
    }
    // What raft can send is taken, however old or odd.
    let mut stream = open(&cluster, Greeting { epoch: 100, ..greeting(&cluster) }).await.unwrap();
    let mut ahead = message(MessageType::MsgHeartbeat);
    (ahead.term, ahead.commit) = (1, u64::MAX);
    stream.send(1, &ahead.write_to_bytes().unwrap()).await;
    let mut reply = message(MessageType::MsgAppendResponse);
    (reply.term, reply.index) = (1, u64::MAX);
    stream.send(1, &reply.write_to_bytes().unwrap()).await;
    assert!(
        timeout(Duration::from_millis(200), stream.answers.message()).await.is_err(),
        "the stream goes on"
    );
    let newer = open(&cluster, Greeting { epoch: 101, ..greeting(&cluster) }).await.unwrap();
    stream.send(1, &[]).await;
    assert_eq!(fault(&stream.end().await), "old-stream", "the newer stream counts");
    drop(newer);
    for shard in 1..=crate::support::SHARDS {
        put(cluster.handle(2), &key_in(shard), "still").await.unwrap();
        assert_eq!(get(cluster.handle(1), &key_in(shard)).await.unwrap(), Some("still".to_owned()));
    }
    cluster.stop_all().await;
}

fn head(cluster: &Cluster, manifest: Vec<u8>) -> SnapshotRequest {
    let mut metadata = SnapshotMetadata { index: 1_000, term: 2, ..SnapshotMetadata::default() };
    metadata.mut_conf_state().set_voters(vec![1, 2, 3]);
    let mut snapshot = Snapshot { data: manifest.into(), ..Snapshot::default() };
    snapshot.set_metadata(metadata);
    let mut message = message(MessageType::MsgSnapshot);
    message.set_snapshot(snapshot);
    let message = message.write_to_bytes().unwrap().into();
    let head = SnapshotHead { greeting: Some(greeting(cluster)), shard: 1, message };
    SnapshotRequest { part: Some(Part::Head(head)) }
}

fn chunk(ordinal: u64, last: bool) -> SnapshotRequest {
    let records = vec![Record { key: vec![1, 2].into(), value: vec![3].into() }];
    let chunk = SnapshotChunk { ordinal, records, checksum: 0, last };
    SnapshotRequest { part: Some(Part::Chunk(chunk)) }
}

fn state_files(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("state")).unwrap().count()
}

async fn send_snapshot(cluster: &Cluster, parts: Vec<SnapshotRequest>) -> Status {
    let (requests, receiver) = mpsc::channel(16);
    for part in parts {
        requests.send(part).await.unwrap();
    }
    drop(requests);
    client(cluster).await.snapshot(ReceiverStream::new(receiver)).await.expect_err("refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_not_whole_leaves_nothing_behind() {
    let cluster = two_of_three().await;
    let directory = cluster.directory(1);
    let files = state_files(&directory);
    let manifest = Manifest { format: 2, records: 2, bytes: 6, chain: 0 }.encode_to_vec();
    let broken = [
        vec![chunk(0, true)],
        vec![head(&cluster, vec![0xff; 9])],
        vec![head(&cluster, Manifest { format: 9, ..Manifest::default() }.encode_to_vec())],
        vec![head(&cluster, manifest.clone())],
        vec![head(&cluster, manifest.clone()), chunk(0, true)],
        vec![head(&cluster, manifest.clone()), chunk(1, true)],
        vec![head(&cluster, manifest.clone()), head(&cluster, manifest.clone())],
    ];
    for (n, parts) in broken.into_iter().enumerate() {
        let status = send_snapshot(&cluster, parts).await;
        assert!(!status.message().contains('/'), "snapshot {n}: no path in {}", status.message());
        assert_eq!(state_files(&directory), files, "snapshot {n}");
    }

    // One that is cut in the middle, and does not stand in the way of the next.
    let (requests, receiver) = mpsc::channel(16);
    requests.send(head(&cluster, manifest.clone())).await.unwrap();
    let mut client = client(&cluster).await;
    let sending = tokio::spawn(async move { client.snapshot(ReceiverStream::new(receiver)).await });
    until("the file is made", || state_files(&directory) == files + 1).await;
    let second = send_snapshot(&cluster, vec![head(&cluster, manifest)]).await;
    assert_eq!(second.code(), tonic::Code::Unavailable, "one at a time for each shard");
    sending.abort();
    drop(requests);
    until("the file is gone", || state_files(&directory) == files).await;
    sleep(Duration::from_millis(50)).await;
    put(cluster.handle(1), &key_in(1), "v").await.unwrap();
    cluster.stop_all().await;
}
