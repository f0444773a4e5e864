//! A request that is not gRPC gets HTTP's 415, as the protocol asks: no handler could read it.

use axum::body::Body;
use axum::response::IntoResponse as _;
use http::{HeaderMap, Response, StatusCode, header};

/// The answer to a request that does not say that it is gRPC with protobuf.
pub(super) fn refused(headers: &HeaderMap) -> Option<Response<Body>> {
    let why = "content-type must be application/grpc or application/grpc+proto\n";
    (!is_grpc(headers)).then(|| (StatusCode::UNSUPPORTED_MEDIA_TYPE, why).into_response())
}

/// PROTOCOL-HTTP2.md of gRPC: `application/grpc`, with `+proto` for this codec, or no other codec at all.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let content = headers.get(header::CONTENT_TYPE).and_then(|content| content.to_str().ok());
    let essence = content.and_then(|content| content.split(';').next()).unwrap_or_default().trim();
    ["application/grpc", "application/grpc+proto"]
        .iter()
        .any(|grpc| essence.eq_ignore_ascii_case(grpc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_protobuf_over_grpc_is_read() {
        let is = |content: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, content.parse().unwrap());
            is_grpc(&headers)
        };
        for content in ["application/grpc", "application/grpc+proto", "Application/gRPC; a=b"] {
            assert!(is(content), "{content}");
        }
        for content in
            ["", "application/json", "application/grpc+json", "application/grpc-web", "text/plain"]
        {
            assert!(!is(content), "{content}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
