//! Refuses a request when too many are in flight.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use http::{Request, Response};
use tower::{Layer, Service, layer::layer_fn};

use super::admission::{Admission, Connection};
use crate::metrics::Metrics;
use trefoil_proto::common::v1::AdmissionClass;
use trefoil_proto::operation::Method;

/// Takes a place for each request, and gives it to the handler to keep.
pub(super) fn layer<S>(
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
) -> impl Layer<S, Service = Shed<S>> + Clone {
    layer_fn(move |inner| Shed {
        inner,
        admission: Arc::clone(&admission),
        metrics: Arc::clone(&metrics),
    })
}

/// See [`layer`].
#[derive(Clone)]
pub(super) struct Shed<S> {
    inner: S,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
}

impl<S> Service<Request<Body>> for Shed<S>
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
        let method = Method::of_path(request.uri().path());
        let class = method.map_or(AdmissionClass::Ordinary, |method| method.facts().admission);
        let connection = request.extensions().get::<Connection>();
        match self.admission.admit(class, connection) {
            Ok(permit) => {
                request.extensions_mut().insert(Arc::new(permit));
                Box::pin(self.inner.call(request))
            }
            Err(refusal) => {
                self.metrics.own.calls_shed.inc();
                Box::pin(ready(Ok(self.metrics.refuse(&refusal, false).into_http())))
            }
        }
    }
}
