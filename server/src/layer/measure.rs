//! Counts each request from its start to its end: the trailers of its answer, or the moment that it is dropped.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Code;
use tower::{Layer, Service, layer::layer_fn};

use super::content;
use crate::metrics::{Handling, Metrics};
use trefoil_proto::operation::Method;

/// Measures the requests of known methods; a path that is none names nothing that could be counted under.
pub(super) fn layer<S>(metrics: Arc<Metrics>) -> impl Layer<S, Service = Measure<S>> + Clone {
    layer_fn(move |inner| Measure { inner, metrics: Arc::clone(&metrics) })
}

/// Whether a call asked to wait: its handler says so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits(pub(crate) Arc<AtomicBool>);

/// See [`layer`].
#[derive(Clone)]
pub(super) struct Measure<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Service<Request<Body>> for Measure<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(refused) = content::refused(request.headers()) {
            return Box::pin(ready(Ok(refused)));
        }
        let handling =
            Method::of_path(request.uri().path()).map(|method| self.metrics.begin(method));
        let waits = Waits::default();
        request.extensions_mut().insert(waits.clone());
        let answer = self.inner.call(request);
        let Some(handling) = handling else { return Box::pin(answer) };
        Box::pin(async move {
            let response = answer.await?;
            let handling = handling.waits(waits.0.load(Ordering::Relaxed));
            if let Some(code) = code(response.headers()) {
                handling.end(code);
                return Ok(response);
            }
            Ok(response.map(|inner| Body::new(Measured { inner, handling: Some(handling) })))
        })
    }
}

/// The gRPC code among headers or trailers.
pub(super) fn code(headers: &HeaderMap) -> Option<Code> {
    Some(Code::from_bytes(headers.get("grpc-status")?.as_bytes()))
}

/// A body whose trailers tell how the call ended.
struct Measured {
    inner: Body,
    handling: Option<Handling>,
}

impl HttpBody for Measured {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        let end = match &frame {
            Some(Ok(frame)) => {
                frame.trailers_ref().map(|trailers| code(trailers).unwrap_or(Code::Unknown))
            }
            Some(Err(_)) => Some(Code::Unknown),
            None => Some(Code::Unknown),
        };
        if let Some(code) = end
            && let Some(handling) = self.handling.take()
        {
            handling.end(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
