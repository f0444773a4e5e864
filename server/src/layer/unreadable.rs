//! What tonic cannot read or does not know is refused like any other bad input: tonic alone would call it INTERNAL or
//! OUT_OF_RANGE, without a reason.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Response};
use tonic::{Code, Status};
use tower::Layer;
use tower::util::{MapResponse, MapResponseLayer};
use trefoil_core::check::invalid;
use trefoil_core::limits::REQUEST_BYTES_MAX;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use super::measure::code;
use crate::metrics::Metrics;

/// The header of a status that carries its reason.
const DETAILS: &str = "grpc-status-details-bin";
/// What a node says that it takes, in every answer.
const ACCEPTED: &str = "grpc-accept-encoding";

/// Says what was wrong.
pub(super) fn layer<S>(
    metrics: Arc<Metrics>,
) -> impl Layer<S, Service = MapResponse<S, impl Fn(Response<Body>) -> Response<Body> + Clone>> + Clone
{
    MapResponseLayer::new(move |response| explain(response, &metrics))
}

fn explain(response: Response<Body>, metrics: &Metrics) -> Response<Body> {
    let headers = response.headers();
    // A refusal of ours says why itself.
    if code(headers).is_none_or(|code| code == Code::Ok) || headers.contains_key(DETAILS) {
        return response;
    }
    let told = Status::from_header_map(headers);
    match told.and_then(|status| refusal(&status, "request", REQUEST_BYTES_MAX)) {
        Some(refusal) => refused(metrics.refuse(&refusal, false), headers),
        None => response,
    }
}

fn refused(status: Status, told: &HeaderMap) -> Response<Body> {
    let mut response = status.into_http();
    if let Some(accepted) = told.get(ACCEPTED) {
        response.headers_mut().insert(ACCEPTED, accepted.clone());
    }
    response
}

/// Why a message could not be read, where tonic says so; none where the connection ended.
pub(crate) fn refusal(status: &Status, message: &str, limit: usize) -> Option<Refusal> {
    match status.code() {
        // Beyond its limit as it came, or once it was unfolded.
        Code::OutOfRange | Code::ResourceExhausted => {
            Some(invalid(message, format_args!("at most {limit} bytes")))
        }
        Code::Internal => {
            let expected = format_args!("a whole message of its type: {}", status.message());
            Some(invalid(message, expected))
        }
        Code::Unimplemented => Some(unsupported(status.message())),
        _ => None,
    }
}

/// There is no such method, or no such compression.
pub(crate) fn unsupported(what: &str) -> Refusal {
    let what = if what.is_empty() { "this node has no such method" } else { what };
    Refusal { reason: Reason::Unsupported.into(), message: what.to_owned(), ..Refusal::default() }
}
