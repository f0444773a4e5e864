//! What the front must know of an operation before it is carried out.

use trefoil_proto::common::v1::RequestId;
use trefoil_proto::operation::Method;
pub use trefoil_proto::pipeline::v1::call::Operation;

use crate::authorize::{Action, Resource};
use crate::config::Service;

/// What the front knows of an operation.
#[derive(Clone, Copy, Debug)]
pub struct CallFacts<'a> {
    /// The RPC that it is.
    pub method: Method,
    /// The service that must be on; none for what is always on.
    pub service: Option<Service>,
    /// What the caller must be allowed to do.
    pub action: Action,
    /// And to what.
    pub resource: Resource<'a>,
    /// Whether a retry is told apart from a second request.
    pub request_id: Option<&'a RequestId>,
    /// How long it may wait in ms.
    pub wait_ms: u64,
}

/// The facts of an operation.
#[must_use]
pub fn facts(operation: &Operation) -> CallFacts<'_> {
    let method = operation.method();
    CallFacts {
        method,
        service: service(method),
        action: method.facts().action,
        resource: Resource::of(operation),
        request_id: operation.request_id(),
        wait_ms: operation.wait_ms(),
    }
}

include!(concat!(env!("OUT_DIR"), "/services.rs"));
