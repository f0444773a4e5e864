//! The least that a framed client can do: calls that wait share a frame, replies find their callers by id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use trefoil_proto::cache::v1::PutRequest;
use trefoil_proto::pipeline::v1::pipeline_service_client::PipelineServiceClient;
use trefoil_proto::pipeline::v1::{Call, OpenRequest, call};

/// Calls of one frame at most.
const FRAME_CALLS: usize = 256;

type OpenCalls = Arc<Mutex<HashMap<u64, oneshot::Sender<()>>>>;

/// One stream to one server.
#[derive(Clone, Debug)]
pub(crate) struct Framed {
    calls: mpsc::Sender<(PutRequest, oneshot::Sender<()>)>,
}

impl Framed {
    /// Opens the stream.
    ///
    /// # Errors
    /// When the server does not open it.
    pub(crate) async fn open(channel: Channel) -> Result<Self, tonic::Status> {
        let (calls, mut queue) = mpsc::channel::<(PutRequest, oneshot::Sender<()>)>(1_024);
        let (frames, stream) = mpsc::channel(16);
        let waiting = OpenCalls::default();
        let mut client = PipelineServiceClient::new(channel).max_decoding_message_size(16 << 20);
        let mut replies = client.open(ReceiverStream::new(stream)).await?.into_inner();
        let sent = Arc::clone(&waiting);
        tokio::spawn(async move {
            let (mut next, mut batch) = (0, Vec::new());
            while queue.recv_many(&mut batch, FRAME_CALLS).await > 0 {
                let mut calls = Vec::with_capacity(batch.len());
                for (request, reply) in batch.drain(..) {
                    next += 1;
                    sent.lock().unwrap_or_else(PoisonError::into_inner).insert(next, reply);
                    calls.push(Call {
                        id: next,
                        timeout_ms: 0,
                        operation: Some(call::Operation::Put(request)),
                    });
                }
                if frames.send(OpenRequest { calls, cancel: Vec::new() }).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(Ok(frame)) = replies.next().await {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                for reply in frame.replies {
                    // A caller that went away needs no reply.
                    waiting.remove(&reply.id).map(|caller| caller.send(()).ok());
                }
            }
        });
        Ok(Self { calls })
    }

    /// Sends a put and waits for its reply; false when the stream is gone.
    pub(crate) async fn put(&self, request: PutRequest) -> bool {
        let (reply, answer) = oneshot::channel();
        self.calls.send((request, reply)).await.is_ok() && answer.await.is_ok()
    }
}
