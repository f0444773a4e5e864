//! The pipelined way in: one stream carries frames of calls and frames of replies.
//!
//! A reader takes frames and starts their calls; replies go through a bounded channel into frames. When the client
//! does not read, the channel fills, calls do not end, and the reader stops reading.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};
use trefoil_core::check::invalid;
use trefoil_core::limits::{
    FRAME_BYTES_MAX, FRAME_READ_BYTES_MAX, REQUEST_BYTES_MAX, STREAM_CALLS_MAX, STREAM_REPLIES_MAX,
    STREAM_WAITING_MAX,
};
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::pipeline::v1 as pipeline;
use trefoil_proto::pipeline::v1::pipeline_service_server::PipelineService;
use trefoil_proto::status::to_status;

use super::operation;
use super::server_stream::OpenStream;
use super::unary::principal;
use super::{Api, Caller, Outcome, Phase, Shards, stopping};
use crate::authorize::Principal;
use crate::layer::admission::{AdmissionPermit, overloaded};
use crate::layer::unreadable;
use crate::metrics::Metrics;

/// The pipelined service on one front.
#[derive(Debug)]
pub struct Pipeline<S> {
    api: Arc<Api<S>>,
}

impl<S: Shards> Pipeline<S> {
    /// Serves a front.
    #[must_use]
    pub fn new(api: Arc<Api<S>>) -> Self {
        Self { api }
    }
}

#[tonic::async_trait]
impl<S: Shards> PipelineService for Pipeline<S> {
    type OpenStream = Frames;

    async fn open(
        &self,
        mut request: Request<Streaming<pipeline::OpenRequest>>,
    ) -> Result<Response<Frames>, Status> {
        let principal = principal(&request);
        let permit = request.extensions_mut().remove::<Arc<AdmissionPermit>>();
        let (sender, replies) = mpsc::channel(STREAM_REPLIES_MAX);
        let reader = FrameReader {
            api: Arc::clone(&self.api),
            principal,
            replies: sender,
            calls: StreamCalls::default(),
        };
        let open = OpenStream::new(self.api.metrics().own.pipeline_streams.clone());
        let reader = tokio::spawn(reader.run(request.into_inner())).abort_handle();
        let frame = Frame::default();
        Ok(Response::new(Frames {
            replies,
            reader,
            _open: open,
            _permit: permit,
            frame,
            end: None,
        }))
    }
}

/// Takes frames of calls and starts them. Dropped, it ends them all.
struct FrameReader<S> {
    api: Arc<Api<S>>,
    principal: Principal,
    replies: mpsc::Sender<Result<pipeline::Reply, Status>>,
    calls: StreamCalls,
}

/// The calls of a stream in flight. Each task ends with the id of its call.
#[derive(Default)]
struct StreamCalls {
    running: JoinSet<u64>,
    by_id: HashMap<u64, Running>,
    waiting: usize,
}

/// One call in flight.
struct Running {
    task: AbortHandle,
    waits: bool,
    cancelled: Arc<AtomicBool>,
}

impl StreamCalls {
    fn has_room(&self) -> bool {
        self.by_id.len() - self.waiting < STREAM_CALLS_MAX
    }

    fn add(&mut self, id: u64, running: Running) {
        self.waiting += usize::from(running.waits);
        self.by_id.insert(id, running);
    }

    fn remove(&mut self, id: u64) -> Option<Running> {
        let running = self.by_id.remove(&id)?;
        self.waiting -= usize::from(running.waits);
        Some(running)
    }

    /// Waits until a call has ended; false when the stream must end, because a call had no end.
    async fn next_end(&mut self) -> bool {
        match self.running.join_next_with_id().await {
            // The id may be another call's by now, when this one was cancelled just as it ended.
            Some(Ok((task, id)))
                if self.by_id.get(&id).is_some_and(|running| running.task.id() == task) =>
            {
                self.remove(id);
                true
            }
            Some(Err(error)) => error.is_cancelled(),
            Some(Ok(_)) | None => true,
        }
    }

    /// Ends what could take long: the other calls end soon by themselves.
    fn cancel_waits(&mut self) {
        let waits = self.by_id.iter().filter(|(_, running)| running.waits).map(|(id, _)| *id);
        for id in waits.collect::<Vec<_>>() {
            self.cancel(id);
        }
    }

    fn cancel(&mut self, id: u64) {
        if let Some(running) = self.remove(id) {
            running.cancelled.store(true, Ordering::Relaxed);
            running.task.abort();
        }
    }
}

impl<S: Shards> FrameReader<S> {
    async fn run(mut self, mut frames: Streaming<pipeline::OpenRequest>) {
        let mut phase = self.api.phase.subscribe();
        // Why the stream ends, where it is not its client who ends it.
        let mut end = None;
        loop {
            let goes_on = tokio::select! {
                goes_on = self.calls.next_end(), if !self.calls.running.is_empty() => goes_on,
                frame = frames.message(), if self.calls.has_room() => match frame {
                    Ok(Some(frame)) => self.frame(frame).await,
                    Err(status) => {
                        end = unreadable::refusal(&status, "frame", FRAME_READ_BYTES_MAX);
                        self.calls.cancel_waits();
                        break;
                    }
                    // The client has said all that it had to say.
                    Ok(None) => break,
                },
                () = ended(&mut phase) => {
                    end = Some(stopping());
                    break;
                }
            };
            if !goes_on {
                return;
            }
        }
        while !self.calls.running.is_empty() && self.calls.next_end().await {}
        if let Some(refusal) = end {
            // Every call that was read has its reply: the others certainly did not happen.
            self.replies.send(Err(self.api.metrics().refuse(&refusal, false))).await.ok();
        }
    }

    /// Starts the calls of a frame; false when the stream must end.
    async fn frame(&mut self, frame: pipeline::OpenRequest) -> bool {
        for id in frame.cancel {
            self.calls.cancel(id);
        }
        for call in frame.calls {
            while !self.calls.has_room() {
                if !self.calls.next_end().await {
                    return false;
                }
            }
            let id = call.id;
            if let Err(refusal) = self.start(call)
                && let (reply, _) = reply(self.api.metrics(), id, Err(refusal), false)
                && self.replies.send(Ok(reply)).await.is_err()
            {
                return false;
            }
        }
        true
    }

    fn start(&mut self, call: pipeline::Call) -> Result<(), Refusal> {
        let pipeline::Call { id, timeout_ms, operation } = call;
        let operation = operation
            .ok_or_else(|| invalid("operation", "set: one of the operations of this version"))?;
        if operation.encoded_len() > REQUEST_BYTES_MAX {
            return Err(invalid("request", format_args!("at most {REQUEST_BYTES_MAX} bytes")));
        }
        if self.calls.by_id.contains_key(&id) {
            return Err(invalid("id", "another than those of the calls in flight"));
        }
        let facts = operation::facts(&operation);
        let (method, waits, has_request_id) =
            (facts.method, facts.wait_ms > 0, facts.request_id.is_some());
        let handling = self.api.metrics().begin(method).waits(waits);
        let admitted = if waits && self.calls.waiting >= STREAM_WAITING_MAX {
            Err(overloaded("the stream has too many calls that wait"))
        } else {
            self.api.admission().admit(method.facts().admission, None)
        };
        let permit = admitted.inspect_err(|_| self.api.metrics().own.calls_shed.inc());
        let permit = match permit {
            Ok(permit) => Arc::new(permit),
            Err(refusal) => {
                handling.end(to_status(&refusal, has_request_id).code());
                return Err(refusal);
            }
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        let caller = Caller {
            principal: self.principal,
            timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into())),
            permit,
            cancelled: Some(Arc::clone(&cancelled)),
        };
        let (api, replies) = (Arc::clone(&self.api), self.replies.clone());
        let task = self.calls.running.spawn(async move {
            let outcome = api.call(caller, operation).await;
            let (reply, code) = reply(api.metrics(), id, outcome, has_request_id);
            handling.end(code);
            // Nobody listens any more: what was done stays done.
            replies.send(Ok(reply)).await.ok();
            id
        });
        self.calls.add(id, Running { task, waits, cancelled });
        Ok(())
    }
}

/// Waits for the end of the node; its sender lives as long as the front.
async fn ended(phase: &mut watch::Receiver<Phase>) {
    drop(phase.wait_for(|phase| *phase == Phase::Ended).await);
}

/// The end of a call, and its code.
fn reply(
    metrics: &Metrics,
    id: u64,
    outcome: Result<Outcome, Refusal>,
    has_request_id: bool,
) -> (pipeline::Reply, Code) {
    match outcome {
        Ok(outcome) => (pipeline::Reply { id, outcome: Some(outcome) }, Code::Ok),
        Err(refusal) => {
            let status = metrics.refuse(&refusal, has_request_id);
            let error = pipeline::Error {
                code: status.code().into(),
                message: status.message().to_owned(),
                details: status.details().to_vec().into(),
            };
            (pipeline::Reply { id, outcome: Some(Outcome::Error(error)) }, status.code())
        }
    }
}

/// The frames of replies of one stream. Dropped, it ends the stream's calls.
#[derive(Debug)]
pub struct Frames {
    replies: mpsc::Receiver<Result<pipeline::Reply, Status>>,
    reader: AbortHandle,
    _open: OpenStream,
    /// The stream's place among those of the node.
    _permit: Option<Arc<AdmissionPermit>>,
    frame: Frame,
    /// Why the stream ends, once the last replies have left.
    end: Option<Status>,
}

/// A frame that is being filled.
#[derive(Debug, Default)]
struct Frame {
    replies: Vec<pipeline::Reply>,
    bytes: usize,
    /// Replies that are about to come had their chance to join.
    has_waited: bool,
}

impl Stream for Frames {
    type Item = Result<pipeline::OpenResponse, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Self::Item>> {
        let mut has_ended = self.end.is_some();
        while self.frame.bytes < FRAME_BYTES_MAX && !has_ended {
            match self.replies.poll_recv(context) {
                Poll::Ready(Some(Err(status))) => {
                    self.end = Some(status);
                    has_ended = true;
                }
                Poll::Ready(Some(Ok(reply))) => {
                    self.frame.bytes += reply.encoded_len();
                    self.frame.replies.push(reply);
                }
                Poll::Ready(None) => has_ended = true,
                Poll::Pending => break,
            }
        }
        if self.frame.replies.is_empty() {
            let end = self.end.take().map(Err);
            return if has_ended { Poll::Ready(end) } else { Poll::Pending };
        }
        let is_full = self.frame.bytes >= FRAME_BYTES_MAX;
        if !is_full && !has_ended && !self.frame.has_waited {
            // One entry answers many calls at once: let their tasks run before the frame leaves.
            self.frame.has_waited = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Frame { replies, .. } = std::mem::take(&mut self.frame);
        Poll::Ready(Some(Ok(pipeline::OpenResponse { replies })))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
