//! A message beyond its limit is refused like any other bad input: tonic alone would say OUT_OF_RANGE, without a reason.

use axum::body::Body;
use http::Response;
use tonic::{Code, Status};
use tower::util::MapResponseLayer;
use trefoil_core::check::invalid;
use trefoil_core::limits::REQUEST_BYTES_MAX;
use trefoil_proto::status::to_status;

use super::measure::code;

/// The header of a status that carries its reason.
const DETAILS: &str = "grpc-status-details-bin";

/// Says what the limit is.
pub(super) fn layer() -> MapResponseLayer<fn(Response<Body>) -> Response<Body>> {
    MapResponseLayer::new(explain)
}

fn explain(response: Response<Body>) -> Response<Body> {
    match code(response.headers()) {
        // A refusal of ours says why itself.
        Some(Code::OutOfRange) if !response.headers().contains_key(DETAILS) => {
            refused("request", REQUEST_BYTES_MAX).into_http()
        }
        _ => response,
    }
}

/// The status of a message that is too large.
pub(crate) fn refused(message: &str, limit: usize) -> Status {
    to_status(&invalid(message, format_args!("at most {limit} bytes")), false)
}
