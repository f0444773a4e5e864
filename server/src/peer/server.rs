//! What this node hears on its peer port.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use slog::warn;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use trefoil_core::limits::{PEER_HEADERS_BYTES_MAX, PEER_MESSAGE_BYTES_MAX};
use trefoil_core::replica::Input;
use trefoil_core::replica::obstacles::Obstacles;
use trefoil_core::{NodeId, ShardId};
use trefoil_proto::internal::v1::peer_service_server::{PeerService, PeerServiceServer};
use trefoil_proto::internal::v1::{
    self as proto, DescribeRequest, DescribeResponse, ForwardRequest, ForwardResponse, Greeting,
    RaftRequest, RaftResponse, ShardObstacles, SnapshotRequest, SnapshotResponse,
};

use super::dial::{
    CONNECTION_WINDOW, GREETING_WAIT, KEEP_ALIVE, KEEP_ALIVE_TIMEOUT, STREAM_WINDOW,
};
use super::forward_server::ForwardServer;
use super::greeting::{GreetingFault, Streams};
use super::introductions::Introductions;
use super::message::open;
use super::receive::Receiver;
use super::{Announced, accept};
use crate::shared::Shared;
use crate::shared::failure::FatalError;

/// Streams of one connection.
const STREAMS_MAX: u32 = 16;
/// Bytes of an HTTP/2 frame.
const HTTP_FRAME_BYTES: u32 = 64 << 10;

/// Serves the peer port until the runtime ends.
pub(super) async fn serve(shared: Arc<Shared>, service: PeerPort, listener: TcpListener) {
    let connections = accept::connections(listener, shared.logger.clone());
    let service = PeerServiceServer::new(service)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let served = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .max_frame_size(HTTP_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(PEER_HEADERS_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(16))
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming(connections)
        .await;
    let reason = served.map_or_else(|error| error.to_string(), |()| "it ended".to_owned());
    shared.fail(FatalError::PeerPort(reason));
}

#[derive(Debug)]
pub(super) struct PeerPort {
    shared: Arc<Shared>,
    introductions: Arc<Introductions>,
    streams: Arc<Streams>,
    /// What each peer said of its replicas.
    heard: Heard,
    receiver: Receiver,
}

type Heard = Arc<Mutex<BTreeMap<NodeId, Announced>>>;

/// One stream of Raft messages.
struct RaftStream {
    shared: Arc<Shared>,
    heard: Heard,
    introductions: Arc<Introductions>,
    /// The sender's directory, and its start.
    incarnation: u64,
    start: u64,
    from: NodeId,
}

impl PeerPort {
    pub(super) fn new(
        shared: Arc<Shared>,
        introductions: Arc<Introductions>,
        root: PathBuf,
    ) -> Self {
        let streams = Arc::new(Streams::new(shared.members.iter().map(|member| member.id)));
        let receiver = Receiver::new(Arc::clone(&shared), root);
        Self { shared, introductions, streams, heard: Heard::default(), receiver }
    }

    /// The peer that a greeting introduces; its address for clients is noted.
    async fn welcome(&self, greeting: Option<&Greeting>) -> Result<NodeId, Status> {
        let from = self.introductions.check(greeting).await.map_err(|refused| refused.status())?;
        if let Some(greeting) = greeting {
            self.shared.set_endpoint(from, greeting.endpoint.clone());
        }
        Ok(from)
    }
}

/// The first message of a stream, which must come at once.
async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let first = timeout(GREETING_WAIT, stream.message()).await;
    first
        .map_err(|_| GreetingFault::Silent.status())??
        .ok_or_else(|| GreetingFault::Silent.status())
}

#[tonic::async_trait]
impl PeerService for PeerPort {
    type RaftStream = ReceiverStream<Result<RaftResponse, Status>>;
    type ForwardStream = ReceiverStream<Result<ForwardResponse, Status>>;

    async fn raft(
        &self,
        request: Request<Streaming<RaftRequest>>,
    ) -> Result<Response<Self::RaftStream>, Status> {
        let mut stream = request.into_inner();
        let greeting = first(&mut stream).await?.greeting;
        let from = self.welcome(greeting.as_ref()).await?;
        let (epoch, incarnation) =
            greeting.map_or((0, 0), |greeting| (greeting.epoch, greeting.incarnation));
        self.streams.begin(from, epoch).map_err(GreetingFault::status)?;
        let (answers, receiver) = mpsc::channel(1);
        let answer = RaftResponse { greeting: Some(self.introductions.greeting(from)) };
        let incoming = RaftStream {
            shared: Arc::clone(&self.shared),
            introductions: Arc::clone(&self.introductions),
            incarnation,
            start: self.introductions.trusted(from),
            heard: Arc::clone(&self.heard),
            from,
        };
        let streams = Arc::clone(&self.streams);
        tokio::spawn(async move {
            // Whoever does not want the answer ends the stream.
            if answers.send(Ok(answer)).await.is_ok()
                && let Err(status) = incoming.listen(stream, || streams.is_live(from, epoch)).await
            {
                drop(answers.send(Err(status)).await);
            }
            streams.end(from, epoch);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotRequest>>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let mut stream = request.into_inner();
        let head = first(&mut stream).await?;
        let Some(trefoil_proto::internal::v1::snapshot_request::Part::Head(head)) = head.part
        else {
            return Err(GreetingFault::Silent.status());
        };
        let from = self.welcome(head.greeting.as_ref()).await?;
        self.receiver.receive(from, head.shard, &head.message, stream).await?;
        Ok(Response::new(SnapshotResponse {}))
    }

    async fn forward(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let mut stream = request.into_inner();
        let greeting = first(&mut stream).await?.greeting;
        self.welcome(greeting.as_ref()).await?;
        let frames = ForwardServer::open(Arc::clone(&self.shared), stream);
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        self.welcome(request.into_inner().greeting.as_ref()).await?;
        let status = self.shared.described();
        let status = status.ok_or_else(|| Status::unavailable("it does not serve yet"))?;
        Ok(Response::new(DescribeResponse { status: Some(status) }))
    }
}

impl RaftStream {
    /// Takes messages until the stream ends, breaks or gives way to a newer one.
    async fn listen(
        &self,
        mut stream: Streaming<RaftRequest>,
        is_live: impl Fn() -> bool,
    ) -> Result<(), Status> {
        while let Ok(Some(request)) = stream.message().await {
            if !is_live() || self.introductions.trusted(self.from) != self.start {
                return Err(GreetingFault::OldStream.status());
            }
            if request.formation.is_some() || request.memory.is_some() {
                self.hear_of_members(&request).await?;
            }
            if let Some(uncertain) = request.uncertain {
                self.note_uncertain(uncertain.shards.into_iter().collect());
            }
            if let Some(obstacles) = &request.obstacles {
                self.note_obstacles(obstacles);
            }
            for envelope in request.envelopes {
                let bytes = envelope.message.len();
                let shard = envelope.shard;
                let peer = open(&self.shared, self.from, envelope).map_err(|reason| {
                    warn!(self.shared.logger, "a peer sent what raft does not; its stream is closed";
                        "peer" => self.from, "shard" => shard, "reason" => reason);
                    Status::invalid_argument(reason)
                })?;
                self.shared.receive(shard, Box::new(peer), bytes);
            }
        }
        Ok(())
    }

    /// What the peer says of itself and others; a word that changes something is written.
    async fn hear_of_members(&self, request: &RaftRequest) -> Result<(), Status> {
        let (formation, memory) = (request.formation.clone(), request.memory.clone());
        let (introductions, from) = (Arc::clone(&self.introductions), self.from);
        let incarnation = self.incarnation;
        let hear =
            move || introductions.hear(from, formation.as_ref(), memory.as_ref(), incarnation);
        match tokio::task::spawn_blocking(hear).await {
            Ok(heard) => heard.map_err(|refused| {
                self.introductions.log_once(from, &refused, "refused a peer");
                refused.status()
            }),
            // The node is stopping.
            Err(_) => Err(GreetingFault::OldStream.status()),
        }
    }

    fn note_uncertain(&self, shards: BTreeSet<ShardId>) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut heard.entry(self.from).or_default().uncertain;
        let before = std::mem::replace(known, shards.clone());
        drop(heard);
        for shard in
            before.symmetric_difference(&shards).filter(|shard| self.shared.table.has(**shard))
        {
            let uncertain = shards.contains(shard);
            self.shared.tell(*shard, Input::Uncertain { node: self.from, uncertain });
        }
    }

    fn note_obstacles(&self, told: &proto::Obstacles) {
        let of_shard = |told: &ShardObstacles| (told.shard, told.obstacles().collect());
        let now = told.shards.iter().map(of_shard).collect::<BTreeMap<ShardId, Obstacles>>();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut heard.entry(self.from).or_default().obstacles;
        let before = std::mem::replace(known, now.clone());
        drop(heard);
        for shard in self.shared.all_shards() {
            let obstacles = now.get(&shard).copied().unwrap_or_default();
            if before.get(&shard).copied().unwrap_or_default() != obstacles {
                self.shared.tell(shard, Input::PeerObstacles { node: self.from, obstacles });
            }
        }
    }
}
