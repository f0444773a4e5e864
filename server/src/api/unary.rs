//! The unary services: one RPC for each operation, for grpcurl and any language.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tonic::{Request, Status};
use trefoil_proto::internal::v1::Refusal;

use super::operation::{self, Operation};
use super::server_stream::StreamCaller;
use super::{Api, Caller, Outcome, Shards};
use crate::authorize::Principal;
use crate::layer::admission::AdmissionPermit;
use crate::layer::{CallTimeout, PeerAddress, Waits};
use trefoil_proto::operation::Method;

/// The unary services on one front.
#[derive(Debug)]
pub struct Unary<S> {
    pub(super) api: Arc<Api<S>>,
}

impl<S> Clone for Unary<S> {
    fn clone(&self) -> Self {
        Self { api: Arc::clone(&self.api) }
    }
}

/// The principal of a request, from what the caller noted.
pub(super) fn principal<T>(request: &Request<T>) -> Principal {
    Principal { address: request.extensions().get::<PeerAddress>().map(|address| address.0) }
}

impl<S: Shards> Unary<S> {
    /// Serves a front.
    #[must_use]
    pub fn new(api: Arc<Api<S>>) -> Self {
        Self { api }
    }

    /// Takes what a stream needs out of its first request.
    pub(super) fn caller<T>(
        &self,
        request: &mut Request<T>,
        method: Method,
    ) -> Result<StreamCaller, Status> {
        let permit = request.extensions_mut().remove::<Arc<AdmissionPermit>>();
        let permit = self.permit(permit, method)?;
        let timeout = request.extensions().get::<CallTimeout>().map(|timeout| timeout.0);
        Ok(StreamCaller { principal: principal(request), timeout, method, permit })
    }

    pub(super) async fn serve<T>(
        &self,
        mut request: Request<T>,
        wrap: fn(T) -> Operation,
    ) -> Result<Outcome, Status> {
        let principal = principal(&request);
        let timeout = request.extensions().get::<CallTimeout>().map(|timeout| timeout.0);
        let permit = request.extensions_mut().remove::<Arc<AdmissionPermit>>();
        let waits = request.extensions_mut().remove::<Waits>();
        let operation = wrap(request.into_inner());
        let permit = self.permit(permit, operation.method())?;
        let facts = operation::facts(&operation);
        let has_request_id = facts.request_id.is_some();
        if let Some(Waits(waits)) = waits {
            waits.store(facts.wait_ms > 0, Ordering::Relaxed);
        }
        let caller = Caller { principal, timeout, permit, cancelled: None };
        let end = self.api.call(caller, operation).await;
        end.map_err(|refusal| self.refuse(&refusal, has_request_id))
    }

    /// The place that the call has, or one of its own.
    fn permit(
        &self,
        permit: Option<Arc<AdmissionPermit>>,
        method: Method,
    ) -> Result<Arc<AdmissionPermit>, Status> {
        permit.map_or_else(
            || {
                let admitted = self.api.admission().admit(method.facts().admission, None);
                admitted.map(Arc::new).map_err(|refusal| self.refuse(&refusal, false))
            },
            Ok,
        )
    }

    pub(super) fn refuse(&self, refusal: &Refusal, has_request_id: bool) -> Status {
        self.api.metrics().refuse(refusal, has_request_id)
    }
}
