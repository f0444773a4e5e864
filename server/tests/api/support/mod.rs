//! A node's front over real sockets, on shards in memory that apply commands to the core's own machines.

pub(crate) mod fake;
pub(crate) mod operations;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use slog::{Discard, Logger, o};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint};
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::pipeline::v1::{Call, OpenRequest, Reply};
use trefoil_proto::status::from_status;
use trefoil_server::api::{Api, Settings};
use trefoil_server::config::Service;
use trefoil_server::front::{Front, Sockets};
use trefoil_server::listener::Caps;
use trefoil_server::metrics::Metrics;

pub(crate) use self::fake::Fake;

/// A front that serves, and a channel to it.
pub(crate) struct Served {
    pub(crate) fake: Fake,
    pub(crate) front: Front<Fake>,
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
}

/// How a front is set up.
pub(crate) struct Setup {
    pub(crate) services: BTreeSet<Service>,
    pub(crate) auto_create_queues: bool,
    pub(crate) caps: Caps,
    pub(crate) authorizer: trefoil_server::authorize::Authorizer,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            services: Service::ALL.into(),
            auto_create_queues: true,
            caps: Caps::new(64, 64),
            authorizer: trefoil_server::authorize::authorize,
        }
    }
}

/// Serves a fake on a free port.
pub(crate) async fn serve(setup: Setup) -> Served {
    let fake = Fake::new(3);
    let metrics = Metrics::new(prometheus::Registry::new()).unwrap();
    let settings = Settings {
        node_name: "n1".to_owned(),
        services: setup.services,
        auto_create_queues: setup.auto_create_queues,
    };
    let api = Api::new(fake.clone(), settings, metrics).with_authorizer(setup.authorizer);
    let clients = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = clients.local_addr().unwrap();
    let sockets = Sockets { clients, pages: None };
    let front = Front::start(api, sockets, setup.caps, Logger::root(Discard, o!())).await;
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    Served { fake, front, address, channel }
}

/// Serves with the usual setup.
pub(crate) async fn usual() -> Served {
    serve(Setup::default()).await
}

include!(concat!(env!("OUT_DIR"), "/calls.rs"));

/// The refusal of a call that must be refused, with its gRPC code.
pub(crate) fn refused(end: Result<Outcome, tonic::Status>) -> (tonic::Code, Refusal) {
    let status = end.expect_err("the call must be refused");
    let refusal = from_status(&status);
    (status.code(), refusal.unwrap_or_else(|| panic!("{status:?} carries no reason")))
}

/// One pipelined stream.
pub(crate) struct Stream {
    pub(crate) calls: tokio::sync::mpsc::Sender<OpenRequest>,
    pub(crate) replies: tonic::Streaming<trefoil_proto::pipeline::v1::OpenResponse>,
    waiting: std::collections::VecDeque<Reply>,
}

impl Stream {
    pub(crate) async fn open(channel: &Channel) -> Self {
        use trefoil_proto::pipeline::v1::pipeline_service_client::PipelineServiceClient;
        let (calls, outbound) = tokio::sync::mpsc::channel(16);
        let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
        let mut client = PipelineServiceClient::new(channel.clone())
            .max_decoding_message_size(trefoil_server::api::bounds::RESPONSE_BYTES_MAX);
        let replies = client.open(outbound).await.unwrap().into_inner();
        Self { calls, replies, waiting: [].into() }
    }

    pub(crate) async fn send(&self, id: u64, timeout_ms: u32, operation: Operation) {
        let call = Call { id, timeout_ms, operation: Some(operation) };
        self.calls.send(OpenRequest { calls: vec![call], cancel: Vec::new() }).await.unwrap();
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        while self.waiting.is_empty() {
            let frame = self.replies.message().await.unwrap().expect("the stream goes on");
            self.waiting.extend(frame.replies);
        }
        self.waiting.pop_front().unwrap()
    }

    /// One call, with an error as the status that a unary call would have had.
    pub(crate) async fn call(
        &mut self,
        id: u64,
        operation: Operation,
    ) -> Result<Outcome, tonic::Status> {
        self.send(id, 0, operation).await;
        let reply = self.reply().await;
        assert_eq!(reply.id, id);
        match reply.outcome.unwrap() {
            Outcome::Error(error) => {
                Err(tonic::Status::with_details(error.code.into(), error.message, error.details))
            }
            outcome => Ok(outcome),
        }
    }
}

/// Sends bytes over a connection of its own and reads until the other side closes.
pub(crate) async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end, too.
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A page over HTTP/1.1: status line and body.
pub(crate) async fn page(address: SocketAddr, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: trefoil\r\nconnection: close\r\n\r\n");
    let answer = raw(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// A metric's value on a node; 0 where it is not there.
pub(crate) fn metric(metrics: &Arc<Metrics>, line: &str) -> f64 {
    let text = metrics.encode().unwrap();
    let found = text.lines().find_map(|candidate| candidate.strip_prefix(line)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().unwrap())
}
