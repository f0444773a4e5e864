//! Server streams: a task tells a client one thing after another, at the client's own pace.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Status;
use trefoil_core::limits::CALL_TIMEOUT_MS;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use super::operation::service;
use super::{Api, CallContext, Phase, Shards, answer_within, refusal, stopping};
use crate::authorize::{Principal, Resource, access};
use crate::layer::admission::AdmissionPermit;
use crate::metrics::Metrics;
use trefoil_proto::operation::Method;

/// Who opens a stream.
#[derive(Debug)]
pub struct StreamCaller {
    /// Who.
    pub principal: Principal,
    /// When the caller gives up, from now; none where it did not say.
    pub timeout: Option<Duration>,
    /// What it called.
    pub method: Method,
    /// The stream's place among those of the node.
    pub permit: Arc<AdmissionPermit>,
}

/// The responses of one stream. Dropped, it ends the task behind them.
#[derive(Debug)]
pub struct ServerStream<T> {
    responses: mpsc::Receiver<T>,
    /// None once its end was told.
    task: Option<JoinHandle<Result<(), Refusal>>>,
    metrics: Arc<Metrics>,
}

/// How a task tells its client something.
#[derive(Debug)]
pub(super) struct StreamSender<T> {
    responses: mpsc::Sender<T>,
    phase: watch::Receiver<Phase>,
}

/// Counts what is open, for as long as it lives.
#[derive(Debug)]
pub(super) struct OpenStream(IntGauge);

impl OpenStream {
    pub(super) fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<S: Shards> Api<S> {
    /// Sees whether a stream may begin, and on whose behalf its shard is asked.
    pub(super) fn begin(
        &self,
        caller: &StreamCaller,
        resource: Resource<'_>,
    ) -> Result<CallContext, Refusal> {
        let action = caller.method.facts().action;
        resource.each(|on| (self.authorizer)(&caller.principal, action, on))?;
        service(caller.method).map_or(Ok(()), |service| self.is_on(service))?;
        if *self.phase.borrow() != Phase::Serving {
            return Err(stopping());
        }
        let longest = Duration::from_millis(CALL_TIMEOUT_MS);
        let left = answer_within(caller.timeout, longest);
        let access = Arc::new(access(&caller.principal, action, resource));
        Ok(CallContext { access, deadline: Instant::now() + left, fingerprint: 0 })
    }

    /// A stream of what a task tells. The task's end is the stream's.
    pub(super) fn tell<T, F>(&self, task: impl FnOnce(StreamSender<T>) -> F) -> ServerStream<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        let (sender, responses) = mpsc::channel(1);
        let sender = StreamSender { responses: sender, phase: self.phase.subscribe() };
        let metrics = Arc::clone(&self.metrics);
        ServerStream { responses, task: Some(tokio::spawn(task(sender))), metrics }
    }
}

impl<T> StreamSender<T> {
    /// Tells something as soon as the client takes it.
    pub(super) async fn say(&mut self, response: T) -> Result<(), Refusal> {
        tokio::select! {
            // Where the client is gone, the task is about to end.
            _ = self.responses.send(response) => Ok(()),
            refusal = stops(&mut self.phase) => Err(refusal),
        }
    }

    /// Waits until what was said is on its way to the client; false where the client is gone.
    pub(super) async fn is_taken(&self) -> bool {
        self.responses.reserve().await.is_ok()
    }

    /// Waits for the node to stop.
    pub(super) async fn stopped(&mut self) -> Refusal {
        stops(&mut self.phase).await
    }
}

/// The sender lives as long as the front.
async fn stops(phase: &mut watch::Receiver<Phase>) -> Refusal {
    drop(phase.wait_for(|phase| *phase != Phase::Serving).await);
    stopping()
}

impl<T> Stream for ServerStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(response) = ready!(self.responses.poll_recv(context)) {
            return Poll::Ready(Some(Ok(response)));
        }
        let Some(task) = &mut self.task else { return Poll::Ready(None) };
        let end = ready!(Pin::new(task).poll(context));
        self.task = None;
        Poll::Ready(match end {
            Ok(Ok(())) => None,
            Ok(Err(refusal)) => Some(Err(self.metrics.refuse(&refusal, false))),
            Err(_) => {
                let fault = refusal(Reason::Internal, "the stream ended by a fault");
                Some(Err(self.metrics.refuse(&fault, false)))
            }
        })
    }
}

impl<T> Drop for ServerStream<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
