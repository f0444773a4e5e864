//! A message beyond its limit is refused like any other bad input: tonic alone would say OUT_OF_RANGE, without a reason.

use axum::body::Body;
use http::Response;
use tonic::{Code, Status};
use tower::util::MapResponseLayer;
use trefoil_core::check::invalid;
use trefoil_core::limits::REQUEST_BYTES_MAX;
use trefoil_proto::status::to_status;

use super::measure::code;

/// Says what the limit is.
pub(super) fn layer() -> MapResponseLayer<fn(Response<Body>) -> Response<Body>> {
    MapResponseLayer::new(explain)
}

fn explain(response: Response<Body>) -> Response<Body> {
    match code(response.headers()) {
        Some(Code::OutOfRange) => refused("request", REQUEST_BYTES_MAX).into_http(),
        _ => response,
    }
}

/// The status of a message that is too large: nothing else of this server is OUT_OF_RANGE.
pub(crate) fn refused(message: &str, limit: usize) -> Status {
    to_status(&invalid(message, format_args!("at most {limit} bytes")), false)
}
