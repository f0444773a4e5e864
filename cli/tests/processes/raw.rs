//! Plain gRPC, as any other language speaks it: one call, and what came of it.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use trefoil_client::Reason;
use trefoil_client::proto::cache::v1::PutRequest;
use trefoil_client::proto::cache::v1::cache_service_client::CacheServiceClient;
use trefoil_client::proto::common::v1::{Value, value};
use trefoil_client::proto::status::from_status;

use crate::support::Node;

/// A channel to a node, connected when it is used.
pub(crate) fn channel(node: &Node) -> Channel {
    Endpoint::from_shared(node.endpoint()).unwrap().connect_lazy()
}

/// The reason in a status; none where the answer is not the node's.
pub(crate) fn reason(status: &Status) -> Option<Reason> {
    from_status(status).map(|refusal| refusal.reason())
}

/// Whether a call never left, since nobody listens any more.
pub(crate) fn was_not_sent(status: &Status) -> bool {
    // Whether it is refused, or reset where it waited to be accepted: no call was on it yet.
    if status.message() == "tcp connect error" {
        return true;
    }
    // hyper says that of requests alone that it still had when the connection was closed.
    if status.code() == Code::Cancelled && status.message() == "operation was canceled" {
        return true;
    }
    let mut source: Option<&dyn std::error::Error> = Some(status);
    while let Some(error) = source {
        // It came to the connection after the server had said up to which it still takes them (RFC 9113, 6.8).
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_go_away()
                && error.is_remote()
                && error.reason() == Some(h2::Reason::NO_ERROR);
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        source = error.source();
    }
    false
}

/// A put without a request id.
pub(crate) fn put_request(key: &str) -> PutRequest {
    let value = Some(Value { kind: Some(value::Kind::Text("raw".to_owned())) });
    PutRequest { key: key.to_owned(), value, ..PutRequest::default() }
}

/// Puts a value through a node; a refusal with its reason, where the node gave one.
pub(crate) async fn put(node: &Node, key: &str, timeout: Duration) -> Result<(), Option<Reason>> {
    let mut request = Request::new(put_request(key));
    request.set_timeout(timeout);
    let put = CacheServiceClient::new(channel(node)).put(request).await;
    put.map(drop).map_err(|status| reason(&status))
}
