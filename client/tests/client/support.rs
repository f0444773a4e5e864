//! A pipeline server whose answers the test decides, on a runtime of its own so that it can die at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use trefoil_client::proto::cluster::v1::StatusResponse;
use trefoil_client::proto::common::v1::{Reason, RequestId, ResponseHeader};
use trefoil_client::proto::internal::v1::Refusal;
use trefoil_client::proto::pipeline::v1::call::Operation;
use trefoil_client::proto::pipeline::v1::pipeline_service_server::{
    PipelineService, PipelineServiceServer,
};
use trefoil_client::proto::pipeline::v1::reply::Outcome;
use trefoil_client::proto::pipeline::v1::{Call, Error, OpenRequest, OpenResponse, Reply};
use trefoil_client::proto::status::to_status;

/// Calls and cancels that a test has not looked at yet, at most.
const SEEN_MAX: usize = 65_536;

/// Decides the answer to a call at once; none leaves it to the test.
type Answers = dyn Fn(&Call) -> Option<Outcome> + Send + Sync;

/// A server under the test's control.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    calls: mpsc::Receiver<(usize, Call)>,
    cancels: mpsc::Receiver<u64>,
    runtime: Option<Runtime>,
}

struct Shared {
    answers: Box<Answers>,
    status: Mutex<StatusResponse>,
    frames: AtomicUsize,
    streams: AtomicUsize,
    replies: Mutex<BTreeMap<usize, mpsc::Sender<Result<OpenResponse, Status>>>>,
    calls: mpsc::Sender<(usize, Call)>,
    cancels: mpsc::Sender<u64>,
}

impl Fake {
    /// A server that answers nothing by itself but status.
    pub(crate) fn silent() -> Self {
        Self::answering(|_| None)
    }

    /// A server that answers as told.
    pub(crate) fn answering(
        answers: impl Fn(&Call) -> Option<Outcome> + Send + Sync + 'static,
    ) -> Self {
        let (calls_in, calls) = mpsc::channel(SEEN_MAX);
        let (cancels_in, cancels) = mpsc::channel(SEEN_MAX);
        let shared = Arc::new(Shared {
            answers: Box::new(answers),
            status: Mutex::default(),
            frames: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            replies: Mutex::default(),
            calls: calls_in,
            cancels: cancels_in,
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service = PipelineServiceServer::new(Service(Arc::clone(&shared)))
            .max_decoding_message_size(8 << 20);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
        });
        Self { address, shared, calls, cancels, runtime: Some(runtime) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set_status(&self, status: StatusResponse) {
        *self.shared.status.lock().unwrap() = status;
    }

    pub(crate) fn frames(&self) -> usize {
        self.shared.frames.load(Ordering::Relaxed)
    }

    pub(crate) fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// The next call that was not answered by itself, with the stream it came by.
    pub(crate) async fn call(&mut self) -> (usize, Call) {
        tokio::time::timeout(Duration::from_secs(5), self.calls.recv())
            .await
            .expect("a call comes")
            .unwrap()
    }

    /// Calls that are here now.
    pub(crate) fn waiting(&self) -> usize {
        self.calls.len()
    }

    pub(crate) async fn cancelled(&mut self) -> u64 {
        tokio::time::timeout(Duration::from_secs(5), self.cancels.recv())
            .await
            .expect("a cancel comes")
            .unwrap()
    }

    pub(crate) async fn reply(&self, stream: usize, id: u64, outcome: Outcome) {
        let sender = self.shared.replies.lock().unwrap()[&stream].clone();
        sender.send(Ok(frame(id, outcome))).await.unwrap();
    }

    /// Ends a stream as a stopping server would.
    pub(crate) fn hang_up(&self, stream: usize) {
        self.shared.replies.lock().unwrap().remove(&stream);
    }

    /// The process is gone: every socket closes.
    pub(crate) fn kill(&mut self) {
        self.runtime.take().expect("killed once").shutdown_background();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl PipelineService for Service {
    type OpenStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<OpenResponse, Status>> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<OpenRequest>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let (sender, replies) = mpsc::channel(SEEN_MAX);
        let stream = self.0.streams.fetch_add(1, Ordering::Relaxed);
        self.0.replies.lock().unwrap().insert(stream, sender);
        tokio::spawn(serve(Arc::clone(&self.0), stream, request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }
}

async fn serve(shared: Arc<Shared>, stream: usize, mut frames: Streaming<OpenRequest>) {
    while let Ok(Some(frame)) = frames.message().await {
        shared.frames.fetch_add(1, Ordering::Relaxed);
        let mut answered = OpenResponse::default();
        for call in frame.calls {
            let outcome = match &call.operation {
                Some(Operation::Status(_)) => {
                    Some(Outcome::Status(shared.status.lock().unwrap().clone()))
                }
                _ => (shared.answers)(&call),
            };
            match outcome {
                Some(outcome) => {
                    answered.replies.push(Reply { id: call.id, outcome: Some(outcome) })
                }
                None => shared.calls.send((stream, call)).await.unwrap(),
            }
        }
        for id in frame.cancel {
            shared.cancels.send(id).await.unwrap();
        }
        let sender = shared.replies.lock().unwrap().get(&stream).cloned();
        if let Some(sender) = sender.filter(|_| !answered.replies.is_empty())
            && sender.send(Ok(answered)).await.is_err()
        {
            return;
        }
    }
}

fn frame(id: u64, outcome: Outcome) -> OpenResponse {
    OpenResponse { replies: vec![Reply { id, outcome: Some(outcome) }] }
}

/// A refusal as the server sends it.
pub(crate) fn refusal(reason: Reason, metadata: &[(&str, &str)]) -> Outcome {
    let metadata =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let refusal =
        Refusal { reason: reason.into(), message: "refused by the test".to_owned(), metadata };
    let status = to_status(&refusal, true);
    let details = bytes::Bytes::copy_from_slice(status.details());
    Outcome::Error(Error {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details,
    })
}

pub(crate) fn header(shard: u32) -> Option<ResponseHeader> {
    Some(ResponseHeader { shard, term: 1, node_id: 1, ..ResponseHeader::default() })
}

/// The request id of a call that carries one.
pub(crate) fn request_id(call: &Call) -> RequestId {
    match call.operation.clone().expect("a call has an operation") {
        Operation::Put(put) => put.request_id,
        Operation::Acquire(acquire) => acquire.request_id,
        Operation::Enqueue(enqueue) => enqueue.request_id,
        other => panic!("not expected here: {other:?}"),
    }
    .expect("a mutation has a request id")
}
